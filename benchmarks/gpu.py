"""Training speed on a GPU: our step and Hugging Face's GPT2LMHeadModel, over sizes, batches and recomputation, in one
run.

    python benchmarks/gpu.py [--quick] [--json gpu.json] [--markdown gpu.md]
    python benchmarks/gpu.py --device cpu --size tiny --steps 2        no GPU: that the script itself works

For one GPU and PyTorch from 2.6 on. Needs this file, the package `megatron_music` beside it (a clone is enough; nothing
must be installed), and: pip install megatron-core transformers numpy pyyaml miditoolkit packaging tqdm psutil. Without
transformers our side runs alone.

Both sides: the same shape, learned positions, exact GELU, LayerNorm, tied embeddings, no dropout, weights in bf16, a
whole step (forward, backward, clipping at 1.0, fused AdamW), the same batch. Ours keeps float32 main weights and
gradients; the other updates its bf16 weights in place, with 12 bytes a parameter less: the way its documentation writes
a loop, but less exact. Correctness comes first: the float32 loss of our model on the device against a GPT written out
below in float64 on the CPU.
"""

import argparse
import gc
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.filterwarnings("ignore", module=r"megatron\.|torch\.")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from megatron_music.config.load import load_run  # noqa: E402
from megatron_music.config.run import RunConfig  # noqa: E402
from megatron_music.profiling.flops import step_flops, tflops_per_gpu  # noqa: E402
from megatron_music.profiling.peaks import peak_of  # noqa: E402

OURS, THEIRS = "megatron_music", "GPT2LMHeadModel"
SEQ_LENGTHS = {"article": (2048,), "125m": (2048, 4096), "350m": (2048, 4096), "1.3b": (2048, 4096), "tiny": (64,)}
MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
RECOMPUTATIONS = ("none", "selective", "full")
FORMULA = "mcore"
Step = Callable[[], float]


def run_config(size: str, seq_length: int, micro_batch_size: int = 1, *overrides: str) -> RunConfig:
    """A run of one size, as both sides have it."""
    return load_run(
        "article",
        [
            f"model.size={size}",
            f"model.seq_length={seq_length}",
            "model.position_embedding_type=learned_absolute",
            "model.attention_dropout=0",
            "model.hidden_dropout=0",
            "train.bf16=true",
            f"train.micro_batch_size={micro_batch_size}",
            f"train.global_batch_size={micro_batch_size}",
            *overrides,
        ],
    )


def tokens_of(config: RunConfig, device: str) -> torch.Tensor:
    """One token more than a sequence has, for inputs and labels: [B, S + 1]."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.train.micro_batch_size, config.model.seq_length + 1)
    return torch.randint(config.model.vocab_size, shape, generator=generator).to(device)


def our_engine(config: RunConfig, recomputation: str = "none"):
    """Our engine with the model of the config."""
    from megatron_music.models.gpt import build_gpt
    from megatron_music.training.engine import Engine
    from megatron_music.training.gpt_step import forward_step
    from megatron_music.training.task import Task

    train = replace(config.train, recompute_granularity=None if recomputation == "none" else recomputation)
    task = Task(
        build_model=lambda dtype, vp_stage=None: build_gpt(config.model, config.parallel, dtype=dtype, train=train),
        forward_step=forward_step,
        train_batches=None,
        valid_batches=None,
        files={},
        seq_length=config.model.seq_length,
    )
    return Engine(config, task)


def batches_of(tokens_BS: torch.Tensor) -> Iterator[dict]:
    """The same micro batch for ever, as data/batches.py makes them."""
    inputs = tokens_BS[:, :-1].contiguous()
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape).contiguous()
    labels, mask = tokens_BS[:, 1:].contiguous(), torch.ones(inputs.shape, device=inputs.device)
    return repeat({"tokens": inputs, "labels": labels, "position_ids": positions, "loss_mask": mask})


def our_step(config: RunConfig, recomputation: str, device: str) -> Step:
    """Our training step as the loop runs it, which returns the loss."""
    engine, batches = our_engine(config, recomputation), batches_of(tokens_of(config, device))
    return lambda: engine.step(batches).loss


def their_step(config: RunConfig, recomputation: str, device: str) -> Step:
    """The same step around GPT2LMHeadModel."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    shape = config.model
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.seq_length,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_attention_heads,
            n_inner=shape.ffn_hidden_size,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model = model.to(device, torch.bfloat16).train()
    if recomputation == "full":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from transformers 5 on it has another name
            model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens = tokens_of(config, device)
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


