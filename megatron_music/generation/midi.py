"""New pieces from a GPT: from nothing, or going on from a given one.

Pieces longer than the model's window are written window by window: the last bars are given, new ones follow. Given a
model (ids to logits); knows nothing about checkpoints or datasets.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from megatron_music.generation.sampling import CachedGPT, Draft, NextLogits, Sampler, write_drafts
from megatron_music.music.grid import four_four_sections, quantize, slice_steps
from megatron_music.music.score import VOICE_NAMES, Score, Track
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.folder import Encoding
from megatron_music.tokens.grammar import Grammar
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece, instrument_id


class Composer:
    """Writes pieces with one model.

    Args:
        model: GPTModel in eval mode, or None with ``next_logits``.
        encoding: of the data the model was trained on.
        max_tokens: the model's sequence length.
        sampler: how tokens are drawn.
        device: where the model is.
        next_logits: makes the model's ``NextLogits`` for a batch size and a length; by default with a KV cache.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        encoding: Encoding,
        max_tokens: int,
        sampler: Sampler = Sampler(),  # noqa: B008 (frozen)
        device: torch.device | str = "cpu",
        next_logits: Callable[[torch.nn.Module, int, int], NextLogits] = CachedGPT,
    ):
        if encoding.bars < 1:
            raise ValueError("this model was trained on whole pieces; train on windows (--bars 4) to generate")
        self.model = model
        self.encoding = encoding
        self.max_tokens = max_tokens
        self.sampler = sampler
        self.device = device
        self._next_logits = next_logits

    def compose(
        self,
        seeds: Sequence[int],
        bars: int | None = None,
        instruments: Sequence[str] | None = None,
        on_token: Callable[[int], None] = lambda tokens: None,
    ) -> list[Score]:
        """One piece a seed, from nothing, all in one batch.

        Args:
            seeds: each decides its own piece alone.
            bars: length of the pieces; by default the model's window.
            instruments: the tracks, as values of INST (``0``..``127``, ``DRUMS``, ``SOPRANO`` ...); None: the model's.
            on_token: told the length of the longest draft at every step.
        """
        ids = None if instruments is None else tuple(_instrument_ids(instruments))
        window = self.encoding.bars
        bars = window if bars is None else bars
        if bars < 1:
            raise ValueError(f"bars is {bars}; use 1 or more")
        grammars = [Grammar(self.encoding, self.max_tokens, ids) for _ in seeds]
        scores = self._write(grammars, seeds, 0, on_token)
        if bars > window:
            scores = self.continue_scores(scores, bars - window, seeds, on_token)
        return [_cut(score, bars) for score in scores]

    def continue_scores(
        self,
        scores: Sequence[Score],
        bars: int,
        seeds: Sequence[int],
        on_token: Callable[[int], None] = lambda tokens: None,
    ) -> list[Score]:
        """Each quantised score with ``bars`` new bars after its last, for the instruments it has.

        Half a window is given at a time, or all of a shorter score, and the rest of the window is new. A model of
        1-bar windows is given nothing.
        """
        lengths = [score.num_bars + bars for score in scores]
        turn = 0
        while any(score.num_bars < length for score, length in zip(scores, lengths, strict=True)):
            turn += 1
            openings = [self._opening(score, may_be_empty=turn > 1) for score in scores]
            written = self._write([grammar for grammar, _ in openings], seeds, turn, on_token)
            scores = [
                _append(score, window, given)
                for score, window, (_, given) in zip(scores, written, openings, strict=True)
            ]
        return [_cut(score, length) for score, length in zip(scores, lengths, strict=True)]

    def _opening(self, score: Score, may_be_empty: bool) -> tuple[Grammar, int]:
        """A grammar that begins with the score's last bars, and how many: half a window, fewer where notes are many."""
        instruments = tuple(instrument_id(track) for track in score.tracks)
        for bars in range(min(self.encoding.bars // 2, score.num_bars), -1, -1):
            given = _bars_of_tracks(_last_bars(score, bars), self.encoding.bar_line) if bars else ()
            try:
                grammar = Grammar(self.encoding, self.max_tokens, instruments, given)
            except ValueError:
                continue
            if bars or may_be_empty or self.encoding.bars == 1:
                return grammar, bars
        raise ValueError(
            f"the last bar of the piece has too many notes or tracks for a model that reads {self.max_tokens} tokens; "
            "continue a piece with fewer, or train with a longer model.seq_length"
        )

    def _write(self, grammars: Sequence[Grammar], seeds: Sequence[int], turn: int, on_token) -> list[Score]:
        """One window for each grammar, all in one batch."""
        drafts = [
            Draft(grammar, torch.Generator().manual_seed(_stream(seed, turn)))
            for grammar, seed in zip(grammars, seeds, strict=True)
        ]
        next_logits = self._next_logits(self.model, len(drafts), self.max_tokens)
        for tokens in write_drafts(drafts, next_logits, self.sampler, self.device):
            on_token(tokens)
        return [decode_piece(draft.ids, self.encoding.steps_per_quarter) for draft in drafts]


def prepare_continuation(score: Score, encoding: Encoding) -> Score:
    """The last 4/4 part of a score as read, quantised for the model: what ``continue_scores`` goes on from.

    Raises:
        ValueError: no part of it is in 4/4.
    """
    sections = [section for section in four_four_sections(score) if section.num_notes]
    if not sections:
        raise ValueError("no part of the piece is in 4/4; the models know no other meter yet")
    return quantize(sections[-1], encoding.steps_per_quarter)


def _stream(seed: int, turn: int) -> int:
    """The seed of one window: a function of the piece's seed and the window's number alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{turn}".encode()).digest()[:7], "big")


def _instrument_ids(instruments: Sequence[str]) -> list[int]:
    ids = []
    for name in instruments:
        token = f"INST={name.strip().upper()}"
        if token not in v.IDS:
            raise ValueError(f"instrument {name!r} is unknown; use 0..127, {v.DRUMS} or {', '.join(VOICE_NAMES)}")
        ids.append(v.IDS[token])
    return ids


def _bars_of_tracks(score: Score, bar_line: str) -> list[list[int]]:
    """For each track the ids of its bars, BAR_START to BAR_END."""
    ids = encode_piece(score, bar_line)
    starts = np.flatnonzero(ids == v.TRACK_START) + 2
    ends = np.flatnonzero(ids == v.TRACK_END)
    return [ids[start:end].tolist() for start, end in zip(starts, ends, strict=True)]


def _last_bars(score: Score, bars: int) -> Score:
    """The last bars of all tracks, silent ones included."""
    length = score.num_bars * score.steps_per_bar
    return slice_steps(score, max(length - bars * score.steps_per_bar, 0), length)


def _append(score: Score, window: Score, given_bars: int) -> Score:
    """The score followed by the window's bars after the given ones."""
    end = score.num_bars * score.steps_per_bar
    new = slice_steps(window, given_bars * score.steps_per_bar, window.length_steps)
    tracks = tuple(
        Track(np.concatenate([old.notes, more.notes + (end, end, 0, 0)]), old.program, old.is_drum, old.voice)
        for old, more in zip(score.tracks, new.tracks, strict=True)
    )
    return replace(score, tracks=tracks, length_steps=end + new.length_steps)


def _cut(score: Score, bars: int) -> Score:
    length = bars * score.steps_per_bar
    return score if score.length_steps <= length else slice_steps(score, 0, length)
