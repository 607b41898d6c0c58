"""Captions to states: the encoder of words, and those of Hugging Face from a local folder."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_text_encoder import hugging_face_folder

from megatron_music.audio.text_encoder import (
    CONFIG,
    WEIGHTS,
    HuggingFaceTextEncoder,
    WordTextEncoder,
    fit_words,
    load_text_encoder,
)
from megatron_music.audio.words import words_of

TEXTS = ["slow organ", "fast organ", "slow flute", "fast flute", "unhurried organ", "unhurried flute"]


def target(text: str) -> np.ndarray:
    return np.array([1.0 if "fast" in text else -1.0, 1.0 if "organ" in text else -1.0, 0.0, 0.5], np.float32)


@pytest.fixture(scope="module")
def words() -> WordTextEncoder:
    return fit_words(TEXTS, np.stack([target(text) for text in TEXTS]), size=16, length=6)


def test_words_are_found():
    assert words_of("Slow, SAD piano: 96 bpm in 3/4!") == ["slow", "sad", "piano", "90", "bpm", "in", "3/4"]
    assert words_of("  ") == words_of("!?") == []


def test_shapes_and_filling(words):
    states, keeps = words.encode(["slow organ", "", "fast"])
    assert states.shape == (3, 6, 16) and states.dtype == torch.float32
    assert keeps.sum(1).tolist() == [2, 1, 1], "an empty text has one state to attend to"
    assert states[~keeps].eq(0).all() and states[keeps].abs().sum(1).gt(0).all()


def test_a_word_is_one_thing_and_its_place_another(words):
    (first, second), _ = words.encode(["slow organ", "organ slow"])
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sum(0), second.sum(0))


def test_words_of_one_meaning_lie_together(words):
    vectors = {text: words.encode([text])[0][0, 0] for text in ("slow", "unhurried", "fast", "organ")}

    def distance(first, second):
        return (vectors[first] - vectors[second]).norm().item()

    assert distance("slow", "unhurried") < distance("slow", "fast")


def test_unknown_words_are_all_alike(words):
    states, _ = words.encode(["zither", "theremin", "slow"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_a_long_text_is_refused_and_can_be_cut(words):
    long = "organ " * 10_000
    with pytest.raises(ValueError, match=r"has 10,000 words, where this encoder reads 6; shorten it") as error:
        words.encode([long])
    assert len(str(error.value)) < 200
    assert words.encode([words.cut(long)])[1].sum() == 6 and words.cut("slow organ") == "slow organ"


def test_a_folder_comes_back(words, tmp_path):
    words.save(tmp_path)
    found = load_text_encoder(tmp_path)
    assert torch.equal(found.encode(TEXTS)[0], words.encode(TEXTS)[0]) and (found.size, found.length) == (16, 6)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_damaged_folder_is_refused(words, tmp_path, name):
    words.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match="holds no whole encoder of words"):
        load_text_encoder(tmp_path)


def test_vectors_of_other_words_are_refused(words, tmp_path):
    words.save(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({"format": 1, "words": ["slow"]}))
    with pytest.raises(ValueError, match="vectors for 1 words"):
        load_text_encoder(tmp_path)


def test_no_captions_are_refused():
    with pytest.raises(ValueError, match="needs captions to learn from"):
        fit_words([], np.zeros((0, 4)))


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_hugging_face_encoders(tmp_path, kind):
    folder = hugging_face_folder(tmp_path / "local", kind)
    encoder = HuggingFaceTextEncoder(str(folder), length=5)
    states, keeps = encoder.encode(["slow organ music", "fast", ""])
    assert states.shape == (3, 5, 16) and keeps.sum(1).tolist() == [4, 2, 1]
    alone, _ = encoder.encode(["fast"])
    torch.testing.assert_close(alone[0], states[1], atol=1e-5, rtol=1e-4)
    encoder.save(tmp_path / "kept")
    again = load_text_encoder(tmp_path / "kept")
    assert (again.length, again.size) == (5, 16)
    assert torch.equal(again.encode(["slow organ music", "fast", ""])[0], states)
    assert encoder.encode(["slow " * 50])[1].sum() == 5, "longer texts are cut, as published encoders do"


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no text encoder that transformers can load") as error:
        load_text_encoder(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Café Zoë", ["café", "zoë"]),
        ("Cafe\u0301", ["café"]),
        ("МЕДЛЕННЫЙ орган", ["медленный", "орган"]),
        ("موسيقى بطيئة", ["موسيقى", "بطيئة"]),
        ("हिन्दी संगीत", ["हिन्दी", "संगीत"]),
        ("느린 피아노", ["느린", "피아노"]),
        ("静かなピアノの曲", ["静", "かな", "ピア", "アノ", "の", "曲"]),
        ("ﾋﾟｱﾉ", ["ピア", "アノ"]),
        ("慢鋼琴，三拍", ["慢鋼", "鋼琴", "三拍"]),
        ("เปียโนช้า", ["เปี", "ปีย", "ยโ", "โน", "นช้", "ช้า"]),
        ("٩٦ نبضة في ٣/٤", ["90", "نبضة", "في", "3/4"]),
        ("🎹 !", []),
    ],
)
def test_words_of_every_script_are_read(text, wanted):
    assert words_of(text) == wanted


@given(st.text(alphabet="abZ19/ _'.,-", max_size=30))
def test_ascii_texts_have_the_words_they_had_before_other_scripts_were_read(text):
    assert words_of(text) == words_of(text, rule=1)
    assert words_of(text + " é") == [*words_of(text), "é"], "whatever else stands beside them"


@given(st.text(max_size=40))
def test_a_text_that_was_cut_has_the_first_words_of_the_whole(text):
    encoder = WordTextEncoder([], torch.zeros(2, 4), torch.zeros(3, 4))
    assert words_of(encoder.cut(text)) == words_of(text)[:3]


def test_prompts_in_other_scripts_differ_and_meanings_are_learned():
    texts = ["遅いオルガン", "速いオルガン", "遅いフルート", "速いフルート", "медленный орган", "быстрый орган"]
    encoder = fit_words(
        texts, np.stack([target("fast" if text[0] in "速б" else "") for text in texts]), size=16, length=12
    )
    states, keeps = encoder.encode(["遅いオルガン", "速いオルガン", ""])
    assert not torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2]) and keeps[0].sum() > 1
    assert encoder.reads("速い 🎹 zither орган") == (("速", "い", "орган"), ("zither",))


def test_an_encoder_saved_by_the_old_rule_reads_as_it_did(words, tmp_path):
    words.save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["format"] == 2
    (tmp_path / CONFIG).write_text(json.dumps(config | {"format": 1}))
    old = load_text_encoder(tmp_path)
    assert torch.equal(old.encode(TEXTS)[0], words.encode(TEXTS)[0])
    assert old.encode(["slow örgan"])[1].sum() == 2 and old.reads("ピアノ") == ((), ()), "by the rule of its vocabulary"
    old.save(tmp_path / "again")
    assert load_text_encoder(tmp_path / "again").rule == 1
    (tmp_path / CONFIG).write_text(json.dumps(config | {"format": 9}))
    with pytest.raises(ValueError, match="its format is 9"):
        load_text_encoder(tmp_path)


def test_an_encoder_of_hugging_face_says_which_words_are_unknown_tokens(tmp_path):
    encoder = HuggingFaceTextEncoder(str(hugging_face_folder(tmp_path / "local", "t5")), length=5)
    assert encoder.reads("slow ピアノ organ") == (("slow", "organ"), ("ピアノ",))
    assert encoder.reads(" ") == ((), ())
