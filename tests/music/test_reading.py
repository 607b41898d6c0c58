"""Reading MIDI files right: beside mido, an independent reader, and rule by rule."""

import io
import itertools
import struct
from collections import defaultdict, deque

import mido
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from laws import check_file
from tiny import tiny_score

from megatron_music.data.build import build_tokens
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.encode import (
    ARRAYS,
    encode_content,
    encode_score,
    fastest_engine,
)
from megatron_music.data.page import page
from megatron_music.music.grid import quantize, sections
from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.midi_tables import MidiError
from megatron_music.music.score import Score, Track
from megatron_music.reports.dataset import describe, markdown
from megatron_music.reports.unheld import count_unheld
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import read_encoding, write_tokenizer_folder
from megatron_music.tokens.vocabulary import to_text

END = b"\x00\xff\x2f\x00"
NOTE = b"\x00\x90\x3c\x50\x83\x60\x80\x3c\x00"  # middle C for 480 ticks
READERS = list(dict.fromkeys([read_midi, fastest_engine().read_midi]))


def smf(
    *chunks: bytes, form: int = 1, division: int = 480, count: int | None = None, more_header: bytes = b""
) -> bytes:
    head = struct.pack(
        ">4sIHHH", b"MThd", 6 + len(more_header), form, len(chunks) if count is None else count, division
    )
    return head + more_header + b"".join(b"MTrk" + struct.pack(">I", len(chunk)) + chunk for chunk in chunks)


