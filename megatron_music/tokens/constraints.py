"""A walk through a grammar, one id after another, and the events of a bar on it: what ``tokens.grammar`` is made of.

A walk never comes to a place from which it could not end within its tokens.
"""

from collections.abc import Generator, Iterable
from functools import lru_cache

import numpy as np

from megatron_music.tokens import vocabulary as v

# A generator that yields masks of what may come next and is sent what came.
Choices = Generator[np.ndarray, int, None]

# One freely chosen token lengthens the shortest ending by at most 5: a rest (1) that then needs a note: velocity,
# strike, rest, release (4), with one token of slack. While more than this is left, every lawful token may come.
RESERVE = 6


@lru_cache(4096)
def only(*token_ids: int) -> np.ndarray:
    """Mask (bool, [vocabulary size]) of these ids, which cannot be written to."""
    mask = np.zeros(v.SIZE, bool)
    mask[list(token_ids)] = True
    mask.flags.writeable = False
    return mask


class Walk:
    """Ids in the making: ask ``allowed()``, then ``advance()`` with the id chosen.

    A grammar is a ``Walk`` whose ``_document`` yields the masks of what may come next, and is sent what came.

    Args:
        max_tokens: the document, its DOCUMENT_END included, never grows longer.
    """

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.num_tokens = 0
        self.ended = False
        self._choices = self._document()
        self._mask = next(self._choices)

    def _document(self) -> Choices:
        raise NotImplementedError

    def allowed(self) -> np.ndarray:
        """Mask (bool, [vocabulary size]) of the ids that may come next; never empty. Not to be written to."""
        return self._mask

    def advance(self, token_id: int) -> None:
        """Append ``token_id``.

        Raises:
            ValueError: it may not come here; the sentence names it and its place.
        """
        if not self._mask[token_id]:
            raise ValueError(
                f"{v.TOKENS[token_id]} cannot be token {self.num_tokens + 1} of this piece; "
                "docs/vocabulary.md has the grammar"
            )
        if self.ended:
            return
        self.num_tokens += 1
        try:
            self._mask = self._choices.send(token_id)
        except StopIteration:
            self.ended = True
            self._mask = only(v.PAD)

    def _left(self) -> int:
        return self.max_tokens - self.num_tokens

    def _exactly(self, token_ids: Iterable[int]) -> Choices:
        for token_id in token_ids:
            yield only(token_id)

    def _events(self, events: "Events", later: int, token_id: int | None = None) -> Choices:
        """The events of a bar up to and including the id that closes it.

        Args:
            later: tokens that must be left for what comes after the events.
            token_id: the first of them, if it has come already.
        """
        while True:
            if token_id is None:
                token_id = yield events.allowed(self._left() - later)
            if token_id == events.closing:
                return
            events.advance(token_id)
            token_id = None


