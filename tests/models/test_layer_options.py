"""Classes of ours that megatron-core instantiates, under the arguments that its newest and its next version may
pass.
"""

import inspect
import logging

import pytest
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import CrossAttention, SelfAttention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_music.config.flow_sizes import TEXT2MUQ_SIZES
from megatron_music.config.sections import ModelConfig, ParallelConfig
from megatron_music.models import flow_layers, layers
from megatron_music.models.gpt import build_gpt
from megatron_music.models.text2muq import build_text2muq
from megatron_music.parallel import distributed

# Ours, and the class of megatron-core in whose place it stands.
PAIRS = [
    (layers.SDPACoreAttention, DotProductAttention),
    (layers.ColumnLinear, ColumnParallelLinear),
    (layers.RowLinear, RowParallelLinear),
    (layers.SequenceParallelNorm, WrappedTorchNorm),
    (flow_layers.ModulatedNorm, WrappedTorchNorm),
    (flow_layers.OwnAttention, SelfAttention),
    (flow_layers.ContextAttention, CrossAttention),
    (flow_layers.ModulatedLayer, TransformerLayer),
]


def parameters(function) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


def accepts(function, name: str) -> bool:
    found = parameters(function)
    return name in found or any(item.kind is item.VAR_KEYWORD for item in found.values())


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda kind: kind.__name__)
def test_what_megatron_core_gives_its_own_class_can_be_given_to_ours(ours, theirs):
    for name, parameter in parameters(theirs.__init__).items():
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            assert accepts(ours.__init__, name), f"{ours.__name__} refuses {name}"
    assert accepts(ours.forward, "an_argument_of_the_next_version") or ours.forward is theirs.forward


def test_attention_to_a_context_takes_what_attention_passes_to_itself():
    for name in parameters(CrossAttention.get_query_key_value_tensors):
        assert accepts(flow_layers.ContextAttention.get_query_key_value_tensors, name)


@pytest.fixture
def one_process():
    distributed.start(ParallelConfig())
    distributed.seed_for_building(3)
    yield
    distributed.stop()


@pytest.mark.parametrize("kind", ["GPT", "text to music"])
def test_no_warning_tells_the_user_to_migrate_our_layer_specs(one_process, caplog, kind):
    with caplog.at_level(logging.WARNING):
        if kind == "GPT":
            build_gpt(ModelConfig(size="tiny"), ParallelConfig())
        else:
            build_text2muq(TEXT2MUQ_SIZES["tiny"], ParallelConfig())
    assert not [record.getMessage() for record in caplog.records if "ModuleSpec" in record.getMessage()]
