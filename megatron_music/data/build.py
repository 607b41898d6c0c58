"""``build tokens``: MIDI files to train/valid/test ``.bin/.idx``, a tokenizer folder, a report and a quarantine list.

The output does not depend on the number of workers: files are written in the order of their paths. It appears
under its name only when it is whole.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path


from megatron_music import __version__
from megatron_music.data.corpus import find_midi_files
from megatron_music.data.encode import OldEncodedFile as EncodedFile, encode_file, encode_files
from megatron_music.data.report import QUARANTINE_FILE, REPORT_FILE, SPLITS
from megatron_music.tokens.folder import Encoding, write_tokenizer_folder

DEFAULT_FRACTIONS = (0.9, 0.05, 0.05)


class BuildError(ValueError):
    """The build cannot start, or must not write where it was told to."""


@dataclass
class _Tally:
    """What the files gave, summed up."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    files: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    left_out: Counter = field(default_factory=Counter)
    quarantine: list[dict] = field(default_factory=list)
    copies: int = 0
    notes: Counter = field(default_factory=Counter)
    onset_error_sum: float = 0.0
    max_onset_error: float = 0.0
    digests: dict[str, str] = field(default_factory=dict)  # of the files that gave documents: digest to split

    def add(self, file: EncodedFile, split: str) -> None:
        if file.damage:
            self.quarantine.append({"path": file.path, "reason": file.damage})
        elif file.left_out:
            self.left_out[file.left_out] += 1
        else:
            self.copies += file.digest in self.digests
            self.digests[file.digest] = split
            self.files[split] += 1
            self.documents[split] += len(file.lengths)
            self.tokens[split] += len(file.ids)
        for report in file.quantizations:
            for name in ("notes_in", "notes_out", "notes_lost", "notes_shortened", "notes_lengthened", "onsets_on_grid"):
                self.notes[name] += getattr(report, name)
            self.onset_error_sum += report.mean_onset_error * report.notes_in
            self.max_onset_error = max(self.max_onset_error, report.max_onset_error)


def build_tokens(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    encoding: Encoding = Encoding(),  # noqa: B008 (frozen)
    workers: int = 1,
    seed: int = 0,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> dict:
    """Build a dataset and return its report.

    A file goes to train, valid or test by the hash of its bytes and ``seed``, so all its windows, and all copies
    of it, are in one split. A split that would stay empty takes the file of the smallest hash from train, if train
    keeps one. The same call on the same files again finds the work done and returns its report.

    Args:
        sources: MIDI files and folders.
        out: a folder that does not exist yet, or an empty one.
        workers: processes that parse and encode; a script that asks for several needs a ``__main__`` guard.
        fractions: of the files in train, valid and test; their sum is 1.
        progress: wraps the iteration over files, given their number.

    Raises:
        BuildError: ``out`` holds something else, or no file gives a single document. Nothing is written then.
        ValueError: no MIDI files.
        OSError: the disk is full or not writable. Nothing is left behind.
    """
    out = Path(os.path.realpath(out))
    if not all(map(math.isfinite, fractions)) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise BuildError(f"the split {fractions} does not add up to 1; give three fractions such as 0.9,0.05,0.05")
    if workers < 1:
        raise BuildError(f"workers is {workers}; use 1 or more")
    paths = find_midi_files(sources)
    fingerprint = _fingerprint(paths, encoding, seed, fractions)
    done = _finished_report(out, fingerprint)
    if done is not None:
        return done

    split_of = partial(_split_by_hash, seed=seed, fractions=fractions)
    with _appearing_when_whole(out) as folder:
        started = time.perf_counter()
        tally = _encode_all(paths, encoding, workers, folder, split_of, progress)
        moved = _fill_empty_splits(tally, seed, fractions)
        if moved:  # a split is empty when files are few or its fraction is tiny: encode again with these moved
            tally = _encode_all(paths, encoding, workers, folder, lambda d: moved.get(d) or split_of(d), progress)
        if not tally.digests:
            raise BuildError(_nothing_left(tally, len(paths)))
        write_tokenizer_folder(folder / "tokenizer", encoding)
        report = _report(tally, paths, encoding, seed, fractions, fingerprint, time.perf_counter() - started, workers)
        lines = "".join(json.dumps(line) + "\n" for line in tally.quarantine)
        (folder / QUARANTINE_FILE).write_text(lines, encoding="utf-8")
        (folder / REPORT_FILE).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _encode_all(paths, encoding, workers, folder, split_of, progress) -> _Tally:
    # megatron-core takes seconds to import: bad input is refused before.
    from megatron_music.data.indexed import SplitWriter

    tally = _Tally()
    writer = SplitWriter(folder)
    try:
        for file in progress(_encoded(paths, encoding, workers), len(paths)):
            split = split_of(file.digest) if len(file.lengths) else ""
            if split:
                writer.write(split, file.ids, file.lengths)
            tally.add(file, split)
        writer.finish()
    finally:
        writer.close()
    return tally


def _encoded(paths: Sequence[Path], encoding: Encoding, workers: int) -> Iterator[EncodedFile]:
    """The encoded files in the order of ``paths``, at most a few chunks ahead of the reader."""
    encode = partial(encode_file, encoding=encoding)
    if workers == 1 or len(paths) < 2 * workers:
        yield from map(encode, paths)
        return
    # Spawned workers import numpy and symusic, not the torch of this process. Ctrl-C is for this process to handle.
    chunk = 32
    leave_interrupts = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, get_context("spawn"), leave_interrupts) as pool:
        try:
            waiting = []
            for first in range(0, len(paths), chunk):
                waiting.append(pool.submit(encode_files, paths[first : first + chunk], encoding))
                if len(waiting) > 2 * workers:
                    yield from waiting.pop(0).result()
            for future in waiting:
                yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _place(digest: str, seed: int) -> float:
    """A number in [0, 1) from a file's hash and the seed."""
    return int(hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()[:13], 16) / 16**13


