"""The command ``sweep``: a run in many settings, each for a few steps. Imports when it runs.

Each row is measured by processes of its own, so that one that has no room or hangs costs that row alone.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from megatron_music.cli.console import (
    FAILED,
    OK,
    check_modules,
    check_output_file,
    progress_bar,
)
from megatron_music.cli.predict import numbers
from megatron_music.cli.profiling import add_table_form, positive
from megatron_music.config.errors import counted
from megatron_music.config.log import command_line, print_text
from megatron_music.parallel.processes import end_with_starter, run_to_end
from megatron_music.storage.holding import LOCK, hold
from megatron_music.storage.reading import refusing
from megatron_music.storage.writing import no_links


def add_sweep(parser) -> None:
    parser.add_argument(
        "recipe",
        metavar="RECIPE|SWEEP",
        help="a name from `recipes`, a YAML file; or a sweep's folder, to go on with it",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.field=value",
        help="of every row; without data.path a GPT is fed random ids",
    )
    parser.add_argument(
        "-o", "--output", default=None, metavar="SWEEP", help="a folder for the plan and what comes of it"
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        type=_field_and_values,
        metavar="section.field=A,B",
        help="a row for each value; repeated: for each combination",
    )
    parser.add_argument(
        "--num-gpus", type=numbers, default=[1], metavar="N,N", help="processes of a row; without GPUs, on the CPU"
    )
    parser.add_argument(
        "--sequences-per-gpu",
        type=numbers,
        default=[],
        metavar="B,B",
        help="for train.global_batch_size: this many samples per GPU",
    )
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="measured, of each row")
    parser.add_argument("--warmup", type=int, default=3, metavar="N", help="steps before them")
    parser.add_argument("--time-limit", type=float, default=600, metavar="SECONDS", help="of a row")
    parser.add_argument(
        "--gpu", default=None, metavar="NAME", help="by whose peak the shares are; by default the one measured on"
    )
    parser.add_argument(
        "--peak", type=float, default=None, metavar="TFLOPS", help="of one GPU, dense, in place of what is known of it"
    )
    parser.add_argument("--plot", default=None, metavar="SWEEP.png", help="draw what was measured")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--plan", action="store_true", help="write the plan and measure nothing: for launch/benchmark_sweep.sbatch"
    )
    what.add_argument(
        "--row", type=int, default=None, metavar="K", help="measure this one here, as one process of its launcher"
    )
    what.add_argument("--report", action="store_true", help="measure nothing: show what came of a sweep so far")
    add_table_form(parser)


def _field_and_values(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    found = list(dict.fromkeys(_split_values(values)))  # a value given twice is one row
    if not equals or "." not in name or not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not section.field=A,B; use e.g. train.micro_batch_size=1,2,4")
    return name, found


def _split_values(text: str) -> list[str]:
    """The parts between commas, but for those within brackets, as of data.path=[0.5,a,0.5,b]."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def sweep(options) -> int:
    from megatron_music.profiling.sweep import FAILED as NOT_MEASURED
    from megatron_music.profiling.sweep import figures_of

    if options.plot:
        check_output_file(options.plot, (".png", ".svg"))
    if options.peak is not None:
        positive("--peak", options.peak)
    planned = _planned(options)
    if options.row is not None:
        return _measure_row(planned, options.row)
    if "RANK" in os.environ:
        raise ValueError(
            "sweep starts the processes of each row itself; start it once, without torchrun or srun, or with --row K"
        )
    if options.plan:
        _tell_plan(planned)
        return OK
    if not options.report:
        _measure_all(planned, positive("--time-limit", options.time_limit))
    with refusing(planned.folder, "remove what is odd in it, or plan the sweep anew in another folder"):
        figures = figures_of(planned, options.gpu, options.peak)
    if options.plot:
        from megatron_music.profiling.scaling_chart import plot_sweep

        plot_sweep(figures, options.plot, title=f"Sweep of {planned.name}")
    with refusing(planned.folder, "remove what is odd in it, or plan the sweep anew in another folder"):
        _show(options, planned, figures)
    return FAILED if any(row.status == NOT_MEASURED for row in figures) else OK


