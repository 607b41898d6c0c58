"""Small scores and encodings, made by hand and made by hypothesis."""

import numpy as np
from hypothesis import strategies as st

from megatron_music.music.grid import quantize
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
from megatron_music.tokens.encoding import Encoding

BAR = 16


def tiny_score(bars: int = 4) -> Score:
    """Four voices in quarters over ``bars`` bars, already on the grid of 4 steps a quarter."""
    tracks = []
    for number, voice in enumerate(VOICE_NAMES):
        pitch = 72 - 7 * number
        notes = [Note(4 * beat, 4 * beat + 4, pitch + (beat * (number + 1)) % 5) for beat in range(4 * bars)]
        tracks.append(Track(notes, VOICE_PROGRAM, voice=voice))
    return Score(tuple(tracks), steps_per_quarter=4)


def transposed(track: Track, semitones: int) -> Track:
    return Track(np.add(track.notes, (0, 0, semitones, 0)), track.program, voice=track.voice)


def write_corpus(folder, count: int = 12) -> None:
    """Pieces of six bars, no two of which are the same music in another key."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        tracks = []
        for track in tiny_score(6).tracks:
            rise = np.arange(len(track.notes)) * (number + 1) % 97 % 12
            tracks.append(Track(track.notes + np.outer(rise, (0, 0, 1, 0)), track.program, voice=track.voice))
        write_midi(Score(tuple(tracks), 4), folder / f"{number:02}.mid")


@st.composite
def scores(
    draw, steps_per_quarter: int = 480, max_steps: int = 16_000, max_tracks: int = 4, any_meter: bool = False
) -> Score:
    """Any score: overlaps, equal onsets, notes of no length, drums, silent tracks.

    With ``any_meter`` also changes of tempo, and of meter on bar lines.
    """
    note = st.builds(
        lambda start, length, pitch, velocity: Note(start, start + length, pitch, velocity),
        st.integers(0, max_steps),
        st.one_of(st.integers(0, 6), st.integers(0, 4 * steps_per_quarter)),
        st.one_of(st.integers(60, 63), st.integers(0, 127)),
        st.integers(1, 127),
    )
    kind = st.one_of(
        st.builds(lambda program: {"program": program}, st.integers(0, 127)),
        st.just({"is_drum": True}),
        st.builds(lambda voice: {"voice": voice}, st.sampled_from(VOICE_NAMES)),
    )
    tracks = draw(
        st.lists(
            st.builds(lambda notes, options: Track(notes, **options), st.lists(note, max_size=25), kind),
            min_size=1,
            max_size=max_tracks,
        ).filter(lambda tracks: any(len(track) for track in tracks))
    )
    if not any_meter:
        return Score(tuple(tracks), steps_per_quarter)
    tempo = st.builds(Tempo, st.integers(0, max_steps), st.floats(20, 300))
    return Score(
        tuple(tracks),
        steps_per_quarter,
        draw(signatures(steps_per_quarter)),
        (Tempo(0, 100.0), *sorted(draw(st.lists(tempo, max_size=3)))),
    )


@st.composite
def signatures(draw, steps_per_quarter: int) -> tuple[TimeSignature, ...]:
    """Meters that change on bar lines."""
    meters = st.sampled_from([(4, 4), (3, 4), (6, 8), (5, 4), (7, 8), (2, 2), (5, 16), (12, 8), (1, 4), (16, 2)])
    found, step = [], 0
    for meter, bars in draw(st.lists(st.tuples(meters, st.integers(1, 4)), min_size=1, max_size=4)):
        found.append(TimeSignature(step, *meter))
        step += bars * 4 * steps_per_quarter * meter[0] // meter[1]
    return tuple(found)


@st.composite
def encodings(draw, bars=st.integers(1, 4), any_meter: bool = True, **fixed) -> Encoding:
    """Any encoding with windows; every option on or off."""
    levels = st.sampled_from([{}, {"density": 3, "density_bins": (2, 8)}])
    bar_levels = st.sampled_from([{}, {"bar_density": 4, "bar_density_bins": (1, 2, 4)}])
    options = {
        "bars": draw(bars),
        "hop": draw(st.integers(1, 3)),
        "bar_line": draw(st.sampled_from(["carry", "clip", "split"])),
        "steps_per_quarter": draw(st.sampled_from([4, 12])),
        "velocity": draw(st.booleans()),
        "tempo": draw(st.booleans()),
        **draw(levels),
        **draw(bar_levels),
    }
    if any_meter and draw(st.booleans()):
        options["meters"] = ("all",)
    return Encoding(**(options | fixed))


def quantize_for(score: Score, encoding: Encoding) -> Score:
    """The score on the encoding's grid, with what the encoding says of it."""
    return quantize(
        score,
        encoding.steps_per_quarter,
        meters=encoding.writes_meters,
        velocity=encoding.velocity,
        tempo=encoding.tempo,
    )
