"""``build merge``: finished shards to one dataset, which appears under its name by one rename.

One pass over the shards copies documents to their splits, closing DENSITY and merging tokens on the way, while threads
check every byte against the shards' records. Before it the ids outside train are counted: the records count them all.
Memory: about 100 bytes an input file and some tens of MiB, whatever the number of windows.
"""

import errno
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from megatron_music.config.errors import counted
from megatron_music.config.sections import SPLITS
from megatron_music.data import merge_passes
from megatron_music.data.building import (
    PLAN_FILE,
    building_folder,
    check_building,
    held,
    merge_folder,
    remove_building,
    remove_merges,
)
from megatron_music.data.file_list import write_file_list
from megatron_music.data.hashes import HASHES, hashes_of
from megatron_music.data.merge_passes import Progress
from megatron_music.data.plan import Plan, read_plan
from megatron_music.data.report_json import assemble_report, entropy_nats
from megatron_music.data.shard import RECORD, shard_path
from megatron_music.data.shard_reader import REMEDY, ShardReader, read_record
from megatron_music.data.shard_totals import TRAIN, TRAIN_COPIES, Tally
from megatron_music.data.split_writer import SplitWriter
from megatron_music.reports import reasons
from megatron_music.reports.dataset import QUARANTINE_FILE, REPORT_FILE, write_markdown
from megatron_music.reports.svg_charts import write_figures
from megatron_music.storage.reading import read_json_object, refusing
from megatron_music.storage.writing import sync, sync_tree
from megatron_music.tokens import density
from megatron_music.tokens.bpe import learn_bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder


class BuildError(ValueError):
    """The build cannot start, gives nothing, or must not write where it was told to."""


def merge_shards(
    out: str | os.PathLike,
    progress: Progress = lambda items, total: items,
    workers: int = 1,
    started: float | None = None,
) -> dict:
    """Put the shards in ``OUT.building`` together into OUT, remove the former, and return the report.

    Args:
        out: the dataset's name, as ``plan_build`` was given it.
        progress: wraps the iteration over input files, given their number; once for each pass.
        workers, started: what the report's rates speak of: processes, and ``time.perf_counter()`` at the start of a
            build that was done without a stop; by default they speak of the merge alone.

    Raises:
        BuildError: no file gave a document (``OUT.building`` is removed then), or OUT was filled meanwhile.
        ValueError: ``OUT.building`` holds something that is not of a build.
        DamagedShard: a shard is missing or was changed.
        OSError: the disk is full or not writable. The shards stay, and the same call goes on.
    """
    out = Path(os.path.realpath(out))
    building = building_folder(out)
    with held(building):
        check_building(building)
        plan = read_plan(out) if (building / PLAN_FILE).exists() or not out.exists() else None
        report = finished_report(out, plan.fingerprint if plan else "")
        if report is None:  # else an earlier merge was killed before it removed the working folder
            report = _merge(plan, out, progress, workers, started)
        remove_building(building)
    return report


def _merge(plan: Plan, out: Path, progress: Progress, workers: int, started: float | None) -> dict:
    of, started = ("merge", time.perf_counter()) if started is None else ("", started)
    remove_merges(plan.building)  # that were killed
    folder = merge_folder(plan.building)
    try:
        folder.mkdir()
        with refusing(plan.building, REMEDY):
            tally, readers = _read_records(plan, folder / QUARANTINE_FILE)
        if not tally.documents.any():
            remove_building(plan.building)
            raise BuildError(_nothing_left(tally, plan.options.encoding))
        report = _write_dataset(plan, tally, readers, folder, progress)
        _write_report(folder, report, len(tally.splits), workers, time.perf_counter() - started, of)
        sync_tree(folder)
        _take_name(folder, out)
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


