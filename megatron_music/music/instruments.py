"""Names and colours of instruments: as people read them, and as people type them."""

import difflib
from collections.abc import Sequence

from megatron_music.music.names import printable
from megatron_music.music.score import VOICE_NAMES, Track

# Every colour has a contrast of 3 or more with its background (WCAG 1.4.11), and any two differ for readers with
# normal, protan and deutan vision; tests/music/test_instruments.py measures both. Voices are green, orange, blue and
# red; tracks are blue, orange, green, red, teal, violet, sand and grey.
VOICE_COLOURS = {"SOPRANO": "#1e7a5c", "ALTO": "#c77700", "TENOR": "#4a86e8", "BASS": "#8a1f11"}
TRACK_COLOURS = ("#2b6cb0", "#d97706", "#2f7d4f", "#7f1028", "#4096af", "#4c1d95", "#a58c70", "#525762")
DARK_VOICE_COLOURS = {"SOPRANO": "#4fd1a0", "ALTO": "#f5b041", "TENOR": "#5a93fe", "BASS": "#d9534a"}
DARK_TRACK_COLOURS = ("#6ca6ea", "#f0963c", "#78bfa6", "#d8443a", "#5fe2ff", "#9a63e8", "#f5e7b2", "#7d8490")

# General MIDI level 1, sixteen families of eight programs.
GENERAL_MIDI = tuple(
    name.strip()
    for family in (
        "Grand piano, Bright piano, Electric grand, Honky-tonk piano, Electric piano 1, Electric piano 2, Harpsichord, "
        "Clavinet",
        "Celesta, Glockenspiel, Music box, Vibraphone, Marimba, Xylophone, Tubular bells, Dulcimer",
        "Drawbar organ, Percussive organ, Rock organ, Church organ, Reed organ, Accordion, Harmonica, Tango accordion",
        "Nylon guitar, Steel guitar, Jazz guitar, Clean guitar, Muted guitar, Overdriven guitar, Distortion guitar, "
        "Guitar harmonics",
        "Acoustic bass, Fingered bass, Picked bass, Fretless bass, Slap bass 1, Slap bass 2, Synth bass 1, Synth "
        "bass 2",
        "Violin, Viola, Cello, Contrabass, Tremolo strings, Pizzicato strings, Harp, Timpani",
        "String ensemble 1, String ensemble 2, Synth strings 1, Synth strings 2, Choir aahs, Voice oohs, Synth voice, "
        "Orchestra hit",
        "Trumpet, Trombone, Tuba, Muted trumpet, French horn, Brass section, Synth brass 1, Synth brass 2",
        "Soprano sax, Alto sax, Tenor sax, Baritone sax, Oboe, English horn, Bassoon, Clarinet",
        "Piccolo, Flute, Recorder, Pan flute, Blown bottle, Shakuhachi, Whistle, Ocarina",
        "Square lead, Sawtooth lead, Calliope lead, Chiff lead, Charang lead, Voice lead, Fifths lead, Bass and lead",
        "New age pad, Warm pad, Polysynth pad, Choir pad, Bowed pad, Metallic pad, Halo pad, Sweep pad",
        "Rain, Soundtrack, Crystal, Atmosphere, Brightness, Goblins, Echoes, Sci-fi",
        "Sitar, Banjo, Shamisen, Koto, Kalimba, Bagpipe, Fiddle, Shanai",
        "Tinkle bell, Agogo, Steel drums, Woodblock, Taiko drum, Melodic tom, Synth drum, Reverse cymbal",
        "Fret noise, Breath noise, Seashore, Bird tweet, Telephone ring, Helicopter, Applause, Gunshot",
    )
    for name in family.split(",")
)


def instrument_name(value: str) -> str:
    """What a person calls the instrument of a token ``INST=<value>``: ``"0"`` is a grand piano.

    A value that is no program, voice or ``DRUMS`` is given back as it is.
    """
    if value.isascii() and value.isdigit() and int(value) < len(GENERAL_MIDI):
        return GENERAL_MIDI[int(value)]
    return value.capitalize() if value in (*VOICE_NAMES, "DRUMS") else value


def track_labels(tracks: Sequence[Track]) -> list[str]:
    """Names of the tracks of one piece for a legend: the voice, else the file's own name, else the General MIDI
    instrument.

    A name that several tracks share gets a number, so that no two labels are alike.
    """
    names = [
        track.voice.capitalize()
        or printable(track.name).strip()
        or instrument_name("DRUMS" if track.is_drum else str(track.program))
        for track in tracks
    ]
    labels, used = [], set(names)
    for place, name in enumerate(names):
        number = names[: place + 1].count(name)
        while names.count(name) > 1 and (f"{name} {number}" in used or f"{name} {number}" in labels):
            number += 1
        labels.append(f"{name} {number}" if names.count(name) > 1 else name)
    return labels


def track_colour(track: Track, place: int) -> str:
    """The colour of a track on white, as ``#rrggbb``; ``place`` counts the tracks of the piece from 0."""
    return VOICE_COLOURS.get(track.voice) or TRACK_COLOURS[place % len(TRACK_COLOURS)]


