"""The plan of a build: what it will read, cut into shards, in ``OUT.building``."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

from megatron_music import __version__
from megatron_music.corpora.archives import Entry
from megatron_music.corpora.labels import Labels
from megatron_music.corpora.midi_files import (
    ChangedSource,
    SourceFile,
    find_entries,
    find_files,
    no_midi_files,
)
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.building import (
    ENTRIES_FILE,
    PLAN_FILE,
    SHARDS_FOLDER,
    building_folder,
    check_building,
    check_sources,
    held,
    remove_shards,
)
from megatron_music.data.grouping import Grouping, absolute, grouped
from megatron_music.storage.reading import hash_of_file, read_bytes, reason_of, refusing
from megatron_music.storage.sealed import parse_sealed, sealed
from megatron_music.storage.writing import appearing, sync
from megatron_music.tokens.bpe import check_can_learn

_ENTRY = fields(Entry)
MAX_FILES_PER_SHARD = 512
_GRAIN = 32  # shards hold a multiple of so many files
_WANTED_SHARDS = 8  # of a small corpus, so that several workers have work


class Shard(NamedTuple):
    """A run of input files: the first one's number, how many, and where their lines lie in ``entries.jsonl``, with
    their hash.
    """

    first: int
    files: int
    offset: int
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """What a build does.

    Args:
        building: the folder it works in.
        version: of this package, when it was planned.
        fingerprint: of everything the output follows from.
        options: those given, with the names of the labels and the path of their file absolute.
        sources: as they were given.
        shards: all input files, in canonical order.
        labels_sha256: of the CSV file of labels; empty where there is none.
    """

    building: Path
    version: str
    fingerprint: str
    options: BuildOptions
    sources: tuple[str, ...]
    shards: tuple[Shard, ...]
    labels_sha256: str = ""

    @property
    def files(self) -> int:
        return sum(shard.files for shard in self.shards)

    def read_entries(self, number: int) -> list[Entry]:
        """The input files of one shard.

        Raises:
            ChangedSource: their lines were changed.
        """
        shard, path = self.shards[number], self.building / ENTRIES_FILE
        with open(path, "rb") as file:
            is_there = shard.offset >= 0 and 0 <= shard.bytes <= os.fstat(file.fileno()).st_size - shard.offset
            content = os.pread(file.fileno(), shard.bytes, shard.offset) if is_there else b""
        if shard.sha256 and hashlib.sha256(content).hexdigest() != shard.sha256:
            raise ChangedSource(f"{path} was changed since it was planned; remove {self.building} and plan again")
        with refusing(path, f"remove {self.building} and plan again"):
            found = [Entry(**json.loads(line)) for line in content.splitlines()]
            if len(found) != shard.files or not all(
                type(getattr(entry, item.name)) is item.type for entry in found for item in _ENTRY
            ):
                raise ValueError(f"the lines of shard {number} are not those of {shard.files} files")
            return found

    def check_labels(self, labels: Labels | None = None) -> None:
        """Compare the CSV file of labels with the one that was planned.

        Args:
            labels: what was read of it; None reads its bytes.

        Raises:
            ChangedSource: it is another.
        """
        if not self.labels_sha256:
            return
        path = self.options.labels
        try:
            found = labels.digest if labels else hash_of_file(path)
        except (OSError, ValueError) as error:
            raise ChangedSource(
                f"{path} cannot be read ({reason_of(error)}); restore the labels that were planned"
            ) from None
        if found != self.labels_sha256 or (labels and labels.names != self.options.encoding.labels):
            raise ChangedSource(
                f"{path} was changed since it was planned; restore it, or remove {self.building} and plan again"
            )


def settle(options: BuildOptions) -> BuildOptions:
    """The options with the names of the labels found, and the paths of CSV files absolute.

    Raises:
        ValueError: the labels cannot be read.
    """
    options = replace(options, split_by=absolute(options.split_by))
    if not options.labels:
        return options
    try:
        names = Labels.read(options.labels).names
    except OSError as error:
        raise ValueError(f"{options.labels} cannot be read ({error.strerror}); name a CSV file of labels") from None
    return replace(options, labels=os.path.abspath(options.labels), encoding=replace(options.encoding, labels=names))


def fingerprint(files: Sequence[SourceFile], options: BuildOptions) -> str:
    """What the output follows from: the files by path, size and time, the options, the labels, the version."""
    options = settle(options)
    labels = Labels.read(options.labels).digest if options.labels else ""
    grouping = Grouping.of(options.split_by, ()).digest if options.split_by else ""
    hasher = hashlib.sha256(json.dumps([__version__, options.as_json(), labels, grouping]).encode())
    for path, source in files:
        try:
            status = os.stat(path)
            facts = f"\0{source}\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:
            facts = "\0missing\n"
        hasher.update(os.fsencode(os.path.realpath(path)) + facts.encode())
    return hasher.hexdigest()


def plan_build(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    options: BuildOptions,
    files_per_shard: int | None = None,
    files: Sequence[SourceFile] | None = None,
) -> Plan:
    """Write ``OUT.building/plan.json`` and ``entries.jsonl``; if the same plan is there, use it with its finished
    shards.

    The dataset does not depend on how the files are cut into shards.

    Args:
        sources: what ``find_files`` takes.
        out: the name of the dataset to be.
        files_per_shard: at most so many; by default 512, fewer if they are few.
        files: what ``find_files`` gave for the sources, if the caller has it.

    Raises:
        ValueError: no MIDI files, an archive cannot be opened, the folder holds a build of other files or options or
            something that is not of a build, or another build works there.
        OSError: the disk is full or not writable. Nothing is left behind.
    """
    if files_per_shard is not None and files_per_shard < 1:
        raise ValueError(f"files_per_shard is {files_per_shard}; use 1 or more")
    options = settle(options)
    if options.encoding.bpe:
        check_can_learn()
    files = find_files(sources) if files is None else files
    wanted = fingerprint(files, options)
    building = building_folder(out)
    check_sources(building, sources)
    with held(building):
        check_building(building)
        if (building / PLAN_FILE).exists():
            plan = read_plan(building)
            if plan.fingerprint != wanted:
                raise ValueError(
                    f"{building} holds an unfinished build of other files or options; "
                    f"finish it with the same command, or remove it"
                )
            return plan
        remove_shards(building)  # whose plan is gone
        try:
            entries = find_entries(files)
            if options.split_by:
                entries = grouped(entries, options.split_by, sources)
            shards = _write_entries(building / ENTRIES_FILE, entries, files_per_shard)
            if not shards:
                raise no_midi_files(sources)
            (building / SHARDS_FOLDER).mkdir()
            digest = Labels.read(options.labels).digest if options.labels else ""
            plan = Plan(
                building,
                __version__,
                wanted,
                options,
                tuple(os.path.abspath(source) for source in sources),
                shards,
                digest,
            )
            _write_plan(plan)
        except BaseException:
            (building / ENTRIES_FILE).unlink(missing_ok=True)
            remove_shards(building)
            raise
    return plan


def read_plan(out: str | os.PathLike) -> Plan:
    """The plan of a build.

    Args:
        out: the name the dataset will have, or its ``OUT.building``.

    Raises:
        ValueError: there is none, or it is damaged or of another version.
    """
    folders = [building_folder(out), Path(os.path.realpath(out))]
    building = next((folder for folder in folders if (folder / PLAN_FILE).is_file()), None)
    if building is None:
        raise ValueError(f"{folders[0] / PLAN_FILE} is missing; run `megatron-music build plan` first")
    path = building / PLAN_FILE
    with refusing(path, f"remove {building} and plan again"):
        values = parse_sealed(read_bytes(path))
        plan = Plan(
            building,
            values["version"],
            values["fingerprint"],
            BuildOptions.from_json(values["options"]),
            tuple(values["sources"]),
            tuple(Shard(**shard) for shard in values["shards"]),
            values.get("labels_sha256", ""),
        )
        texts = (
            plan.version,
            plan.fingerprint,
            plan.labels_sha256,
            *plan.sources,
            *(shard.sha256 for shard in plan.shards),
        )
        numbers = [number for shard in plan.shards for number in shard[:4]]
        if not all(isinstance(text, str) for text in texts) or not all(
            type(number) is int and number >= 0 for number in numbers
        ):
            raise ValueError("a value is not of its type")
        files = [shard.files for shard in plan.shards]
        if (
            not plan.shards
            or 0 in files
            or [shard.first for shard in plan.shards] != list(accumulate(files, initial=0))[:-1]
        ):
            raise ValueError("its shards are not one after another")
        return plan


def _write_entries(path: Path, entries: Iterable[Entry], files_per_shard: int | None) -> tuple[Shard, ...]:
    grain = files_per_shard or _GRAIN
    offsets, count = [0], 0
    with appearing(path) as file:
        entries = iter(entries)
        while lines := [json.dumps(entry.as_json()).encode() + b"\n" for entry in islice(entries, grain)]:
            count += len(lines)
            offsets.append(offsets[-1] + sum(map(len, lines)))
            file.writelines(lines)
    files = files_per_shard or min(max(count // _WANTED_SHARDS // grain, 1) * grain, MAX_FILES_PER_SHARD)
    shards = []
    with open(path, "rb") as file:
        for first in range(0, count, files):
            start, stop = offsets[first // grain], offsets[min((first + files) // grain, len(offsets) - 1)]
            digest = hashlib.sha256(file.read(stop - start)).hexdigest()
            shards.append(Shard(first, min(files, count - first), start, stop - start, digest))
    return tuple(shards)


def _write_plan(plan: Plan) -> None:
    values = {
        "version": plan.version,
        "fingerprint": plan.fingerprint,
        "options": plan.options.as_json(),
        "sources": plan.sources,
        "shards": [shard._asdict() for shard in plan.shards],
        "labels_sha256": plan.labels_sha256,
    }
    with appearing(plan.building / PLAN_FILE) as file:
        file.write(sealed(json.dumps(values, indent=1) + "\n"))
    sync(plan.building)
    sync(plan.building.parent)