def finished_report(out: Path, fingerprint: str = "") -> dict | None:
    """The report of a dataset that is whole; None if ``out`` is free.

    Args:
        fingerprint: of the build that it must be; empty for any.

    Raises:
        BuildError: ``out`` holds anything else.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise BuildError(f"{out} is a file; name a folder for the dataset")
    if os.path.ismount(out):
        raise BuildError(f"{out} is a mount point, which a finished folder cannot replace; name a folder below it")
    try:
        report = read_json_object(out / REPORT_FILE)
        found = report["fingerprint"]
    except (OSError, ValueError, KeyError):
        if any(out.iterdir()):
            raise BuildError(f"{out} is not empty and holds no dataset; name another folder") from None
        return None
    if fingerprint not in ("", found):
        raise BuildError(f"{out} holds a dataset of other files or options; name another folder, or remove it first")
    return report


def _read_records(plan: Plan, quarantine_path: Path) -> tuple[Tally, list[ShardReader]]:
    tally, readers = Tally.of(plan.files), []
    with open(quarantine_path, "x", encoding="utf-8") as quarantine:
        for number in range(len(plan.shards)):
            record = read_record(plan, number)
            reader = ShardReader(plan, number, record)
            matter = len(plan.sources) > 1 or plan.options.split_by or any("damage" in file for file in record["files"])
            entries = plan.read_entries(number) if matter else None
            with refusing(shard_path(plan.building, number, RECORD), REMEDY):
                tally.add(reader.files, record, entries, quarantine)
            readers.append(reader)
    return tally, readers


def _write_dataset(plan: Plan, tally: Tally, readers: list[ShardReader], folder: Path, progress: Progress) -> dict:
    """Everything but the report, which is returned without its rates."""
    options = plan.options
    tally.assign(options.seed, options.fractions, options.drop_duplicates)
    write_file_list(plan, tally, folder)
    is_open = options.encoding.density or options.encoding.bar_density
    counts = merge_passes.count_ids(readers, tally, bool(is_open), progress)
    encoding, table, levels = _with_bins(options.encoding, counts[TRAIN])
    labelled = merge_passes.count_labelled(readers, tally) if encoding.labels else 0
    bpe = learn_bpe(merge_passes.train_documents(readers, tally, table), encoding.bpe) if encoding.bpe else None
    if bpe is not None:
        encoding = replace(encoding, bpe=bpe.size)
    documents = tally.kept_documents()
    writers = [
        SplitWriter(folder, split, int(documents[tally.splits == number].sum()), options.formats)
        for number, split in enumerate(SPLITS)
    ]
    try:
        train_counts = merge_passes.copy_documents(
            readers, tally, writers, table if is_open else None, merge_passes.text_of_ids(encoding), bpe, progress
        )
        for writer in writers:
            writer.finish()
    finally:
        for writer in writers:
            writer.close()
    write_tokenizer_folder(folder / "tokenizer", encoding, bpe)
    if bpe is None:
        train_counts = _closed(counts[TRAIN] + counts[TRAIN_COPIES], table)
    merged = {
        "merges": encoding.bpe,
        "tokens_before": int(counts.sum()),
        "tokens_after": sum(writer.tokens for writer in writers),
    }
    with refusing(plan.building, REMEDY):
        return assemble_report(
            tally,
            plan.fingerprint,
            options,
            encoding,
            plan.sources,
            writers,
            counts.sum(axis=0),
            entropy_nats(train_counts),
            labelled,
            merged if bpe is not None else None,
            levels,
        )


def _with_bins(encoding: Encoding, counts: np.ndarray) -> tuple[Encoding, np.ndarray, dict]:
    """The encoding with the levels that follow from train's id counts, the table that closes open ids, and the levels.

    A level that nothing in train has is merged with a neighbour, so that there may be fewer than were asked for.
    """
    found, levels = {}, {}
    for name, counts_there, all_counts in (
        ("density", density.track_counts(counts), density.track_counts(counts)),
        ("bar_density", density.bar_counts(counts), density.all_bar_counts(counts)),
    ):
        asked = getattr(encoding, name)
        bins: tuple[int, ...] = ()
        if asked:
            bins = density.without_empty_levels(density.quantile_bins(counts_there, asked), all_counts)
            levels[name] = {"asked": asked, "levels": density.members_of_levels(bins, all_counts)}
        found |= {name: len(bins) + 1 if asked else 0, f"{name}_bins": bins}
    return replace(encoding, **found), density.closing_table(found["density_bins"], found["bar_density_bins"]), levels


def _closed(counts: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Id counts after closing."""
    closed = np.zeros_like(counts)
    np.add.at(closed, table, counts)
    return closed


def _write_report(folder: Path, report: dict, files: int, workers: int, seconds: float, of: str) -> None:
    tokens = sum(split["tokens"] for split in report["splits"].values())
    report["rates"] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "workers": workers,
        "files_per_second": files / seconds,
        "tokens_per_second": tokens / seconds,
        "of": of,  # empty: the whole build
    }
    write_figures(report, folder)
    write_markdown(report, folder)
    report[HASHES] = hashes_of(folder, report[HASHES])
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _nothing_left(tally: Tally, encoding: Encoding) -> str:
    found = Counter({tally.a_damage: 1} if tally.a_damage else {}) + tally.left_out
    reason, _ = found.most_common(1)[0]
    way_out = reasons.remedy(reason, encoding)
    meters = (
        f", mostly in {', '.join(meter for meter, _ in tally.meters_left_out.most_common(3))}"
        if tally.meters_left_out
        else ""
    )
    return (
        f"no document in {counted(len(tally.splits), 'file')} ({tally.quarantined} damaged, "
        f"{sum(tally.left_out.values())} left out{meters}; for one: {reason}); {way_out or 'try other options'}, or "
        f"name another folder"
    )


def _take_name(folder: Path, out: Path) -> None:
    try:
        os.rename(folder, out)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise BuildError(
            f"{out} was filled while this build ran; move that away and run the same command again"
        ) from None
    sync(out.parent)
