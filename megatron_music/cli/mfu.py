"""The command ``mfu``: the FLOPs of a step, and what share of the machine's they are. Imports when it runs."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_music.cli.profiling import add_table_form, check_warmup, log_of, positive
from megatron_music.config.errors import counted
from megatron_music.config.log import print_text
from megatron_music.storage.reading import read_json_object, reason_of, refusing

_SHAPE = {
    "num_layers": "L",
    "hidden_size": "H",
    "num_attention_heads": "A",
    "num_query_groups": "G",
    "ffn_hidden_size": "F",
    "seq_length": "S",
    "vocab_size": "V",
}
_SHAPE_HELP = {
    "num_layers": "transformer layers",
    "hidden_size": "width of the residual stream",
    "num_attention_heads": "attention heads per layer",
    "num_query_groups": "by default as many as heads",
    "ffn_hidden_size": "by default 4 x H",
    "seq_length": "tokens",
    "vocab_size": "padded, as the output layer has it",
}
_OPTIONAL = ("num_query_groups", "ffn_hidden_size", "swiglu")


def add_shape(parser) -> None:
    for name, letter in _SHAPE.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=None, metavar=letter, help=_SHAPE_HELP[name]
        )
    parser.add_argument("--swiglu", action="store_true", default=None, help="a gated feed-forward, three matrices")


def add_mfu(parser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        default=None,
        metavar="RUN|LOG",
        help="a run's folder, a metrics.jsonl, or a log of Megatron-LM, Megatron-Bridge or NeMo",
    )
    add_shape(parser)
    parser.add_argument(
        "--global-batch-size", type=int, default=None, metavar="B", help="sequences a step, of all GPUs"
    )
    parser.add_argument("--num-gpus", type=int, default=None, metavar="N", help="GPUs of the run")
    parser.add_argument("--step-time", type=float, default=None, metavar="SECONDS", help="in place of RUN|LOG")
    parser.add_argument(
        "--warmup", type=int, default=10, metavar="N", help="iterations left out after each start of RUN|LOG"
    )
    parser.add_argument(
        "--recomputation", default=None, choices=("none", "selective", "full"), help="of activations, for HFU"
    )
    parser.add_argument("--gpu", default=None, metavar="NAME", help="e.g. a100, h100, v100")
    parser.add_argument("--dtype", default=None, choices=("bf16", "fp16"), help="precision of the peak")
    parser.add_argument(
        "--peak", type=float, default=None, metavar="TFLOPS", help="of one GPU, dense, in place of what is known of it"
    )
    add_table_form(parser)


NO_PEAK = "no peak of the CPU is known, so MFU and HFU are left out; --peak TFLOP/s gives one, of one process"


@contextmanager
def _naming(source: str | None) -> Iterator[None]:
    """Sentences about what a log holds name the log."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}" if source and source not in str(error) else str(error)) from None
    except OverflowError:
        raise ValueError(f"{source or 'an option'} has a number that is too large for a run; correct it") from None


