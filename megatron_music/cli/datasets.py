"""The commands that build and show datasets, one function each. Each imports what it needs when it runs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_music.cli.console import (
    check_output_file,
    print_next,
    print_result,
    progress_over,
)
from megatron_music.cli.dataset_options import build_options_of
from megatron_music.config.errors import counted
from megatron_music.config.log import command_line, is_quiet, logger, print_text
from megatron_music.music.names import printable


def build_tokens(options) -> None:
    from megatron_music.data.build import build_tokens

    was_there = _is_built(options.output)
    with _kept(options.output):
        report = build_tokens(
            options.sources, options.output, build_options_of(options), options.workers, progress_over("file")
        )
    _print_report(report, options, was_there)


def build_plan(options) -> None:
    from megatron_music.data.build import plan_tokens
    from megatron_music.data.plan import read_plan

    if plan_tokens(options.sources, options.output, build_options_of(options)) is not None:
        result = {"output": options.output, "already_built": True}
        print_result(options, result, f"{options.output} is there already, of these files and options")
        return
    plan = read_plan(options.output)
    result = {
        "output": options.output,
        "already_built": False,
        "building": str(plan.building),
        "files": plan.files,
        "shards": len(plan.shards),
    }
    print_result(
        options,
        result,
        f"{counted(plan.files, 'file')} in {counted(len(plan.shards), 'shard')}, planned in {plan.building}",
    )


def build_shard(options) -> None:
    from megatron_music.data.shard import encode_shard

    with _kept(options.output):
        done = encode_shard(options.output, options.rank, options.world_size, options.workers, progress_over("file"))
    rank = f"rank {options.rank} of {options.world_size}"
    sentence = (
        f"{rank}: {counted(done['shards'], 'shard')}, {done['found']} found finished; "
        f"{counted(done['files'], 'file')} encoded"
    )
    print_result(
        options, {"output": options.output, "rank": options.rank, "world_size": options.world_size, **done}, sentence
    )


def build_merge(options) -> None:
    from megatron_music.data.merge import merge_shards

    was_there = _is_built(options.output)
    with _kept(options.output):
        report = merge_shards(options.output, progress_over("file"))
    _print_report(report, options, was_there)


@contextmanager
def _kept(out: str) -> Iterator[None]:
    """What is said when a build is stopped by hand."""
    try:
        yield
    except KeyboardInterrupt:
        sentence = f"stopped; what is finished is kept in {out}.building, and the same command goes on"
        raise KeyboardInterrupt(sentence) from None


def _is_built(out: str) -> bool:
    from megatron_music.reports.dataset import REPORT_FILE

    return Path(out, REPORT_FILE).is_file()


def _print_report(report: dict, options, was_there: bool) -> None:
    """Print a dataset's report, after a line that says so where it was built before."""
    from megatron_music.reports.dataset import describe

    already = f"already built: {options.output}; nothing to do\n\n" if was_there else ""
    print_result(options, report, already + describe(report, options.output))
    if report["options"]["formats"] != ["text"]:  # which Megatron does not read
        print_next(options, command_line("train", "demo", f"data.path={options.output}", "checkpoint.save=run"))


def _verify(options) -> int:
    """Compare a dataset's files with their hashes; 1 where one differs."""
    if options.document is not None or options.output or options.html:
        raise ValueError(
            "--verify compares a dataset's files and takes no --document, no -o and no --html; give two commands"
        )
    count, damaged = (_damaged_latents if _is_of_latents(options.dataset) else _damaged_tokens)(options.dataset)
    if damaged and not options.json:
        for sentence in damaged:
            logger.error(printable(sentence))
    else:
        result = {"dataset": options.dataset, "files": count, "damaged": damaged}
        print_result(options, result, f"{options.dataset} is as it was built: {counted(count, 'file')} compared")
    return 1 if damaged else 0


def _damaged_tokens(dataset: str) -> tuple[int, list[str]]:
    """How many files were compared, and a sentence for each that differs."""
    from megatron_music.data.hashes import HASHES, damaged_files
    from megatron_music.data.index_file import REMEDY
    from megatron_music.reports.dataset import read_report

    report = read_report(dataset)
    damaged = damaged_files(dataset, report, progress_over("file"))
    return len(report[HASHES]), [f"{Path(dataset, name)} {what}; {REMEDY}" for name, what in damaged.items()]


def _damaged_latents(dataset: str) -> tuple[int, list[str]]:
    """The same; of several files that differ, the first."""
    from megatron_music.data.latents import verify
    from megatron_music.data.latents_index import DamagedLatents

    try:
        return verify(dataset, progress_over("file")), []
    except DamagedLatents as error:
        return 0, [str(error)]


def _is_of_latents(dataset: str) -> bool:
    return Path(dataset, "index.json").is_file() and not Path(dataset, "train.idx").is_file()


def inspect(options) -> int | None:
    if options.verify:
        return _verify(options)
    from megatron_music.data.folders import check_report
    from megatron_music.data.index_file import check_ids
    from megatron_music.reports.dataset import describe, read_report
    from megatron_music.tokens.tokenizer_folder import read_encoding

    if _is_of_latents(options.dataset):
        raise ValueError(
            f"{options.dataset} is a dataset of latents, and inspect shows datasets of tokens; its figures are in "
            f"{Path(options.dataset, 'report.json')}"
        )
    report = read_report(options.dataset)
    for split in report["splits"]:
        if any(Path(options.dataset, f"{split}.{suffix}").exists() for suffix in ("bin", "idx")):
            check_ids(
                Path(options.dataset, split), read_encoding(Path(options.dataset, "tokenizer")).vocab_size, whole=True
            )
    check_report(Path(options.dataset))
    if options.html:
        from megatron_music.data.page import write_page

        check_output_file(options.html, (".html",))
        write_page(options.dataset, options.html)
        if not is_quiet():
            print_text(f"page in {options.html}")
        return
    if options.document is None:
        if options.output:
            raise ValueError("-o needs --document K, the document to write")
        print_text(json.dumps(report, indent=1) if options.json else describe(report, options.dataset))
        return
    from megatron_music.data.indexed import open_split
    from megatron_music.music.midi import write_midi
    from megatron_music.tokens.lexicon import read_wording
    from megatron_music.tokens.mmmtrack import decode_piece

    if report["options"]["formats"] == ["text"]:
        raise ValueError(
            f"{options.dataset} holds text alone: read line K of {options.split}.txt, or build with --format both"
        )
    documents = open_split(options.dataset, options.split)
    if not 0 <= options.document < len(documents):
        raise ValueError(f"--document {options.document} is not in 0..{len(documents) - 1} of {options.split}")
    ids = documents[options.document]
    encoding, bpe, wording = read_wording(Path(options.dataset, "tokenizer"))
    if bpe is not None:
        ids = bpe.decode(ids)
    if options.output:
        check_output_file(options.output)
        write_midi(decode_piece(ids, encoding.steps_per_quarter), options.output)
        if not is_quiet():
            print_text(f"document {options.document} of {options.split} in {options.output}")
    else:
        print_text(wording.to_text(ids))
