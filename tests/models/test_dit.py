"""Both text-to-music models on one process: sizes, masks, lengths, precision, what is refused."""

from dataclasses import replace

import pytest
import torch
from megatron.core.transformer.module import Float16Module

from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sizes import DIT_SIZES, TEXT2MUQ_SIZES
from megatron_music.config.sections import ParallelConfig, TrainConfig
from megatron_music.models.conditioners import build_conditioned_dit
from megatron_music.models.dit import build_dit
from megatron_music.models.text2muq import build_text2muq, time_features
from megatron_music.parallel import distributed


@pytest.fixture(autouse=True)
def one_process():
    distributed.start(ParallelConfig())
    distributed.seed_for_building(3)
    yield
    distributed.stop()


def counted(build, size):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(size, ParallelConfig()).parameters())


def test_the_published_shape_has_the_published_number_of_parameters():
    size = DIT_SIZES["stable-audio-open"]
    assert counted(build_dit, size) == size.parameter_count == 1_056_939_136


@pytest.mark.parametrize(("name", "number"), [("text2muq", 271_109_632), ("text2muq-wide", 271_044_096)])
def test_stage_one_has_271_million_parameters(name, number):
    size = TEXT2MUQ_SIZES[name]
    assert counted(build_text2muq, size) == size.parameter_count == number


def test_small_sizes_are_counted_too():
    assert counted(build_dit, DIT_SIZES["tiny"]) == DIT_SIZES["tiny"].parameter_count
    modulated = replace(DIT_SIZES["stable-audio-open"], global_conditioning="adaln")
    assert counted(build_dit, modulated) == modulated.parameter_count == 1_056_939_136 + 6 * 24 * 1536 + 7 * 1536 * 1537
    assert counted(build_text2muq, TEXT2MUQ_SIZES["tiny"]) == TEXT2MUQ_SIZES["tiny"].parameter_count


BUILDERS = {
    "dit": (build_dit, DIT_SIZES),
    "adaln": (build_dit, {"tiny": replace(DIT_SIZES["tiny"], global_conditioning="adaln")}),
    "conditioned": (build_conditioned_dit, DIT_SIZES),
    "text2muq": (build_text2muq, TEXT2MUQ_SIZES),
}


