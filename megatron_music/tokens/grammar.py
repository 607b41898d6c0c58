"""Which token may come next: the mmmtrack grammar for constrained sampling.

A piece sampled under it decodes without repair and encodes again to the same ids (DENSITY aside, which the model
chooses): bars are complete, every note is switched off, events stand in canonical order, and the piece is over before
the token budget is. ``tokens.infill_grammar`` does the same for bars that were taken out.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.constraints import RESERVE, Choices, Events, Walk, only
from megatron_music.tokens.encoding import Encoding


class Grammar(Walk):
    """One piece in the making: ask ``allowed()``, then ``advance()`` with the id chosen.

    Args:
        encoding: bars a track, steps a bar, bar-line policy and which optional tokens there are.
        max_tokens: the piece, its DOCUMENT_END included, never grows longer.
        instruments: the INST ids of the tracks in order, e.g. the four voices; then the piece has just these tracks.
            None leaves tracks to the model, at least one.
        given: ids of a piece of fewer bars, from ``encode_piece`` without labels: its tempo, meters, tracks and bars
            are the only ones allowed in their places. Its instruments are the piece's. Notes that it leaves on sound on
            in the bar that follows.
        labels: label ids, such as that of GENRE=JAZZ; then the piece has just these. None leaves them to the model.
        meters: the TIME_SIGNATURE ids to choose from, for the first bar and for changes; None for the encoding's. With
            one of them the meter never changes.
        tempos: the same of TEMPO ids.
        densities: the DENSITY ids of the tracks in order, or one for all; None leaves them to the model.
        bar_density: the DENSITY id of every bar that is not given; None leaves it to the model.

    Raises:
        ValueError: what is given and the emptiest rest do not fit into ``max_tokens``, or the encoding has no such
            tokens.
    """

    def __init__(
        self,
        encoding: Encoding,
        max_tokens: int,
        instruments: Sequence[int] | None = None,
        given: Sequence[int] = (),
        *,
        labels: Sequence[int] | None = None,
        meters: Sequence[int] | None = None,
        tempos: Sequence[int] | None = None,
        densities: Sequence[int] | None = None,
        bar_density: int | None = None,
    ):
        if encoding.bars < 1:
            raise ValueError("the encoding has whole pieces, not windows of some bars; name the number of bars")
        self._given = read_document(given) if len(given) else None
        self._held = [held_notes(track.bars) for track in self._given.tracks] if self._given else []
        if self._given:
            instruments = [track.instrument for track in self._given.tracks]
        if instruments is not None and not len(instruments):
            raise ValueError("instruments is empty; name at least one, or None to leave them to the model")
        self._encoding = encoding
        self._instruments = instruments
        self._labels = labels
        self._meters = only(*meter_ids(encoding) if meters is None else meters)
        self._tempos = only(*range(v.TEMPO, v.VELOCITY) if encoding.tempo and tempos is None else tempos or ())
        if any(token_id not in encoding.label_ids.values() for token_id in labels or ()):
            raise ValueError("a label is not one of the encoding's; give ids of Encoding.label_ids")
        if (self._meters & ~only(*meter_ids(encoding))).any() or (self._tempos.any() and not encoding.tempo):
            raise ValueError("a meter or tempo is given that the encoding does not write; omit it")
        self._densities = densities
        self._bar_density = only(*_density_ids(encoding, "bar_density") if bar_density is None else [bar_density])
        if (densities is not None and not encoding.density) or (bar_density is not None and not encoding.bar_density):
            raise ValueError("a density is given that the encoding does not write; omit it")
        if densities is not None and len(densities) not in (1, len(instruments or ())):
            raise ValueError(
                f"{len(densities)} densities are given; give one for all tracks, or one for each instrument"
            )
        self._changes: list[list[int]] = [[] for _ in range(encoding.bars)]  # what each bar says of its meter and tempo
        super().__init__(max_tokens)
        needed = 1 + len(labels or ()) + encoding.tempo + encoding.writes_meters + self._tokens_from(0, 0) + RESERVE
        if max_tokens < needed:
            raise ValueError(
                f"{max_tokens} tokens are too few for this piece of {encoding.bars} bars; allow at least {needed}"
            )

    def _document(self) -> Choices:
        yield from self._exactly([v.PIECE_START])
        head = yield from self._head()
        track = 0
        while True:
            if track:
                token_id = yield self._track_or_end(track)
                if token_id == v.DOCUMENT_END:
                    return
            yield from self._track(track, list(head))
            track += 1

    def _head(self) -> Choices:
        """Labels, tempo and meter, and the first TRACK_START; returns the ids of meter and tempo, where there
        are any.
        """
        given = self._given.head if self._given else {}
        slots = [
            only(given[kind]) if kind in given else free
            for kind, free in (("tempo", self._tempos), ("meter", self._meters))
            if free.any()
        ]
        slots.append(only(v.TRACK_START))
        if self._labels is not None:
            yield from self._exactly(self._labels)
            token_id = yield slots[0]
        else:
            token_id = yield from self._free_labels(slots)
        said = []
        for slot in slots[1:]:
            said.append(token_id)
            token_id = yield slot
        return said[::-1]

    def _free_labels(self, slots: list[np.ndarray]) -> Choices:
        """Any of the encoding's labels, in order, and the first id that is none; returns that."""
        kinds = _label_masks(self._encoding)
        while True:
            mask = slots[0].copy()
            if self._left() > len(slots) - 1 + self._tokens_from(0, 0) + RESERVE:
                for kind in kinds:
                    mask |= kind
            token_id = yield mask
            place = next((place for place, kind in enumerate(kinds) if kind[token_id]), None)
            if place is None:
                return token_id
            kinds = kinds[place + 1 :]

    def _track_or_end(self, track: int) -> np.ndarray:
        if self._instruments is not None:
            return only(v.TRACK_START if track < len(self._instruments) else v.DOCUMENT_END)
        room = self._left() - self._tokens_from(track, 0, tracks=track + 1)
        return only(v.DOCUMENT_END, v.TRACK_START) if room >= RESERVE else only(v.DOCUMENT_END)

    def _track(self, track: int, said: list[int]) -> Choices:
        """INST [DENSITY] bar+ TRACK_END, after its TRACK_START.

        Args:
            said: the head's ids of meter and tempo, in the order in which bars say them.
        """
        instruments = (
            range(v.INST, v.INST + v.NUM_INSTRUMENTS) if self._instruments is None else [self._instruments[track]]
        )
        yield only(*instruments)
        if self._encoding.density:
            chosen = self._densities
            levels = _density_ids(self._encoding, "density")
            yield only(*levels) if chosen is None else only(chosen[track] if len(chosen) > 1 else chosen[0])
        given = self._given.tracks[track].bars if self._given else ()
        sounding = self._held[track] if self._given else set()
        for bar in range(self._encoding.bars):
            if bar < len(given):
                yield from self._exactly(given[bar])
                self._changes[bar] = [token_id for token_id in given[bar] if is_meter(token_id) or is_tempo(token_id)]
            else:
                sounding = yield from self._bar(track, bar, said, sounding)
            said = _in_force(said, self._changes[bar])
        yield from self._exactly([v.TRACK_END])

    def _bar(self, track: int, bar: int, said: list[int], sounding: set[int]) -> Choices:
        """BAR_START [TIME_SIGNATURE] [TEMPO] [DENSITY] event* BAR_END; returns the pitches that sound on.

        The first track decides where meter and tempo change; the others repeat it.
        """
        yield from self._exactly([v.BAR_START])
        must_end = self._encoding.bar_line != "carry" or bar == self._encoding.bars - 1
        offered = []
        if track:
            yield from self._exactly(self._changes[bar])
            said = _in_force(said, self._changes[bar])
        elif bar:
            offered = [mask & ~only(*said) for mask in (self._meters, self._tempos)]
        tracks_after = len(self._instruments or [0]) - 1
        while True:
            later = 1 + self._tokens_from(track, bar + 1)
            events = Events(self._steps(said), sounding, must_end, self._encoding.velocity, v.BAR_END)
            mask = self._bar_density if self._encoding.bar_density else events.allowed(self._left() - later)
            room = self._left() - later - events.ending_tokens() - bool(self._encoding.bar_density) - RESERVE
            if room > tracks_after:
                for choices in offered:
                    mask = mask | choices
            token_id = yield mask
            if not (is_meter(token_id) or is_tempo(token_id)):
                break
            self._changes[bar] = [*self._changes[bar], token_id]
            said = _in_force(said, [token_id])
            offered = offered[1:] if is_meter(token_id) else []
        yield from self._events(events, later, None if self._encoding.bar_density else token_id)
        return events.sounding

    def _steps(self, said: list[int]) -> int:
        """Steps of a bar of the meter in force; 4/4 where none is said."""
        return next((steps_of_meter(i, self._encoding) for i in said if is_meter(i)), self._encoding.steps_per_bar)

    def _tokens_from(self, track: int, bar: int, tracks: int | None = None) -> int:
        """Tokens of the shortest rest of the piece from before a bar of a track, DOCUMENT_END included.

        Bar 0 stands for the whole track with its TRACK_START.
        """
        if tracks is None:
            tracks = max(track + (bar > 0), 1) if self._instruments is None else len(self._instruments)
        track_head = 2 + bool(self._encoding.density)
        total = 1 + (1 if bar else 0)
        for number in range(track, tracks):
            given = self._given.tracks[number].bars if self._given else ()
            begins = bar if number == track else 0
            total += 0 if begins else track_head + 1
            for place in range(begins, self._encoding.bars):
                if place < len(given):
                    total += len(given[place])
                else:
                    total += 2 + bool(self._encoding.bar_density) + len(self._changes[place])
                if given and place == len(given) and self._held[number]:
                    total += 1 + len(self._held[number])  # a rest, and every release
        return total


