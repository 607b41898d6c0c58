"""A run's folder: whether it can be this run's, and holding it while the run lives.

Nothing is written before everything that can be known was checked.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path

from megatron_music.checkpoints.find import find_checkpoint, newest_whole
from megatron_music.checkpoints.folder import CONFIG, TOKENIZER
from megatron_music.checkpoints.state import check_same_model, read_state
from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sections import OF_DATA
from megatron_music.config.load import read_run, write_run
from megatron_music.config.log import logger
from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import Run
from megatron_music.data.folders import (
    CACHE,
    DATA_RECORD,
    Tokenizer,
    check_folders,
    difference_of_records,
    record_of,
)
from megatron_music.data.latents import LatentDataset
from megatron_music.data.latents_index import INDEX
from megatron_music.parallel import distributed
from megatron_music.storage.holding import LOCK, hold, is_of_lock
from megatron_music.storage.reading import read_json_object
from megatron_music.storage.writing import is_temporary, write_whole
from megatron_music.tokens import vocabulary
from megatron_music.tokens.lexicon import read_wording

STARTS = "starts.json"


def with_facts_of_data(config: Run) -> Run:
    """The run with what its data decide of the model.

    Raises:
        ValueError: no data, or data that do not go with the run.
    """
    return _with_shape_of_latents(config) if isinstance(config, FlowRunConfig) else with_vocabulary_of_data(config)


def _with_shape_of_latents(config: FlowRunConfig) -> FlowRunConfig:
    if config.data.path is None:
        raise ConfigError(
            "data.path is not set; name the folder made by `megatron-music build latents`, as in data.path=OUT"
        )
    found = LatentDataset(config.data.path, "train")
    if not len(found):
        raise ConfigError(f"{config.data.path} has no training samples; build it of more files")
    facts = {}
    for name in sorted(set(OF_DATA[config.model.kind].values())):
        facts[name], asked = getattr(found.info, name), getattr(config.model, name)
        if asked not in (None, facts[name]):
            raise ConfigError(
                f"model.{name} is {asked} and that of {config.data.path} is {facts[name]}; omit model.{name}"
            )
    if config.model.kind == "dit":
        facts["embedding_size"] = found.info.embedding_size
    return replace(config, model=replace(config.model, **facts))


def with_vocabulary_of_data(config: RunConfig) -> RunConfig:
    """The run with ``model.vocab_size`` as its data has it: larger than the vocabulary's own where tokens are merged.

    Raises:
        ValueError: no data, or data that does not go with the run.
    """
    size, asked = check_folders(config.data).encoding.vocab_size, config.model.vocab_size
    if asked not in (vocabulary.SIZE, size):
        where = config.data.folders[0]
        raise ConfigError(f"model.vocab_size is {asked} and that of {where} is {size}; omit model.vocab_size")
    return replace(config, model=replace(config.model, vocab_size=size))


def starting_point(config: Run) -> tuple[Path | None, bool]:
    """The checkpoint a run starts from, and whether that is its own, to go on from. Writes nothing.

    Where the processes are joined, every one must call this.

    Raises:
        ValueError: no data, no whole checkpoint, one that does not fit, or a folder that is not this run's.
    """
    folder = Path(config.checkpoint.save) if config.checkpoint.save else None
    has_run = distributed.on_main(lambda: _holds_run(folder, config))
    newest = newest_whole(folder) if has_run else None
    if newest is not None:
        distributed.on_main(lambda: _check_own(newest, config))
        return newest, True
    if config.checkpoint.load is None:
        return None, False
    origin = find_checkpoint(config.checkpoint.load)
    distributed.on_main(lambda: _check_origin(origin, config))
    return origin, False


@contextmanager
def held_folder(folder: Path | None) -> Iterator[None]:
    """Keep a second run out of a folder as long as this one lives; the folder is made where it is missing. For the main
    process.

    Nothing is written into it here. If it has nothing but an index cache at the end, and was made here, it goes again.

    Raises:
        ConfigError: another process holds it, or it is a file.
    """
    if folder is None:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder with checkpoint.save=DIR")
    is_new = not folder.exists()
    try:
        with hold(
            folder / LOCK, f"{folder} is in use by a run that is under way{{owner}}; wait for it or name another folder"
        ):
            try:
                yield
            finally:
                if is_new and _is_unused(folder):
                    shutil.rmtree(folder / CACHE, ignore_errors=True)
    finally:
        if is_new:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def _is_unused(folder: Path) -> bool:
    """Whether a folder has no more in it than a start leaves that was killed before its checks were over."""
    return all(name == CACHE or is_temporary(name) or is_of_lock(LOCK, name) for name in os.listdir(folder))


def take_folder(folder: Path | None, config: Run) -> None:
    """Make a held folder this run's, once everything about it was checked. For the main process."""
    if folder is not None:
        write_run(config, folder / CONFIG)


