"""The command line: words to commands, errors to one sentence and an exit status.

Exit status: 0 done, 1 failed, 2 wrong use or bad input (one sentence on stderr), 75 stopped by a signal after saving.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from megatron_music.cli import audio as audio_commands
from megatron_music.cli import convert as convert_commands
from megatron_music.cli import datasets as dataset_commands
from megatron_music.cli import demo
from megatron_music.cli import generate as generate_commands
from megatron_music.cli import generate_audio as generate_audio_commands
from megatron_music.cli import launch as launch_commands
from megatron_music.cli import machine as machine_commands
from megatron_music.cli import mfu as mfu_commands
from megatron_music.cli import midi as midi_commands
from megatron_music.cli import predict as predict_commands
from megatron_music.cli import profiling as profiling_commands
from megatron_music.cli import rehearse as rehearsal_commands
from megatron_music.cli import sweep as sweep_commands
from megatron_music.cli import trace as trace_commands
from megatron_music.cli import train as train_commands
from megatron_music.cli.console import BAD_INPUT, FAILED, OK
from megatron_music.cli.dataset_options import add_build_options, add_encoding_options
from megatron_music.cli.parser import Parser
from megatron_music.config import log as output
from megatron_music.config.errors import is_lost_process, listed
from megatron_music.music.names import printable
from megatron_music.parallel.backends import naming_transformer_engine
from megatron_music.parallel.processes import stopped_by_every_signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 only where all that it printed has gone out, too."""
    status, stop = OK, None
    try:
        try:
            status = _run(arguments)
        except SystemExit as error:  # of argparse: --help, --version, wrong use
            status, stop = error.code, error
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would try again at its end, and complain in words of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if status == OK and not isinstance(
            error, BrokenPipeError
        ):  # the reader of our output has left, as `| head` does
            return _say(
                f"standard output cannot be written to ({error.strerror}); make room where it goes, then run the "
                f"command again",
                FAILED,
            )
    if stop is not None:
        raise stop
    return status


