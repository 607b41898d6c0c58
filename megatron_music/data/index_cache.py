"""The index cache of a run: megatron-core's arrays of which tokens each sample holds, built whole and verified before
they are read.

megatron-core takes a file that exists for whole and loads it with ``allow_pickle=True``. So it never writes where it
reads, and
reads nothing that was not verified: ``IndexCache.begin`` makes a folder of an unpredictable name, which megatron-core
fills; ``publish`` waits for the disk and renames it into place; ``is_whole`` verifies what is in place, and removes
what is not whole.

Files of a dataset of D sequences, n samples of S tokens and E epochs, as megatron-core 0.16 to 0.19 writes them (HASH
is the MD5
of the description)::

    HASH-GPTDataset-SPLIT-document_index.npy            [E * D]     int32, every sequence E times
    HASH-GPTDataset-SPLIT-sample_index.npy              [n + 1, 2]  int32 or int64, place in document_index and token there
    HASH-GPTDataset-SPLIT-shuffle_index.npy             [n]         uint32 or int64, a permutation
    HASH-BlendedDataset-SPLIT-dataset_index.npy         [n]         int16, number of the dataset
    HASH-BlendedDataset-SPLIT-dataset_sample_index.npy  [n]         int64, number of its sample
    HASH-*Dataset-SPLIT-description.txt                 JSON

Never imports torch.
"""

import errno
import hashlib
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_music.config.errors import ConfigError
from megatron_music.config.log import logger
from megatron_music.data.index_file import read_lengths
from megatron_music.storage.reading import open_regular, parse_json, read_text
from megatron_music.storage.writing import sync, sync_tree

ARRAYS = {
    "GPTDataset": {"document_index": ("<i4",), "sample_index": ("<i4", "<i8"), "shuffle_index": ("<u4", "<i8")},
    "BlendedDataset": {"dataset_index": ("<i2",), "dataset_sample_index": ("<i8",)},
}
DESCRIPTION = "description.txt"
_NAMES = "|".join(
    f"{kind}-SPLIT-(?:{DESCRIPTION}|{'|'.join(f'{name}.npy' for name in arrays)})" for kind, arrays in ARRAYS.items()
)
_FILE = re.compile(f"[0-9a-f]{{32}}-(?:{_NAMES})".replace("SPLIT", "(?:train|valid|test)").replace(".", r"\."))
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}-\w+\.building")
_ABANDONED_SECONDS = 24 * 3600
# As numpy writes it; numpy itself evaluates what stands there.
MAGIC = b"\x93NUMPY\1\0"  # and the length of the header, two bytes
_HEADER = re.compile(
    rb"\{'descr': '(<[iu]\d)', 'fortran_order': False, 'shape': \((\d{1,15}),(?: (\d{1,15}))?\), \} *\n"
)
_HEADER_BYTES = 512
_AT_ONCE = 1 << 20  # rows of an array
_DESCRIPTION_BYTES = 1 << 20


@dataclass(frozen=True)
class Indexed:
    """What a cache is the index of.

    Args:
        prefixes: the paths of each split's ``.bin`` and ``.idx`` without their endings, as megatron-core is given them.
        seq_length: S.
        seed: of the shuffling.
    """

    prefixes: Mapping[str, Sequence[str]]
    seq_length: int
    seed: int


class NotWhole(ValueError):
    """A cache that must not be read; the message is half a sentence with the file."""