def quantity(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.append(value & 127 | 128)
    return bytes(groups[::-1])


def events(*rows: tuple[int, bytes]) -> bytes:
    """An MTrk's content from (tick, message) in order of time."""
    out, now = b"", 0
    for tick, message in rows:
        out += quantity(tick - now) + message
        now = tick
    return out + END


def notes_of(score: Score) -> list[list[tuple]]:
    return [[tuple(note) for note in track] for track in score.tracks]


@st.composite
def tracks(draw) -> bytes:
    """Events of one chunk: notes, programs, pedals, tempos, meters, system-exclusive packets, running status."""
    rows, running = b"", 0
    for _ in range(draw(st.integers(0, 25))):
        rows += quantity(draw(st.sampled_from([0, 0, 1, 5, 60, 200])))
        kind = draw(st.sampled_from(["note", "note", "note", "off", "program", "pedal", "bend", "meta", "packet"]))
        channel = draw(st.sampled_from([0, 0, 1, 9]))
        if kind == "meta":
            rows += draw(
                st.sampled_from(
                    [
                        b"\xff\x51\x03\x07\xa1\x20",
                        b"\xff\x51\x03\x05\x00\x01",
                        b"\xff\x51\x03\x0a\x2c\x2a",
                        b"\xff\x58\x04\x03\x02\x18\x08",
                        b"\xff\x58\x04\x06\x03\x18\x08",
                        b"\xff\x58\x04\x04\x02\x18\x08",
                        b"\xff\x03\x04Alto",
                        b"\xff\x05\x02la",
                        b"\xff\x59\x02\x00\x00",
                    ]
                )
            )
            continue
        if kind == "packet":
            rows += draw(
                st.sampled_from(
                    [b"\xf0\x05\x41\x10\x42\x12\x40", b"\xf7\x05\x00\x7f\x00\x41\xf7", b"\xf7\x02\x01\x41", b"\xf7\x00"]
                )
            )
            running = 0  # where mido needs a status
            continue
        status = {"note": 0x90, "off": 0x80, "program": 0xC0, "pedal": 0xB0, "bend": 0xE0}[kind] | channel
        pitch = draw(st.integers(60, 62))
        data = {
            "note": bytes([pitch, draw(st.sampled_from([0, 1, 64, 127]))]),
            "off": bytes([pitch, 0]),
            "bend": bytes([0, 70]),
            "program": bytes([draw(st.integers(0, 3))]),
            "pedal": bytes([64, draw(st.sampled_from([0, 63, 64, 127]))]),
        }[kind]
        rows += data if status == running and draw(st.booleans()) else bytes([status]) + data
        running = status
    return rows + END


def by_mido(content: bytes) -> tuple[dict, list, list]:
    """Notes of each (chunk, channel, program), tempos and meters in file order: from mido's messages alone."""
    file = mido.MidiFile(file=io.BytesIO(content))
    timed = [
        [(tick, message) for tick, message in zip(itertools.accumulate(m.time for m in track), track, strict=False)]
        for track in file.tracks
    ]
    programs = [
        (tick, chunk, message)
        for chunk, rows in enumerate(timed)
        for tick, message in rows
        if message.type == "program_change"
    ]
    notes, tempos, meters = defaultdict(list), [], []
    for chunk, rows in enumerate(timed):
        own, sounding = {}, defaultdict(deque)
        for tick, message in rows:
            if message.type == "program_change":
                own[message.channel] = message.program
            elif message.type == "set_tempo":
                tempos.append((tick, message.tempo))
            elif message.type == "time_signature":
                meters.append((tick, message.numerator, message.denominator))
            elif message.type == "note_on" and message.velocity:
                program = own.get(message.channel)
                if program is None:
                    others = [
                        (time, place, other.program)
                        for place, (time, number, other) in enumerate(programs)
                        if number != chunk
                        and other.channel == message.channel
                        and time <= tick
                        and message.channel != 9
                    ]
                    program = max(others)[2] if others else 0
                sounding[message.channel, message.note].append((tick, message.velocity, program))
            elif message.type in ("note_on", "note_off") and sounding[message.channel, message.note]:
                start, velocity, program = sounding[message.channel, message.note].popleft()
                notes[chunk, message.channel, program].append((start, tick, message.note, velocity))
    by_time = lambda rows: sorted(rows, key=lambda row: row[0])
    return notes, by_time(tempos), by_time(meters)


def pedalled(content: bytes) -> dict:
    """``by_mido`` with notes as a pianist hears them: keys and pedals played through in order of time."""
    file = mido.MidiFile(file=io.BytesIO(content))
    notes, _, _ = by_mido(content)
    last = max((end for rows in notes.values() for _, end, _, _ in rows), default=0)
    found = {key: [list(row) for row in sorted(rows)] for key, rows in notes.items()}
    for channel in {key[1] for key in notes} - {9}:
        queue = []  # time, order within the time, what
        for track in file.tracks:
            tick = 0
            for place, message in enumerate(track):
                tick += message.time
                if message.type == "control_change" and message.control == 64 and message.channel == channel:
                    queue.append((tick, 0, len(queue), message.value >= 64, place))
        for key, rows in found.items():
            if key[1] == channel:
                for row in rows:
                    queue += [(row[0], 1, len(queue), row, None), (row[1], 2, len(queue) + 1, row, None)]
        queue.sort(key=lambda item: item[:3])
        is_down, held = False, []
        for tick, what, _, thing, _ in queue:
            if what == 0:
                if not thing and is_down:
                    for row in held:
                        row[1] = tick
                    held = []
                is_down = thing
            elif what == 1:
                for row in [row for row in held if row[2] == thing[2]]:
                    row[1] = tick
                    held.remove(row)
            elif is_down and not any(
                item[1] == 1 and item[3][2] == thing[2] and item[0] == tick > thing[0] for item in queue
            ):
                held.append(thing)
        for row in held:
            row[1] = max(row[1], last)
    return {key: sorted(map(tuple, rows)) for key, rows in found.items()}


def ours(score: Score) -> list[tuple]:
    return [(track.program, track.is_drum, sorted(tuple(note) for note in track)) for track in score.tracks]


def theirs(notes: dict) -> list[tuple]:
    return [
        (0 if channel == 9 else program, channel == 9, sorted(rows))
        for (_, channel, program), rows in sorted(notes.items())
    ]


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=300, deadline=None)
@given(st.lists(tracks(), min_size=1, max_size=3))
def test_files_are_read_as_mido_reads_them(read, chunks):
    content = smf(*chunks)
    notes, tempos, meters = by_mido(content)
    assume(notes)
    score = read(content, False, "off")
    assert ours(score) == theirs(notes)
    assert [(t.start_step, round(60e6 / t.quarters_per_minute)) for t in score.tempos] == (tempos or [(0, 500_000)])
    assert [tuple(signature) for signature in score.time_signatures] == (meters or [(0, 4, 4)])


