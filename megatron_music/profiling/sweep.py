"""A sweep: a run in many settings, each for a few steps; its plan, what came of each setting, and the tables of it.

    SWEEP/plan.json            the rows and how long each is measured
    SWEEP/rows/000.yaml        a row's whole run
    SWEEP/rows/000.json        what came of it; with it a row is done
    SWEEP/rows/000.log         what its processes said

A row that cannot be, or has no room, is kept with the reason.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import NamedTuple

from megatron_music.config.checks import check_gpu, check_world_size
from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.load import load_run, read_run, write_run
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import Run
from megatron_music.profiling.flops import FORMULAS, tflops_per_gpu
from megatron_music.profiling.memory import estimate_memory
from megatron_music.profiling.mfu import utilizations
from megatron_music.profiling.peaks import peak_of, precision_of
from megatron_music.storage.reading import read_json_object
from megatron_music.storage.writing import write_whole

PLAN = "plan.json"
FORMAT = 1
MEASURED, IMPOSSIBLE, OUT_OF_MEMORY, FAILED, WAITING = "measured", "impossible", "out of memory", "failed", "not run"
# What is split or kept differently and gives the same losses; of rows that differ in these alone a table of scaling has
# the best.
LAYOUT = ("parallel.", "train.micro_batch_size", "train.recompute_", "optimizer.use_distributed_optimizer")
SHORT = {
    "parallel.tensor_model_parallel_size": "TP",
    "parallel.pipeline_model_parallel_size": "PP",
    "parallel.virtual_pipeline_model_parallel_size": "VPP",
    "parallel.sequence_parallel": "SP",
    "train.micro_batch_size": "MBS",
    "train.global_batch_size": "GBS",
    "train.recompute_granularity": "recomputation",
    "train.bf16": "bf16",
}


@dataclass(frozen=True)
class Row:
    """One setting of a sweep."""

    number: int  # from 0
    num_gpus: int
    settings: dict[str, str]  # of the fields that vary, as they were given
    impossible: str | None = None  # why it cannot be


@dataclass(frozen=True)
class Sweep:
    """A planned sweep in its folder."""

    folder: Path
    name: str  # of the recipe, with what holds for all rows
    steps: int  # measured, of each row
    warmup: int  # before them
    rows: list[Row]

    def path(self, row: Row, suffix: str) -> Path:
        """A file of a row: yaml, json or log."""
        return self.folder / "rows" / f"{row.number:03}.{suffix}"

    def run(self, row: Row) -> Run:
        return read_run(self.path(row, "yaml"))


class Outcome(NamedTuple):
    """What came of a row."""

    status: str
    reason: str = ""  # of all but what was measured
    step_seconds: tuple[float, ...] = ()  # warm-up left out
    tokens_per_step: float = 0.0
    flops: float = 0.0  # of a step of all GPUs, that the model needs
    formula: str = ""  # in words
    memory_gb: float | None = None  # 10^9 bytes, the most on any rank
    device: str = ""
    gpu: dict | None = None  # what nvidia-smi said meanwhile; see gpu_monitor
    versions: dict | None = None


def plan_sweep(
    folder: Path,
    recipe: str,
    overrides: Sequence[str],
    *,
    vary: Sequence[tuple[str, Sequence[str]]],
    num_gpus: Sequence[int],
    sequences_per_gpu: Sequence[int] = (),
    steps: int = 10,
    warmup: int = 3,
    gpu: str = "",
) -> Sweep:
    """Every combination of the settings, the last varying fastest, written into the folder.

    Args:
        vary: fields as ``section.field``, each with its values in YAML.
        sequences_per_gpu: for ``train.global_batch_size``, which is so many times the number of GPUs; empty: the
            recipe's.
        gpu: a name, to refuse what it cannot do.

    Raises:
        ValueError: no row can be, a field varies twice, or the folder holds another plan.
    """
    names = [name for name, _ in vary]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{repeated[0]} varies twice; give all its values at once")
    if sequences_per_gpu and "train.global_batch_size" in names:
        raise ValueError("train.global_batch_size varies, and --sequences-per-gpu sets it too; omit one")
    rows, runs = [], []
    for number, (gpus, sequences, *values) in enumerate(
        product(num_gpus, sequences_per_gpu or [None], *(values for _, values in vary))
    ):
        settings = dict(zip(names, values, strict=True))
        batch = [f"train.global_batch_size={sequences * gpus}"] if sequences else []
        try:
            run = load_run(recipe, [*overrides, *batch, *(f"{name}={value}" for name, value in settings.items())])
            check_world_size(run, gpus)
            check_gpu(run, gpu)
            refuse_unless(
                run.data.path is not None or isinstance(run, RunConfig),
                "data.path is not set, and a text-to-music model is measured on its data alone; name a folder of "
                "`megatron-music build latents`",
            )
            reason = None
        except ConfigError as error:
            run, reason = None, str(error)
        rows.append(
            Row(
                number,
                gpus,
                settings | ({"train.global_batch_size": str(sequences * gpus)} if sequences else {}),
                reason,
            )
        )
        runs.append(run)
    if all(run is None for run in runs):
        many = f"none of the {len(rows)} settings can be; the first: " if len(rows) > 1 else ""
        raise ValueError(f"{many}{rows[0].impossible}")
    sweep = Sweep(folder, " ".join([recipe, *overrides]), steps, warmup, rows)
    content = _plan_bytes(sweep)
    plan = folder / PLAN
    if plan.is_file():
        if plan.read_bytes() != content:
            raise ValueError(
                f"{folder} holds another sweep; name another folder, or give `sweep {folder}` to go on with that one"
            )
        return sweep
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for row, run in zip(rows, runs, strict=True):
        if run is not None:
            write_run(run, sweep.path(row, "yaml"))
    write_whole(plan, content)  # last: a folder with a plan is whole
    return sweep


def _plan_bytes(sweep: Sweep) -> bytes:
    rows = [{"num_gpus": row.num_gpus, "settings": row.settings, "impossible": row.impossible} for row in sweep.rows]
    tree = {"format": FORMAT, "name": sweep.name, "steps": sweep.steps, "warmup": sweep.warmup, "rows": rows}
    return (json.dumps(tree, indent=1) + "\n").encode()


def read_sweep(folder: Path) -> Sweep:
    """The sweep that was planned in a folder.

    Raises:
        ValueError: there is none, or it is of another version.
    """
    try:
        tree = read_json_object(folder / PLAN)
        rows = [Row(number, **row) for number, row in enumerate(tree["rows"])]
        if tree["format"] != FORMAT:
            raise KeyError("format")
        return Sweep(folder, tree["name"], tree["steps"], tree["warmup"], rows)
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no plan of a sweep; make one: megatron-music sweep RECIPE -o {folder} --plan"
        ) from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / PLAN} is no plan of this version; plan the sweep anew in another folder") from None


def write_outcome(sweep: Sweep, row: Row, outcome: Outcome) -> None:
    """Note what came of a row."""
    write_whole(sweep.path(row, "json"), (json.dumps(outcome._asdict(), indent=1) + "\n").encode())


def outcome_of(sweep: Sweep, row: Row) -> Outcome:
    """What came of a row so far."""
    if row.impossible:
        return Outcome(IMPOSSIBLE, row.impossible)
    try:
        return Outcome(**read_json_object(sweep.path(row, "json")))
    except FileNotFoundError:
        return Outcome(WAITING, f"`sweep {sweep.folder}` goes on")
    except (TypeError, ValueError):
        return Outcome(FAILED, f"{sweep.path(row, 'json')} cannot be read; remove it to measure the row again")


def is_done(outcome: Outcome) -> bool:
    """Whether to measure the row again would tell nothing new."""
    return outcome.status in (MEASURED, IMPOSSIBLE, OUT_OF_MEMORY)


class Figures(NamedTuple):
    """A row with all that is known of it. None: not known, or not measured."""

    row: int
    num_gpus: int
    settings: dict[str, str]
    status: str
    reason: str
    is_best: bool = False  # the most model FLOPs a second of a GPU, of all rows
    precision: str | None = None
    sequences_per_gpu: float | None = None
    seconds: float | None = None  # of a step, the median
    tokens_per_second: float | None = None
    memory_gb: float | None = None  # measured
    estimated_gb: float | None = None  # as `memory` has it
    tflops: float | None = None  # of a GPU, that the model needs
    mfu: float | None = None
    hfu: float | None = None
    eq3_tflops: float | None = None  # by the Megatron paper's equation 3: full recomputation counted whatever was done
    eq3_share: float | None = None
    gpu_utilization: float | None = None  # as nvidia-smi says: the share of time in which any kernel ran
    power_w: float | None = None
    device: str = ""


def figures_of(sweep: Sweep, gpu: str | None = None, peak_tflops: float | None = None) -> list[Figures]:
    """All rows in order.

    Args:
        gpu: by whose peak the shares are; left out: the device that was measured on.
        peak_tflops: of one GPU, dense; it goes before.
    """
    found = [_figures(sweep, row, outcome_of(sweep, row), gpu, peak_tflops) for row in sweep.rows]
    best = max((row for row in found if row.tflops), key=lambda row: row.tflops, default=None)
    return [row._replace(is_best=row is best) for row in found]


def _figures(sweep: Sweep, row: Row, outcome: Outcome, gpu: str | None, peak_tflops: float | None) -> Figures:
    known = Figures(row.number, row.num_gpus, row.settings, outcome.status, outcome.reason, device=outcome.device)
    if row.impossible:
        return known
    run = sweep.run(row)
    is_gpt = isinstance(run, RunConfig)
    known = known._replace(
        precision="bf16" if run.train.bf16 else "fp32",
        sequences_per_gpu=run.train.global_batch_size / row.num_gpus,
        estimated_gb=max(stage.total for stage in estimate_memory(run, row.num_gpus)) / 1e9 if is_gpt else None,
    )
    if outcome.status != MEASURED:
        return known
    seconds = median(outcome.step_seconds)
    is_cpu = outcome.device == "CPU"  # which is no share of a GPU
    peak = peak_tflops or (None if is_cpu else _peak(gpu or outcome.device, run))
    recomputation = run.train.recompute_granularity or "none"
    by_formula = {}
    if is_gpt:
        asked = {"global_batch_size": run.train.global_batch_size, "num_gpus": row.num_gpus, "seconds": seconds}
        found = utilizations(run.model, **asked, peak_tflops=peak or math.inf, recomputation=recomputation)
        by_formula = {line.formula: line for line in found}
    own, eq3 = (by_formula.get(FORMULAS[place]) for place in (0, 2))
    tflops = tflops_per_gpu(outcome.flops, seconds, row.num_gpus)
    return known._replace(
        seconds=seconds,
        tokens_per_second=outcome.tokens_per_step / seconds,
        memory_gb=outcome.memory_gb,
        tflops=tflops,
        mfu=tflops / peak if peak else None,
        hfu=own.hfu if own and peak else None,
        eq3_tflops=eq3.hardware_tflops_per_gpu if eq3 else None,
        eq3_share=eq3.hfu if eq3 and peak else None,
        gpu_utilization=(outcome.gpu or {}).get("gpu_utilization"),
        power_w=(outcome.gpu or {}).get("power_w"),
    )


def _peak(gpu: str, run: Run) -> float | None:
    """The peak of a GPU in a run's precision; None where it is not known."""
    train = run.train
    try:
        found = peak_of(gpu, "bf16" if train.bf16 else "fp16") if gpu else None
        return (
            precision_of(found, bf16=train.bf16, float32_matmul_precision=train.float32_matmul_precision).tflops
            if found
            else None
        )
    except ValueError:  # the GPU has no bf16, or its peak in float32 is not known
        return None


