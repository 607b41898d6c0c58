"""The folders of ``build tokens`` that a run reads: whether they are whole and go together, and what is in them.

Everything here is known before a model is built, and by ``preflight`` as by ``train``. Never imports torch.
"""

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.sections import SPLITS, DataConfig
from megatron_music.data.index_file import REMEDY, check_ids, check_index, pieces
from megatron_music.data.latents_index import INDEX
from megatron_music.reports.dataset import REPORT_FILE
from megatron_music.storage.reading import hash_of_file, read_bytes, read_json_object
from megatron_music.tokens.blend import added_by_some, blend_encodings
from megatron_music.tokens.bpe import Bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.lexicon import read_wording
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder

DATA_RECORD = "data.json"  # in a checkpoint
CACHE = "cache"  # in a run's folder
RECORD_FORMAT = 1


class Tokenizer(NamedTuple):
    """What the ids of a run's data mean."""

    encoding: Encoding
    bpe: Bpe | None


def check_folders(data: DataConfig) -> Tokenizer:
    """Refuse folders that cannot be trained on, alone or together: their indices are read whole, of their tokens a
    sample.

    Returns:
        The encoding of all folders together, and their merged tokens.

    Raises:
        ConfigError: one sentence with the folder and what to do.
        ValueError: a tokenizer folder is missing or damaged.
    """
    if data.path is None:
        raise ConfigError(
            "data.path is not set; name the folder made by `megatron-music build tokens`, as in data.path=OUT"
        )
    encodings, merges = {}, {}
    for folder in data.folders:
        if not _is_begun(folder, "train"):
            raise ConfigError(
                f"{folder} is a dataset of latents, of a text-to-music model; a GPT is trained on one of "
                f"`megatron-music build tokens`"
                if (Path(folder) / INDEX).is_file()
                else f"{folder} holds no train.bin and train.idx; make it with `megatron-music build tokens MIDI_DIR "
                f"-o {folder}`"
            )
        encodings[str(folder)], merges[folder], _ = read_wording(folder / "tokenizer")
        for split in filter(lambda split: _is_begun(folder, split), SPLITS):
            try:
                check_ids(folder / split, encodings[str(folder)].vocab_size)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        check_report(folder)
    try:
        encoding = blend_encodings(encodings)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    first = data.folders[0]
    for folder in data.folders:
        if merges[folder] != merges[first]:
            raise ConfigError(
                f"{first} and {folder} differ in merged tokens; build them as one dataset, or without --bpe"
            )
    return Tokenizer(encoding, merges[first])


def check_report(folder: Path) -> None:
    """Compare the documents and bytes of each split with those that the folder's report counted when it was built.

    A folder without a report, as another tool makes it, passes.

    Raises:
        ConfigError: they are others, or the report is damaged.
    """
    path = folder / REPORT_FILE
    try:
        rows = {
            split: row
            for split, row in read_json_object(path)["splits"].items()
            if split in SPLITS and _is_begun(folder, split)
        }
        counted = {split: (row["documents"], row["bytes"]) for split, row in rows.items()}
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); {REMEDY}") from None
    for split, (documents, size) in counted.items():
        found = check_index(folder / split), os.path.getsize(folder / f"{split}.bin")
        if found != (documents, size):
            raise ConfigError(
                f"{folder / split}.bin and .idx have {found[0]:,} documents in {found[1]:,} bytes, and {path} counts "
                f"{documents} in "
                f"{size}; {REMEDY}"
            )


def differences(data: DataConfig) -> str:
    """In which options that add tokens the folders differ, as a sentence; empty where they do not."""
    if len(data.folders) == 1:
        return ""
    found = added_by_some([read_wording(folder / "tokenizer")[0] for folder in data.folders])
    if not found:
        return ""
    return f"the folders of data.path differ in {', '.join(found)}; the model's tokenizer has what any of them has"


def tokenizer_files(data: DataConfig) -> dict[str, bytes]:
    """The files of the tokenizer that a checkpoint keeps: the folder's own, or that of all folders of a blend."""
    if len(data.folders) == 1:
        return files_below(data.folders[0], "tokenizer")
    tokenizer = check_folders(data)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer_folder(Path(folder, "tokenizer"), tokenizer.encoding, tokenizer.bpe)
        return files_below(Path(folder), "tokenizer")


def files_below(folder: Path, name: str) -> dict[str, bytes]:
    """The files of a folder in a folder, by their path from the outer one.

    Raises:
        ConfigError: one is a link: what it leads to would come into every checkpoint. Or it has more than 64 MiB.
    """
    paths = sorted((folder / name).rglob("*"))
    for path in (folder / name, *paths):
        refuse_unless(
            not path.is_symlink(),
            f"{path} is a link, which is not followed into checkpoints; put what it leads to in its place",
        )
    found = {}
    for path in filter(Path.is_file, paths):
        try:
            found[path.relative_to(folder).as_posix()] = read_bytes(path, follow_links=False)
        except ValueError as error:
            raise ConfigError(
                f"{path} cannot go into checkpoints ({error}); remove it, or build the dataset again"
            ) from None
    return found


def is_split(folder: Path, split: str) -> bool:
    """Whether a folder has both files of a split."""
    return all((folder / f"{split}.{suffix}").is_file() for suffix in ("bin", "idx"))


