"""Music and words to embeddings of 512 numbers and length 1, in one space, so that their product says how well they go
together.

Every encoder has ``name``, ``embed_audio``, ``embed_text`` and ``save``. The default is a small one that is fitted
here: statistics of a log-mel spectrogram and of its rhythm. MuQ-MuLan runs in a Python of the user's own, because
installing it replaces torch; its weights are CC-BY-NC-4.0, which forbids commercial use. Shapes: N sounds or texts, F
features, E = 512.
"""

import json
import os
import select
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from megatron_music.audio.waveform import Waveform, resampled, with_channels
from megatron_music.audio.words import RULE, Read, words_of
from megatron_music.storage.reading import read_json_object, regular
from megatron_music.storage.writing import write_whole

SIZE = 512
SAMPLE_RATE, WINDOW, HOP, BANDS = 16000, 1024, 256, 64
LEAST_POWER = 0.3  # about 40 dB below a loud tone: what is quieter is silence
LAGS = 160  # of the rhythm, 16 ms each: down to 24 beats a minute
CONFIG, WEIGHTS, MUQ = "music.json", "music.safetensors", "muq.json"
MUQ_RATE, MUQ_NAME, MUQ_LICENCE = 24000, "OpenMuQ/MuQ-MuLan-large", "CC-BY-NC-4.0"
MUQ_PYTHON, MUQ_MODEL = "MEGATRON_MUSIC_MUQ_PYTHON", "MEGATRON_MUSIC_MUQ_MODEL"  # environment variables
MUQ_SECONDS, MUQ_BYTES = 600.0, 1 << 20  # for an answer, and its size
RIDGE = 1e-2


def log_mel(waveform: Waveform) -> np.ndarray:
    """Loudness in ``BANDS`` mel bands every 16 ms, of the mean of the channels, in units of ln (float32 [bands,
    frames]).
    """
    samples = resampled(with_channels(waveform, 1), SAMPLE_RATE).samples[0]
    samples = np.pad(samples, (0, max(WINDOW - len(samples), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW).astype(np.float32), axis=1)) ** 2
    return np.log(power @ _mel_filters().T + LEAST_POWER).T.astype(np.float32)


