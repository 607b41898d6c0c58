"""The command ``generate midi``. Heavy imports happen inside the functions."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_music.cli.console import (
    check_one_file,
    print_next,
    print_result,
    progress_bar,
)
from megatron_music.config.errors import counted
from megatron_music.config.log import LOADING, announce, command_line, logger
from megatron_music.generation.output_folder import OutputFolder, output_folder

if TYPE_CHECKING:
    from megatron_music.music.score import Score
    from megatron_music.tokens.encoding import Encoding


def add_generate_midi(parser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run's folder, or one of its iter_ folders")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the pieces")
    parser.add_argument("--num", type=int, default=1, metavar="N", help="number of pieces")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="piece k is made from seed S + k")
    parser.add_argument(
        "--bars",
        type=int,
        default=None,
        metavar="N",
        help="length in bars (with --continue: of the new part); by default as many as a window of the model's data",
    )
    parser.add_argument("--continue", dest="continued", default=None, metavar="FILE.mid", help="continue this piece")
    parser.add_argument(
        "--infill", default=None, metavar="BARS", help='which bars to rewrite: "track 2 bars 3-4", "track 1", "bar 7"'
    )
    parser.add_argument("--from", dest="source", default=None, metavar="FILE.mid", help="with --infill: the piece")
    parser.add_argument(
        "--meter", default=None, metavar="N/D", help="meter of all bars, such as 3/4; by default the model's choice"
    )
    parser.add_argument(
        "--tempo",
        type=float,
        default=None,
        metavar="QPM",
        help="tempo in quarter notes per minute; by default the model's choice",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a label of the data, such as GENRE=JAZZ; may be repeated",
    )
    parser.add_argument(
        "--instruments",
        default=None,
        metavar="A,B",
        help="General MIDI names or families, programs, DRUMS or voices: piano,violin or 0,32,DRUMS or "
        "SOPRANO,ALTO,TENOR,BASS",
    )
    parser.add_argument(
        "--density",
        type=_levels,
        default=None,
        metavar="L[,L]",
        help="how many notes, in the model's levels from 0: of all tracks, or of each of the --instruments",
    )
    parser.add_argument(
        "--bar-density",
        type=int,
        default=None,
        metavar="L",
        help="how many notes in each bar, in the model's levels from 0",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="below 1: safer choices; above 1: bolder ones"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="sample from the K most likely tokens; 0 for all"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens that together have probability P",
    )
    parser.add_argument("--batch-size", type=int, default=16, metavar="B", help="pieces generated at a time")
    parser.add_argument(
        "--tensor-model-parallel-size",
        type=int,
        default=None,
        metavar="N",
        help="under torchrun: processes a layer is split over, by default all; the rest are pipeline stages",
    )
    parser.add_argument("--json", action="store_true", help="print the files written as JSON")


def _levels(text: str) -> list[int]:
    try:
        return [int(level) for level in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no level; use whole numbers from 0, e.g. 2 or 2,0,1") from None


def generate_midi(options) -> None:
    if options.num < 1 or options.batch_size < 1:
        raise ValueError(f"--num is {options.num} and --batch-size {options.batch_size}; both must be 1 or more")
    if options.bars is not None and options.bars < 1:
        raise ValueError(f"--bars is {options.bars}; use 1 or more")
    _check_given_piece(options)
    given, holes = None, None
    if options.infill:
        from megatron_music.generation.infill import parse_bars

        holes = parse_bars(options.infill)
    encoding = _check_wishes(options)
    if options.continued or options.infill:
        from megatron_music.music.midi import read_midi

        given = read_midi(options.continued or options.source, voices=encoding.voices if encoding else "auto")
        _check_fits(given, holes, encoding)
    width = max(len(str(options.num)), 3)
    names = [f"{number:0{width}}.mid" for number in range(1, options.num + 1)]
    holds = os.environ.get("RANK", "0") == "0"
    with output_folder(options.output, "generate midi", names, _settings(options), holds=holds) as output:
        announce(LOADING)
        from megatron_music.generation.from_checkpoint import load_composer
        from megatron_music.generation.sampling import Sampler
        from megatron_music.parallel import distributed

        sampler = Sampler(options.temperature, options.top_k, options.top_p)
        composer = load_composer(options.checkpoint, options.tensor_model_parallel_size, sampler)
        try:
            missing = distributed.on_main(lambda: output.missing(composer.made_with))
            bars = _write_pieces(options, composer, given, holes, output, missing, speaks=distributed.is_main())
            if distributed.is_main():
                _report(options, output, missing, bars)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped; the pieces in {options.output} are whole, and the same command goes on"
            ) from None
        finally:
            distributed.stop()


def _settings(options) -> dict:
    """What pieces follow from, beside the model and their number."""
    names = (
        "seed",
        "bars",
        "infill",
        "meter",
        "tempo",
        "label",
        "instruments",
        "density",
        "bar_density",
        "temperature",
        "top_k",
        "top_p",
    )
    return {name: getattr(options, name) for name in names} | {
        "continues": bool(options.continued),
        "given_sha256": digest_of_given(options.continued or options.source),
    }


def digest_of_given(path: str | None) -> str | None:
    """SHA-256 of a file that is given to go on from; None where there is none.

    Raises:
        ValueError: it cannot be read.
    """
    from megatron_music.storage.reading import hash_of_file

    try:
        return hash_of_file(path) if path else None
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); name another file") from None


def _check_given_piece(options) -> None:
    """Refuse options that contradict the piece that is given."""
    for name, path in (("--continue", options.continued), ("--from", options.source)):
        if path:
            check_one_file(path, name)
    if bool(options.infill) != bool(options.source):
        raise ValueError(
            "--infill and --from go together: give --infill the bars to rewrite and --from the file they are in"
        )
    if options.infill and options.continued:
        raise ValueError("--infill does not go with --continue; do one after the other")
    wishes = {"--instruments": options.instruments, "--meter": options.meter, "--tempo": options.tempo}
    wishes |= {"--density": options.density, "--bar-density": options.bar_density}
    for verb, does, rest in (
        ("--continue", options.continued, {}),
        ("--infill", options.infill, {"--bars": options.bars}),
    ):
        wrong = [name for name, wish in (wishes | rest).items() if does and wish is not None]
        if wrong:
            raise ValueError(f"{wrong[0]} does not go with {verb}: the piece keeps its own; omit it")


def _check_fits(given: "Score", holes, encoding: "Encoding | None") -> None:
    """Refuse bars that the piece does not have, and a piece that the model cannot go on with, before the model is
    loaded.
    """
    from megatron_music.generation.continuing import Continuation
    from megatron_music.generation.infill import Filling

    if encoding and holes:
        Filling(given, holes, encoding)
    elif encoding:
        Continuation(given, encoding)


def _check_wishes(options) -> "Encoding | None":
    """Refuse what the model cannot do, as its tokenizer says, before torch and the model are loaded.

    Returns:
        The model's encoding; None where no tokenizer was found.
    """
    from megatron_music.generation.controls import (
        bar_density_id,
        density_ids,
        instrument_ids,
        label_ids,
        meter_id,
        tempo_id,
    )
    from megatron_music.music.instruments import read_instruments
    from megatron_music.tokens.tokenizer_folder import read_encoding

    instruments = instrument_ids(read_instruments(options.instruments.split(","))) if options.instruments else None
    folder = Path(options.checkpoint)
    if (folder / "run" / "latest").is_file() and not (folder / "latest").is_file():
        raise ValueError(f"{folder} holds no checkpoint, but {folder / 'run'} does; name that")
    tokenizers = [folder / "tokenizer", *sorted(folder.glob("iter_*/tokenizer"), reverse=True)]
    found = next((path for path in tokenizers if (path / "mmmtrack.json").is_file()), None)
    if found is None:
        return None  # what loads the checkpoint says what is wrong with it
    encoding = read_encoding(found)
    if options.infill and not encoding.infill:
        raise ValueError("this model has not learned to fill bars; train it on data built with --infill")
    if options.meter is not None:
        meter_id(options.meter, encoding)
    if options.tempo is not None:
        tempo_id(options.tempo, encoding)
    if options.density is not None:
        density_ids(options.density, instruments, encoding)
    if options.bar_density is not None:
        bar_density_id(options.bar_density, encoding)
    label_ids(options.label, encoding)
    return encoding


def _write_pieces(
    options, composer, given, holes, output: OutputFolder, missing: list[int], speaks: bool
) -> dict[int, int]:
    """Write the pieces that are missing, by number; gives the bars of each. One that cannot be written is left out."""
    from megatron_music.generation.continuing import Continuation
    from megatron_music.music.instruments import read_instruments
    from megatron_music.music.midi import read_midi, write_midi, write_midi_bytes
    from megatron_music.music.midi_edits import written_into
    from megatron_music.music.midi_events import read_events

    file = None if given is None else read_events(options.continued or options.source)
    sounding = None
    if given is not None and composer.encoding.pedal != "ignore":
        sounding = read_midi(
            options.continued or options.source, voices=composer.encoding.voices, pedal=composer.encoding.pedal
        )
    song = None if given is None or holes else Continuation(given, composer.encoding, sounding)
    instruments = read_instruments(options.instruments.split(",")) if options.instruments else None
    bars, written = options.bars or composer.encoding.bars, {}
    with progress_bar("piece", options.num) as bar:
        bar.update(options.num - len(missing))
        for first in range(0, len(missing), options.batch_size):
            batch = missing[first : first + options.batch_size]
            seeds = [options.seed + number for number in batch]
            tell = lambda tokens: bar.set_postfix(tokens=tokens, refresh=False) or bar.update(0)
            leave_out = lambda place, reason: output.leave_out(output.names[batch[place]], reason)  # noqa: B023
            if holes:
                scores = composer.fill(
                    given, holes, seeds, tell, labels=options.label, sounding=sounding, on_failure=leave_out
                )
            elif song:
                opened = [song.opening] * len(seeds)
                scores = composer.continue_scores(opened, bars, seeds, tell, labels=options.label, on_failure=leave_out)
                scores = [None if score is None else song.extended(score) for score in scores]
            else:
                wishes = {"meter": options.meter, "tempo": options.tempo, "labels": options.label}
                wishes |= {"density": options.density, "bar_density": options.bar_density}
                scores = composer.compose(seeds, bars, instruments, tell, on_failure=leave_out, **wishes)
            for number, score in zip(batch, scores, strict=True):
                if score is None:
                    continue
                written[number] = score.num_bars
                if not speaks:
                    continue
                output.keep_record()
                path = output.folder / output.names[number]
                if file is None:
                    write_midi(score, path)
                else:
                    write_midi_bytes(
                        written_into(file, given, score, release_at=song.join if song else None).to_bytes(), path
                    )
            if speaks and (written or output.found):
                output.keep_record()  # and what was left out
            bar.update(len(batch))
    return written


def _report(options, output: OutputFolder, missing: list[int], bars: dict[int, int]) -> None:
    """Print what was written, what was there, and what was left out."""
    from megatron_music.music.midi import read_midi

    left_out = [
        {"file": str(output.folder / name), "reason": reason}
        for name, reason in output.left_out.items()
        if name in output.names
    ]
    if left_out and len(left_out) == options.num:
        raise ValueError(left_out[0]["reason"])
    for entry in left_out:
        logger.warning(f"left out: {entry['file']}: {entry['reason']}")
    pieces = []
    for number, path in enumerate(output.folder / name for name in output.names):
        if path.name not in output.left_out:
            pieces.append(
                {"file": str(path), "seed": options.seed + number, "bars": bars.get(number) or read_midi(path).num_bars}
            )
    there = len(pieces) - len(bars)
    if missing:
        of_bars = f" of {counted(list(bars.values())[-1], 'bar')}" if bars else ""
        sentence = f"{counted(len(bars), 'piece')}{of_bars} in {options.output}"
        sentence += f"; {there} more {'was' if there == 1 else 'were'} there" if there else ""
    else:
        sentence = f"already generated: {counted(len(pieces), 'piece')} in {options.output}; nothing to do"
    sentence += f"\n{len(left_out)} of {counted(options.num, 'piece')} left out" if left_out else ""
    print_result(options, {"output": options.output, "pieces": pieces, "left_out": left_out}, sentence)
    page = Path(options.output, "listen.html")
    print_next(options, command_line("render", options.output, "-o", options.output, "--html", page))
