"""The tokenizer folder written beside every dataset and checkpoint.

It holds ``mmmtrack.json`` (the encoding: what a reader needs to turn ids back into music) and the files with
which ``transformers.AutoTokenizer`` loads the same vocabulary with identical ids. Knows nothing about megatron-core.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_music.tokens import vocabulary

ENCODING_FILE = "mmmtrack.json"
BAR_LINES = ("carry", "clip", "split")


@dataclass(frozen=True)
class Encoding:
    """How scores were turned into ids: the facts a reader cannot guess from the ids."""

    steps_per_quarter: int = 4
    bars: int = 4  # bars in a window; 0 is the whole piece
    hop: int = 1  # bars from one window to the next
    bar_line: str = "carry"  # what happens to a note that crosses a bar line
    density_bins: tuple[int, ...] = ()  # note counts that separate DENSITY=0, 1, ...; empty: no DENSITY token
    vocabulary_name: str = vocabulary.NAME
    vocabulary_hash: str = vocabulary.HASH

    def __post_init__(self):
        if self.steps_per_quarter not in (4, 12):
            raise ValueError(f"steps_per_quarter is {self.steps_per_quarter}; use 4 or 12")
        if self.bars < 0 or self.hop < 1:
            raise ValueError(f"bars is {self.bars} and hop {self.hop}; use bars >= 0 (0: whole piece) and hop >= 1")
        if self.bar_line not in BAR_LINES:
            raise ValueError(f"bar_line is {self.bar_line!r}; use one of {', '.join(BAR_LINES)}")
        if len(self.density_bins) >= vocabulary.NUM_DENSITIES or list(self.density_bins) != sorted(self.density_bins):
            raise ValueError(f"density_bins is {self.density_bins}; give at most 9 rising note counts")
        if self.vocabulary_hash != vocabulary.HASH:
            raise ValueError(
                f"made with the vocabulary {self.vocabulary_name} ({self.vocabulary_hash[:12]}), while this version reads "
                f"{vocabulary.NAME} ({vocabulary.HASH[:12]}); build the dataset again or install the version that made it"
            )

    @property
    def steps_per_bar(self) -> int:
        return 4 * self.steps_per_quarter


def write_tokenizer_folder(folder: str | os.PathLike, encoding: Encoding) -> None:
    """Write the folder; ``AutoTokenizer.from_pretrained(folder)`` then gives the same ids."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = {
        "pad_token": "PAD",
        "bos_token": "PIECE_START",
        "eos_token": "DOCUMENT_END",
        "unk_token": None,
    }
    word_level = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocabulary.IDS[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in ("PAD", "PIECE_START", "DOCUMENT_END")
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary.IDS, "unk_token": "<none>"}  # not in it: an unknown word is an error,
    }
    loader = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**9,
        **special,
    }
    for name, content in (
        (ENCODING_FILE, asdict(encoding)),
        ("tokenizer.json", word_level),
        ("tokenizer_config.json", loader),
        ("special_tokens_map.json", {key: value for key, value in special.items() if value}),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_encoding(folder: str | os.PathLike) -> Encoding:
    """The encoding of a tokenizer folder.

    Raises:
        ValueError: there is none, it is damaged, or it belongs to another vocabulary.
    """
    path = Path(folder) / ENCODING_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["density_bins"] = tuple(fields["density_bins"])
        return Encoding(**fields)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; name a folder made by `megatron-music build tokens`") from None
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the dataset again") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
