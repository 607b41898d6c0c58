"""The command line as users' scripts know it. A change here breaks somebody's job script: say so in CHANGELOG.md."""

import argparse
import re
from pathlib import Path

from megatron_music.cli.entry import build_parser
from megatron_music.config.load import recipe_names

ENCODING = [
    "--bars",
    "--hop",
    "--bar-line",
    "--steps-per-quarter",
    "--meters",
    "--unknown-meters",
    "--velocity",
    "--tempo",
    "--voices",
    "--pedal",
]
BUILD = [
    "sources",
    "-o/--output",
    *ENCODING,
    "--density",
    "--bar-density",
    "--infill",
    "--labels",
    "--bpe",
    "--copies",
    "--transpose",
    "--permute-tracks",
    "--piece-bars",
    "--tracks",
    "--notes-per-bar",
    "--empty-tracks",
    "--pitches",
    "--drop-duplicates",
    "--no-sanitize",
    "--seconds-per-file",
    "--seed",
    "--split",
    "--split-by",
    "--format",
]
TABLE = ["--json", "--csv", "--markdown"]
COMMON = {"-q/--quiet", "-v/--verbose"}  # of every command
SURFACE = {
    "demo": ["overrides", "-o/--output", "--num"],
    "launch": ["-o/--output"],
    "tokenize": ["file", *ENCODING],
    "detokenize": ["file", "-o/--output", "--piece", "--steps-per-quarter", "--tokenizer"],
    "plot": ["file", "-o/--output", "--bars"],
    "corpus bach": ["-o/--output", "--workers", "--json"],
    "corpus sounds": ["midi_dir", "-o/--output", "--num", "--seconds", "--sample-rate", "--seed", "--own", "--json"],
    "render": [
        "files",
        "-o/--output",
        "--html",
        "--sound-font",
        "--own",
        "--sample-rate",
        "--bits",
        "--max-seconds",
        "--json",
    ],
    "build tokens": [*BUILD, "--workers", "--json"],
    "build plan": [*BUILD, "--json"],
    "build shard": ["output", "--rank", "--world-size", "--workers", "--json"],
    "build merge": ["output", "--json"],
    "inspect": ["dataset", "--split", "--document", "-o/--output", "--html", "--verify", "--json"],
    "build latents": [
        "audio_dir",
        "-o/--output",
        "--seconds",
        "--autoencoder",
        "--autoencoder-steps",
        "--music-encoder",
        "--text-encoder",
        "--min-seconds",
        "--crops-per-file",
        "--files-per-shard",
        "--valid-fraction",
        "--test-fraction",
        "--seed",
        "--rank",
        "--world-size",
        "--json",
    ],
    "recipes": ["name", "--json"],
    "train": ["recipe", "overrides", "--profile-steps"],
    "generate midi": [
        "checkpoint",
        "-o/--output",
        "--num",
        "--seed",
        "--bars",
        "--continue",
        "--infill",
        "--from",
        "--meter",
        "--tempo",
        "--label",
        "--instruments",
        "--density",
        "--bar-density",
        "--temperature",
        "--top-k",
        "--top-p",
        "--batch-size",
        "--tensor-model-parallel-size",
        "--json",
    ],
    "generate audio": [
        "checkpoints",
        "-o/--output",
        "--prompt",
        "--prompts",
        "--num",
        "--seed",
        "--seconds",
        "--steps",
        "--solver",
        "--guidance-scale",
        "--shift",
        "--embedding-steps",
        "--embedding-guidance-scale",
        "--negative",
        "--towards",
        "--share",
        "--from",
        "--keep",
        "--variation",
        "--batch-size",
        "--rank",
        "--json",
        "--last-weights",
        "--format",
        "--bits",
    ],
    "convert": ["source", "-o/--output", "--to", "--tokenizer", "--json"],
    "mfu": [
        "source",
        "--num-layers",
        "--hidden-size",
        "--num-attention-heads",
        "--num-query-groups",
        "--ffn-hidden-size",
        "--seq-length",
        "--vocab-size",
        "--swiglu",
        "--global-batch-size",
        "--num-gpus",
        "--step-time",
        "--warmup",
        "--recomputation",
        "--gpu",
        "--dtype",
        "--peak",
        *TABLE,
    ],
    "memory": ["recipe", "overrides", "--num-gpus", "--gpu", "--gpu-memory", *TABLE],
    "predict": [
        "recipe",
        "overrides",
        "--num-gpus",
        "--gpu",
        "--gpu-memory",
        "--search",
        "--scaling",
        "--rehearse",
        "--top",
        "-o/--output",
        *TABLE,
    ],
    "rehearse": [
        "recipe",
        "overrides",
        "--num-gpus",
        "--gpu",
        "--gpu-memory",
        "--rank",
        "--every-micro-batch",
        "--workers",
        "--html",
        "--trace",
        *TABLE,
    ],
    "sweep": [
        "recipe",
        "overrides",
        "-o/--output",
        "--vary",
        "--num-gpus",
        "--sequences-per-gpu",
        "--steps",
        "--warmup",
        "--time-limit",
        "--gpu",
        "--peak",
        "--plot",
        "--plan",
        "--row",
        "--report",
        *TABLE,
    ],
    "trace": ["files", "--html", *TABLE],
    "compare": ["first", "second", "--warmup", *TABLE],
    "preflight": ["script", "arguments", "--gpu", "--rehearse", "--json"],
    "doctor": ["--json"],
}


def surface(parser: argparse.ArgumentParser, name: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    arguments = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, inner in action.choices.items():
                found |= surface(inner, f"{name} {verb}".strip())
        elif not {"--help", "--version"} & set(action.option_strings):
            arguments.append("/".join(action.option_strings) or action.dest)
    return found or {name: arguments}


def test_the_commands_and_their_options():
    found = surface(build_parser())
    assert {name: [word for word in words if word not in COMMON] for name, words in found.items()} == SURFACE


def test_every_command_can_be_quiet_or_verbose():
    assert {name for name, words in surface(build_parser()).items() if not set(words) >= COMMON} == set()


def test_tab_completion_reads_the_parser_that_the_documentation_names():
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    names = set(re.findall(r"shtab --shell=\w+ (\S+)", page))
    assert names == {f"{build_parser.__module__}.{build_parser.__name__}"} and build_parser().prog == "megatron-music"


def test_the_recipes():
    assert {"demo", "article", "tiny"} <= set(recipe_names())


def test_every_option_has_a_help_text():
    def silent(parser: argparse.ArgumentParser) -> list[str]:
        found = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += [name for inner in action.choices.values() for name in silent(inner)]
            elif not action.help:
                found.append(f"{parser.prog} {action.option_strings or action.dest}")
        return found

    assert silent(build_parser()) == []
