"""Core attention and the built GPT: masks, caches, grouped queries, and the spec a host can find."""

import importlib

import pytest
import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.transformer.spec_utils import ModuleSpec, import_module

from megatron_music.config.sections import ModelConfig, ParallelConfig
from megatron_music.models.gpt import build_gpt
from megatron_music.parallel import cpu_backend, distributed

MODELS = [
    {},
    {"position_embedding_type": "learned_absolute"},
    {"num_query_groups": 2, "normalization": "RMSNorm", "share_embeddings_and_output_weights": False},
]


@pytest.fixture(autouse=True)
def one_process():
    distributed.start(ParallelConfig())
    distributed.seed_for_building(3)
    yield
    distributed.stop()


def built(changes: dict, **options):
    model = build_gpt(ModelConfig(size="tiny", **changes), ParallelConfig(), **options).eval()
    # Fresh weights give nearly uniform attention, where a wrong mask shows little.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def logits_of(model, tokens, mask=None, context=None):
    start = context.sequence_len_offset if context else 0
    positions = torch.arange(start, start + tokens.size(1)).expand(len(tokens), -1)
    with torch.no_grad():
        return model(tokens, positions, mask, inference_context=context, runtime_gather_output=True)


def tokens_of(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(768, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_no_token_sees_a_later_one(changes):
    model = built(changes)
    tokens = tokens_of(12)
    changed = tokens.clone()
    changed[:, 8:] = tokens_of(4, seed=1)
    before, after = logits_of(model, tokens), logits_of(model, changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert (before[:, 8:] - after[:, 8:]).abs().max() > 0.1


@pytest.mark.parametrize("changes", MODELS, ids=str)
@pytest.mark.parametrize("chunks", [[12], [6, 1, 1, 4], [1] * 12, [5, 7]], ids=str)
def test_a_cache_changes_nothing_in_whatever_portions_it_is_filled(changes, chunks):
    model = built(changes)
    tokens = tokens_of(12)
    context = StaticInferenceContext(2, 16)
    context.materialize_only_last_token_logits = False
    found = []
    for chunk in tokens.split(chunks, dim=1):
        found.append(logits_of(model, chunk, context=context))
        context.increment_sequence_len_offset(chunk.size(1))
    expected = logits_of(model, tokens)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changes", MODELS, ids=str)
def test_a_mask_that_is_given_is_used(changes):
    model = built(changes, explicit_attention_mask=True)
    tokens = tokens_of(12)
    causal = torch.ones(12, 12).tril().bool()
    torch.testing.assert_close(logits_of(model, tokens, ~causal[None, None]), logits_of(model, tokens))
    # Two documents in one sequence are as if the second stood at its place with nothing before it.
    apart = causal.clone()
    apart[5:, :5] = False
    changed = tokens.clone()
    changed[:, :5] = tokens_of(5, seed=1)
    masked = [logits_of(model, ids, ~apart[None, None])[:, 5:] for ids in (tokens, changed)]
    torch.testing.assert_close(*masked)
    assert (logits_of(model, tokens)[:, 5:] - masked[0]).abs().max() > 0.1


def test_megatron_finds_the_spec_by_name():
    # What `--spec megatron_music.models.specs gpt_layer` does.
    assert isinstance(import_module(("megatron_music.models.specs", "gpt_layer")), ModuleSpec)


def test_the_adapter_leaves_nothing_behind():
    names = (
        "current_device",
        "device_count",
        "synchronize",
        "get_rng_state",
        "manual_seed",
        "Stream",
        "current_stream",
    )
    inside = {name: getattr(torch.cuda, name) for name in names}
    distributed.stop()
    outside = {name: getattr(torch.cuda, name) for name in names}
    assert all(inside[name] is not outside[name] for name in names)
    assert torch.ones(1).type() == "torch.FloatTensor"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(1, device="cuda")
    # Importing the package or this module patches nothing.
    importlib.reload(importlib.import_module("megatron_music"))
    assert torch.cuda.current_device is outside["current_device"]
    assert cpu_backend.install() and cpu_backend.install()
    assert torch.ones(1, device="cuda").device.type == "cpu"
    cpu_backend.uninstall()
    cpu_backend.uninstall()
    assert {name: getattr(torch.cuda, name) for name in names} == outside
