"""The commands, one function each. Each imports what it needs when it runs, so that ``tokenize`` starts at once.

The place where training's checkpoints and generation's models are joined; knows the command line's words and no more.
"""

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from megatron_music.counted import counted
from megatron_music.dataset_options import encoding_of
from megatron_music.errors import REQUEUE
from megatron_music.output import LOADING, announce, command_line, is_quiet, logger, print_next, print_result, print_text
from megatron_music.storage.reading import read_text, reason_of

OK, FAILED, BAD_INPUT = 0, 1, 2


def progress_bar(unit: str, total: int | None = None, items: Iterable | None = None):
    """A tqdm bar on stderr; silent under ``-q``, where stderr is not a terminal, and for the first half second."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit=unit, disable=True if is_quiet() else None, delay=0.5, leave=False)


def progress_over(unit: str) -> Callable[[Iterable, int | None], Iterable]:
    """What wraps an iteration in such a bar."""
    return lambda items, total: progress_bar(unit, total, items)


def check_modules(*names: str) -> None:
    """Refuse a command before it begins where a module that it will need is not installed.

    Raises:
        ModuleNotFoundError: the first that is missing.
    """
    for name in names:
        parents = [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)]
        if any(importlib.util.find_spec(parent) is None for parent in parents):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def check_one_file(path: str, command: str) -> None:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; {command} takes one file")


def tokenize(options) -> None:
    import numpy as np

    from megatron_music.data.encode import encode_score
    from megatron_music.data.reasons import remedy
    from megatron_music.music.grid import quantize, sections
    from megatron_music.music.midi import read_midi
    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.mmmtrack import encode_piece

    check_one_file(options.file, "tokenize")
    score = read_midi(options.file, voices=options.voices, pedal=options.pedal)
    if not options.meters:
        options.meters = "4/4"
        encoding = encoding_of(options)
        unknown = encoding.undeclared(score.time_signatures)
        if [part.length_steps for part in sections(score, ((4, 4),), unknown, encoding.steps_per_quarter)] != [score.length_steps]:
            options.meters = "all"
            logger.info(f"{options.file} is not all in 4/4, so its meters are written too, as with --meters all")
    encoding = encoding_of(options)
    if encoding.bars or encoding.writes_meters:
        found = encode_score(score, encoding)
        if found.left_out:
            way_out = remedy(found.left_out, encoding)
            raise ValueError(f"{options.file} has {found.left_out}{f'; {way_out}' if way_out else ''}")
        for document in np.split(found.ids, np.cumsum(found.lengths)[:-1]):
            print_text(vocabulary.to_text(document[:-1]))
        return
    unknown = encoding.undeclared(score.time_signatures)
    if [stretch.length_steps for stretch in sections(score, ((4, 4),), unknown, encoding.steps_per_quarter)] != [score.length_steps]:
        logger.warning(f"{options.file} is not all in 4/4; its bars are written as if it were, as --meters 4/4 asks")
    quantized = quantize(score, encoding.steps_per_quarter, velocity=encoding.velocity, tempo=encoding.tempo)
    print_text(vocabulary.to_text(encode_piece(quantized, encoding)))


def detokenize(options) -> None:
    import numpy as np

    from megatron_music.music.midi import write_midi
    from megatron_music.tokens import vocabulary
    from megatron_music.tokens.mmmtrack import check_grid, decode_piece
    from megatron_music.tokens.wording import read_wording

    check_one_file(options.file, "detokenize")
    if options.file == "-":
        text = sys.stdin.read()
    else:
        try:
            text = read_text(options.file)
        except (OSError, ValueError) as error:
            raise ValueError(f"{options.file} cannot be read as text ({reason_of(error)}); name a file of tokens") from None
    steps_per_quarter = options.steps_per_quarter
    if options.tokenizer:
        encoding, bpe, wording = read_wording(options.tokenizer)
        steps_per_quarter = encoding.steps_per_quarter
        ids = wording.to_ids(text)
        ids = bpe.decode(ids) if bpe else ids
    else:
        ids = vocabulary.to_ids(text)
    pieces = np.split(ids, np.flatnonzero(ids == vocabulary.PIECE_START))[1:]
    check_output_file(options.output)
    if not pieces:
        raise ValueError(f"{options.file} has no PIECE_START; name a file written by `megatron-music tokenize`")
    if options.piece is None and len(pieces) > 1:
        raise ValueError(f"{options.file} holds {len(pieces)} pieces; choose one with --piece 1..{len(pieces)}")
    number = options.piece or 1
    if not 1 <= number <= len(pieces):
        raise ValueError(f"--piece {number} is not in 1..{len(pieces)}")
    doubt = check_grid(pieces[number - 1], steps_per_quarter)
    if doubt:
        logger.warning(doubt)
    write_midi(decode_piece(pieces[number - 1], steps_per_quarter), options.output)
    if not is_quiet():
        print_text(f"piece {number} of {len(pieces)} in {options.output}")


def plot(options) -> None:
    from megatron_music.music.midi import read_midi
    from megatron_music.music.pianoroll import plot_score

    check_one_file(options.file, "plot")
    check_output_file(options.output, (".png", ".pdf", ".svg"))
    bars = _bar_range(options.bars) if options.bars else None
    for remark in plot_score(read_midi(options.file), options.output, Path(options.file).name, bars):
        logger.warning(remark)
    if not is_quiet():
        print_text(f"piano roll in {options.output}")


def _bar_range(words: str) -> tuple[int, int]:
    """The first and the last bar of ``9-16``, ``9..16`` or ``9``."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:(?:-|\.\.)\s*(\d{1,9})\s*)?", words, re.ASCII)
    if not match:
        raise ValueError(f"--bars is {words!r}; give the first and the last bar, such as 9-16")
    return int(match[1]), int(match[2] or match[1])


