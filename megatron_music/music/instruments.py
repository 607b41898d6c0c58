"""Names and colours of instruments, for people to read. Knows nothing about tokens or pictures."""

from megatron_music.music.score import VOICE_NAMES

VOICE_COLOURS = {"SOPRANO": "#2a9d4a", "ALTO": "#f28c28", "TENOR": "#2f6fde", "BASS": "#d62f2f"}
TRACK_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac")

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
        "Acoustic bass, Fingered bass, Picked bass, Fretless bass, Slap bass 1, Slap bass 2, Synth bass 1, Synth bass 2",
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