def count_start(folder: Path, iteration: int, config: Run) -> str | None:
    """Note that a run starts, and say in a sentence why it must not: it has not got on for too long.

    ``RUN/starts.json`` holds the iteration that the last starts went out from, and how many they were. A checkpoint
    completed since makes it another iteration. For the main process.
    """
    path, allowed = folder / STARTS, config.train.max_starts_without_progress
    starts = _read_starts(path, iteration)
    if allowed and starts >= allowed:
        return (
            f"{folder} was started {starts} times from iteration {iteration} and completed no checkpoint in between; "
            f"see "
            f"why it ended, then remove {path} to start it again (train.max_starts_without_progress={allowed})"
        )
    record = {"iteration": iteration, "starts": starts + 1}
    write_whole(path, (json.dumps(record) + "\n").encode(), syncs_folder=True)
    return None


def _read_starts(path: Path, iteration: int) -> int:
    try:
        record = read_json_object(path)
        return int(record["starts"]) if record["iteration"] == iteration else 0
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return 0  # a guard against endless starts must not become a reason for none


def _holds_run(folder: Path | None, config: Run) -> bool:
    if not isinstance(config, FlowRunConfig):
        check_folders(config.data)
    if folder is None:
        return False
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder with checkpoint.save=DIR")
    # A start that was killed before its checks were over leaves no more than these.
    if not folder.is_dir() or _is_unused(folder):
        return False
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"{folder} holds something that is no run; name an empty or a new folder with checkpoint.save=DIR"
        )
    return True


def _check_own(newest: Path, config: Run) -> None:
    """Whether a run can go on from its own checkpoint: the same model, over the same data in the same order."""
    if read_state(newest).get("weights_only"):
        raise ConfigError(
            f"{newest.parent} holds weights alone, so there is no run to go on with; start one from them with "
            f"checkpoint.load={newest.parent} and another checkpoint.save"
        )
    found = read_run(newest / CONFIG)
    check_same_model(found.model, config.model, newest.parent)
    _check_same_run(found, config, newest)
    _check_same_data(newest, config, every_field=True)
    _check_same_content(found, config, newest)
    _tell_changes(found, config, newest)


def _check_origin(origin: Path, config: Run) -> None:
    read_state(origin)
    check_same_model(read_run(origin / CONFIG).model, config.model, origin)
    _check_same_data(origin, config, every_field=False)


def _check_same_run(found: Run, wanted: Run, where: Path) -> None:
    """A run goes on over the same data in the same order, or its position in the data means nothing."""
    if isinstance(wanted, FlowRunConfig):
        own = [
            *(
                (f"flow.{item.name}", getattr(found.flow, item.name), getattr(wanted.flow, item.name))
                for item in fields(wanted.flow)
            ),
        ]
    else:
        own = [
            ("model.seq_length", found.model.seq_length, wanted.model.seq_length),
        ]
    for name, old, new in (
        *own,
        ("train.seed", found.train.seed, wanted.train.seed),
        ("train.global_batch_size", found.train.global_batch_size, wanted.train.global_batch_size),
    ):
        if old != new:
            raise ConfigError(
                f"{where} was trained with {name}={old}, not {new}; set it back, or start a new run from these "
                f"weights with "
                f"checkpoint.load={where} and another checkpoint.save"
            )


