"""Findings about the arguments of each job script in launch/, told apart by the command that a script runs."""

import argparse
import contextlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from megatron_music.cli.dataset_options import add_build_options
from megatron_music.cli.generate import add_generate_midi
from megatron_music.cli.generate_audio import add_generate_audio
from megatron_music.cli.parser import Parser
from megatron_music.cli.preflight_run import check_mounts, check_new_folder, check_run
from megatron_music.cli.sbatch import Job
from megatron_music.config.errors import counted
from megatron_music.config.load import load_run
from megatron_music.data.building import PLAN_FILE, building_folder
from megatron_music.profiling.sweep import IMPOSSIBLE, is_done, outcome_of, read_sweep
from megatron_music.reports.findings import NOTE, OK, WRONG, Finding, finding_of

_GENERATES = {"midi": add_generate_midi, "audio": add_generate_audio}
Check = Callable[[Job, Sequence[str], str | None, Mapping[str, str]], Iterator[Finding]]


def check_arguments(
    job: Job, arguments: Sequence[str], gpu: str | None, environment: Mapping[str, str]
) -> Iterator[Finding]:
    """Findings about what a script will be given.

    Of a script that runs no command known here, arguments are read as those of launch/train.sbatch, and a note says so.
    """
    where = str(job.path)
    found = next((check for pattern, check in _SCRIPTS if re.search(pattern, job.text)), None)
    if found is None:
        if not arguments:
            return
        yield Finding(
            NOTE,
            f"{job.path.name} runs none of this package's commands: its arguments are read as a recipe, as "
            f"train.sbatch takes them",
            where,
        )
        found = _train
    elif not arguments and found is not _build_plan:
        return
    yield from found(job, arguments, gpu, environment)


def trains(job: Job) -> bool:
    """Whether a script's arguments are a recipe that is trained."""
    return next((check for pattern, check in _SCRIPTS if re.search(pattern, job.text)), _train) in (_train, _profile)


def _train(job, arguments, gpu, environment):
    yield from check_run(job, arguments, gpu, environment)


def _profile(job, arguments, gpu, environment):
    yield from check_run(job, arguments, gpu, environment, is_kept=False)
    window = environment.get("PROFILE_STEPS", "10-12")
    first = re.match(r"\d+", window)
    try:
        iterations = load_run(arguments[0], arguments[1:]).train.train_iters
    except ValueError:  # which check_run has named
        return
    if first and int(first[0]) > iterations:
        yield Finding(
            WRONG,
            f"PROFILE_STEPS={window} begins after the last iteration, train.train_iters={iterations}",
            str(job.path),
            f"set train.train_iters={int(first[0]) + 5}, or an earlier PROFILE_STEPS",
        )


def _sweep(job, arguments, gpu, environment):
    where = arguments[0]
    if len(arguments) != 1:
        yield Finding(
            WRONG,
            f"{job.path.name} takes SWEEP alone, and {len(arguments)} arguments are given",
            str(job.path),
            "settings are those of the plan",
        )
        return
    try:
        sweep = read_sweep(Path(where))
        tasks = job.array_tasks if "array" in job.options else None
    except (ValueError, OSError) as error:
        yield finding_of(error, where)
        return
    waiting = [
        row for row in sweep.rows if not is_done(outcome_of(sweep, row)) and outcome_of(sweep, row).status != IMPOSSIBLE
    ]
    most = max((row.num_gpus for row in waiting), default=0)
    if most > job.num_tasks:
        yield Finding(
            WRONG,
            f"a row of {where} takes {most} tasks, and the job has {job.num_tasks}",
            where,
            f"submit with --nodes={-(-most // job.tasks_per_node)}",
        )
    last = len(sweep.rows) - 1
    if tasks is None:
        yield Finding(
            WRONG, "the job is no array, and each task measures one row", str(job.path), f"submit with --array=0-{last}"
        )
    elif beyond := sorted(task for task in tasks if task > last):
        yield Finding(
            WRONG,
            f"--array={job.options['array']} has task {beyond[0]}, and {where} has rows 0 to {last}",
            where,
            f"submit with --array=0-{last}",
        )
    else:
        left_out = sorted(row.number for row in waiting if row.number not in tasks)
        if left_out:
            yield Finding(
                NOTE,
                f"rows {', '.join(map(str, left_out))} of {where} are not in --array={job.options['array']}",
                where,
            )
    yield Finding(OK, f"{counted(len(sweep.rows), 'row')}, {len(waiting)} of them to be measured", where)
    yield from check_mounts([Path(where)], where, environment)


