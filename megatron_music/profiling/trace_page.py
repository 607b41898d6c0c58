"""One self-contained page of what a trace says: a bar for each rank, ranges, kernels. Nothing is loaded from elsewhere."""

from collections.abc import Sequence
from html import escape

from megatron_music.profiling.tables import format_cells
from megatron_music.profiling.trace import KINDS, Share

_COLOURS = {
    "gemm": "#4c78a8", "attention": "#f58518", "communication": "#e45756", "memory": "#72b7b2", "other": "#b279a2", "idle": "#dddddd",
}  # fmt: skip
_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}
div.wide{overflow-x:auto;margin:.5rem 0 2rem}table{border-collapse:collapse;width:100%;font-size:.9rem}
td,th{padding:.25rem .5rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:bottom;font-weight:400}th{color:#666}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}th.number{white-space:normal}
td:first-child{overflow-wrap:anywhere;min-width:4rem}
.bar{display:flex;height:1.4rem;width:100%;background:#f4f4f4}.key span{display:inline-block;margin-right:1rem}
.key i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem}"""


_MS = ",.3f"


def trace_page(title: str, shares: Sequence[Share], ranges: Sequence[dict], kernels: Sequence[dict]) -> str:
    """The page as HTML.

    Args:
        ranges: of ``slowest_ranges``.
        kernels: of ``slowest_kernels``.
    """
    key = "".join(f'<span><i style="background:{colour}"></i>{kind}</span>' for kind, colour in _COLOURS.items())
    bars = "".join(_bar(share) for share in shares)
    share_columns = {"rank": "", "device": "", "ms": _MS} | dict.fromkeys(
        (*KINDS, "idle", "exposed_communication", "hidden_communication"), ".1%"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<h1>{escape(title)}</h1><p class="key">{key}</p>{bars}'
        f"<h2>Shares of the time of each rank</h2><p>Lengths of unions: kinds that run at once each count.</p>"
        f"{_table(share_columns, _in_ms([share._asdict() for share in shares]))}"
        f"<h2>Ranges</h2>{_table({'range': '', 'times': '', 'ms': _MS, 'skew': '.1%'}, _in_ms(ranges))}"
        f"<h2>Kernels</h2>{_table({'kernel': '', 'kind': '', 'ms': _MS}, _in_ms(kernels))}</html>\n"
    )


def _in_ms(rows: Sequence[dict]) -> list[dict]:
    return [row | {"ms": 1e3 * row["seconds"]} for row in rows]


def _bar(share: Share) -> str:
    """Kinds beside each other; where they overlap they are drawn smaller, so that the bar is no longer than the time."""
    parts = {kind: getattr(share, kind) for kind in _COLOURS}
    scale = 1 / max(1.0, sum(parts.values()))
    pieces = "".join(
        f'<div style="width:{100 * scale * part:.2f}%;background:{_COLOURS[kind]}" title="{kind} {part:.1%}"></div>' for kind, part in parts.items()
    )
    return f'<p>rank {escape(share.rank)}: {1e3 * share.seconds:{_MS}} ms of the {share.device}</p><div class="bar">{pieces}</div>'


def _table(columns: dict[str, str], rows: Sequence[dict]) -> str:
    if not rows:
        return "<p>none in the trace</p>"
    marks = [' class="number"' if any(isinstance(row.get(key), int | float) for row in rows) else "" for key in columns]
    head = "".join(f"<th{mark}>{escape(key.replace('_', ' '))}</th>" for mark, key in zip(marks, columns, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{mark}>{escape(cell)}</td>" for mark, cell in zip(marks, cells, strict=True)) + "</tr>"
        for cells in format_cells(columns, rows)
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'
