"""The sizes, and the parameter count by arithmetic beside the built model."""

import pytest
import torch

from megatron_music.config.gpt_sizes import SIZES
from megatron_music.config.sections import ModelConfig, ParallelConfig
from megatron_music.models.gpt import build_gpt
from megatron_music.parallel import distributed


@pytest.fixture
def one_process():
    distributed.start(ParallelConfig())
    yield
    distributed.stop()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"position_embedding_type": "learned_absolute"},
        {"normalization": "RMSNorm"},
        {"share_embeddings_and_output_weights": False},
        {"num_query_groups": 2},
        {"ffn_hidden_size": 96},
        {"swiglu": True},
        {"swiglu": True, "add_bias_linear": False, "normalization": "RMSNorm"},
    ],
    ids=str,
)
def test_parameter_count_is_that_of_the_built_model(one_process, changes):
    model = ModelConfig(size="tiny", **changes)
    built = build_gpt(model, ParallelConfig())
    assert model.parameter_count == sum(parameter.numel() for parameter in built.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_every_named_size_counts_what_is_built(one_process, size):
    # On the meta device: shapes without memory.
    model = ModelConfig(size=size, position_embedding_type="learned_absolute")
    with torch.device("meta"):
        built = build_gpt(model, ParallelConfig())
    assert model.parameter_count == sum(parameter.numel() for parameter in built.parameters())


def test_the_article_size_is_the_article_s():
    size = SIZES["article"]
    assert (size.num_layers, size.num_attention_heads, size.hidden_size, size.seq_length) == (6, 8, 512, 2048)
    assert ModelConfig(size="article", position_embedding_type="learned_absolute").parameter_count == 20_357_120


@pytest.mark.parametrize(
    ("size", "millions"),
    [("tiny", 0.1), ("demo", 3), ("125m", 86), ("350m", 303), ("1.3b", 1210), ("2.7b", 2520), ("6.7b", 6440)],
)
def test_sizes_are_as_large_as_their_names_say(size, millions):
    # Without the 50257 words of GPT-3: the layers are what a size means.
    model = ModelConfig(size=size)
    assert model.parameter_count - model.vocab_size * model.hidden_size == pytest.approx(millions * 1e6, rel=0.06)