def mfu(options) -> None:
    from megatron_music.profiling.logs import after_warmup, read_log, summarize
    from megatron_music.profiling.mfu import (
        compare_stated,
        find_peak,
        in_precision,
        utilization_of,
        utilizations,
    )
    from megatron_music.reports.tables import format_table

    if (options.source is None) == (options.step_time is None):
        raise ValueError("mfu needs the time of a step, once; give --step-time SECONDS, or a run's folder or log")
    check_warmup(options)
    if options.source is None:
        peak = find_peak(options.gpu, options.peak, options.dtype)
    facts, measured, steps, is_cpu = {}, None, [], False
    if options.source is not None:
        path = Path(options.source)
        with refusing(options.source, "name another log"):
            log = read_log(log_of(options.source))
        is_cpu = log.facts.get("device") == "CPU"
        peak = _peak_of_cpu(options) if is_cpu else find_peak(options.gpu, options.peak, options.dtype)
        facts = log.facts | (
            _facts_of_run(path if path.is_dir() else path.parent) if log.kind == "metrics.jsonl" else {}
        )
        if "precision" in facts and not is_cpu and options.peak is None and options.dtype is None:
            peak = in_precision(peak, **facts["precision"])
        with _naming(options.source):
            steps = after_warmup(_steps_of_batch(options, log.steps, facts), options.warmup)
            measured = summarize(_steps_of_batch(options, log.steps, facts), options.warmup)
    seconds = positive("--step-time", measured.median if measured else options.step_time)
    with _naming(options.source):
        run = _run_facts(options, facts)
    how = {"num_gpus": run["num_gpus"], "seconds": seconds, "peak_tflops": peak.tflops if peak else math.inf}
    stated = None
    with _naming(options.source):
        if "flow" in facts:
            found = [utilization_of(_flow_flops(facts["flow"], run), **how)]
        else:
            shape = {"global_batch_size": run["global_batch_size"], "variant": run["variant"]}
            found = utilizations(run["model"], recomputation=run["recomputation"], **shape, **how)
            stated = compare_stated(steps, run["model"], num_gpus=run["num_gpus"], **shape)
    if peak is None:
        found = [line._replace(mfu=None, hfu=None) for line in found]
    if options.form == "json":
        print(json.dumps(_mfu_json(found, run, seconds, measured, peak, stated), indent=1))
        return
    columns = {
        "formula": "",
        "recomputation": "",
        "model_tflops_per_gpu": _speed,
        "hardware_tflops_per_gpu": _speed,
        "mfu": ".2%",
        "hfu": ".2%",
        "counts": "",
    }
    if options.form == "csv":
        print(format_table(columns, [line._asdict() for line in found], "csv"))
        return
    shown = [
        line if line.model_tflops_per_gpu is not None else line._replace(counts="not derived for this model")
        for line in found
    ]
    table = format_table(columns, [line._asdict() for line in shown], options.form)
    print_text(
        "\n".join(
            [
                *_mfu_head(run, seconds, measured, peak, is_cpu),
                "",
                table,
                *_mfu_foot(found, peak, facts, stated, is_cpu),
            ]
        )
    )


def _peak_of_cpu(options):
    """The peak that --peak gives of a CPU; None without it. That of a GPU is refused."""
    from megatron_music.profiling.mfu import find_peak

    if options.peak is not None:
        return find_peak("the CPU, a process of it", options.peak)
    if options.gpu:
        raise ValueError(
            f"{options.source} ran on a CPU, and --gpu {options.gpu} would compare it with a GPU; omit --gpu, or give "
            f"--peak TFLOP/s of the CPU"
        )
    return None


def _speed(tflops: float) -> str:
    return f"{tflops:.1f}" if tflops >= 1 else f"{tflops:.3g}"  # a CPU's as 0.0942


def _steps_of_batch(options, steps: list, facts: dict) -> list:
    """The steps of the batch size that is asked for, where a log has several."""
    if "batch_sizes" not in facts or options.global_batch_size is None:
        return steps
    return [step for step in steps if step.global_batch_size in (None, options.global_batch_size)] or steps


def _mfu_head(run: dict, seconds: float, measured, peak, is_cpu: bool) -> list[str]:
    batch = run["global_batch_size"]
    spread = ""
    if measured:
        spread = (
            f", the median of {counted(measured.num_lines, 'line')}, half of them between "
            f"{measured.lower_quartile:.4g} and "
            f"{measured.upper_quartile:.4g}; {measured.num_warmup_lines} of warm-up left out"
        )
    places = (
        counted(run["num_gpus"], "process", "processes") + " on the CPU" if is_cpu else counted(run["num_gpus"], "GPU")
    )
    known = (
        f"peak {peak.tflops:g} TFLOP/s per {'process' if is_cpu else 'GPU'}: {peak.gpu}, {peak.source}"
        if peak
        else NO_PEAK
    )
    return [
        f"{run['title']}; {counted(batch, run['sample'])} per step{', ' if is_cpu else ' on '}{places}",
        f"step {seconds:.4g} s{spread}; {batch * run['tokens'] / seconds:,.0f} tokens/s",
        known,
    ]


