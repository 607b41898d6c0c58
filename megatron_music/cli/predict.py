"""The command ``predict``: a step on a cluster that is not at hand, its layouts ranked, and how it scales.

Imports when it runs.
"""

import argparse
import json
import re

from megatron_music.cli.console import check_output_file
from megatron_music.cli.profiling import add_table_form, capacity_gb, positive
from megatron_music.config.checks import check_gpu
from megatron_music.config.errors import counted
from megatron_music.config.log import print_text

NUM_GPUS, GPU = 8, "a100"  # where none are named
_HOW_SURE = "a prediction: see docs/profiling.md for its error"


def add_predict(parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a name from `recipes`, or a YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="section.field=value", help="optional changes to the recipe"
    )
    parser.add_argument("--num-gpus", type=int, default=None, metavar="N", help=f"GPUs of the run (default {NUM_GPUS})")
    parser.add_argument(
        "--gpu", default=None, metavar="NAME", help=f"with its NVLink and InfiniBand, as in a DGX (default {GPU})"
    )
    parser.add_argument(
        "--gpu-memory", type=float, default=None, metavar="GB", help="of one GPU, in place of what is known of it"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--search", action="store_true", help="rank the layouts of this run")
    what.add_argument(
        "--scaling",
        type=numbers,
        default=None,
        metavar="N,N",
        help="more GPUs with as many more sequences; the run is of the first",
    )
    what.add_argument(
        "--rehearse", action="store_true", help="count operations and bytes in a rehearsed step in place of formulas"
    )
    parser.add_argument("--top", type=int, default=10, metavar="K", help="layouts that are shown")
    parser.add_argument("-o", "--output", default=None, metavar="CURVE.png", help="with --scaling, the picture")
    add_table_form(parser)


def numbers(text: str) -> list[int]:
    try:
        found = [int(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or found != sorted(set(found)) or found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no rising list of numbers; use e.g. 8,64,512")
    return found


def predict(options) -> None:
    from megatron_music.config.load import load_run
    from megatron_music.config.run import RunConfig
    from megatron_music.profiling.peaks import peak_of
    from megatron_music.profiling.predict import CLUSTERS

    run = load_run(options.recipe, options.overrides)
    if not isinstance(run, RunConfig):
        raise ValueError(f"{options.recipe} is a run of {run.model.kind}; steps are predicted of GPTs alone")
    assumed = [name for name in ("num_gpus", "gpu") if getattr(options, name) is None]
    options.num_gpus = NUM_GPUS if options.num_gpus is None else options.num_gpus
    options.gpu = GPU if options.gpu is None else options.gpu
    positive("--num-gpus", options.num_gpus)
    positive("--top", options.top)
    check_gpu(run, options.gpu)
    known = peak_of(options.gpu, "fp16")
    name = known.gpu if known else options.gpu
    name = (
        name if name in CLUSTERS else re.sub(r"-\d+gb$", "", name)
    )  # such as a V100 of 16 GB, whose memory is as fast
    if name not in CLUSTERS:
        raise ValueError(f"what joins GPUs of {options.gpu!r} is not known; use one of {', '.join(CLUSTERS)}")
    cluster = CLUSTERS[name]
    options.machine = _machine(options, cluster, assumed)
    if options.output and not options.scaling:
        raise ValueError("--output is the picture of --scaling; give both")
    if options.search:
        _predict_search(options, run, cluster)
    elif options.scaling:
        _predict_scaling(options, run, cluster)
    else:
        _predict_step(options, run, cluster)


def _machine(options, cluster, assumed: list[str]) -> str:
    """``8 a100 (defaults)``: what is predicted of, and which of it was not asked for."""
    if options.scaling:  # which has its own numbers
        return cluster.gpu + (" (default)" if "gpu" in assumed else "")
    by_default = {"": "", "num_gpus": " (default number)", "gpu": " (default GPU)", "num_gpus gpu": " (defaults)"}[
        " ".join(assumed)
    ]
    return f"{options.num_gpus} {cluster.gpu}{by_default}"


def _facts(run, cluster, num_gpus: int | None) -> dict:
    """What was assumed, for --json."""
    precision = cluster.precision(run)
    return {"num_gpus": num_gpus, "gpu": cluster.gpu, "precision": precision.name, "peak_tflops": precision.tflops}


def _predict_step(options, run, cluster) -> None:
    from megatron_music.profiling.flops import step_flops, utilization
    from megatron_music.profiling.predict import predict_step

    if options.rehearse:
        from megatron_music.rehearsal.job import rehearse
        from megatron_music.rehearsal.prediction import predict_from

        found = predict_from(rehearse(run, options.num_gpus, gpu=cluster.gpu), cluster)
    else:
        found = predict_step(run, options.num_gpus, cluster)
    precision = cluster.precision(run)
    flops = step_flops(run.model, run.train.global_batch_size, recomputation=run.train.recompute_granularity or "none")
    shares = [
        utilization(operations, found.seconds, options.num_gpus, precision.tflops)
        for operations in (flops.model, flops.hardware)
    ]
    facts = {
        "seconds": found.seconds,
        "tokens_per_second": run.train.global_batch_size * run.model.seq_length / found.seconds,
        "mfu": shares[0],
        "hfu": shares[1],
        **_facts(run, cluster, options.num_gpus),
    }
    rows = [
        {"spent_on": name.replace("_", " "), "seconds": value, "share": value / found.seconds}
        for name, value in found._asdict().items()
    ]
    _show(options, {"spent_on": "", "seconds": ".4g", "share": ".1%"}, rows, facts)
    if options.form in ("text", "markdown"):
        print_text(
            f"\n{options.machine}, {precision.name}: {found.seconds:.4g} s per step, "
            f"{facts['tokens_per_second']:,.0f} tokens/s; by the "
            f"formula mcore MFU {shares[0]:.1%}, HFU {shares[1]:.1%} of {precision.tflops:g} TFLOP/s per GPU; "
            f"{_HOW_SURE}"
        )


def _predict_search(options, run, cluster) -> None:
    from megatron_music.profiling.predict import search

    layouts, left_out = search(run, options.num_gpus, cluster, capacity_gb(options))
    tokens = run.train.global_batch_size * run.model.seq_length
    rows = [
        {
            "tensor": layout.run.parallel.tensor_model_parallel_size,
            "pipeline": layout.run.parallel.pipeline_model_parallel_size,
            "chunks": layout.run.parallel.virtual_pipeline_model_parallel_size or 1,
            "data": layout.run.parallel.data_parallel_size(options.num_gpus),
            "micro_batch": layout.run.train.micro_batch_size,
            "recomputation": layout.run.train.recompute_granularity or "none",
            "seconds": layout.prediction.seconds,
            "tokens_per_second": tokens / layout.prediction.seconds,
            "memory_gb": layout.memory_gb,
        }
        for layout in layouts[: options.top]
    ]
    columns = dict.fromkeys(("tensor", "pipeline", "chunks", "data", "micro_batch", "recomputation"), "")
    facts = {"left_out": left_out, **_facts(run, cluster, options.num_gpus)}
    _show(options, columns | {"seconds": ".4g", "tokens_per_second": ",.0f", "memory_gb": ".1f"}, rows, facts)
    if options.form in ("text", "markdown"):
        print_text(
            f"\n{counted(len(layouts), 'layout')} with room on {options.machine}, {left_out['out of memory']} without, "
            f"{left_out['impossible']} impossible; {cluster.precision(run).name}; {_HOW_SURE}"
        )


def _predict_scaling(options, run, cluster) -> None:
    from megatron_music.profiling.predict import scale

    if options.output:
        check_output_file(options.output, (".png", ".svg"))
    found = scale(run, options.scaling, cluster)
    columns = {
        "num_gpus": ",",
        "global_batch_size": ",",
        "seconds": ".4g",
        "tokens_per_second": ",.0f",
        "efficiency": ".1%",
    }
    if options.output:
        from megatron_music.profiling.scaling_chart import plot_scaling

        speeds = [row.tokens_per_second for row in found]
        plot_scaling(
            options.scaling, speeds, options.output, title=f"Predicted scaling of {options.recipe} on {cluster.gpu}"
        )
    _show(options, columns, [row._asdict() for row in found], _facts(run, cluster, None))
    if options.form in ("text", "markdown"):
        print_text(f"\n{options.machine}, {cluster.precision(run).name}; {_HOW_SURE}")


def _show(options, columns: dict[str, str], rows: list[dict], facts: dict) -> None:
    from megatron_music.reports.tables import format_table

    if options.form == "json":
        print(json.dumps(facts | {"rows": rows}, indent=1))
    else:
        print(format_table(columns, rows, options.form))
