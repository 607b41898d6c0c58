"""The commands of performance, one function each: what a step costs and how well it uses the machine.

Imports when it runs.
"""

import json
from pathlib import Path

from megatron_music.config.checks import check_gpu
from megatron_music.config.errors import counted
from megatron_music.config.log import print_text


def add_table_form(parser) -> None:
    form = parser.add_mutually_exclusive_group()
    for name in ("json", "csv", "markdown"):
        form.add_argument(
            f"--{name}",
            dest="form",
            action="store_const",
            const=name,
            default="text",
            help=f"print {name.upper() if name != 'markdown' else 'a Markdown table'}",
        )


def add_memory(parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `recipes`, or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.field=value", help="optional changes to the recipe"
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="GPUs of the run")
    parser.add_argument("--gpu", default=None, metavar="NAME", help="say whether it fits, e.g. a100 (80 GB)")
    parser.add_argument(
        "--gpu-memory", type=float, default=None, metavar="GB", help="of one GPU, in place of what is known of it"
    )
    add_table_form(parser)


def memory(options) -> None:
    from megatron_music.config.load import load_run
    from megatron_music.config.run import RunConfig
    from megatron_music.profiling.memory import (
        checkpoint_memory,
        estimate_memory,
        fit,
        host_copy,
    )
    from megatron_music.reports.tables import format_table

    run = load_run(options.recipe, options.overrides)
    if not isinstance(run, RunConfig):
        raise ValueError(f"{options.recipe} is a run of {run.model.kind}; memory is estimated of GPTs alone")
    positive("--num-gpus", options.num_gpus)
    check_gpu(run, options.gpu or "")
    capacity = capacity_gb(options)
    stages = estimate_memory(run, options.num_gpus)
    with_engine = max(stage.total for stage in estimate_memory(run, options.num_gpus, transformer_engine=True))
    answer = fit(stages, capacity)
    if options.form == "json":
        rows = [stage._asdict() | {"total": stage.total} for stage in stages]
        more = {
            "host_bytes_of_async_save": host_copy(stages, run, options.num_gpus),
            "gb_with_transformer_engine": with_engine / 1e9,
        }
        print(json.dumps({"stages": rows, "num_gpus": options.num_gpus, **answer._asdict(), **more}, indent=1))
        return
    parts = ("weights", "gradients", "optimizer", "activations", "total")
    columns = {"stage": "", "parameters": ","} | dict.fromkeys(parts, ".2f")
    rows = [
        {"stage": stage.stage, "parameters": stage.parameters} | {part: getattr(stage, part) / 1e9 for part in parts}
        for stage in stages
    ]
    print(format_table(columns, rows, options.form))
    if options.form != "csv":
        print_text(
            f"\nGB (10^9 bytes) of one rank of each pipeline stage, {counted(options.num_gpus, 'GPU')}; "
            f"{answer.sentence}"
        )
        print_text(checkpoint_memory(stages, run, options.num_gpus))
        if with_engine < max(stage.total for stage in stages):
            print_text(
                f"with Transformer Engine's layers, by what their code keeps and not measured: "
                f"{with_engine / 1e9:.2f} GB"
            )


def capacity_gb(options) -> float | None:
    from megatron_music.profiling.peaks import PEAKS, peak_of

    if options.gpu_memory is not None:
        return positive("--gpu-memory", options.gpu_memory)
    if options.gpu is None:
        return None
    found = peak_of(options.gpu, "fp16")
    if found is None:
        raise ValueError(
            f"the memory of {options.gpu!r} is not known; use one of {', '.join(PEAKS)}, or --gpu-memory GB"
        )
    return float(found.memory_gb)


def add_compare(parser) -> None:
    for name in ("first", "second"):
        parser.add_argument(
            name,
            metavar="RUN|LOG|SWEEP",
            help="a run's folder, a metrics.jsonl or a host's log; or both folders of sweeps",
        )
    parser.add_argument(
        "--warmup",
        type=int,
        default=10,
        metavar="N",
        help="iterations left out after each start; a sweep's are out already",
    )
    add_table_form(parser)


def compare(options) -> None:
    from megatron_music.profiling.compare import (
        CONFIDENCE,
        difference,
        largest_loss_difference,
    )
    from megatron_music.profiling.logs import after_warmup, read_log
    from megatron_music.profiling.sweep import PLAN
    from megatron_music.reports.tables import format_table

    check_warmup(options)
    if all((Path(source) / PLAN).is_file() for source in (options.first, options.second)):
        _compare_sweeps(options)
        return
    logs = [read_log(log_of(source)) for source in (options.first, options.second)]
    seconds = [[step.seconds for step in after_warmup(log.steps, options.warmup)] for log in logs]
    found = difference("step seconds", *seconds)
    losses = largest_loss_difference(*({step.iteration: step.loss for step in log.steps if step.loss} for log in logs))
    if options.form == "json":
        where = {"iteration": losses[0], "share": losses[1]} if losses else None
        print(json.dumps({"step_seconds": found._asdict(), "largest_loss_difference": where}, indent=1))
        return
    columns = {
        "quantity": "",
        "first": ".4g",
        "second": ".4g",
        "share": "+.2%",
        "low": "+.2%",
        "high": "+.2%",
        "num_first": "",
        "num_second": "",
        "verdict": "",
    }
    print(format_table(columns, [found._asdict()], options.form))
    if options.form == "csv":
        return
    print_text(f"\n{_noise(CONFIDENCE)}")
    if losses:
        print_text(f"the losses differ most at iteration {losses[0]}, by {losses[1]:.2%}")


def _compare_sweeps(options) -> None:
    """The rows of equal settings, each with its own noise."""
    from megatron_music.profiling.compare import CONFIDENCE, compare_sweeps
    from megatron_music.profiling.sweep import read_sweep, short_name
    from megatron_music.reports.tables import format_table

    found, left_out = compare_sweeps(*(read_sweep(Path(source)) for source in (options.first, options.second)))
    rows = [
        {"gpus": row.num_gpus} | {short_name(name): value for name, value in row.settings.items()} | outcome._asdict()
        for row, outcome in found
    ]
    if options.form == "json":
        answer = [{"num_gpus": row.num_gpus, "settings": row.settings, **outcome._asdict()} for row, outcome in found]
        print(json.dumps({"rows": answer, "left_out": left_out}, indent=1))
        return
    names = dict.fromkeys(short_name(name) for row, _ in found for name in row.settings)
    columns = dict.fromkeys(("gpus", *names), "") | {
        "first": ".4g",
        "second": ".4g",
        "share": "+.2%",
        "low": "+.2%",
        "high": "+.2%",
        "verdict": "",
    }
    print(format_table(columns, rows, options.form))
    if options.form != "csv":
        print_text(
            f"\nseconds of a step, {_noise(CONFIDENCE)}; left out, since measured in one alone or in none: {left_out}"
        )


def _noise(confidence: float) -> str:
    return (
        f"medians; {confidence:.0%} of redrawn runs lie from low to high: the noise within these two runs, not from "
        f"day to day"
    )


def check_warmup(options) -> None:
    if options.warmup < 0:
        raise ValueError(f"--warmup is {options.warmup}; use iterations from 0")


def log_of(source: str) -> Path:
    path = Path(source)
    return path / "metrics.jsonl" if path.is_dir() else path


def positive(name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value}; use a number above 0")
    return value
