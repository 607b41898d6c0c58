"""Songs as bytes, with everything that a file of a user may hold."""

from itertools import pairwise

from raw_midi import END, quantity, smf

QUARTER = 96


def at_times(*events: tuple[int, bytes]) -> bytes:
    """Events at ticks as the bytes of an MTrk."""
    events = sorted(events, key=lambda event: event[0])
    ticks = [0, *(tick for tick, _ in events)]
    deltas = [quantity(after - before) for before, after in pairwise(ticks)]
    return b"".join(delta + message for delta, (_, message) in zip(deltas, events, strict=True)) + END


def quarters(channel: int, pitch: int, velocity: int, count: int = 22) -> list[tuple[int, bytes]]:
    """Quarters a tick or two beside the grid."""
    found = []
    for place in range(count):
        start = place * QUARTER + place % 3
        found += [
            (start, bytes((0x90 | channel, pitch, velocity + place))),
            (start + 90, bytes((0x80 | channel, pitch, 30))),
        ]
    return found


# 2 bars of 4/4, one of 2/4, 3 of 4/4: 22 quarters.
CONDUCTOR = [
    (0, b"\xff\x03\x05Gl\xfcck"),
    (0, b"\xff\x51\x03\x0c\xb7\x35"),
    (0, b"\xff\x58\x04\x04\x02\x18\x08"),
    (0, b"\xff\x59\x02\x02\x00"),
    (768, b"\xff\x58\x04\x02\x02\x18\x08"),
    (960, b"\xff\x58\x04\x04\x02\x18\x08"),
    (961, b"\xff\x51\x03\x06\x5b\x9a"),
    (100, b"\xff\x05\x02la"),
    (500, b"\xff\x05\x03lu\x20"),
    (0, b"\xf0\x05\x7e\x7f\x09\x01\xf7"),
]


PIANO = [
    (0, b"\xc0\x04"),
    (0, b"\xb0\x07\x64"),
    (0, b"\xb0\x0a\x20"),
    (0, b"\xb0\x40\x7f"),
    (1900, b"\xb0\x40\x00"),
    (2000, b"\xb0\x40\x7f"),
    (300, b"\xe0\x00\x50"),
    (310, b"\xd0\x40"),
    (320, b"\xe0\x00\x40"),
    *quarters(0, 60, 50),
]


DRUMS = [(0, b"\xc9\x19"), (0, b"\xff\x21\x01\x00"), *quarters(9, 36, 80)]


SONGS = {
    0: smf(at_times(*CONDUCTOR, *PIANO, *DRUMS), form=0, division=QUARTER),
    1: smf(at_times(*CONDUCTOR), at_times(*PIANO), at_times(*DRUMS), division=QUARTER),
}
