import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import transformers
from megatron.core.tokenizers import MegatronTokenizer
from megatron.core.tokenizers.base_tokenizer import MegatronTokenizerBase
from merged_tokens import BPE, MERGED
from tiny import tiny_score

from megatron_music.tokens import vocabulary
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.bpe import Bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.lexicon import read_wording
from megatron_music.tokens.mmmtrack import encode_piece
from megatron_music.tokens.tokenizer import MusicTokenizer, tokenizer_metadata
from megatron_music.tokens.tokenizer_folder import (
    ENCODING_FILE,
    read_encoding,
    write_tokenizer_folder,
)

ENCODING = Encoding(steps_per_quarter=12, bars=8, hop=2, bar_line="clip", density=3, density_bins=(2, 7))


@pytest.fixture
def folder(tmp_path):
    write_tokenizer_folder(tmp_path / "tokenizer", ENCODING)
    return tmp_path / "tokenizer"


def test_megatron_sees_a_tokenizer(folder):
    ours = MusicTokenizer(str(folder))
    ids = encode_piece(tiny_score()).tolist()
    assert isinstance(ours, MegatronTokenizerBase)
    assert ours.tokenize(ours.detokenize(ids)) == ids
    assert (ours.vocab_size, ours.eod, ours.pad, ours.bos) == (768, 767, 0, 1)
    assert ours.inv_vocab[ours.vocab["NOTE_ON=60"]] == "NOTE_ON=60"
    assert ours.encoding == ENCODING
    assert vocabulary.HASH in json.dumps(ours.unique_identifiers)


def test_megatrons_own_loader_finds_it(folder):
    loaded = MegatronTokenizer.from_pretrained(str(folder), tokenizer_metadata())
    assert type(loaded) is MusicTokenizer and loaded.encoding == ENCODING


@pytest.mark.parametrize("names", [("tokenizer_class_path", "tokenizer_class_name"), ("class_path", "class_name")])
def test_metadata_name_our_class_for_old_and_new_megatron(names):
    """The newer names are those of Megatron-LM's main branch, which takes another tokenizer in silence without them."""
    path, name = (tokenizer_metadata()[key] for key in names)
    module = importlib.import_module(path) if isinstance(path, str) else path
    assert getattr(module, name) is MusicTokenizer


def test_where_the_names_are_not_read_the_tokenizer_has_our_ids(folder):
    loaded = MegatronTokenizer.from_pretrained(str(folder), {"library": tokenizer_metadata()["library"]})
    assert not isinstance(loaded, MusicTokenizer)
    assert (loaded.vocab_size, loaded.eod, loaded.pad) == (768, 767, 0)


def test_autotokenizer_loads_the_folder_with_identical_ids(folder):
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded.get_vocab() == vocabulary.IDS
    text = vocabulary.to_text([*range(vocabulary.SIZE)])
    assert loaded(text)["input_ids"] == list(range(vocabulary.SIZE))
    assert loaded.decode([1, 3, 142, 5, 262]) == "PIECE_START TRACK_START INST=BASS BAR_START NOTE_ON=61"
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (0, 767, 1)


def test_megatrons_tokenizers_find_the_document_end_and_the_padding(folder):
    from megatron.core.tokenizers import MegatronTokenizer

    loaded = MegatronTokenizer.from_pretrained(str(folder), {"library": "huggingface"})
    assert (loaded.vocab_size, loaded.eod, loaded.pad) == (768, 767, 0)


def test_numbers_alone_end_a_document_with_our_last_id():
    """Megatron's NullTokenizer: core 0.16 adds the document end to the size it is given, 0.19 does not."""
    from megatron.core import __version__
    from megatron.core.tokenizers import MegatronTokenizer

    library, size = ("null", v.DOCUMENT_END) if __version__.startswith("0.16") else ("null-text", v.SIZE)
    loaded = MegatronTokenizer.from_pretrained(metadata_path={"library": library}, vocab_size=size)
    assert (loaded.vocab_size, loaded.eod) == (768, 767)


@pytest.fixture
def merged_folder(tmp_path):
    write_tokenizer_folder(tmp_path / "merged", MERGED, BPE)
    return tmp_path / "merged"