class Events:
    """The events of one bar in the making: rests, notes struck, notes switched off, in canonical order.

    Args:
        steps: of the bar.
        sounding: pitches that sound on from the bar before.
        must_end: whether nothing may sound on after this bar.
        has_velocity: whether a VELOCITY stands before each NOTE_ON.
        closing: the id that follows the events: BAR_END or FILL_END.
    """

    def __init__(self, steps: int, sounding: Iterable[int], must_end: bool, has_velocity: bool, closing: int):
        self.closing = closing
        self._steps = steps
        self._must_end = must_end
        self._has_velocity = has_velocity
        self._step = 0
        self._last_on = self._last_off = -1  # pitches at this step; they rise
        self._sounds = np.zeros(128, bool)
        self._sounds[list(sounding)] = True
        self._num_sounding = int(np.count_nonzero(self._sounds))
        self._is_old = self._sounds.copy()  # what sounds from before this step, and may be switched off
        self._rest = 0  # the last token, if it was a rest: its steps
        self._has_strength = False  # the last token was a VELOCITY

    @property
    def sounding(self) -> set[int]:
        """Pitches that sound now."""
        return set(np.flatnonzero(self._sounds).tolist())

    def allowed(self, room: int) -> np.ndarray:
        """Mask (bool, [vocabulary size]) of what may come next, if ``room`` tokens are left before the closing one."""
        mask = np.zeros(v.SIZE, bool)
        if self._has_strength:
            self._allow_pitches(mask)
        elif room < self.ending_tokens() + RESERVE:
            self._allow_shortest_ending(mask)
        else:
            self._allow_all(mask)
        return mask

    def advance(self, token_id: int) -> None:
        """Take over one event, which must be allowed."""
        self._rest, self._has_strength = 0, False
        if v.TIME_DELTA < token_id <= v.TIME_DELTA + v.MAX_TIME_DELTA:
            self._rest = token_id - v.TIME_DELTA
            self._step += self._rest
            self._last_on = self._last_off = -1
            self._is_old[:] = self._sounds
        elif v.NOTE_ON <= token_id < v.NOTE_ON + 128:
            self._last_on = token_id - v.NOTE_ON
            self._sounds[self._last_on] = True
            self._num_sounding += 1
        elif v.NOTE_OFF <= token_id < v.NOTE_OFF + 128:
            self._last_off = token_id - v.NOTE_OFF
            self._sounds[self._last_off] = self._is_old[self._last_off] = False
            self._num_sounding -= 1
        else:
            assert v.VELOCITY <= token_id < v.VELOCITY + v.NUM_VELOCITIES
            self._has_strength = True

    def ending_tokens(self) -> int:
        """Tokens that always suffice to switch everything off, in this bar or the next."""
        sounding = self._num_sounding
        if self._has_strength:
            return 1 + 1 + sounding + 1  # strike, rest, every release
        if sounding:
            return 1 + sounding
        return 3 + self._has_velocity if self._rest else 0

    def _allow_all(self, mask: np.ndarray) -> None:
        """Release, strike, rest, or close."""
        must_close = self._must_end and self._num_sounding > 0
        if must_close and self._step == self._steps:
            # Pitches rise: a higher one first would leave the lower ones sounding.
            first = self._first_releasable()
            if first is not None:
                mask[v.NOTE_OFF + first] = True
        elif self._may_release():
            mask[v.NOTE_OFF + self._last_off + 1 : v.NOTE_OFF + 128] = self._is_old[self._last_off + 1 :]
        self._allow_strike(mask)
        if self._rest in (0, v.MAX_TIME_DELTA):  # of a long rest all but the last token are the longest
            longest = min(self._steps - self._step - (not self._num_sounding), v.MAX_TIME_DELTA)
            mask[v.TIME_DELTA + 1 : v.TIME_DELTA + longest + 1] = True
        if not self._rest:  # an event comes after a rest
            mask[self.closing] = not must_close

    def _allow_shortest_ending(self, mask: np.ndarray) -> None:
        """With the budget nearly spent: the one next token of the shortest ending."""
        releasable = self._first_releasable()
        if releasable is not None:
            mask[v.NOTE_OFF + releasable] = True
        elif self._num_sounding and self._step < self._steps:
            mask[v.TIME_DELTA + min(self._steps - self._step, v.MAX_TIME_DELTA)] = True
        elif self._rest:
            self._allow_strike(mask)
        else:
            mask[self.closing] = True

    def _allow_strike(self, mask: np.ndarray) -> None:
        """A note, or the VELOCITY before it, where there is a pitch to strike."""
        if not self._has_velocity:
            self._allow_pitches(mask)
        elif self._step < self._steps and not self._sounds[self._last_on + 1 :].all():
            mask[v.VELOCITY : v.VELOCITY + v.NUM_VELOCITIES] = True

    def _allow_pitches(self, mask: np.ndarray) -> None:
        if self._step < self._steps:
            first = self._last_on + 1
            np.logical_not(self._sounds[first:], out=mask[v.NOTE_ON + first : v.NOTE_ON + 128])

    def _may_release(self) -> bool:
        """Whether pitches may be switched off now: not at a bar's start, not after a note is struck; then they rise."""
        return self._step > 0 and self._last_on < 0

    def _first_releasable(self) -> int | None:
        above = np.flatnonzero(self._is_old[self._last_off + 1 :]) if self._may_release() else ()
        return self._last_off + 1 + int(above[0]) if len(above) else None