def _mfu_foot(found: list, peak, facts: dict, stated, is_cpu: bool) -> list[str]:
    from megatron_music.profiling.mfu import LOW_MFU

    said = []
    if stated:
        words = {"causal": "half of the scores, as mcore", "all scores": "all scores, as Megatron-LM until 2025"}
        follows = f"counts {words[stated.follows]}" if stated.follows else "agrees with neither"
        said.append(
            f"the log's own {stated.stated:.1f} TFLOP/s per GPU {follows}: {stated.causal:.1f} with half of the "
            f"scores, "
            f"{stated.all_scores:.1f} with all"
        )
    refused = [line for line in found if line.model_tflops_per_gpu is None]
    if refused:
        said.append(
            f"{' and '.join(line.formula for line in refused)}: "
            f"{refused[0].counts.partition(' is ')[2] or refused[0].counts}"
        )
    best = max(line.mfu or 0 for line in found)
    low = facts.get("low_precision")
    if best > 1:
        reason = (
            f"the log has {low}"
            if low
            else "check --gpu, --num-gpus and the shape, and whether the run was in FP8 or FP4"
        )
        said.append(
            f"above 100% of a bf16 peak: {reason}; give the dense peak of that precision with --peak (FP8 on an H100: "
            f"1979)"
        )
    elif low:
        said.append(
            f"the log has {low}, and the peak is that of bf16; give the dense peak of that precision with --peak (FP8 "
            f"on an H100: 1979)"
        )
    if peak and best < LOW_MFU and not is_cpu:
        said.append(f"below {LOW_MFU:.0%} a step waits for kernel launches or memory, not for the matrix products")
    return ["", *said] if said else []


def _mfu_json(found: list, run: dict, seconds: float, measured, peak, stated) -> dict:
    model = run["model"]
    shape = {name: getattr(model, name) for name in (*_SHAPE, "swiglu")} if model else {"title": run["title"]}
    if model and any(run["variant"]):
        shape |= {name: value for name, value in run["variant"]._asdict().items() if value}
    answer = {
        line.formula: {name: value for name, value in line._asdict().items() if name != "formula"} for line in found
    }
    return answer | {
        "step_seconds": seconds,
        "measured": measured._asdict() if measured else None,
        "stated": stated._asdict() if stated else None,
        "peak_tflops": peak.tflops if peak else None,
        "peak_source": peak.source if peak else None,
        "gpu": peak.gpu if peak else None,
        "num_gpus": run["num_gpus"],
        "global_batch_size": run["global_batch_size"],
        "model": shape,
    }


