"""Everything that can be seen of a job before it is queued: the script's text, what it is given, paths, memory, the
cluster.

Each finding says what, where and what to do. What shows only on the nodes (an image that does not start, a mount that
differs there) is not seen from here. Imports torch only to rehearse a step.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_music.cli.preflight_run import mounts
from megatron_music.cli.preflight_scripts import check_arguments, trains
from megatron_music.cli.sbatch import (
    Job,
    heading,
    read_job,
    seconds_of,
    split_command_line,
)
from megatron_music.config.errors import counted
from megatron_music.reports.findings import NOTE, OK, WRONG, Finding

_SECONDS_TO_ASK = 20  # a controller that is down answers late


def preflight(
    script: Path,
    arguments: Sequence[str],
    *,
    sbatch: Sequence[str] = (),
    gpu: str | None = None,
    environment: Mapping[str, str] = os.environ,
    rehearse: bool = False,
) -> list[Finding]:
    """All findings about a job.

    Args:
        script: a job script.
        arguments: what the script will be given; empty: the script alone is looked at.
        sbatch: options of sbatch itself, before the script.
        gpu: the GPUs' name, where the job has none.
        rehearse: run the first step of a training script here, as ``megatron_music.rehearsal`` does; loads torch.
        environment: where MEGATRON_MUSIC_RUNTIME, SBATCH_PARTITION and the like are looked up.

    Raises:
        ValueError: the script cannot be read.
    """
    job = read_job(script, sbatch, environment)
    findings = [*_text(job), *_runtime(environment)]
    try:
        job.check_numbers()
    except ValueError as error:
        return [*findings, Finding(WRONG, str(error), str(script), "correct the option")]
    findings += [*_shape(job), *check_arguments(job, arguments, gpu or job.gpu, environment)]
    if rehearse and arguments and trains(job):
        from megatron_music.rehearsal.checks import rehearsed_findings

        findings += rehearsed_findings(arguments, job.num_tasks, gpu or job.gpu)
    is_job = "#SBATCH" in job.text or bool(sbatch)
    return findings + (list(_slurm(job)) if is_job else [])


def as_submitted(words: Sequence[str]) -> tuple[Path, list[str], list[str]]:
    """The script, sbatch's options and the script's arguments of a command as it is typed: ``sbatch --nodes=4 JOB
    ARG``, ``bash JOB ARG``, ``JOB ARG``.

    Raises:
        ValueError: there is no script in it.
    """
    options: list[str] = []
    rest = list(words)
    if rest[:1] == ["sbatch"]:
        options, rest = split_command_line(rest[1:])
    elif rest[:1] == ["bash"]:
        rest = rest[1:]
    if not rest:
        raise ValueError(
            f"{' '.join(words)} names no script; give a job script, as in: preflight sbatch --nodes=4 "
            f"launch/train.sbatch RECIPE"
        )
    return Path(rest[0]), options, rest[1:]


def _text(job: Job) -> Iterator[Finding]:
    where, lines = str(job.path), job.text.splitlines()
    if number := next((number for number, line in enumerate(job.text.split("\n"), 1) if line.endswith("\r")), None):
        yield Finding(
            WRONG, "line ends are those of Windows (CRLF)", f"{where}:{number}", f"run: sed -i 's/\\r$//' {where}"
        )
    if not job.text.startswith("#!"):
        yield Finding(
            WRONG,
            "the first line names no shell, and sbatch refuses the script",
            f"{where}:1",
            "begin with #!/usr/bin/env bash",
        )
    for number in range(len(heading(job.text)), len(lines)):
        if lines[number].startswith("#SBATCH"):
            yield Finding(
                WRONG,
                f"{lines[number].strip()!r} stands after the first command, where Slurm ignores it",
                f"{where}:{number + 1}",
                "move it above the first command",
            )
    checked = subprocess.run(["bash", "-n"], input=job.text, capture_output=True, text=True, check=False)
    if checked.returncode:
        yield Finding(
            WRONG, f"bash cannot read it ({checked.stderr.strip().splitlines()[0]})", where, f"run: bash -n {where}"
        )
    if "signal" in job.options and "trap " in job.text and not job.options["signal"].startswith("B:"):
        yield Finding(
            WRONG,
            f"--signal={job.options['signal']} goes to the steps, and the script's trap never runs",
            where,
            f"write --signal=B:{job.options['signal']}",
        )
    if re.search(r"^[ \t]*srun\b[^\n]*\|", job.text, re.MULTILINE) and "pipefail" not in job.text:
        yield Finding(
            WRONG,
            "a pipe behind srun hides the status of a rank that fails",
            where,
            "use srun --output, or set -o pipefail",
        )
    output = job.options.get("output", "")
    if "/" in output and not Path(output).parent.is_dir():
        yield Finding(
            WRONG,
            f"the folder of --output={output} is missing, and Slurm does not make it: the job fails without a word",
            where,
            f"run: mkdir -p {Path(output).parent}",
        )
    yield Finding(OK, f"{counted(len(lines), 'line')}, {counted(len(job.options), 'option')} of sbatch", where)


def _shape(job: Job) -> Iterator[Finding]:
    where, tasks = str(job.path), job.num_tasks
    gpus = job.gpus_per_node
    if job.num_parts > 1:
        yield Finding(
            NOTE,
            f"a heterogeneous job of {job.num_parts} parts: the first is looked at, on which alone srun starts tasks",
            where,
            "submit the parts as jobs of their own",
        )
    if gpus is not None and job.tasks_per_node > gpus:
        yield Finding(
            WRONG,
            f"{counted(tasks, 'task')} on {counted(job.num_nodes, 'node')} of {counted(gpus, 'GPU')}: more tasks than "
            f"GPUs",
            where,
            f"set --ntasks-per-node={gpus}",
        )
    if job.seconds and job.lead_seconds and job.lead_seconds * 2 > job.seconds:
        yield Finding(
            WRONG,
            f"the signal comes {job.lead_seconds} s before the end of {job.seconds} s: little is left for training",
            where,
            "lower the seconds after @ in --signal, or raise --time",
        )
    if "requeue" in job.options and job.options.get("open-mode") != "append":
        yield Finding(
            WRONG,
            "--requeue without --open-mode=append: each start wipes the log of the one before",
            where,
            "add #SBATCH --open-mode=append",
        )
    starts_tasks_itself = (
        re.search(r"^[ \t]*(exec )?srun\b", job.text, re.MULTILINE) and "launch/env.sh" not in job.text
    )
    if "gpus-per-task" in job.options and starts_tasks_itself:
        yield Finding(
            NOTE,
            "--gpus-per-task: each task of a plain srun sees its own GPU alone, as number 0, while LOCAL_RANK counts "
            "on",
            where,
            "use --gpus-per-node, or run_tasks of launch/env.sh",
        )
    if (
        job.options.get("export", "").upper() == "NONE"
        and starts_tasks_itself
        and not re.search(r"srun\b.*--export", job.text)
    ):
        yield Finding(
            NOTE,
            "--export=NONE: a plain srun hands its tasks no PATH, and finds no `env` and no python",
            where,
            "write srun --export=ALL, or use run_tasks of launch/env.sh",
        )


def _runtime(environment: Mapping[str, str]) -> Iterator[Finding]:
    runtime = environment.get("MEGATRON_MUSIC_RUNTIME", "bare")
    where = "the environment"
    if runtime == "bare":
        venv = environment.get("MEGATRON_MUSIC_VENV", ".venv")
        if venv and not (Path(venv) / "bin" / "python").exists():
            yield Finding(
                WRONG,
                f"{venv} has no bin/python",
                where,
                f"set MEGATRON_MUSIC_VENV={sys.prefix}, the environment that runs this, or to another that the nodes "
                f"see, or to nothing",
            )
        return
    if runtime not in ("pyxis", "apptainer"):
        yield Finding(WRONG, f"MEGATRON_MUSIC_RUNTIME is {runtime}", where, "use bare, pyxis or apptainer")
        return
    image = environment.get("MEGATRON_MUSIC_IMAGE", "")
    if not image:
        yield Finding(WRONG, f"MEGATRON_MUSIC_IMAGE is not set for {runtime}", where, "name the image")
    elif image.endswith((".sqsh", ".sif")) and not Path(image).is_file():
        yield Finding(WRONG, f"the image {image} is missing", where, "import it first: ngc/import.sh")
    for mount in mounts(environment):
        if not Path(mount.split(":")[0]).exists():
            yield Finding(
                WRONG,
                f"{mount.split(':')[0]}, which is to be mounted, is missing",
                where,
                "correct MEGATRON_MUSIC_MOUNTS",
            )


def _slurm(job: Job) -> Iterator[Finding]:
    where = "Slurm"
    if not shutil.which("sinfo"):
        yield Finding(
            NOTE,
            "sinfo is not on this machine: partitions and limits were not looked at",
            where,
            "run this on a login node",
        )
        return
    answer = _ask("sinfo", "--noheader", "--format=%P|%l|%D|%c")
    listed = answer.stdout.strip() if answer and answer.returncode == 0 else ""
    if not listed:
        yield Finding(
            NOTE, "sinfo does not answer: partitions and limits were not looked at", where, "is slurmctld up?"
        )
        return
    rows = [line.split("|") for line in listed.splitlines()]
    partitions = {row[0].rstrip("*"): row for row in rows}  # a star marks the default
    names = job.partitions or [row[0][:-1] for row in rows if row[0].endswith("*")]
    for name in names:
        if name not in partitions:
            yield Finding(WRONG, f"there is no partition {name}", where, f"use one of {', '.join(partitions)}")
    names = [name for name in names if name in partitions]
    yield from _limits(job, [partitions[name] for name in names])
    tested = _ask("sbatch", "--test-only", *job.command_line, str(job.path))
    if tested is None:
        yield Finding(NOTE, "sbatch --test-only does not answer", where, "is slurmctld up?")
    elif tested.returncode:
        said = (tested.stderr.strip() or tested.stdout.strip()).splitlines()[-1].removeprefix("allocation failure: ")
        yield Finding(
            WRONG, f"sbatch --test-only refuses it ({said})", str(job.path), "ask for what the cluster has: sinfo -N -l"
        )
    else:
        yield Finding(OK, f"sbatch --test-only: {tested.stderr.strip().removeprefix('sbatch: ')}", where)


def _limits(job: Job, partitions: Sequence[list[str]]) -> Iterator[Finding]:
    """Time and cores against the partitions that the job may run in; one that takes it is enough."""
    where = str(job.path)
    short = {row[0].rstrip("*"): row[1] for row in partitions if row[1] != "infinite" and _is_above(job, row[1])}
    if short:
        listed = ", ".join(f"{limit} of {name}" for name, limit in short.items())
        time, limit = job.options["time"], max(short.values(), key=lambda limit: seconds_of(limit) or 0)
        if len(short) == len(partitions):
            few = f"the limit {limit} of partition {next(iter(short))}" if len(short) == 1 else f"the limits {listed}"
            yield Finding(
                WRONG,
                f"--time={time} is above {few}: the job would wait for ever",
                where,
                f"set --time={limit} or less",
            )
        else:
            yield Finding(
                NOTE, f"--time={time} is above the limit {listed}: the job waits for another of its partitions", where
            )
    if partitions:
        most = max(partitions, key=lambda row: int(row[3].rstrip("+")))
        cpus, wanted = int(most[3].rstrip("+")), int(job.options.get("cpus-per-task", "1")) * job.tasks_per_node
        if wanted > cpus:
            yield Finding(
                WRONG,
                f"{wanted} cores per node are asked for and partition {most[0].rstrip('*')} has nodes of {cpus}",
                where,
                "lower --cpus-per-task",
            )


def _is_above(job: Job, limit: str) -> bool:
    """Whether the job's time limit is above a partition's; no limit is above every one."""
    if "time" not in job.options:
        return False
    return job.seconds is None or job.seconds > (seconds_of(limit) or 0)


def _ask(*command: str) -> subprocess.CompletedProcess | None:
    """None: there is no answer in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_ASK, check=False)
    except subprocess.TimeoutExpired:
        return None
