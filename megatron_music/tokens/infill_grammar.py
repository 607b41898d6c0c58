"""Which token may come next when bars that were taken out of a piece are filled: the grammar of what follows
the piece.
"""

from collections.abc import Sequence
from typing import NamedTuple

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.constraints import RESERVE, Choices, Events, Walk
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.grammar import is_meter, steps_of_meter


class FillGrammar(Walk):
    """The fills of a document in the making, after the document itself.

    A fill obeys the rules of the bar it stands for. One after which its track goes on as it was ends with nothing
    sounding.

    Args:
        encoding: as for ``Grammar``.
        max_tokens: prompt and fills, DOCUMENT_END included, never grow longer.
        prompt: ids of a document with FILL_IN bars, from ``take_out``, up to its last TRACK_END.

    Raises:
        ValueError: the prompt and the emptiest fills do not fit into ``max_tokens``, or notes sound out of a FILL_IN
            bar.
    """

    def __init__(self, encoding: Encoding, max_tokens: int, prompt: Sequence[int]):
        self.prompt = [int(token_id) for token_id in prompt]
        self.holes = _read_holes(self.prompt, encoding)
        self._has_velocity = encoding.velocity
        super().__init__(max_tokens)
        needed = len(self.prompt) + self._tokens_from(0) + RESERVE
        if max_tokens < needed:
            raise ValueError(f"{max_tokens} tokens are too few for these bars to fill; allow at least {needed}")

    def _document(self) -> Choices:
        yield from self._exactly(self.prompt)
        sounding: set[int] = set()
        for number, hole in enumerate(self.holes):
            yield from self._exactly([v.FILL_START])
            later = 1 + self._tokens_from(number + 1)
            before = sounding if hole.sounding is None else hole.sounding
            events = Events(hole.steps, before, hole.must_end, self._has_velocity, v.FILL_END)
            yield from self._events(events, later)
            sounding = events.sounding
        yield from self._exactly([v.DOCUMENT_END])

    def _tokens_from(self, number: int) -> int:
        """Tokens of the shortest fills of the holes from ``number`` on, DOCUMENT_END included."""
        return 1 + sum(2 + len(hole.sounding or ()) + bool(hole.sounding) for hole in self.holes[number:])


class Hole(NamedTuple):
    """A bar that is to be filled."""

    steps: int
    sounding: frozenset[int] | None  # pitches that sound into it; None: what the fill before it leaves
    must_end: bool  # whether nothing may sound on after it


def _read_holes(prompt: list[int], encoding: Encoding) -> list[Hole]:
    carries = encoding.bar_line == "carry"
    head_steps = steps = encoding.steps_per_bar
    holes: list[Hole] = []
    sounding: set[int] = set()
    in_track = fills_on = False  # fills_on: the bar before is a hole
    is_hole = False
    for token_id in prompt:
        if is_meter(token_id):
            steps = steps_of_meter(token_id, encoding)
            head_steps = head_steps if in_track else steps
        elif token_id == v.TRACK_START:
            in_track, fills_on, steps, sounding = True, False, head_steps, set()
        elif token_id == v.FILL_IN:
            if fills_on and carries:
                holes[-1] = holes[-1]._replace(must_end=False)
            holes.append(Hole(steps, None if fills_on else frozenset(sounding), must_end=True))
            is_hole, sounding = True, set()
        elif token_id == v.BAR_END:
            fills_on, is_hole = is_hole, False
        elif v.NOTE_ON <= token_id < v.NOTE_ON + 128:
            sounding.add(token_id - v.NOTE_ON)
        elif v.NOTE_OFF <= token_id < v.NOTE_OFF + 128:
            if token_id - v.NOTE_OFF not in sounding:
                raise ValueError(
                    f"{v.TOKENS[token_id]} ends a note that starts in a bar to fill and sounds on behind it; take "
                    f"such notes "
                    "out whole, as `generate midi --infill` does with those of a MIDI file"
                )
            sounding.remove(token_id - v.NOTE_OFF)
    return holes
