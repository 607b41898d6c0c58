"""Sound files: what is written is read back, and what is none is refused."""

import numpy as np
import pytest
import soundfile

from megatron_music.audio.waveform import (
    Waveform,
    read_metadata,
    read_waveform,
    resampled,
    with_channels,
    write_waveform,
)


def tone(hertz: float = 440, seconds: float = 0.5, sample_rate: int = 16000, channels: int = 2) -> Waveform:
    phase = 2 * np.pi * hertz * np.arange(int(seconds * sample_rate)) / sample_rate
    return Waveform(
        0.5 * np.stack([np.sin(phase + channel) for channel in range(channels)]).astype(np.float32), sample_rate
    )


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("bits", [16, 24])
def test_a_file_is_read_back(tmp_path, suffix, bits):
    told = {"prompt": "a slow piano, für Elise", "seed": 7, "guidance_scale": 3.5}
    write_waveform(tmp_path / f"a{suffix}", tone().samples, 16000, bits=bits, metadata=told)
    found = read_waveform(tmp_path / f"a{suffix}")
    assert found.sample_rate == 16000 and found.samples.dtype == np.float32 and found.seconds == 0.5
    assert np.abs(found.samples - tone().samples).max() <= 2.0 ** (1 - bits)
    assert read_metadata(tmp_path / f"a{suffix}") == told
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


def test_what_is_too_loud_is_clipped(tmp_path):
    write_waveform(tmp_path / "a.wav", 4 * tone().samples, 16000)
    assert 0.99 < np.abs(read_waveform(tmp_path / "a.wav").samples).max() <= 1


def test_another_programs_file_has_no_metadata(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone().samples.T, 16000)
    assert read_metadata(tmp_path / "a.wav") == {}


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_resampling_keeps_a_tone(rate):
    found = resampled(tone(), rate)
    assert found.sample_rate == rate and abs(found.seconds - 0.5) < 2 / rate
    inner = slice(rate // 10, -rate // 10)
    assert np.abs(found.samples[:, inner] - tone(sample_rate=rate).samples[:, inner]).max() < 0.01
    assert resampled(tone(), 16000) is not None and np.array_equal(resampled(tone(), 16000).samples, tone().samples)


def test_channels():
    mono = tone(channels=1)
    assert np.array_equal(with_channels(mono, 2).samples, np.repeat(mono.samples, 2, axis=0))
    np.testing.assert_allclose(with_channels(tone(), 1).samples[0], tone().samples.mean(0), atol=1e-7)
    with pytest.raises(ValueError, match="2 channels cannot become one of 6"):
        with_channels(tone(), 6)


def test_what_is_no_sound(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 2), np.float32), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full((9, 1), np.nan, np.float32), 16000, subtype="FLOAT")
    for name, words in (
        ("missing.wav", "does not exist"),
        ("text.wav", "is no sound that can be read"),
        ("empty.wav", "has no samples"),
        ("nan.wav", "samples that are not finite"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            read_waveform(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)
    for path, options, words in (
        ("a.mp3", {}, "does not end in .wav or .flac"),
        ("a.wav", {"bits": 8}, "use 16 or 24"),
    ):
        with pytest.raises(ValueError, match=words):
            write_waveform(tmp_path / path, tone().samples, 16000, **options)
    with pytest.raises(ValueError, match="nothing was written"):
        write_waveform(tmp_path / "b.wav", np.full((1, 5), np.inf), 16000)
    assert not (tmp_path / "b.wav").exists()
