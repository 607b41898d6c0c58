"""Notes of a score written into the file it was read from: what changed is edited, all else stays, event for event.

A score as read is compared with the same score after notes were removed, shortened or added, and the file's own events
are
edited: a note that is gone loses its two events, one that ends earlier has its end moved, a new one is put on its
    track's own
channel, with its track's program.

A note off ends the oldest note that sounds on its key (track chunk, channel and pitch), as ``music.midi.read_midi`` has
it.
"""

import math
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_music.music.midi_events import (
    BEND,
    CONTROLLER,
    DRUM_CHANNEL,
    NOTE_OFF,
    NOTE_ON,
    PORT,
    PROGRAM,
    TIME_SIGNATURE,
    Event,
    MidiEvents,
    meta,
    time_signature_data,
)
from megatron_music.music.score import Note, Score

_PEDALS = (64, 66)  # controllers that hold notes: sustain and sostenuto
_CENTRE = (0, 64)  # of a pitch bend
_BEFORE, _THERE, _AFTER = -1, 0, 1  # where an event stands among those of its tick

Key = tuple[int, int, int]  # track chunk, channel, pitch


class Part(NamedTuple):
    """Where the notes of a score's track are in the file."""

    track: int  # number of the MTrk chunk, from 0
    channel: int
    program: int


@dataclass
class FileNote:
    """A note of the file."""

    note: Note  # one that is never switched off ends at infinity
    program: int
    on: int  # place of its events in their track
    off: int | None


@dataclass
class FileNotes:
    """The notes of a file by key, as they begin, and the note offs that end none."""

    by_key: dict[Key, list[FileNote]] = field(default_factory=lambda: defaultdict(list))
    stray_offs: dict[Key, list[int]] = field(default_factory=lambda: defaultdict(list))


def notes_of(midi: MidiEvents) -> FileNotes:
    """All notes of a file, paired first in, first out."""
    found, programs = FileNotes(), Programs(midi)
    for number, track in enumerate(midi.tracks):
        sounding: dict[Key, deque[FileNote]] = defaultdict(deque)
        for place, (tick, message) in enumerate(track.events):
            kind, channel = message[0] & 0xF0, message[0] & 0x0F
            if kind not in (NOTE_OFF, NOTE_ON):
                continue
            key = number, channel, message[1]
            if kind == NOTE_ON and message[2]:
                program = programs.at(number, channel, tick, place)
                new = FileNote(Note(tick, math.inf, message[1], message[2]), program, place, None)
                found.by_key[key].append(new)
                sounding[key].append(new)
            elif sounding[key]:
                ended = sounding[key].popleft()
                ended.note, ended.off = ended.note._replace(end_step=tick), place
            else:
                found.stray_offs[key].append(place)
    return found


class Programs:
    """Which program a channel plays: as its own track chunk says it, or else as another one does."""

    def __init__(self, midi: MidiEvents):
        self._own: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)  # tick, place, program
        self._all: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(
            list
        )  # of a port and channel: tick, track, program
        self._ports: dict[int, list[tuple[int, int, int]]] = defaultdict(list)  # of a track: tick, place, port
        for number, track in enumerate(midi.tracks):
            port = 0
            for place, event in enumerate(track.events):
                if event.is_meta(PORT) and len(event.message) > 3:
                    port = event.message[3]
                    self._ports[number].append((event.tick, place, port))
                elif event.kind == PROGRAM:
                    self._own[number, event.channel].append((event.tick, place, event.message[1]))
                    self._all[port, event.channel].append((event.tick, number, event.message[1]))
        for changes in self._all.values():
            changes.sort(key=lambda change: change[:2])

    def at(self, track: int, channel: int, tick: int, place: float = math.inf) -> int:
        """The program at a place of a track, by default after all events of the tick."""
        own, ports = self._own.get((track, channel), ()), self._ports.get(track, ())
        before = bisect_left(ports, (tick, place))
        others = self._all.get((ports[before - 1][2] if before else 0, channel), ())
        if before := bisect_left(own, (tick, place)):
            return own[before - 1][2]
        before = others[: bisect_left(others, (tick, math.inf))]
        return next((program for _, number, program in reversed(before) if number != track), 0)


