"""Everything that can be known of a job before it is queued: the script's text, the run it starts, paths, memory, the cluster.

Each finding says what, where and what to do. What shows only on the nodes (an image that does not start, a mount that differs
there) is not seen from here. Knows nothing about torch.
"""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_music.config import Run, RunConfig
from megatron_music.data.latents import INDEX
from megatron_music.profiling.logs import read_log, summarize
from megatron_music.profiling.memory import checkpoint_memory, estimate_memory, fit, parameters_of_stage
from megatron_music.profiling.peaks import peak_of
from megatron_music.recipes import load_run

OK, NOTE, WRONG = "ok", "note", "wrong"
_SECONDS_TO_ASK = 20  # a controller that is down answers late


class Finding(NamedTuple):
    """One thing looked at."""

    status: str  # ok, note or wrong
    what: str
    where: str
    remedy: str = ""


class Job(NamedTuple):
    """What a script asks of Slurm."""

    path: Path
    options: dict[str, str]  # of #SBATCH lines, by their long names
    text: str

    @property
    def num_nodes(self) -> int:
        return int(self.options.get("nodes", "1").split("-")[0])

    @property
    def num_tasks(self) -> int:
        if "ntasks" in self.options:
            return int(self.options["ntasks"])
        return self.num_nodes * int(self.options.get("ntasks-per-node", "1"))

    @property
    def gpus_a_node(self) -> int | None:
        """None: the script asks for none by node."""
        found = re.search(r"(\d+)$", self.options.get("gpus-per-node", "") or self.options.get("gres", "").removeprefix("gpu"))
        return int(found[1]) if found else None

    @property
    def gpu(self) -> str | None:
        """The type that the script names, as in --gpus-per-node=a100:8."""
        found = re.search(r"^(?:gpu:)?([A-Za-z]\w*):\d+$", self.options.get("gpus-per-node", "") or self.options.get("gres", ""))
        return found[1] if found else None

    @property
    def seconds(self) -> int | None:
        return seconds_of(self.options["time"]) if "time" in self.options else None

    @property
    def lead_seconds(self) -> int | None:
        """How long before the end Slurm signals."""
        found = re.search(r"@(\d+)$", self.options.get("signal", ""))
        return int(found[1]) if found else None


_SHORT = {"J": "job-name", "N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "p": "partition", "o": "output",
          "A": "account", "G": "gpus", "a": "array", "d": "dependency", "e": "error", "q": "qos"}  # fmt: skip


def preflight(
    script: Path, recipe: Sequence[str], *, gpu: str | None = None, environment: Mapping[str, str] = os.environ
) -> list[Finding]:
    """All findings about a job.

    Args:
        script: an sbatch script.
        recipe: a recipe and its overrides, as the script will be given them; empty: the script alone is looked at.
        gpu: the GPUs' name, where the script has none.
        environment: where MEGATRON_MUSIC_RUNTIME and the like are looked up.

    Raises:
        ValueError: the script cannot be read.
    """
    try:
        text = script.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{script} cannot be read ({getattr(error, 'strerror', None) or error}); name an sbatch script") from None
    job = Job(script, dict(_directives(text)), text)
    findings = [*_text(job), *_runtime(environment)]
    try:
        findings += _shape(job)
    except ValueError as error:
        findings.append(Finding(WRONG, f"an #SBATCH line has a value that is no number ({error})", str(script), "mend the line"))
        return findings
    if recipe:
        findings += _run(job, recipe, gpu or job.gpu, environment)
    return [*findings, *_slurm(job)]


def _directives(text: str) -> Iterator[tuple[str, str]]:
    for line in _heading(text):
        found = re.match(r"#SBATCH\s+(?:--([\w-]+)(?:[= ]\s*(\S+))?|-(\w)\s*(\S+)?)", line)
        if found:
            yield found[1] or _SHORT.get(found[3], found[3]), found[2] or found[4] or ""


def _heading(text: str) -> list[str]:
    """The lines before the first command, which alone Slurm reads for options."""
    lines = text.splitlines()
    return lines[: next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))]