class IndexCache:
    """The folder of one index cache. For the main process alone.

    Args:
        folder: its place; the folder above it is made where it is missing.
        indexed: see there.
        is_held: whether no other living process can be building in the folder above.
    """

    def __init__(self, folder: Path, indexed: Indexed, *, is_held: bool):
        self.folder, self.indexed, self._is_held = folder, indexed, is_held

    def is_whole(self) -> bool:
        """Whether the cache can be read as it is. One that cannot is removed, by the names of its files, with a
        message.

        Raises:
            ConfigError: it cannot be removed, or holds other files.
        """
        if not os.path.lexists(self.folder):
            return False
        try:
            verify(self.folder, self.indexed)
            return True
        except NotWhole as error:
            logger.warning(f"the index cache {self.folder} is not used, since {error}; it is removed and built again")
        try:
            _remove(self.folder)
        except OSError as error:
            raise ConfigError(
                f"{self.folder} is no whole index cache and cannot be removed ({error.strerror}); remove it, or set "
                f"data.cache_path to "
                "another folder"
            ) from None
        return False

    def begin(self, size: int) -> Path:
        """A new folder beside it, for megatron-core to build in, which this user alone can read; and what killed starts
        left is removed.

        Args:
            size: bytes that the cache will have; they are reserved for a moment, since a disk that turns out to be full
                while the processes build is found by one of them alone.

        Raises:
            OSError: there is no place for it; the message is a sentence.
        """
        with self.naming_failures():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", suffix=".building", dir=self.folder.parent))
            try:
                self._sweep(made)
                _reserve(made, size)
            except OSError:
                self.discard(made)
                raise
        return made

    def publish(self, built: Path) -> None:
        """Wait until all of it is on the disk, and give it its name; if another run was faster, its cache is kept.

        Raises:
            OSError: a sentence.
        """
        with self.naming_failures():
            sync_tree(built)
            while True:
                try:
                    os.rename(built, self.folder)
                    break
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
                    if self.is_whole():
                        break
            sync(self.folder.parent)

    @contextmanager
    def naming_failures(self) -> Iterator[None]:
        """Failures of the system while a cache is built, which megatron-core wraps, become a sentence with the
        folder.
        """
        try:
            yield
        except Exception as error:
            cause = next((found for found in (error, error.__cause__) if isinstance(found, OSError)), None)
            if cause is None:
                raise
            raise OSError(
                f"the index cache cannot be written to {self.folder.parent} ({cause.strerror or cause}); make room "
                f"there or check its "
                "permissions, then give the same command again, or set data.cache_path to another folder"
            ) from None

    def discard(self, built: Path) -> None:
        """Remove a folder of ``begin``, if it is still there."""
        with suppress(OSError, ConfigError):
            _remove(built)

    def _sweep(self, made: Path) -> None:
        """Remove what starts that were killed have left; where others may be building, only what is a day older than
        ``made``.
        """
        now = made.stat().st_mtime
        for path in made.parent.iterdir():
            if _UNFINISHED.fullmatch(path.name) and path != made:
                with suppress(OSError):
                    if self._is_held or now - path.lstat().st_mtime > _ABANDONED_SECONDS:
                        self.discard(path)


def _reserve(folder: Path, size: int) -> None:
    """Find out whether a disk, and a quota on it, have room."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, f"it takes {size / 1e6:,.1f} MB: {error.strerror}") from None
            # A file system that cannot reserve.


def _remove(folder: Path) -> None:
    """Remove a cache: its files by their names, and the folder; of a link, the link.

    Raises:
        ConfigError: it holds anything else.
        OSError: it may not be removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    for name in sorted(os.listdir(folder)):
        if not _FILE.fullmatch(name):
            raise ConfigError(
                f"{folder} holds {name!r}, which is no part of an index cache; move it away, or set data.cache_path "
                f"to another folder"
            )
    for name in os.listdir(folder):
        (folder / name).unlink()
    folder.rmdir()


def verify(folder: Path, indexed: Indexed) -> None:
    """Compare every value of a cache with what it must be; nothing is unpickled.

    Only the order of the samples and of the sequences is taken as it stands: any permutation passes.

    Raises:
        NotWhole: the first thing that is wrong.
    """
    found = folder.lstat()
    if not folder.is_dir() or folder.is_symlink():
        raise NotWhole("it is not a folder")
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise NotWhole("another user could have written it")
    names = sorted(os.listdir(folder))
    for name in names:
        if not _FILE.fullmatch(name):
            raise NotWhole(f"{name!r} is no part of it")
    stems = [name.removesuffix(DESCRIPTION) for name in names if name.endswith(DESCRIPTION)]
    due = {
        f"{stem}{name}" for stem in stems for name in (DESCRIPTION, *(f"{array}.npy" for array in ARRAYS[_kind(stem)]))
    }
    if due != set(names):
        raise NotWhole(f"{min(due ^ set(names))} is {'missing' if due - set(names) else 'without a description'}")
    if {stem.split("-")[2] for stem in stems} != set(indexed.prefixes):
        raise NotWhole("it is of other splits")
    described = {stem: _description(folder, stem) for stem in stems}
    samples: list[tuple[dict, int]] = []  # descriptions of the datasets of each folder, and their samples
    for split, prefixes in indexed.prefixes.items():
        of_split = [stem for stem in stems if stem.endswith(f"-{split}-")]
        parts = [stem for stem in of_split if _kind(stem) == "GPTDataset"]
        if {described[stem].get("dataset_path") for stem in parts} != set(prefixes):
            raise NotWhole(f"it is not of the {split} data of this run")
        if (len(prefixes) > 1) != (len(of_split) > len(parts)):
            raise NotWhole(f"it is not of the blend of {split} of this run")
        samples += [(described[stem], _check_dataset(folder, stem, described[stem], indexed)) for stem in parts]
    for stem in filter(lambda stem: _kind(stem) == "BlendedDataset", stems):
        _check_blend(folder, stem, described[stem], samples)


def _kind(stem: str) -> str:
    return stem.split("-")[1]


def _description(folder: Path, stem: str) -> dict:
    name = f"{stem}{DESCRIPTION}"
    try:
        text = read_text(folder / name, _DESCRIPTION_BYTES, follow_links=False)
        described = parse_json(text)
    except (OSError, ValueError) as error:
        raise NotWhole(f"{name} cannot be read ({error})") from None
    if not isinstance(described, dict) or hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() != stem[:32]:
        raise NotWhole(f"{name} is not what its name says")
    return described