def _split_by_hash(digest: str, seed: int, fractions: tuple[float, float, float]) -> str:
    place = _place(digest, seed)
    return SPLITS[0] if place < fractions[0] else SPLITS[1] if place < fractions[0] + fractions[1] else SPLITS[2]


def _fill_empty_splits(tally: _Tally, seed: int, fractions: tuple[float, float, float]) -> dict[str, str]:
    """Digests to move from train so that no wanted split is empty."""
    train = sorted((d for d, split in tally.digests.items() if split == SPLITS[0]), key=lambda d: _place(d, seed))
    moved = {}
    if fractions[0] and not train and tally.digests:  # training needs at least one file
        moved[min(tally.digests, key=lambda d: _place(d, seed))] = SPLITS[0]
    for split, fraction in zip(SPLITS[1:], fractions[1:], strict=True):
        if fraction and not tally.files[split] and len(train) > 1:
            moved[train.pop(0)] = split
    return moved


def _report(tally, paths, encoding, seed, fractions, fingerprint, seconds, workers) -> dict:
    used = sum(tally.files.values())
    notes_in = tally.notes["notes_in"]
    return {
        "megatron_music": __version__,
        "fingerprint": fingerprint,
        "encoding": {**asdict(encoding), "density_bins": list(encoding.density_bins)},
        "seed": seed,
        "fractions": list(fractions),
        "files": {
            "found": len(paths),
            "used": used,
            "copies": tally.copies,
            "quarantined": len(tally.quarantine),
            "left_out": dict(sorted(tally.left_out.items())),
        },
        "splits": {
            split: {
                "files": tally.files[split],
                "documents": tally.documents[split],
                "tokens": tally.tokens[split],
                "bytes": 2 * tally.tokens[split],
            }
            for split in SPLITS
        },
        "quantization": {
            **{name: tally.notes[name] for name in sorted(tally.notes)},
            "mean_onset_error_steps": tally.onset_error_sum / notes_in if notes_in else 0.0,
            "max_onset_error_steps": tally.max_onset_error,
        },
        "rates": {
            "seconds": seconds,
            "workers": workers,
            "files_per_second": len(paths) / seconds,
            "tokens_per_second": sum(tally.tokens.values()) / seconds,
        },
    }


def _nothing_left(tally: _Tally, found: int) -> str:
    reasons = Counter(line["reason"] for line in tally.quarantine[:1]) + tally.left_out
    reason, _ = reasons.most_common(1)[0]
    return (
        f"none of the {found} files gives a document ({len(tally.quarantine)} damaged, "
        f"{sum(tally.left_out.values())} left out; for one: {reason}); try fewer --bars or another folder"
    )


def _fingerprint(paths, encoding: Encoding, seed: int, fractions) -> str:
    """What the output follows from: the files by path, size and time, the encoding, the split, the version."""
    hasher = hashlib.sha256(json.dumps([__version__, asdict(encoding), seed, list(fractions)]).encode())
    for path in paths:
        try:
            status = path.stat()
            facts = f"\0{status.st_size}\0{status.st_mtime_ns}\n"
        except OSError:
            facts = "\0missing\n"
        hasher.update(os.fsencode(os.path.realpath(path)) + facts.encode())
    return hasher.hexdigest()


def _finished_report(out: Path, fingerprint: str) -> dict | None:
    """The report of this very build, if ``out`` holds it; None if ``out`` is free.

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
        report = json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))
        if report["fingerprint"] == fingerprint:
            return report
        raise BuildError(f"{out} holds a dataset of other files or options; name another folder, or remove it first")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        if any(out.iterdir()):
            raise BuildError(f"{out} is not empty and holds no dataset; name another folder") from None
        return None


@contextmanager
def _appearing_when_whole(out: Path) -> Iterator[Path]:
    """A working folder beside ``out`` that becomes ``out`` at the end, and vanishes if anything fails.

    It is locked while the build lives, on whatever machine, so that only those of dead builds are swept away.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.building-"
    for stale in list(out.parent.iterdir()):
        if stale.name.startswith(prefix) and stale.is_dir():
            with _locked(stale) as is_ours:
                if is_ours:
                    shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    try:
        with _locked(folder):
            yield folder
            folder.chmod(0o777 & ~_umask())
            for path in folder.rglob("*"):
                if path.is_file():
                    with open(path, "rb+") as file:
                        os.fsync(file.fileno())
            try:
                os.rename(folder, out)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise BuildError(f"{out} was filled while this build ran; its result is dropped") from None
        descriptor = os.open(out.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock, if nobody else does; says which."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
