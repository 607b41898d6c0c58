"""Bars of a person's piece to be written anew: which ones, what a model is shown of the piece, and how its fills come
back.

The piece stays on its own ticks and all of it that is not in the chosen bars stays as it is; only what the model is
shown is quantised. Tracks are counted as a person hears them: one without notes (a file's lyrics, say) is not among
them.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from megatron_music.config.errors import counted
from megatron_music.generation.given_bars import GivenBars
from megatron_music.music.names import printable
from megatron_music.music.score import DEFAULT_VELOCITY, Score, Track
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.infill import take_out
from megatron_music.tokens.infill_grammar import FillGrammar
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece

_WORDS = re.compile(r"(?:track\s+(\d+))?(?:(?:^|\s+)bars?\s+(\d+(?:\s*-\s*\d+)?(?:\s*,\s*\d+(?:\s*-\s*\d+)?)*))?")
_MOST_BARS = 100_000

# (track, bar) from 0; None stands for every track, or for every bar that the model can fill.
Place = tuple[int | None, int | None]


def parse_bars(text: str) -> list[Place]:
    """The places of words such as ``track 2 bars 3-4; track 1; bar 7``, which count from 1.

    ``track 1`` is that track in every bar, ``bar 7`` that bar in every track.

    Raises:
        ValueError: the words are others.
    """
    places: dict[Place, None] = {}
    for part in (part.strip() for part in text.lower().split(";")):
        words = _WORDS.fullmatch(part)
        if not words or not part:
            raise ValueError(
                f'--infill {text!r} is not understood; write e.g. "track 2 bars 3-4", "track 2" or "bar 3"'
            )
        track = None if words[1] is None else int(words[1]) - 1
        spans = [(None, None)]
        if words[2]:
            spans = [tuple(map(int, (span.split("-") * 2)[:2])) for span in words[2].split(",")]
        for first, last in spans:
            if (track is not None and track < 0) or (first is not None and not 1 <= first <= last <= _MOST_BARS):
                raise ValueError(f"--infill says {part!r}; tracks and bars count from 1, the first bar before the last")
            bars = [None] if first is None else range(first - 1, last)
            places |= dict.fromkeys((track, bar) for bar in bars)
    return list(places)


class Filling:
    """A piece whose chosen bars are emptied and filled, window by window from left to right.

    Notes that start in the chosen bars are taken away; one held into them ends where they begin. A note belongs to the
    bar in which its start lies on the model's grid.

    Args:
        score: as read from a file, on its own ticks; it is not changed.
        bars: (track, bar) of each chosen bar, from 0, of the tracks that have notes; None for every one of them, or for
            every bar in a meter of the encoding.
        encoding: of the model.
        labels: label ids to say of the piece.
        sounding: the same piece with notes as long as the model's data have them, where the sustain pedal holds them
            longer.

    Raises:
        ValueError: a track or bar is not in the piece, or a bar is in no meter of the encoding; counted from 1.
    """

    def __init__(
        self,
        score: Score,
        bars: Iterable[Place],
        encoding: Encoding,
        labels: Sequence[int] = (),
        sounding: Score | None = None,
    ):
        self._encoding = encoding
        self._labels = tuple(labels)
        self._bars = GivenBars(score, encoding)
        self._original = self._bars.score
        self._lines, self._meters, self._steps = self._bars.lines, self._bars.meters, self._bars.steps  # lines in ticks
        self._instruments = [number for number, track in enumerate(score.tracks) if len(track)]
        self.left = self._all_of(bars)
        self.score = replace(score, tracks=self._emptied(score))
        self._sounding = self._original if sounding is None else replace(self._original, tracks=sounding.tracks)
        self._shown = replace(self._sounding, tracks=self._emptied(self._sounding))  # to the model
        self._window: tuple[int, int, list[int], set[tuple[int, int]]] | None = None

    def next_window(self, max_tokens: int) -> FillGrammar:
        """The rules of the next fills, with what the model is shown: as many bars around them as it is used to.

        Raises:
            ValueError: not even one bar of the piece fits into ``max_tokens``.
        """
        for size in range(self._encoding.bars, 0, -1):
            first, after = self._place(size)
            holes = {(track, bar) for track, bar in self.left if first <= bar < after}
            prompt, tracks = self._prompt(first, after, holes)
            try:
                grammar = FillGrammar(self._encoding, max_tokens, prompt)
            except ValueError:
                continue
            self._window = first, after, tracks, holes
            return grammar
        raise ValueError(
            f"bar {first + 1} has too many notes or tracks for a model that reads {max_tokens} tokens; "
            "fill a piece with fewer, or train with a longer model.seq_length"
        )

    def put(self, ids: Sequence[int]) -> None:
        """Take over the fills of the document that was written under the last ``next_window``."""
        first, after, tracks, holes = self._window
        window = decode_piece(ids, self._encoding.steps_per_quarter)
        ticks, steps = self.score.steps_per_quarter, self._encoding.steps_per_quarter
        filled, shown = list(self.score.tracks), list(self._shown.tracks)
        for number in sorted({track for track, _ in holes}):
            notes = window.tracks[tracks.index(number)].notes
            bar = np.searchsorted(window.bar_starts, notes[:, 0], side="right") - 1 + first
            new = notes[np.isin(bar, [hole for track, hole in holes if track == number])].copy()
            new[:, :2] = self._lines[first] + new[:, :2] * ticks // steps
            new[:, 1] = np.maximum(new[:, 1], new[:, 0] + 1)  # on ticks coarser than the grid
            if not self._encoding.velocity:
                new[:, 3] = _usual_velocity(self._original.tracks[number])
            for tracks_of in (filled, shown):
                tracks_of[number] = _with_notes(tracks_of[number], np.concatenate([tracks_of[number].notes, new]))
        self.score, self._shown = replace(self.score, tracks=filled), replace(self._shown, tracks=shown)
        self.left -= holes
        self._window = None

    def _all_of(self, places: Iterable[Place]) -> set[tuple[int, int]]:
        """The chosen places, with the numbers that the tracks have in the score.

        Raises:
            ValueError: there are none, or one cannot be filled.
        """
        places, num_instruments = list(places), len(self._instruments)
        for track in (track for track, _ in places if track is not None):
            if not 0 <= track < num_instruments:
                raise ValueError(f"track {track + 1} is not in the piece; its tracks are {self._listed()}")
        whole = [bar for bar, steps in enumerate(self._steps) if steps]
        chosen = {
            (self._instruments[number], place)
            for track, bar in places
            for number in (range(num_instruments) if track is None else [track])
            for place in (whole if bar is None else [bar])
        }
        if not chosen:
            raise ValueError(
                f"there is no bar to fill; name one of the piece, in a meter of the model: "
                f"{self._encoding.meters_in_words}"
            )
        for bar in sorted({bar for _, bar in chosen}):
            if not 0 <= bar < len(self._meters):
                raise ValueError(f"bar {bar + 1} is not in the piece; it has {counted(len(self._meters), 'bar')}")
            if not self._steps[bar]:
                numerator, denominator = self._meters[bar]
                raise ValueError(
                    f"bar {bar + 1} is in {numerator}/{denominator} or not a whole bar of it, and cannot be filled by "
                    f"a "
                    f"model of {self._encoding.meters_in_words}; choose other bars"
                )
        return chosen

    def _listed(self) -> str:
        labels = [printable(self._original.tracks[number].label) for number in self._instruments]
        return ", ".join(f"{number} {label}" for number, label in enumerate(labels, start=1))

    def _emptied(self, score: Score) -> list[Track]:
        """The tracks without the notes of the chosen bars."""
        tracks = list(score.tracks)
        steps, ticks = self._encoding.steps_per_quarter, score.steps_per_quarter
        for number, bar in sorted(self.left):
            notes = tracks[number].notes
            start = int(self._lines[bar])
            step = (2 * steps * (notes[:, 0] - start) + ticks) // (2 * ticks)  # to the nearest, halves up
            kept = notes[(step < 0) | (step >= self._steps[bar])].copy()
            held = (kept[:, 0] < start) & (kept[:, 1] > start)
            kept[held, 1] = start
            tracks[number] = _with_notes(tracks[number], kept)
        return tracks

    def _place(self, size: int) -> tuple[int, int]:
        """The first bar of a window of ``size`` bars, and the bar after it: the first chosen bars amid others."""
        hole = min(bar for _, bar in self.left)
        run_first = run_after = hole
        while run_first > 0 and self._steps[run_first - 1]:
            run_first -= 1
        while run_after < len(self._steps) and self._steps[run_after]:
            run_after += 1
        last = max(bar for _, bar in self.left if bar < min(hole + size, run_after))
        before = max(
            (size - (last - hole + 1)) // 2, size // 4
        )  # of a region as long as the window some are left for later
        first = max(min(hole - before, run_after - size), run_first)
        return first, min(first + size, run_after)

    def _prompt(self, first: int, after: int, holes: Collection[tuple[int, int]]) -> tuple[np.ndarray, list[int]]:
        """The window's ids up to the fills, and the numbers of the tracks in it: those that sound or are to be
        filled.
        """
        now, before = (self._bars.on_grid(score, first, after) for score in (self._shown, self._sounding))
        to_fill = {track for track, _ in holes}
        tracks = [number for number, track in enumerate(now.tracks) if len(track) or number in to_fill]
        ids, wanted = (
            encode_piece(
                replace(score, tracks=[score.tracks[number] for number in tracks]), self._encoding, self._labels
            )
            for score in (now, before)
        )
        places = [(tracks.index(track), bar - first) for track, bar in holes]
        ids = take_out(_with_density(ids, wanted, places, self._encoding), places)
        return ids[: np.flatnonzero(ids == v.FILL_START)[0]], tracks


def _with_density(ids: np.ndarray, wanted: np.ndarray, holes: list[tuple[int, int]], encoding: Encoding) -> np.ndarray:
    """Ids of emptied bars that ask for as many notes as there were, or for as many as around them if that was few.

    Args:
        ids: of the emptied piece, from ``encode_piece``.
        wanted: the same of the piece as it was.
        holes: (track, bar) within them.
    """
    places = np.flatnonzero((ids >= v.DENSITY) & (ids < v.DENSITY + v.NUM_DENSITIES))
    if not len(places):
        return ids
    ids = ids.copy()
    num_tracks = int(np.count_nonzero(ids == v.TRACK_START))
    places = places.reshape(num_tracks, -1)  # of each track: its own, then its bars'
    levels = wanted[(wanted >= v.DENSITY) & (wanted < v.DENSITY + v.NUM_DENSITIES)].reshape(num_tracks, -1)
    first_bar = 1 if encoding.density else 0
    for track, bar in holes:
        if encoding.density:
            level = levels[track, 0]
            ids[places[track, 0]] = level if level > v.DENSITY else v.DENSITY + encoding.density // 2
        if encoding.bar_density:
            level, others = levels[track, first_bar + bar], levels[track, first_bar:]
            others = np.sort(others[others > v.DENSITY])
            usual = others[len(others) // 2] if len(others) else v.DENSITY + encoding.bar_density // 2
            ids[places[track, first_bar + bar]] = level if level > v.DENSITY else usual
    return ids


def _usual_velocity(track: Track) -> int:
    return int(np.median(track.notes[:, 3])) if len(track) else DEFAULT_VELOCITY


def _with_notes(track: Track, notes: np.ndarray) -> Track:
    return Track(notes, track.program, track.is_drum, track.voice, track.name)
