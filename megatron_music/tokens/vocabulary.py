"""The vocabulary ``mmmtrack-1``: a fixed list of ranges of token ids.

Ids never depend on data. The ranges for options that are off by default have their place here, so that an id
keeps its meaning when an option is turned on: never renumber, never reorder. The vocabulary's hash is stored
beside every dataset and checkpoint, and a reader refuses another one.

The size, 768 = 6 x 128, divides evenly among tensor-parallel ranks without padding. The document end is the
last id, where Megatron's NullTokenizer expects it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from megatron_music.music.score import METER_COUNTS, METER_UNITS, VOICE_NAMES
from megatron_music.music.tempo import TEMPO_BINS, tempo_of_bin

NAME = "mmmtrack-1"
DRUMS = "DRUMS"
MAX_TIME_DELTA = 48  # one 4/4 bar of 12 steps a quarter


class Block(NamedTuple):
    """A contiguous range of ids; its tokens read ``NAME=value``, or just ``value`` where the name is empty."""

    name: str
    values: tuple[str, ...]

    def tokens(self) -> list[str]:
        return [f"{self.name}={value}" if self.name else value for value in self.values]


def _numbers(count: int, first: int = 0) -> tuple[str, ...]:
    return tuple(str(value) for value in range(first, first + count))


BLOCKS = (
    Block("", ("PAD", "PIECE_START", "PIECE_END", "TRACK_START", "TRACK_END", "BAR_START", "BAR_END")),
    Block("", ("FILL_IN", "FILL_START", "FILL_END")),
    Block("INST", (*_numbers(128), DRUMS, *VOICE_NAMES)),
    Block("DENSITY", _numbers(10)),
    Block("TIME_DELTA", _numbers(MAX_TIME_DELTA, first=1)),
    Block("NOTE_ON", _numbers(128)),
    Block("NOTE_OFF", _numbers(128)),
    # For options that are off by default.
    Block("TIME_SIGNATURE", tuple(f"{n}/{d}" for d in METER_UNITS for n in METER_COUNTS)),
    Block("TEMPO", _numbers(32)),
    Block("VELOCITY", _numbers(32)),
    Block("GENRE", _numbers(128)),
    Block("STYLE", _numbers(32)),
    Block("RESERVED", _numbers(22)),
    Block("", ("DOCUMENT_END",)),
)

TOKENS: tuple[str, ...] = tuple(token for block in BLOCKS for token in block.tokens())
IDS: dict[str, int] = {token: token_id for token_id, token in enumerate(TOKENS)}
SIZE = len(TOKENS)
HASH = hashlib.sha256("\n".join((NAME, *TOKENS)).encode()).hexdigest()

PAD = IDS["PAD"]
PIECE_START, PIECE_END = IDS["PIECE_START"], IDS["PIECE_END"]
TRACK_START, TRACK_END = IDS["TRACK_START"], IDS["TRACK_END"]
BAR_START, BAR_END = IDS["BAR_START"], IDS["BAR_END"]
FILL_IN, FILL_START, FILL_END = IDS["FILL_IN"], IDS["FILL_START"], IDS["FILL_END"]
DOCUMENT_END = IDS["DOCUMENT_END"]

# The first id of each range: NOTE_ON=p is NOTE_ON + p, TIME_DELTA=d is TIME_DELTA + d (there is no TIME_DELTA=0).
INST = IDS["INST=0"]
DENSITY = IDS["DENSITY=0"]
TIME_DELTA = IDS["TIME_DELTA=1"] - 1
NOTE_ON = IDS["NOTE_ON=0"]
NOTE_OFF = IDS["NOTE_OFF=0"]
TIME_SIGNATURE = IDS["TIME_SIGNATURE=1/2"]
TEMPO = IDS["TEMPO=0"]
VELOCITY = IDS["VELOCITY=0"]
NUM_INSTRUMENTS = 128 + 1 + len(VOICE_NAMES)
NUM_DENSITIES = 10
NUM_VELOCITIES = 32


def to_ids(text: str, ids: Mapping[str, int] = IDS) -> np.ndarray:
    """Token ids (uint16) of whitespace-separated tokens.

    Args:
        ids: the id of each word; another mapping than the vocabulary's own knows the names of a dataset's labels.

    Raises:
        ValueError: a word is no token of this vocabulary; the sentence names it and its place.
    """
    words = text.split()
    try:
        return np.fromiter((ids[word] for word in words), np.uint16, len(words))
    except KeyError as error:
        place = words.index(error.args[0]) + 1
        raise ValueError(
            f"token {place} is {error.args[0]!r}, which is not in the vocabulary {NAME}; docs/vocabulary.md lists it"
        ) from None


def to_text(token_ids, tokens: Sequence[str] = TOKENS) -> str:
    """Tokens of ``token_ids``, separated by one space.

    Args:
        tokens: the word of each id.

    Raises:
        ValueError: an id is outside the vocabulary.
    """
    ids = np.asarray(token_ids, np.int64)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(tokens):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(f"token id {wrong} is outside 0..{len(tokens) - 1} of {NAME}")
    return " ".join(tokens[token_id] for token_id in ids.tolist())


def markdown() -> str:
    """docs/vocabulary.md: ``python -m megatron_music.tokens.vocabulary > docs/vocabulary.md``."""
    meanings = {
        "INST": "instrument: General MIDI program, drums, or a voice of four-voice music",
        "DENSITY": "how many notes the track has in the window, or in a bar: a level, see the bins",
        "TIME_DELTA": "rest or held time, in grid steps",
        "NOTE_ON": "a note begins; the value is the MIDI pitch",
        "NOTE_OFF": "it ends",
        "TIME_SIGNATURE": "the meter of the first bar, or of a bar in which it changes",
        "TEMPO": "its tempo: bin k is around 30 * 8^(k/31) quarter notes per minute, 30 to 240; read as below",
        "VELOCITY": "how hard the next note is struck: k is MIDI velocity 4k to 4k + 3, read as 4k + 2",
        "GENRE": "label; the numbers stand for names that a dataset freezes",
        "STYLE": "label, likewise",
        "RESERVED": "all other labels of a dataset, such as `MOOD=HAPPY`",
    }
    tempos = ", ".join(f"{tempo_of_bin(bin_):g}" for bin_ in range(TEMPO_BINS))
    rows, first = [], 0
    for block in BLOCKS:
        tokens = block.tokens()
        if block.name:
            last = first + len(tokens) - 1
            rows.append(f"| {first}-{last} | `{tokens[0]}` .. `{tokens[-1]}` | {meanings[block.name]} |")
        else:
            rows += [f"| {first + place} | `{token}` | |" for place, token in enumerate(tokens)]
        first += len(tokens)
    return f"""# The vocabulary {NAME}

