"""The content of a MIDI file as tables: its header, the two ways to read its chunks, and what is wrong with it, in
words.
"""

import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megatron_music.music.midi_arrays import read_arrays
from megatron_music.music.midi_bytes import (
    CHUNK,
    CONTROL_FIELDS,
    CONTROLS,
    CUT,
    DATA,
    FULL,
    HANGING,
    HEAD_FIELDS,
    LATE,
    LONG,
    MARK_FIELDS,
    MARKS,
    NO_CHUNK,
    NOTE_FIELDS,
    NOTES,
    NUM_NUMBERS,
    PLACE,
    SHORT,
    STATUS,
    TABLE_LENGTHS,
    TRACKS,
    UNKNOWN,
    order_tracks,
    read_file,
)

FIRST_ROOM = 1 << 18  # rows of each table, before more are asked for
MAX_TRACKS = 1 << 14


class MidiError(ValueError):
    """A file is no MIDI, is damaged, or holds what music cannot."""


class Header(NamedTuple):
    """Of a MIDI file: the bytes without a RIFF wrapper, where the first chunk after the header begins, and what it
    says.
    """

    content: bytes
    place: int
    form: int  # format 0, 1 or 2
    chunks: int
    ticks_per_quarter: int


def read_header(content: bytes, where: str) -> Header:
    """Refuse bytes that are no MIDI file in ticks per quarter note.

    A header may be long, and an unknown format is read as 1.
    """
    if not content:
        raise MidiError(f"{where} is empty; skip it")
    if content[:4] == b"RIFF" and content[8:12] == b"RMID":
        content = _inside_riff(content)
    if content[:4] != b"MThd":
        raise MidiError(f"{where} is no MIDI file (it does not begin with MThd); skip it")
    if len(content) < 14:
        raise MidiError(f"{where} is damaged (it ends within its header, after {len(content)} bytes); skip it")
    length, form, chunks, division = struct.unpack(">IHHH", content[4:14])
    if division >= 0x8000:
        raise MidiError(f"{where} counts time in SMPTE frames, not quarters; export it with ticks per quarter note")
    if division == 0:
        raise MidiError(f"{where} has 0 ticks in a quarter note, so no note has a length; skip it")
    return Header(content, 8 + max(length, 6), form if form <= 2 else 1, chunks, division)


def _inside_riff(content: bytes) -> bytes:
    """What the data chunk of a RIFF file holds; empty if there is none."""
    place = 12
    while place + 8 <= len(content):
        (length,) = struct.unpack("<I", content[place + 4 : place + 8])
        if content[place : place + 4] == b"data":
            return content[place + 8 : place + 8 + length]
        place += 8 + length + length % 2
    return b""


class Tables(NamedTuple):
    """The content of a file, or what is wrong with it."""

    error: int  # of ``midi_bytes``, or 0
    numbers: Sequence[int]  # of ``midi_bytes``
    columns: np.ndarray  # as ``Score.columns``
    limits: Sequence[int]  # where each track begins in them, and the end of the last
    heads: list[list[int]]  # of each track, in the order of fields of ``midi_bytes``; the first four are there
    marks: list[list[int]]  # tempos and meters
    controls: np.ndarray  # integers [C, 5]


def read_tables(header: Header, lenient: bool) -> Tables:
    """The content of a file: by array arithmetic where it is regular, else by the loop."""
    found = read_arrays(*header[:4], MAX_TRACKS)
    return Tables(0, *found) if found else loop_tables(header, lenient)


def loop_tables(header: Header, lenient: bool) -> Tables:
    """The content of a file by the loop of ``midi_bytes``."""
    size = len(header.content)
    room = min(size // 3 + 1, FIRST_ROOM)
    while True:
        notes, marks = array("i", bytes(4 * NOTE_FIELDS * room)), array("i", bytes(4 * MARK_FIELDS * room))
        heads = array("i", bytes(4 * HEAD_FIELDS * min(room, MAX_TRACKS)))
        controls = array("i", bytes(4 * CONTROL_FIELDS * 3 * room))  # a program takes two bytes, and a second row
        numbers = [0] * NUM_NUMBERS
        tables = tuple([-1] * length for length in TABLE_LENGTHS)
        error = read_file(*header[:4], lenient, notes, marks, controls, heads, numbers, tables)
        if error != FULL or room > size // 3:
            break
        room = min(4 * room, size // 3 + 1)
    new = array("i", bytes(4 * numbers[TRACKS]))
    order_tracks(heads, numbers[TRACKS], new)
    rows = np.frombuffer(notes, np.int32)[: NOTE_FIELDS * numbers[NOTES]].reshape(-1, NOTE_FIELDS)
    is_whole = rows[:, 2] >= 0
    numbers[HANGING] = len(rows) - int(np.count_nonzero(is_whole))
    rows = rows[is_whole]
    track = np.frombuffer(new, np.int32)[rows[:, 0]] if len(rows) else rows[:, 0]
    order = np.argsort(track, kind="stable")
    columns = np.empty((5, len(rows)), np.int64)
    columns[0], columns[1:] = track[order], rows[order, 1:5].T
    limits = columns[0].searchsorted(np.arange(numbers[TRACKS] + 1)).tolist()
    return Tables(
        error,
        numbers,
        columns,
        limits,
        _rows(heads, HEAD_FIELDS, numbers[TRACKS]).tolist(),
        _rows(marks, MARK_FIELDS, numbers[MARKS]).tolist(),
        _rows(controls, CONTROL_FIELDS, numbers[CONTROLS]),
    )


def _rows(table: array, fields: int, count: int) -> np.ndarray:
    return np.frombuffer(table, np.int32)[: fields * count].reshape(-1, fields).astype(np.int64)


def damage(error: int, numbers: Sequence[int], header: Header) -> str:
    """What is wrong with a file's bytes, in words."""
    place, chunk = int(numbers[PLACE]), int(numbers[CHUNK]) + 1
    byte = header.content[place] if place < len(header.content) else 0
    return {
        FULL: "it has more tracks than can be read",
        CUT: f"track chunk {chunk} ends inside an event",
        DATA: f"track chunk {chunk} has a data byte above 127 at byte {place:,}",
        STATUS: f"track chunk {chunk} has a data byte where an event should begin, at byte {place:,}",
        UNKNOWN: f"track chunk {chunk} has the undefined status byte 0x{byte:02x} at byte {place:,}",
        LONG: f"track chunk {chunk} has a length of more than four bytes",
        LATE: f"track chunk {chunk} goes beyond {1 << 31:,} ticks",
        NO_CHUNK: f"no chunk begins at byte {place:,}, where track chunk {chunk} should",
        SHORT: f"track chunk {chunk} is cut off by the end of the file",
    }[error]
