"""The tokens of one dataset as text and back: the vocabulary's words, the names of its labels, and merged tokens."""

import os

import numpy as np

from megatron_music.tokens import vocabulary
from megatron_music.tokens.bpe import Bpe, read_bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import read_encoding


class Wording:
    """Words and ids of an encoding: ``GENRE=JAZZ``, and ``NOTE_ON=60+TIME_DELTA=4`` for a merged token.

    Args:
        encoding: knows the names of labels.
        bpe: knows the merged tokens; None where there are none, or where only base ids come.

    Attributes:
        words: by id.
        ids: by word.
    """

    def __init__(self, encoding: Encoding, bpe: Bpe | None = None):
        self.words = (*encoding.tokens, *(bpe.words if bpe else ()))
        self.ids = {word: token_id for token_id, word in enumerate(self.words)}

    def to_text(self, token_ids) -> str:
        """Tokens of ``token_ids``, separated by one space.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        return vocabulary.to_text(token_ids, self.words)

    def to_ids(self, text: str) -> np.ndarray:
        """Token ids (uint16) of whitespace-separated tokens.

        Raises:
            ValueError: a word is no token; the sentence names it and its place.
        """
        return vocabulary.to_ids(text, self.ids)


def read_wording(folder: str | os.PathLike) -> tuple[Encoding, Bpe | None, Wording]:
    """The encoding of a tokenizer folder, its merges if it has any, and the words of both.

    Raises:
        ValueError: a file is missing, damaged or of another vocabulary.
    """
    encoding = read_encoding(folder)
    bpe = read_bpe(folder) if encoding.bpe else None
    if bpe and bpe.size != encoding.bpe:
        raise ValueError(
            f"{folder} has {bpe.size} merged tokens where its encoding says {encoding.bpe}; build the dataset again"
        )
    return encoding, bpe, Wording(encoding, bpe)