def check_output_file(path: str, suffixes: tuple[str, ...] = ()) -> None:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{Path(path).parent} does not exist; make the folder first")
    if suffixes and not path.lower().endswith(suffixes):
        raise ValueError(f"{path} does not end in {', '.join(suffixes)}; name it so")


def corpus_bach(options) -> None:
    from megatron_music.data.bach import write_chorales
    from megatron_music.storage.holding import hold_folder

    with hold_folder(options.output, "corpus bach"), progress_bar("score") as bar:
        for done, total in write_chorales(options.output, options.workers):
            bar.total = total
            bar.update(done - bar.n)
    count = len(list(Path(options.output).glob("*.mid")))
    result = {"output": options.output, "chorales": count}
    print_result(options, result, f"{counted(count, 'chorale')} in {options.output}")
    print_next(options, command_line("build", "tokens", options.output, "-o", "data"))


def recipes(options) -> None:
    from dataclasses import asdict

    from megatron_music.recipes import description_of, load_run, recipe_names
    from megatron_music.recipes.reference import as_yaml

    if options.name is not None:
        run, description = load_run(options.name), description_of(options.name)
        tree = {"description": description, **asdict(run)}
        print_text(json.dumps(tree, indent=1) if options.json else as_yaml(run, description).rstrip("\n"))
        return
    names = recipe_names()
    if options.json:
        print(json.dumps(names, indent=1))
        return
    width = max(map(len, names))
    for name, description in names.items():
        print_text(f"{name:{width}}  {description}")


def train(options) -> int:
    from megatron_music.recipes import load_run

    run = load_run(options.recipe, options.overrides)
    if options.profile_steps and options.profile_steps[0] > run.train.train_iters:
        raise ValueError(
            f"--profile-steps begins at iteration {options.profile_steps[0]}, and train.train_iters is {run.train.train_iters}; use a window "
            "within it, or more iterations"
        )
    announce(LOADING)
    try:
        from megatron_music.training.loop import train

        return train(run, profile_steps=options.profile_steps)
    except KeyboardInterrupt:  # before the first step, or a second signal: else the loop ends the step and saves
        if run.checkpoint.save is None:
            raise
        logger.warning(f"stopped before a checkpoint was saved; the same command goes on from what {run.checkpoint.save} holds")
        return REQUEUE


def doctor(options) -> int:
    from megatron_music.doctor import as_json, examine

    findings = examine()
    if options.json:
        print(json.dumps(as_json(findings), indent=1))
    else:
        for finding in findings:
            print_text(f"{finding.status:8} {finding.name:20} {finding.detail}{'; ' + finding.remedy if finding.remedy else ''}")
    return FAILED if any(finding.status == "wrong" for finding in findings) else OK


def _own_options_out(options) -> list[str]:
    """What follows the script, without --gpu, --rehearse and --json, which preflight takes wherever they stand."""
    words, kept = iter(options.arguments), []
    for word in words:
        if word == "--json":
            options.json = True
        elif word == "--rehearse":
            options.rehearse = True
        elif word == "--gpu" or word.startswith("--gpu="):
            options.gpu = word.partition("=")[2] or next(words, None)
        else:
            kept.append(word)
    return kept


def preflight(options) -> int:
    from megatron_music.preflight import as_submitted
    from megatron_music.preflight import preflight as look
    from megatron_music.findings import NOTE, WRONG

    script, sbatch, arguments = as_submitted([options.script, *_own_options_out(options)])
    findings = look(script, arguments, sbatch=sbatch, gpu=options.gpu, rehearse=options.rehearse)
    num_wrong = sum(finding.status == WRONG for finding in findings)
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in sorted(findings, key=lambda finding: (finding.status != WRONG, finding.status == NOTE)):
            print_text(finding.line)
        print_text(f"\n{num_wrong or 'nothing'} wrong" + ("" if num_wrong else ", as far as it can be seen from here"))
    return BAD_INPUT if num_wrong else OK
