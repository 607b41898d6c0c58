"""The vocabulary as a Megatron tokenizer, for megatron-core's datasets and the hosts.

The one file of this folder that imports megatron-core (and with it torch); the command line never comes here
to tokenize a file.
"""

import hashlib
import json
import sys
from collections import OrderedDict

import numpy as np
from megatron.core.tokenizers.base_tokenizer import MegatronTokenizerBase

from megatron_music.tokens import vocabulary
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.lexicon import Wording, read_wording


def tokenizer_metadata() -> dict:
    """Metadata under which every ``MegatronTokenizer.from_pretrained(folder, metadata)`` gives a ``MusicTokenizer``.

    megatron-core 0.16 to 0.19 read the first three names, with a module; Megatron-LM's main branch, which has the
    version number 0.20, reads the other two, with its name. Either takes a tokenizer of its own where it finds none of
    its names: ``library`` sees to it that this has the same ids.
    """
    return {
        "library": "huggingface",
        "tokenizer_class": True,
        "tokenizer_class_path": sys.modules[__name__],
        "tokenizer_class_name": MusicTokenizer.__name__,
        "class_path": __name__,
        "class_name": MusicTokenizer.__name__,
    }


class MusicTokenizer(MegatronTokenizerBase):
    """``mmmtrack-1`` behind megatron-core's tokenizer interface.

    Args:
        path: a tokenizer folder (``OUT/tokenizer``), or None for the bare vocabulary.
        config: metadata of ``MegatronTokenizer.from_pretrained``; kept, not needed.
    """

    def __init__(self, path: str | None = None, config: dict | None = None, **kwargs):
        super().__init__(path=path, config=config or {})
        self.encoding, self.bpe, self._wording = read_wording(path) if path else (Encoding(), None, Wording(Encoding()))
        identity = OrderedDict(
            {"class": f"{type(self).__module__}.{type(self).__qualname__}", "vocabulary_hash": vocabulary.HASH}
        )
        if self.bpe:
            identity["merges"] = hashlib.sha256(json.dumps(self.bpe.merges).encode()).hexdigest()
        # GPTDataset hashes these two for its index cache.
        self.unique_identifiers = identity
        self.unique_description = json.dumps(identity)

    def tokenize(self, text: str) -> list[int]:
        """Ids of tokens, merged as the dataset's are, whether the text's are or not."""
        ids = self._wording.to_ids(text)
        if self.bpe and len(ids):
            ids = self.bpe.decode(ids)
            ids, _ = self.bpe.encode(ids, np.array([len(ids)]))
        return ids.tolist()

    def detokenize(self, token_ids) -> str:
        """The tokens of the vocabulary that ids spell; merged ones are taken apart."""
        ids = np.asarray(token_ids)
        return self._wording.to_text(self.bpe.decode(ids) if self.bpe else ids)

    def ids_to_tokens(self, token_ids) -> list[str]:
        """The token of each id; a merged one reads ``NOTE_ON=60+TIME_DELTA=4``."""
        return self._wording.to_text(token_ids).split()

    def apply_chat_template(self, *args, **kwargs):
        raise NotImplementedError("music has no chat template; use tokenize")

    @property
    def vocab(self) -> dict[str, int]:
        return dict(self._wording.ids)

    @property
    def inv_vocab(self) -> dict[int, str]:
        return dict(enumerate(self._wording.words))

    @property
    def vocab_size(self) -> int:
        return self.encoding.vocab_size

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
