"""Sampling token ids from a GPT under the grammar, many pieces at a time, with a KV cache.

Given a model that turns ids into logits; knows nothing about checkpoints, datasets or files.

Shapes: B pieces, S tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.walk import Walk

# New ids [B, S] in, logits of the token after them [B, V] out; the callable remembers the ids before.
NextLogits = Callable[[Tensor], Tensor]


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

    def draw(self, logits_BV: Tensor, allowed_BV: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """One id a row, each from its own generator; ids that are not allowed are never drawn."""
        logits_BV = logits_BV.float().masked_fill(~allowed_BV, float("-inf"))
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1).tolist()
        probabilities_BV, ids_BV = torch.softmax(logits_BV / self.temperature, dim=-1).sort(dim=-1, descending=True)
        if self.top_k:
            probabilities_BV[:, self.top_k :] = 0
        below_B1V = probabilities_BV.cumsum(dim=-1) - probabilities_BV
        probabilities_BV[below_B1V >= self.top_p] = 0
        cumulative_BV = probabilities_BV.cumsum(dim=-1)
        uniform_B1 = torch.stack([torch.rand(1, generator=generator) for generator in generators])
        threshold_B1 = uniform_B1.to(cumulative_BV.device) * cumulative_BV[:, -1:]
        places_B1 = torch.searchsorted(cumulative_BV, threshold_B1, right=True)
        # A draw of exactly the whole sum would fall behind the last possible token.
        places_B1 = places_B1.minimum((probabilities_BV > 0).sum(dim=-1, keepdim=True) - 1)
        return ids_BV.gather(1, places_B1)[:, 0].tolist()


class CachedGPT:
    """A megatron-core GPTModel as ``NextLogits``: attends to earlier ids through a KV cache.

    Works under tensor parallelism; every rank of the group makes the same calls and gets the same logits.

    Args:
        model: GPTModel on one pipeline stage, in eval mode.
        batch_size: B of every call.
        max_tokens: the longest sequence that will be fed.
    """

    def __init__(self, model: torch.nn.Module, batch_size: int, max_tokens: int):
        self._model = model
        self._context = StaticInferenceContext(batch_size, max_tokens)

    @torch.inference_mode()
    def __call__(self, ids_BS: Tensor) -> Tensor:
        batch_size, length = ids_BS.shape
        offset = self._context.sequence_len_offset
        positions_BS = torch.arange(offset, offset + length, device=ids_BS.device).expand(batch_size, length)
        logits_BSV = self._model(
            ids_BS, positions_BS, None, inference_context=self._context, runtime_gather_output=True
        )
        self._context.increment_sequence_len_offset(length)
        return logits_BSV[:, -1, : v.SIZE]


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
        return logits_BSV[:, -1, : v.SIZE]


class Draft:
    """A piece in the making: its grammar, what is written, and the generator that draws the rest."""

    def __init__(self, grammar: Walk, generator: torch.Generator):
        self.grammar = grammar
        self.generator = generator
        self.ids: list[int] = []
        self.allowed = grammar.allowed()  # mask of the ids that may come next (bool, [V])

    def forced(self) -> int | None:
        """The next id where there is no choice, else None."""
        choices = np.flatnonzero(self.allowed)
        return int(choices[0]) if len(choices) == 1 else None

    def append(self, token_id: int) -> None:
        if not self.grammar.ended:
            self.grammar.advance(token_id)
            self.ids.append(token_id)
            self.allowed = self.grammar.allowed()


def write_drafts(
    drafts: Sequence[Draft], next_logits: NextLogits, sampler: Sampler, device: torch.device | str = "cpu"
) -> Iterator[int]:
    """Write all drafts to their ends, one token each a step; a finished one waits for the others.

    Yields:
        How many tokens each unfinished draft has, for a progress bar.
    """
    ids_BS = _common_opening(drafts)
    while not all(draft.grammar.ended for draft in drafts):
        logits_BV = next_logits(torch.tensor(ids_BS, device=device))
        ids = [draft.forced() for draft in drafts]
        free = [row for row, token_id in enumerate(ids) if token_id is None]
        if free:
            allowed_BV = torch.from_numpy(np.stack([drafts[row].allowed for row in free])).to(device)
            drawn = sampler.draw(logits_BV[free], allowed_BV, [drafts[row].generator for row in free])
            for row, token_id in zip(free, drawn, strict=True):
                ids[row] = token_id
        for draft, token_id in zip(drafts, ids, strict=True):
            draft.append(token_id)
        ids_BS = [[token_id] for token_id in ids]
        yield max(len(draft.ids) for draft in drafts)


def _common_opening(drafts: Sequence[Draft]) -> list[list[int]]:
    """Forced ids at the start of all drafts, as far as they are equally many: read in one call."""
    while all(draft.forced() is not None and not draft.grammar.ended for draft in drafts):
        for draft in drafts:
            draft.append(draft.forced())
    return [list(draft.ids) for draft in drafts]
