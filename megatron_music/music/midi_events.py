"""A MIDI file as it is: every chunk, and every event of every track at its tick, to be edited and written back.

Nothing is interpreted, dropped or moved. Running status is resolved, so that each event stands on its own; a track that
is not edited is written with the bytes it was read from. Reading is tolerant: F7 packets, running status across
system-exclusive and meta events, long headers, chunks of other kinds, a length that is wrong, bytes after a track's
end. A RIFF wrapper (RMID) is taken off. ``music.midi.read_midi`` says which files are music; ``music.midi_edits`` edits
them.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from megatron_music.storage.reading import MIDI_BYTES, read_bytes

NOTE_OFF, NOTE_ON, CONTROLLER, PROGRAM, PRESSURE, BEND = 0x80, 0x90, 0xB0, 0xC0, 0xD0, 0xE0
META, SYSEX, PACKET = 0xFF, 0xF0, 0xF7
TRACK_NAME, PORT, END_OF_TRACK, SET_TEMPO, TIME_SIGNATURE = 0x03, 0x21, 0x2F, 0x51, 0x58
DRUM_CHANNEL = 9  # counted from 0
_SYSTEM_DATA_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # of the other system messages, which files should not have: 0


class Event(NamedTuple):
    """One event of a track."""

    tick: int
    message: bytes  # status and data; of a meta or system-exclusive event as in the file, its length included

    @property
    def kind(self) -> int:
        """``NOTE_ON`` and so on for a channel's event, else the status byte."""
        return self.message[0] if self.message[0] >= SYSEX else self.message[0] & 0xF0

    @property
    def channel(self) -> int:
        """0..15; for a channel's event."""
        return self.message[0] & 0x0F

    def is_meta(self, kind: int) -> bool:
        return self.message[0] == META and self.message[1] == kind


@dataclass(frozen=True)
class EventTrack:
    """The events of one MTrk chunk.

    Args:
        events: by tick, those of one tick in the file's order; without the end of the track.
        end: the end of the track; None where the file has none.
        tail: bytes after the end.
        source: the bytes it was read from, while it is unedited.
    """

    events: tuple[Event, ...]
    end: Event | None = None
    tail: bytes = b""
    source: bytes | None = None

    def edited(self, events: Sequence[Event], end_tick: int = 0) -> "EventTrack":
        """The track with other events, that ends no earlier than it did, than its events do, and than ``end_tick``."""
        last = max([end_tick, *(event.tick for event in (*events[-1:], *filter(None, [self.end])))])
        message = self.end.message if self.end else meta(END_OF_TRACK)
        return replace(self, events=tuple(events), end=Event(last, message), source=None)

    @property
    def content(self) -> bytes:
        """The chunk's bytes."""
        if self.source is not None:
            return self.source
        parts, tick = [], 0
        for event in (*self.events, *filter(None, [self.end])):
            parts += quantity(event.tick - tick), event.message
            tick = event.tick
        return b"".join((*parts, self.tail))


class OtherChunk(NamedTuple):
    """A chunk that is no MTrk."""

    name: bytes
    content: bytes


@dataclass(frozen=True)
class MidiEvents:
    """A Standard MIDI File.

    Args:
        header: content of its MThd chunk: format, number of tracks, ticks in a quarter note.
        chunks: all others, in order.
        rest: what follows the last whole chunk.
    """

    header: bytes
    chunks: tuple[EventTrack | OtherChunk, ...]
    rest: bytes = b""

    @property
    def tracks(self) -> list[EventTrack]:
        return [chunk for chunk in self.chunks if isinstance(chunk, EventTrack)]

    def with_tracks(self, tracks: Iterable[EventTrack]) -> "MidiEvents":
        """The file with as many tracks, in the places of those it has."""
        new = iter(tracks)
        return replace(
            self, chunks=tuple(next(new) if isinstance(chunk, EventTrack) else chunk for chunk in self.chunks)
        )

    def to_bytes(self) -> bytes:
        parts = [_chunk(b"MThd", self.header)]
        for chunk in self.chunks:
            name = b"MTrk" if isinstance(chunk, EventTrack) else chunk.name
            parts.append(_chunk(name, chunk.content))
        return b"".join((*parts, self.rest))