STEPS = {OURS: our_step, THEIRS: their_step}


def time_steps(step: Step, steps: int, warmup: int, on_cuda: bool) -> tuple[list[float], float]:
    """Seconds of each step after some that do not count, and the last loss."""
    seconds, loss = [], math.nan
    for number in range(-warmup, steps):
        if on_cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss = step()
        if on_cuda:
            torch.cuda.synchronize()
        if number >= 0:
            seconds.append(time.perf_counter() - start)
    return seconds, loss


def measure_column(
    build: Callable[[int], Step], micro_batches: Sequence[int], steps: int, warmup: int, on_cuda: bool
) -> Iterator[dict]:
    """Rows of one contender over growing micro batches, up to and with the first that does not fit into memory."""
    for micro_batch in micro_batches:
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        timed = lambda: time_steps(build(micro_batch), steps, warmup, on_cuda)
        row = {"micro_batch": micro_batch} | _outcome(timed)
        if on_cuda and row["outcome"] == "measured":
            row["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        gc.collect()
        if on_cuda:
            torch.cuda.empty_cache()
        yield row
        if row["outcome"] != "measured":
            return


def _outcome(timed: Callable[[], tuple[list[float], float]]) -> dict:
    try:
        seconds, loss = timed()
    except torch.OutOfMemoryError:
        return {"outcome": "out of memory"}
    except Exception as error:  # one contender's trouble is a row, and not the end of a night's run
        reason = (str(error).splitlines() or [""])[0][:120]
        return {"outcome": f"{type(error).__name__}: {reason}"}
    return {"outcome": "measured", "step_seconds": seconds, "loss": loss, "peak_memory_gib": None}


def with_speeds(row: dict, config: RunConfig, recomputation: str, peak_tflops: float | None) -> dict:
    """A measured row with what follows from its median step: tokens and operations a second, MFU and HFU."""
    if row["outcome"] != "measured":
        return row
    seconds, batch = statistics.median(row["step_seconds"]), row["micro_batch"]
    flops = step_flops(config.model, batch, formula=FORMULA, recomputation=recomputation)
    model, hardware = (tflops_per_gpu(count, seconds, 1) for count in (flops.model, flops.hardware))
    return {
        **row,
        "median_seconds": seconds,
        "tokens_per_second": batch * config.model.seq_length / seconds,
        "model_tflops": model,
        "hardware_tflops": hardware,
        "mfu": model / peak_tflops if peak_tflops else None,
        "hfu": hardware / peak_tflops if peak_tflops else None,
    }


def check_loss(device: str) -> dict:
    """Our float32 loss on the device beside the same model written out in float64 on the CPU.

    The model first learns its two sequences by heart: before that every token is as likely as any other, right or
    wrong.
    """
    from megatron_music.parallel import distributed

    config = run_config(
        "tiny",
        64,
        2,
        "train.bf16=false",
        "train.float32_matmul_precision=highest",
        "optimizer.lr=0.003",
        "optimizer.lr_warmup_iters=0",
    )
    distributed.start(config.parallel)
    try:
        engine, tokens = our_engine(config), tokens_of(config, device)
        for _ in range(30):
            engine.step(batches_of(tokens))
        ours, num_tokens = engine.evaluate(batches_of(tokens), 1)
        state = engine.modules[0].state_dict()
        weights = {name: value.double().cpu() for name, value in state.items() if torch.is_tensor(value)}
        reference = reference_loss(weights, config, tokens.cpu())
    finally:
        distributed.stop()
    return {
        "ours": ours,
        "reference": reference,
        "tokens": num_tokens,
        "relative_error": abs(ours - reference) / reference,
    }


def reference_loss(weights: dict[str, torch.Tensor], config: RunConfig, tokens_BS: torch.Tensor) -> float:
    """The mean loss of a GPT written out, from the weights of a GPTModel: MHA, LayerNorm, GELU, tied, learned
    positions.
    """
    shape = config.model
    head_size = shape.hidden_size // shape.num_attention_heads
    inputs, labels = tokens_BS[:, :-1], tokens_BS[:, 1:]
    length = inputs.shape[1]

    def linear(name: str, hidden):
        return hidden @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]

    def norm(hidden, *names: str):  # Transformer Engine keeps the norm in the linear layer behind it
        prefix = next(name for name in names if f"{name}weight" in weights)
        centred = hidden - hidden.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{prefix}weight"] + weights[f"{prefix}bias"]

    embedding = weights["embedding.word_embeddings.weight"]
    hidden_BSH = embedding[inputs] + weights["embedding.position_embeddings.weight"][:length]
    hidden_among_keys = torch.ones(length, length, dtype=torch.bool).triu(1)
    for number in range(shape.num_layers):
        layer = f"decoder.layers.{number}"
        normed = norm(hidden_BSH, f"{layer}.input_layernorm.", f"{layer}.self_attention.linear_qkv.layer_norm_")
        qkv = linear(f"{layer}.self_attention.linear_qkv", normed)
        query, key, value = qkv.view(*inputs.shape, shape.num_attention_heads, 3, head_size).permute(3, 0, 2, 1, 4)
        scores = (query @ key.transpose(-1, -2) / math.sqrt(head_size)).masked_fill(hidden_among_keys, -math.inf)
        context = (scores.softmax(-1) @ value).transpose(1, 2).reshape(hidden_BSH.shape)
        hidden_BSH = hidden_BSH + linear(f"{layer}.self_attention.linear_proj", context)
        normed = norm(hidden_BSH, f"{layer}.pre_mlp_layernorm.", f"{layer}.mlp.linear_fc1.layer_norm_")
        hidden_BSH = hidden_BSH + linear(f"{layer}.mlp.linear_fc2", F.gelu(linear(f"{layer}.mlp.linear_fc1", normed)))
    logits = norm(hidden_BSH, "decoder.final_layernorm.") @ embedding.t()
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item()