@pytest.mark.parametrize("read", READERS)
@settings(max_examples=300, deadline=None)
@given(st.lists(tracks(), min_size=1, max_size=2))
def test_the_pedal_holds_notes_as_a_pianist_hears_them(read, chunks):
    content = smf(*chunks)
    assume(by_mido(content)[0])
    assert ours(read(content, False, "off", "extend")) == theirs(pedalled(content))


@settings(max_examples=60, deadline=None)
@given(tracks(), st.sampled_from(["auto", "extend", "ignore"]), st.sampled_from([4, 12]))
def test_documents_hold_the_notes_as_they_are_read(chunk, pedal, steps):
    """The round-trip law, with and without the pedal."""
    content = smf(chunk)
    options = BuildOptions(Encoding(steps, bars=1, meters=("all",), velocity=True, tempo=True, pedal=pedal))
    check_file(encode_content(content, options), content, options)


def test_the_report_says_which_notes_the_pedal_holds(tmp_path):
    rows = [
        (tick, message)
        for n in range(32)
        for tick, message in (
            (480 * n, bytes([0x90, 60 + n % 5, 70])),
            (480 * n, b"\xb0\x40\x7f"),
            (480 * n + 60, bytes([0x80, 60 + n % 5, 0])),
            (480 * n + 400, b"\xb0\x40\x00"),
            (480 * n + 401, b"\xe0\x00\x50"),
            (480 * n + 402, b"\xb0\x07\x50"),
        )
    ]
    tempos = [(0, b"\xff\x51\x03\x07\xa1\x20"), (700, b"\xff\x51\x03\x06\x00\x00"), (900, b"\xff\x51\x03\x02\x00\x00")]
    more = [
        (0, b"\xff\x59\x02\x00\x00"),
        (0, b"\xff\x05\x02la"),
        (0, b"\xff\x03\x05Piano"),
        (0, b"\xff\x58\x04\x18\x04\x18\x08"),
        *tempos,
    ]
    content = smf(events(*sorted([*more, (0, b"\xff\x58\x04\x04\x02\x18\x08"), *rows], key=lambda row: row[0])), END)
    (tmp_path / "x.mid").write_bytes(content)
    for pedal, said in (("auto", "makes"), ("ignore", "would make")):
        encoding = Encoding(bars=1, tempo=True, pedal=pedal)
        report = build_tokens([tmp_path], tmp_path / pedal, BuildOptions(encoding))
        assert f"pedal    {said} 100.0% of the notes longer by a step or more" in describe(report, tmp_path)
        held = {kind: (row["events"], row["files"]) for kind, row in report["unheld"].items()}
        assert held.pop("notes lengthened by the pedal" if pedal == "auto" else "notes the pedal would lengthen") == (
            32,
            1,
        )
        assert held == {
            "pedal": (64, 1),
            "pitch bends": (32, 1),
            "other controllers": (32, 1),
            "key signatures": (1, 1),
            "lyrics": (1, 1),
            "track names": (1, 1),
            "silent tracks": (1, 1),
            "velocities": (32, 1),
            "clipped tempos": (1, 1),
            "tempos inside a bar": (1, 1),
            "meters": (1, 1),
        }
        for shown in (markdown(report), page(tmp_path / pedal)):
            assert "Not represented in the tokens" in shown and "key signatures" in shown


