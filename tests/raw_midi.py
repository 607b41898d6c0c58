"""Bytes of MIDI files with all that files have: for tests that nothing is lost or moved."""

import io
import struct

import mido
from hypothesis import strategies as st

END = b"\x00\xff\x2f\x00"


def smf(*chunks: bytes, form: int = 1, division: int = 480) -> bytes:
    """A file of these MTrk chunks."""
    head = b"MThd" + struct.pack(">IHHH", 6, form, len(chunks), division)
    return head + b"".join(b"MTrk" + struct.pack(">I", len(chunk)) + chunk for chunk in chunks)


def events_of(content: bytes) -> list[list[tuple[int, bytes]]]:
    """Tick and bytes of every event of each track but its end, as mido reads them."""
    found = []
    for track in mido.MidiFile(file=io.BytesIO(content), clip=True, charset="latin-1").tracks:
        tick, events = 0, []
        for message in track:
            tick += message.time
            if message.type != "end_of_track":
                events.append((tick, bytes(message.bytes())))
        found.append(events)
    return found


def quantity(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups.insert(0, 128 | value & 127)
    return bytes(groups)


META = st.one_of(
    st.sampled_from(
        [
            b"\xff\x51\x03\x07\xa1\x20",
            b"\xff\x58\x04\x03\x02\x18\x08",
            b"\xff\x59\x02\x02\x00",
            b"\xff\x21\x01\x00",
            b"\xff\x05\x02la",
            b"\xff\x7f\x03\x00\x01\x41",
            b"\xf0\x05\x7e\x7f\x09\x01\xf7",
            b"\xff\x06\x01A",
            b"\xff\x54\x05\x00\x00\x00\x00\x00",
        ]
    ),
    st.integers(0, 300).map(lambda length: b"\xff\x01" + quantity(length) + b"x" * length),
)


@st.composite
def chunks(draw, extra=META, channels=st.sampled_from([0, 1, 9, 15])) -> bytes:
    """The events of one MTrk, with running status, and often notes that overlap, or that are never switched on
    or off.
    """
    out, running = b"", 0
    kinds = st.sampled_from([0x80, 0x90, 0x90, 0x90, 0x90, 0xB0, 0xC0, 0xD0, 0xE0, 0])
    for _ in range(draw(st.integers(0, 30))):
        out += quantity(draw(st.one_of(st.integers(0, 3), st.integers(0, 500), st.just(20_000))))
        if not (kind := draw(kinds)):
            event = draw(extra)
            running = running if event[0] == 0xFF else 0
            out += event
            continue
        status = kind | draw(channels)
        first = draw(
            st.sampled_from([64, 66, 7]) if kind == 0xB0 else st.integers(0, 3) if kind == 0xC0 else st.integers(60, 62)
        )
        data = bytes([first]) if kind in (0xC0, 0xD0) else bytes([first, draw(st.sampled_from([0, 0, 64, 127]))])
        out += data if status == running and draw(st.booleans()) else bytes([status]) + data
        running = status
    return out + END
