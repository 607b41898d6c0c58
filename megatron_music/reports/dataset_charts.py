"""What a dataset's report shows as charts, before anybody draws them.

Each function picks one chart's names and numbers out of ``report.json``; ``figures`` draws them as SVG files, ``page``
in HTML. Knows nothing about either. A report of an older version has fewer charts.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_music.config.errors import counted
from megatron_music.music.instruments import TRACK_COLOURS, instrument_name
from megatron_music.reports import reasons
from megatron_music.reports.dataset_words import left_out_in_words

BLUE, ORANGE, GREEN, RED, TEAL, *_ = TRACK_COLOURS
TOP_INSTRUMENTS = 20
TOP_REASONS = 12
TOP_METERS = 10
# A histogram ends where this share of what it counts lies; the rest is its last bar.
SHOWN = 0.995


@dataclass(frozen=True)
class Bars:
    """Named bars, the first on top.

    Args:
        heading: what a bar's length says, with its unit.
        names, values: one a bar; the values are not negative.
        texts: each value as a person reads it.
    """

    heading: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    texts: tuple[str, ...]
    colour: str = BLUE


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width side by side; places on the axis count bars, so 2.5 is the middle of the third.

    Args:
        x_label, y_label: what the axes count, with units.
        counts: one a bar.
        names: what each bar counts, as in "12 to 24 tokens".
        ticks: (place, text) along the axis.
        median: (place, text), or None where nothing was counted.
    """

    x_label: str
    y_label: str
    counts: tuple[int, ...]
    names: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]
    median: tuple[float, str] | None
    colour: str = BLUE


@dataclass(frozen=True)
class Chart:
    """A title, one sentence that says how to read it, and one or more panels under a name fit for a file."""

    name: str
    title: str
    caption: str
    panels: tuple[Bars | Histogram, ...]


def charts(report: dict) -> tuple[Chart, ...]:
    """The charts of a report for which it has numbers, in the order they are read in."""
    of_all = (splits, sources, document_tokens, instruments, density, onset_error, meters, exclusions)
    made = (chart(report) for chart in of_all)
    return tuple(chart for chart in made if chart is not None)


def splits(report: dict) -> Chart:
    rows = report["splits"]
    names = tuple(rows)
    panels = [
        _bars("tokens", names, [row["tokens"] for row in rows.values()]),
        _bars("windows (documents)", names, [row["documents"] for row in rows.values()], ORANGE),
    ]
    caption = "All windows of a file are in the same split."
    return Chart("splits", "Tokens and windows by split", caption, tuple(panels))


def sources(report: dict) -> Chart | None:
    rows = report.get("sources") or []
    if not rows:
        return None
    names = tuple(row["name"] for row in rows)
    if any(row["bytes"] for row in rows):
        panels = [_bars("token ids, MB (10⁶ bytes)", names, [row["bytes"] / 1e6 for row in rows], as_text=megabytes)]
    else:  # a build of text alone
        panels = [_bars("tokens", names, [row["tokens"] for row in rows])]
    if all("text_bytes" in row for row in rows):
        sizes = [row["text_bytes"] / 1e6 for row in rows]
        panels.append(_bars("as text, MB (10⁶ bytes)", names, sizes, TEAL, as_text=megabytes))
    panels.append(_bars("windows (documents)", names, [row["documents"] for row in rows], ORANGE))
    caption = "Each source given to the build, all splits together."
    return Chart("sources", "Sizes by data set", caption, tuple(panels))


