"""One self-contained page of a rehearsal: the page of ``trace`` with the memory of each rank over the step."""

from html import escape

from megatron_music.profiling.trace import share_of, slowest_kernels, slowest_ranges
from megatron_music.profiling.trace_page import trace_page
from megatron_music.rehearsal import report
from megatron_music.rehearsal.job import Job
from megatron_music.rehearsal.ledger import CATEGORIES
from megatron_music.rehearsal.one_rank import Rehearsed
from megatron_music.rehearsal.timelines import timeline
from megatron_music.reports.findings import Finding
from megatron_music.reports.tables import format_cells

_WIDTH, _HEIGHT = 1000, 180
_SHOWN = 8  # rows of what holds memory
# Of a light page and of a dark one, in the order of CATEGORIES.
_COLOURS = (
    ("#2b6cb0", "#6ca6ea"),
    ("#4096af", "#5fe2ff"),
    ("#4c1d95", "#9a63e8"),
    ("#8a8f98", "#6b7480"),
    ("#d97706", "#f0963c"),
    ("#7f1028", "#d8443a"),
    ("#3f7d3a", "#79c46f"),
    ("#a1458f", "#e07fcb"),
)


def rehearsal_page(title: str, job: Job, findings: list[Finding]) -> str:
    """The page as HTML."""
    timelines = [timeline(rank) for rank in job.ranks]
    notes = [
        f"a rehearsal: no kernel ran, and times are the least that one {job.ranks[0].timed_as} would take, without "
        f"waiting for other ranks",
        *(f"{finding.status}: {finding.where}: {finding.what}" for finding in findings if finding.status != "ok"),
    ]
    if job.ranks[0].repeated[2] > 1:
        notes.append(
            "micro batches of the schedule's steady state are drawn once or twice, and counted as often as they occur"
        )
    page = trace_page(
        title, [share_of(each) for each in timelines], slowest_ranges(timelines), slowest_kernels(timelines), notes
    )
    head, _, rest = page.partition("</style>")
    body, _, end = rest.rpartition("</main>")
    return f"{head}{_style()}</style>{body}{_memory(job)}{_messages(job)}</main>{end}"


def _style() -> str:
    light, dark = (
        ";".join(f"--memory{number}:{pair[place]}" for number, pair in enumerate(_COLOURS)) for place in (0, 1)
    )
    return (
        f"\n:root{{{light}}}\n@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        ".memory{width:100%;height:auto;display:block}.memory text{fill:var(--soft);font-size:13px}"
    )


def _memory(job: Job) -> str:
    key = "".join(
        f'<li><i style="background:var(--memory{number})"></i>{escape(name)}</li>'
        for number, name in enumerate(CATEGORIES)
    )
    most = max(row_total for rank in job.ranks for row_total in map(_total, rank.curve))
    charts = "".join(_chart(rank, most, job.gpu_memory_gb) + _holders(rank) for rank in job.ranks)
    return (
        '<h2>Memory over the step</h2><p class="soft">What tensors hold on each rank, in GB (10^9 bytes), from the '
        "first forward "
        f'pass to the end of the update. All charts have the same height.</p><ul class="key">{key}</ul>{charts}'
    )


def _total(row: dict) -> int:
    return sum(row[name] for name in CATEGORIES)


def _chart(rank: Rehearsed, most: int, capacity: float | None) -> str:
    end = max(rank.curve[-1]["seconds"], 1e-12)
    places = [(_WIDTH * row["seconds"] / end, row) for row in rank.curve]
    below = [0.0] * len(places)
    areas = []
    for number, name in enumerate(CATEGORIES):
        above = [low + row[name] for low, (_, row) in zip(below, places, strict=True)]
        if any(row[name] for _, row in places):
            points = [f"{x:.1f},{_y(value, most):.1f}" for (x, _), value in zip(places, above, strict=True)]
            points += [
                f"{x:.1f},{_y(value, most):.1f}" for (x, _), value in reversed(list(zip(places, below, strict=True)))
            ]
            areas.append(
                f'<polygon points="{" ".join(points)}" '
                f'fill="var(--memory{number})"><title>{escape(name)}</title></polygon>'
            )
        below = above
    peak = rank.peak.num_bytes / 1e9
    share = f", {peak / capacity:.0%} of {capacity:g} GB" if capacity else ""
    label = f"{rank.role}: at most {peak:.4g} GB{share}"
    return (
        f'<p class="rank"><b>{escape(str(rank.role))}</b> at most {peak:.4g} GB{share}; {1e3 * end:,.3f} ms</p>'
        f'<svg class="memory" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(areas)}</svg>'
    )


def _y(value: float, most: int) -> float:
    return _HEIGHT * (1 - value / max(most, 1))


def _holders(rank: Rehearsed) -> str:
    rows = report.holder_rows(rank)[:_SHOWN]
    return (
        f"<details><summary>What holds it at the fullest "
        f"moment</summary>{_table(report.HOLDER_COLUMNS, rows)}</details>"
    )


def _messages(job: Job) -> str:
    tables = "".join(
        f"<details><summary>{escape(str(rank.role))}</summary>{_table(report.MESSAGE_COLUMNS, report.message_rows(rank))}"
        f"{_table(report.WAIT_COLUMNS, report.wait_rows(rank))}</details>"
        for rank in job.ranks
    )
    return f'<h2>Messages, waits and copies of a whole step</h2><p class="soft">Sizes are in bytes.</p>{tables}'


def _table(columns: dict, rows: list[dict]) -> str:
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}</th>' for name in columns)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in format_cells(columns, rows)
    )
    return (
        f'<div class="wide" tabindex="0"><table '
        f'class="names"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    )