def parts_of(score: Score, notes: FileNotes) -> tuple[list[Part | None], list[dict[Note, deque[FileNote]]]]:
    """Of each track of a score the part of the file it was read from (None for one without notes), and its notes there.

    A track's notes are all in one track chunk and on one channel; tracks come in the order of their chunks and
    channels.

    Raises:
        ValueError: the score was not read from this file.
    """
    left: dict[tuple[int, int], dict[Note, deque[FileNote]]] = defaultdict(lambda: defaultdict(deque))
    for (track, channel, _), found in sorted(notes.by_key.items()):
        for one in found:
            if one.off is not None:
                left[track, channel][one.note].append(one)
    parts, own = [], []
    for number, track in enumerate(score.tracks, start=1):
        wanted = Counter(track)
        place = next(
            (
                place
                for place in sorted(left)
                if (place[1] == DRUM_CHANNEL) == track.is_drum
                and all(len(left[place].get(note, ())) >= count for note, count in wanted.items())
            ),
            None,
        )
        if wanted and place is None:
            raise ValueError(f"the notes of track {number} are not in the file's events; give the file that was read")
        taken = {note: deque(left[place][note].popleft() for _ in range(count)) for note, count in wanted.items()}
        first = next(iter(taken.values()))[0] if taken else None
        parts.append(Part(*place, first.program) if first else None)
        own.append(taken)
    return parts, own


def written_into(midi: MidiEvents, before: Score, after: Score, release_at: int | None = None) -> MidiEvents:
    """The file with the notes of another score.

    Args:
        before: as ``read_midi`` read it from this file.
        after: the same tracks, with notes removed, ended earlier or added, and meters added.
        release_at: a tick at which pedals are lifted, pitch bends centred and notes ended that are never switched off:
            where something new is appended.

    Raises:
        ValueError: ``before`` was not read from this file, or the file is of format 2.
    """
    if midi.header[:2] == b"\x00\x02":
        raise ValueError("the file is of format 2, whose patterns follow one another; export it as format 1 to edit it")
    changes = _Changes(midi, before)
    if release_at is not None:
        changes.release(release_at)
    added = [
        changes.remove(number, old, new)
        for number, (old, new) in enumerate(zip(before.tracks, after.tracks, strict=True))
    ]
    for number, notes in enumerate(added):
        for note in notes:
            changes.add(number, note)
    for signature in (Counter(after.time_signatures) - Counter(before.time_signatures)).elements():
        changes.add_meta(signature.start_step, TIME_SIGNATURE, time_signature_data(*signature[1:]))
    return changes.applied(after.length_steps if after.length_steps > before.length_steps else 0)