def measure(options) -> dict:
    """All columns."""
    from megatron_music.parallel import distributed

    on_cuda = options.device == "cuda"
    gpu = torch.cuda.get_device_name() if on_cuda else "cpu"
    peak = peak_of(gpu)
    peak_tflops = options.peak or (peak.tflops if peak else None)
    check = check_loss(options.device)
    if not check["relative_error"] < 1e-3:  # room for TF32, which Transformer Engine uses for float32
        raise SystemExit(
            f"our loss {check['ours']} is not the reference's {check['reference']}; speed means nothing then"
        )
    print(f"loss {check['ours']:.6f}, reference {check['reference']:.6f}: right", file=sys.stderr)
    rows = []
    for size in options.size:
        for seq_length in options.seq_length or SEQ_LENGTHS[size]:
            for recomputation in options.recompute:
                for contender in options.contenders:
                    if contender == THEIRS and recomputation == "selective":
                        continue  # GPT2LMHeadModel has no such thing
                    build = lambda batch: STEPS[contender](
                        run_config(size, seq_length, batch),
                        recomputation,
                        options.device,
                    )
                    config = run_config(size, seq_length)
                    distributed.start(config.parallel)
                    for row in measure_column(build, options.micro_batch, options.steps, options.warmup, on_cuda):
                        named = {
                            "contender": contender,
                            "size": size,
                            "seq_length": seq_length,
                            "recomputation": recomputation,
                            "parameters": config.model.parameter_count,
                        }
                        rows.append(named | with_speeds(row, config, recomputation, peak_tflops))
                        print(line(rows[-1]), file=sys.stderr, flush=True)
                    distributed.stop()
    return {
        "device": gpu,
        "peak_tflops": peak_tflops,
        "peak_source": "--peak" if options.peak else peak.source if peak else None,
        "formula": FORMULA,
        "dtype": "bf16",
        "vocab_size": run_config("tiny", 64).model.vocab_size,
        "loss_check": check,
        "warmup": options.warmup,
        "versions": versions(),
        "command": " ".join(["python", "benchmarks/gpu.py", *options.words]),
        "rows": rows,
    }


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "megatron-core", "transformers", "transformer-engine"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found | {"cuda": str(torch.version.cuda)}