@lru_cache(maxsize=1)
def _mel_filters() -> np.ndarray:
    """Triangles on the mel scale from 40 Hz to half the rate [bands, WINDOW / 2 + 1]."""

    def mel(hertz):
        return 2595 * np.log10(1 + np.asarray(hertz) / 700)

    edges = 700 * (10 ** (np.linspace(mel(40), mel(SAMPLE_RATE / 2), BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(np.minimum(rising, falling), 0)


def features_of(waveform: Waveform) -> np.ndarray:
    """What a sound's log-mel spectrogram is like as a whole (float32 [F]): means, deviations and quartiles of bands,
    how fast they change, the autocorrelation of its onsets, and how these share the bands.
    """
    mel = log_mel(waveform)
    level = mel.mean()
    change = np.maximum(np.diff(mel, axis=1, prepend=mel[:, :1]), 0)
    parts = [
        mel.mean(1) - level,
        mel.std(1),
        *(np.quantile(mel, (0.1, 0.9), axis=1) - level),
        change.mean(1),
        change.std(1),
    ]
    parts.append(rhythm_of(change.sum(0)))
    return np.concatenate([*parts, [level]]).astype(np.float32)


def rhythm_of(onsets: np.ndarray) -> np.ndarray:
    """Autocorrelation of onset strength at lags of 1 to ``LAGS`` frames of 16 ms, 1 at most (float32)."""
    onsets = onsets - onsets.mean()
    size = 1 << int(np.ceil(np.log2(len(onsets) + LAGS + 1)))
    spectrum = np.abs(np.fft.rfft(onsets, size)) ** 2
    found = np.fft.irfft(spectrum)[: LAGS + 1]
    return (found[1:] / max(found[0], 1e-9)).astype(np.float32)


class SmallMusicEncoder:
    """Features, brought to what is principal in the music it was fitted to; words by a linear map.

    Args:
        mean_F, map_FE: of features to the embedding before it gets length 1.
        words: those known.
        map_WE: from counts of words (and a 1 for none) to it.
        rule: by which texts fall into words; see ``words_of``.
    """

    name = "small"

    def __init__(
        self, mean_F: np.ndarray, map_FE: np.ndarray, words: Sequence[str], map_WE: np.ndarray, rule: int = RULE
    ):
        self.rule = rule
        self._mean_F, self._map_FE, self._map_WE = mean_F, map_FE, map_WE
        self._numbers = {word: number for number, word in enumerate(words)}

    def embed_audio(self, waveforms: Sequence[Waveform]) -> np.ndarray:
        """Embeddings of sounds of any rate and number of channels (float32 [N, 512], of length 1)."""
        if not len(waveforms):
            return np.zeros((0, SIZE), np.float32)
        return self.embed_features(np.stack([features_of(waveform) for waveform in waveforms]))

    def embed_features(self, features_NF: np.ndarray) -> np.ndarray:
        """Embeddings of sounds by their ``features_of``."""
        return _of_length_1((features_NF - self._mean_F) @ self._map_FE)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts (float32 [N, 512], of length 1)."""
        return _of_length_1(_counts(texts, self._numbers, self.rule) @ self._map_WE)

    def reads(self, text: str) -> Read:
        """Which of the text's words are known, and which are not."""
        words = dict.fromkeys(words_of(text, self.rule))
        return Read(
            tuple(word for word in words if word in self._numbers),
            tuple(word for word in words if word not in self._numbers),
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {"mean": self._mean_F, "map": self._map_FE, "words": self._map_WE}
        write_whole(
            folder / WEIGHTS, save({name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()})
        )
        write_whole(folder / CONFIG, (json.dumps({"format": self.rule, "words": list(self._numbers)}) + "\n").encode())


def fit_music_encoder(features_NF: np.ndarray, captions: Sequence[Sequence[str]]) -> SmallMusicEncoder:
    """An encoder of this music and its captions, by arithmetic alone: principal components, and a ridge regression of
    words.

    Args:
        features_NF: ``features_of`` each sound.
        captions: of each sound, any number.

    Raises:
        ValueError: fewer than two sounds.
    """
    if len(features_NF) < 2:
        raise ValueError(f"an encoder of music needs two sounds to learn from and got {len(features_NF)}; give more")
    mean_F, deviation_F = features_NF.mean(0), features_NF.std(0).clip(1e-3)
    scaled_NF = (features_NF - mean_F) / deviation_F
    _, strengths, directions = np.linalg.svd(scaled_NF.astype(np.float64), full_matrices=False)
    count = min(SIZE, int((strengths > 1e-3 * strengths[0]).sum()))
    map_FE = np.zeros((features_NF.shape[1], SIZE))
    map_FE[:, :count] = directions[:count].T / deviation_F[:, None]
    embeddings_NE = _of_length_1((features_NF - mean_F) @ map_FE)
    texts = [caption for found in captions for caption in found]
    owners = [number for number, found in enumerate(captions) for _ in found]
    words = sorted({word for text in texts for word in words_of(text)})
    counts_NW = _counts(texts, {word: number for number, word in enumerate(words)})
    gram = counts_NW.T @ counts_NW + RIDGE * max(len(texts), 1) * np.eye(counts_NW.shape[1])
    map_WE = np.linalg.solve(gram, counts_NW.T @ embeddings_NE[owners])
    return SmallMusicEncoder(mean_F.astype(np.float32), map_FE.astype(np.float32), words, map_WE.astype(np.float32))


def _counts(texts: Sequence[str], numbers: dict[str, int], rule: int = RULE) -> np.ndarray:
    """How often each text has each word, and a 1 (float32 [N, W + 1])."""
    found = np.zeros((len(texts), len(numbers) + 1), np.float32)
    found[:, -1] = 1
    for row, text in zip(found, texts, strict=True):
        for word, count in Counter(words_of(text, rule)).items():
            if word in numbers:
                row[numbers[word]] = min(count, 2)
    return found


def _of_length_1(values_NE: np.ndarray) -> np.ndarray:
    return (values_NE / np.linalg.norm(values_NE, axis=1, keepdims=True).clip(1e-9)).astype(np.float32)


class MuQMuLanProcess:
    """MuQ-MuLan in a Python that has ``muq`` installed, kept running until ``close``.

    Args:
        python: that interpreter.
        model: name or local folder.
        is_local: True takes a named model from the local cache alone and asks the hub nothing.

    Raises:
        ValueError: it cannot be started; one sentence.
    """

    def __init__(self, python: str, model: str = MUQ_NAME, *, is_local: bool = False):
        if model.startswith("-"):
            raise ValueError(f"{model!r} is no name of a model; use {MUQ_NAME} or a folder")
        self.python, self.model, self.name = str(python), model, f"MuQ-MuLan {Path(model).name} ({MUQ_LICENCE})"
        script = Path(__file__).with_name("muq_server.py")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed by ``close``)
        try:
            command = [self.python, "-I", str(script), model]
            environment = os.environ | ({"HF_HUB_OFFLINE": "1"} if is_local else {})
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=environment
            )
        except OSError as error:
            self._said.close()
            raise ValueError(
                f"{python} cannot be run ({error.strerror}); name a Python that has muq installed"
            ) from None
        try:
            self._receive("started")
        except BaseException:  # an interrupt while it loads its weights
            self.close()
            raise

    def embed_audio(self, waveforms: Sequence[Waveform]) -> np.ndarray:
        """See SmallMusicEncoder."""
        found = [self._ask({"audio": _for_muq(waveform)}) for waveform in waveforms]
        return np.stack(found) if found else np.zeros((0, SIZE), np.float32)

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """See SmallMusicEncoder."""
        found = [self._ask({"text": np.frombuffer(text.encode(), np.uint8)}) for text in texts]
        return np.stack(found) if found else np.zeros((0, SIZE), np.float32)

    def reads(self, text: str) -> Read:
        """See SmallMusicEncoder; its multilingual tokenizer knows every word."""
        return Read(tuple(dict.fromkeys(words_of(text))), ())

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder: the model's name alone. Neither the weights nor the interpreter are part of it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        found = {"model": self.model, "licence": MUQ_LICENCE}
        write_whole(folder / MUQ, (json.dumps(found) + "\n").encode())

    def close(self) -> None:
        """End the process, which has nothing to save; a second call does nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            with suppress(OSError):  # what it did not read
                pipe.close()

    def _ask(self, tensors: dict[str, np.ndarray]) -> np.ndarray:
        content = save(tensors)
        self._write(len(content).to_bytes(8, "little") + content)
        answer = self._receive("answered").get("embedding")
        if answer is None or answer.size != SIZE or answer.dtype.kind != "f" or not np.isfinite(answer).all():
            self._fail("has answered with something that is not an embedding of 512 finite numbers")
        return _of_length_1(answer.reshape(1, SIZE))[0]

    def _write(self, content: bytes) -> None:
        """Sends bytes, however slowly it takes them."""
        deadline, pipe = time.monotonic() + MUQ_SECONDS, self._process.stdin
        os.set_blocking(pipe.fileno(), False)
        rest = memoryview(content)
        while rest:
            _, ready, _ = select.select([], [pipe], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self._fail(f"has not taken {len(content):,} bytes within {MUQ_SECONDS:.0f} s")
            try:
                rest = rest[os.write(pipe.fileno(), rest) :]
            except BlockingIOError:
                continue
            except OSError:
                return  # it has ended; its last line of output tells why

    def _receive(self, verb: str) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        deadline = time.monotonic() + MUQ_SECONDS
        length = int.from_bytes(self._read(8, verb, deadline), "little")
        if length > MUQ_BYTES:
            self._fail(f"has sent {length:,} bytes, or printed to its standard output")
        try:
            return load(self._read(length, verb, deadline))
        except SafetensorError as error:
            self._fail(f"has sent no tensors ({error})")

    def _read(self, count: int, verb: str, deadline: float) -> bytes:
        """Reads ``count`` bytes of its output."""
        content, pipe = b"", self._process.stdout
        while len(content) < count:
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                self._fail(f"has not {verb} within {MUQ_SECONDS:.0f} s")
            piece = os.read(pipe.fileno(), count - len(content))
            if not piece:
                self._fail(f"has not {verb}")
            content += piece
        return content

    def _fail(self, what: str) -> NoReturn:
        with suppress(subprocess.TimeoutExpired):  # it has ended, or has nothing to say
            self._process.wait(timeout=2)
        self._process.kill()
        self._said.seek(0)
        said = self._said.read(MUQ_BYTES).decode(errors="replace").strip().splitlines() or ["it said nothing"]
        self.close()
        raise ValueError(f"MuQ-MuLan in {self.python} {what} ({said[-1]}); install muq there, or use another encoder")


def _for_muq(waveform: Waveform) -> np.ndarray:
    return np.ascontiguousarray(resampled(with_channels(waveform, 1), MUQ_RATE).samples[0])


MusicEncoder = SmallMusicEncoder | MuQMuLanProcess


def load_music_encoder(folder: str | os.PathLike, muq_python: str | None = None) -> MusicEncoder:
    """The encoder of a folder that ``save`` wrote.

    Args:
        folder: that folder. It never says which program is started.
        muq_python: the interpreter for MuQ-MuLan; None takes the environment variable ``MEGATRON_MUSIC_MUQ_PYTHON``.

    Raises:
        ValueError: there is none; one sentence.
    """
    folder = Path(folder)
    if (folder / MUQ).exists():
        return _kept_muq(folder, muq_python or os.environ.get(MUQ_PYTHON))
    try:
        config = read_json_object(folder / CONFIG, follow_links=False)
        words, rule = config["words"], config["format"]
        if (
            not isinstance(words, list)
            or len(set(words)) != len(words)
            or not all(isinstance(word, str) for word in words)
        ):
            raise ValueError("its words are not distinct texts")
        if rule not in range(1, RULE + 1):
            raise ValueError(f"its format is {rule!r}, where this version reads 1 to {RULE}")
        tensors = load_file(regular(folder / WEIGHTS))
        if tensors["words"].shape != (len(words) + 1, SIZE) or tensors["map"].shape != (len(tensors["mean"]), SIZE):
            raise ValueError("its tensors have other shapes")
        return SmallMusicEncoder(tensors["mean"], tensors["map"], words, tensors["words"], rule)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no whole encoder of music ({error}); copy it again") from None


def _kept_muq(folder: Path, python: str | None) -> MuQMuLanProcess:
    """MuQ-MuLan as a folder names it, in an interpreter that the user names."""
    try:
        model = read_json_object(folder / MUQ, follow_links=False)["model"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / MUQ} names no model of MuQ ({error}); copy the folder again") from None
    if not python:
        raise ValueError(
            f"{folder} needs MuQ-MuLan, which runs in a Python of its own; set {MUQ_PYTHON} to a Python that has muq "
            f"installed"
        )
    allowed = os.environ.get(MUQ_MODEL, MUQ_NAME)
    if model != allowed:
        raise ValueError(
            f"{folder / MUQ} names the model {model!r}, which is not {allowed}; set {MUQ_MODEL} to it if you trust it"
        )
    return MuQMuLanProcess(python, model, is_local=True)
