"""The sustain pedal (controller 64): how long notes sound that it holds."""

import numpy as np

from megatron_music.music.midi_bytes import DRUM_CHANNEL, SET_PEDAL

PEDAL_MODES = ("auto", "extend", "ignore")
NUM_KEYBOARD_PROGRAMS = 8  # the first ones: pianos, harpsichord and clavinet
PEDAL_DOWN = 64  # values from here on press the pedal


def lengthen(columns: np.ndarray, heads: list[list[int]], controls: np.ndarray, mode: str) -> np.ndarray:
    """Let the notes last as the pedal has them, those that ``mode`` names.

    Args:
        columns: as ``Score.columns``; ends are changed in place.
        heads, controls: as ``midi_tables.Tables`` has them.
        mode: ``extend`` is all notes, ``auto`` those of keyboards, ``ignore`` none.

    Returns:
        By how much the pedal lengthens each note that it lengthens, whether the note is changed or not (int64).
    """
    rows = np.array(heads, np.int64)
    longer = lengthening(columns, rows, controls[controls[:, 0] == SET_PEDAL, 1:4].astype(np.int64))
    if mode == "auto":
        columns[2] += np.where((rows[:, 1] < NUM_KEYBOARD_PROGRAMS)[columns[0]], longer, 0)
    elif mode == "extend":
        columns[2] += longer
    return longer[longer > 0]


def lengthening(columns: np.ndarray, heads: np.ndarray, pedals: np.ndarray) -> np.ndarray:
    """By how much the pedal makes each note sound longer than its key is down (int64, [N]); 0 for drums.

    A note whose key is released while the pedal is down sounds until the pedal is up, or until its pitch is struck
    again on the channel; where neither comes, until the last key of the piece is released. At one tick the pedal goes
    down before keys are released, and up before they are.

    Args:
        columns: as ``Score.columns``.
        heads: int64 [tracks, ...], whose first column is port * 16 + channel.
        pedals: int64 [P, 3], time, port * 16 + channel and value of each pedal event, in the file's order.
    """
    _, start, end, pitch, _ = columns
    last = int(end.max(initial=0))
    down, up = _presses(pedals, last)
    if not len(start) or not len(down):
        return np.zeros_like(start)
    channels = heads[:, 0][columns[0]]
    press = np.searchsorted(down, channels << 32 | end, side="right") - 1
    is_held = (press >= 0) & (down[press] >> 32 == channels) & (end < up[press]) & (channels & 15 != DRUM_CHANNEL)
    key = (channels << 7 | pitch) << 32
    onsets = np.sort(key | start)
    following = np.searchsorted(onsets, key | np.maximum(end, start + 1))
    onset = onsets[np.minimum(following, len(onsets) - 1)]
    again = np.where((following < len(onsets)) & (onset >> 32 == key >> 32), onset & 0xFFFFFFFF, up[press])
    return np.where(is_held, np.maximum(np.minimum(up[press], again) - end, 0), 0)


def _presses(pedals: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray]:
    """When the pedal of a channel goes down (channel << 32 | time, rising), and the time it is up again."""
    if not len(pedals):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    pedals = pedals[np.lexsort((pedals[:, 0], pedals[:, 1]))]
    time, channel, value = pedals.T
    is_down = value >= PEDAL_DOWN
    is_new = np.ones(len(pedals), bool)
    is_new[1:] = channel[1:] != channel[:-1]
    before = np.append(False, is_down[:-1]) & ~is_new  # whether it was down already
    presses, releases = np.flatnonzero(is_down & ~before), np.flatnonzero((before & ~is_down) | is_new)
    place = np.searchsorted(releases, presses, side="right")
    release = releases[np.minimum(place, len(releases) - 1)]
    is_released = (place < len(releases)) & (channel[release] == channel[presses])
    return channel[presses] << 32 | time[presses], np.where(is_released, time[release], last)