def test_a_sysex_in_packets_moves_no_note():
    rows = [
        (tick, message)
        for n in range(1, 9)
        for tick, message in ((480 * n, b"\x90\x3c\x50"), (480 * n + 432, b"\x80\x3c\x00"))
    ]
    packets = [(0, b"\xf0\x05\x41\x10\x42\x12\x40"), (10, b"\xf7\x05\x00\x7f\x00\x41\xf7"), (20, b"\xf7\x01\x41")]
    for read in READERS:
        with_packets, without = read(smf(events(*packets, *rows))), read(smf(events(*rows)))
        assert with_packets == without and with_packets.tracks[0].notes[0].tolist() == [480, 912, 60, 80]
    assert not encode_content(smf(events(*packets, *rows)), BuildOptions()).rescued


@pytest.mark.parametrize(
    "between", [b"\xf0\x01\xf7", b"\xff\x01\x02hi", b"\xf7\x01\x41", b"\xf8", b"\xf0\x85\x00" + bytes(640)]
)
def test_running_status_lasts_across_other_events(between):
    chunk = b"\x00\x90\x3c\x50\x60\x3c\x00" + b"\x00" + between + b"\x00\x3e\x50\x60\x3e\x00" + END
    for read in READERS:
        assert notes_of(read(smf(chunk))) == [[(0, 96, 60, 80), (96, 192, 62, 80)]]


def test_the_last_of_several_tempos_and_meters_at_one_tick_holds():
    tempo = lambda speed: b"\xff\x51\x03" + struct.pack(">I", round(60e6 / speed))[1:]
    chunk = events(
        (0, tempo(120)),
        (0, b"\xff\x58\x04\x04\x02\x18\x08"),
        (0, tempo(60)),
        (0, b"\xff\x58\x04\x03\x02\x18\x08"),
        *[
            (tick, message)
            for n in range(12)
            for tick, message in ((480 * n, b"\x90\x3c\x50"), (480 * n + 400, b"\x80\x3c\x00"))
        ],
    )
    for read in READERS:
        (stretch,) = sections(read(smf(chunk)), ((4, 4), (3, 4)))
        quantized = quantize(stretch, meters=True, tempo=True)
        assert quantized.tempos == ((0, 60.0),) and quantized.time_signatures == ((0, 3, 4),)


def test_a_program_set_in_another_chunk_holds_for_its_channel():
    first = events((0, b"\xc1\x28"), (0, b"\xc2\x21"), (960, b"\xc2\x05"))
    note = lambda channel, start: (
        (start, bytes([0x90 | channel, 60, 80])),
        (start + 100, bytes([0x80 | channel, 60, 0])),
    )
    content = smf(first, events(*note(1, 0)), events(*note(2, 0), *note(2, 960)), events(*note(3, 0)))
    later = smf(events(*note(1, 0)), events((0, b"\xc1\x28")))
    for read in READERS:
        assert [track.program for track in read(content).tracks] == [40, 5, 33, 0]
        assert [track.program for track in read(later).tracks] == [40]
    own = smf(events((0, b"\xc1\x28"), *note(1, 0)), events((0, b"\xc1\x07"), *note(1, 0)))
    assert [track.program for track in read_midi(own).tracks] == [40, 7]


def test_patterns_of_format_2_follow_one_another():
    for read in READERS:
        score = read(smf(NOTE + END, b"\x83\x60\x90\x3e\x50\x83\x60\x80\x3e\x00" + END, form=2))
        assert notes_of(score) == [[(0, 480, 60, 80), (960, 1440, 62, 80)]]


