"""Small scores, made by hand and made by hypothesis."""

from hypothesis import strategies as st

from megatron_music.music.score import VOICE_NAMES, VOICE_PROGRAM, Note, Score, Track

BAR = 16


def tiny_score(bars: int = 4) -> Score:
    """Four voices in quarters over ``bars`` bars, already on the grid of 4 steps a quarter."""
    tracks = []
    for number, voice in enumerate(VOICE_NAMES):
        pitch = 72 - 7 * number
        notes = [Note(4 * beat, 4 * beat + 4, pitch + (beat * (number + 1)) % 5) for beat in range(4 * bars)]
        tracks.append(Track(notes, VOICE_PROGRAM, voice=voice))
    return Score(tuple(tracks), steps_per_quarter=4)


@st.composite
def scores(draw, steps_per_quarter: int = 480, max_steps: int = 16_000, max_tracks: int = 4) -> Score:
    """Any score: overlaps, equal onsets, notes of no length, drums, silent tracks."""
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
    return Score(tuple(tracks), steps_per_quarter)
