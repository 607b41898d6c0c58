"""Captions to states that models attend to: any encoder of Hugging Face, or a small one of words that needs no
download.

Every encoder has ``size`` (C), ``length`` (L, the most states of a text), ``name``, ``cut``, ``reads``, ``encode``,
``to`` and ``save``. The one owner of transformers in this column. Shapes: N texts, L states each, C numbers in a state.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from megatron_music.audio.words import RULE, Read
from megatron_music.audio.words import words_of as words_of
from megatron_music.storage.reading import (
    copy_regular,
    is_outward_link,
    read_json_object,
    regular,
)
from megatron_music.storage.writing import write_whole

CONFIG, WEIGHTS = "words.json", "words.safetensors"
HUB = "hub.json"  # of an encoder that is loaded by its name again
SIZE, LENGTH = 64, 32
MAX_LENGTH = 1 << 16  # of a text, in tokens
UNKNOWN, NOTHING = 0, 1  # rows before those of words: what is not known, and what an empty text has


class WordTextEncoder:
    """A vector for each word that is known, and one for its place.

    Args:
        words: those known.
        vectors_WC: of the unknown word, of an empty text, and of each word.
        places_LC: of first, second, ... word.
        rule: by which texts fall into words; see ``words_of``.
    """

    name = "words"

    def __init__(self, words: Sequence[str], vectors_WC: Tensor, places_LC: Tensor, rule: int = RULE):
        self.rule = rule
        self._numbers = {word: number for number, word in enumerate(words, start=NOTHING + 1)}
        self._vectors_WC, self._places_LC = vectors_WC, places_LC

    @property
    def size(self) -> int:
        return self._vectors_WC.shape[1]

    @property
    def length(self) -> int:
        return self._places_LC.shape[0]

    def cut(self, text: str) -> str:
        """The text, or as many of its words as are read."""
        words = words_of(text, self.rule)
        if len(words) <= self.length:
            return text
        return " ".join(words[: self.length])

    def reads(self, text: str) -> Read:
        """Which of the text's words are known, and which are not: those are all one to the encoder."""
        words = dict.fromkeys(words_of(text, self.rule))
        return Read(
            tuple(word for word in words if word in self._numbers),
            tuple(word for word in words if word not in self._numbers),
        )

    def to(self, device: torch.device | str) -> "WordTextEncoder":
        """This encoder with its vectors on a device, where its states are then made."""
        self._vectors_WC, self._places_LC = self._vectors_WC.to(device), self._places_LC.to(device)
        return self

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States [N, L, C] in float32, zero behind the words, and which are words [N, L].

        Raises:
            ValueError: a text has more words than are read; ``cut`` shortens it.
        """
        numbers_NL = torch.full((len(texts), self.length), -1)
        for row, text in zip(numbers_NL, texts, strict=True):
            row_numbers = self.numbers(text)
            if len(row_numbers) > self.length:
                raise ValueError(
                    f"the text {text[:40]!r}... has {len(row_numbers):,} words, where this encoder reads "
                    f"{self.length}; shorten it"
                )
            row[: len(row_numbers)] = torch.tensor(row_numbers)
        numbers_NL = numbers_NL.to(self._vectors_WC.device)
        keeps_NL = numbers_NL >= 0
        states_NLC = self._vectors_WC[numbers_NL.clamp_min(0)] + self._places_LC
        return states_NLC * keeps_NL[..., None], keeps_NL

    def numbers(self, text: str) -> list[int]:
        """Rows of the text's words; an empty text has one."""
        return [self._numbers.get(word, UNKNOWN) for word in words_of(text, self.rule)] or [NOTHING]

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"vectors": self._vectors_WC, "places": self._places_LC}
        write_whole(folder / WEIGHTS, save({name: value.cpu().contiguous() for name, value in tensors.items()}))
        write_whole(folder / CONFIG, (json.dumps({"format": self.rule, "words": list(self._numbers)}) + "\n").encode())


