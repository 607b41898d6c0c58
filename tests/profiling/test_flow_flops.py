"""FLOPs of both stages from their sizes, beside torch's own counter."""

from dataclasses import replace

import pytest
from tiny_flow import FRAMES, batch, conditioned_batch, text2muq_batch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_music.config.flow_sizes import DIT_SIZES, TEXT2MUQ_SIZES
from megatron_music.config.sections import ParallelConfig, TrainConfig
from megatron_music.models.conditioners import build_conditioned_dit
from megatron_music.models.dit import build_dit
from megatron_music.models.text2muq import build_text2muq
from megatron_music.parallel import distributed
from megatron_music.profiling.flow_flops import (
    condition_flops,
    forward_flops,
    key_value_flops,
    sampling_flops,
    step_flops,
)

WORDS = 5
BUILD = {
    "dit": build_dit,
    "adaln": build_dit,
    "conditioned": build_conditioned_dit,
    "tiny": build_text2muq,
    "wide": build_text2muq,
}


@pytest.fixture
def processes():
    distributed.start(ParallelConfig())
    distributed.seed_for_building(0)
    yield
    distributed.stop()


def counted(model, given: dict, backward: bool = False) -> float:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(
            given["noisy"], **{key: value for key, value in given.items() if key not in ("noisy", "velocity")}
        )
        if backward:
            output.sum().backward()
    return counter.get_total_flops()


def case(name: str):
    if name in ("dit", "adaln", "conditioned"):
        size = replace(DIT_SIZES["tiny"], global_conditioning="adaln" if name == "adaln" else "prepend")
        return (
            size,
            BUILD[name](size, ParallelConfig()),
            conditioned_batch() if name == "conditioned" else batch(),
            FRAMES,
        )
    size = TEXT2MUQ_SIZES["tiny"]
    if name == "wide":
        size = replace(size, has_self_attention=False)
    return size, build_text2muq(size, ParallelConfig()), text2muq_batch(), 1


@pytest.mark.parametrize("name", BUILD)
def test_a_forward_pass_is_what_torch_counts(processes, name):
    size, model, given, frames = case(name)
    tokens = WORDS + (3 if name == "conditioned" else 0)
    wanted = forward_flops(size, frames, tokens) + (condition_flops(size, 512) if name == "conditioned" else 0)
    assert counted(model, given) == 4 * wanted


def test_what_is_made_once_of_the_words(processes):
    size, model, given, _ = case("tiny")
    with FlopCounterMode(display=False) as counter:
        prepared = model.prepare(given["context_BLC"])
    assert counter.get_total_flops() == 4 * key_value_flops(size, WORDS)
    given["prepared_BNLK"] = prepared
    del given["context_BLC"]
    assert counted(model, given) == 4 * (forward_flops(size, 1, WORDS) - key_value_flops(size, WORDS))


def test_backward_is_twice_forward_but_for_the_gradient_of_inputs(processes):
    size, model, given, frames = case("dit")
    both = counted(model, given, backward=True)
    assert 0.93 < both / (4 * 3 * forward_flops(size, frames, WORDS)) <= 1.0


@pytest.mark.parametrize("name", ["conditioned", "tiny", "wide"])
@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_what_is_computed_again_is_what_torch_counts_more(processes, name, recomputation):
    """The backward pass with recomputation, less the one without. Whole layers that are recomputed find the gradient of
    the context, too, which was given and needs none here.
    """
    size, plain, given, frames = case(name)
    again = BUILD[name](size, ParallelConfig(), train=TrainConfig(recompute_granularity=recomputation))
    more = counted(again, given, backward=True) - counted(plain, given, backward=True)
    found = step_flops(size, 4, frames=frames, words=WORDS, music_size=512, recomputation=recomputation)
    context = 4 * key_value_flops(size, WORDS) if recomputation == "full" else 0
    assert 0 < found.hardware - found.model <= more <= found.hardware - found.model + context


def test_the_published_sizes_by_hand():
    size = DIT_SIZES["stable-audio-open"]
    # Two operations a weight and position; attention's scores, and weights that see one position or the words, beside.
    assert forward_flops(size, 1024, 130) == pytest.approx(2.27e12, rel=0.01)
    assert key_value_flops(size, 130) == pytest.approx(7.4e9, rel=0.01)
    text2muq = TEXT2MUQ_SIZES["text2muq"]
    assert forward_flops(text2muq, 1, 77) - key_value_flops(text2muq, 77) == pytest.approx(0.475e9, rel=0.02)
    assert key_value_flops(text2muq, 77) == pytest.approx(5.17e9, rel=0.01)


def test_a_step_and_a_sample():
    size = DIT_SIZES["tiny"]
    wanted = 3 * 8 * (forward_flops(size, 16, 8) + condition_flops(size, 12))
    found = step_flops(size, 8, frames=16, words=5, music_size=12)
    assert found.model == found.hardware == wanted and found.formula == "flow"
    assert sampling_flops(size, 100, frames=16, tokens=8, guided=True) == 200 * forward_flops(size, 16, 8)
    text = TEXT2MUQ_SIZES["tiny"]
    once = key_value_flops(text, 5)
    assert sampling_flops(text, 50, frames=1, tokens=5, guided=False) == 50 * (forward_flops(text, 1, 5) - once) + once