def _check_same_content(found: Run, wanted: Run, where: Path) -> None:
    """Refuse other data than a run was trained on, wherever they lie; the same data may have moved."""
    if isinstance(wanted, FlowRunConfig):
        was, now = (read_json_object(folder / INDEX) for folder in (where, Path(wanted.data.path)))
        difference = f"the data in {wanted.data.path} are other data than it was trained on" if was != now else ""
    elif (where / DATA_RECORD).is_file():
        try:
            record = read_json_object(where / DATA_RECORD)
            difference = difference_of_records(record, record_of(wanted.data), wanted.data.folders)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{where / DATA_RECORD} cannot be used ({error!r}); name another checkpoint") from None
    else:  # an earlier version wrote none: the paths and weights are all that is known
        difference = _difference_of_paths(found, wanted)
        if not difference:
            logger.warning(f"{where} does not record its data, so that they are the same is taken from data.path alone")
    if difference:
        raise ConfigError(
            f"{difference} ({where}); name the data it was trained on, or start a new run from these weights with "
            f"checkpoint.load={where} and another checkpoint.save"
        )


def _difference_of_paths(found: Run, wanted: Run) -> str:
    """How ``data.path`` is not as it was, in words; empty where it names the same folders with the same weights."""
    old, new = found.data.folders, wanted.data.folders
    if list(map(os.path.realpath, old)) != list(map(os.path.realpath, new)):
        relative = (
            "" if all(folder.is_absolute() for folder in old) else ", from the folder that the run was started in"
        )
        return f"data.path is {' '.join(map(str, new))}, and was {' '.join(map(str, old))}{relative}"
    if found.data.weights != wanted.data.weights:
        return f"the weights of data.path are {wanted.data.weights}, and were {found.data.weights}"
    return ""


def _tell_changes(found: Run, wanted: Run, where: Path) -> None:
    """Say what else of a run is not as it was: it holds from here on."""
    if found.train.train_iters != wanted.train.train_iters and not isinstance(wanted, FlowRunConfig):
        logger.warning(
            f"train.train_iters is {wanted.train.train_iters}, and was {found.train.train_iters} in {where}; "
            "megatron-core shuffles the data anew for another length"
            + (
                ", and the learning rate leaps to the schedule of that length"
                if wanted.optimizer.lr_decay_style != "constant"
                else ""
            )
        )
    changes = [
        f"{section}.{item.name} is {getattr(new, item.name)}, and was {getattr(old, item.name)}"
        for section in ("data", "optimizer")
        for old, new in [(getattr(found, section), getattr(wanted, section))]
        for item in fields(new)
        if item.name not in ("path", "cache_path") and getattr(old, item.name) != getattr(new, item.name)
    ]
    if changes:
        logger.warning(f"{'; '.join(changes)} in {where}")


def _check_same_data(where: Path, config: Run, every_field: bool) -> None:
    if isinstance(config, FlowRunConfig):
        _check_encoders(where, Path(config.data.path))
    else:
        _check_encoding(where, check_folders(config.data), every_field)


def _check_encoders(where: Path, data: Path) -> None:
    """Latents and states of other encoders have other meanings, whatever their shapes."""
    try:
        found = read_json_object(where / INDEX)["encoders"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{where / INDEX} cannot be read ({error}); name another checkpoint") from None
    wanted = read_json_object(data / INDEX)["encoders"]
    # The published model has no encoder of music; what else the data have is not asked.
    names = [name for name in sorted(found) if found[name] != wanted.get(name)]
    if names:
        raise ConfigError(
            f"{where} was trained on data of other encoders than {data} ({', '.join(names)}); name the data it was "
            f"trained on"
        )


def _check_encoding(where: Path, tokenizer: Tokenizer, every_field: bool) -> None:
    (found, old_merges, _), (wanted, new_merges) = read_wording(where / TOKENIZER), tokenizer
    same = found == wanted if every_field else found.steps_per_quarter == wanted.steps_per_quarter
    if not same:
        names = [item.name for item in fields(found) if getattr(found, item.name) != getattr(wanted, item.name)]
        old, new = (", ".join(f"{name}={getattr(encoding, name)}" for name in names) for encoding in (found, wanted))
        raise ConfigError(
            f"{where} was trained on the encoding {old}, and the data have {new}; name the data it was trained on"
        )
    if old_merges != new_merges:
        raise ConfigError(
            f"{where} was trained on {found.bpe} merged tokens that are not those of the data ({wanted.bpe}); name "
            f"the data it "
            "was trained on"
        )
