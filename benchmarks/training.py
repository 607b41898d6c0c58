"""Training speed: our GPT on megatron-core beside Hugging Face's GPT2LMHeadModel, in one run on one machine.

    python benchmarks/training.py [--steps 9] [--batch-sizes 1,4] [--dtypes float32,bfloat16] [--json docs/results/training.json]

All have the shape of the `article` size (6 layers of 512, 8 heads, 2048 tokens, learned positions, LayerNorm, tied
embeddings, our vocabulary, no dropout), the same batch and the same dtype, and do a whole step: forward, backward,
clipping at 1.0, AdamW in its fused form. GPT2LMHeadModel runs twice: with its own default activation (`gelu_new`, six
operations) and with the exact GELU that megatron-core computes, which is faster. In bfloat16 ours keeps float32 weights
and gradients beside the bfloat16 ones, as megatron-core does; GPT2LMHeadModel runs under autocast over float32 weights,
as `transformers.Trainer(bf16=True)` has it, and once more in bfloat16 altogether, which keeps nothing in float32. Steps
take turns, so that what else the machine does falls on all alike; ratios are medians over turns.
Needs: pip install "megatron-music[train,bench]".
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

warnings.filterwarnings("ignore", module=r"megatron\.core")

import megatron.core  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from machine import machine  # noqa: E402

from megatron_music.config.load import load_run  # noqa: E402
from megatron_music.config.run import RunConfig  # noqa: E402
from megatron_music.models.gpt import build_gpt  # noqa: E402
from megatron_music.parallel import distributed  # noqa: E402
from megatron_music.training.engine import Engine  # noqa: E402
from megatron_music.training.gpt_step import forward_step  # noqa: E402
from megatron_music.training.task import Task  # noqa: E402

OURS = "megatron_music on megatron-core"


def our_step(config: RunConfig, tokens: torch.Tensor):
    """Our training step as the loop runs it."""
    task = Task(
        build_model=lambda dtype, vp_stage: build_gpt(config.model, config.parallel, dtype=dtype, vp_stage=vp_stage),
        forward_step=forward_step,
        train_batches=None,
        valid_batches=None,
        files={},
        seq_length=config.model.seq_length,
    )
    engine = Engine(config, task)
    positions = torch.arange(config.model.seq_length).expand(len(tokens), -1).contiguous()
    batch = {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "position_ids": positions,
        "loss_mask": torch.ones(positions.shape),
    }
    return (lambda: engine.step(repeat(batch)).loss), sum(item.numel() for item in engine.modules[0].parameters())


def hugging_face_step(config: RunConfig, tokens: torch.Tensor, activation: str, autocast: bool, dtype: torch.dtype):
    """The same step around GPT2LMHeadModel, as its documentation writes it."""
    shape = config.model
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=shape.vocab_size,
            n_positions=shape.seq_length,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_attention_heads,
            n_inner=shape.ffn_hidden_size,
            activation_function=activation,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).train()
    model = model.to(torch.cuda.current_device(), dtype)
    # One token more than n_positions cannot be fed: the labels are shifted here, and not by the model.
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=autocast):
            loss = model(inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    # In a thread of its own, where the CPU adapter of ours is not: as it is for its own users.
    thread = ThreadPoolExecutor(1)
    return lambda: thread.submit(step).result(), sum(item.numel() for item in model.parameters())


def measure(steps: int, batch_size: int, size: str, dtype: str) -> dict:
    """Seconds of each step of both, alternating, after two steps of each to warm up."""
    config = load_run(
        "article",
        [
            f"model.size={size}",
            "model.attention_dropout=0",
            "model.hidden_dropout=0",
            f"train.micro_batch_size={batch_size}",
            f"train.global_batch_size={batch_size}",
            f"train.bf16={dtype == 'bfloat16'}",
        ],
    )
    distributed.start(config.parallel)
    tokens = torch.randint(config.model.vocab_size, (batch_size, config.model.seq_length + 1))
    tokens = tokens.to(torch.cuda.current_device())
    contenders = {
        OURS: our_step(config, tokens),
    }
    for activation, told in (("gelu_new", "gelu_new (its default)"), ("gelu", "gelu")):
        is_half = config.train.bf16
        told = f"GPT2LMHeadModel, {told}{', autocast' if is_half else ''}"
        contenders[told] = hugging_face_step(config, tokens, activation, is_half, torch.float32)
    if config.train.bf16:
        told = "GPT2LMHeadModel, gelu_new, nothing in float32"
        contenders[told] = hugging_face_step(config, tokens, "gelu_new", False, torch.bfloat16)
    order = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for number in range(-2, steps):
        # Each goes first in turn: what a step leaves in the caches is the next one's.
        order.append(order.pop(0))
        for name in order:
            start = time.perf_counter()
            contenders[name][0]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    distributed.stop()
    num_tokens = batch_size * config.model.seq_length
    return {
        "rows": [
            {
                "contender": name,
                "parameters": contenders[name][1],
                "tokens_per_second": num_tokens / statistics.median(spent),
                "ours_over_this": statistics.median(t / o for t, o in zip(spent, seconds[OURS], strict=True)),
                "step_seconds": spent,
            }
            for name, spent in seconds.items()
        ],
        "size": size,
        "batch_size": batch_size,
        "seq_length": config.model.seq_length,
        "dtype": dtype,
        "machine": f"{machine()}, {torch.get_num_threads()} threads",
        "versions": {
            "torch": torch.__version__,
            "megatron-core": megatron.core.__version__,
            "transformers": transformers.__version__,
        },
        "command": " ".join(["python", "benchmarks/training.py", *sys.argv[1:]]),
    }


def table(result: dict) -> str:
    """The result as Markdown."""
    rows = ["| | tokens/s (median) | ours over this (median of turns) |", "| --- | ---: | ---: |"]
    for row in result["rows"]:
        rows.append(f"| {row['contender']} | {row['tokens_per_second']:,.0f} | {row['ours_over_this']:.2f} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    told = (
        f"{result['size']}, {result['rows'][0]['parameters']:,} parameters, batch {result['batch_size']} x "
        f"{result['seq_length']}"
    )
    turns = len(result["rows"][0]["step_seconds"])
    return "\n".join([*rows, "", f"{told} tokens, {result['dtype']}, {turns} turns; {result['machine']}; {versions}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--batch-sizes", default="1,4")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--size", default="article")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    results = []
    for dtype in options.dtypes.split(","):
        for batch_size in map(int, options.batch_sizes.split(",")):
            results.append(measure(options.steps, batch_size, options.size, dtype))
            print(table(results[-1]), "\n", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
