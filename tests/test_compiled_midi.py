"""The compiled loop reads what symusic reads, and refuses what it refuses."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_music.music import midi
from megatron_music.music.score import Score, Track
from mutants import mutant
from tiny import scores, tiny_score

compiled_midi = pytest.importorskip("megatron_music.music.compiled_midi", reason="numba is not installed: the extra `fast`")

END = b"\x00\xff\x2f\x00"


def smf(*chunks: bytes, form: int = 1, division: int = 480, count: int | None = None) -> bytes:
    """A file of these MTrk chunks."""
    head = b"MThd" + struct.pack(">IHHH", 6, form, len(chunks) if count is None else count, division)
    return head + b"".join(b"MTrk" + struct.pack(">I", len(chunk)) + chunk for chunk in chunks)


def outcome(read, content: bytes) -> Score | str:
    try:
        return read(content)
    except midi.MidiError as error:
        return str(error)


def by_symusic_alone(content: bytes) -> Score | str:
    return outcome(midi.read_midi, content)


def both(content: bytes) -> Score | str:
    """What both read, or say."""
    one, other = outcome(compiled_midi.read_midi, content), by_symusic_alone(content)
    assert one == other
    return one


def is_plain(content: bytes, monkeypatch) -> bool:
    """Whether the loop read the file without symusic."""
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(midi, "read_midi", lambda content: asked.append(content))
        compiled_midi.read_midi(content)
    return not asked


@st.composite
def quantities(draw) -> bytes:
    """A variable-length quantity: mostly small, at times long, now and then with more bytes than it needs."""
    value = draw(st.one_of(st.integers(0, 40), st.integers(0, 20_000), st.integers(0, (1 << 21) - 1)))
    groups = [value >> shift & 127 for shift in (21, 14, 7, 0)]
    while len(groups) > 1 and not groups[0] and draw(st.integers(0, 30)):
        groups = groups[1:]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


KEYS, FORCE, CHANNELS = st.integers(58, 61), st.sampled_from([0, 0, 1, 64, 127]), st.sampled_from([0, 0, 1, 9, 15])
META = st.sampled_from([
    b"\xff\x51\x03\x07\xa1\x20", b"\xff\x51\x03\x05\x00\x01", b"\xff\x58\x04\x03\x02\x18\x08", b"\xff\x58\x04\x06\x03\x18\x08",
    b"\xff\x03\x04Alto", b"\xff\x03\x00", b"\xff\x01\x02hi", b"\xff\x59\x02\x00\x00", b"\xff\x21\x01\x00", b"\xff\x7f\x03\x00\x01\x41",
    b"\xf0\x05\x7e\x7f\x09\x01\xf7", b"\xff\x06\x01A", b"\xff\x05\x02la", b"\xff\x05\x01\xe9", b"\xff\x03\x03\xc3\xa9\x00", b"\xff\x54\x05\x00\x00\x00\x00\x00",
])  # fmt: skip
ODD = st.sampled_from([
    b"\xff\x05\x00", b"\xff\x03\x02\xe9a", b"\xff\x03\x03\xed\xa0\x80", b"\xff\x51\x03\x00\x00\x00", b"\xff\x51\x02\x07\xa1", b"\xff\x58\x04\x00\x02\x18\x08",
    b"\xff\x58\x04\x04\x09\x18\x08", b"\xff\x58\x01\x04", b"\xf7\x01\x00", b"\xf8", b"\x90\x3c\x90", b"\x90\xbc\x40", b"\xb0\x07\x80",
    b"\xc0\x80", b"\x3c\x40", END[1:], b"\xff\x03\x60", b"\xe0\x00\x80", b"\xd0\x90",
])  # fmt: skip


@st.composite
def chunks(draw, odd: bool) -> bytes:
    """Events of one MTrk, with running status where it may stand."""
    out, running = b"", 0
    for _ in range(draw(st.integers(0, 25))):
        out += draw(quantities())
        kind = draw(st.sampled_from([8, 9, 9, 9, 9, 9, 11, 12, 14, 13, 10, 0, 1 if odd else 0]))
        if kind <= 1:
            event = draw(ODD if kind else META)
            running = 0 if event[0] != 0xFF else running
            out += event
            continue
        status = kind << 4 | draw(CHANNELS)
        data = bytes([draw(KEYS), draw(FORCE)]) if kind not in (12, 13) else bytes([draw(st.integers(0, 3))])
        out += data if status == running and draw(st.booleans()) else bytes([status]) + data
        running = status
    return out + (END if draw(st.integers(0, 9)) else b"")


@settings(max_examples=1500, deadline=None)
@given(st.data(), st.booleans())
def test_any_events_are_read_as_symusic_reads_them(data, odd):
    both(smf(*data.draw(st.lists(chunks(odd), min_size=1, max_size=4)), form=data.draw(st.sampled_from([0, 1, 1, 2]))))


@settings(max_examples=150, deadline=None)
@given(scores(any_meter=True))
def test_scores_are_read_as_symusic_reads_them(tmp_path_factory, score):
    path = tmp_path_factory.mktemp("score") / "x.mid"
    midi.write_midi(score, path)
    both(path.read_bytes())


def test_damaged_files_are_refused_as_symusic_refuses_them(tmp_path):
    midi.write_midi(tiny_score(), tmp_path / "x.mid")
    midi.write_midi(Score((Track(tiny_score().tracks[0].notes, 7, name="Piano"),), 4), tmp_path / "y.mid")
    files = [(tmp_path / name).read_bytes() for name in ("x.mid", "y.mid")]
    found = [both(mutant(files, number, seed=5)[1]) for number in range(1500)]
    assert any(isinstance(one, str) for one in found) and any(isinstance(one, Score) for one in found)


def test_what_is_plain_is_read_without_symusic(tmp_path, monkeypatch):
    midi.write_midi(tiny_score(), tmp_path / "x.mid")
    content = (tmp_path / "x.mid").read_bytes()
    assert is_plain(content, monkeypatch)
    note = b"\x00\x90\x3c\x50\x60\x3c\x00"
    for plain in (b"", b"\x00\xff\x05\x02la", b"\x00\xff\x03\x02\xc3\xa9"):
        assert is_plain(smf(note + plain + END), monkeypatch), plain
    for odd in (b"\x00\xff\x05\x00", b"\x00\xff\x03\x02\xe9a", b"\x00\xf0\x01\xf7\x00\x3c\x50", b"\x00\xf8", b"\x00\xb0\x80\x00"):
        assert not is_plain(smf(note + odd + END), monkeypatch), odd


def test_the_oldest_note_of_a_key_ends_first():
    chunk = b"\x00\x90\x3c\x50" + b"\x0a\x90\x3c\x51" + b"\x0a\x80\x3c\x00" + b"\x0a\x80\x3c\x00" + b"\x00\x80\x3c\x00" + END
    assert [tuple(note) for note in both(smf(chunk)).tracks[0]] == [(0, 20, 60, 80), (10, 30, 60, 81)]


def test_a_note_across_a_change_of_program_stays_with_the_first():
    chunk = b"\x00\xc0\x05\x00\x90\x3c\x50\x0a\xc0\x02\x0a\x80\x3c\x00\x00\x90\x3c\x50\x0a\x80\x3c\x00" + END
    score = both(smf(chunk))
    assert [(track.program, track.notes.tolist()) for track in score.tracks] == [(2, [[20, 30, 60, 80]]), (5, [[0, 20, 60, 80]])]


def test_lyrics_are_a_silent_track():
    score = both(smf(b"\x00\xcf\x07\x00\xff\x05\x02la\x00\x90\x3c\x50\x0a\x80\x3c\x00" + END))
    assert [(track.program, len(track)) for track in score.tracks] == [(0, 1), (7, 0)]


def test_a_note_that_is_never_switched_off_is_none():
    silent, sounding = b"\x00\x91\x3c\x50" + END, b"\x00\x90\x3c\x50\x0a\x80\x3c\x00\x0a\x90\x3d\x50" + END
    score = both(smf(silent, sounding))
    assert [len(track) for track in score.tracks] == [0, 1]
    both(smf(silent, b"\x00\x81\x3c\x00" + sounding))  # of another chunk: it ends nothing there


@pytest.mark.parametrize("count", [20, 60])
def test_many_events_at_one_time_keep_symusics_order(count):
    tempos = b"".join(b"\x00\xff\x51\x03" + struct.pack(">I", 400_000 + 1000 * number)[1:] for number in range(count))
    both(smf(tempos + b"\x00\x90\x3c\x50\x60\x3c\x00" + END, tempos + END))


def test_more_tracks_than_there_is_room_for():
    notes = b"".join(
        bytes([0, 0xC0 | channel, program, 0, 0x90 | channel, 60, 80, 1, 60, 0]) for channel in range(16) for program in range(128)
    )
    assert len(both(smf(notes + END)).tracks) == 2048


def test_a_huge_file_takes_no_more_room_than_symusic_does(monkeypatch):
    fill = b"\x00\xff\x01\x84\x80\x00" + bytes(1 << 16)
    file = lambda times: smf(b"\x00\x90\x3c\x50\x60\x3c\x00" + fill * times + END)  # noqa: E731
    most = (compiled_midi.MOST_BYTES >> 16) - 1
    assert is_plain(file(most), monkeypatch) and not is_plain(file(most + 1), monkeypatch)
    both(file(most + 1))


@pytest.mark.parametrize("cut", [*range(14, 60)])
def test_cut_files(cut):
    content = smf(b"\x00\xff\x51\x03\x07\xa1\x20" + END, b"\x00\x90\x3c\x50\x60\x3c\x00" + END)
    if len(content[:cut]) >= 22:
        both(content[:cut])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_header_that_counts_otherwise(count):
    both(smf(b"\x00\x90\x3c\x50\x60\x3c\x00" + END, b"\x00\x90\x3e\x50\x60\x3e\x00" + END, count=count))
