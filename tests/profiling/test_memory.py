"""The memory of a rank by arithmetic, beside what real engines hold and what their backward passes wait for."""

import json
from pathlib import Path

import pytest
from published_layouts import TABLE_1
from tiny_gpt import launch, tiny_dataset, tiny_run

from megatron_music.cli.entry import main
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)
from megatron_music.profiling.memory import Stage, estimate_memory, fit, host_copy

WORKER = Path(__file__).parents[1] / "memory_worker.py"
TENSOR, SEQUENCE = "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"
PIPELINE, INTERLEAVED = "parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"
DISTRIBUTED = "optimizer.use_distributed_optimizer=true"
FULL, SELECTIVE = "train.recompute_granularity=full", "train.recompute_granularity=selective"
LLAMA = [
    "model.swiglu=true",
    "model.normalization=RMSNorm",
    "model.add_bias_linear=false",
    "model.share_embeddings_and_output_weights=false",
]
DEEP = "model.num_layers=4"
LAYOUTS = {
    1: [
        [],
        ["train.bf16=true"],
        [DEEP],
        [DEEP, SELECTIVE],
        [DEEP, FULL],
        [DEEP, FULL, "train.recompute_num_layers=2"],
        [DEEP, FULL, "train.recompute_method=block", "train.recompute_num_layers=3"],
        LLAMA,
        ["model.num_query_groups=2"],
        ["model.position_embedding_type=learned_absolute"],
        ["train.micro_batch_size=4", "model.hidden_size=128"],
    ],
    2: [
        [TENSOR],
        [TENSOR, SEQUENCE],
        [TENSOR, SEQUENCE, *LLAMA],
        [PIPELINE],
        [PIPELINE, *LLAMA],
        [PIPELINE, "train.global_batch_size=2"],
        [PIPELINE, INTERLEAVED, DEEP],
        [PIPELINE, DEEP, FULL],
        [DISTRIBUTED],
        [DISTRIBUTED, "train.bf16=true"],
    ],
}


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda size: f"{size} processes")
def measured(request, tmp_path_factory):
    """Each layout of a world size with what its ranks hold."""
    size = request.param
    folder = tmp_path_factory.mktemp(f"memory-{size}")
    data = tiny_dataset(folder / "data")
    (folder / "layouts.json").write_text(json.dumps(LAYOUTS[size]))
    launch(size, WORKER, folder)
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]
    return size, [(tiny_run(data, *overrides), found) for overrides, *found in zip(LAYOUTS[size], *ranks, strict=True)]


def test_it_is_what_is_held(measured):
    size, layouts = measured
    for run, ranks in layouts:
        stages = estimate_memory(run, size)
        assert len(stages) == run.parallel.pipeline_model_parallel_size
        for rank, held in enumerate(ranks):
            stage = stages[rank if len(stages) == size else 0]
            assert stage.parameters == held["parameters"], run
            assert stage.weights == held["weights"] and stage.gradients == held["gradients"], run
            # Adam's count of steps, 4 bytes a parameter tensor, and the rounding of a part to whole elements.
            assert 0 <= held["optimizer"] - stage.optimizer < 500, run
            if not run.train.bf16:  # a CPU without bf16 multiplies in float32, and keeps that
                # Token ids, masks and counts of the loss, some bytes a token, are not counted.
                assert 0.985 < stage.activations / held["activations"] <= 1, (run, rank, stage.activations, held)


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: f"h{row[0]}")
def test_table_1_fits(row):
    hidden, layers, heads, tensor, pipeline, virtual, micro, gpus, batch = row
    run = RunConfig(
        ModelConfig(
            num_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            seq_length=2048,
            vocab_size=51200,
            position_embedding_type="learned_absolute",
        ),
        parallel=ParallelConfig(tensor, pipeline, virtual if virtual > 1 else None),
        optimizer=OptimizerConfig(),
        train=TrainConfig(micro_batch_size=micro, global_batch_size=batch, bf16=True, recompute_granularity="full"),
    )
    stages = estimate_memory(run, gpus)
    assert fit(stages, 80).fits, stages
    # Each parameter takes 18 bytes, and lies on one rank but for the norms, some biases and a second embedding.
    held = sum(stage.parameters for stage in stages) * tensor
    assert 1 <= held / run.model.parameter_count < 1.09


def test_without_recomputation_the_largest_does_not():
    run = RunConfig(
        ModelConfig(num_layers=128, hidden_size=25600, num_attention_heads=160, seq_length=2048, vocab_size=51200),
        parallel=ParallelConfig(8, 64),
        train=TrainConfig(micro_batch_size=1, global_batch_size=3072, bf16=True),
    )
    assert fit(estimate_memory(run, 3072), 80).fits is False


def test_a_fit_leaves_room():
    stages = [Stage(0, 1, 1e9, 1e9, 1e9, 1e9), Stage(1, 1, 1e9, 1e9, 1e9, 6e9)]
    assert [fit(stages, gb).fits for gb in (None, 8, 9.5, 11)] == [None, False, False, True]
    assert "at most 9.00 GB, on stage 1, 95% of 9.5 GB: it is too close to fit" in fit(stages, 9.5).sentence


def test_the_command(capsys):
    sizes = [
        "model.size=6.7b",
        "train.global_batch_size=32",
        "train.bf16=true",
        "parallel.pipeline_model_parallel_size=4",
    ]
    assert main(["memory", "article", *sizes, "--num-gpus", "8", "--gpu", "a100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["stages"]) == 4 and found["gpu_memory_gb"] == 80 and isinstance(found["fits"], bool)
    assert found["share"] == max(stage["total"] for stage in found["stages"]) / 80e9
    assert main(["memory", "article", "--gpu", "v100"]) == 0
    told = capsys.readouterr().out
    assert "of 32 GB: it fits" in told and told.splitlines()[0].split()[:2] == ["stage", "parameters"]
    assert main(["memory", "tiny", "--csv"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "stage,parameters,weights,gradients,optimizer,activations,total"


@pytest.mark.parametrize(
    ("gpu", "gb"),
    [
        ("NVIDIA A100-SXM4-40GB", 40),
        ("a100-40gb", 40),
        ("A100 80GB", 80),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("a100", 80),
        ("NVIDIA A800-SXM4-40GB", 40),
        ("Tesla V100-SXM2-16GB", 16),
        ("V100-16GB", 16),
        ("Tesla V100-SXM2-32GB", 32),
        ("v100", 32),
        ("v100-32gb", 32),
    ],
)
def test_a_gpu_has_the_memory_that_its_name_says(capsys, gpu, gb):
    assert main(["memory", "tiny", "--gpu", gpu, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu_memory_gb"] == gb


def test_a_public_run_of_megatron_lm_agrees_as_far_as_its_log_can_say():
    """The figures of docs/profiling.md, in MiB: a 27.5B run with Transformer Engine, TP 4, PP 2, after its first
    iteration.

    Its peak is that of a float32 copy of the weights, made after the step. In the passes before it Adam's moments were
    not there yet.
    """
    allocated, peaks = {0: 60348.2529, 1: 60643.3477}, {0: 73750.2554, 1: 74045.3496}
    shape = ModelConfig(
        num_layers=56,
        hidden_size=6144,
        num_attention_heads=96,
        num_query_groups=24,
        ffn_hidden_size=21504,
        seq_length=8192,
        normalization="RMSNorm",
        swiglu=True,
        add_bias_linear=False,
        share_embeddings_and_output_weights=False,
        vocab_size=50688,
    )
    run = RunConfig(
        shape,
        parallel=ParallelConfig(tensor_model_parallel_size=4, pipeline_model_parallel_size=2, sequence_parallel=True),
        train=TrainConfig(bf16=True, global_batch_size=512, recompute_granularity="selective"),
    )
    for transformer_engine in (False, True):
        for stage in estimate_memory(run, 8, transformer_engine=transformer_engine):
            here, peak = allocated[stage.stage], peaks[stage.stage]
            assert stage.at_rest / 2**20 == pytest.approx(here, rel=0.006)
            assert 4 * stage.parameters / 2**20 == pytest.approx(peak - here, rel=1e-4)
            assert stage.activations / 2**20 < peak - (here - 8 * stage.parameters / 2**20)


def test_norms_of_transformer_engine_keep_one_tensor_less(capsys):
    """RMSNorm alone: a micro batch of 2 x 64 tokens, 4 layers of two norms and the last one, in bf16."""
    run = RunConfig(
        ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=2, seq_length=64, normalization="RMSNorm"),
        train=TrainConfig(micro_batch_size=2, global_batch_size=2, bf16=True),
    )
    (own,), (engine,) = estimate_memory(run, 1), estimate_memory(run, 1, transformer_engine=True)
    assert own.at_rest == engine.at_rest and own.activations - engine.activations == 2 * 2 * 64 * 32 * (2 * 4 + 1)
    words = ["memory", "tiny", *LLAMA]
    assert main(words) == 0
    assert "with Transformer Engine's layers, by what their code keeps and not measured:" in capsys.readouterr().out
    assert main(["memory", "tiny"]) == 0
    assert "Transformer Engine" not in capsys.readouterr().out, "its LayerNorm keeps what ours does"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tiny", "train.bf16=true", "--gpu", "v100"], "train.bf16 is true on v100, whose compute capability 7.0"),
        (["tiny", "train.bf16=true", "--gpu", "Tesla V100-SXM2-16GB"], "train.bf16 is true on Tesla V100-SXM2-16GB"),
        (["nothing"], "recipe 'nothing' is neither"),
        (["tiny", "--num-gpus", "3"], "train.global_batch_size 8 is not a multiple of"),
        (["tiny", "--num-gpus", "0"], "--num-gpus is 0"),
        (["tiny", "--gpu", "h900"], "the memory of 'h900' is not known"),
        (["tiny", "--gpu-memory", "nan"], "--gpu-memory is nan"),
        (["demo-dit"], "memory is estimated of GPTs alone"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, capsys):
    assert main(["memory", *arguments]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "overrides", [[], [DISTRIBUTED], ["train.bf16=true"], ["train.bf16=true", DISTRIBUTED]], ids=str
)
def test_the_host_memory_of_a_save_beside_training_is_one_share_of_the_state(overrides):
    run = tiny_run("data", *overrides)
    stages = estimate_memory(run, 4)
    alone = 4 * host_copy(stages, run, 4)
    assert alone == host_copy(stages, run, 1) == stages[0].weights + estimate_memory(run, 1)[0].optimizer


def test_memory_says_what_saving_and_resuming_take(capsys):
    assert main(["memory", "article", "train.global_batch_size=32", "--num-gpus", "8"]) == 0
    assert (
        "resuming needs no more than that; a save with checkpoint.async_save=true takes about"
        in capsys.readouterr().out
    )