def fit_words(
    texts: Sequence[str],
    embeddings_NE: np.ndarray,
    *,
    size: int = SIZE,
    length: int = LENGTH,
    steps: int = 300,
    seed: int = 0,
) -> WordTextEncoder:
    """Word vectors of which a linear map of their mean tells the embedding of the music that the text is true of.

    Words that mean the same to music come to lie together; each keeps a part of its random beginning, and stays apart.

    Args:
        texts: captions.
        embeddings_NE: of what they are captions of.
        steps: of Adam over all texts at once.

    Raises:
        ValueError: there are none.
    """
    if not len(texts):
        raise ValueError("an encoder of words needs captions to learn from; give some")
    counts = Counter(word for text in texts for word in words_of(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    random = torch.Generator().manual_seed(seed)
    vectors_WC = torch.randn(len(words) + NOTHING + 1, size, generator=random).requires_grad_()
    places_LC = 0.3 * torch.randn(length, size, generator=random)
    encoder = WordTextEncoder(words, vectors_WC, places_LC)
    rows = [encoder.numbers(text)[:length] for text in texts]
    flat, offsets = (
        torch.tensor([n for row in rows for n in row]),
        torch.tensor([0, *np.cumsum([len(row) for row in rows])[:-1]]),
    )
    target_NE = torch.from_numpy(np.asarray(embeddings_NE, np.float32))
    map_CE = (0.01 * torch.randn(size, target_NE.shape[1], generator=random)).requires_grad_()
    optimizer = torch.optim.Adam([vectors_WC, map_CE], lr=0.03)
    for _ in range(steps):
        mean_NC = torch.nn.functional.embedding_bag(flat, vectors_WC, offsets, mode="mean")
        loss = (mean_NC @ map_CE - target_NE).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vectors_WC = vectors_WC.detach()
    return WordTextEncoder(words, vectors_WC / vectors_WC.std(), places_LC)


class HuggingFaceTextEncoder:
    """Any encoder that transformers loads (T5, XLM-R, BERT), from a local folder or by its name on the hub.

    No code that lies beside the weights is run, and the weights are safetensors.

    Args:
        where: folder or name.
        length: the most tokens of a text; longer ones are cut, as the published models cut theirs.
        revision: of an encoder on the hub, a commit; None is the newest.
        is_local: True takes an encoder of the hub from the local cache alone and asks the hub nothing.

    Raises:
        ValueError: transformers finds nothing there; one sentence.
    """

    def __init__(self, where: str, length: int = 128, *, revision: str | None = None, is_local: bool = False):
        from transformers import (
            MODEL_FOR_TEXT_ENCODING_MAPPING,
            AutoConfig,
            AutoModel,
            AutoModelForTextEncoding,
            AutoTokenizer,
        )

        self.where, self.length, self.name = str(where), length, f"Hugging Face {Path(where).name}"
        self._follows_links = not is_local  # in a folder that the user named, such as one of the hub's cache
        options = {"trust_remote_code": False, "revision": revision or "main", "local_files_only": is_local}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where, **options)
            config = AutoConfig.from_pretrained(where, **options)
            if Path(where).is_dir():
                _check_held(config.to_dict(), Path(where))
            is_known = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
            kind = AutoModelForTextEncoding if is_known else AutoModel  # of T5 the encoder alone
            self._model = (
                kind.from_pretrained(where, use_safetensors=True, **options).float().eval().requires_grad_(False)
            )
            self.revision = revision or getattr(config, "_commit_hash", None)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:160]
            raise ValueError(
                f"{where} holds no text encoder that transformers can load ({reason}); name a folder or a model"
            ) from None
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token or self._tokenizer.unk_token
        self._tokenizer.padding_side = "right"
        # Unknown words, and what SentencePiece puts before any word.
        self._nothing = {self._tokenizer.unk_token_id, *self._tokenizer.convert_tokens_to_ids(["\u2581", " "])}

    @property
    def size(self) -> int:
        return self._model.config.hidden_size

    def cut(self, text: str) -> str:
        """The text: what is too long is cut in tokens when it is encoded."""
        return text

    def reads(self, text: str) -> Read:
        """Which of the text's words its tokenizer has tokens for, and which are nothing but unknown tokens to it."""
        words = tuple(dict.fromkeys(text.split()))
        if not words:
            return Read((), ())
        rows = self._tokenizer(list(words), add_special_tokens=False)["input_ids"]
        known = [bool(set(row) - self._nothing) for row in rows]
        return Read(
            *(
                tuple(word for word, is_known in zip(words, known, strict=True) if is_known is wanted)
                for wanted in (True, False)
            )
        )

    def to(self, device: torch.device | str) -> "HuggingFaceTextEncoder":
        """See WordTextEncoder."""
        self._model = self._model.to(device)
        return self

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See WordTextEncoder."""
        found = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        found = {name: value.to(self._model.device) for name, value in found.items()}
        keeps_NL = found["attention_mask"].bool()
        keeps_NL[:, 0] = True  # an encoder without marks has none for an empty text, and attention needs something
        states_NLC = self._model(input_ids=found["input_ids"], attention_mask=keeps_NL.long()).last_hidden_state
        return states_NLC.float() * keeps_NL[..., None], keeps_NL

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder: a local encoder whole, one of the hub by its name."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if Path(self.where).is_dir():
            found = {"name": ".", "length": self.length}
            for path in sorted(Path(self.where).iterdir()):
                is_wanted = path.is_file() and (self._follows_links or not path.is_symlink()) and path.name != HUB
                if is_wanted:
                    if is_outward_link(path):
                        raise ValueError(f"{path} is a link that leads out of its folder; copy the file in its place")
                    (folder / path.name).unlink(missing_ok=True)
                    copy_regular(path, folder / path.name, follow_links=self._follows_links)
        else:
            found = {"name": self.where, "length": self.length, "revision": self.revision, "sha256": self.fingerprint()}
        write_whole(folder / HUB, (json.dumps(found) + "\n").encode())

    def fingerprint(self) -> str:
        """SHA-256 of the weights and the vocabulary, by which an encoder of the hub is known again."""
        hasher = hashlib.sha256(json.dumps(sorted(self._tokenizer.get_vocab().items())).encode())
        for name, value in sorted(self._model.state_dict().items()):
            hasher.update(f"{name} {list(value.shape)}\n".encode())
            hasher.update(np.ascontiguousarray(value.cpu().numpy()))
        return hasher.hexdigest()


TextEncoder = WordTextEncoder | HuggingFaceTextEncoder


# In the configurations of transformers.
_NAMES_OF_LAYERS = ("num_layers", "num_hidden_layers", "num_decoder_layers", "n_layer", "n_layers", "encoder_layers")
_NAMES_OF_WIDTH = ("d_model", "hidden_size", "n_embd", "dim")


def _check_held(config: dict, folder: Path) -> None:
    """Refuse a configuration that the weights beside it are too small for, before the model is built.

    Raises:
        ValueError: each layer has at least two bytes for each number of its width.
    """
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    layers, width = (
        max((value for name, value in config.items() if name in names and isinstance(value, int)), default=1)
        for names in (_NAMES_OF_LAYERS, _NAMES_OF_WIDTH)
    )
    if 2 * layers * width > held:
        raise ValueError(
            f"its config.json asks for {layers:,} layers of {width:,}, and its safetensors have {held:,} bytes"
        )


def load_text_encoder(where: str | os.PathLike) -> TextEncoder:
    """The encoder of a folder that ``save`` wrote, or of transformers, by folder or name.

    Raises:
        ValueError: there is none; one sentence.
    """
    folder = Path(where)
    if (folder / CONFIG).exists():
        try:
            config = read_json_object(folder / CONFIG, follow_links=False)
            words, rule = config["words"], config["format"]
            if rule not in range(1, RULE + 1):
                raise ValueError(f"its format is {rule!r}, where this version reads 1 to {RULE}")
            tensors = load_file(regular(folder / WEIGHTS))
            if tensors["places"].ndim != 2 or tensors["vectors"].shape[1:] != tensors["places"].shape[1:]:
                raise ValueError("its tensors have other shapes")
            if len(tensors["vectors"]) != len(words) + NOTHING + 1:
                raise ValueError(f"{len(tensors['vectors'])} vectors for {len(words)} words")
            return WordTextEncoder(words, tensors["vectors"], tensors["places"], rule)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no whole encoder of words ({error}); copy it again") from None
    if (folder / HUB).exists():
        return _kept_encoder(folder)
    return HuggingFaceTextEncoder(os.fspath(where))


def _kept_encoder(folder: Path) -> HuggingFaceTextEncoder:
    """The encoder that ``HuggingFaceTextEncoder.save`` wrote; one of the hub comes from the local cache, and is
    compared.
    """
    try:
        hub = read_json_object(folder / HUB, follow_links=False)
        name, length, revision, digest = hub["name"], hub["length"], hub.get("revision"), hub.get("sha256")
        if not (isinstance(name, str) and 0 < len(name) <= 200 and type(length) is int and 0 < length <= MAX_LENGTH):
            raise ValueError(f"its name is {name!r} and its length {length!r}")
        if not all(value is None or isinstance(value, str) for value in (revision, digest)):
            raise ValueError("its revision and sha256 are not text")
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / HUB} names no text encoder ({error}); copy the folder again") from None
    if name == ".":
        return HuggingFaceTextEncoder(os.fspath(folder), length, is_local=True)
    if Path(name).exists() or name.startswith((".", "/", "~")):
        raise ValueError(f"{folder / HUB} names {name!r}, which is a path; it may name an encoder of the hub alone")
    try:
        encoder = HuggingFaceTextEncoder(name, length, revision=revision, is_local=True)
    except ValueError as error:
        wanted = f"{name} --revision {revision}" if revision else name
        raise ValueError(
            f"{folder / HUB} names an encoder that is not in the local cache ({error}); loading never downloads one: "
            f"`hf download {wanted}` brings it into the cache"
        ) from None
    if digest is not None and encoder.fingerprint() != digest:
        raise ValueError(
            f"{name} in the local cache has other weights than {folder} was made with; remove it from the cache and "
            f"download it again"
        )
    return encoder
