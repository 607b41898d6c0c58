"""The tokenizer folder written beside every dataset and checkpoint.

It holds ``mmmtrack.json`` (the encoding: what a reader needs to turn ids back into music) and the files with which
``transformers.AutoTokenizer`` loads the same vocabulary with identical ids.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from megatron_music.storage.reading import read_json
from megatron_music.tokens import vocabulary
from megatron_music.tokens.bpe import Bpe
from megatron_music.tokens.encoding import Encoding

ENCODING_FILE = "mmmtrack.json"


def write_tokenizer_folder(folder: str | os.PathLike, encoding: Encoding, bpe: Bpe | None = None) -> None:
    """Write the folder; ``AutoTokenizer.from_pretrained(folder)`` then gives the same ids.

    It reads tokens as they stand, merged ones too (``NOTE_ON=60+TIME_DELTA=4``), and merges nothing itself. A word that
    is no token reads as PAD there, while ``MusicTokenizer`` refuses it.
    """
    assert encoding.bpe == (bpe.size if bpe else 0)
    folder = Path(folder)
    words = (*encoding.tokens, *(bpe.words if bpe else ()))
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
                "single_word": True,
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
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            # Megatron's HuggingFaceTokenizer tries an unknown word on every tokenizer, and no answer is an error to it.
            "unk_token": "PAD",
        },
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
    if bpe:
        bpe.write(folder)


def read_encoding(folder: str | os.PathLike) -> Encoding:
    """The encoding of a tokenizer folder.

    Raises:
        ValueError: there is none, it is damaged, or it belongs to another vocabulary.
    """
    path = Path(folder) / ENCODING_FILE
    try:
        return encoding_of_json(read_json(path))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; name a folder made by `megatron-music build tokens`") from None
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); build the dataset again") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def encoding_of_json(values: Mapping) -> Encoding:
    """The encoding that ``asdict`` and JSON made of one.

    Raises:
        TypeError, AttributeError: a field is missing or of another type.
        ValueError: it is of another vocabulary, or cannot be.
    """
    fields = {**values}
    # Version 0.1.0 wrote these alone, and the number of levels followed from the bins.
    missing = {"steps_per_quarter", "bars", "hop", "bar_line", "density_bins", "vocabulary_hash"} - fields.keys()
    for name in ("meters", "unknown_meters", "density_bins", "bar_density_bins"):
        fields[name] = tuple(fields.get(name, getattr(Encoding, name)))
    fields["labels"] = tuple((label, tuple(names)) for label, names in fields.get("labels", ()))
    fields.setdefault("pedal", "ignore")  # as older versions read
    fields.setdefault("density", len(fields["density_bins"]) + 1 if fields["density_bins"] else 0)
    wrong = [name for name, value in fields.items() if type(value) is not type(getattr(Encoding, name, None))]
    for kind, names in ((str, ("meters", "unknown_meters")), (int, ("density_bins", "bar_density_bins"))):
        wrong += [name for name in names if any(type(part) is not kind for part in fields[name])]
    if any(type(part) is not str for label, names in fields["labels"] for part in (label, *names)):
        wrong.append("labels")
    if missing or wrong:
        raise TypeError(f"look at {', '.join(sorted((*missing, *wrong)))}")
    return Encoding(**fields)