def css_colour(colour: str) -> str:
    """A colour of the palettes as a variable of ``PALETTE_CSS``, so that a dark page shows its dark counterpart."""
    return f"var(--c-{colour.removeprefix('#')})"


def _css_variables(dark: bool) -> str:
    pairs = [(colour, DARK_VOICE_COLOURS[voice] if dark else colour) for voice, colour in VOICE_COLOURS.items()]
    pairs += zip(TRACK_COLOURS, DARK_TRACK_COLOURS if dark else TRACK_COLOURS, strict=True)
    return "".join(f"--c-{light.removeprefix('#')}:{shown};" for light, shown in pairs)


PALETTE_CSS = (
    f":root{{{_css_variables(dark=False)}}}\n"
    f"@media(prefers-color-scheme:dark){{:root{{{_css_variables(dark=True)}}}}}\n"
)


# The names of the standard where they are not those above, by program.
_STANDARD = {
    0: "Acoustic grand piano",
    1: "Bright acoustic piano",
    2: "Electric grand piano",
    7: "Clavi",
    28: "Electric guitar (muted)",
    24: "Acoustic guitar (nylon)",
    25: "Acoustic guitar (steel)",
    26: "Electric guitar (jazz)",
    27: "Electric guitar (clean)",
    33: "Electric bass (finger)",
    34: "Electric bass (pick)",
    46: "Orchestral harp",
    50: "SynthStrings 1",
    51: "SynthStrings 2",
    62: "SynthBrass 1",
    63: "SynthBrass 2",
    80: "Lead 1 (square)",
    81: "Lead 2 (sawtooth)",
    82: "Lead 3 (calliope)",
    83: "Lead 4 (chiff)",
    84: "Lead 5 (charang)",
    85: "Lead 6 (voice)",
    86: "Lead 7 (fifths)",
    87: "Lead 8 (bass + lead)",
    88: "Pad 1 (new age)",
    89: "Pad 2 (warm)",
    90: "Pad 3 (polysynth)",
    91: "Pad 4 (choir)",
    92: "Pad 5 (bowed)",
    93: "Pad 6 (metallic)",
    94: "Pad 7 (halo)",
    95: "Pad 8 (sweep)",
    96: "FX 1 (rain)",
    97: "FX 2 (soundtrack)",
    98: "FX 3 (crystal)",
    99: "FX 4 (atmosphere)",
    100: "FX 5 (brightness)",
    101: "FX 6 (goblins)",
    102: "FX 7 (echoes)",
    103: "FX 8 (sci-fi)",
    109: "Bag pipe",
    120: "Guitar fret noise",
}
# A family, and the program that stands for it.
_FAMILIES = {
    "piano": 0,
    "organ": 16,
    "guitar": 24,
    "bass guitar": 33,
    "strings": 48,
    "ensemble": 48,
    "choir": 52,
    "brass": 61,
    "sax": 65,
    "saxophone": 65,
    "reed": 64,
    "pipe": 73,
    "synth lead": 80,
    "synth pad": 88,
    "percussion": "DRUMS",
    "drum kit": "DRUMS",
}


def _plain(name: str) -> str:
    """Small letters and digits with single spaces: punctuation is no part of a name."""
    return " ".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())


_PROGRAMS = {_plain(name): str(value) for name, value in _FAMILIES.items()}
_PROGRAMS |= {_plain(name): str(program) for program, name in _STANDARD.items()}
_PROGRAMS |= {_plain(name): str(program) for program, name in enumerate(GENERAL_MIDI)}


def read_instruments(names: Sequence[str]) -> list[str]:
    """The values of ``INST=`` tokens for what a person types.

    Args:
        names: programs 0 to 127, ``DRUMS``, voices, names or families of General MIDI, in any case. ``bass`` is the
            voice beside voices alone, and a bass guitar beside other instruments; ``BASS`` is always the voice.

    Raises:
        ValueError: a name is unknown; with those that are nearest.
    """
    names = [name.strip() for name in names]
    voices_only = all(name.upper() in VOICE_NAMES for name in names)
    return [_read_instrument(name, voices_only) for name in names]


def _read_instrument(name: str, voices_only: bool) -> str:
    upper, plain = name.upper(), _plain(name)
    if name.isascii() and name.isdigit() and int(name) < len(GENERAL_MIDI):
        return str(int(name))
    if upper == "DRUMS" or (upper in VOICE_NAMES and (upper != "BASS" or voices_only or name == upper)):
        return upper
    if upper == "BASS":
        return _PROGRAMS["bass guitar"]
    if plain in _PROGRAMS:
        return _PROGRAMS[plain]
    known = [*_PROGRAMS, "drums", *map(str.lower, VOICE_NAMES)]
    near = difflib.get_close_matches(plain, known, 3) or [other for other in known if plain and plain in other][:3]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else f"use a General MIDI name, 0..127, DRUMS or {', '.join(VOICE_NAMES)}"
    )
    raise ValueError(f"instrument {name!r} is unknown; {hint}")
