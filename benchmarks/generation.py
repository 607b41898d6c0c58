"""Sampled pieces: how many decode and encode again to the same ids, and tokens a second.

    python benchmarks/generation.py CHECKPOINT [--num 50] [--json FILE]

CHECKPOINT is a run's folder, e.g. demo/run. The exit status is 1 if a single piece fails.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from machine import machine

from megatron_music.cli import quiet_dependencies

quiet_dependencies()

import torch  # noqa: E402

from megatron_music.generation.sampling import CachedGPT, Draft, Sampler, write_drafts  # noqa: E402
from megatron_music.music.midi import read_midi, write_midi  # noqa: E402
from megatron_music.music.grid import quantize  # noqa: E402
from megatron_music.tokens.grammar import Grammar  # noqa: E402
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece  # noqa: E402
from megatron_music.training import distributed  # noqa: E402
from megatron_music.training.inference import load_composer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--num", type=int, default=50)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    composer = load_composer(options.checkpoint)
    encoding = composer.encoding
    drafts = [
        Draft(Grammar(encoding, composer.max_tokens), seed) for seed in range(options.num)
    ]
    start = time.perf_counter()
    for _ in write_drafts(drafts, CachedGPT(composer.model, options.num, composer.max_tokens), Sampler()):
        pass
    seconds = time.perf_counter() - start
    distributed.stop()
    again, through_files = 0, 0
    scratch = options.checkpoint / "benchmark.mid"
    for draft in drafts:
        score = decode_piece(draft.ids, encoding.steps_per_quarter)
        again += encode_piece(score, encoding.bar_line, encoding.density_bins).tolist() == draft.ids[:-1]
        if score.num_notes:
            write_midi(score, scratch)
            read = quantize(read_midi(scratch), encoding.steps_per_quarter)
            through_files += [t.notes.tolist() for t in read.tracks] == [t.notes.tolist() for t in score.tracks if len(t)]
    scratch.unlink(missing_ok=True)
    tokens = sum(len(draft.ids) for draft in drafts)
    print(f"{again} of {options.num} pieces encode again to the same ids; {through_files} of {options.num} survive a MIDI file")
    print(f"{tokens:,} tokens in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s in one batch; {machine()}")
    if options.json:
        result = {
            "pieces": options.num, "encode_again": again, "survive_a_midi_file": through_files, "tokens": tokens,
            "seconds": seconds, "machine": machine(),
            "command": " ".join(["python", "benchmarks/generation.py", *sys.argv[1:]]),
        }  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if again < options.num:
        sys.exit(1)


if __name__ == "__main__":
    main()
