"""`rehearse` and what builds on it: findings, errors with their rank, page, trace, `preflight --rehearse`, `predict
--rehearse`.
"""

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from running import wait_until
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.cli.entry import main
from megatron_music.config.load import load_run
from megatron_music.parallel import distributed
from megatron_music.profiling.flops import forward_flops
from megatron_music.profiling.predict import CLUSTERS, FITTED
from megatron_music.rehearsal import batches
from megatron_music.rehearsal.checks import check
from megatron_music.rehearsal.job import Job, RankFailed, rehearse
from megatron_music.rehearsal.prediction import predict_from
from megatron_music.rehearsal.roles import distinct_roles, rank_at, role_of
from megatron_music.reports.findings import OK, WRONG
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.state import sharded_state

TRAIN = str(Path(__file__).parents[2] / "launch" / "train.sbatch")
PIPELINE = "parallel.pipeline_model_parallel_size=2"


@pytest.fixture(scope="module")
def job() -> Job:
    return rehearse(tiny_run("nowhere", PIPELINE, "optimizer.use_distributed_optimizer=true"), 4, workers=1)


def with_message(job: Job, place: int, operation: str, **changes) -> Job:
    """The job with its first message of a kind, on the rank at ``place``, changed."""
    ranks = list(job.ranks)
    segments = [replace(segment, messages=list(segment.messages)) for segment in ranks[place].segments]
    segment, number = next(
        (s, n) for s in segments for n, sent in enumerate(s.messages) if sent.message.operation == operation
    )
    sent = segment.messages[number]
    segment.messages[number] = sent._replace(message=sent.message._replace(**changes))
    ranks[place] = replace(ranks[place], segments=segments)
    return job._replace(ranks=ranks)


def wrong(job: Job) -> list[str]:
    return [finding.what for finding in check(job) if finding.status == WRONG]


def test_tensors_beyond_the_first_ten_are_counted(job):
    first = replace(job.ranks[0], without_gradient=[f"layer {number}" for number in range(12)], left_on_cpu=["mask"])
    found = wrong(job._replace(ranks=[first, *job.ranks[1:]]))
    assert found[0] == "layer 0 gets no gradient" and found[10:] == [
        "2 more, of which each gets no gradient",
        "mask is on the CPU",
    ]


def test_a_process_that_is_killed_is_one_sentence():
    def kill() -> None:
        wait_until(multiprocessing.active_children)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    run = tiny_run(
        "nowhere", "parallel.pipeline_model_parallel_size=4", "model.num_layers=4", "train.global_batch_size=16"
    )
    with pytest.raises(
        RankFailed,
        match="a process that rehearses a rank was killed, mostly for want of memory; use fewer than --workers 2",
    ):
        rehearse(run, 8, workers=2)
    killer.join()


def test_roles_are_the_stages_and_their_edges():
    run = tiny_run(
        "nowhere", PIPELINE, "parallel.tensor_model_parallel_size=2", "model.num_layers=4", "train.global_batch_size=16"
    )
    roles = distinct_roles(run.parallel, 16)
    assert [role.rank for role in roles] == [0, 1, 6, 8, 9, 14]
    for rank in range(16):
        role = role_of(rank, run.parallel, 16)
        assert rank_at(run.parallel, 16, tensor=role.tensor, data=role.data, pipeline=role.pipeline) == rank


def test_a_sound_job_has_nothing_wrong(job):
    assert [finding.status for finding in check(job)] == [OK] * 5


def test_a_send_that_its_receiver_does_not_wait_for_is_found(job):
    (what,) = wrong(with_message(job, 0, "send", dtype="bfloat16"))
    assert what.startswith(
        "rank 0 sends rank 2 what it does not wait for: number 1 is a message of bfloat16 [64, 2, 64] here and"
    )


def test_ranks_of_a_group_that_start_other_collectives_are_found(job):
    (what,) = wrong(with_message(job, 1, "reduce_scatter", shape=(7,)))
    assert what.startswith("rank 0 and rank 1 start other collectives: number 1 is reduce_scatter of float32 [")


def test_a_gpu_without_room_is_found(job):
    (what,) = wrong(job._replace(gpu_memory_gb=job.ranks[0].peak.num_bytes / 1e9))
    assert "100% of the" in what


