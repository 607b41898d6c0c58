"""Which token may come next: the mmmtrack grammar as a state machine for constrained sampling.

A piece sampled under it decodes without repair and encodes again to the same ids (DENSITY aside, which the model chooses):
bars are complete, every note is switched off, events stand in canonical order, and the piece is over before the token
budget is. Knows nothing about
models; it gives boolean masks over the vocabulary.
"""

from collections.abc import Sequence

import numpy as np

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.folder import Encoding

_INSTRUMENTS = slice(v.INST, v.INST + v.NUM_INSTRUMENTS)
_DENSITIES = slice(v.DENSITY, v.DENSITY + v.NUM_DENSITIES)

# One freely chosen token lengthens the shortest ending by at most 5: a rest (1) that then needs a note: strike,
# rest, release (3), with one token of slack. While more than this is left, every lawful token may come.
_RESERVE = 6


class Grammar:
    """One piece in the making: ask ``allowed()``, then ``advance()`` with the id chosen.

    Args:
        encoding: bars a track, steps a bar, bar-line policy and whether tracks carry DENSITY.
        max_tokens: the piece, its DOCUMENT_END included, never grows longer.
        instruments: the INST ids of the tracks in order, e.g. the four voices; then the piece has just these tracks.
            None leaves tracks to the model, at least one.
        given_bars: for each of these tracks the ids of its opening bars, BAR_START to BAR_END, from ``encode_piece``:
            they are the only ids allowed in their places.

    Raises:
        ValueError: what is given and the emptiest rest do not fit into ``max_tokens``.
    """

    def __init__(
        self,
        encoding: Encoding,
        max_tokens: int,
        instruments: tuple[int, ...] | None = None,
        given_bars: Sequence[Sequence[int]] = (),
    ):
        if encoding.bars < 1:
            raise ValueError("the encoding has whole pieces, not windows of some bars; name the number of bars")
        if instruments is not None and not instruments:
            raise ValueError("instruments is empty; name at least one, or None to leave them to the model")
        self.bars = encoding.bars
        self.bar_steps = encoding.steps_per_bar
        self.carries = encoding.bar_line == "carry"
        self.has_density = bool(encoding.density_bins)
        self.instruments = instruments
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.previous: int | None = None
        self.ended = False
        self.track = 0  # tracks begun
        self.bar = 0  # bars begun in this track
        self.step = 0  # in this bar
        self.last_on = self.last_off = -1  # pitches at this step; they rise
        self.sounding: dict[int, bool] = {}  # pitch: whether it may be switched off, being older than this step
        self._given_bars = given_bars
        self._given: list[int] = []  # ids of this track's given bars that are still to come
        self._given_events = sum(_is_event(token_id) for bars in given_bars for token_id in bars)  # of all tracks
        needed = self._ending_tokens() + _RESERVE
        if max_tokens < needed:
            raise ValueError(f"{max_tokens} tokens are too few for this piece of {self.bars} bars; allow at least {needed}")

    def allowed(self) -> np.ndarray:
        """Mask (bool, [vocabulary size]) of the ids that may come next; never empty."""
        mask = np.zeros(v.SIZE, bool)
        if self.ended:
            mask[v.PAD] = True
        elif self._given:
            mask[self._given[0]] = True
        elif self.previous is None:
            mask[v.PIECE_START] = True
        elif self.previous in (v.PIECE_START, v.TRACK_END):
            self._allow_track_or_end(mask)
        elif self.previous == v.TRACK_START:
            mask[_INSTRUMENTS if self.instruments is None else self.instruments[self.track - 1]] = True
        elif self.has_density and _INSTRUMENTS.start <= self.previous < _INSTRUMENTS.stop:
            mask[_DENSITIES] = True
        elif not self._in_bar():
            mask[v.BAR_START if self.bar < self.bars else v.TRACK_END] = True
        elif self._left() < self._ending_tokens() + _RESERVE:
            self._allow_shortest_ending(mask)
        else:
            self._allow_events(mask)
        return mask

    def advance(self, token_id: int) -> None:
        """Append ``token_id``.

        Raises:
            ValueError: it may not come here; the sentence names it and its place.
        """
        if not self.allowed()[token_id]:
            raise ValueError(
                f"{v.TOKENS[token_id]} cannot be token {self.num_tokens + 1} of this piece; docs/vocabulary.md has the grammar"
            )
        if self.ended:
            return
        self.num_tokens += 1
        self.previous = token_id
        if self._given:
            self._given_events -= _is_event(self._given.pop(0))
        if token_id == v.DOCUMENT_END:
            self.ended = True
        elif token_id == v.TRACK_START:
            self.track += 1
            self.bar = 0
        elif token_id == v.BAR_START:
            self.bar += 1
            self._move_to(0)
            if self.bar == 1 and self._given_bars:
                self._given = list(self._given_bars[self.track - 1][1:])
        elif _is_time_delta(token_id):
            self._move_to(self.step + token_id - v.TIME_DELTA)
        elif v.NOTE_ON <= token_id < v.NOTE_ON + 128:
            self.last_on = token_id - v.NOTE_ON
            self.sounding[self.last_on] = False
        elif v.NOTE_OFF <= token_id < v.NOTE_OFF + 128:
            self.last_off = token_id - v.NOTE_OFF
            del self.sounding[self.last_off]

    def _move_to(self, step: int) -> None:
        self.step = step
        self.last_on = self.last_off = -1
        self.sounding = dict.fromkeys(self.sounding, True)

    def _allow_track_or_end(self, mask: np.ndarray) -> None:
        if self.instruments is not None:
            mask[v.TRACK_START if self.track < len(self.instruments) else v.DOCUMENT_END] = True
        else:
            mask[v.DOCUMENT_END] = self.track > 0
            mask[v.TRACK_START] = self.track == 0 or self._left() >= self._track_tokens() + 1 + _RESERVE

    def _allow_events(self, mask: np.ndarray) -> None:
        """Inside a bar: release, strike, rest, or close the bar."""
        must_close = bool(self.sounding) and (not self.carries or self.bar == self.bars)
        releasable = self._releasable()
        if must_close and self.step == self.bar_steps:
            releasable = releasable[:1]  # pitches rise: a higher one first would leave the lower ones sounding
        mask[[v.NOTE_OFF + pitch for pitch in releasable]] = True
        if self.step < self.bar_steps:
            mask[v.NOTE_ON + self.last_on + 1 : v.NOTE_ON + 128] = True
            mask[[v.NOTE_ON + pitch for pitch in self.sounding]] = False
        if not _is_time_delta(self.previous):  # an event comes after a rest
            mask[v.BAR_END] = not must_close
            longest = self.bar_steps - self.step - (not self.sounding)
            mask[v.TIME_DELTA + 1 : v.TIME_DELTA + longest + 1] = True

    def _allow_shortest_ending(self, mask: np.ndarray) -> None:
        """Inside a bar with the budget nearly spent: the one next token of the shortest ending."""
        releasable = self._releasable()
        if releasable:
            mask[v.NOTE_OFF + releasable[0]] = True
        elif self.sounding and self.step < self.bar_steps:
            mask[v.TIME_DELTA + self.bar_steps - self.step] = True
        elif _is_time_delta(self.previous):
            mask[v.NOTE_ON : v.NOTE_ON + 128] = True
        else:
            mask[v.BAR_END] = True

    def _releasable(self) -> list[int]:
        """Pitches that may be switched off now, rising: none at a bar's start, none after a note is struck."""
        if self.step == 0 or self.last_on >= 0:
            return []
        return sorted(pitch for pitch, is_old in self.sounding.items() if is_old and pitch > self.last_off)

    def _in_bar(self) -> bool:
        return self.bar > 0 and self.previous != v.BAR_END

    def _left(self) -> int:
        return self.max_tokens - self.num_tokens

    def _track_tokens(self) -> int:
        """TRACK_START, INST, DENSITY, empty bars, TRACK_END."""
        return 3 + self.has_density + 2 * self.bars

    def _ending_tokens(self) -> int:
        """Tokens that always suffice to end the piece from here."""
        tracks_wanted = 1 if self.instruments is None else len(self.instruments)
        total = 1 + max(tracks_wanted - self.track, 0) * self._track_tokens() + self._given_events
        if self.previous is None:
            return total + 1
        if self.previous not in (v.PIECE_START, v.TRACK_END):  # within a track
            total += 2 + 2 * (self.bars - self.bar) + self._in_bar() + 1
        if self.sounding:
            return total + len(self.sounding) + 1  # one rest, then every release
        return total + 3 * (self.previous is not None and _is_time_delta(self.previous))  # strike, rest, release


def _is_event(token_id: int) -> bool:
    return v.TIME_DELTA < token_id < v.NOTE_OFF + 128


def _is_time_delta(token_id: int) -> bool:
    return v.TIME_DELTA < token_id <= v.TIME_DELTA + v.MAX_TIME_DELTA
