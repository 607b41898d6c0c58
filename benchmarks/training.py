"""Training speed: our GPT on megatron-core beside Hugging Face's GPT2LMHeadModel, in one run on one machine.

    python benchmarks/training.py [--steps 5] [--json docs/results/training.json]

Both have the shape of the seed article (6 layers of 512, 8 heads, 2048 tokens, learned positions, LayerNorm, GELU, tied
embeddings, our vocabulary, no dropout), the same batch and the same dtype, and both do a whole step: forward, backward,
clipping at 1.0, AdamW in its fused form. The steps alternate, so that what else the machine does falls on both alike.
Needs: pip install "megatron-music[train,bench]".
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from itertools import repeat
from pathlib import Path

warnings.filterwarnings("ignore", module=r"megatron\.core")

import megatron.core  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from megatron_music.config import RunConfig, load_run  # noqa: E402
from megatron_music.models.gpt import build_gpt  # noqa: E402
from megatron_music.training import distributed  # noqa: E402
from megatron_music.training.engine import Engine  # noqa: E402
from megatron_music.training.gpt_step import forward_step  # noqa: E402
from megatron_music.training.tasks import Task  # noqa: E402


def our_step(config: RunConfig, tokens: torch.Tensor):
    """Our training step as the loop runs it."""
    task = Task(
        build_model=lambda dtype: build_gpt(config.model, config.parallel, dtype=dtype),
        forward_step=forward_step,
        train_batches=None,
        valid_batches=None,
        tokenizer_folder=None,
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
    return (lambda: engine.step(repeat(batch)).loss), sum(item.numel() for item in engine.module.parameters())


def hugging_face_step(config: RunConfig, tokens: torch.Tensor):
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
            # The exact GELU, as in megatron-core; the default, composed of six operations, is slower.
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation="sdpa",
        )
    ).train()
    model = model.to(torch.cuda.current_device())
    # One token more than n_positions cannot be fed: the labels are shifted here, and not by the model.
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.95), fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = model(inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step, sum(item.numel() for item in model.parameters())


def measure(steps: int, batch_size: int, size: str) -> dict:
    """Seconds of each step of both, alternating, after two steps of each to warm up."""
    config = load_run(
        "article",
        [
            f"model.size={size}",
            "model.attention_dropout=0",
            "model.hidden_dropout=0",
            f"train.micro_batch_size={batch_size}",
            f"train.global_batch_size={batch_size}",
        ],
    )
    distributed.start(config.parallel)
    tokens = torch.randint(config.model.vocab_size, (batch_size, config.model.seq_length + 1))
    tokens = tokens.to(torch.cuda.current_device())
    ours, our_parameters = our_step(config, tokens)
    theirs, their_parameters = hugging_face_step(config, tokens)
    pair = [("ours", ours), ("hugging_face", theirs)]
    seconds: dict[str, list[float]] = {"ours": [], "hugging_face": []}
    for number in range(-2, steps):
        # Each goes first every other time: what a step leaves in the caches is the next one's.
        pair.reverse()
        for name, step in pair:
            start = time.perf_counter()
            step()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    distributed.stop()
    num_tokens = batch_size * config.model.seq_length
    medians = {name: num_tokens / statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens_per_second": medians,
        "ratio": medians["ours"] / medians["hugging_face"],
        "step_seconds": seconds,
        "parameters": {"ours": our_parameters, "hugging_face": their_parameters},
        "size": size,
        "batch_size": batch_size,
        "seq_length": config.model.seq_length,
        "dtype": "float32",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "megatron-core": megatron.core.__version__,
            "transformers": transformers.__version__,
        },
    }


def table(result: dict) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows = [
        "| | tokens/s (median) | parameters |",
        "| --- | ---: | ---: |",
    ]
    for name, title in (("ours", "megatron_music on megatron-core"), ("hugging_face", "transformers GPT2LMHeadModel")):
        rows.append(f"| {title} | {result['tokens_per_second'][name]:,.0f} | {result['parameters'][name]:,} |")
    rows.append(f"| ratio | **{result['ratio']:.2f}** | |")
    told = f"{result['size']}, batch {result['batch_size']} x {result['seq_length']} tokens, {result['dtype']}, "
    return "\n".join([*rows, "", f"{told}{len(result['step_seconds']['ours'])} steps each; {result['machine']}; {versions}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--size", default="article")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    result = measure(options.steps, options.batch_size, options.size)
    print(table(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