def read_events(source: str | os.PathLike | bytes) -> MidiEvents:
    """A file's events.

    Args:
        source: a path, or the file's bytes.

    Raises:
        ValueError: it is not a MIDI file, or a track is damaged; the sentence says where.
        OSError: the file cannot be read.
    """
    where = "the file" if isinstance(source, bytes) else os.fspath(source)
    try:
        content = unwrapped(source if isinstance(source, bytes) else read_bytes(source, MIDI_BYTES))
    except ValueError as error:
        raise ValueError(f"{where} cannot be read ({error}); give another") from None
    if content[:4] != b"MThd" or len(content) < 14:
        raise ValueError(f"{where} is not a MIDI file (it does not begin with MThd); give another")
    header_end = 8 + max(int.from_bytes(content[4:8], "big"), 6)
    chunks, place = [], header_end
    while place + 8 <= len(content):
        name, length = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "big")
        inside = content[place + 8 : place + 8 + length]
        number = sum(isinstance(chunk, EventTrack) for chunk in chunks) + 1
        chunks.append(
            _read_track(inside, f"track chunk {number} of {where}") if name == b"MTrk" else OtherChunk(name, inside)
        )
        place += 8 + length
    return MidiEvents(content[8:header_end], tuple(chunks), content[place:])


def unwrapped(content: bytes) -> bytes:
    """A file's bytes without the RIFF wrapper of an RMID file."""
    if content[:4] != b"RIFF" or content[8:12] != b"RMID":
        return content
    place = 12
    while place + 8 <= len(content):
        length = int.from_bytes(content[place + 4 : place + 8], "little")
        if content[place : place + 4] == b"data":
            return content[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    return content


def meta(kind: int, data: bytes = b"") -> bytes:
    """A meta event's message."""
    return bytes((META, kind)) + quantity(len(data)) + data


def time_signature_data(numerator: int, denominator: int) -> bytes:
    """What a meta event says of a meter: a metronome of quarters, 8 thirty-seconds in a quarter."""
    return bytes((numerator, denominator.bit_length() - 1, 24, 8))


def tempo_data(quarters_per_minute: float) -> bytes:
    """What a meta event says of a tempo: microseconds in a quarter."""
    return min(max(round(60_000_000 / quarters_per_minute), 1), 0xFFFFFF).to_bytes(3, "big")


def quantity(value: int) -> bytes:
    """A variable-length quantity."""
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(0x80 | value & 0x7F)
    return bytes(reversed(groups))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "big") + content


def _read_track(content: bytes, where: str) -> EventTrack:
    events: list[Event] = []
    walk = _messages(content)
    try:
        for event, place in walk:
            if event.is_meta(END_OF_TRACK):
                return EventTrack(tuple(events), event, content[place:], content)
            events.append(event)
    except IndexError:
        raise ValueError(f"{where} breaks off inside an event; repair the file") from None
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error}); repair the file") from None
    return EventTrack(tuple(events), None, b"", content)


def _messages(content: bytes) -> Iterator[tuple[Event, int]]:
    """Each event of a track and the place after it.

    Raises:
        IndexError: the bytes end inside an event.
        ValueError: an event has no status.
    """
    place = tick = status = 0
    while place < len(content):
        delta, place = _read_quantity(content, place)
        tick += delta
        first = content[place]
        if first >= SYSEX:
            end = _end_of_system_event(content, place)
            message = content[place:end]
        else:
            if first >= 0x80:
                status, place = first, place + 1
            if not status:
                raise ValueError(f"byte {place} is data without a status")
            end = place + (1 if status & 0xF0 in (PROGRAM, PRESSURE) else 2)
            message = bytes((status,)) + content[place:end]
        if end > len(content):
            raise IndexError
        place = end
        yield Event(tick, message), place


def _end_of_system_event(content: bytes, place: int) -> int:
    status = content[place]
    if status not in (META, SYSEX, PACKET):
        return place + 1 + _SYSTEM_DATA_BYTES.get(status, 0)
    length, after = _read_quantity(content, place + (2 if status == META else 1))
    return after + length


def _read_quantity(content: bytes, place: int) -> tuple[int, int]:
    """A variable-length quantity and the place after it."""
    value = 0
    while content[place] >= 0x80:
        value = value << 7 | content[place] & 0x7F
        place += 1
    return value << 7 | content[place], place + 1
