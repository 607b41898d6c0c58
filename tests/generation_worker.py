"""Pieces of one checkpoint, as the processes of torchrun write them together: split by tensors, then by pipeline
stages.
"""

import json
import sys
from pathlib import Path

import torch

from megatron_music.generation.decoder import Decoder
from megatron_music.generation.from_checkpoint import load_composer
from megatron_music.generation.midi import Composer
from megatron_music.generation.sampling import CachedGPT, Draft, Sampler, write_drafts
from megatron_music.parallel import distributed
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.grammar import Grammar

MAX_TOKENS = 160
TRACKS = tuple(v.IDS[f"INST={name}"] for name in ("SOPRANO", "33", "DRUMS"))


def pieces(composer: Composer, next_logits) -> dict[str, list[list[int]]]:
    model = composer.model
    return {
        "constrained": written(
            model, next_logits, Sampler(temperature=0), [Encoding(bars=6), Encoding(bars=7)], TRACKS
        ),
        "sampled": written(model, next_logits, Sampler(), [Encoding(bars=bars) for bars in (1, 1, 2, 3, 8)], None),
        "free": free_ids(model, next_logits),
    }


def written(model, next_logits, sampler: Sampler, encodings: list[Encoding], instruments) -> list[list[int]]:
    drafts = [Draft(Grammar(encoding, MAX_TOKENS, instruments), seed) for seed, encoding in enumerate(encodings)]
    for _ in write_drafts(drafts, next_logits(model, len(drafts), MAX_TOKENS), sampler):
        pass
    return [draft.ids for draft in drafts]


def free_ids(model, next_logits) -> list[list[int]]:
    """The most likely tokens after two prompts, grammar or not."""
    prompts = [[v.PIECE_START, v.TRACK_START, v.INST, v.BAR_START, v.NOTE_ON + pitch] for pitch in (60, 61)]
    model_logits = next_logits(model, len(prompts), MAX_TOKENS)
    ids_BS = torch.tensor(prompts)
    found = []
    while len(found) < 60:
        ids_BS = model_logits(ids_BS)[:, : v.SIZE].argmax(dim=-1, keepdim=True)
        found.append(ids_BS[:, 0].tolist())
    return found


def main(checkpoint: str, out: str) -> None:
    found = {"tensors": pieces(load_composer(checkpoint), Decoder)}
    found["megatron-core"] = pieces(load_composer(checkpoint), CachedGPT)
    found["stages"] = pieces(load_composer(checkpoint, tensor_model_parallel_size=1), Decoder)
    if distributed.is_main():
        Path(out).write_text(json.dumps(found))
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