def _run(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return OK
    if arguments[0] == "help":
        arguments = [*arguments[1:], "--help"]
    parsed, rest = parser.parse_known_args(arguments)
    if rest:  # argparse does not join what stands on both sides of an option
        if not hasattr(parsed, "overrides") or any(word.startswith("-") for word in rest):
            parsed.refuse(f"unrecognized arguments: {' '.join(rest)}")
        parsed.overrides = [*parsed.overrides, *rest]
    output.set_verbosity(quiet=parsed.quiet, verbose=parsed.verbose)
    if not parsed.verbose:
        output.quiet_dependencies()
    return guarded(lambda: _without_empty_paths(parsed).run(parsed), _extras_of(parsed))


_PATHS = (
    "audio_dir",
    "checkpoint",
    "checkpoints",
    "continued",
    "dataset",
    "file",
    "files",
    "midi_dir",
    "output",
    "recipe",
    "source",
    "sources",
)


def _without_empty_paths(parsed: argparse.Namespace) -> argparse.Namespace:
    """Refuse an empty path, which stands for the current folder: it is mostly a shell variable that is not set."""
    for name in _PATHS:
        value = getattr(parsed, name, None)
        if value == "" or (isinstance(value, list) and "" in value):
            raise ValueError(f"the argument {name.upper()} is empty; name a path (is a shell variable not set?)")
    return parsed


# Of commands that need an extra as a whole, so that all that is missing is named at once.
_EXTRAS = {
    "demo": ("demo",),
    "train": ("train", "audio"),
    "sweep": ("train", "audio"),
    "generate midi": ("train",),
    "build latents": ("audio",),
    "generate audio": ("audio",),
}


def _extras_of(parsed: argparse.Namespace) -> Sequence[str]:
    return _EXTRAS.get(" ".join(filter(None, (parsed.command, getattr(parsed, "what", None)))), ())


def guarded(command: Callable[[], int | None], extras: Sequence[str] = ()) -> int:
    """Run a command; what goes wrong becomes one sentence on stderr and an exit status.

    Args:
        extras: which the command needs as a whole; where a package of one is missing, all that are missing of it are
            named.
    """
    try:
        with stopped_by_every_signal() if "RANK" not in os.environ else nullcontext(), naming_transformer_engine():
            return command() or OK
    except ModuleNotFoundError as error:
        if (error.name or "megatron_music").partition(".")[0] == "megatron_music":
            raise
        return _say(_absent(error.name, extras), BAD_INPUT)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "megatron_music":
            raise
        return _say(
            f"{_first_line(error)}; an installed package is broken: `megatron-music doctor` looks at each", FAILED
        )
    except ValueError as error:
        return _say(str(error), BAD_INPUT)
    except MemoryError as error:
        return _say(_out_of_memory(error), FAILED)
    except RuntimeError as error:
        if is_lost_process(error):
            return _say(
                f"{_first_line(error)[:200]}; look for what another rank says, then give the same command again", FAILED
            )
        if not (
            type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
        ):  # of torch, on a GPU or a CPU
            raise
        return _say(_out_of_memory(error), FAILED)
    except BrokenPipeError:  # see main
        return OK
    except OSError as error:
        if error.errno is None:  # not of the system: a library that cannot be loaded, a file that cannot be understood
            return _say(_first_line(error), FAILED)
        place = f" ({error.filename})" if error.filename else ""
        return _say(
            f"{error.strerror or error}{place}; make room, or check the path and its permissions, then run the "
            f"command again",
            FAILED,
        )
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") != "0":
            return FAILED
        return _say(str(error) or "stopped; files that were finished stay, none is half-written", FAILED)


def _shortened(sentence: str) -> str:
    """A sentence without its middle, where a file's own words would fill the screen."""
    return sentence if len(sentence) <= 2000 else f"{sentence[:1500]} [...] {sentence[-400:]}"


def _out_of_memory(error: Exception) -> str:
    """What an allocation that failed was for, and what makes a command smaller."""
    return (
        f"there is not enough memory ({_first_line(error)}); lower what makes the command large: model.seq_length, "
        "train.micro_batch_size, train.train_iters or the model's size of a run, else --batch-size or --workers"
    )


def _absent(module: str, extras: Sequence[str]) -> str:
    """How to install what a command could not import, and what its extra lacks besides, with the Python that runs."""
    try:
        from megatron_music.cli.doctor import install_command, missing_packages

        packages = missing_packages(module, extras)
    except ModuleNotFoundError:  # no packaging, or not installed
        return f"this command needs {module}; run: {sys.executable} -m pip install {module.partition('.')[0]}"
    if not packages:
        return (
            f"this command needs {module}, which an installed package should have brought; run: {sys.executable} -m "
            f"pip check"
        )
    names = [re.split(r"[^\w.-]", package)[0] for package in packages]
    return f"this command needs {listed(names)}; run: {install_command(packages)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _say(sentence: str, status: int) -> int:
    """Print an error.

    Under torchrun every process finds wrong use, and rank 0 reports it; a failure on one rank is reported by that rank.
    """
    if output.is_verbose():
        traceback.print_exc()
    rank, sentence = os.environ.get("RANK", "0"), _shortened(printable(sentence.replace("\n", " ")))
    if rank == "0":
        print(f"megatron-music: {sentence}", file=sys.stderr)
    elif status == FAILED:
        print(f"megatron-music: rank {rank}: {sentence}", file=sys.stderr)
    return status


class _Version(argparse.Action):
    """Reads the version only when it is asked for."""

    def __call__(self, parser, *_):
        from megatron_music import __version__

        print(f"megatron-music {__version__}")
        parser.exit(OK)


def _window(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash) and 1 <= int(first) <= int(last or first)):
        raise argparse.ArgumentTypeError(f"{text!r} is no window of iterations; use FIRST-LAST from 1, e.g. 10-12")
    return int(first), int(last or first)


