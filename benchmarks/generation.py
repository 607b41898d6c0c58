"""Tokens a second beside Hugging Face's generate with the same weights, and sampled pieces that must all decode.

    python benchmarks/generation.py [--sizes demo article] [--batches 1 8] [--tokens 200] [--turns 5] [--json FILE]
    python benchmarks/generation.py --pieces CHECKPOINT [--num 50] [--json FILE]

The first compares on random weights in GPT-2's form, which both sides hold; their logits are checked equal first. All
take their turns one after another; printed are medians over turns, and medians of the quotients within turns by the
faster of transformers' caches. The second samples pieces from a run's folder, e.g. demo/run; the exit status is 1 if a
single piece fails to encode again to the same ids.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from machine import machine

from megatron_music.config.log import quiet_dependencies

quiet_dependencies()

import torch  # noqa: E402
import transformers  # noqa: E402

from megatron_music.config.sections import ModelConfig, ParallelConfig  # noqa: E402
from megatron_music.generation.decoder import Decoder  # noqa: E402
from megatron_music.generation.from_checkpoint import load_composer  # noqa: E402
from megatron_music.generation.sampling import CachedGPT, Draft, Sampler, write_drafts  # noqa: E402
from megatron_music.models.gpt import build_gpt  # noqa: E402
from megatron_music.music.grid import quantize  # noqa: E402
from megatron_music.music.midi import read_midi, write_midi  # noqa: E402
from megatron_music.parallel import distributed  # noqa: E402
from megatron_music.tokens import vocabulary as v  # noqa: E402
from megatron_music.tokens.constraints import Choices, Walk, only  # noqa: E402
from megatron_music.tokens.encoding import Encoding  # noqa: E402
from megatron_music.tokens.grammar import Grammar  # noqa: E402
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece  # noqa: E402


class Anything(Walk):
    """Any ids after PIECE_START, ``max_tokens`` in all: a grammar that forbids nothing."""

    def _document(self) -> Choices:
        yield only(v.PIECE_START)
        anything = only(*range(v.SIZE))
        for _ in range(self.max_tokens - 1):
            yield anything


def ours(model, reader, grammars: list[Walk]) -> tuple[int, float]:
    """New tokens and seconds."""
    start = time.perf_counter()
    drafts = [Draft(grammar, seed) for seed, grammar in enumerate(grammars)]
    for _ in write_drafts(drafts, reader(model, len(drafts), grammars[0].max_tokens), Sampler()):
        pass
    return sum(len(draft.ids) for draft in drafts), time.perf_counter() - start


def theirs(model, batch: int, tokens: int, **options) -> tuple[int, float]:
    """New tokens and seconds of ``generate``."""
    start = time.perf_counter()
    ids_BS = torch.full((batch, 1), v.PIECE_START)
    with torch.inference_mode():
        found_BS = model.generate(
            ids_BS, attention_mask=torch.ones_like(ids_BS), do_sample=True, top_k=0, max_new_tokens=tokens, **options
        )
    seconds = time.perf_counter() - start
    assert found_BS.shape == (batch, tokens + 1)
    return batch * tokens, seconds


def gpt2_of(model, size: ModelConfig) -> transformers.GPT2LMHeadModel:
    """A GPT of GPT-2's form (learned positions, LayerNorm, GELU, tied output) in transformers, with copies of its
    weights.
    """
    config = transformers.GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.seq_length,
        n_embd=size.hidden_size,
        n_layer=size.num_layers,
        n_head=size.num_attention_heads,
        n_inner=size.ffn_hidden_size,
        activation_function="gelu",
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=v.PAD,
    )
    gpt2 = transformers.GPT2LMHeadModel(config).eval()
    found = dict(model.named_parameters())
    state = {
        "transformer.wte.weight": found["embedding.word_embeddings.weight"],
        "lm_head.weight": found["embedding.word_embeddings.weight"],
        "transformer.wpe.weight": found["embedding.position_embeddings.weight"],
        "transformer.ln_f.weight": found["decoder.final_layernorm.weight"],
        "transformer.ln_f.bias": found["decoder.final_layernorm.bias"],
    }
    places = {
        "ln_1": "input_layernorm",
        "attn.c_attn": "self_attention.linear_qkv",
        "attn.c_proj": "self_attention.linear_proj",
        "ln_2": "pre_mlp_layernorm",
        "mlp.c_fc": "mlp.linear_fc1",
        "mlp.c_proj": "mlp.linear_fc2",
    }
    for layer in range(size.num_layers):
        for there, here in places.items():
            for kind in ("weight", "bias"):
                tensor = found[f"decoder.layers.{layer}.{here}.{kind}"]
                if here.endswith("qkv"):  # query, key and value of each head, there of all heads
                    tensor = tensor.unflatten(0, (size.num_attention_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
                is_matrix = tensor.dim() == 2
                state[f"transformer.h.{layer}.{there}.{kind}"] = tensor.t() if is_matrix else tensor
    gpt2.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()})
    return gpt2


def check_equal(model, gpt2, size: ModelConfig) -> float:
    """The largest difference of logits at the same ids; ends the program where they differ."""
    ids_BS = torch.randint(0, v.SIZE, (2, 64), generator=torch.Generator().manual_seed(0))
    decoder = Decoder(model, 2, 64)
    found = torch.stack([decoder(ids_BS[:, place : place + 1]) for place in range(64)], dim=1)
    with torch.inference_mode():
        difference = (gpt2(ids_BS).logits - found).abs().max().item()
    if not difference < 1e-4:
        sys.exit(f"the logits of {size.size} differ by {difference}: the comparison would be of two models")
    return difference


def compare(size_name: str, batches: list[int], tokens: int, turns: int) -> list[dict]:
    size = ModelConfig(size=size_name, position_embedding_type="learned_absolute")
    distributed.seed_for_building(0)
    model = build_gpt(size, ParallelConfig()).eval()
    distributed.stop()  # and the CPU adapter with it, which would slow transformers down
    gpt2 = gpt2_of(model, size)
    distributed.start(ParallelConfig())
    difference = check_equal(model, gpt2, size)
    results = []
    for batch in batches:
        rows = {
            "ours": lambda: ours(model, Decoder, [Anything(tokens + 1) for _ in range(batch)]),
            "ours, with the grammar": lambda: ours(
                model,
                Decoder,
                [Grammar(Encoding(), tokens + 1, [v.INST] * 4) for _ in range(batch)],
            ),
            "megatron-core's modules": lambda: ours(model, CachedGPT, [Anything(tokens + 1) for _ in range(batch)]),
            "transformers, dynamic cache": lambda: theirs(gpt2, batch, tokens),
            "transformers, static cache": lambda: theirs(gpt2, batch, tokens, cache_implementation="static"),
        }
        speeds: dict[str, list[float]] = {name: [] for name in rows}
        for turn in range(turns + 1):
            for name, row in rows.items():
                if name.startswith("transformers"):
                    distributed.stop()
                count, seconds = row()
                if name.startswith("transformers"):
                    distributed.start(ParallelConfig())
                if turn:  # the first warms up
                    speeds[name].append(count / seconds)
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        best = max((value, name) for name, value in medians.items() if name.startswith("transformers"))[1]
        for name, value in medians.items():
            times = statistics.median(ours / theirs for ours, theirs in zip(speeds[name], speeds[best], strict=True))
            print(f"| {size_name} | {batch} | {name} | {value:,.0f} | {times:.2f} |", flush=True)
            results.append(
                {
                    "size": size_name,
                    "batch": batch,
                    "row": name,
                    "tokens_per_second": value,
                    "times_transformers": times,
                    "turns": [round(speed, 1) for speed in speeds[name]],
                    "largest_difference_of_logits": difference,
                }
            )
    return results


def law_of_pieces(checkpoint: Path, num: int) -> dict:
    composer = load_composer(checkpoint)
    encoding = composer.encoding
    drafts = [Draft(Grammar(encoding, composer.max_tokens), seed) for seed in range(num)]
    start = time.perf_counter()
    for _ in write_drafts(drafts, Decoder(composer.model, num, composer.max_tokens), Sampler()):
        pass
    seconds = time.perf_counter() - start
    distributed.stop()
    again, through_files = 0, 0
    scratch = checkpoint / "benchmark.mid"
    for draft in drafts:
        score = decode_piece(draft.ids, encoding.steps_per_quarter)
        again += encode_piece(score, encoding).tolist() == draft.ids[:-1]
        if score.num_notes:
            write_midi(score, scratch)
            read = quantize(read_midi(scratch), encoding.steps_per_quarter)
            through_files += [t.notes.tolist() for t in read.tracks] == [
                t.notes.tolist() for t in score.tracks if len(t)
            ]
    scratch.unlink(missing_ok=True)
    tokens = sum(len(draft.ids) for draft in drafts)
    print(f"{again} of {num} pieces encode again to the same ids; {through_files} of {num} survive a MIDI file")
    print(f"{tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s in one batch; {machine()}")
    return {
        "pieces": num,
        "encode_again": again,
        "survive_a_midi_file": through_files,
        "tokens": tokens,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces", type=Path, default=None, metavar="CHECKPOINT")
    parser.add_argument("--num", type=int, default=50)
    parser.add_argument("--sizes", nargs="+", default=["demo", "article"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if options.pieces:
        result = law_of_pieces(options.pieces, options.num)
    else:
        transformers.utils.logging.set_verbosity_error()
        distributed.start(ParallelConfig())
        print("| size | batch | | tokens/s | times transformers |\n| --- | ---: | --- | ---: | ---: |")
        rows = sum((compare(size, options.batches, options.tokens, options.turns) for size in options.sizes), [])
        distributed.stop()
        print(
            f"{options.tokens} tokens a piece, medians of {options.turns} turns; {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, transformers {transformers.__version__}; {machine()}; load before {load:.1f}"
        )
        result = {
            "rows": rows,
            "tokens": options.tokens,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    command = " ".join(["python", "benchmarks/generation.py", *sys.argv[1:]])
    result |= {"machine": machine(), "load_before": load, "command": command}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.pieces and result["encode_again"] < options.num:
        sys.exit(1)


if __name__ == "__main__":
    main()
