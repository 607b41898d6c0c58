"""The vocabulary as a Megatron tokenizer, for megatron-core's datasets and the hosts.

The one file of this folder that imports megatron-core (and with it torch); the command line never comes here
to tokenize a file.
"""

import json
from collections import OrderedDict

import numpy as np
from megatron.core.tokenizers.base_tokenizer import MegatronTokenizerBase

from megatron_music.tokens import vocabulary
from megatron_music.tokens.folder import Encoding, read_encoding


class MusicTokenizer(MegatronTokenizerBase):
    """``mmmtrack-1`` behind megatron-core's tokenizer interface.

    Args:
        path: a tokenizer folder (``OUT/tokenizer``), or None for the bare vocabulary.
        config: metadata of ``MegatronTokenizer.from_pretrained``; kept, not needed.
    """

    def __init__(self, path: str | None = None, config: dict | None = None, **kwargs):
        super().__init__(path=path, config=config or {})
        self.encoding = read_encoding(path) if path else Encoding()
        identity = OrderedDict(
            {"class": f"{type(self).__module__}.{type(self).__qualname__}", "vocabulary_hash": vocabulary.HASH}
        )
        # GPTDataset hashes these two for its index cache.
        self.unique_identifiers = identity
        self.unique_description = json.dumps(identity)

    def tokenize(self, text: str) -> list[int]:
        return vocabulary.to_ids(text).tolist()

    def detokenize(self, token_ids) -> str:
        return vocabulary.to_text(np.asarray(token_ids))

    def ids_to_tokens(self, token_ids) -> list[str]:
        return self.detokenize(token_ids).split()

    def apply_chat_template(self, *args, **kwargs):
        raise NotImplementedError("music has no chat template; use tokenize")

    @property
    def vocab(self) -> dict[str, int]:
        return dict(vocabulary.IDS)

    @property
    def inv_vocab(self) -> dict[int, str]:
        return dict(enumerate(vocabulary.TOKENS))

    @property
    def vocab_size(self) -> int:
        return vocabulary.SIZE

    @property
    def pad(self) -> int:
        return vocabulary.PAD

    @property
    def bos(self) -> int:
        return vocabulary.PIECE_START

    @property
    def eod(self) -> int:
        return vocabulary.DOCUMENT_END

    eos = eod
