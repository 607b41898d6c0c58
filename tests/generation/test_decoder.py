"""The decoder against megatron-core's own forward, for every form of the model."""

from dataclasses import replace

import pytest
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel

from megatron_music.config.sections import ModelConfig, ParallelConfig
from megatron_music.generation.decoder import Decoder, next_logits_of, reads
from megatron_music.generation.sampling import CachedGPT, UncachedGPT
from megatron_music.models.gpt import build_gpt, transformer_config
from megatron_music.parallel import distributed
from megatron_music.tokens import vocabulary as v

BATCH, LENGTH = 3, 40
PLAIN = ModelConfig(size="tiny")
FORMS = {
    "rope": PLAIN,
    "learned": replace(PLAIN, position_embedding_type="learned_absolute"),
    "groups": replace(PLAIN, num_query_groups=2),
    "one group": replace(PLAIN, num_query_groups=1, position_embedding_type="learned_absolute"),
    "rms": replace(PLAIN, normalization="RMSNorm"),
    "swiglu": replace(PLAIN, swiglu=True),
    "no biases": replace(PLAIN, add_bias_linear=False),
    "untied": replace(PLAIN, share_embeddings_and_output_weights=False),
    "llama": replace(
        PLAIN,
        num_query_groups=2,
        normalization="RMSNorm",
        swiglu=True,
        add_bias_linear=False,
        share_embeddings_and_output_weights=False,
        rotary_base=500,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def processes():
    distributed.start(ParallelConfig())
    yield
    distributed.stop()


def build(form: ModelConfig, dtype: torch.dtype = torch.float32):
    """A model whose biases and norms are not the zeros and ones they start from."""
    distributed.seed_for_building(1)
    model = build_gpt(form, ParallelConfig(), dtype=dtype).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Matrices large enough that attention is not flat and tokens differ.
            scale = 0.3 if parameter.dim() == 1 else 0.15
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(noise + ("norm" in name and name.endswith("weight")))
    return model


def some_ids(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, v.SIZE, (BATCH, length), generator=torch.Generator().manual_seed(3))


def read(next_logits, ids_BS: torch.Tensor, *portions: int) -> torch.Tensor:
    """Logits after each portion of the ids, then after each single one, [calls, B, V]."""
    parts = ids_BS.split([*portions, *[1] * (ids_BS.shape[1] - sum(portions))], dim=1)
    return torch.stack([next_logits(part) for part in parts])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_logits_are_those_of_the_whole_forward(form):
    model, ids_BS = build(form), some_ids()
    with torch.inference_mode():
        positions_BS = torch.arange(LENGTH).expand(BATCH, LENGTH)
        whole_SBV = model(ids_BS, positions_BS, None).transpose(0, 1)
    assert reads(model) and whole_SBV.std() > 0.5
    found = read(next_logits_of(model, BATCH, LENGTH), ids_BS, 5, 4)
    torch.testing.assert_close(found, torch.cat([whole_SBV[4:5], whole_SBV[8:]]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["rope", "llama"])
def test_in_half_precision_as_near_as_the_oracle(form):
    """Both round after every operation; neither may lie further from the exact numbers than rounding explains."""
    exact = read(UncachedGPT(build(FORMS[form])), some_ids(), 5)
    model = build(FORMS[form], torch.bfloat16)
    oracle, found = (read(kind(model, BATCH, LENGTH), some_ids(), 5).float() for kind in (CachedGPT, Decoder))
    assert (found - exact).abs().mean() < 1.2 * (oracle - exact).abs().mean()


def test_attention_that_obeys_its_mask_type_reads_several_tokens_on_a_cache_rightly():
    """megatron-core's own attention hides nothing where it is told so, as Transformer Engine's does."""
    config = transformer_config(PLAIN, ParallelConfig())
    config.persist_layer_norm = False
    distributed.seed_for_building(1)
    layers = get_gpt_layer_local_spec()
    model = GPTModel(
        config, layers, v.SIZE, PLAIN.seq_length, position_embedding_type=PLAIN.position_embedding_type
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    ids_BS = some_ids()
    found, exact = (read(kind(model, BATCH, LENGTH), ids_BS, 5, 4) for kind in (CachedGPT, UncachedGPT))
    torch.testing.assert_close(found, exact, atol=1e-5, rtol=1e-5)


class StaticBuffers:
    """What ``StepGraphs`` does on CUDA but for the graph: static buffers in, masked look-back."""

    def __init__(self, step):
        self.step = step
        self.buffers: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    def run(self, entering, positions_S, limit):
        static = self.buffers.setdefault((*entering.shape, limit), (entering.clone(), positions_S.clone()))
        static[0].copy_(entering)
        static[1].copy_(positions_S)
        return self.step(*static, limit, is_exact=False)


@pytest.mark.parametrize("form", ["groups", "learned"])
def test_the_step_that_is_captured_on_cuda(form):
    model = build(FORMS[form])
    plain, captured = Decoder(model, BATCH, LENGTH), Decoder(model, BATCH, LENGTH)
    captured._cache = torch.zeros_like(captured._cache)
    captured._graphs = StaticBuffers(captured._stage)
    torch.testing.assert_close(read(captured, some_ids(), 3), read(plain, some_ids(), 3), atol=1e-5, rtol=1e-5)
    assert list(captured._graphs.buffers) == [(BATCH, 1, LENGTH)]


@pytest.mark.parametrize("kind", [Decoder, CachedGPT, UncachedGPT])
def test_rows_that_are_kept_go_on(kind):
    model, ids_BS = build(FORMS["llama"]), some_ids(12)
    alone = UncachedGPT(model)
    next_logits = kind(model, BATCH, 12)
    next_logits(ids_BS[:, :5])
    next_logits.keep([0, 2])
    next_logits(ids_BS[[0, 2], 5:6])
    next_logits.keep([1])
    torch.testing.assert_close(next_logits(ids_BS[2:, 6:7]), alone(ids_BS[2:, :7]), atol=1e-5, rtol=1e-5)


def test_a_model_of_other_parts_is_read_by_its_own_modules():
    model = build(PLAIN)
    others = {"qk_layernorm": True, "num_moe_experts": 4, "activation_func": torch.relu, "normalization": "L2"}
    for name, value in others.items():
        before = getattr(model.config, name)
        setattr(model.config, name, value)
        assert not reads(model) and isinstance(next_logits_of(model, 1, 8), CachedGPT)
        setattr(model.config, name, before)
    assert isinstance(next_logits_of(model, 1, 8), Decoder)
    model.config.qk_layernorm, model.post_process = True, False
    with pytest.raises(ValueError, match="read on one pipeline stage alone; split it by tensor parallelism"):
        next_logits_of(model, 1, 8)


def test_norms_within_linear_layers_as_transformer_engine_has_them():
    model, ids_BS = build(PLAIN), some_ids(8)
    expected = read(Decoder(model, BATCH, 8), ids_BS, 2)
    for layer in model.decoder.layers:
        attention, feed_forward = layer.self_attention, layer.mlp
        pairs = (layer.input_layernorm, attention.linear_qkv), (layer.pre_mlp_layernorm, feed_forward.linear_fc1)
        for norm, linear in pairs:
            linear.layer_norm_weight, linear.layer_norm_bias = norm.weight, norm.bias
            norm.weight = norm.bias = None
    assert reads(model)
    torch.testing.assert_close(read(Decoder(model, BATCH, 8), ids_BS, 2), expected)


def test_more_tokens_than_announced():
    decoder = Decoder(build(PLAIN), 1, 4)
    with pytest.raises(ValueError, match="5 tokens are fed where 4 were announced"):
        decoder(torch.zeros(1, 5, dtype=torch.long))