def _shards(job, arguments, gpu, environment):
    if "array" not in job.options:
        yield Finding(
            WRONG,
            "the job is no array, and each task encodes a part of the shards",
            str(job.path),
            "submit it through launch/build_dataset.sh, or with --array=0-15",
        )
    elif min(job.array_tasks) != 0 or len(job.array_tasks) != max(job.array_tasks) + 1:
        yield Finding(
            WRONG,
            f"--array={job.options['array']} is not counted from 0 in ones, and some shards would have no task",
            str(job.path),
            f"submit with --array=0-{len(job.array_tasks) - 1}",
        )
    yield from _planned(job, arguments, environment)


def _merge(job, arguments, gpu, environment):
    yield from _planned(job, arguments, environment)


def _planned(job: Job, arguments: Sequence[str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """OUT, a dataset that was planned."""
    where = arguments[0]
    if len(arguments) != 1:
        yield Finding(
            WRONG,
            f"{job.path.name} takes OUT alone, and {len(arguments)} arguments are given",
            str(job.path),
            "options are those of the plan",
        )
        return
    if (Path(where) / "report.json").is_file():
        yield Finding(NOTE, f"{where} is finished: there is nothing left to build", where)
    elif not (building_folder(where) / PLAN_FILE).is_file():
        yield Finding(
            WRONG,
            f"{where} is not planned",
            where,
            "run launch/build_dataset.sh, which plans and submits, or megatron-music build plan",
        )
    else:
        yield Finding(OK, f"planned in {building_folder(where)}", where)
    yield from check_new_folder("OUT", where, where)
    yield from check_mounts([Path(where).parent], where, environment)


def _generate(job, arguments, gpu, environment):
    where = " ".join(["generate", *arguments[:2]])
    parsed, said = None, f"generate takes midi or audio, and {arguments[0]!r} is given"
    if arguments[0] in _GENERATES:
        parsed, said = _parsed(_GENERATES[arguments[0]], arguments[1:])
    if parsed is None:
        yield Finding(WRONG, said, where, "see `megatron-music generate midi --help` and `generate audio --help`")
        return
    checkpoints = [getattr(parsed, "checkpoint", None), *getattr(parsed, "checkpoints", [])]
    paths = [Path(name) for name in checkpoints if name]
    for path in paths:
        if not path.exists():
            yield Finding(WRONG, f"{path} is missing", where, "name a run's folder or a checkpoint")
        else:
            yield Finding(OK, f"a model in {path}", where)
    if parsed.output:
        yield from check_new_folder("--output", parsed.output, where)
    yield from check_mounts([*paths, Path(parsed.output or ".")], where, environment)


def _build_plan(job, arguments, gpu, environment):
    """build_dataset.sh, which is no job itself: it plans here and submits two."""
    where = str(job.path)
    if len(arguments) < 3 or not re.fullmatch(r"[1-9]\d*", arguments[0]):
        yield Finding(
            WRONG,
            "JOBS, OUT and at least one SOURCE are taken, JOBS a number",
            where,
            "bash launch/build_dataset.sh 16 OUT midi.tar.gz",
        )
        return
    output, *rest = arguments[1:]
    parsed, said = _parsed(add_build_options, [*rest, "-o", output])
    if parsed is None:
        yield Finding(WRONG, said, where, "see `megatron-music build plan --help`")
        return
    for source in parsed.sources:
        if not Path(source).exists():
            yield Finding(WRONG, f"{source} is missing", where, "name folders, MIDI files or archives")
    yield from check_new_folder("OUT", output, where)
    yield from check_mounts([*map(Path, parsed.sources), Path(output).parent], where, environment)


def _parsed(add_options: Callable, words: Sequence[str]) -> tuple[argparse.Namespace | None, str]:
    """The arguments as the command line itself reads them, or its refusal."""
    parser = Parser(prog="megatron-music")
    add_options(parser)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parser.parse_args(words), ""
    except SystemExit:
        lines = said.getvalue().strip().splitlines() or ["the arguments cannot be read"]
        return None, lines[-1].partition("error: ")[2] or lines[-1]


# By the command in the script's text; the first that is found decides.
_SCRIPTS: tuple[tuple[str, Check], ...] = (
    (r"nsys profile", _profile),
    (r"megatron[_-]music train\b", _train),
    (r"megatron[_-]music sweep\b", _sweep),
    (r"megatron[_-]music generate\b", _generate),
    (r"megatron[_-]music build shard\b", _shards),
    (r"megatron[_-]music build merge\b", _merge),
    (r"megatron[_-]music build plan\b", _build_plan),
)
