"""What MIDI files hold and their tokens do not: counted in each file, and said in words in the report.

The counts are of whole files that gave documents.
"""

from functools import cache

import numpy as np

from megatron_music.music.grid import tempo_places
from megatron_music.music.score import (
    DEFAULT_QUARTERS_PER_MINUTE,
    DEFAULT_VELOCITY,
    Score,
    known_meter,
)
from megatron_music.music.tempo import FASTEST, SLOWEST
from megatron_music.tokens.encoding import Encoding

PEDAL_NOTES = {True: "notes lengthened by the pedal", False: "notes the pedal would lengthen"}
WORDS = {
    "pedal": "sustain pedal events",
    PEDAL_NOTES[True]: "notes that the sustain pedal made longer by a step or more",
    PEDAL_NOTES[False]: "notes that the sustain pedal would make longer by a step or more",
    "pitch bends": "pitch bends",
    "other controllers": "other controllers (volume, pan, ...)",
    "aftertouch": "aftertouch",
    "key signatures": "key signatures",
    "lyrics": "lyrics",
    "texts and markers": "texts and markers",
    "track names": "track names",
    "system exclusive": "system-exclusive messages",
    "silent tracks": "tracks without notes, the first aside",
    "notes never switched off": "notes that are never switched off",
    "velocities": "velocities other than 80, which is what notes have without --velocity",
    "tempos": "tempos other than 120, which is what a piece has without --tempo",
    "tempos inside a bar": "tempos that hold at no bar line",
    "clipped tempos": f"tempos outside {SLOWEST:g} to {FASTEST:g} quarter notes per minute",
    "equal meters": "time signatures that are written as another with bars of the same length, such as 12/8 for 24/16",
    "meters": "time signatures that are not encoded",
}


def count_unheld(score: Score, encoding: Encoding) -> dict[str, int]:
    """What the file of a score holds and documents of the encoding do not, by kind; what is not there is left out."""
    content = score.content
    counts = dict(content.counts) if content else {}
    if content and len(content.pedal_lengthening):
        step = -(-score.steps_per_quarter // encoding.steps_per_quarter)  # in ticks, those begun counted
        counts[PEDAL_NOTES[content.pedal_is_applied]] = int(np.count_nonzero(content.pedal_lengthening >= step))
    if not encoding.velocity:
        counts["velocities"] = int(np.count_nonzero(score.columns[4] != DEFAULT_VELOCITY))
    speeds = [speed for _, speed in score.tempos]
    if not encoding.tempo:
        counts["tempos"] = len([speed for speed in speeds if abs(speed - DEFAULT_QUARTERS_PER_MINUTE) > 0.01])
    else:
        counts["clipped tempos"] = sum([not SLOWEST <= speed <= FASTEST for speed in speeds])
        if len(speeds) > 1:
            lines = score.bar_starts[:-1] * encoding.steps_per_quarter // score.steps_per_quarter
            places = tempo_places(score, lines, encoding.steps_per_quarter)
            counts["tempos inside a bar"] = len(speeds) - len(np.unique(places[places >= 0]))
    wanted = _meters(encoding.meters)
    written = [known_meter(*signature[1:]) for signature in score.time_signatures]
    counts["meters"] = len([meter for meter in written if meter not in wanted])
    counts["equal meters"] = len(
        [0 for s, meter in zip(score.time_signatures, written, strict=True) if meter in wanted and meter != s[1:]]
    )
    return {kind: count for kind, count in counts.items() if count > 0}


@cache
def _meters(names: tuple[str, ...]) -> frozenset[tuple[int, int]]:
    return frozenset(Encoding(meters=names).meter_set)


def unheld_in_words(report: dict) -> list[tuple[str, int, int]]:
    """Rows of a table: what, how many, and in how many files."""
    return [(WORDS.get(kind, kind), row["events"], row["files"]) for kind, row in report.get("unheld", {}).items()]