def document_tokens(report: dict) -> Chart | None:
    found = report.get("histograms", {}).get("document_tokens")
    if not found or not sum(found["counts"]):
        return None
    counts, edges = list(found["counts"]), list(found["edges"])
    open_end = len(edges) == len(counts)
    shown = _shown(counts)
    rest = sum(counts[shown:])
    counts, last = counts[:shown], edges[shown - 1 if open_end and shown == len(counts) else shown]
    names = [f"{low:,} to {high - 1:,} tokens" for low, high in itertools.pairwise(edges[: len(counts) + 1])]
    names += [f"{edges[len(counts) - 1]:,} tokens and more"] * (len(counts) - len(names))
    if rest:
        counts, names = [*counts, rest], [*names, f"{last:,} tokens and more"]
    label = "tokens in a window" + (f"; the last bar is {last:,} and more" if rest else "")
    round_by = (edges[1] - edges[0]) * _tick_places(shown).step
    ticks = [(place, f"{edge:,}") for place, edge in enumerate(edges[: shown + 1]) if edge % round_by == 0]
    place, value = _median(found["counts"], edges)
    return Chart(
        "document_tokens",
        "Length of windows",
        "Tokens in each document of the dataset; a model's context should hold most of them.",
        (
            Histogram(
                label,
                "windows",
                tuple(counts),
                tuple(names),
                tuple(ticks),
                (min(place, len(counts)), f"median {value:,.0f}"),
            ),
        ),
    )


def instruments(report: dict) -> Chart | None:
    found = report.get("histograms", {}).get("instruments")
    if not found:
        return None
    rows = sorted(found.items(), key=lambda row: (-row[1], row[0]))
    names = [instrument_name(value) for value, _ in rows[:TOP_INSTRUMENTS]]
    values = [count for _, count in rows[:TOP_INSTRUMENTS]]
    if len(rows) > TOP_INSTRUMENTS:
        names.append(f"{len(rows) - TOP_INSTRUMENTS} others")
        values.append(sum(count for _, count in rows[TOP_INSTRUMENTS:]))
    return Chart(
        "instruments",
        "Instruments",
        f"Tracks in documents by instrument, {len(rows)} in all, under their General MIDI names.",
        (_bars("tracks in documents", tuple(names), values),),
    )


def density(report: dict) -> Chart | None:
    found = report.get("histograms", {}).get("density")
    if not found or not sum(found):
        return None
    shown = _shown(found)
    rest = sum(found[shown:])
    counts = [*found[:shown], rest] if rest else list(found[:shown])
    names = [f"{notes} note{'s' * (notes != 1)}" for notes in range(len(counts))]
    if rest or len(counts) == len(found):
        names[-1] += " and more"
    label = "notes in a track of a window" + (f"; the last bar is {len(counts) - 1} and more" if rest else "")
    ticks = tuple((place + 0.5, f"{place:,}") for place in _tick_places(len(counts) - 1))
    notes = math.floor(_median(found, range(len(found) + 1))[1])
    return Chart(
        "density",
        "Density of tracks",
        "Notes of one track in one window; DENSITY tokens split this distribution into quantiles.",
        (
            Histogram(
                label,
                "tracks in windows",
                tuple(counts),
                tuple(names),
                ticks,
                (min(notes, len(counts) - 1) + 0.5, f"median {notes}"),
            ),
        ),
    )


def onset_error(report: dict) -> Chart | None:
    found = report.get("histograms", {}).get("onset_error")
    if not found or not sum(found):
        return None
    edges = [0.5 * place / len(found) for place in range(len(found) + 1)]
    names = [f"{low:.2f} to {high:.2f} steps" for low, high in itertools.pairwise(edges)]
    notes = report["quantization"]
    ticks = tuple((place, f"{edges[place]:.2g}") for place in range(0, len(edges), 2))
    return Chart(
        "onset_error",
        "Quantization error",
        f"Distance of onsets from the grid of 1/{4 * report['encoding']['steps_per_quarter']} notes, half a step at "
        f"most. "
        f"{notes.get('onsets_on_grid', 0):,} of {notes.get('notes_in', 0):,} onsets are exactly on it.",
        (Histogram("distance from the grid, steps", "onsets", tuple(found), tuple(names), ticks, None),),
    )


