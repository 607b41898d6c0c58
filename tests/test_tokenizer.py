import json

import pytest
import transformers
from megatron.core.tokenizers import MegatronTokenizer
from megatron.core.tokenizers.base_tokenizer import MegatronTokenizerBase

from megatron_music.tokens import tokenizer, vocabulary
from megatron_music.tokens.folder import ENCODING_FILE, Encoding, read_encoding, write_tokenizer_folder
from megatron_music.tokens.mmmtrack import encode_piece
from megatron_music.tokens.tokenizer import MusicTokenizer
from tiny import tiny_score

ENCODING = Encoding(steps_per_quarter=12, bars=8, hop=2, bar_line="clip", density_bins=(2, 7))


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
    metadata = {
        "library": "megatron",
        "tokenizer_class": True,
        "tokenizer_class_path": tokenizer,
        "tokenizer_class_name": "MusicTokenizer",
    }
    loaded = MegatronTokenizer.from_pretrained(str(folder), metadata)
    assert isinstance(loaded, MusicTokenizer) and loaded.encoding == ENCODING


def test_autotokenizer_loads_the_folder_with_identical_ids(folder):
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded.get_vocab() == vocabulary.IDS
    text = vocabulary.to_text([*range(vocabulary.SIZE)])
    assert loaded(text)["input_ids"] == list(range(vocabulary.SIZE))
    assert loaded.decode([1, 3, 142, 5, 262]) == "PIECE_START TRACK_START INST=BASS BAR_START NOTE_ON=61"
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (0, 767, 1)


def test_the_encoding_survives_the_folder(folder):
    assert read_encoding(folder) == ENCODING


def test_another_vocabulary_is_refused(folder):
    path = folder / ENCODING_FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "vocabulary_hash": "0" * 64, "vocabulary_name": "mmmtrack-0"}))
    with pytest.raises(ValueError, match="mmmtrack-0.*build the dataset again"):
        read_encoding(folder)


@pytest.mark.parametrize("content", ["", "{}", '{"density_bins": [], "tempo": 3}'])
def test_a_damaged_folder_is_refused(folder, content):
    (folder / ENCODING_FILE).write_text(content)
    with pytest.raises(ValueError, match="is damaged"):
        read_encoding(folder)
    (folder / ENCODING_FILE).unlink()
    with pytest.raises(ValueError, match="is missing"):
        read_encoding(folder)


@pytest.mark.parametrize("options", [{"steps_per_quarter": 8}, {"bars": -1}, {"hop": 0}, {"bar_line": "cut"},
                                     {"density_bins": (5, 3)}, {"density_bins": tuple(range(10))}])  # fmt: skip
def test_an_encoding_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError):
        Encoding(**options)
