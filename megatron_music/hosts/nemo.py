"""Our tokenizer and our flow as NeMo's toolkit knows such things.

NeMo 3 trains no language model: train with Megatron-Bridge or our own loop. This is for code of NeMo that takes a
``TokenizerSpec`` or a velocity.
"""

import os
from collections import OrderedDict
from collections.abc import Callable

from nemo.collections.common.tokenizers.tokenizer_spec import TokenizerSpec
from torch import Tensor

from megatron_music.tokens.tokenizer import MusicTokenizer


class MusicTokenizerSpec(TokenizerSpec):
    """``MusicTokenizer`` under NeMo's names. Text is tokens with spaces between: ``PIECE_START TRACK_START ...``.

    Args:
        tokenizer_dir: a tokenizer folder (``OUT/tokenizer``), or None for the bare vocabulary.
    """

    def __init__(self, tokenizer_dir: str | os.PathLike | None = None):
        self.tokenizer = MusicTokenizer(None if tokenizer_dir is None else str(tokenizer_dir))

    def text_to_tokens(self, text: str) -> list[str]:
        return self.ids_to_tokens(self.text_to_ids(text))

    def tokens_to_text(self, tokens: list[str]) -> str:
        return self.ids_to_text(self.tokens_to_ids(tokens))

    def tokens_to_ids(self, tokens: list[str]) -> list[int]:
        """One id a token.

        Raises:
            ValueError: a token that is none of the vocabulary.
        """
        known = self.tokenizer.vocab
        unknown = [token for token in tokens if token not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no token of the vocabulary; docs/vocabulary.md lists them")
        return [known[token] for token in tokens]

    def ids_to_tokens(self, ids: list[int]) -> list[str]:
        return self.tokenizer.ids_to_tokens(ids)

    def text_to_ids(self, text: str) -> list[int]:
        return self.tokenizer.tokenize(text)

    def ids_to_text(self, ids: list[int]) -> str:
        return self.tokenizer.detokenize(ids)

    @property
    def vocab(self) -> list[str]:
        return list(self.tokenizer.inv_vocab.values())

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def bos_id(self) -> int:
        return self.tokenizer.bos

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eod

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad

    @property
    def unique_identifiers(self) -> OrderedDict:
        """As of the tokenizer beneath: an index cache of megatron-core's datasets serves both."""
        return self.tokenizer.unique_identifiers


def as_nemo_vector_field(velocity: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A velocity of ours as the estimator of NeMo's flow samplers.

    Ours points from data to noise, and sigma counts from data (0) to noise (1). NeMo's points from noise to data, and
    its
    time counts that way: sigma = 1 - time, and the velocity changes its sign.

    Args:
        velocity: ``(noisy_BCT, sigma_B) -> noise - data``, the same shape as the first.

    Returns:
        A callable for ``ConditionalFlowMatchingEulerSampler(estimator=...)``, without further conditions.
    """

    def estimator(input: Tensor, condition: Tensor, input_length: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return -velocity(input, 1 - condition), input_length

    return estimator