class GivenTrack(NamedTuple):
    """A track of a document."""

    instrument: int
    bars: list[list[int]]  # the ids of each, BAR_START to BAR_END


class GivenDocument(NamedTuple):
    """A document taken apart."""

    head: dict[str, int]  # "tempo" and "meter": ids
    tracks: list[GivenTrack]


def read_document(ids: Sequence[int]) -> GivenDocument:
    """A document of ``encode_piece``, taken apart; its DENSITY of tracks is left out."""
    head, *tracks = np.split(np.asarray(ids, np.int64), np.flatnonzero(np.asarray(ids) == v.TRACK_START))
    said = {"meter" if is_meter(i) else "tempo": i for i in head.tolist() if is_meter(i) or is_tempo(i)}
    taken_apart = []
    for track in tracks:
        _, *bars = np.split(track, np.flatnonzero(track == v.BAR_START))
        bars = [bar.tolist() for bar in bars]
        taken_apart.append(GivenTrack(int(track[1]), [bar[: bar.index(v.BAR_END) + 1] for bar in bars]))
    return GivenDocument(said, taken_apart)


def held_notes(bars: Sequence[Sequence[int]]) -> set[int]:
    """The pitches that a track's bars leave on."""
    held: set[int] = set()
    for token_id in (token_id for bar in bars for token_id in bar):
        if v.NOTE_ON <= token_id < v.NOTE_ON + 128:
            held.add(token_id - v.NOTE_ON)
        elif v.NOTE_OFF <= token_id < v.NOTE_OFF + 128:
            held.discard(token_id - v.NOTE_OFF)
    return held


