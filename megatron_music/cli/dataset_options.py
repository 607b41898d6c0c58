"""The words of ``build``: its options in groups, and the ``BuildOptions`` that were typed."""

import argparse
import re

# argparse takes a word that begins with a minus for an option unless it looks like a number: ranges do too.
NEGATIVE_NUMBER_OR_RANGE = re.compile(r"-\d+(\.\d+)?(\.\.(-?\d+(\.\d+)?)?)?$")


def number_range(kind: type):
    """Reads ``2..8``, ``2..`` and ``..8``: (lowest, highest), None for a side left open."""

    def read(text: str) -> tuple:
        low, dots, high = text.partition("..")
        try:
            if not dots or not low + high:
                raise ValueError
            return tuple(kind(side) if side else None for side in (low, high))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no range; write 2..8, 2.. or ..8") from None

    return read


def _closed_range(text: str) -> tuple[int, int]:
    low, high = number_range(int)(text)
    if low is None or high is None:
        raise argparse.ArgumentTypeError(f"{text!r} is open on a side; write both numbers, such as -5..6")
    return low, high


def add_encoding_options(parser, bars: int, meters: str = "") -> None:
    """How music becomes tokens: what `tokenize` and `build` share, but for the default of some."""
    add = parser.add_argument
    add("--bars", type=int, default=bars, metavar="W", help=f"bars of a window; 0: the whole piece (default {bars})")
    add("--hop", type=int, default=1, metavar="H", help="bars from one window to the next (default 1)")
    add(
        "--bar-line", default="carry", choices=("carry", "clip", "split"), help="notes across bar lines (default carry)"
    )
    add("--steps-per-quarter", type=int, default=4, choices=(4, 12), help="the grid: 16ths, or 12 for triplets too")
    shown = meters or "4/4, or all for a piece that is not all in it"
    add("--meters", default=meters, metavar="M,M", help=f"time signatures to take: 4/4,3/4 or all (default {shown})")
    unknown = (
        "meters read as if not declared: auto (a 1/4 that is a file's only meter), none, or a list such as 1/4 "
        "(default auto)"
    )
    add("--unknown-meters", default="auto", metavar="M,M", help=unknown)
    add("--velocity", action="store_true", help="a VELOCITY before each note")
    add("--tempo", action="store_true", help="TEMPO at the start and where it changes")
    add(
        "--voices",
        default="auto",
        choices=("auto", "names", "off"),
        help="tracks as SOPRANO .. BASS: named so or four unnamed lines of a choir, piano or organ (auto), or only "
        "named",
    )
    add(
        "--pedal",
        default="auto",
        choices=("auto", "extend", "ignore"),
        help="notes as long as the sustain pedal holds them: on keyboards (auto), on every instrument, or never",
    )


def add_build_options(parser: argparse.ArgumentParser) -> None:
    """What `build tokens` and `build plan` are asked for."""
    sources = "a MIDI file, folder, .tar[.gz], .zip, or .txt list of them"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=sources)
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the dataset's folder, made by the build")

    encoding = parser.add_argument_group("encoding")
    add_encoding_options(encoding, bars=4, meters="all")
    add = encoding.add_argument
    add(
        "--density",
        type=int,
        default=0,
        metavar="LEVELS",
        help="levels of DENSITY for each track, by quantiles of train",
    )
    add("--bar-density", type=int, default=0, metavar="LEVELS", help="the same for each bar")
    add("--infill", type=float, default=0.0, metavar="SHARE", help="share of windows with bars to fill in")
    add("--labels", default="", metavar="CSV", help="GENRE, STYLE and others, by path, md5 or sha256")
    add("--bpe", type=int, default=0, metavar="MERGES", help="merged tokens to learn from train")

    add = parser.add_argument_group("augmentation (train only)").add_argument
    add("--copies", type=int, default=1, metavar="N", help="each window as it is, and N - 1 changed")
    add("--transpose", type=_closed_range, default=(0, 0), metavar="LOW..HIGH", help="semitones, such as -5..6")
    add("--permute-tracks", action="store_true", help="tracks in another order")

    add = parser.add_argument_group("filters (ranges such as 2..8, 2.. or ..8)").add_argument
    whole, any_number, open_range = number_range(int), number_range(float), (None, None)
    add("--piece-bars", type=whole, default=open_range, metavar="A..B", help="bars of a stretch of music")
    add("--tracks", type=whole, default=open_range, metavar="A..B", help="tracks that play in a window")
    add("--notes-per-bar", type=any_number, default=open_range, metavar="A..B", help="of all tracks")
    add("--empty-tracks", type=whole, default=open_range, metavar="A..B", help="tracks that rest in a window")
    add("--pitches", type=whole, default=open_range, metavar="A..B", help="every pitch of a window, drums aside")

    add = parser.add_argument_group("files").add_argument
    add("--drop-duplicates", action="store_true", help="leave out files whose notes an earlier one has")
    add("--no-sanitize", action="store_true", help="do not read damaged files again with their bytes clamped")
    add("--seconds-per-file", type=float, default=60.0, metavar="S", help="then a file is given up (default 60)")
    add("--seed", type=int, default=0, help="of the split, augmentation and infill")
    add("--split", default="0.9,0.05,0.05", metavar="TRAIN,VALID,TEST", help="shares of the music")
    groups = "keep together, or split as given: folder, FILE.csv:COLUMN, or a pattern with a (group) of the path"
    add("--split-by", default="", metavar="WHAT", help=groups)
    formats = ".bin/.idx, or .txt with one window per line (default megatron)"
    add("--format", default="megatron", choices=("megatron", "text", "both"), help=formats)


def encoding_of(options: argparse.Namespace, **more):
    """The ``Encoding`` that was typed."""
    from megatron_music.tokens.encoding import Encoding

    unknown = _listed(options.unknown_meters)
    return Encoding(
        options.steps_per_quarter,
        options.bars,
        options.hop,
        options.bar_line,
        _listed(options.meters),
        tuple(meter for meter in unknown if meter not in ("auto", "none")),
        options.velocity,
        options.tempo,
        voices=options.voices,
        pedal=options.pedal,
        lone_quarter_undeclared="auto" in unknown,
        **more,
    )


def _listed(text: str) -> tuple[str, ...]:
    """The words between commas, each once."""
    return tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))


def build_options_of(options: argparse.Namespace):
    """The ``BuildOptions`` that were typed.

    Raises:
        ValueError: they do not go together.
    """
    from megatron_music.data.build_options import FORMATS, BuildOptions, Filters

    try:
        train, valid, test = (float(part) for part in options.split.split(","))
    except ValueError:
        raise ValueError(f"--split is {options.split!r}; give three fractions such as 0.9,0.05,0.05") from None
    return BuildOptions(
        encoding_of(
            options,
            density=options.density,
            bar_density=options.bar_density,
            infill=options.infill > 0,
            bpe=options.bpe,
        ),
        seed=options.seed,
        fractions=(train, valid, test),
        split_by=options.split_by,
        copies=options.copies,
        transpose=options.transpose,
        permute_tracks=options.permute_tracks,
        infill=options.infill,
        drop_duplicates=options.drop_duplicates,
        filters=Filters(
            options.piece_bars, options.tracks, options.notes_per_bar, options.empty_tracks, options.pitches
        ),
        sanitize=not options.no_sanitize,
        seconds_per_file=options.seconds_per_file,
        labels=options.labels,
        formats=FORMATS if options.format == "both" else (options.format,),
    )