@pytest.mark.parametrize(
    "content",
    [
        smf(NOTE + END, more_header=b"\0\0"),
        smf(NOTE + END, form=3),
        smf(END, NOTE + END, count=1),
        smf(NOTE + END, count=7),
        smf(NOTE + END) + b"\0\0garbage at the end",
        smf(NOTE + END)[:14] + b"XFIH\0\0\0\x02hi" + smf(NOTE + END)[14:],
        b"RIFF\0\0\0\0RMIDdata" + struct.pack("<I", len(smf(NOTE + END))) + smf(NOTE + END),
        b"RIFF\0\0\0\0RMIDLIST\x03\0\0\0abc\0data" + struct.pack("<I", len(smf(NOTE + END))) + smf(NOTE + END),
    ],
    ids=[
        "long header",
        "format 3",
        "too few counted",
        "too many counted",
        "garbage after",
        "alien chunk",
        "RMID",
        "RMID, LIST",
    ],
)
def test_what_other_programs_read_is_read(content):
    for read in READERS:
        assert notes_of(read(content)) == [[(0, 480, 60, 80)]]


def test_a_file_that_lacks_its_last_byte_is_rescued():
    content = smf(END, NOTE * 40 + END)
    for cut in (1, 6):
        with pytest.raises(MidiError, match="track chunk 2 is cut off by the end of the file"):
            read_midi(content[:-cut])
        for read in READERS:
            assert len(read(content[:-cut], True).tracks[0]) == 40 - (cut > 4)
    assert encode_content(content[:-1], BuildOptions(Encoding(bars=1))).rescued
    with pytest.raises(MidiError, match="cut off"):
        read_midi(content[:-200], True)
    with pytest.raises(MidiError, match="cut off"):
        read_midi(content[: content.rindex(b"MTrk") - 1], True)  # a whole track is missing


def test_the_reason_is_that_of_the_try_that_failed_last():
    chunk = b"\x00\xc0\xd0\x00\x90\x3c\x50\x60\x3c\x00\x00\xf4" + END
    assert "undefined status byte 0xf4" in encode_content(smf(chunk), BuildOptions()).damage
    assert "data byte above 127" in encode_content(smf(chunk), BuildOptions(sanitize=False)).damage


def test_a_long_piece_is_not_a_damaged_one():
    step = 8 * 480
    rows = [
        (tick, m) for n in range(6000) for tick, m in ((step * n, b"\x90\x3c\x50"), (step * n + 400, b"\x80\x3c\x00"))
    ]
    long = smf(events(*rows))
    assert not encode_content(long, BuildOptions()).damage
    gap = smf(events(*rows[:2], *[(tick + 41_000 * 480, m) for tick, m in rows[2:4]]))
    assert "in which no note begins: a damaged time" in encode_content(gap, BuildOptions()).damage


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"Fl\xf6te", "Flöte"),
        ("Flöte".encode(), "Flöte"),
        (b"M\xe9lodie", "Mélodie"),
        (b"\xdcberg\xe4nge", "Übergänge"),
        (b"Bob\x92s Piano\x92s", "Bob’s Piano’s"),
        ("ピアノ".encode("cp932"), "ピアノ"),
        ("弦楽四重奏".encode("cp932"), "弦楽四重奏"),
        ("ﾋﾟｱﾉ 1".encode("cp932"), "ﾋﾟｱﾉ 1"),
        ("笛 2".encode("cp932"), "笛 2"),
        (b"PIANO D\xc9TACH\xc9", "PIANO DÉTACHÉ"),
        (b"Violin\0\0", "Violin"),
        (b"\x81\xff\x8d", "\x81\xff\x8d"),
    ],
)
def test_names_in_latin_1_and_shift_jis_are_kept(content, name):
    chunk = b"\x00\xff\x03" + bytes([len(content)]) + content + NOTE + END
    for read in READERS:
        assert read(smf(chunk)).tracks[0].name == name


def test_control_characters_of_a_name_reach_no_terminal():
    chunk = b"\x00\xff\x03\x08\x1b[31mA\nB" + NOTE + END
    assert read_midi(smf(chunk)).tracks[0].label == r"\x1b[31mA\nB"


