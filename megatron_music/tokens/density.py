"""DENSITY before and after its levels are known.

How many notes make a track dense is asked of the training split, which is known only when every file is encoded. Until
then the
place of a DENSITY holds the note count itself, as an id above the vocabulary: an open id. Closing turns each into its
DENSITY by one table look-up.
"""

import numpy as np

from megatron_music.tokens import vocabulary

NUM_IDS = 1 << 16  # ids are uint16
MAX_COUNT = 30_000  # notes; more are counted as this many
OPEN_TRACK = 1024  # the open id of a track without a note
OPEN_BAR = 32_768  # the same for a bar


def open_track_ids(counts: np.ndarray) -> np.ndarray:
    """What stands for the DENSITY of tracks with ``counts`` notes (uint16)."""
    return (OPEN_TRACK + np.minimum(counts, MAX_COUNT)).astype(np.uint16)


def open_bar_ids(counts: np.ndarray) -> np.ndarray:
    """What stands for the DENSITY of bars with ``counts`` notes (uint16)."""
    return (OPEN_BAR + np.minimum(counts, MAX_COUNT)).astype(np.uint16)


def track_counts(id_counts: np.ndarray) -> np.ndarray:
    """How many tracks have 0, 1, 2, ... notes, from how often each id occurs (int64, [NUM_IDS])."""
    return id_counts[OPEN_TRACK : OPEN_TRACK + MAX_COUNT + 1]


def all_bar_counts(id_counts: np.ndarray) -> np.ndarray:
    """How many bars have 0, 1, 2, ... notes."""
    return id_counts[OPEN_BAR : OPEN_BAR + MAX_COUNT + 1]


def bar_counts(id_counts: np.ndarray) -> np.ndarray:
    """The same; bars of rest count as none, so that they do not set the levels."""
    counts = all_bar_counts(id_counts).copy()
    counts[0] = 0
    return counts


def quantile_bins(counts: np.ndarray, levels: int) -> tuple[int, ...]:
    """The note counts that separate ``levels`` levels of about equal size: ``levels - 1`` rising whole numbers.

    They are the percentiles 100/levels, 200/levels, ..., interpolated linearly between the two nearest members and
    rounded to the nearest whole number, a half up. Where many tracks have the same count two bins may be equal;
    ``without_empty_levels`` merges what no track has.

    Args:
        counts: how many members have the value 0, 1, 2, ... (int64).
        levels: 2 or more.

    Returns:
        All zero if there are no members.
    """
    up_to = np.cumsum(counts)
    members = int(up_to[-1]) if len(up_to) else 0
    if not members:
        return (0,) * (levels - 1)
    # In whole numbers, so that no machine rounds otherwise: member k (members - 1) / levels of the sorted members.
    place, rest = np.divmod(np.arange(1, levels, dtype=np.int64) * (members - 1), levels)
    low = np.searchsorted(up_to, place, side="right")
    high = np.searchsorted(up_to, np.minimum(place + 1, members - 1), side="right")
    return tuple(((2 * (low * levels + (high - low) * rest) + levels) // (2 * levels)).tolist())


def without_empty_levels(bins: tuple[int, ...], counts: np.ndarray) -> tuple[int, ...]:
    """The bins that are left when every level that no member has is merged with a neighbour.

    Args:
        counts: how many members have the value 0, 1, 2, ... (int64).
    """
    kept, low = [], 0
    for cut in sorted(set(bins)):
        if counts[low:cut].any() and counts[cut:].any():
            kept.append(cut)
            low = cut
    return tuple(kept)


def members_of_levels(bins: tuple[int, ...], counts: np.ndarray) -> list[dict[str, int]]:
    """Of each level its lowest and highest value among the members, and how many they are."""
    found = []
    for level, (low, high) in enumerate(zip((0, *bins), (*bins, len(counts)), strict=True)):
        values = low + np.flatnonzero(counts[low:high])
        span = {"from": int(values[0]), "to": int(values[-1])} if len(values) else {}
        found.append({"level": level, **span, "members": int(counts[low:high].sum())})
    return found


def density_ids(counts: np.ndarray, bins: tuple[int, ...]) -> np.ndarray:
    """DENSITY ids of note counts (uint16): the level is the number of bins that are no greater than the count."""
    return (vocabulary.DENSITY + np.searchsorted(bins, counts, side="right")).astype(np.uint16)


def closing_table(track_bins: tuple[int, ...], bar_bins: tuple[int, ...] = ()) -> np.ndarray:
    """The table (uint16, [NUM_IDS]) with which ``table[ids]`` closes every open id and leaves the others as
    they are.
    """
    table = np.arange(NUM_IDS, dtype=np.uint16)
    counts = np.arange(MAX_COUNT + 1)
    table[OPEN_TRACK : OPEN_TRACK + MAX_COUNT + 1] = density_ids(counts, track_bins)
    table[OPEN_BAR : OPEN_BAR + MAX_COUNT + 1] = density_ids(counts, bar_bins)
    return table
