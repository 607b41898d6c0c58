"""Sampling token ids from a GPT under the grammar, many pieces at a time, with a KV cache.

Takes a model that turns ids into logits.

Shapes: B pieces, S tokens, V vocabulary, K ids that one of the pieces may draw, G query groups of this rank, D head
    size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_music.models.layers import SDPACoreAttention
from megatron_music.tokens.constraints import Walk

_BLOCK = 256  # random numbers drawn at a time
_SHRINK = 0.75  # the share of unfinished drafts from which on the finished are left out


class NextLogits(Protocol):
    """A model that reads: it remembers the ids before."""

    def __call__(self, ids_BS: Tensor) -> Tensor:
        """Read new ids; returns the logits of the token after them, [B, V]."""

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch alone, in this order."""


@dataclass(frozen=True)
class Sampler:
    """How a token is drawn from logits.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens whose probabilities add up to p; 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; use 0 (the most likely token) or more, e.g. 1.0")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; use 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use a number above 0, at most 1 (all tokens)")

    def draw(self, logits_BV: np.ndarray, allowed_BV: np.ndarray, uniforms_B: np.ndarray) -> list[int]:
        """One id a row; ids that are not allowed are never drawn.

        Args:
            logits_BV: float32.
            allowed_BV: bool; at least one a row.
            uniforms_B: in [0, 1): where in the cumulative probabilities of the ids each draw falls.
        """
        ids_K = np.flatnonzero(allowed_BV.any(axis=0))
        logits_BK = np.where(allowed_BV[:, ids_K], logits_BV[:, ids_K], np.float32("-inf"))
        if self.temperature == 0:
            return ids_K[logits_BK.argmax(axis=1)].tolist()
        with np.errstate(over="ignore"):  # what is infinitely less likely than the likeliest has no weight
            weights_BK = np.exp(
                (logits_BK - logits_BK.max(axis=1, keepdims=True)) / np.float32(max(self.temperature, 1e-30))
            )
        if self.top_k or self.top_p < 1:
            weights_BK = self._without_the_unlikely(weights_BK)
        cumulative_BK = weights_BK.cumsum(axis=1, dtype=np.float64)
        places_B = (cumulative_BK <= uniforms_B[:, None] * cumulative_BK[:, -1:]).sum(axis=1)
        # The product may round to the whole sum: the last id with a weight takes that.
        last_B = weights_BK.shape[1] - 1 - (weights_BK[:, ::-1] > 0).argmax(axis=1)
        return ids_K[np.minimum(places_B, last_B)].tolist()

    def _without_the_unlikely(self, weights_BK: np.ndarray) -> np.ndarray:
        """The weights, zero but for those of the ``top_k`` and ``top_p`` likeliest; of equals the lower id
        comes first.
        """
        order_BK = np.argsort(-weights_BK, axis=1, kind="stable")
        sorted_BK = np.take_along_axis(weights_BK, order_BK, axis=1)
        if self.top_k:
            sorted_BK[:, self.top_k :] = 0
        before_BK = sorted_BK.cumsum(axis=1, dtype=np.float64) - sorted_BK
        sorted_BK[before_BK >= self.top_p * sorted_BK.sum(axis=1, dtype=np.float64, keepdims=True)] = 0
        kept_BK = np.zeros_like(weights_BK)
        np.put_along_axis(kept_BK, order_BK, sorted_BK, axis=1)
        return kept_BK


class CachedGPT:
    """A megatron-core GPTModel as ``NextLogits`` through its own modules: for any of its architectures.

    Works under tensor parallelism; every rank of the group makes the same calls and gets the same logits.

    After the first call megatron-core declares that nothing is hidden, which is right for one token and wrong for
    several: core attention that obeys, as Transformer Engine's does, lets a token see those behind it. Where it is not
    our own, which stays causal, later calls are read token by token.

    Args:
        model: GPTModel on one pipeline stage, in eval mode.
        batch_size: B of every call.
        max_tokens: the longest sequence that will be fed.
    """

    def __init__(self, model: torch.nn.Module, batch_size: int, max_tokens: int):
        self._model = model
        self._context = StaticInferenceContext(batch_size, max_tokens)
        layers = model.decoder.layers
        self._stays_causal = all(isinstance(layer.self_attention.core_attention, SDPACoreAttention) for layer in layers)

    @torch.inference_mode()
    def __call__(self, ids_BS: Tensor) -> Tensor:
        is_first = self._context.sequence_len_offset == 0
        portions = [ids_BS] if is_first or self._stays_causal else ids_BS.split(1, dim=1)
        return [self._read(portion_BS) for portion_BS in portions][-1]

    def _read(self, ids_BS: Tensor) -> Tensor:
        batch_size, length = ids_BS.shape
        offset = self._context.sequence_len_offset
        positions_BS = torch.arange(offset, offset + length, device=ids_BS.device).expand(batch_size, length)
        logits_BSV = self._model(
            ids_BS, positions_BS, None, inference_context=self._context, runtime_gather_output=True
        )
        self._context.increment_sequence_len_offset(length)
        return logits_BSV[:, -1]

    def keep(self, rows: list[int]) -> None:
        for layer, memory in self._context.key_value_memory_dict.items():
            self._context.key_value_memory_dict[layer] = tuple(tensor_SBGD[:, rows] for tensor_SBGD in memory)


class UncachedGPT:
    """The same answers by reading all ids anew at every call: slow and simple, what ``CachedGPT`` is tested against."""

    def __init__(self, model: torch.nn.Module, *_):
        self._model = model
        self._ids_BS: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, ids_BS: Tensor) -> Tensor:
        self._ids_BS = ids_BS if self._ids_BS is None else torch.cat([self._ids_BS, ids_BS], dim=1)
        positions_BS = torch.arange(self._ids_BS.shape[1], device=ids_BS.device).expand(self._ids_BS.shape)
        logits_BSV = self._model(self._ids_BS, positions_BS, None, runtime_gather_output=True)
        return logits_BSV[:, -1]

    def keep(self, rows: list[int]) -> None:
        self._ids_BS = self._ids_BS[rows]


class Draft:
    """A piece in the making: its grammar, what is written, and the random numbers that decide the rest.

    Args:
        grammar: at its start.
        seed: of the random numbers: the k-th free choice of a piece takes the k-th of them, whatever other pieces do.
    """

    def __init__(self, grammar: Walk, seed: int):
        self.grammar = grammar
        self.ids: list[int] = []
        self.allowed = grammar.allowed()  # mask of the ids that may come next (bool, [V])
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._uniforms: list[float] = []

    def uniform(self) -> float:
        """The next random number, in [0, 1)."""
        if not self._uniforms:
            self._uniforms = self._generator.random(_BLOCK)[::-1].tolist()
        return self._uniforms.pop()

    def forced(self) -> int | None:
        """The next id where there is no choice, else None."""
        first = int(self.allowed.argmax())
        return None if self.allowed[first + 1 :].any() else first

    def append(self, token_id: int) -> None:
        if not self.grammar.ended:
            self.grammar.advance(token_id)
            self.ids.append(token_id)
            self.allowed = self.grammar.allowed()


def write_drafts(
    drafts: Sequence[Draft], next_logits: NextLogits, sampler: Sampler, device: torch.device | str = "cpu"
) -> Iterator[int]:
    """Write all drafts to their ends, one token each a step.

    The batch shrinks as drafts end. The draws of a draft depend on its seed alone; its logits are the same numbers in
    any batch up to rounding (matrix products of other sizes add in another order), which changes a piece only where a
    draw falls on the very edge between two tokens.

    Args:
        next_logits: of as many rows as there are drafts.

    Yields:
        How many tokens each unfinished draft has, for a progress bar.
    """
    ids_BS = _common_opening(drafts)
    rows = list(drafts)  # what the model's rows are; ended drafts among them read PAD
    while any(not draft.grammar.ended for draft in rows):
        logits_BV = next_logits(torch.tensor(ids_BS, device=device))
        ids = [draft.forced() for draft in rows]
        free = [row for row, token_id in enumerate(ids) if token_id is None]
        if free:
            allowed_BV = np.stack([rows[row].allowed for row in free])
            logits_BV = logits_BV[:, : allowed_BV.shape[1]].float().cpu().numpy()
            uniforms_B = np.array([rows[row].uniform() for row in free])
            for row, token_id in zip(free, sampler.draw(logits_BV[free], allowed_BV, uniforms_B), strict=True):
                ids[row] = token_id
        for draft, token_id in zip(rows, ids, strict=True):
            draft.append(token_id)
        yield max(len(draft.ids) for draft in rows)
        unfinished = [row for row, draft in enumerate(rows) if not draft.grammar.ended]
        # To copy what the model remembers of the others costs about what a step does.
        if unfinished and len(unfinished) <= _SHRINK * len(rows):
            next_logits.keep(unfinished)
            rows, ids = [rows[row] for row in unfinished], [ids[row] for row in unfinished]
        ids_BS = [[token_id] for token_id in ids]


def _common_opening(drafts: Sequence[Draft]) -> list[list[int]]:
    """Forced ids at the start of all drafts, as far as they are equally many: read in one call."""
    while all(draft.forced() is not None and not draft.grammar.ended for draft in drafts):
        for draft in drafts:
            draft.append(draft.forced())
    return [list(draft.ids) for draft in drafts]
