"""Greedy pieces with and without the KV cache, from one checkpoint, on the processes of torchrun."""

import json
import sys
from pathlib import Path

import torch

from megatron_music.generation.decoder import Decoder
from megatron_music.generation.sampling import CachedGPT, Draft, Sampler, UncachedGPT, write_drafts
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.folder import Encoding
from megatron_music.tokens.grammar import Grammar
from megatron_music.training import distributed
from megatron_music.training.inference import load_composer

PIECES, MAX_TOKENS = 2, 160
TRACKS = tuple(v.IDS[f"INST={name}"] for name in ("SOPRANO", "33", "DRUMS"))


def constrained_ids(model, next_logits) -> list[list[int]]:
    """The most likely pieces of 6 and 7 bars."""
    grammars = [Grammar(Encoding(bars=6 + piece), MAX_TOKENS, TRACKS) for piece in range(PIECES)]
    drafts = [Draft(grammar, seed=0) for grammar in grammars]
    for _ in write_drafts(drafts, next_logits(model, PIECES, MAX_TOKENS), Sampler(temperature=0)):
        pass
    return [draft.ids for draft in drafts]


def free_ids(model, next_logits) -> list[list[int]]:
    """The most likely tokens after two prompts, grammar or not."""
    model_logits = next_logits(model, PIECES, MAX_TOKENS)
    ids_BS = torch.tensor([[v.PIECE_START, v.TRACK_START, v.INST, v.BAR_START, v.NOTE_ON + 60 + piece] for piece in range(PIECES)])
    found = []
    while len(found) < 60:
        ids_BS = model_logits(ids_BS)[:, : v.SIZE].argmax(dim=-1, keepdim=True)
        found.append(ids_BS[:, 0].tolist())
    return found


def main(checkpoint: str, out: str) -> None:
    composer = load_composer(checkpoint, distributed.launched_size())
    found = {
        kind.__name__: [*constrained_ids(composer.model, kind), *free_ids(composer.model, kind)]
        for kind in (Decoder, CachedGPT, UncachedGPT)
    }
    if distributed.is_main():
        Path(out).write_text(json.dumps(found))
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