def four(program: int, names: tuple[str, ...] = ("", "", "", "")) -> Score:
    lines = [Track(track.notes, program, name=name) for track, name in zip(tiny_score().tracks, names, strict=True)]
    return Score(tuple(lines), 4)


@pytest.mark.parametrize(
    ("score", "mode", "are_voices"),
    [
        (four(0), "auto", True),
        (four(19), "auto", True),
        (four(53), "auto", True),
        (four(52, ("a", "b", "c", "d")), "auto", True),
        (four(60), "auto", False),
        (four(48), "auto", False),
        (four(0, ("Piano 1", "", "", "")), "auto", False),
        (four(60, ("Bass", "TENOR", "alto", "Soprano")), "auto", True),
        (four(60, ("Bass", "TENOR", "alto", "Soprano")), "names", True),
        (four(0), "names", False),
        (four(52), "off", False),
        (four(60, ("Bass", "TENOR", "alto", "Soprano")), "off", False),
    ],
)
def test_a_horn_quartet_stays_horns_and_a_choir_sings(tmp_path, score, mode, are_voices):
    write_midi(score, tmp_path / "x.mid")
    for read in READERS:
        found = read((tmp_path / "x.mid").read_bytes(), False, mode)
        assert all(bool(track.voice) == are_voices for track in found.tracks)
        encoded = encode_content((tmp_path / "x.mid").read_bytes(), BuildOptions(Encoding(bars=2, voices=mode)))
        assert (13 + score.tracks[0].program - 3 in encoded.ids) == (not are_voices)
        assert {track.program for track in found.tracks} == {score.tracks[0].program}


def quarters(count: int, *more: tuple[int, bytes]) -> bytes:
    """Legato quarters and other events."""
    rows = [
        (480 * n + 480 * off, bytes([0x80 if off else 0x90, 60 + n % 12, 80])) for n in range(count) for off in (0, 1)
    ]
    order = sorted([*more, *rows], key=lambda row: (row[0], row[1][0] & 0xF0 == 0x90))
    return smf(events(*order))


THREE_FOUR = b"\xff\x58\x04\x03\x02\x18\x08"