def test_merged_tokens_and_labels_are_words(merged_folder):
    ours = MusicTokenizer(str(merged_folder))
    text = (
        "PIECE_START GENRE=SYNTH_PAD MOOD=TRAPADOR BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 NOTE_ON=60 "
        "TIME_DELTA=4 BAR_END"
    )
    ids = [v.PIECE_START, v.IDS["GENRE=1"], v.IDS["RESERVED=0"], v.BAR_START, 769, 768, v.BAR_END]
    assert ours.tokenize(text) == ids and ours.detokenize(ids) == text
    assert ours.ids_to_tokens(ids)[1:-1] == [
        "GENRE=SYNTH_PAD",
        "MOOD=TRAPADOR",
        "BAR_START",
        "NOTE_ON=60+TIME_DELTA=4+NOTE_OFF=60",
        "NOTE_ON=60+TIME_DELTA=4",
    ]
    assert ours.tokenize(" ".join(ours.ids_to_tokens(ids))) == ids  # merged words are read too
    assert ours.vocab_size == len(ours.vocab) == len(ours.inv_vocab) == 770
    assert (ours.inv_vocab[769], ours.eod) == ("NOTE_ON=60+TIME_DELTA=4+NOTE_OFF=60", 767)
    assert ours.tokenize("") == []
    assert ours.unique_description != MusicTokenizer().unique_description


def test_autotokenizer_loads_merged_tokens_and_labels(merged_folder):
    loaded = transformers.AutoTokenizer.from_pretrained(merged_folder)
    words = read_wording(merged_folder)[2]
    assert loaded.get_vocab() == words.ids and len(loaded) == 770
    assert loaded(words.to_text(range(770)))["input_ids"] == list(range(770))


def test_a_folder_of_merges_is_whole(merged_folder):
    assert read_wording(merged_folder)[:2] == (MERGED, BPE)
    Bpe(BPE.merges[:1]).write(merged_folder)
    with pytest.raises(ValueError, match="has 1 merged tokens where its encoding says 2"):
        MusicTokenizer(str(merged_folder))
    (merged_folder / "bpe.json").unlink()
    with pytest.raises(ValueError, match=r"bpe.json is missing"):
        MusicTokenizer(str(merged_folder))


def test_words_and_ids_outside_are_named(merged_folder):
    words = read_wording(merged_folder)[2]
    with pytest.raises(ValueError, match="token 2 is 'GENRE=0'"):
        words.to_ids("PAD GENRE=0")
    with pytest.raises(ValueError, match=r"770 is outside 0..769"):
        words.to_text(np.array([770]))


@pytest.mark.parametrize(
    "encoding",
    [
        ENCODING,
        MERGED,
        Encoding(
            meters=("3/4", "6/8"),
            unknown_meters=("1/4",),
            velocity=True,
            tempo=True,
            density=2,
            density_bins=(3,),
            bar_density=4,
            infill=True,
        ),
    ],
)
def test_the_encoding_survives_the_folder(tmp_path, encoding):
    write_tokenizer_folder(tmp_path, encoding, BPE if encoding.bpe else None)
    assert read_encoding(tmp_path) == encoding


def test_folders_of_the_first_version_are_read(folder):
    (folder / ENCODING_FILE).write_text(
        json.dumps(
            {
                "steps_per_quarter": 12,
                "bars": 8,
                "hop": 2,
                "bar_line": "clip",
                "density_bins": [2, 7],
                "vocabulary_name": v.NAME,
                "vocabulary_hash": v.HASH,
            }
        )
    )
    assert read_encoding(folder) == replace(ENCODING, pedal="ignore")


def test_another_vocabulary_is_refused(folder):
    path = folder / ENCODING_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "vocabulary_hash": "0" * 64, "vocabulary_name": "mmmtrack-0"}))
    with pytest.raises(ValueError, match=r"mmmtrack-0.*build the dataset again"):
        read_encoding(folder)


@pytest.mark.parametrize(
    "change",
    [
        None,
        [],
        {},
        {"density_bins": []},
        {"tempo": 3},
        {"bars": "4"},
        {"swing": 1},
        {"labels": [["A", [1]]]},
    ],
)
def test_a_damaged_folder_is_refused(folder, change):
    whole = json.loads((folder / ENCODING_FILE).read_text())
    is_whole = bool(change) and "density_bins" not in change
    content = json.dumps({**whole, **change} if is_whole else change)
    (folder / ENCODING_FILE).write_text("" if change is None else content)
    with pytest.raises(ValueError, match="is damaged"):
        read_encoding(folder)
    (folder / ENCODING_FILE).unlink()
    with pytest.raises(ValueError, match="is missing"):
        read_encoding(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"steps_per_quarter": 8},
        {"bars": -1},
        {"hop": 0},
        {"bar_line": "cut"},
        {"density_bins": (5, 3)},
        {"density_bins": tuple(range(10))},
    ],
)
def test_an_encoding_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError):
        Encoding(**options)