def _add_verbosity(parser: argparse.ArgumentParser, default: bool | str) -> None:
    """``-q`` and ``-v``, before the command's name or after it."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "-q", "--quiet", action="store_true", default=default, help="print only errors, warnings and what was asked for"
    )
    either.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default,
        help="print tracebacks and the warnings of dependencies, too",
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; also what shtab reads for tab completion, see docs/install.md."""
    parser = Parser(prog="megatron-music", description="Music models on NVIDIA's Megatron stack.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _add_verbosity(parser, False)
    verbs = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(group, name: str, run: Callable, summary: str) -> argparse.ArgumentParser:
        added = group.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run, refuse=added.error)
        _add_verbosity(added, argparse.SUPPRESS)
        return added

    demo.add_demo(
        command(verbs, "demo", demo.demo, "Bach's chorales to a trained GPT, new chorales and a page to listen to them")
    )
    launch_commands.add_launch(
        command(verbs, "launch", launch_commands.launch, "copy the job scripts, container files and examples")
    )

    tokenize = command(verbs, "tokenize", midi_commands.tokenize, "print a MIDI file as text tokens")
    tokenize.add_argument("file", metavar="FILE.mid", help="the piece")
    add_encoding_options(tokenize, bars=0)

    detokenize = command(verbs, "detokenize", midi_commands.detokenize, "turn text tokens into a MIDI file")
    detokenize.add_argument("file", metavar="TOKENS.txt", help="a file of text tokens, or - for standard input")
    detokenize.add_argument("-o", "--output", required=True, metavar="FILE.mid", help="the MIDI file to write")
    detokenize.add_argument("--piece", type=int, default=None, metavar="K", help="which piece of several, from 1")
    detokenize.add_argument("--steps-per-quarter", type=int, default=4, choices=(4, 12), help="the grid of the tokens")
    detokenize.add_argument(
        "--tokenizer", default=None, metavar="DIR", help="OUT/tokenizer of the dataset the tokens are from"
    )

    plot = command(verbs, "plot", midi_commands.plot, "draw a MIDI file as a piano roll")
    plot.add_argument("file", metavar="FILE.mid", help="the piece")
    plot.add_argument(
        "-o", "--output", required=True, metavar="ROLL.png", help="the picture to write: .png, .pdf or .svg"
    )
    plot.add_argument("--bars", default=None, metavar="FROM-TO", help="the bars to draw, counted from 1 (default all)")

    corpus = verbs.add_parser("corpus", help="write a corpus of MIDI or audio files")
    corpora = corpus.add_subparsers(dest="corpus", required=True, metavar="NAME")
    bach = command(corpora, "bach", midi_commands.corpus_bach, "Bach's four-voice chorales from the music21 package")
    bach.add_argument("-o", "--output", required=True, metavar="DIR", help="folder for the MIDI files")
    bach.add_argument("--workers", type=int, default=None, help="processes; by default one for each CPU core")
    bach.add_argument("--json", action="store_true", help="print the result as JSON")

    sounds = command(
        corpora,
        "sounds",
        audio_commands.corpus_sounds,
        "MIDI files rendered in other instruments and tempos, with captions",
    )
    audio_commands.add_corpus_sounds(sounds)

    audio_commands.add_render(command(verbs, "render", audio_commands.render, "turn MIDI files into WAV or FLAC"))

    build = verbs.add_parser("build", help="build a dataset")
    builds = build.add_subparsers(dest="what", required=True, metavar="WHAT")
    tokens = command(builds, "tokens", dataset_commands.build_tokens, "MIDI files to .bin/.idx, tokenizer and report")
    add_build_options(tokens)
    tokens.add_argument("--workers", type=int, default=1, help="processes that parse and encode")
    tokens.add_argument("--json", action="store_true", help="print the report as JSON")
    plan = command(builds, "plan", dataset_commands.build_plan, "list the files of a dataset and cut them into shards")
    add_build_options(plan)
    plan.add_argument("--json", action="store_true", help="print the result as JSON")
    shard = command(builds, "shard", dataset_commands.build_shard, "encode one rank's shards of a planned dataset")
    shard.add_argument("output", metavar="OUT", help="the dataset that was planned")
    shard.add_argument("--rank", type=int, default=0, metavar="R", help="from 0")
    shard.add_argument("--world-size", type=int, default=1, metavar="W", help="ranks that share the work")
    shard.add_argument("--workers", type=int, default=1, help="processes of this rank")
    shard.add_argument("--json", action="store_true", help="print the result as JSON")
    merge = command(builds, "merge", dataset_commands.build_merge, "put finished shards together into the dataset")
    merge.add_argument("output", metavar="OUT", help="the dataset that was planned")
    merge.add_argument("--json", action="store_true", help="print the report as JSON")

    latents = command(builds, "latents", audio_commands.build_latents, "captioned audio to embeddings and latents")
    audio_commands.add_build_latents(latents)

    inspect = command(verbs, "inspect", dataset_commands.inspect, "print a dataset's figures, or one of its documents")
    inspect.add_argument("dataset", metavar="OUT", help="a dataset's folder")
    inspect.add_argument("--split", default="train", choices=("train", "valid", "test"), help="the split of --document")
    inspect.add_argument("--document", type=int, default=None, metavar="K", help="from 0")
    inspect.add_argument("-o", "--output", default=None, metavar="FILE.mid", help="write the document as MIDI")
    inspect.add_argument("--html", default=None, metavar="FILE.html", help="write a page with figures and piano rolls")
    inspect.add_argument("--verify", action="store_true", help="compare every file with the hash it was built with")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")

    recipes = command(
        verbs, "recipes", train_commands.recipes, "list the named runs, or print one with every field and its meaning"
    )
    recipes.add_argument("name", nargs="?", default=None, metavar="RECIPE", help="a name, or a YAML file")
    recipes.add_argument("--json", action="store_true", help="print the names, or the run, as JSON")

    train = command(verbs, "train", train_commands.train, "train a recipe; alone or under torchrun")
    train.add_argument("recipe", metavar="RECIPE", help="a name from `recipes`, or a YAML file")
    train.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.field=value",
        help="`megatron-music recipes RECIPE` prints every field with its value and meaning",
    )
    train.add_argument(
        "--profile-steps",
        type=_window,
        default=None,
        metavar="FIRST-LAST",
        help="iterations to profile: cudaProfilerStart and Stop for nsys; without a GPU, RUN/trace-rankN.json",
    )

    generate = verbs.add_parser("generate", help="make new music")
    generates = generate.add_subparsers(dest="what", required=True, metavar="WHAT")
    generate_commands.add_generate_midi(
        command(generates, "midi", generate_commands.generate_midi, "new pieces from a trained GPT")
    )

    audio = command(generates, "audio", generate_audio_commands.generate_audio, "generate audio from text prompts")
    generate_audio_commands.add_generate_audio(audio)

    convert = command(
        verbs, "convert", convert_commands.convert, "convert a checkpoint to Hugging Face format, or back"
    )
    convert.add_argument(
        "source",
        metavar="CHECKPOINT|HF_DIR",
        help="a run; or config.json and safetensors; or Stable Audio Open's folder of diffusers",
    )
    convert.add_argument("-o", "--output", required=True, metavar="DIR", help="a new folder")
    convert.add_argument("--to", required=True, choices=tuple(convert_commands.CONVERSIONS), help="the format to write")
    convert.add_argument(
        "--tokenizer", default=None, metavar="DIR", help="tokenizer folder of the data, if HF_DIR has no mmmtrack.json"
    )
    convert.add_argument("--json", action="store_true", help="print the result as JSON")

    mfu_commands.add_mfu(
        command(verbs, "mfu", mfu_commands.mfu, "model FLOPs utilization of a training step, by several formulas")
    )

    profiling_commands.add_memory(
        command(verbs, "memory", profiling_commands.memory, "estimate the memory of training on each rank")
    )

    sweep_commands.add_sweep(
        command(verbs, "sweep", sweep_commands.sweep, "measure a few steps of a run in many settings")
    )
    predict_commands.add_predict(
        command(verbs, "predict", predict_commands.predict, "predict the time of a step on a cluster")
    )
    rehearsal_commands.add_rehearse(
        command(verbs, "rehearse", rehearsal_commands.rehearse, "run one step of a job of many GPUs here, without any")
    )
    trace_commands.add_trace(command(verbs, "trace", trace_commands.trace, "summarise a profiler trace"))
    profiling_commands.add_compare(
        command(
            verbs, "compare", profiling_commands.compare, "test whether two runs differ in speed by more than noise"
        )
    )

    preflight = command(verbs, "preflight", machine_commands.preflight, "check a job script before it is queued")
    preflight.add_argument(
        "script", metavar="[sbatch OPTION...] JOB.sbatch", help="a job script, or sbatch and its options before it"
    )
    preflight.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARG", help="what the script will be given")
    preflight.add_argument(
        "--gpu", default=None, metavar="NAME", help="GPU of the nodes, if the script does not name it"
    )
    preflight.add_argument(
        "--rehearse", action="store_true", help="run the first training step here, as `rehearse` does"
    )
    preflight.add_argument("--json", action="store_true", help="print the findings as JSON")

    doctor = command(verbs, "doctor", machine_commands.doctor, "report what this machine has and what is missing")
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser
