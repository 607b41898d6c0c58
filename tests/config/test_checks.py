"""Every contradiction between the fields of a run, the processes and the GPU is one sentence that says what
would work.
"""

import sys

import pytest
import torch

from megatron_music.config.checks import (
    COMPUTE_CAPABILITY,
    check_capability,
    check_gpu,
    check_world_size,
)
from megatron_music.config.errors import ConfigError
from megatron_music.config.load import load_run
from megatron_music.config.run import RunConfig
from megatron_music.parallel import distributed

VPP, PP = "parallel.virtual_pipeline_model_parallel_size", "parallel.pipeline_model_parallel_size"
TP, CP, SP = "parallel.tensor_model_parallel_size", "parallel.context_parallel_size", "parallel.sequence_parallel"
ZERO = "optimizer.use_distributed_optimizer"


def refusal_of(act) -> str:
    with pytest.raises(ConfigError) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence and ";" in sentence  # what is wrong; what would work
    return sentence


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([f"{TP}=8"], ["model.num_attention_heads 4", f"{TP} 8", "1, 2, 4"]),
        (["model.num_query_groups=2", f"{TP}=4"], ["model.num_query_groups 2", "1, 2"]),
        (["model.ffn_hidden_size=130", f"{TP}=4"], ["model.ffn_hidden_size 130", f"{TP} 4"]),
        ([f"{PP}=2", f"{VPP}=2"], ["a pipeline stage's 1 layer cannot", f"{VPP} 2", "divisible by 2 x 2"]),
        ([f"{VPP}=2"], [f"{VPP} is 2", f"{PP}=1", "no pipeline"]),
        ([f"{PP}=2", f"{VPP}=1"], [f"{VPP} is 1", "omit it"]),
        (["model.seq_length=63", f"{TP}=2", f"{SP}=true"], ["model.seq_length 63", "a multiple of 2"]),
        (["model.seq_length=62", f"{CP}=2"], ["model.seq_length 62", "a multiple of 4"]),
        (["model.seq_length=60", f"{CP}=2", f"{TP}=2", f"{SP}=true"], ["2 sequence-parallel", "a multiple of 8"]),
        (
            [f"{CP}=2", "data.reset_attention_mask=true"],
            ["data.reset_attention_mask is true", f"{CP} 2", "data.reset_attention_mask=false"],
        ),
        (["parallel.overlap_param_gather=true"], ["overlap_param_gather", f"{ZERO}=true"]),
        (
            ["parallel.overlap_param_gather=true", "parallel.overlap_grad_reduce=false", f"{ZERO}=true"],
            ["parallel.overlap_grad_reduce=false", "parallel.overlap_grad_reduce=true"],
        ),
        (["parallel.ddp_bucket_size=0"], ["parallel.ddp_bucket_size is 0", "1 or more"]),
        (
            ["train.recompute_granularity=full", "train.recompute_method=block", "train.recompute_num_layers=3"],
            ["train.recompute_num_layers 3", "(2 layers)", "use 1 to 2"],
        ),
    ],
)
def test_fields_that_contradict_each_other(overrides, words):
    sentence = refusal_of(lambda: load_run("tiny", overrides))
    assert [word for word in words if word not in sentence] == [], sentence


@pytest.mark.parametrize(
    ("world_size", "overrides", "words", "remedy"),
    [
        (6, [f"{TP}=4"], ["6 processes", "4 x 1", "a multiple of 4"], None),
        (
            4,
            [f"{TP}=2", f"{CP}=4"],
            ["4 processes", "tensor x pipeline x context", "2 x 1 x 4", "a multiple of 8"],
            None,
        ),
        (2, ["train.micro_batch_size=8"], ["global_batch_size 8", "8 x 2"], "train.global_batch_size=16"),
        (
            4,
            ["model.num_layers=4", f"{PP}=2", f"{VPP}=2", "train.micro_batch_size=4"],
            ["1 micro batches", f"{PP} 2", "a multiple of 16"],
            "train.global_batch_size=16",
        ),
    ],
)
def test_processes_that_do_not_fit(world_size, overrides, words, remedy):
    sentence = refusal_of(lambda: check_world_size(load_run("tiny", overrides), world_size))
    assert [word for word in words if word not in sentence] == [], sentence
    if remedy:
        check_world_size(load_run("tiny", [*overrides, remedy]), world_size)


def half() -> RunConfig:
    return load_run("tiny", ["train.bf16=true"])


@pytest.mark.parametrize("name", ["V100", "gpu:v100:4", "Tesla V100-SXM2-32GB", "Quadro RTX 6000", "t4"])
def test_bfloat16_is_refused_on_gpus_without_it(name):
    assert "train.bf16=false or use an A100" in refusal_of(lambda: check_gpu(half(), name))
    check_gpu(load_run("tiny"), name)


@pytest.mark.parametrize(
    "name", ["A100", "gpu:h100:8", "NVIDIA H200", "NVIDIA RTX 6000 Ada Generation", "L4", "unheard of"]
)
def test_bfloat16_is_taken_on_gpus_with_it(name):
    check_gpu(half(), name)


def test_the_gpu_itself_is_asked_where_the_run_starts():
    assert "compute capability 7.0" in refusal_of(lambda: check_capability(half(), (7, 0), "a card"))
    check_capability(half(), (8, 0), "a card")
    assert COMPUTE_CAPABILITY["V100"] < (8, 0) <= COMPUTE_CAPABILITY["A100"]


def test_context_parallelism_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)  # not there, whatever this machine has
    config = load_run("tiny", [f"{CP}=2"])
    sentence = refusal_of(lambda: distributed.start(config.parallel))
    assert "Transformer Engine" in sentence and f"{CP}=1" in sentence
    assert not torch.distributed.is_initialized()
