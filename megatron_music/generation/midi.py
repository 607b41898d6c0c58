"""New pieces from a GPT: from nothing, going on from a given one, or with bars of a given one written anew.

Pieces longer than the model's window are written window by window: the last bars are given, new ones follow. A window
ends all its notes at its end; so where more is to come its last bar is written only for the notes that are held into
it, and left out. Takes a model (ids to logits) that is loaded.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from megatron_music.generation.controls import (
    bar_density_id,
    density_ids,
    instrument_ids,
    label_ids,
    meter_id,
    tempo_id,
)
from megatron_music.generation.decoder import next_logits_of
from megatron_music.generation.infill import Filling, Place
from megatron_music.generation.sampling import Draft, NextLogits, Sampler, write_drafts
from megatron_music.music.grid import slice_steps
from megatron_music.music.score import Score, Track
from megatron_music.music.tempo import tempo_bin
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.constraints import Walk
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.grammar import Grammar
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece
from megatron_music.tokens.windows import instrument_id

OnToken = Callable[[int], None]
OnFailure = Callable[[int, str], None]


class Composer:
    """Writes pieces with one model.

    Args:
        model: GPTModel in eval mode, or None with ``next_logits``.
        encoding: of the data the model was trained on.
        max_tokens: the model's sequence length.
        sampler: how tokens are drawn.
        device: where the model is.
        next_logits: makes the model's ``NextLogits`` for a batch size and a length; by default with a KV cache.
        made_with: which checkpoint the model is of, for the record of what pieces were made with.

    In all that it does ``seeds`` has a seed for each piece, which decides that piece alone; the pieces are written in
    one batch; and ``on_token`` receives the length of the longest draft at every step. ``on_failure`` receives the
    place of a piece that cannot be written to its end, from 0, and the reason; None stands in its place then, and the
    others are written. If omitted, the first such piece is a ValueError.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        encoding: Encoding,
        max_tokens: int,
        sampler: Sampler = Sampler(),  # noqa: B008 (frozen)
        device: torch.device | str = "cpu",
        next_logits: Callable[[torch.nn.Module, int, int], NextLogits] = next_logits_of,
        made_with: dict[str, str] | None = None,
    ):
        if encoding.bars < 1:
            raise ValueError("this model was trained on whole pieces; train on windows (--bars 4) to generate")
        if encoding.bpe:
            raise ValueError(
                "models of merged tokens cannot be sampled under the grammar yet; train on data without --bpe"
            )
        self.model = model
        self.encoding = encoding
        self.max_tokens = max_tokens
        self.sampler = sampler
        self.device = device
        self._next_logits = next_logits
        self.made_with = made_with or {}

    def compose(
        self,
        seeds: Sequence[int],
        bars: int | None = None,
        instruments: Sequence[str] | None = None,
        on_token: OnToken = lambda tokens: None,
        *,
        meter: str | None = None,
        tempo: float | None = None,
        density: Sequence[int] | None = None,
        bar_density: int | None = None,
        labels: Sequence[str] = (),
        on_failure: OnFailure | None = None,
    ) -> list[Score | None]:
        """One piece a seed, from nothing.

        Args:
            bars: length of the pieces; by default the model's window.
            instruments: the tracks, as values of INST (``0``..``127``, ``DRUMS``, ``SOPRANO`` ...); None: the model's.
            meter: of all bars, such as ``3/4``; None: the model's.
            tempo: of all bars, in quarters a minute, taken to the nearest the model knows; None: the model's.
            density: how many notes the tracks have, in levels from 0: one for all, or one for each of the instruments;
                None: the model's.
            bar_density: the same of every bar; None: the model's.
            labels: such as ``GENRE=JAZZ``; none: the model's.
        """
        ids = None if instruments is None else tuple(instrument_ids(instruments))
        window = self.encoding.bars
        bars = window if bars is None else bars
        if bars < 1:
            raise ValueError(f"bars is {bars}; use 1 or more")
        wishes = {
            "meters": None if meter is None else [meter_id(meter, self.encoding)],
            "tempos": None if tempo is None else [tempo_id(tempo, self.encoding)],
            "densities": None if density is None else density_ids(density, ids, self.encoding),
            "bar_density": None if bar_density is None else bar_density_id(bar_density, self.encoding),
        }
        named = label_ids(labels, self.encoding) or None
        grammars = [Grammar(self.encoding, self.max_tokens, ids, labels=named, **wishes) for _ in seeds]
        documents = self._write(grammars, seeds, 0, on_token)
        scores = [_opened(self._decode(document), self._num_kept(window, bars)) for document in documents]
        said = [{"labels": _labels_of(document, self.encoding), **wishes} for document in documents]
        return self._go_on(scores, [bars] * len(scores), seeds, on_token, said, on_failure)

    def continue_scores(
        self,
        scores: Sequence[Score],
        bars: int,
        seeds: Sequence[int],
        on_token: OnToken = lambda tokens: None,
        *,
        labels: Sequence[str] = (),
        on_failure: OnFailure | None = None,
    ) -> list[Score | None]:
        """Each quantised score with ``bars`` new bars after its last, for the instruments it has, in its last meter and
        tempo.

        Half a window is given at a time, or all of a shorter score, and the rest of the window is new. A model of
        1-bar windows is given nothing but the meter and tempo.
        """
        wishes = [{"labels": label_ids(labels, self.encoding) or None, **self._last_said(score)} for score in scores]
        return self._go_on(scores, [score.num_bars + bars for score in scores], seeds, on_token, wishes, on_failure)

    def fill(
        self,
        score: Score,
        bars: Iterable[Place],
        seeds: Sequence[int],
        on_token: OnToken = lambda tokens: None,
        *,
        labels: Sequence[str] = (),
        sounding: Score | None = None,
        on_failure: OnFailure | None = None,
    ) -> list[Score | None]:
        """The score with some of its bars written anew, once a seed; all else stays note for note.

        Bars that do not fit into one window are filled window by window, with the fills before in their places.

        Args:
            score: as read from a file.
            bars: (track, bar) of each, from 0; what starts in them is taken away, what is held into them ends there.
                None for the track is every track, None for the bar every bar in a meter that the model knows.
            labels: to say of the piece, such as ``GENRE=JAZZ``.
            sounding: see ``Filling``.
        """
        if not self.encoding.infill:
            raise ValueError("this model has not learned to fill bars; train it on data built with --infill")
        named, bars = label_ids(labels, self.encoding), list(bars)
        pieces = [Filling(score, bars, self.encoding, named, sounding) for _ in seeds]
        turn = 0
        while unfinished := [number for number, piece in enumerate(pieces) if piece is not None and piece.left]:
            grammars = _possible(
                unfinished, lambda number: pieces[number].next_window(self.max_tokens), pieces, on_failure
            )
            documents = self._write(list(grammars.values()), [seeds[number] for number in grammars], turn, on_token)
            for number, document in zip(grammars, documents, strict=True):
                pieces[number].put(document)
            turn += 1
        return [None if piece is None else piece.score for piece in pieces]

    def _go_on(
        self,
        scores: Sequence[Score],
        lengths: Sequence[int],
        seeds: Sequence[int],
        on_token: OnToken,
        wishes: list[dict],
        on_failure: OnFailure | None,
    ) -> list[Score | None]:
        """Each score, whose last notes may be held over its end, up to its length in bars.

        Args:
            wishes: what is asked of each in the words of ``Grammar``; labels that the model chooses stay.
        """
        scores, wishes, turn = list(scores), list(wishes), 0
        while unfinished := [
            number for number, score in enumerate(scores) if score is not None and score.num_bars < lengths[number]
        ]:
            turn += 1
            may_be_empty = turn > 1
            openings = _possible(
                unfinished,
                lambda number: self._opening(scores[number], may_be_empty, **wishes[number]),  # noqa: B023 (called within this turn)
                scores,
                on_failure,
            )
            grammars = [grammar for grammar, _ in openings.values()]
            documents = self._write(grammars, [seeds[number] for number in openings], turn, on_token)
            for (number, (_, given)), document in zip(openings.items(), documents, strict=True):
                wishes[number] = wishes[number] | {"labels": _labels_of(document, self.encoding)}
                kept = self._num_kept(self.encoding.bars - given, lengths[number] - scores[number].num_bars)
                scores[number] = _append(scores[number], self._decode(document), given, kept)
        return [None if score is None else slice_steps(score, 0, score.length_steps) for score in scores]

    def _num_kept(self, written: int, wanted: int) -> int:
        """How many of a window's new bars are kept: not its last, into which notes are held, where more are to come."""
        if wanted <= written:
            return wanted
        return max(written - (self.encoding.bar_line == "carry"), 1)

    def _opening(self, score: Score, may_be_empty: bool, **wishes) -> tuple[Grammar, int]:
        """A grammar that begins with the score's last bars, and how many: half a window, fewer where notes are many."""
        instruments = tuple(instrument_id(track) for track in score.tracks)
        for bars in range(min(self.encoding.bars // 2, score.num_bars), -1, -1):
            given = _last_bars(score, bars, self.encoding) if bars else ()
            if not bars:
                wishes |= self._last_said(score)
            try:
                grammar = Grammar(self.encoding, self.max_tokens, instruments, given, **wishes)
            except ValueError:
                continue
            if bars or may_be_empty or self.encoding.bars == 1:
                return grammar, bars
        raise ValueError(
            f"the last bar of the piece has too many notes or tracks for a model that reads {self.max_tokens} tokens; "
            "ask for fewer bars or another seed, continue a piece with fewer notes, or train with a longer "
            "model.seq_length"
        )

    def _last_said(self, score: Score) -> dict[str, list[int]]:
        """Meter and tempo of the score's last bar, as ids, where the encoding has them."""
        said = {}
        if self.encoding.writes_meters:
            _, numerator, denominator = score.time_signatures[-1]
            said["meters"] = [v.IDS[f"TIME_SIGNATURE={numerator}/{denominator}"]]
        if self.encoding.tempo:
            said["tempos"] = [v.TEMPO + tempo_bin(score.tempos[-1].quarters_per_minute)]
        return said

    def _write(self, grammars: Sequence[Walk], seeds: Sequence[int], turn: int, on_token: OnToken) -> list[list[int]]:
        """One document for each grammar."""
        if not grammars:
            return []
        drafts = [Draft(grammar, _stream(seed, turn)) for grammar, seed in zip(grammars, seeds, strict=True)]
        next_logits = self._next_logits(self.model, len(drafts), self.max_tokens)
        for tokens in write_drafts(drafts, next_logits, self.sampler, self.device):
            on_token(tokens)
        return [draft.ids for draft in drafts]

    def _decode(self, document: Sequence[int]) -> Score:
        return decode_piece(document, self.encoding.steps_per_quarter)


def _possible(
    numbers: Sequence[int], begin: Callable[[int], Any], pieces: list, on_failure: OnFailure | None
) -> dict[int, Any]:
    """What ``begin`` makes of each number; a piece for which it is a ValueError becomes None."""
    found = {}
    for number in numbers:
        try:
            found[number] = begin(number)
        except ValueError as error:
            if on_failure is None:
                raise
            pieces[number] = None
            on_failure(number, str(error))
    return found


def _stream(seed: int, turn: int) -> int:
    """The seed of one window: a function of the piece's seed and the window's number alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{turn}".encode()).digest()[:7], "big")


def _labels_of(document: Sequence[int], encoding: Encoding) -> list[int]:
    known = set(encoding.label_ids.values())
    return [token_id for token_id in document if token_id in known]


def _last_bars(score: Score, bars: int, encoding: Encoding) -> np.ndarray:
    """Ids of the last bars of all tracks, silent ones included; notes held over the end are left on."""
    lines = score.bar_starts
    first, end = int(lines[-1 - bars]), int(lines[-1])
    if score.last_end_step <= end:
        return encode_piece(slice_steps(score, first, end), encoding)
    ids = encode_piece(slice_steps(score, first, 2 * end - int(lines[-2])), encoding)  # and the bar in which they end
    is_kept = np.ones(len(ids), bool)
    for last in np.flatnonzero(ids == v.TRACK_END):
        is_kept[np.flatnonzero(ids[:last] == v.BAR_START)[-1] : last] = False
    return ids[is_kept]


def _opened(score: Score, bars: int) -> Score:
    """The first bars of a score; notes held over their end keep their length."""
    end = int(score.bar_starts[bars])
    tracks = [
        Track(track.notes[track.notes[:, 0] < end], track.program, track.is_drum, track.voice, track.name)
        for track in score.tracks
    ]
    return replace(slice_steps(score, 0, end), tracks=tracks)


def _append(score: Score, window: Score, given_bars: int, kept_bars: int) -> Score:
    """The score followed by so many of the window's bars after the given ones.

    A note that was held over the score's end ends where the window ends it; notes may be held over the new end.
    """
    end, line = score.length_steps, int(window.bar_starts[given_bars])
    window = _opened(window, given_bars + kept_bars)
    new = slice_steps(window, line, window.length_steps)
    tracks = []
    for old, more in zip(score.tracks, window.tracks, strict=True):
        notes, moved = old.notes.copy(), np.add(more.notes, (end - line, end - line, 0, 0))
        ends = {pitch: stop for start, stop, pitch, _ in moved.tolist() if start < end < stop}
        for note in np.flatnonzero(notes[:, 1] > end):
            notes[note, 1] = ends.get(int(notes[note, 2]), end)
        tracks.append(Track(np.concatenate([notes, moved[moved[:, 0] >= end]]), old.program, old.is_drum, old.voice))
    return replace(
        score,
        tracks=tracks,
        time_signatures=_followed(score.time_signatures, new.time_signatures, end),
        tempos=_followed(score.tempos, new.tempos, end),
        length_steps=end + new.length_steps,
    )


def _followed(events: tuple, new: tuple, end: int) -> tuple:
    """Meters or tempos up to a step, and new ones counted from there; one that repeats the last is left out."""
    moved = [event._replace(start_step=event.start_step + end) for event in new]
    return (*events, *(moved[1:] if moved[0][1:] == events[-1][1:] else moved))