def with_unused_parameter(monkeypatch) -> None:
    build = batches.build_gpt_model

    def build_with_more(*args, **kwargs):
        model = build(*args, **kwargs)
        model.unused = torch.nn.Parameter(torch.zeros(3, device="cuda"))
        return model

    monkeypatch.setattr(batches, "build_gpt_model", build_with_more)


def test_a_parameter_that_no_backward_pass_reaches_is_found(monkeypatch):
    with_unused_parameter(monkeypatch)
    found = rehearse(tiny_run("nowhere", "parallel.overlap_grad_reduce=false"), 1, workers=1)
    assert wrong(found) == ["unused gets no gradient"]


def test_an_error_of_the_cluster_comes_with_its_rank(monkeypatch):
    with_unused_parameter(monkeypatch)
    with pytest.raises(
        RankFailed,
        match=r"^rank 1 \(pipeline 0, tensor 0, data 1\): AssertionError: assert len\(.*param_and_grad_buffer.py:\d+\)",
    ):
        rehearse(tiny_run("nowhere"), 2, ranks=[1], workers=1)


def test_a_batch_left_on_the_cpu_is_the_error_of_a_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "to_device", dict)
    with pytest.raises(
        RankFailed,
        match=r"^rank 0 \(.*\): RuntimeError: Expected all tensors to be on the same device, .* cuda:0 and cpu!",
    ):
        rehearse(tiny_run("nowhere"), 1, workers=1)


def test_nothing_of_the_stand_in_is_left(job):
    assert not torch.cuda.is_available() and not torch.distributed.is_initialized()
    assert torch.ones(2).sum().item() == 2.0


def test_a_save_writes_what_a_real_one_does(tmp_path):
    overrides = ["optimizer.use_distributed_optimizer=true", "train.bf16=true"]
    (rank,) = rehearse(tiny_run("nowhere", *overrides), 1, workers=1).ranks
    run = tiny_run(tiny_dataset(tmp_path / "data"), *overrides)
    distributed.start(run.parallel)
    try:
        state = sharded_state(Engine(run, gpt_task(run)))
        expected = sum(
            shard.data.nbytes for kinds in state["optimizer"].values() for shards in kinds.values() for shard in shards
        )
        expected += sum(shard.data.nbytes for shards in state["model"].values() for shard in shards)
    finally:
        distributed.stop()
    assert 0 <= rank.saving.written - expected < 6000  # the generators' states
    assert (
        rank.saving.gpu_of_resume < 1000
        and rank.saving.host_of_save < rank.saving.host_of_async_save == rank.saving.written
    )