class _Changes:
    """Edits of a file's events, gathered and then applied at once."""

    def __init__(self, midi: MidiEvents, score: Score):
        self._midi, self._tracks = midi, midi.tracks
        self._notes, self._programs = notes_of(midi), Programs(midi)
        self._parts, self._own = parts_of(score, self._notes)
        self._dropped = [set() for _ in self._tracks]
        self._moved: list[dict[int, int]] = [{} for _ in self._tracks]  # place of an event to its new tick
        self._new: list[list[tuple[int, int, bytes]]] = [[] for _ in self._tracks]  # tick, where in the tick, message

    def remove(self, number: int, old, new) -> list[Note]:
        """Take away and shorten notes of a track; returns those to be added."""
        gone, added = Counter(old) - Counter(new), Counter(new) - Counter(old)
        part = self._parts[number]
        for note in gone.elements():
            found = self._own[number][note].popleft()
            ends = [
                other.end_step for other in added if other._replace(end_step=note.end_step) == note and added[other]
            ]
            if ends and min(ends) < note.end_step:
                shortened = note._replace(end_step=min(ends))
                added[shortened] -= 1
                self._moved[part.track][found.off] = shortened.end_step
                found.note = shortened
            else:
                self._dropped[part.track] |= {found.on, found.off}
                self._notes.by_key[part.track, part.channel, note.pitch].remove(found)
        return sorted(added.elements())

    def add(self, number: int, note: Note) -> None:
        """Put a note on a track, as far as its key is free: one that would sound within another is left out."""
        part = self._parts[number]
        key = part.track, part.channel, note.pitch
        others, new = self._notes.by_key[key], self._new[part.track]
        endless = [
            other for other in others if other.note.end_step == math.inf and other.note.start_step <= note.start_step
        ]
        if endless and any(n.start_step <= note.start_step < n.end_step < math.inf for n in _of(others)):
            return  # an end for the endless one would end this one
        for other in endless:
            self._end(key, other, note.start_step, _AFTER)  # struck again: what was never switched off ends
        start, end = note.start_step, note.end_step
        # First in, first out: a note within another would end the other one.
        end = min([end, *(n.start_step for n in _of(others) if start < n.start_step and n.end_step < end)])
        if any(n.start_step <= start and end < n.end_step for n in _of(others)):
            return
        events = self._tracks[part.track].events
        self._dropped[part.track] |= {off for off in self._notes.stray_offs[key] if start < events[off].tick < end}
        others.append(FileNote(Note(start, end, note.pitch, note.velocity), part.program, -1, -1))
        program = self._programs.at(part.track, part.channel, start)
        is_other = program != part.program
        if is_other:
            new.append((start, _AFTER, bytes((PROGRAM | part.channel, part.program))))
        new.append((start, _AFTER, bytes((NOTE_ON | part.channel, note.pitch, note.velocity))))
        if is_other:
            new.append((start, _AFTER, bytes((PROGRAM | part.channel, program))))
        new.append((end, _BEFORE, bytes((NOTE_OFF | part.channel, note.pitch, 64))))

    def add_meta(self, tick: int, kind: int, data: bytes) -> None:
        self._new[0].append((tick, _AFTER, meta(kind, data)))

    def release(self, tick: int) -> None:
        """Lift pedals, centre pitch bends and end what is never switched off, at a tick, and again at the end if need
        be.
        """
        for (number, message, when), release in self._held(tick):
            self._new[number].append((when, _AFTER, message[:1] + release))
        for key, notes in self._notes.by_key.items():
            for one in notes:
                if one.note.end_step == math.inf and one.note.start_step < tick:
                    self._end(key, one, tick, _BEFORE)

    def _held(self, tick: int) -> Iterator[tuple[tuple[int, bytes, int], bytes]]:
        """Pedals and bends in force at a tick, and those that are in force at the end but came later, with their
        release.
        """
        events = []
        for number, track in enumerate(self._tracks):
            port = next((event.message[3:4] for event in track.events if event.is_meta(PORT)), b"")
            for place, event in enumerate(track.events):
                is_pedal = event.kind == CONTROLLER and event.message[1] in _PEDALS
                if is_pedal or event.kind == BEND:
                    what = event.message[1] if is_pedal else BEND
                    rest = bytes((what, 0)) if is_pedal else bytes(_CENTRE)
                    events.append((event.tick, number, place, event.message, (port, event.channel, what), rest))
        at, last = {}, {}
        for when, number, _, message, what, rest in sorted(events):
            last[what] = (number, message, when), rest
            if when <= tick:
                at[what] = (number, message, tick), rest
        later = [held for held in last.values() if held[0][2] > tick]
        yield from (held for held in (*at.values(), *later) if held[0][1][1:] != held[1])

    def _end(self, key: Key, one: FileNote, tick: int, where: int) -> None:
        self._new[key[0]].append((tick, where, bytes((NOTE_OFF | key[1], key[2], 64))))
        one.note = one.note._replace(end_step=tick)

    def applied(self, end_tick: int) -> MidiEvents:
        """The edited file; tracks that got something last until ``end_tick``."""
        tracks = list(self._tracks)
        for number, track in enumerate(tracks):
            dropped, moved, new = self._dropped[number], self._moved[number], self._new[number]
            if not (dropped or moved or new):
                continue
            placed = [
                (moved.get(place, event.tick), _BEFORE if place in moved else _THERE, event.message)
                for place, event in enumerate(track.events)
                if place not in dropped
            ]
            placed = sorted([*placed, *new], key=lambda event: event[:2])
            tracks[number] = track.edited([Event(tick, message) for tick, _, message in placed], end_tick if new else 0)
        return self._midi.with_tracks(tracks)


def _of(notes: list[FileNote]) -> Iterator[Note]:
    return (one.note for one in notes)
