"""A rehearsed step beside real ones: on two and four processes of gloo, the same messages, memory and operations."""

import json
from pathlib import Path

import flow_worker
import layouts_worker
import parity_worker
import pytest
from rehearsal_worker import run_of
from tiny_gpt import launch, tiny_dataset, tiny_run
from tiny_latents import RECIPE, tiny_latents

from megatron_music.config.load import load_run
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import ModelConfig, ParallelConfig, TrainConfig
from megatron_music.parallel import cpu_backend
from megatron_music.profiling.flops import step_flops
from megatron_music.rehearsal.job import rehearse, with_facts
from megatron_music.rehearsal.ledger import AT_REST
from megatron_music.rehearsal.one_rank import Rehearsed, rehearse_rank
from megatron_music.rehearsal.report import operations
from megatron_music.rehearsal.roles import role_of
from megatron_music.rehearsal.waits import Gpu

WORKER = Path(__file__).parents[1] / "rehearsal_worker.py"


FLOW_MODELS = {
    "dit": ["model.conditions=stable-audio"],
    "conditioned": [],
    "deep": ["model.num_layers=4"],
    "adaln": ["model.global_conditioning=adaln"],
    "text2muq": ["model.kind=text2muq"],
}


def overrides_of(model: str, layout, models: dict) -> list[str]:
    (tensor, pipeline, *_), sequence_parallel, distributed_optimizer, *others = layout
    overlaps = any(name in others for name in (parity_worker.OVERLAP, parity_worker.OVERLAP_BOTH))
    return [
        f"parallel.tensor_model_parallel_size={tensor}",
        f"parallel.pipeline_model_parallel_size={pipeline}",
        f"parallel.sequence_parallel={sequence_parallel}",
        f"optimizer.use_distributed_optimizer={distributed_optimizer}",
        *models[model],
        *others,
        f"parallel.overlap_grad_reduce={overlaps}",  # whose default differs between a GPU and a CPU
    ]