def built(which: str, dtype=torch.float32):
    build, sizes = BUILDERS[which]
    model = build(sizes["tiny"], ParallelConfig(), dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh layers hardly change what passes them
            parameter.mul_(1.5 if which == "adaln" else 3)  # scales multiply what was scaled before
    return model


def inputs_of(which: str, batch: int = 3, words: int = 5, frames: int = 7) -> tuple[torch.Tensor, dict]:
    random = torch.Generator().manual_seed(0)
    context = torch.randn(batch, words, 24, generator=random)
    if which == "conditioned":
        return torch.randn(batch, 8, frames, generator=random), {
            "sigma_B": torch.rand(batch, generator=random),
            "text_BLC": context,
            "keeps_BL": torch.arange(words).expand(batch, words) < torch.arange(1, batch + 1)[:, None],
            "music_BE": torch.nn.functional.normalize(torch.randn(batch, 512, generator=random)),
            "seconds_start_B": torch.arange(batch) * 20.0,
            "seconds_total_B": 100 + torch.arange(batch) * 47.5,
        }
    conditions = {"sigma_B": torch.rand(batch, generator=random), "context_BLC": context}
    if which in ("dit", "adaln"):
        conditions["global_BG"] = torch.randn(batch, 48, generator=random)
        return torch.randn(batch, 8, frames, generator=random), conditions
    return torch.randn(batch, 12, generator=random), conditions


MODELS = ["dit", "adaln", "text2muq"]


@pytest.mark.parametrize("which", MODELS)
@torch.no_grad()
def test_filling_among_the_words_changes_nothing(which):
    model = built(which)
    noisy, conditions = inputs_of(which)
    expected = model(noisy, **conditions)
    assert expected.shape == noisy.shape
    filled = conditions | {"context_BLC": torch.cat([conditions["context_BLC"], torch.full((3, 4, 24), 9.0)], dim=1)}
    keeps = torch.arange(9).expand(3, 9) < 5
    torch.testing.assert_close(model(noisy, keeps_BL=keeps, **filled), expected, rtol=1e-5, atol=1e-5)
    assert (model(noisy, **filled) - expected).abs().max() > 0.01


@pytest.mark.parametrize("which", [*MODELS, "conditioned"])
@torch.no_grad()
def test_every_condition_is_heard(which):
    model = built(which)
    noisy, conditions = inputs_of(which)
    expected = model(noisy, **conditions)
    for name, value in conditions.items():
        changed = model(noisy, **conditions | {name: value.roll(1, 0)})
        assert (changed - expected).abs().flatten(1).amax(1).min() > 1e-3, name


@pytest.mark.parametrize("which", [*MODELS, "conditioned"])
@torch.no_grad()
def test_samples_do_not_hear_each_other(which):
    model = built(which)
    noisy, conditions = inputs_of(which)
    together = model(noisy, **conditions)
    for row in range(3):
        alone = model(noisy[row : row + 1], **{name: value[row : row + 1] for name, value in conditions.items()})
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_no_words_and_no_music_are_a_condition_too():
    model = built("conditioned")
    noisy, conditions = inputs_of("conditioned")
    null = {name: torch.zeros_like(conditions[name]) for name in ("text_BLC", "keeps_BL", "music_BE")}
    found = model(noisy, **conditions | null)
    assert found.isfinite().all() and (found - model(noisy, **conditions)).abs().flatten(1).amax(1).min() > 1e-3
    # What stands for filling is not heard, with or without words.
    other = model(noisy, **conditions | null | {"text_BLC": conditions["text_BLC"]})
    assert torch.equal(found, other)


@torch.no_grad()
def test_seconds_are_told_apart_and_kept_within_their_range():
    model = built("conditioned")
    noisy, conditions = inputs_of("conditioned")

    def at(seconds):
        return model(noisy, **conditions | {"seconds_start_B": torch.full((3,), seconds)})

    assert (at(0.0) - at(1.0)).abs().max() > 1e-3
    assert torch.equal(at(512.0), at(9999.0)) and torch.equal(at(0.0), at(-5.0))


def test_a_size_without_room_for_seconds_is_refused():
    size = replace(DIT_SIZES["tiny"], global_size=20)
    with pytest.raises(ConfigError, match=r"global_size is 20, where .* set it to 48"):
        build_conditioned_dit(size, ParallelConfig())


@torch.no_grad()
def test_places_of_frames_matter_and_any_length_runs():
    model = built("dit")
    noisy, conditions = inputs_of("dit")
    turned = model(noisy.flip(2), **conditions).flip(2)
    assert (turned - model(noisy, **conditions)).abs().max() > 1e-3
    longer, conditions = inputs_of("dit", frames=40)
    assert model(longer, **conditions).shape == (3, 8, 40)


@pytest.mark.parametrize("which", MODELS)
def test_sigma_stays_float32_under_bfloat16(which):
    # In bfloat16 both are 1.
    model = built(which, torch.bfloat16)
    wrapped = Float16Module(model.config, model)
    noisy, conditions = inputs_of(which)
    outputs = [
        wrapped(noisy, **conditions | {"sigma_B": torch.full((3,), sigma)}).detach() for sigma in (0.9985, 0.9995)
    ]
    assert outputs[0].dtype == torch.float32 and outputs[0].isfinite().all()
    assert not torch.equal(*outputs)


def test_time_features_tell_sigmas_apart():
    features = time_features(torch.linspace(0, 1, 1001), 16)
    assert features.shape == (1001, 16)
    distances = torch.cdist(features, features) + 10 * torch.eye(1001)
    assert distances.min() > 1e-3


def test_recomputed_layers_give_the_same_gradients():
    gradients = []
    for train in (None, TrainConfig(recompute_granularity="full"), TrainConfig(recompute_granularity="selective")):
        distributed.seed_for_building(3)
        model = build_dit(DIT_SIZES["tiny"], ParallelConfig(), train=train).train()
        noisy, conditions = inputs_of("dit")
        keeps = torch.arange(5).expand(3, 5) < torch.tensor([[5], [2], [4]])
        model(noisy, keeps_BL=keeps, **conditions).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("parallel", "sentence"),
    [
        ({"tensor_model_parallel_size": 8}, "is 8, which does not divide the 12 heads for .* use 1, 2, 3, 4, 6, 12"),
        ({"tensor_model_parallel_size": 5}, "is 5, which does not divide the 24 attention heads"),
        ({"context_parallel_size": 2}, "context_parallel_size is 2"),
    ],
    ids=str,
)
def test_layouts_that_cannot_be_are_refused(parallel, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_dit(DIT_SIZES["stable-audio-open"], ParallelConfig(**parallel))
