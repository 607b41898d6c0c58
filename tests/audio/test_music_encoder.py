"""Music and words to embeddings: the small encoder, and MuQ-MuLan behind a pipe (a stand-in of its package)."""

import os
import sys

import numpy as np
import pytest

from megatron_music.audio.linear_probe import fit_probe
from megatron_music.audio.music_encoder import (
    CONFIG,
    LAGS,
    SIZE,
    WEIGHTS,
    MuQMuLanProcess,
    features_of,
    fit_music_encoder,
    load_music_encoder,
    log_mel,
    rhythm_of,
)
from megatron_music.audio.waveform import Waveform

RATE = 16000


def beats(per_minute: float, hertz: float, seed: int = 0, seconds: float = 4.0, rate: int = RATE) -> Waveform:
    """Strokes of a tone, at a tempo, with a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    since = time % (60 / per_minute)
    sound = np.exp(-since / 0.08) * np.sin(2 * np.pi * hertz * time)
    sound += 0.003 * np.random.default_rng(seed).standard_normal(len(time))
    return Waveform(np.stack([sound, sound]).astype(np.float32) * 0.5, rate)


KINDS = [(tempo, name, hertz) for tempo in (70, 140) for name, hertz in (("low", 220), ("high", 1760))]


@pytest.fixture(scope="module")
def music():
    sounds = [(tempo, name, beats(tempo + seed, hertz, seed)) for tempo, name, hertz in KINDS for seed in range(8)]
    captions = [[f"{'slow' if tempo < 100 else 'fast'} {name} strokes"] for tempo, name, _ in sounds]
    return sounds, captions, fit_music_encoder(np.stack([features_of(sound) for *_, sound in sounds]), captions)


def test_the_strongest_band_rises_with_pitch_and_rhythm_has_its_period():
    bands = [log_mel(beats(120, hertz)).mean(1).argmax() for hertz in (200, 500, 1000, 3000)]
    assert bands == sorted(set(bands))
    change = np.maximum(np.diff(log_mel(beats(120, 440)), axis=1), 0).sum(0)
    found = rhythm_of(change)
    assert found.shape == (LAGS,) and abs(20 + found[20:45].argmax() + 1 - 0.5 / 0.016) <= 1


def test_embeddings_have_length_1_at_any_rate_and_number_of_channels(music):
    _, _, encoder = music
    stereo, mono = beats(100, 440), Waveform(beats(100, 440).samples[:1], RATE)
    found = encoder.embed_audio([stereo, mono, beats(100, 440, rate=44100)])
    assert found.shape == (3, SIZE) and found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert found[0] @ found[1] > 0.999 and found[0] @ found[2] > 0.8
    assert encoder.embed_audio([]).shape == encoder.embed_text([]).shape == (0, SIZE)


def test_words_find_their_music(music):
    sounds, captions, encoder = music
    heard = encoder.embed_audio([beats(tempo + 3.3, hertz, 77) for tempo, _, hertz in KINDS])
    texts = [f"{'slow' if tempo < 100 else 'fast'} {name} strokes" for tempo, name, _ in KINDS]
    similarity = encoder.embed_text(texts) @ heard.T
    assert similarity.argmax(1).tolist() == [0, 1, 2, 3]
    assert np.linalg.norm(encoder.embed_text(["never heard of", ""]), axis=1) == pytest.approx(1, abs=1e-5)


def test_a_folder_comes_back_and_a_damaged_one_is_refused(music, tmp_path):
    _, _, encoder = music
    encoder.save(tmp_path)
    again, sound = load_music_encoder(tmp_path), beats(90, 300)
    assert np.array_equal(again.embed_audio([sound]), encoder.embed_audio([sound]))
    assert np.array_equal(again.embed_text(["slow low"]), encoder.embed_text(["slow low"]))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(ValueError, match="holds no whole encoder of music"):
        load_music_encoder(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(ValueError, match="holds no whole encoder of music"):
        load_music_encoder(tmp_path)


def test_one_sound_is_not_enough():
    with pytest.raises(ValueError, match="needs two sounds"):
        fit_music_encoder(np.zeros((1, 5)), [["a"]])


def test_a_probe_tells_what_it_was_shown_and_no_more(music):
    sounds, _, _ = music
    features = np.stack([features_of(sound) for *_, sound in sounds])
    tempo, name = ([str(row[place]) for row in sounds] for place in (0, 1))
    held = np.arange(len(sounds)) % 4 == 0
    for labels in (tempo, name):
        probe = fit_probe(features[~held], [label for label, out in zip(labels, held, strict=True) if not out])
        assert probe.accuracy(features[held], [label for label, out in zip(labels, held, strict=True) if out]) == 1.0
    chance = np.random.default_rng(0)
    noise = [str(value) for value in chance.integers(0, 2, len(sounds))]
    probe = fit_probe(features[~held], [label for label, out in zip(noise, held, strict=True) if not out])
    assert probe.accuracy(features[held], [label for label, out in zip(noise, held, strict=True) if out]) < 1.0
    with pytest.raises(ValueError, match="two classes"):
        fit_probe(features, ["a"] * len(features))


STAND_IN = """
import torch
print("a library that prints")
class MuQMuLan:
    @classmethod
    def from_pretrained(cls, name):
        if name == "nowhere":
            raise OSError("no model named nowhere")
        return cls()
    def to(self, device): return self
    def eval(self): return self
    def __call__(self, wavs=None, texts=None):
        if wavs is not None:
            return torch.full((1, 512), float(wavs.abs().mean())) + torch.arange(512) * float(wavs.shape[1] == 24000)
        return torch.full((1, 512), float(len(texts[0])))