{SIZE} token ids in fixed ranges, stored as uint16. Generated by `python -m megatron_music.tokens.vocabulary`.
SHA-256 of the name and all tokens: `{HASH}`.

| ids | tokens | meaning |
| --- | --- | --- |
{chr(10).join(rows)}

Ids never depend on data and never move. Transposing by k adds k to every NOTE_ON and NOTE_OFF id of a pitched track.

## Grammar

```
piece := PIECE_START label* [TEMPO] [TIME_SIGNATURE] track+ fill* DOCUMENT_END
label := STYLE=<name> | GENRE=<name> | <LABEL>=<name>
track := TRACK_START INST=<..> [DENSITY] bar+ TRACK_END
bar   := BAR_START [TIME_SIGNATURE] [TEMPO] [DENSITY] ( event* | FILL_IN ) BAR_END
event := TIME_DELTA=<1..{MAX_TIME_DELTA}> | [VELOCITY] NOTE_ON=<pitch> | NOTE_OFF=<pitch>
fill  := FILL_START event* FILL_END
```

A dataset's `tokenizer/mmmtrack.json` says which of the options are on; without any, a piece has none of what stands in
brackets, no label, no fill, and 4/4 bars alone.

- All tracks of a piece have the same number of bars.
- Time restarts in each bar. A rest before an event is written, a rest before BAR_END or FILL_END is not. A rest of more
  than {MAX_TIME_DELTA} steps is as many TIME_DELTA={MAX_TIME_DELTA} as fit, then what remains.
- At one time NOTE_OFF comes before NOTE_ON, each by rising pitch. At most one note sounds for each track and pitch.
- A note that ends on a bar line is switched off in the bar it fills, at its last step.
- A note across a bar line: `carry` switches it off in the later bar (the default), `clip` ends it with the bar it starts
  in, `split` strikes it again in each bar.
- A window begins by striking what sounds on, and ends by closing it.
- **Meter.** A bar of n/d has 4n/d quarters, which must be whole steps: at 4 steps a quarter 16 steps in 4/4, 12 in 3/4
  and 6/8; at 12 steps three times as many. With `meters` beyond 4/4 the head has the TIME_SIGNATURE of the first bar.
  A count above 16 has no token: the range is full, and ids never move. Where a meter of the range has bars of the same
  length, that is written and counted, such as 12/8 for 24/16; otherwise, as for 21/16, the part is left out and counted.
- **Tempo.** With `tempo` the head has the TEMPO of the first bar. A tempo goes to the bin nearest to it, and a bin is read as
  the roundest number in it ([decision 0012](decisions/0012-what-reading-settles.md)), so that 120 stays 120. TEMPO=0 to 31 are
  {tempos} quarter notes per minute.
- A later bar has TIME_SIGNATURE or TEMPO where it differs from the bar before it in this document. All tracks have the
  same ones at the same bars.
- **Velocity.** With `velocity` each NOTE_ON has one VELOCITY directly before it.
- **Density.** With `density` each track has one after INST, with `bar_density` each bar. Level k is the number of
  `density_bins` (`bar_density_bins`) that the number of notes reaches.
- **Labels.** At most one of each, in the order of `labels` in mmmtrack.json, which also freezes the names: the first name
  of GENRE is id {IDS["GENRE=0"]}, the second the next one. STYLE has its own range too; the names of all other labels
  follow one another in RESERVED. In text a label reads `GENRE=JAZZ`.
- **Infill.** A bar with FILL_IN has its events in a fill after the last track: one fill for each FILL_IN, in their order.

## Merged tokens

With `bpe` the ids from {SIZE} on are merged tokens: each stands for a run of events within one bar or fill, and reads
`NOTE_ON=60+TIME_DELTA=4`. `tokenizer/bpe.json` lists what each one spells; putting that in its place gives back the
tokens above exactly. Merges never cross a bar and never hold anything but TIME_DELTA, VELOCITY, NOTE_ON and NOTE_OFF.
Their number is a multiple of 128, unless the data has fewer than 128 pairs to merge: the size of the vocabulary divides
among tensor-parallel ranks.

PIECE_END is read as the end of a piece, and not written.
"""


if __name__ == "__main__":
    print(markdown(), end="")
