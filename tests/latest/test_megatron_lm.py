"""The door of Megatron-LM, against the arguments, tokenizers and data of ``megatron.training`` in megatron-core's
wheel.

``pretrain_gpt.py`` itself is in no wheel: what it does with these arguments has not run here.
"""

from pathlib import Path

import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import (
    BlendedMegatronDatasetBuilder,
)
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.core.transformer.spec_utils import import_module
from megatron.training.argument_utils import core_transformer_config_from_args
from megatron.training.arguments import parse_args, validate_args
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.config.errors import ConfigError
from megatron_music.config.load import load_run, recipe_names
from megatron_music.config.run import RunConfig
from megatron_music.hosts.megatron_lm import pretrain_gpt_arguments, tokenizer_arguments
from megatron_music.models.gpt import transformer_config
from megatron_music.models.specs import gpt_layer
from megatron_music.parallel.backends import has_gradient_fusion
from megatron_music.tokens import vocabulary


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def parsed(monkeypatch, arguments: list[str], world_size: int = 1):
    monkeypatch.setattr("sys.argv", ["pretrain_gpt.py", *arguments])
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    return parse_args()


SAME = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "normalization",
    "gated_linear_unit",
    "activation_func",
    "add_bias_linear",
    "attention_dropout",
    "hidden_dropout",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "sequence_parallel",
    "params_dtype",
    "calculate_per_token_loss",
    "init_method_std",
    "layernorm_epsilon",
)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "model.swiglu=true",
            "model.add_bias_linear=false",
            "model.normalization=RMSNorm",
            "model.num_query_groups=2",
            "model.share_embeddings_and_output_weights=false",
            "parallel.tensor_model_parallel_size=2",
            "parallel.sequence_parallel=true",
            "optimizer.use_distributed_optimizer=true",
            "data.reset_attention_mask=true",
        ],
    ],
)
def test_megatron_lm_takes_the_arguments_for_our_model(monkeypatch, data, overrides):
    import torch

    run = load_run("article", [f"data.path={data}", "train.bf16=true", *overrides])
    tensor = run.parallel.tensor_model_parallel_size
    arguments = parsed(monkeypatch, pretrain_gpt_arguments(run), world_size=tensor)
    # What Megatron-LM asks of the GPU and the environment; examples/megatron_lm/pretrain.sh sets the second.
    monkeypatch.setattr("megatron.training.arguments.get_device_arch_version", lambda: 9)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    validate_args(arguments)
    found = core_transformer_config_from_args(arguments)
    ours = transformer_config(run.model, run.parallel, torch.bfloat16)
    assert {name: getattr(found, name) for name in SAME} == {name: getattr(ours, name) for name in SAME}
    assert import_module(arguments.spec) is gpt_layer
    assert (arguments.seq_length, arguments.position_embedding_type) == (2048, "learned_absolute")
    assert arguments.untie_embeddings_and_output_weights is not run.model.share_embeddings_and_output_weights
    assert (arguments.lr, arguments.train_iters, arguments.global_batch_size) == (3e-4, 20000, 16)
    assert arguments.create_attention_mask_in_dataloader is run.data.reset_attention_mask
    validate_args(plain := parsed(monkeypatch, pretrain_gpt_arguments(run, local=False), world_size=tensor))
    assert plain.spec is None and plain.transformer_impl == "transformer_engine"
    # Megatron-LM's default, under which a model without apex's extension cannot be built.
    assert plain.gradient_accumulation_fusion is has_gradient_fusion()
    build_tokenizer(arguments)
    assert arguments.padded_vocab_size == vocabulary.SIZE


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if isinstance(load_run(name), RunConfig)])
def test_every_recipe_is_a_model_that_megatron_lm_can_build_without_transformer_engine(monkeypatch, data, recipe):
    """Its defaults fuse RoPE, which Transformer Engine alone can."""
    monkeypatch.setattr("megatron.training.arguments.get_device_arch_version", lambda: 9)
    arguments = parsed(monkeypatch, pretrain_gpt_arguments(load_run(recipe, [f"data.path={data}"])))
    validate_args(arguments)
    assert core_transformer_config_from_args(arguments).apply_rope_fusion is False


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_the_attention_backend_goes_with_transformer_engines_layers(monkeypatch, data, backend):
    run = load_run("article", [f"data.path={data}", f"model.attention_backend={backend}"])
    validate_args(arguments := parsed(monkeypatch, pretrain_gpt_arguments(run, local=False)))
    assert arguments.attention_backend.name == backend


def test_an_attention_backend_that_the_layers_do_not_have_is_refused(data):
    for backend, local, remedy in (("flash", True, "local=False"), ("local", False, "for our own layers")):
        run = load_run("article", [f"data.path={data}", f"model.attention_backend={backend}"])
        with pytest.raises(ConfigError, match=remedy):
            pretrain_gpt_arguments(run, local=local)


@pytest.mark.parametrize("route", ["huggingface", "null"])
def test_its_tokenizer_has_our_ids_and_its_dataset_our_documents(monkeypatch, data, route):
    run = tiny_run(data)
    arguments = parsed(monkeypatch, pretrain_gpt_arguments(run, tokenizer=route))
    validate_args(arguments)
    tokenizer = build_tokenizer(arguments)
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pad) == (768, vocabulary.DOCUMENT_END, vocabulary.PAD)
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=64,
        blend_per_split=[([arguments.train_data_path[0]], None), None, None],
        tokenizer=tokenizer,
        path_to_cache=arguments.data_cache_path,
        reset_position_ids=arguments.reset_position_ids,
        reset_attention_mask=arguments.reset_attention_mask,
        eod_mask_loss=arguments.eod_mask_loss,
        create_attention_mask=arguments.create_attention_mask_in_dataloader,
    )
    train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [8, 0, 0], lambda: True, config).build()
    for document in train.dataset[:10]:
        assert document[-1] == tokenizer.eod and (document[:-1] != tokenizer.eod).all()
    ends = 0
    for sample in (train[index] for index in range(8)):
        is_end = sample["tokens"] == vocabulary.DOCUMENT_END
        ends += int(is_end.sum())
        assert (sample["loss_mask"] == 0).equal(is_end)
    assert ends > 0


def test_numbers_alone_cannot_end_a_document_of_merged_tokens_in_core_0_16(tmp_path, data):
    from merged_tokens import BPE, MERGED

    from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder

    assert tokenizer_arguments(data / "tokenizer", "null-0.16")[-1] == "767"
    write_tokenizer_folder(tmp_path, MERGED, BPE)
    with pytest.raises(ConfigError, match="use huggingface"):
        tokenizer_arguments(tmp_path, "null-0.16")
    with pytest.raises(ConfigError, match="use one of huggingface, null"):
        tokenizer_arguments(tmp_path, "sentencepiece")


def test_what_megatron_lm_has_no_flag_for_is_refused(data):
    with pytest.raises(ConfigError, match=r"data.path is not set"):
        pretrain_gpt_arguments(load_run("tiny"))
    with pytest.raises(ConfigError, match="names 2 folders"):
        pretrain_gpt_arguments(load_run("tiny", [f"data.path=[1.0, {data}, 2.0, {data}]"]))
