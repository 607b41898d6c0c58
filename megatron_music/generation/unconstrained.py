"""Documents sampled without the grammar, and whether the grammar accepts them: how well a model has learned the
rules.
"""

from collections.abc import Sequence

import numpy as np
import torch

from megatron_music.generation.sampling import Draft, NextLogits, Sampler, write_drafts
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.constraints import Choices, Walk, only
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.grammar import Grammar

# Far from the end of its tokens a grammar forbids nothing for the sake of ending in time.
_ROOM = 1 << 20


class Unruled(Walk):
    """Any ids after PIECE_START, up to DOCUMENT_END or as many as there may be."""

    def _document(self) -> Choices:
        yield only(v.PIECE_START)
        everything = np.ones(v.SIZE, bool)
        while self._left():
            if (yield everything) == v.DOCUMENT_END:
                return


def write_unruled(
    seeds: Sequence[int],
    next_logits: NextLogits,
    max_tokens: int,
    sampler: Sampler = Sampler(),  # noqa: B008 (frozen)
    device: torch.device | str = "cpu",
) -> list[list[int]]:
    """One document a seed, each id drawn from the model's own distribution over the whole vocabulary."""
    drafts = [Draft(Unruled(max_tokens), seed) for seed in seeds]
    for _ in write_drafts(drafts, next_logits, sampler, device):
        pass
    return [draft.ids for draft in drafts]


def is_grammatical(ids: Sequence[int], encoding: Encoding) -> bool:
    """Whether the grammar accepts the ids from PIECE_START to DOCUMENT_END; an end that is missing is a fault.

    Documents with bars taken out (FILL_IN) have a grammar of their own and count as not accepted.
    """
    grammar = Grammar(encoding, len(ids) + _ROOM)
    try:
        for token_id in ids:
            if grammar.ended:
                return False
            grammar.advance(int(token_id))
    except ValueError:
        return False
    return grammar.ended


def grammatical_share(documents: Sequence[Sequence[int]], encoding: Encoding) -> float:
    """The share of the documents that are grammatical, in [0, 1]."""
    return sum(is_grammatical(ids, encoding) for ids in documents) / len(documents)