HEAD = ("size", "tokens", "recomputed", "", "batch", "tokens/s", "TFLOP/s", "MFU", "HFU", "GiB")


def line(row: dict) -> str:
    """A row of the table."""
    cells = [row["size"], row["seq_length"], row["recomputation"], row["contender"], row["micro_batch"]]
    if row["outcome"] != "measured":
        cells += [row["outcome"], "", "", "", ""]
    else:
        share = lambda value: "" if value is None else f"{value:.1%}"
        memory = row["peak_memory_gib"]
        cells += [
            f"{row['tokens_per_second']:,.0f}",
            f"{row['model_tflops']:,.3g}",
            share(row["mfu"]),
            share(row["hfu"]),
            "" if memory is None else f"{memory:.1f}",
        ]
    return "| " + " | ".join(map(str, cells)) + " |"


def table(result: dict) -> str:
    """The result as Markdown."""
    peak = f"{result['peak_tflops']:g} TFLOP/s ({result['peak_source']})" if result["peak_tflops"] else "not known"
    names = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    steps = len(next((row["step_seconds"] for row in result["rows"] if row["outcome"] == "measured"), []))
    return "\n".join(
        [
            "| " + " | ".join(HEAD) + " |",
            "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *map(line, result["rows"]),
            "",
            f"{result['device']}, {result['dtype']}; medians of {steps} steps after {result['warmup']}; TFLOP/s and "
            f"MFU by "
            f"the formula {result['formula']} (attention causal, vocabulary {result['vocab_size']}), HFU with what is "
            f"recomputed; peak {peak}; {names}. `{result['command']}`",
        ]
    )


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", nargs="+", choices=tuple(SEQ_LENGTHS), default=None)
    parser.add_argument("--seq-length", nargs="+", type=int, default=None, help="by default those of each size")
    parser.add_argument("--micro-batch", nargs="+", type=int, default=None)
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTATIONS, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--peak", type=float, default=None, metavar="TFLOPS", help="of this GPU, dense bf16")
    parser.add_argument("--quick", action="store_true", help="two sizes, three batches, no recomputation: some minutes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(words)
    options.words = list(sys.argv[1:] if words is None else words)
    quick = options.quick
    options.size = options.size or (("article", "125m") if quick else ("article", "125m", "350m", "1.3b"))
    options.seq_length = options.seq_length or ([2048] if quick and "tiny" not in options.size else None)
    options.micro_batch = options.micro_batch or ((1, 4, 16) if quick else MICRO_BATCHES)
    options.recompute = options.recompute or (("none",) if quick else RECOMPUTATIONS)
    options.steps = options.steps or (5 if quick else 10)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA here; use --device cpu --size tiny to try the script out")
    options.contenders = [OURS]
    if versions()["transformers"] == "absent":
        print("transformers is not installed: our side alone; pip install transformers for the other", file=sys.stderr)
    else:
        options.contenders.append(THEIRS)
    return options


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    result = measure(options)
    print(table(result))
    for path, text in ((options.json, json.dumps(result, indent=1)), (options.markdown, table(result))):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
