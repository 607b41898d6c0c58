"""Why a good file gives no document, in the words of reports, and which option would take it.

Whoever writes a reason takes it from here, and whoever shows one finds its remedy here.
"""

import re
from collections.abc import Iterable

from megatron_music.tokens.encoding import Encoding

SAME_NOTES = "same notes as an earlier file"
DAMAGED = "damaged (in quarantine)"
NO_METER = "no part in "
_WINDOW = re.compile(r" of \d+ bars?$")
FILTERED = "every window is outside the filters"
NO_DOCUMENTS = "no documents"  # of a record that says nothing else; no build writes it

WARN_ABOVE = 0.2  # of the files left out
# Onsets without a grid lie 0 to half a step from the nearest one, each distance as likely: 0.25 steps on average.
CHANCE_STEPS, CHANCE_NOTES = 0.22, 64
# Music on a grid that is too coarse, such as triplets, has many onsets exactly on it, however far the others lie.
CHANCE_ON_GRID = 0.2


def no_meter(encoding: Encoding) -> str:
    """No bar is in a meter of the encoding."""
    return f"{NO_METER}{encoding.meters_in_words}"


def too_short(encoding: Encoding) -> str:
    """What is in the encoding's meters is shorter than a window."""
    return f"{no_meter(encoding)} of {encoding.bars} bars"


def is_no_meter(reason: str) -> bool:
    """Whether a reason is that of ``no_meter``, with any encoding, and not that of ``too_short``."""
    return reason.startswith(NO_METER) and not _WINDOW.search(reason)


def filtered(filters: Iterable[str]) -> str:
    """No window passes the filters."""
    return f"{FILTERED} ({', '.join(sorted(filters))})"


def remedy(reason: str, encoding: Encoding) -> str:
    """What takes the files that were left out for a reason, as half a sentence; empty where nothing does."""
    if reason == no_meter(encoding):
        return "" if "all" in encoding.meters else "--meters all takes them"
    if encoding.bars and reason == too_short(encoding):
        return "a lower --bars takes them, --bars 0 all"
    if reason.startswith(FILTERED):
        return "wider filters take them"
    if reason == SAME_NOTES:
        return "without --drop-duplicates they are used"
    return ""


def is_chance(mean_error_steps: float, share_on_grid: float) -> bool:
    """Whether onsets lie as far from the grid as chance alone would put them: a performance recorded without a grid."""
    return mean_error_steps >= CHANCE_STEPS and share_on_grid <= CHANCE_ON_GRID