def meters(report: dict) -> Chart | None:
    found = report.get("meters", {})
    if len(found.get("files", ())) < 2:
        return None
    rows = list(found["files"].items())
    shown, rest = rows[:TOP_METERS], sum(count for _, count in rows[TOP_METERS:])
    left_out = found["left_out"]
    names = [f"{meter}, read as undeclared" if found["undeclared"].get(meter) else meter for meter, _ in shown]
    values = [count - left_out.get(meter, 0) for meter, count in shown]
    panels = [_bars("files used, by their main meter", names, values)]
    if rest:
        more = rest - sum(left_out.get(meter, 0) for meter, _ in rows[TOP_METERS:])
        panels = [
            _bars("files used, by their main meter", [*names, f"{len(rows) - TOP_METERS} others"], [*values, more])
        ]
    if left_out:
        ordered = sorted(left_out.items(), key=lambda row: (-row[1], row[0]))[:TOP_METERS]
        panels.append(_bars("files left out for their meter", [m for m, _ in ordered], [n for _, n in ordered], RED))
    caption = (
        f"Each file counts once, under the meter it has longest; {counted(found['changing'], 'file')} change meter."
    )
    return Chart("meters", "Meters", caption, tuple(panels))


def exclusions(report: dict) -> Chart | None:
    reasons = excluded_files(report)
    windows = sorted(report.get("windows_left_out", {}).items(), key=lambda row: (-row[1], row[0]))
    panels = []
    for heading, rows, colour in (("files", reasons, RED), ("windows of used files", windows, ORANGE)):
        if rows:
            more = rows[TOP_REASONS:]
            others = [(f"{len(more)} other reasons", sum(count for _, count in more))] if more else []
            rows = [*rows[:TOP_REASONS], *others]
            panels.append(_bars(heading, tuple(reason for reason, _ in rows), [count for _, count in rows], colour))
    if not panels:
        return None
    remedies = [said for said, _ in left_out_in_words(report) if "; " in said]
    caption = " ".join(
        ["Files and windows that are not in the dataset.", *(f"{said[0].upper()}{said[1:]}." for said in remedies[:3])]
    )
    return Chart("exclusions", "What was left out, and why", caption, tuple(panels))


def excluded_files(report: dict) -> list[tuple[str, int]]:
    """(reason, files) for every reason a file was left out for, the most frequent first; damage is one of them."""
    files = report["files"]
    rows = dict(files["left_out"])
    rows[reasons.DAMAGED] = files["quarantined"]
    rows[reasons.SAME_NOTES] = files.get("dropped_copies", 0)
    return sorted(((reason, count) for reason, count in rows.items() if count), key=lambda row: (-row[1], row[0]))


def nice_ticks(highest: float, wanted: int = 5) -> list[float]:
    """Round numbers from 0 to at least ``highest``, about ``wanted`` of them."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / max(wanted - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if highest >= 1:
        step = max(math.ceil(step), 1)
    return [step * number for number in range(math.ceil(highest / step * 0.999) + 1)]


def compact(value: float) -> str:
    """A count in few letters: 950, 12 k, 3.4 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def megabytes(value: float) -> str:
    """Megabytes with as many places as they need: 0.013 MB, 2.4 MB, 1,330 MB."""
    return f"{value:,.0f} MB" if value >= 100 else f"{value:.3g} MB"


def _bars(heading: str, names: Sequence[str], values: Sequence[float], colour: str = BLUE, as_text=None) -> Bars:
    return Bars(
        heading, tuple(names), tuple(values), tuple((as_text or "{:,}".format)(value) for value in values), colour
    )


def _shown(counts: Sequence[int]) -> int:
    """How many bars are drawn one by one, so that ``SHOWN`` of all is in them; all, where few are left."""
    total, seen = sum(counts), 0
    last = max(place for place, count in enumerate(counts) if count) + 1
    for place, count in enumerate(counts):
        seen += count
        if seen >= SHOWN * total:
            return last if last - place - 1 <= 3 else place + 1
    return last


def _tick_places(last: int, wanted: int = 8) -> range:
    steps = (step * 10**power for power in range(19) for step in (1, 2, 5))
    step = next(step for step in steps if last <= wanted * step)
    return range(0, last + 1, step)


def _median(counts: Sequence[int], edges: Sequence[float]) -> tuple[float, float]:
    """The place of the median on an axis of bars, and its value, both between the bar's edges."""
    half, seen = sum(counts) / 2, 0
    for place, count in enumerate(counts):
        if count and seen + count >= half:
            within = (half - seen) / count
            high = edges[place + 1] if place + 1 < len(edges) else edges[place]
            return place + within, edges[place] + within * (high - edges[place])
        seen += count
    raise AssertionError("nothing was counted")