@pytest.mark.parametrize("engine", list(dict.fromkeys([ARRAYS, fastest_engine()])))
@pytest.mark.parametrize("steps", [4, 12])
@pytest.mark.parametrize("tick", [-5, -1, 0, 1, 15])
def test_a_meter_beside_a_bar_line_is_on_it(engine, steps, tick):
    content = quarters(28, (1920 + tick, THREE_FOUR))
    encoding = Encoding(steps, bars=1, meters=("all",))
    found = encode_score(read_midi(content), encoding, engine=engine)
    right = encode_score(read_midi(quarters(28, (1920, THREE_FOUR))), encoding, engine=engine)
    assert np.array_equal(found.ids, right.ids) and len(found.lengths) == 9 and not found.left_out
    assert sum(report.notes_in for report in found.reports) == 28


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ((24, 4), "TIME_SIGNATURE=12/8"),
        ((18, 2), "TIME_SIGNATURE=9/2"),
        ((4, 0), "TIME_SIGNATURE=8/2"),
        ((12, 5), "TIME_SIGNATURE=6/16"),
        ((6, 2), "TIME_SIGNATURE=6/4"),
        ((21, 4), None),
    ],
)
def test_a_meter_without_a_token_is_written_as_one_with_bars_of_the_same_length(declared, written):
    numerator, power = declared
    score = read_midi(quarters(48, (0, b"\xff\x58\x04" + bytes([numerator, power, 24, 8]))))
    encoding = Encoding(bars=1, meters=("all",))
    found = encode_score(score, encoding)
    if written is None:
        assert found.left_out and not len(found.ids) and count_unheld(score, encoding)["meters"] == 1
        return
    bar = numerator * 16 // 2**power
    assert len(found.lengths) == -(-48 * 4 // bar) and to_text(found.ids[: found.lengths[0]]).split()[1] == written
    equal = written != f"TIME_SIGNATURE={numerator}/{2**power}"
    assert count_unheld(score, encoding).get("equal meters", 0) == equal and "meters" not in count_unheld(
        score, encoding
    )


def test_a_meter_at_tick_1_makes_one_piece():
    for tick in (0, 1):
        (stretch,) = sections(read_midi(quarters(24, (tick, THREE_FOUR))), ((4, 4), (3, 4)))
        assert stretch.time_signatures == ((0, 3, 4),) and stretch.num_notes == 24


def test_a_tempo_beside_a_bar_line_belongs_to_its_bar():
    for tick, wanted in ((1, 80.0), (59, 80.0), (61, 120.0)):
        score = read_midi(quarters(8, (tick, b"\xff\x51\x03\x0b\x71\xb0")))
        assert quantize(score, tempo=True).tempos[0].quarters_per_minute == wanted


def test_notes_around_a_cut_go_where_their_onsets_are():
    hits = [(480 * n, bytes([0x99, 36, 80])) for n in range(22)] + [(480 * n, bytes([0x89, 36, 0])) for n in range(22)]
    no_length = smf(
        events(
            (0, THREE_FOUR),
            *sorted(hits, key=lambda row: row[0])[:12],
            (5760, b"\xff\x58\x04\x04\x02\x18\x08"),
            *[row for n in range(12, 22) for row in ((480 * n, b"\x99\x24\x50"), (480 * n, b"\x89\x24\x00"))],
        )
    )
    (stretch,) = sections(read_midi(no_length))
    assert stretch.tracks[0].notes[:, 0].tolist() == [480 * n for n in range(10)]
    early = Score(
        (Track([(0, 1910, 60, 80), (1915, 2400, 62, 80), (1000, 1921, 64, 80), (3000, 3840, 65, 80)]),),
        480,
        ((0, 4, 4), (1920, 3, 4)),
    )
    early = early.__class__(early.tracks, 480, tuple(read_midi(quarters(8, (1920, THREE_FOUR))).time_signatures) or ())
    first, second = (sections(early, (meter,), steps_per_quarter=4)[0] for meter in ((4, 4), (3, 4)))
    assert first.tracks[0].notes.tolist() == [[0, 1910, 60, 80], [1000, 1920, 64, 80]]
    assert second.tracks[0].notes.tolist() == [[0, 480, 62, 80], [1080, 1920, 65, 80]]


def test_120_and_other_round_tempos_come_back_exactly():
    for speed in (60, 90, 100, 120, 140, 160, 240):
        score = Score((Track([(0, 4, 60, 80)]),), 4, tempos=((0, float(speed)),))
        score = read_midi(
            _written(Score(score.tracks, 4)).replace(
                b"\xff\x51\x03\x07\xa1\x20", b"\xff\x51\x03" + struct.pack(">I", round(60e6 / speed))[1:]
            )
        )
        assert quantize(score, tempo=True).tempos[0].quarters_per_minute == speed


def _written(score: Score) -> bytes:
    notes = b"".join(b"\x00\x90\x3c\x50\x60\x80\x3c\x00" for _ in score.tracks)
    return smf(b"\x00\xff\x51\x03\x07\xa1\x20" + notes + END)


def test_older_datasets_are_read_as_they_were_made(tmp_path):
    import json

    write_tokenizer_folder(tmp_path, Encoding(pedal="extend", voices="off"))
    assert (read_encoding(tmp_path).pedal, read_encoding(tmp_path).voices) == ("extend", "off")
    path = tmp_path / "mmmtrack.json"
    fields = json.loads(path.read_text())
    del fields["pedal"], fields["voices"]
    path.write_text(json.dumps(fields))
    assert (read_encoding(tmp_path).pedal, read_encoding(tmp_path).voices) == ("ignore", "auto")
    with pytest.raises(ValueError, match="pedal is 'on'; use one of auto, extend, ignore"):
        Encoding(pedal="on")