class Scaled(NamedTuple):
    """The fastest layout of one number of GPUs, precision and batch."""

    what: str  # the settings that are no layout
    precision: str
    sequences_per_gpu: float
    num_gpus: int
    row: int
    tokens_per_second: float
    efficiency: float  # tokens a second of a GPU, of those on the fewest GPUs of the same group


def scaling(figures: Sequence[Figures]) -> list[Scaled]:
    """Tokens a second by number of GPUs and batch: of each the best layout, and how well the speed grows."""
    groups: dict[tuple, dict[int, Figures]] = {}
    for row in figures:
        if row.tokens_per_second is None:
            continue
        others = {
            name: value
            for name, value in row.settings.items()
            if not name.startswith(LAYOUT) and name not in ("train.global_batch_size", "train.bf16")
        }
        what = ", ".join(f"{short_name(name)} {value}" for name, value in others.items())
        group = groups.setdefault((what, row.precision, row.sequences_per_gpu), {})
        if row.num_gpus not in group or row.tokens_per_second > group[row.num_gpus].tokens_per_second:
            group[row.num_gpus] = row
    found = []
    for (what, precision, sequences), group in groups.items():
        fewest = min(group)
        first = group[fewest].tokens_per_second / fewest
        for gpus, row in sorted(group.items()):
            speed = row.tokens_per_second
            found.append(Scaled(what, precision, sequences, gpus, row.row, speed, speed / gpus / first))
    return found


def short_name(field: str) -> str:
    """What a table calls a field."""
    return SHORT.get(field, field.partition(".")[2].replace("_", " "))
