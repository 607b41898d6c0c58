"""Captioned sounds made of MIDI files: pieces in other instruments, tempos and keys, rendered, with true captions.

A file's music thus comes with many answers to one caption. What is drawn depends on the seed and the sound's number
alone.
"""

import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from megatron_music import __version__
from megatron_music.audio.render import render, synthesiser
from megatron_music.audio.waveform import Waveform, write_waveform
from megatron_music.corpora.captions import captions, facts_of
from megatron_music.music.midi import read_midi
from megatron_music.music.midi_tables import MidiError
from megatron_music.music.score import Score, Tempo, Track
from megatron_music.storage.reading import hash_of_file, read_json_object
from megatron_music.storage.writing import write_whole

PROGRAMS = (0, 19, 24, 40, 56, 73)  # piano, organ, guitar, strings, brass, flute: a program of each family
TEMPOS = ((56, 76), (92, 116), (144, 176))  # quarters a minute, each within one word of captions.py
CAPTIONS = 8  # of a sound
SEMITONES = 4  # up and down
TRIES = 100  # to find bars with notes by chance
MADE_WITH = "corpus.json"


@dataclass(frozen=True)
class SoundOptions:
    """How sounds are made.

    Args:
        num: how many.
        seconds: of each.
        own: render with our synthesiser whatever is installed.
    """

    num: int = 400
    seconds: float = 8.2
    sample_rate: int = 16000
    seed: int = 0
    own: bool = False

    def __post_init__(self):
        if self.num < 1 or not 0 < self.seconds <= 600 or not 4000 <= self.sample_rate <= 192000:
            raise ValueError(
                f"{self.num} sounds of {self.seconds} s at {self.sample_rate} Hz cannot be made; use 1 or more, up to "
                f"600 s, "
                "and 4000 to 192000 Hz"
            )


def write_sounds(
    midi_dir: str | os.PathLike, out: str | os.PathLike, options: SoundOptions
) -> Iterator[tuple[int, int]]:
    """Render sounds to FLAC, and write ``captions.jsonl`` when all are there.

    The same call in the same folder makes what is missing; ``corpus.json`` keeps what the folder is made with.

    Yields:
        How many are done, and of how many.

    Raises:
        ValueError: no MIDI files that can be read, or a folder of other options, of other MIDI files or of something
            else.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the audio files")
    paths = sorted(
        path for path in Path(midi_dir).rglob("*") if path.suffix.lower() in (".mid", ".midi") and path.is_file()
    )
    pieces = [(path, score) for path in paths if (score := _read(path)) is not None]
    if not pieces:
        raise ValueError(
            f"{midi_dir} holds no MIDI file with music; write some with `megatron-music corpus bach -o {midi_dir}`"
        )
    _claim(out, options, [path for path, _ in pieces], Path(midi_dir))
    lines = []
    for number in range(options.num):
        chance = random.Random(f"{options.seed}:{number}")
        path, piece = pieces[number % len(pieces)]
        score = _arranged(piece, options.seconds, chance)
        name = f"{number:05}.flac"
        facts = facts_of(score)
        if not (out / name).exists():
            rendered = render(score, options.sample_rate, own=options.own)
            length = round(options.seconds * options.sample_rate)
            samples = rendered.waveform.samples[:, :length]
            waveform = Waveform(np.pad(samples, ((0, 0), (0, length - samples.shape[1]))), options.sample_rate)
            write_waveform(out / name, *waveform, metadata={"synthesiser": rendered.synthesiser})
        line = {
            "path": name,
            "captions": captions(facts, chance.getrandbits(32), CAPTIONS),
            "group": path.stem,
            "instrument": facts.instruments[0],
            "tempo": facts.tempo,
            "quarters_per_minute": round(facts.quarters_per_minute, 1),
        }
        lines.append(json.dumps(line))
        yield number + 1, options.num
    write_whole(out / "captions.jsonl", ("\n".join(lines) + "\n").encode())


def _read(path: Path) -> Score | None:
    try:
        score = read_midi(path)
    except MidiError:
        return None
    return score if score.num_notes else None


def _claim(out: Path, options: SoundOptions, paths: list[Path], midi_dir: Path) -> None:
    """Make the folder that of these options and MIDI files, or see that it is.

    Raises:
        ValueError: it is of others; says what differs and what to do.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(
            f"{path.relative_to(midi_dir).as_posix()}\0{hash_of_file(path)}\n".encode(errors="surrogateescape")
        )
    wanted = {
        "version": __version__,
        **asdict(options),
        "synthesiser": synthesiser(own=options.own),
        "MIDI files": digest.hexdigest(),
    }
    path = out / MADE_WITH
    if path.exists():
        try:
            found = read_json_object(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be used ({error}); remove {out}, or name another folder") from None
        differ = [name for name in wanted if found.get(name) != wanted[name]]
        if differ:
            was = ", ".join(
                name if name == "MIDI files" else f"{name} {found.get(name)} instead of {wanted[name]}"
                for name in differ
            )
            raise ValueError(
                f"{out} holds sounds made with other settings ({was}); use those, name another folder, or remove it"
            )
    elif out.is_dir() and any(name.suffix in (".flac", ".jsonl") for name in out.iterdir()):
        raise ValueError(
            f"{out} holds files, and no {MADE_WITH} that says what they were made with; name another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())


def _arranged(score: Score, seconds: float, chance: random.Random) -> Score:
    """Some bars of a piece that have notes, as long as is asked or to its end, with one program, one tempo and a key of
    chance's.
    """
    for _ in range(TRIES):
        found = _excerpt(score, seconds, chance, None)
        if found.num_notes:
            return found
    return _excerpt(score, seconds, chance, min(int(track.notes[:, 0].min()) for track in score.tracks if len(track)))


def _excerpt(score: Score, seconds: float, chance: random.Random, first: int | None) -> Score:
    """What ``_arranged`` gives, from a step on; None: from a bar of chance's, which may be silent."""
    tempo = chance.uniform(*chance.choice(TEMPOS))
    program, shift = chance.choice(PROGRAMS), chance.randint(-SEMITONES, SEMITONES)
    steps = max(round(seconds * tempo / 60 * score.steps_per_quarter), 1)
    if first is None:
        starts = [start for start in score.bar_starts[:-1].tolist() if start + steps <= score.last_end_step] or [0]
        first = chance.choice(starts)
    tracks = []
    for track in score.tracks:
        notes = track.notes
        notes = notes[(notes[:, 0] >= first) & (notes[:, 0] < first + steps)].copy()
        notes[:, :2] -= first
        notes[:, 1] = np.minimum(notes[:, 1], steps)
        if not track.is_drum:
            notes[:, 2] = np.clip(notes[:, 2] + shift, 0, 127)
        if len(notes):
            tracks.append(Track(notes, 0 if track.is_drum else program, track.is_drum))
    return replace(
        score,
        tracks=tracks,
        tempos=(Tempo(0, round(tempo, 1)),),
        time_signatures=score.time_signatures[:1],
        length_steps=-1,
        quantization=None,
    )