def test_the_command_prints_tables_and_json(capsys):
    words = ["rehearse", "tiny", "--num-gpus", "2", "--rank", "1", "--gpu", "a100"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0].split()[:5] == ["rank", "pipeline", "tensor", "data", "parameters"]
    assert "the formula mcore gives" in told and "ok    1 rank: every parameter got a gradient" in told
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (rank,) = found["ranks"]
    assert rank["rank"] == 1 and found["flops"]["model"] == found["flops"]["formula"] and found["gpu_memory_gb"] == 80
    assert (
        rank["memory_bytes"]["peak"]
        == sum(rank["peak"]["by_category"].values())
        == sum(row["bytes"] for row in rank["peak"]["by_holder"])
    )
    assert {row["operation"] for row in rank["messages"]} >= {"all_reduce"} and rank["waits_and_copies"]
    assert main([*words, "--gpu-memory", "0.001", "--json"]) == 2
    assert [finding["status"] for finding in json.loads(capsys.readouterr().out)["findings"]].count("wrong") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--num-gpus", "3"], "train.global_batch_size 8 is not a multiple of"),
        (["--num-gpus", "2", "--rank", "2"], "rank 2 is outside 0..1"),
        (["--num-gpus", "2", "--gpu", "v100", "train.bf16=true"], "has no bfloat16"),
        (
            ["--num-gpus", "2", "parallel.context_parallel_size=2"],
            "rank 0 (pipeline 0, tensor 0, data 0): parallel.context_parallel_size is 2",
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(capsys, words, sentence):
    assert main(["rehearse", "tiny", *words, "--workers", "1"]) == 2
    assert sentence in capsys.readouterr().err


def test_of_ranks_that_fail_at_once_in_several_processes_the_first_is_named(capsys):
    assert main(["rehearse", "tiny", "--num-gpus", "2", "parallel.context_parallel_size=2", "--workers", "2"]) == 2
    assert (
        "megatron-music: rank 0 (pipeline 0, tensor 0, data 0): parallel.context_parallel_size is 2"
        in capsys.readouterr().err
    )


def test_the_page_and_the_trace_show_every_rank(tmp_path, capsys):
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    words = [
        "rehearse",
        "tiny",
        PIPELINE,
        "--num-gpus",
        "2",
        "--workers",
        "1",
        "--html",
        str(page),
        "--trace",
        str(trace),
    ]
    assert main(words) == 0
    text = page.read_text()
    assert text.count('<svg class="memory"') == text.count('<div class="bar"') == 2 and "http" not in text
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    assert {event["name"] for event in events} >= {
        "forward 1",
        "backward",
        "update",
        "memory in GB",
        "nccl send (pipeline, 32,768 bytes)",
    }
    capsys.readouterr()
    assert main(["trace", str(trace), "--json"]) == 0
    (share,) = json.loads(capsys.readouterr().out)["ranks"]
    assert share["gemm"] > 0 and share["communication"] > 0 and share["attention"] > 0


def test_preflight_rehearses_the_first_step(capsys, tmp_path):
    data = tiny_dataset(tmp_path / "data")
    job = [
        "sbatch",
        "--nodes=1",
        "--ntasks-per-node=2",
        "--gres=gpu:2",
        TRAIN,
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
    ]
    main(["preflight", *job, "--rehearse", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert any(finding["what"] == "every parameter got a gradient" and finding["status"] == "ok" for finding in found)
    main(["preflight", *job, "--json"])
    assert "gradient" not in capsys.readouterr().out


def test_predict_takes_what_was_counted(job, capsys):
    run, cluster = job.run, CLUSTERS["h100"]
    found = predict_from(job, cluster)
    layers, _, logits = forward_flops(run.model, causal=True)
    of_stage = 3 * layers / 2 * run.train.global_batch_size / 2  # of two stages, of two data-parallel ranks
    rate = cluster.precision(run).tflops * 1e12 * FITTED.products
    assert found.products == pytest.approx(of_stage / rate)
    micro_batches = job.ranks[0].num_microbatches
    head = found.output_layer * rate * micro_batches
    assert head > 3 * logits * run.train.global_batch_size / 2  # and its memory traffic
    parameters = job.ranks[0].parameters
    assert found.gradients == pytest.approx((4 + 4) * parameters / 2 / (cluster.in_node * FITTED.in_node), rel=0.01)
    assert main(["predict", "tiny", "--num-gpus", "1", "--gpu", "h100", "--rehearse", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["seconds"] > 0 and counted["rows"][0]["spent_on"] == "products"


def test_a_job_of_a_thousand_gpus_is_one_of_175_billion_parameters():
    sizes = [
        "model.size=custom",
        "model.num_layers=96",
        "model.hidden_size=12288",
        "model.num_attention_heads=96",
        "model.seq_length=2048",
        "model.vocab_size=51200",
        "train.bf16=true",
        "train.global_batch_size=1536",
        "train.micro_batch_size=1",
        "parallel.sequence_parallel=true",
        "parallel.tensor_model_parallel_size=8",
        "parallel.pipeline_model_parallel_size=16",
        "optimizer.use_distributed_optimizer=true",
        "train.recompute_granularity=selective",
    ]
    run = load_run("article", sizes)
    assert len(distinct_roles(run.parallel, 1024)) == 20
    (rank,) = rehearse(run, 1024, ranks=[1023], workers=1).ranks
    assert rank.num_microbatches == 192 and len(rank.segments) < 25
    layers, attention, logits = forward_flops(run.model, causal=True)
    expected = (3 * (layers / 16 + logits) + attention / 16) / 8 * 192
    assert sum(rank.flops().values()) == pytest.approx(expected, rel=1e-12)