@cache
def meter_ids(encoding: Encoding) -> tuple[int, ...]:
    """The TIME_SIGNATUREs that documents may have: the encoding's whose bars are a whole number of steps."""
    if not encoding.writes_meters:
        return ()
    ids = (v.IDS[f"TIME_SIGNATURE={numerator}/{denominator}"] for numerator, denominator in encoding.meter_set)
    return tuple(token_id for token_id in ids if steps_of_meter(token_id, encoding))


def _density_ids(encoding: Encoding, name: str) -> list[int]:
    """The DENSITY ids of a track or of a bar that documents may have."""
    return [v.DENSITY + level for level in encoding.density_levels(name)]


@cache
def steps_of_meter(token_id: int, encoding: Encoding) -> int:
    """Steps of a bar of a TIME_SIGNATURE; 0 where they are not a whole number."""
    numerator, denominator = map(int, v.TOKENS[token_id].removeprefix("TIME_SIGNATURE=").split("/"))
    steps, rest = divmod(encoding.steps_per_bar * numerator, denominator)
    return 0 if rest else steps


@cache
def _label_masks(encoding: Encoding) -> tuple[np.ndarray, ...]:
    """For each label of the encoding the mask of its names."""
    return tuple(only(*[encoding.label_ids[f"{label}={name}"] for name in names]) for label, names in encoding.labels)


def _in_force(said: list[int], changes: list[int]) -> list[int]:
    """Meter and tempo after a bar has said its changes."""
    return [next((c for c in changes if is_meter(c) == is_meter(token_id)), token_id) for token_id in said]


def is_meter(token_id: int) -> bool:
    return v.TIME_SIGNATURE <= token_id < v.TEMPO


def is_tempo(token_id: int) -> bool:
    return v.TEMPO <= token_id < v.VELOCITY