"""


@pytest.fixture
def python_with_muq(tmp_path):
    """A Python in which ``muq`` is the stand-in: the real one cannot be had without a download."""
    (tmp_path / "muq.py").write_text(STAND_IN)
    program = tmp_path / "python"
    start = f"import sys, runpy; sys.path[:0] = {[str(tmp_path), *sys.path]!r}; sys.argv = sys.argv[1:]; "
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    program.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "{start}" "$@"\n')
    program.chmod(0o755)
    return str(program)


def test_muq_mulan_runs_in_a_python_of_its_own(python_with_muq, tmp_path, monkeypatch):
    encoder = MuQMuLanProcess(python_with_muq)
    try:
        assert "CC-BY-NC-4.0" in encoder.name
        found = encoder.embed_audio([beats(100, 440, seconds=1.0), beats(100, 440, seconds=2.0)])
        assert found.shape == (2, SIZE) and np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
        assert not np.allclose(found[0], found[1]), "one second is 24,000 samples, at the rate MuQ hears"
        assert encoder.embed_text(["slow örgan"]) == pytest.approx(np.full((1, SIZE), SIZE**-0.5), abs=1e-6)
        encoder.save(tmp_path / "kept")
        with pytest.raises(ValueError, match="set MEGATRON_MUSIC_MUQ_PYTHON to a Python that has muq"):
            load_music_encoder(tmp_path / "kept")
        again = load_music_encoder(tmp_path / "kept", python_with_muq)
        assert np.array_equal(again.embed_text(["a"]), encoder.embed_text(["a"]))
        again.close()
        monkeypatch.setenv("MEGATRON_MUSIC_MUQ_PYTHON", python_with_muq)
        load_music_encoder(tmp_path / "kept").close()
    finally:
        encoder.close()


def test_what_goes_wrong_there_is_told(python_with_muq, tmp_path):
    with pytest.raises(ValueError, match=r"has not started .*no model named nowhere"):
        MuQMuLanProcess(python_with_muq, "nowhere")
    with pytest.raises(ValueError, match="cannot be run"):
        MuQMuLanProcess(os.fspath(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"No module named 'muq'.*install muq there"):
        MuQMuLanProcess(sys.executable)