def _text(job: Job) -> Iterator[Finding]:
    where, lines = str(job.path), job.text.splitlines()
    if "\r" in job.text:
        number = next(number for number, line in enumerate(job.text.split("\n"), 1) if line.endswith("\r"))
        yield Finding(WRONG, "line ends are those of Windows (CRLF)", f"{where}:{number}", f"run: sed -i 's/\\r$//' {where}")
    if not job.text.startswith("#!"):
        yield Finding(WRONG, "the first line names no shell, and sbatch refuses the script", f"{where}:1", "begin with #!/usr/bin/env bash")
    for number in range(len(_heading(job.text)), len(lines)):
        if lines[number].startswith("#SBATCH"):
            yield Finding(
                WRONG, f"{lines[number].strip()!r} stands after the first command, where Slurm ignores it", f"{where}:{number + 1}",
                "move it above the first command",
            )  # fmt: skip
    checked = subprocess.run(["bash", "-n"], input=job.text, capture_output=True, text=True, check=False)
    if checked.returncode:
        yield Finding(WRONG, f"bash cannot read it ({checked.stderr.strip().splitlines()[0]})", where, f"run: bash -n {where}")
    if "signal" in job.options and "trap " in job.text and not job.options["signal"].startswith("B:"):
        yield Finding(
            WRONG, f"--signal={job.options['signal']} goes to the steps, and the script's trap never runs", where,
            f"write --signal=B:{job.options['signal']}",
        )  # fmt: skip
    if re.search(r"^\s*srun\b[^\n]*\|", job.text, re.MULTILINE) and "pipefail" not in job.text:
        yield Finding(WRONG, "a pipe behind srun hides the status of a rank that fails", where, "use srun --output, or set -o pipefail")
    output = job.options.get("output", "")
    if "/" in output and not Path(output).parent.is_dir():
        yield Finding(WRONG, f"the folder of --output={output} is missing, and Slurm does not make it: the job fails without a word",
                      where, f"run: mkdir -p {Path(output).parent}")  # fmt: skip
    yield Finding(OK, f"{len(lines)} lines, {len(job.options)} options of sbatch", where)


def _shape(job: Job) -> Iterator[Finding]:
    where, tasks = str(job.path), job.num_tasks
    gpus = job.gpus_a_node
    if gpus is not None and math.ceil(tasks / job.num_nodes) > gpus:
        yield Finding(WRONG, f"{tasks} tasks on {job.num_nodes} nodes of {gpus} GPUs each: more tasks than GPUs", where,
                      f"set --ntasks-per-node={gpus}")  # fmt: skip
    if job.seconds and job.lead_seconds and job.lead_seconds * 2 > job.seconds:
        yield Finding(WRONG, f"the signal comes {job.lead_seconds} s before the end of {job.seconds} s: little is left for training",
                      where, "lower the seconds after @ in --signal, or raise --time")  # fmt: skip
    if "requeue" in job.options and job.options.get("open-mode") != "append":
        yield Finding(WRONG, "--requeue without --open-mode=append: each start wipes the log of the one before", where,
                      "add #SBATCH --open-mode=append")  # fmt: skip


def _runtime(environment: Mapping[str, str]) -> Iterator[Finding]:
    runtime = environment.get("MEGATRON_MUSIC_RUNTIME", "bare")
    where = "the environment"
    if runtime == "bare":
        venv = environment.get("MEGATRON_MUSIC_VENV", ".venv")
        if venv and not (Path(venv) / "bin" / "python").exists():
            yield Finding(WRONG, f"{venv} has no bin/python", where,
                          "set MEGATRON_MUSIC_VENV to an environment that the nodes see, or to nothing")  # fmt: skip
        return
    if runtime not in ("pyxis", "apptainer"):
        yield Finding(WRONG, f"MEGATRON_MUSIC_RUNTIME is {runtime}", where, "use bare, pyxis or apptainer")
        return
    image = environment.get("MEGATRON_MUSIC_IMAGE", "")
    if not image:
        yield Finding(WRONG, f"MEGATRON_MUSIC_IMAGE is not set for {runtime}", where, "name the image")
    elif image.endswith((".sqsh", ".sif")) and not Path(image).is_file():
        yield Finding(WRONG, f"the image {image} is missing", where, "import it first: ngc/import.sh")
    for mount in _mounts(environment):
        if not Path(mount.split(":")[0]).exists():
            yield Finding(WRONG, f"{mount.split(':')[0]}, which is to be mounted, is missing", where, "mend MEGATRON_MUSIC_MOUNTS")


def _mounts(environment: Mapping[str, str]) -> list[str]:
    return [mount for mount in environment.get("MEGATRON_MUSIC_MOUNTS", "").split(",") if mount]