def _planned(options):
    from megatron_music.profiling.sweep import PLAN, plan_sweep, read_sweep

    folder = Path(options.recipe)
    if options.output is None:
        if not (folder / PLAN).is_file():
            raise ValueError(f"{options.recipe} is no sweep's folder; give one, or a recipe and -o SWEEP")
        if options.overrides or options.vary or options.plan:
            raise ValueError(
                f"{folder} is planned already, and its settings stay; plan others in another folder: RECIPE ... -o "
                f"OTHER"
            )
        return read_sweep(folder)
    if options.row is not None or options.report:
        raise ValueError(f"--row and --report are of a planned sweep; give its folder alone: sweep {options.output}")
    positive("--steps", options.steps)
    if options.warmup < 0:
        raise ValueError(f"--warmup is {options.warmup}; use steps from 0")
    if Path(options.output).exists() and not Path(options.output).is_dir():
        raise ValueError(f"{options.output} is a file; name a folder for the sweep")
    return plan_sweep(
        Path(options.output),
        options.recipe,
        options.overrides,
        vary=options.vary,
        num_gpus=options.num_gpus,
        sequences_per_gpu=options.sequences_per_gpu,
        steps=options.steps,
        warmup=options.warmup,
        gpu=options.gpu or "",
    )


def _tell_plan(planned) -> None:
    impossible = sum(row.impossible is not None for row in planned.rows)
    most = max(row.num_gpus for row in planned.rows)
    print_text(
        f"{counted(len(planned.rows), 'row')} in {planned.folder}, {impossible} of them impossible; on one machine: "
        f"{command_line('sweep', planned.folder)}\non a cluster, with at least {counted(most, 'task')} in a job: "
        f"sbatch --array=0-{len(planned.rows) - 1} "
        f"launch/benchmark_sweep.sbatch {shlex.quote(str(planned.folder))}"
        + ("" if Path("launch").is_dir() else "\nmegatron-music launch -o . copies the job scripts here")
    )


def _measure_row(planned, number: int) -> int:
    """Be one process of a row: of as many as it has, or of more, the last of which have nothing to do."""
    from megatron_music.profiling.sweep import FAILED as NOT_MEASURED
    from megatron_music.profiling.sweep import (
        MEASURED,
        OUT_OF_MEMORY,
        Outcome,
        is_done,
        outcome_of,
        write_outcome,
    )

    if not 0 <= number < len(planned.rows):
        raise ValueError(
            f"--row is {number}, and {planned.folder} has rows 0 to {len(planned.rows) - 1}; use one of them"
        )
    row = planned.rows[number]
    if is_done(outcome_of(planned, row)):
        return OK
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size < row.num_gpus:
        raise ValueError(
            f"row {number} is of {counted(row.num_gpus, 'process', 'processes')}, and the launcher started {size}; "
            f"start as many, or give `sweep {planned.folder}` alone"
        )
    if rank >= row.num_gpus:
        return OK
    if size > 1:
        os.environ["WORLD_SIZE"] = str(row.num_gpus)
    end_with_starter()
    from megatron_music.training.measure import is_out_of_memory, measure

    try:
        found = measure(planned.run(row), steps=planned.steps, warmup=planned.warmup)
    except Exception as error:  # whatever it is, the table says it
        full = is_out_of_memory(error)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        # One rank without room takes the others with it, which only see a connection closed: its word stands.
        if full or not is_done(outcome_of(planned, row)):
            write_outcome(planned, row, Outcome(OUT_OF_MEMORY if full else NOT_MEASURED, reason))
        raise
    if rank == 0:
        run = planned.run(row)
        outcome = Outcome(
            MEASURED,
            step_seconds=tuple(found.step_seconds),
            tokens_per_step=float(run.train.global_batch_size * found.work.tokens_per_sample),
            flops=found.work.flops,
            formula=found.work.formula,
            memory_gb=found.memory_gib * 2**30 / 1e9,
            device=found.device,
            gpu=found.gpu,
            versions=found.versions,
        )
        write_outcome(planned, row, outcome)
    return OK


def _measure_all(planned, time_limit: float) -> None:
    """Every row that is not done yet, one after another, each under a launcher of its own."""
    from megatron_music.profiling.sweep import is_done, outcome_of

    busy = (
        f"{planned.folder} is being measured by another process{{owner}}; wait for it, or give --report to see its "
        f"rows so far"
    )
    with hold(planned.folder / LOCK, busy):
        waiting = [row for row in planned.rows if not is_done(outcome_of(planned, row))]
        if waiting:
            check_modules("torch", "megatron.core")
        with progress_bar("row", len(planned.rows)) as bar:
            bar.update(len(planned.rows) - len(waiting))
            for row in waiting:
                bar.set_postfix({"row": row.number, "GPUs": row.num_gpus})
                _launch(planned, row, time_limit)
                bar.update()