def _run_facts(options, facts: dict) -> dict:
    """The facts of the run: those of the command line before those of its log.

    Raises:
        ValueError: a fact is missing, or the log's architecture is one that no formula counts.
    """
    from megatron_music.config.sections import ModelConfig
    from megatron_music.profiling.flops import Variant

    if "not_counted" in facts:
        raise ValueError(
            f"the model in the log has what no formula here counts ({facts['not_counted']}); use the TFLOP/s that the "
            f"log itself prints"
        )
    shape = [] if "flow" in facts else [*_SHAPE, "swiglu"]
    names = [*shape, "global_batch_size", "num_gpus", "recomputation"]
    facts = facts | {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    facts.setdefault("recomputation", "none")
    missing = [name for name in names if name not in facts and name not in _OPTIONAL]
    if missing == ["global_batch_size"] and "batch_sizes" in facts:
        sizes = facts["batch_sizes"]
        listed = ", ".join(map(str, sizes)) if len(sizes) <= 6 else f"{sizes[0]} to {sizes[-1]}"
        raise ValueError(
            f"the log has {len(sizes)} global batch sizes ({listed}); give the one to look at: --global-batch-size "
            f"{sizes[-1]}"
        )
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing)
        who = "the log does not say" if options.source else "missing are"
        raise ValueError(f"{who} {flags}; give {'it' if len(missing) == 1 else 'them'}")
    for name in ("global_batch_size", "num_gpus"):
        positive("--" + name.replace("_", "-"), facts[name])
    common = {name: facts[name] for name in ("global_batch_size", "num_gpus", "recomputation")}
    if "flow" in facts:
        return common | _flow_words(facts["flow"])
    model = ModelConfig(**{name: facts[name] for name in shape if name in facts})
    variant = Variant(**facts.get("variant", {}))
    title = f"{counted(model.num_layers, 'layer')} x {model.hidden_size}, {counted(model.num_attention_heads, 'head')}"
    if variant.kv_channels:
        title += f" of {variant.kv_channels} channels"
    if variant.num_moe_layers:
        title += f", {counted(variant.num_moe_layers, 'layer')} of experts ({variant.moe_router_topk} per token)"
    title += f", {model.seq_length} tokens, vocabulary {model.vocab_size}"
    return common | {
        "model": model,
        "variant": variant,
        "title": title,
        "sample": "sequence",
        "tokens": model.seq_length,
    }


def _flow_words(flow: tuple) -> dict:
    """What is said of a text-to-music run: positions are its tokens."""
    run, text_length = flow
    shape = run.model.shape
    positions = _frames(run) + shape.num_extra_positions
    title = (
        f"{run.model.kind}, {counted(shape.num_layers, 'layer')} x {shape.hidden_size}, "
        f"{counted(shape.num_attention_heads, 'head')}, {counted(positions, 'position')}, "
        f"{counted(text_length, 'word')}"
    )
    return {"model": None, "title": title, "sample": "sample", "tokens": positions}


def _flow_flops(flow: tuple, facts: dict):
    from megatron_music.profiling.flow_flops import step_flops

    run, text_length = flow
    hears_music = run.model.kind == "dit" and run.model.conditions == "music"
    return step_flops(
        run.model.shape,
        facts["global_batch_size"],
        frames=_frames(run),
        words=text_length,
        music_size=run.model.embedding_size if hears_music else None,
        recomputation=facts["recomputation"],
    )


def _frames(run) -> int:
    return run.model.latent_length if run.model.kind == "dit" else 1


def _facts_of_run(folder: Path) -> dict:
    """What a run's newest checkpoint says of it; nothing where there is none."""
    from dataclasses import asdict

    from megatron_music.checkpoints.folder import CONFIG, STATE, checkpoints_of
    from megatron_music.config.load import read_run
    from megatron_music.config.run import RunConfig
    from megatron_music.data.latents_index import read_index

    for checkpoint in checkpoints_of(folder):
        run = read_run(checkpoint / CONFIG)
        common = {
            "global_batch_size": run.train.global_batch_size,
            "num_gpus": _num_gpus(checkpoint / STATE),
            "recomputation": run.train.recompute_granularity or "none",
            "precision": {"bf16": run.train.bf16, "float32_matmul_precision": run.train.float32_matmul_precision},
        }
        if not isinstance(run, RunConfig):
            return common | {"flow": (run, read_index(checkpoint)["text_length"])}
        shape = asdict(run.model)
        return common | {name: shape[name] for name in (*_SHAPE, "swiglu")}
    return {}


def _num_gpus(state: Path) -> int:
    """The number of processes that a checkpoint was saved by."""
    try:
        found = read_json_object(state)["layout"]["world_size"]
        if isinstance(found, int) and 1 <= found < 2**24:
            return found
        reason = f"layout.world_size is {str(found)[:40]!r}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = reason_of(error)
    raise ValueError(f"{state} cannot be read ({reason}); name a log of the run")
