"""``build tokens``: MIDI files to train/valid/test, a tokenizer folder, a report and a quarantine list.

Planning, encoding and merging one after another; a job script calls the three by themselves (``build plan``, ``build
shard``, ``build merge``) and gets the same bytes.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_music.corpora.midi_files import find_files
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.building import (
    building_folder,
    check_building,
    check_sources,
    held,
    remove_building,
)
from megatron_music.data.merge import BuildError, finished_report, merge_shards
from megatron_music.data.merge_passes import Progress
from megatron_music.data.plan import fingerprint, plan_build
from megatron_music.data.shard import encode_shard

__all__ = ["BuildError", "build_tokens", "plan_tokens"]


def build_tokens(
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    options: BuildOptions = BuildOptions(),  # noqa: B008 (frozen)
    workers: int = 1,
    progress: Progress = lambda items, total: items,
) -> dict:
    """Build a dataset and return its report.

    The work lies in ``OUT.building`` until OUT appears, whole. Stopped in whatever way, by a signal, a full disk or the
    power, the same call goes on from the finished shards, and the dataset's bytes are those of an undisturbed build.
    The same call on the same files when the dataset is there finds the work done and returns its report.

    A file goes to train, valid or test by the hash of its notes and the seed, so all its windows, its copies and near
    copies are in one split. A split that would stay empty takes the music of the smallest hash from train, if train
    keeps some.

    Args:
        sources: MIDI files, folders, archives and list files.
        out: a folder that does not exist yet, or an empty one.
        workers: processes that parse and encode. The dataset does not depend on their number.
        progress: wraps iterations over files, given their number: one of encoding and two of merging.

    Raises:
        BuildError: ``out`` holds something else, or no file gives a single document. Nothing stays then.
        ValueError: no MIDI files; an archive or the labels cannot be read; another build works on ``out``, or an
            unfinished one of other files or options, or something that is not of a build, lies there.
        OSError: the disk is full or not writable. ``OUT.building`` stays.
    """
    started = time.perf_counter()
    if workers < 1:
        raise BuildError(f"workers is {workers}; use 1 or more")
    done = plan_tokens(sources, out, options)
    if done is not None:
        return done
    with held(building_folder(out)):
        done = encode_shard(out, workers=workers, progress=progress)
        return merge_shards(out, progress, workers, None if done["found"] else started)


def plan_tokens(sources: Sequence[str | os.PathLike], out: str | os.PathLike, options: BuildOptions) -> dict | None:
    """Plan a dataset, unless it is there already: its report then."""
    out, building = Path(os.path.realpath(out)), building_folder(out)
    check_sources(building, sources)
    files = find_files(sources)
    done = finished_report(out, fingerprint(files, options))
    if done is None:
        plan_build(sources, out, options, files=files)
    elif building.exists():  # the merge was killed when only this was left to do
        with held(building):
            check_building(building)
            remove_building(building)
    return done