def _run(job: Job, recipe: Sequence[str], gpu: str | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    where = recipe[0]
    try:
        run = load_run(recipe[0], recipe[1:])
    except ValueError as error:
        yield Finding(WRONG, *_halves(error, where))
        return
    sound = True
    for check in (lambda: run.check_world_size(job.num_tasks), lambda: run.check_gpu(gpu or "")):
        try:
            check()
        except ValueError as error:
            sound = False
            yield Finding(WRONG, *_halves(error, where))
    if sound:
        yield Finding(OK, f"{job.num_tasks} tasks: {_layout(run, job.num_tasks)}", where)
    a_node = job.num_tasks // job.num_nodes
    if run.parallel.tensor_model_parallel_size > a_node and job.num_nodes > 1:
        yield Finding(NOTE, f"tensor parallel size {run.parallel.tensor_model_parallel_size} reaches over nodes of {a_node} tasks, where "
                      "every layer waits for the network", where, f"use {a_node} or less, and pipeline stages over nodes")  # fmt: skip
    yield from _paths(run, where, environment)
    yield from _saving(job, run, where)
    if sound and isinstance(run, RunConfig):
        yield from _memory(job, run, where, gpu)


def _halves(error: Exception, where: str) -> tuple[str, str, str]:
    """A sentence of an error as what, where, and what to do."""
    what, _, remedy = str(error).rpartition("; ")
    return (what or remedy, where, remedy if what else "")


def _layout(run: Run, world_size: int) -> str:
    parallel = run.parallel
    return (
        f"tensor {parallel.tensor_model_parallel_size} x pipeline {parallel.pipeline_model_parallel_size} x data "
        f"{parallel.data_parallel_size(world_size)}, {run.num_microbatches(world_size)} micro batches a step"
    )


def _paths(run: Run, where: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    if run.data.path is None:
        yield Finding(WRONG, "data.path is not set", where, "add data.path=OUT, the folder of `megatron-music build`")
        folders = []
    else:
        folders = run.data.folders if isinstance(run, RunConfig) else [Path(run.data.path)]
    wanted = ("train.bin", "train.idx", "tokenizer") if isinstance(run, RunConfig) else (INDEX,)
    for folder in folders:
        missing = [name for name in wanted if not (folder / name).exists()]
        if missing:
            yield Finding(WRONG, f"{folder} has no {' and no '.join(missing)}", where, "build it, or mend data.path")
        else:
            yield Finding(OK, f"data in {folder}", where)
    save = run.checkpoint.save
    if save is None:
        yield Finding(WRONG, "checkpoint.save is not set: what is trained would be lost", where, "add checkpoint.save=RUN")
    else:
        there = next(folder for folder in [Path(save).absolute(), *Path(save).absolute().parents] if folder.exists())
        if not os.access(there, os.W_OK):
            yield Finding(WRONG, f"checkpoint.save={save} cannot be written: {there} is not ours", where, "choose another folder")
    if run.checkpoint.load and not Path(run.checkpoint.load).is_dir():
        yield Finding(WRONG, f"checkpoint.load={run.checkpoint.load} is missing", where, "mend the path")
    if environment.get("MEGATRON_MUSIC_RUNTIME", "bare") != "bare":
        mounted = [Path(mount.split(":")[0]).absolute() for mount in _mounts(environment) or [os.getcwd()]]
        for path in [*folders, *([Path(save)] if save else [])]:
            if not any(path.absolute().is_relative_to(folder) for folder in mounted):
                yield Finding(WRONG, f"{path} lies below no mount, and the container will not see it", where,
                              "add it to MEGATRON_MUSIC_MOUNTS")  # fmt: skip


def _saving(job: Job, run: Run, where: str) -> Iterator[Finding]:
    """The interval of checkpoints and the signal's lead, against the time limit."""
    if job.seconds is None:
        return
    if job.lead_seconds is None:
        yield Finding(NOTE, "no --signal: at the time limit the steps since the last checkpoint are lost", str(job.path),
                      "add #SBATCH --signal=B:USR1@300")  # fmt: skip
    elif isinstance(run, RunConfig):
        size = _checkpoint_gb(run)
        yield Finding(NOTE, f"a checkpoint of about {size:.2f} GB must be written within half of the {job.lead_seconds} s after the "
                      f"signal: {2e3 * size / job.lead_seconds:,.1f} MB/s", str(job.path))  # fmt: skip
    seconds = _step_seconds(run)
    if seconds is None:
        yield Finding(NOTE, "the time of a step is not known, so the interval of checkpoints was not compared with the time limit", where,
                      "after a first run in checkpoint.save it is")  # fmt: skip
        return
    between = seconds * run.checkpoint.save_interval
    left = job.seconds - (job.lead_seconds or 0)
    if run.checkpoint.save_interval and between > left:
        yield Finding(WRONG, f"{run.checkpoint.save_interval} steps of {seconds:.3g} s between checkpoints are longer than the {left} s a "
                      "start has", where, f"set checkpoint.save_interval={max(1, int(left / seconds / 4))}")  # fmt: skip
    else:
        yield Finding(OK, f"steps took {seconds:.3g} s; {left / seconds:,.0f} of them in one start", where)


def _checkpoint_gb(run: RunConfig) -> float:
    """Weights, both moments of Adam, and the float32 copy of weights in bf16."""
    parallel = run.parallel
    elements = sum(parameters_of_stage(run, stage) for stage in range(parallel.pipeline_model_parallel_size))
    return elements * parallel.tensor_model_parallel_size * (14 if run.train.bf16 else 12) / 1e9


def _step_seconds(run: Run) -> float | None:
    try:
        return summarize(read_log(Path(run.checkpoint.save or "") / "metrics.jsonl").steps, 10).median
    except ValueError:
        return None


def _memory(job: Job, run: RunConfig, where: str, gpu: str | None) -> Iterator[Finding]:
    known = peak_of(gpu, "fp16") if gpu else None
    stages = estimate_memory(run, job.num_tasks)
    found = fit(stages, float(known.memory_gb) if known and known.memory_gb else None)
    if found.fits is False:
        yield Finding(WRONG, found.sentence, where, "raise the parallel sizes, use train.recompute_granularity=selective or full, or the "
                      "distributed optimizer; see `megatron-music memory`")  # fmt: skip
    elif found.fits is None:
        yield Finding(NOTE, found.sentence, where, "name the GPU with --gpu to compare")
    else:
        yield Finding(OK, found.sentence, where)
    if run.checkpoint.save:
        yield Finding(OK, checkpoint_memory(stages, run, job.num_tasks), where)


def _slurm(job: Job) -> Iterator[Finding]:
    where = "Slurm"
    if not shutil.which("sinfo"):
        yield Finding(NOTE, "sinfo is not on this machine: partitions and limits were not looked at", where, "run this on a login node")
        return
    answer = _ask("sinfo", "--noheader", "--format=%P|%l|%D|%c")
    listed = answer.stdout.strip() if answer and answer.returncode == 0 else ""
    if not listed:
        yield Finding(NOTE, "sinfo does not answer: partitions and limits were not looked at", where, "is slurmctld up?")
        return
    rows = [line.split("|") for line in listed.splitlines()]
    partitions = {row[0].rstrip("*"): row for row in rows}  # a star marks the default
    name = job.options.get("partition") or next((row[0][:-1] for row in rows if row[0].endswith("*")), None)
    if name and name not in partitions:
        yield Finding(WRONG, f"there is no partition {name}", where, f"use one of {', '.join(partitions)}")
    elif name:
        limit = partitions[name][1]
        if job.seconds and limit != "infinite" and job.seconds > seconds_of(limit):
            yield Finding(WRONG, f"--time={job.options['time']} is above the limit {limit} of partition {name}: the job would wait for ever",
                          str(job.path), f"set --time={limit} or less")  # fmt: skip
        cpus = int(partitions[name][3].rstrip("+"))
        wanted = int(job.options.get("cpus-per-task", "1")) * -(-job.num_tasks // job.num_nodes)
        if wanted > cpus:
            yield Finding(WRONG, f"{wanted} cores a node are asked for and partition {name} has nodes of {cpus}", str(job.path),
                          "lower --cpus-per-task")  # fmt: skip
    tested = _ask("sbatch", "--test-only", str(job.path))
    if tested is None:
        yield Finding(NOTE, "sbatch --test-only does not answer", where, "is slurmctld up?")
    elif tested.returncode:
        said = (tested.stderr.strip() or tested.stdout.strip()).splitlines()[-1].removeprefix("allocation failure: ")
        yield Finding(WRONG, f"sbatch --test-only refuses it ({said})", str(job.path), "ask for what the cluster has: sinfo -N -l")
    else:
        yield Finding(OK, f"sbatch --test-only: {tested.stderr.strip().removeprefix('sbatch: ')}", where)


def _ask(*command: str) -> subprocess.CompletedProcess | None:
    """None: there is no answer in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS_TO_ASK, check=False)
    except subprocess.TimeoutExpired:
        return None


def seconds_of(time: str) -> int:
    """Slurm's time limits: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.

    Raises:
        ValueError: it is none of these.
    """
    days, dash, rest = time.rpartition("-")
    parts: list[int] = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (parts + [0, 0])[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, parts[0], parts[1] if len(parts) > 1 else 0
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