# Every layout of docs/layouts.md and of test_flow_parity.py on two and four processes.
CASES = {
    size: {
        "gpt": [
            overrides_of(*case, parity_worker.MODELS)
            for case in [*parity_worker.LAYOUTS[size], *(layouts_worker.CASES if size == 2 else [])]
        ],
        "flow": [overrides_of(*case, FLOW_MODELS) for case in flow_worker.LAYOUTS[size]],
    }
    for size in (2, 4)
}
EACH = [
    pytest.param(size, kind, number, id=f"{size} {kind} {' '.join(case)}")
    for size, kinds in CASES.items()
    for kind, cases in kinds.items()
    for number, case in enumerate(cases)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal")
    tiny_dataset(folder / "data")
    tiny_latents(folder / "latents")
    (folder / "flow.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def real(folder) -> dict:
    """What each rank did in a real step of each case, by number of processes and kind of model."""
    found = {}
    for size, cases in CASES.items():
        (folder / "cases.json").write_text(json.dumps(cases))
        launch(size, WORKER, folder)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(size)]
        found[size] = {kind: list(zip(*(rank[kind] for rank in ranks), strict=True)) for kind in cases}
    return found


def rehearsed(size: int, rank: int, *overrides: str, whole: bool = False) -> Rehearsed:
    run = tiny_run("nowhere", *overrides)
    return rehearse_rank(run, role_of(rank, run.parallel, size), size, Gpu(), whole=whole)


@pytest.mark.parametrize(("size", "kind", "number"), EACH)
def test_a_rehearsed_step_is_the_real_one(folder, real, size, kind, number):
    case = CASES[size][kind][number]
    run, words = with_facts(run_of(folder, kind, case))
    for rank, expected in enumerate(real[size][kind][number]):
        found = rehearse_rank(run, role_of(rank, run.parallel, size), size, Gpu(as_cpu=True), words=words)
        messages = [[*message[:2], list(message.shape), *message[3:]] for message in found.messages()]
        assert messages == expected["messages"]
        assert sum(found.flops().values()) == expected["flops"] > 0
        assert found.parameters == expected["parameters"] and found.without_gradient == expected["missing"] == []
        assert {name: found.memory[name] for name in AT_REST} == {name: expected["memory"][name] for name in AT_REST}
        if "train.bf16=true" in case and not cpu_backend._multiplies_bfloat16():
            continue  # such a CPU multiplies in float32, and keeps that
        assert found.peak.num_bytes == pytest.approx(expected["peak"], rel=0.03)
        # A message that gloo is still sending holds its tensor a little longer.
        assert found.memory["activations"] == pytest.approx(expected["memory"]["activations"], rel=0.06)


STEADY = ["train.global_batch_size=64", "train.micro_batch_size=1", "model.num_layers=4"]


@pytest.mark.parametrize(
    ("size", "overrides"),
    [
        (1, []),
        (2, ["optimizer.use_distributed_optimizer=true", "parallel.overlap_param_gather=true"]),
        (2, ["parallel.pipeline_model_parallel_size=2"]),
        (4, ["parallel.pipeline_model_parallel_size=4", "train.recompute_granularity=full"]),
        (
            4,
            [
                "parallel.pipeline_model_parallel_size=2",
                parity_worker.INTERLEAVED,
                "parallel.tensor_model_parallel_size=2",
            ],
        ),
        (
            4,
            [
                "parallel.pipeline_model_parallel_size=2",
                parity_worker.INTERLEAVED,
                parity_worker.OVERLAP_BOTH,
                "optimizer.use_distributed_optimizer=true",
            ],
        ),
    ],
    ids=str,
)
def test_the_steady_state_stands_for_the_whole_step(size, overrides):
    for rank in range(size):
        short, whole = (rehearsed(size, rank, *STEADY, *overrides, whole=whole) for whole in (False, True))
        assert short.repeated[2] > 1 and len(short.segments) < len(whole.segments)
        assert short.messages() == whole.messages()
        assert short.flops() == whole.flops()
        assert sum(times for _, times in short.waits()) == len(whole.waits())
        # Of each micro batch the loss stays, a few bytes.
        assert short.memory == pytest.approx(whole.memory, rel=5e-3)
        assert short.peak.num_bytes == pytest.approx(whole.peak.num_bytes, rel=5e-3)


@pytest.mark.parametrize("recomputation", [None, "selective", "full"])
def test_the_operations_are_those_of_the_formula(recomputation):
    sizes = [
        "model.size=1.3b",
        "train.bf16=true",
        "train.global_batch_size=16",
        "parallel.tensor_model_parallel_size=2",
        "parallel.pipeline_model_parallel_size=2",
    ]
    run = load_run("article", [*sizes, *([f"train.recompute_granularity={recomputation}"] if recomputation else [])])
    found = operations(rehearse(run, 8, workers=1))
    expected = step_flops(run.model, 16, recomputation=recomputation or "none")
    assert found.model == found.formula == expected.model
    assert found.hardware == pytest.approx(expected.hardware, rel=1e-12)


def test_a_public_run_of_megatron_lm_holds_what_its_log_says():
    """As in test_memory.py, in MiB: 27.5 billion parameters, TP 4, PP 2; 63.28 and 63.59 GB after its first
    iteration.
    """
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
    allocated, peaks = (60348.2529, 60643.3477), (73750.2554, 74045.3496)
    for rank in rehearse(run, 8, ranks=[0, 4], workers=1).ranks:
        here, peak = allocated[rank.role.pipeline], peaks[rank.role.pipeline]
        at_rest = sum(rank.memory[name] for name in AT_REST) / 2**20
        assert at_rest == pytest.approx(here, rel=0.006)
        assert rank.memory["activations"] / 2**20 < peak - (here - 8 * rank.parameters / 2**20)
