"""Bach's chorales as MIDI, from the scores that the music21 package carries. The one owner of music21.

Needs no download. Only pieces with a soprano, alto, tenor and bass part are taken, and of those only these four.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import music21

from megatron_music.music.midi import write_midi
from megatron_music.music.score import (
    VOICE_NAMES,
    VOICE_PROGRAM,
    Note,
    Score,
    Tempo,
    TimeSignature,
    Track,
)
from megatron_music.parallel.processes import end_with_parent
from megatron_music.storage.writing import sweep_temporary

TICKS_PER_QUARTER = 480
QUARTERS_PER_MINUTE = 96.0  # the editions give no tempo


def write_chorales(folder: str | os.PathLike, workers: int | None = None) -> Iterator[tuple[int, int]]:
    """Write every four-voice chorale to ``folder`` as ``<name>.mid``; files already there are kept.

    Yields:
        How many scores are done, and how many there are. Several scores have other voices, or bars that are not whole
        (see ``chorale_score``), and give no file.

    Raises:
        ValueError: the folder holds other MIDI files.
    """
    folder = Path(folder)
    paths = sorted(path for path in music21.corpus.getComposer("bach") if path.suffix in (".mxl", ".xml"))
    foreign = {path.stem for path in folder.glob("*.mid")} - {path.stem for path in paths}
    if foreign:
        raise ValueError(
            f"{folder} holds other MIDI files, such as {min(foreign)}.mid; name a folder for the chorales alone"
        )
    tasks = [(path, folder / f"{path.stem}.mid") for path in paths if not (folder / f"{path.stem}.mid").exists()]
    done = len(paths) - len(tasks)
    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporary(folder, [target.name for _, target in tasks])
    with ProcessPoolExecutor(workers or os.cpu_count(), initializer=end_with_parent) as pool:
        # One score at a time: an interrupt waits for those that are begun.
        for _ in pool.map(_write_chorale, *zip(*tasks, strict=True)) if tasks else ():
            done += 1
            yield done, len(paths)


def _write_chorale(path: Path, target: Path) -> bool:
    converter = music21.converter.Converter()
    converter.parseFileNoPickle(path)
    score = chorale_score(converter.stream)
    if score is not None:
        write_midi(score, target)
    return score is not None


def chorale_score(stream: music21.stream.Score) -> Score | None:
    """The four voices of a music21 score on 480 ticks a quarter.

    None where it has not exactly these four, or where bar lines could not fall where the edition has them: a measure is
    longer or shorter than its meter, and is neither the upbeat, nor the last, nor one half of a bar with the measure
    after it.

    An opening upbeat is moved to the end of a first full bar, so that bar lines fall where the edition has them.
    """
    parts = {str(part.partName).strip().upper(): part for part in stream.parts}
    if not all(voice in parts for voice in VOICE_NAMES):
        return None
    first_measure = parts["SOPRANO"].getElementsByClass(music21.stream.Measure).first()
    if first_measure is None or not _has_whole_bars(parts["SOPRANO"]):
        return None
    upbeat = first_measure.barDuration.quarterLength - first_measure.duration.quarterLength
    offset = max(float(upbeat), 0.0)
    signatures = {
        round((position + offset if position else 0.0) * TICKS_PER_QUARTER): signature
        for position, signature in _signatures(parts["SOPRANO"])
    }
    return Score(
        tracks=tuple(
            Track(_notes(parts[voice], offset), VOICE_PROGRAM, voice=voice, name=voice) for voice in VOICE_NAMES
        ),
        steps_per_quarter=TICKS_PER_QUARTER,
        time_signatures=tuple(
            TimeSignature(step, signature.numerator, signature.denominator)
            for step, signature in sorted(signatures.items())
        ),
        tempos=(Tempo(0, QUARTERS_PER_MINUTE),),
    )


def _has_whole_bars(part: music21.stream.Part) -> bool:
    """Whether measures, laid end to end after a first bar that the upbeat ends, are whole bars."""
    measures = list(part.getElementsByClass(music21.stream.Measure))
    half = 0.0  # of a bar that the measure before has begun
    for number, measure in enumerate(measures):
        length, bar = float(measure.duration.quarterLength), float(measure.barDuration.quarterLength)
        is_upbeat, is_last = number == 0 and length < bar, number == len(measures) - 1
        if (half + length > bar and not is_last) or (half and half + length < bar and not is_last):
            return False
        half = 0.0 if is_upbeat or half + length == bar else half + length
    return True


def _signatures(part: music21.stream.Part) -> list[tuple[float, music21.meter.TimeSignature]]:
    return [
        (float(signature.getOffsetInHierarchy(part)), signature)
        for signature in part.recurse().getElementsByClass(music21.meter.TimeSignature)
    ]


def _notes(part: music21.stream.Part, offset: float) -> list[Note]:
    """The part's notes with ties joined; of a divided voice, every note."""
    notes = []
    for element in part.stripTies().flatten().notes:
        start = round((float(element.offset) + offset) * TICKS_PER_QUARTER)
        length = round(float(element.quarterLength) * TICKS_PER_QUARTER)
        notes += [Note(start, start + length, pitch.midi) for pitch in element.pitches if length > 0]
    return notes
