"""One self-contained page of what a trace says: a bar for each rank, ranges, kernels. Nothing is loaded from
elsewhere.
"""

from collections.abc import Sequence
from html import escape

from megatron_music.music.names import printable
from megatron_music.profiling.kernel_kinds import KINDS
from megatron_music.profiling.trace import Share
from megatron_music.reports.tables import format_cells

# Of a light page and of a dark one; letters upon them are in --on.
_COLOURS = {
    "gemm": ("#2b6cb0", "#6ca6ea"),
    "attention": ("#d97706", "#f0963c"),
    "communication": ("#7f1028", "#d8443a"),
    "memory": ("#4096af", "#5fe2ff"),
    "other": ("#4c1d95", "#9a63e8"),
    "idle": ("#e2e5e9", "#39414b"),
}
_MEANINGS = {
    "gemm": "matrix products",
    "attention": "as a fused kernel",
    "communication": "between ranks",
    "memory": "copies and fills",
    "other": "all other kernels",
    "idle": "no kernel runs",
}
_NARROWEST_LABEL = 0.07  # of a bar: a share below has no label in its piece


def _variables(place: int) -> str:
    return "".join(f"--{kind}:{colours[place]};" for kind, colours in _COLOURS.items())


_STYLE = (
    f""":root{{color-scheme:light dark;--paper:#fff;--ink:#1f2328;--soft:#57606a;--line:#d8dee4;{_variables(0)}}}
@media(prefers-color-scheme:dark){{:root{{--paper:#14171c;--ink:#e6e8eb;--soft:#a3adb8;--line:#353c45;{_variables(1)}}}}}
"""
    + """*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main{max-width:68rem;margin:0 auto;padding:0 clamp(.9rem,4vw,2rem)}header{padding-top:2.5rem}main{padding-bottom:3rem}
h1{font-size:clamp(1.4rem,5vw,2rem);line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:2.2rem 0 .2rem}
p{margin:.2rem 0 .8rem}.soft{color:var(--soft);font-size:.9rem}
ul{list-style:none;margin:1rem 0;padding:0}.key{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;font-size:.9rem}
.key i{display:inline-block;width:.85rem;height:.85rem;border-radius:.2rem;margin-right:.4rem;vertical-align:-.08rem}.key span{color:var(--soft)}
.rank{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1rem;margin:1rem 0 .25rem;font-size:.9rem}
.bar{display:flex;gap:2px;height:1.9rem;width:100%;overflow:hidden;border-radius:.3rem;font-size:.78rem;font-variant-numeric:tabular-nums}
.bar div{display:flex;align-items:center;min-width:0;padding-left:.4rem;overflow:hidden;white-space:nowrap}.bar div.narrow{padding:0}
.bar span{background:var(--paper);color:var(--ink);border-radius:.2rem;padding:0 .25rem;line-height:1.35}
.wide{overflow-x:auto;margin:.5rem 0 0}table{border-collapse:collapse;width:100%;font-size:.9rem}
:focus-visible{outline:3px solid #3b82f6;outline-offset:2px}
td,th{padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;font-weight:400}
thead th{color:var(--soft);vertical-align:bottom}.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
thead .number{white-space:normal}tbody td:first-child{overflow-wrap:anywhere;min-width:5rem}td:last-child,th:last-child{padding-right:0}
.names td:first-child{font-family:ui-monospace,monospace;font-size:.82rem}"""
)


_MS = ",.3f"


def trace_page(
    title: str, shares: Sequence[Share], ranges: Sequence[dict], kernels: Sequence[dict], notes: Sequence[str] = ()
) -> str:
    """The page as HTML.

    Args:
        ranges: of ``slowest_ranges``.
        kernels: of ``slowest_kernels``.
        notes: sentences that a reader must bear in mind.
    """
    key = "".join(
        f'<li><i style="background:var(--{kind})"></i>{kind} <span>{_MEANINGS[kind]}</span></li>' for kind in _COLOURS
    )
    bars = "".join(_bar(share) for share in shares)
    share_columns = {"rank": "", "device": "", "ms": _MS} | dict.fromkeys(
        (*KINDS, "idle", "exposed_communication", "hidden_communication"), ".1%"
    )
    said = "".join(f'<p class="soft">{_text(note[0].upper() + note[1:])}.</p>' for note in notes)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>"
        f"<header><h1>{_text(title)}</h1><p>What each rank spent its time on, from its first kernel to its "
        f"last.</p>{said}</header>"
        f'<main><ul class="key">{key}</ul>{bars}'
        '<h2>Time of each rank</h2><p class="soft">Shares of the time in which at least one kernel of a kind ran. '
        "Kernels of several "
        "kinds can run at once, so that a row may add up to more than 100%; the bars above are scaled down to fit. "
        "Communication is exposed while "
        "nothing else runs, and hidden while something does.</p>"
        f"{_table('Time of each rank', share_columns, _in_ms([share._asdict() for share in shares]))}"
        '<h2>Ranges</h2><p class="soft">Named stretches of the code, the longest first: how often each ran, its '
        "milliseconds on the median "
        "rank, and how much longer the slowest rank took than that (skew).</p>"
        f"{_table('Ranges', {'range': '', 'times': ',', 'ms': _MS, 'skew': '.1%'}, _in_ms(ranges), 'names')}"
        '<h2>Kernels</h2><p class="soft">The longest first, with the milliseconds of all their calls on all ranks.</p>'
        f"{_table('Kernels', {'kernel': '', 'kind': '', 'ms': _MS}, _in_ms(kernels), 'names')}</main></body></html>\n"
    )


def _text(words: object) -> str:
    return escape(printable(str(words)))


def _in_ms(rows: Sequence[dict]) -> list[dict]:
    return [row | {"ms": 1e3 * row["seconds"]} for row in rows]


def _bar(share: Share) -> str:
    """Kinds beside each other; where they overlap they are drawn smaller, so that the bar is no longer than the
    time.
    """
    parts = {kind: getattr(share, kind) for kind in _COLOURS}
    scale = 1 / max(1.0, sum(parts.values()))
    pieces = "".join(_piece(kind, part, scale * part) for kind, part in parts.items() if part > 0)
    label = ", ".join(f"{kind} {part:.1%}" for kind, part in parts.items())
    return (
        f'<p class="rank"><b>rank {_text(share.rank)}</b> '
        f"{1e3 * share.seconds:{_MS}} ms of the {_text(share.device)}</p>"
        f'<div class="bar" role="img" aria-label="rank {_text(share.rank)}: {label}">{pieces}</div>'
    )


def _piece(kind: str, part: float, width: float) -> str:
    label = f"<span>{part:.0%}</span>" if width >= _NARROWEST_LABEL else ""
    mark = "" if label else ' class="narrow"'
    return (
        f'<div{mark} style="flex:{100 * width:.2f} 1 0;background:var(--{kind})" title="{kind} '
        f'{part:.1%}">{label}</div>'
    )


def _table(name: str, columns: dict[str, str], rows: Sequence[dict], mark: str = "") -> str:
    if not rows:
        return "<p>None in the trace.</p>"
    marks = [' class="number"' if any(isinstance(row.get(key), int | float) for row in rows) else "" for key in columns]
    head = "".join(
        f'<th scope="col"{mark}>{escape(key.replace("_", " "))}</th>' for mark, key in zip(marks, columns, strict=True)
    )
    lines = [
        "<tr>" + "".join(f"<td{mark}>{_text(cell)}</td>" for mark, cell in zip(marks, cells, strict=True)) + "</tr>"
        for cells in format_cells(columns, rows)
    ]
    table = f'<table class="{mark}"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}">{table}</div>'