def _launch(planned, row, time_limit: float) -> None:
    """Measure one row; whatever its processes do, its outcome is written."""
    from megatron_music.profiling.sweep import FAILED as NOT_MEASURED
    from megatron_music.profiling.sweep import (
        WAITING,
        Outcome,
        outcome_of,
        write_outcome,
    )

    launcher = (
        [] if row.num_gpus == 1 else ["torch.distributed.run", "--standalone", f"--nproc_per_node={row.num_gpus}", "-m"]
    )
    command = [
        sys.executable,
        "-m",
        *launcher,
        "megatron_music",
        "sweep",
        str(planned.folder),
        "--row",
        str(row.number),
    ]
    log = planned.path(row, "log")
    planned.path(row, "json").unlink(missing_ok=True)  # of a failure before
    with open(log, "w", encoding="utf-8", opener=no_links) as file:
        try:
            status = run_to_end(command, file, time_limit)
        except subprocess.TimeoutExpired:
            write_outcome(
                planned, row, Outcome(NOT_MEASURED, f"no end within {time_limit:g} s; raise --time-limit, or see {log}")
            )
            return
    if outcome_of(planned, row).status == WAITING:
        write_outcome(planned, row, Outcome(NOT_MEASURED, f"{_how_it_ended(status, log)}; see {log}"))


def _last_line(log: Path) -> str:
    """What a row's processes said last, in brackets; nothing where they said nothing."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f" ({last[-300:]})" if last else ""


def _how_it_ended(status: int, log: Path) -> str:
    if status == -signal.SIGKILL:
        return "killed from outside, as the kernel does when memory is short"
    return f"ended with status {status}{_last_line(log)}"


def _show(options, planned, figures: list) -> None:
    from megatron_music.profiling.sweep import scaling, short_name
    from megatron_music.reports.tables import format_table

    scaled = scaling(figures)
    if options.form == "json":
        print(
            json.dumps(
                {"rows": [row._asdict() for row in figures], "scaling": [row._asdict() for row in scaled]}, indent=1
            )
        )
        return
    names = list(dict.fromkeys(name for row in figures for name in row.settings))
    columns = {"row": "", "gpus": ""} | {short_name(name): "" for name in names}
    columns |= {
        "seconds": ".4g",
        "tokens_per_second": ",.0f",
        "memory_gb": ".2f",
        "estimated_gb": ".2f",
        "TFLOP/s": ".3g",
        "MFU": ".1%",
        "HFU": ".1%",
        "eq3 TFLOP/s": ".3g",
        "eq3": ".1%",
        "gpu_busy": ".0%",
        "watts": ".0f",
        "": "",
    }
    rows = [
        {short_name(name): value for name, value in row.settings.items()}
        | {
            "row": row.row,
            "gpus": row.num_gpus,
            "seconds": row.seconds,
            "tokens_per_second": row.tokens_per_second,
            "memory_gb": row.memory_gb,
            "estimated_gb": row.estimated_gb,
            "TFLOP/s": row.tflops,
            "MFU": row.mfu,
            "HFU": row.hfu,
            "eq3 TFLOP/s": row.eq3_tflops,
            "eq3": row.eq3_share,
            "gpu_busy": row.gpu_utilization,
            "watts": row.power_w,
            "": "best" if row.is_best else row.status if row.reason else "",
        }
        for row in figures
    ]
    used = {
        key: how
        for key, how in columns.items()
        if options.form == "csv" or not key or any(row.get(key) is not None for row in rows)
    }
    print(format_table(used, rows, options.form))
    if options.form == "csv":
        return
    _tell_reasons(figures)
    if scaled:
        heads = {
            "what": "",
            "precision": "",
            "sequences_per_gpu": ",g",
            "num_gpus": ",",
            "tokens_per_second": ",.0f",
            "efficiency": ".1%",
            "row": "",
        }
        heads = {key: how for key, how in heads.items() if any(getattr(row, key) != "" for row in scaled)}
        print("\n" + format_table(heads, [row._asdict() for row in scaled], options.form))
    devices = sorted({row.device for row in figures if row.device})
    if not devices:
        return
    where = f"on {' and '.join(devices)}" + (", where each process counts as a GPU" if devices == ["CPU"] else "")
    print_text(
        f"\n{planned.name}; medians of {counted(planned.steps, 'step')} {where}; best: the most TFLOP/s per GPU by "
        f"the formula "
        "mcore (of flow models: flow); eq3: equation 3 of arXiv:2104.04473, which counts full recomputation whatever "
        "was done"
        + ("; MFU and HFU are shares of the peak in each row's precision" if any(row.mfu for row in figures) else "")
    )


def _tell_reasons(figures: list) -> None:
    """Why rows have no figures, each reason once."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in figures:
        if row.reason:
            reasons.setdefault((row.status, row.reason), []).append(str(row.row))
    if reasons:
        print()
    for (status, reason), rows in reasons.items():
        print_text(f"row{'s' if len(rows) > 1 else ''} {', '.join(rows)} {status}: {reason}")
