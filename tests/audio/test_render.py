"""Scores to sound, by FluidSynth and by our own synthesiser."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from megatron_music.audio.render import OWN, SOUND_FONTS, TAIL_SECONDS, render
from megatron_music.music.score import Score, Tempo, Track
from megatron_music.music.tempo import seconds_at

RATE = 16000


def score(*pitches: int, program: int = 73, is_drum: bool = False, tempos=(Tempo(0, 120.0),)) -> Score:
    notes = [(4 * place, 4 * place + 4, pitch, 90) for place, pitch in enumerate(pitches)]
    return Score([Track(notes, 0 if is_drum else program, is_drum)], 4, tempos=tempos)


@pytest.mark.parametrize("pitch", [48, 69, 84])
@pytest.mark.parametrize("program", [0, 19, 40, 73])
def test_a_note_has_its_pitch(pitch, program):
    found = render(score(pitch, pitch, program=program), RATE, own=True)
    assert found.synthesiser == OWN
    mono = found.waveform.samples.mean(0)[: RATE // 2]
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(len(mono)), 8 * len(mono)))
    wanted = 440 * 2 ** ((pitch - 69) / 12)
    strongest = spectrum.argmax() * RATE / (8 * len(mono))
    multiple = max(round(strongest / wanted), 1)
    assert strongest / multiple == pytest.approx(wanted, rel=0.015)


def test_it_is_stereo_and_as_loud_as_said_and_the_same_again():
    found, again = (render(score(60, 64, 67), RATE, own=True).waveform for _ in range(2))
    assert found.samples.shape[0] == 2 and found.samples.dtype == np.float32
    assert np.abs(found.samples).max() == pytest.approx(0.89, rel=1e-4)
    assert np.array_equal(found.samples, again.samples)


def test_a_slower_tempo_lasts_longer():
    fast, slow = (render(score(60, 62, tempos=(Tempo(0, q),)), RATE, own=True).waveform.seconds for q in (120.0, 60.0))
    assert slow - 0.5 == pytest.approx(2 * (fast - 0.5), rel=0.01)


def test_seconds_follow_every_tempo():
    changing = score(60, 60, tempos=(Tempo(0, 120.0), Tempo(4, 60.0)))
    assert seconds_at(changing, np.array([0, 4, 8, 12])).tolist() == pytest.approx([0, 0.5, 1.5, 2.5])


def test_drums_sound_and_instruments_differ():
    assert np.abs(render(score(36, 38, 42, 49, 45, is_drum=True), RATE, own=True).waveform.samples).max() > 0.5
    sounds = [render(score(60, program=8 * family), RATE, own=True).waveform.samples[:, :4000] for family in range(16)]
    for first in range(16):
        for second in range(first):
            assert np.abs(sounds[first] - sounds[second]).max() > 0.05, (first, second)


def test_no_notes_are_refused_and_no_sound_font_is_named():
    with pytest.raises(ValueError, match="no notes to play"):
        render(replace(score(60), tracks=()), RATE)
    with pytest.raises(ValueError, match=r"nowhere.sf2 does not exist"):
        render(score(60), RATE, "nowhere.sf2")


def test_a_stand_in_fluidsynth_that_fails_is_told_of(tmp_path, monkeypatch):
    program = tmp_path / "fluidsynth"
    program.write_text("#!/bin/sh\necho 'no such soundfont' >&2\nexit 3\n")
    program.chmod(0o755)
    (tmp_path / "some.sf2").write_bytes(b"RIFF")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match=r"FluidSynth could not render with .*no such soundfont"):
        render(score(60), RATE, tmp_path / "some.sf2")


def test_fluidsynth_where_it_is():
    font = next((path for path in SOUND_FONTS if shutil.os.path.isfile(path)), None)
    if not (shutil.which("fluidsynth") and font):
        pytest.skip("FluidSynth or its SoundFont is not installed: rendering with it is NOT tested here")
    found = render(score(60, 64, 67, program=0), 22050)
    assert found.synthesiser.startswith("FluidSynth with ") and found.waveform.sample_rate == 22050
    assert np.abs(found.waveform.samples).max() == pytest.approx(0.89, rel=1e-4)


@pytest.mark.parametrize(("tempo", "seconds"), [(60, [0, 2, 4, 5, 12]), (240, [0, 2, 4, 4.25, 6])])
def test_before_the_first_tempo_of_a_file_it_is_played_at_120(tempo, seconds):
    piece = score(*[60] * 16, tempos=(Tempo(8 * 4, tempo),))
    assert seconds_at(piece, 4 * np.array([0, 4, 8, 9, 16])).tolist() == seconds
    found = render(piece, 4000, own=True).waveform.samples
    assert np.abs(found[:, :2000]).max() > 0.01 and found.shape[1] == pytest.approx(
        (seconds[-1] + TAIL_SECONDS) * 4000, abs=2
    )