def _is_begun(folder: Path, split: str) -> bool:
    """Whether a folder has one file of a split at least; without the other it is damaged, and not empty."""
    return any((folder / f"{split}.{suffix}").is_file() for suffix in ("bin", "idx"))


def num_tokens(data: DataConfig, split: str) -> int:
    """Tokens of a split in all folders together; ids take two bytes."""
    return sum(os.path.getsize(folder / f"{split}.bin") for folder in data.folders) // 2


def without_tokens(data: DataConfig, split: str) -> list[Path]:
    """The folders that have nothing in a split."""
    return [
        folder for folder in data.folders if not is_split(folder, split) or not os.path.getsize(folder / f"{split}.bin")
    ]


def has_tokens(data: DataConfig, split: str) -> bool:
    """Whether every folder has something in a split; GPTDataset would look for samples in an empty one for ever."""
    return not without_tokens(data, split)


def cache_folder(data: DataConfig, run_folder: str | os.PathLike | None = None) -> Path:
    """Where index caches lie: ``data.cache_path``, else ``cache`` in the run's folder, else ``user_cache()``.

    A dataset need never be writable.
    """
    return Path(data.cache_path or (Path(run_folder, CACHE) if run_folder else user_cache()))


def cache_key(data: DataConfig, *identity: object) -> str:
    """The name of an index cache, of these very files: megatron-core's own key knows their paths, not whether they were
    replaced.

    Args:
        identity: what else an index depends on.
    """
    hasher = hashlib.sha256(repr((os.geteuid(), data.weights, *identity)).encode())
    for folder in data.folders:
        for split in SPLITS:
            status = (folder / f"{split}.idx").stat() if (folder / f"{split}.idx").is_file() else None
            hasher.update(f"{folder}\0{split}\0{status and (status.st_size, status.st_mtime_ns)}\n".encode())
    return hasher.hexdigest()[:16]


def user_cache() -> Path:
    """A folder of this user's own for index caches.

    ``megatron-music`` in ``$XDG_CACHE_HOME`` or ``~/.cache``; where that cannot be written, in the system's folder of
    temporary files.

    Raises:
        ConfigError: neither can be used, or the run has processes on several machines, which do not share temporary
            files.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "megatron-music")
    if _made_own(home):
        return home
    spare = Path(tempfile.gettempdir(), f"megatron-music-cache-{os.getuid()}")
    several = int(os.environ.get("WORLD_SIZE", "1")) > int(
        os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
    )
    if several or not _made_own(spare):
        raise ConfigError(
            f"no folder for the index cache: {home} cannot be used; set data.cache_path to a folder of yours that all "
            f"machines see"
        )
    return spare


def _made_own(folder: Path) -> bool:
    """Whether a folder is there, made now or before, that this user owns and no other can write to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError):  # no home
        return False
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return is_own and os.access(folder, os.W_OK)


def record_of(data: DataConfig) -> dict:
    """What a run's data are, by content: a moved dataset has the same record, a dataset built again of other files has
    not.

    The ``.idx`` are read whole, of each ``.bin`` 16 pieces of 64 KiB.
    """
    folders = [
        {split: _split_record(folder / split) for split in SPLITS if is_split(folder, split)} for folder in data.folders
    ]
    total = sum(data.weights or [1.0])
    weights = [weight / total for weight in data.weights or [1.0]]
    return {"format": RECORD_FORMAT, "folders": folders, "weights": weights}


def _split_record(prefix: Path) -> dict:
    digest = hash_of_file(f"{prefix}.idx")
    sample = hashlib.sha256()
    for _, piece in pieces(f"{prefix}.bin"):
        sample.update(piece)
    size = os.path.getsize(f"{prefix}.bin")
    return {
        "documents": check_index(prefix),
        "bin_bytes": size,
        "idx_sha256": digest,
        "bin_sample_sha256": sample.hexdigest(),
    }


def record_bytes(record: dict) -> bytes:
    """A record as a file."""
    return (json.dumps(record, indent=1) + "\n").encode()


def difference_of_records(found: dict, wanted: dict, folders: list[Path]) -> str:
    """What of a run's data is not as it was, in words; empty where all is.

    Args:
        found: the record of the run.
        wanted: that of the data as they are now.
        folders: where they are now.
    """
    was, now = found["folders"], wanted["folders"]
    if len(was) != len(now):
        return f"data.path has {len(now)} folders, and had {len(was)}"
    changed = [str(folder) for folder, one, other in zip(folders, was, now, strict=True) if one != other]
    if changed and len(was) > 1 and sorted(map(json.dumps, was)) == sorted(map(json.dumps, now)):
        return "the folders of data.path are in another order"
    if changed:
        return f"the data in {', '.join(changed)} are other data than it was trained on"
    # Weights of 1:1 and 0.5:0.5 are the same blend.
    if any(abs(one - other) > 1e-9 for one, other in zip(found["weights"], wanted["weights"], strict=True)):
        listed = [" and ".join(f"{weight:.4g}" for weight in record["weights"]) for record in (wanted, found)]
        return f"the weights of data.path are {listed[0]}, and were {listed[1]}"
    return ""