def _array(folder: Path, stem: str, name: str, dimensions: int) -> np.ndarray:
    """An array as it lies on the disk, after its header was compared with what is due and with the size of its file."""
    kinds, name = ARRAYS[_kind(stem)][name], f"{stem}{name}.npy"
    try:
        with open_regular(folder / name, follow_links=False) as file:
            head = file.read(len(MAGIC) + 2)
            head += file.read(min(int.from_bytes(head[len(MAGIC) :], "little"), _HEADER_BYTES))
            found = _HEADER.fullmatch(head[len(MAGIC) + 2 :])
            if not head.startswith(MAGIC) or not found:
                raise ValueError("it does not begin as an array of numbers does")
            kind, shape = found[1].decode(), tuple(int(count) for count in found.groups()[1:] if count)
            if kind not in kinds or len(shape) != dimensions or shape[0] < 1 or shape[1:] not in ((), (2,)):
                raise ValueError(f"it holds {kind} {shape}")
            due, size = len(head) + np.dtype(kind).itemsize * math.prod(shape), os.fstat(file.fileno()).st_size
            if size != due:
                raise ValueError(f"it has {size:,} bytes where {due:,} are due")
            return np.memmap(file, kind, "r", len(head), shape)
    except (OSError, ValueError) as error:
        raise NotWhole(f"{name} is damaged ({error})") from None


def _check_dataset(folder: Path, stem: str, described: dict, indexed: Indexed) -> int:
    """Verify the index of one folder's split; the number of its samples."""
    size = indexed.seq_length
    for name, due in (("sequence_length", size), ("random_seed", indexed.seed), ("index_split", stem.split("-")[2])):
        if described.get(name) != due:
            raise NotWhole(f"{stem}{DESCRIPTION} says {name}={described.get(name)!r}, not {due!r}")
    lengths = read_lengths(described["dataset_path"])

    documents = _array(folder, stem, "document_index", 1)
    epochs, rest = divmod(len(documents), len(lengths)) if len(lengths) else (0, 1)
    if (
        rest
        or documents.min() < 0
        or documents.max() >= len(lengths)
        or (np.bincount(documents, minlength=len(lengths)) != epochs).any()
    ):
        raise NotWhole(f"{stem}document_index.npy does not hold each of {len(lengths):,} sequences equally often")
    ends = np.cumsum(lengths[documents], dtype=np.int64)

    starts = _array(folder, stem, "sample_index", 2)
    samples = len(starts) - 1
    wanted = described.get("num_samples")
    if samples * size + 1 > ends[-1] or not isinstance(wanted, int | None) or samples < max(wanted or 1, 1):
        raise NotWhole(f"{stem}sample_index.npy has {samples:,} samples")
    for first in range(0, len(starts), _AT_ONCE):
        place, token = (starts[first : first + _AT_ONCE, column].astype(np.int64) for column in (0, 1))
        if place.min() < 0 or place.max() >= len(documents):
            raise NotWhole(f"{stem}sample_index.npy has places outside document_index")
        length = lengths[documents[place]]
        at = ends[place] - length + token
        if (token < 0).any() or (token > length).any() or (at != size * np.arange(first, first + len(at))).any():
            raise NotWhole(f"{stem}sample_index.npy has samples that do not follow one another")

    order = _array(folder, stem, "shuffle_index", 1)
    if len(order) != samples or not _is_permutation(order):
        raise NotWhole(f"{stem}shuffle_index.npy is no permutation of {samples:,} samples")
    return samples


def _check_blend(folder: Path, stem: str, described: dict, samples: list[tuple[dict, int]]) -> None:
    """Verify which sample of which dataset comes when."""
    parts = described.get("datasets")
    known = [[count for found, count in samples if found == part] for part in parts] if isinstance(parts, list) else []
    if not known or not all(known):
        raise NotWhole(f"{stem}{DESCRIPTION} is of other datasets")
    numbers, places = (_array(folder, stem, name, 1) for name in ("dataset_index", "dataset_sample_index"))
    if (
        len(numbers) != len(places)
        or len(numbers) != described.get("size")
        or numbers.min() < 0
        or numbers.max() >= len(known)
    ):
        raise NotWhole(f"{stem}dataset_index.npy is not of {len(known)} datasets and {described.get('size')} samples")
    for number, (count, *_) in enumerate(known):
        own = places[numbers == number]
        if len(own) > count or (own != np.arange(len(own))).any():
            raise NotWhole(f"{stem}dataset_sample_index.npy has samples that do not follow one another")


def _is_permutation(values: np.ndarray) -> bool:
    if values.min() < 0 or values.max() >= len(values):
        return False
    seen = np.zeros(len(values), bool)
    for first in range(0, len(values), _AT_ONCE):
        seen[values[first : first + _AT_ONCE]] = True
    return bool(seen.all())
