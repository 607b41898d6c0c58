"""Traces with known answers, as Chrome's JSON and as nsys's sqlite of either generation, and a real one of
torch.profiler.
"""

import gzip
import json
import os
import re
import sqlite3
import subprocess
import sys
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from contrast import VISIONS, contrast, distance, schemes
from hypothesis import given
from hypothesis import strategies as st
from page_reader import Reader
from tiny_gpt import launch, tiny_dataset

from megatron_music.cli.entry import main
from megatron_music.profiling.intervals import innermost, length, overlap, union
from megatron_music.profiling.kernel_kinds import KINDS, kind_of
from megatron_music.profiling.trace import (
    read_trace,
    share_of,
    slowest_kernels,
    slowest_ranges,
)

WORKER = Path(__file__).parents[1] / "trace_worker.py"
# Microseconds 0 to 100: a product to 40; a message from 30 to 60, so 10 of it hidden; a copy from 80 to 90; attention
# to 100. Two streams. Idle from 60 to 80.
KERNELS = [
    ("sm90_xmma_gemm_bf16_tn", 0, 40, 7),
    ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", 30, 60, 20),
    ("Memcpy DtoD", 80, 90, 7),
    ("flash_fwd_kernel", 90, 100, 7),
]
RANGES = [("iteration 1", 0, 60), ("iteration 2", 80, 100), ("forward", 0, 20), ("forward", 80, 90)]
SHARES = {
    "gemm": 0.4,
    "communication": 0.3,
    "memory": 0.1,
    "attention": 0.1,
    "other": 0.0,
    "idle": 0.2,
    "exposed_communication": 0.2,
    "hidden_communication": 0.1,
}


def write_chrome(path: Path, kernels=KERNELS, rank: int = 0) -> Path:
    events = [
        {
            "ph": "X",
            "cat": "gpu_memcpy" if "Memcpy" in name else "kernel",
            "name": name,
            "ts": start + 1e9,
            "dur": end - start,
            "pid": 0,
            "tid": stream,
        }
        for name, start, end, stream in kernels
    ]
    events += [
        {"ph": "X", "cat": "user_annotation", "name": name, "ts": start + 1e9, "dur": end - start}
        for name, start, end in RANGES
    ]
    # What must not count: the CPU's side of a GPU trace, flow arrows, metadata.
    events += [
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 1e9, "dur": 1000},
        {"ph": "s", "id": 1, "ts": 0},
        {"ph": "M", "name": "x"},
    ]
    path.write_text(json.dumps({"traceEvents": events, "distributedInfo": {"rank": rank}}))
    return path


def write_nsys(path: Path, *, old: bool, processes: int = 1) -> Path:
    """An export as nsys makes it: names in a table of strings; older ones had NVTX text in the row, newer ones an id
    too.
    """
    base = sqlite3.connect(path)
    texts = {
        name: number
        for number, name in enumerate(dict.fromkeys([row[0] for row in KERNELS] + [row[0] for row in RANGES]), 1)
    }
    base.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    base.executemany("INSERT INTO StringIds VALUES (?, ?)", [(number, name) for name, number in texts.items()])
    name = "shortName" if old else "demangledName"
    base.execute(
        f'CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, "end" INTEGER, streamId INTEGER, globalPid INTEGER, '
        f"{name} INTEGER)"
    )
    base.execute(
        'CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, "end" INTEGER, globalPid INTEGER, bytes INTEGER)'
    )
    identifier = "" if old else ", textId INTEGER"
    base.execute(
        f'CREATE TABLE NVTX_EVENTS (start INTEGER, "end" INTEGER, eventType INTEGER, text TEXT, globalTid '
        f"INTEGER{identifier})"
    )
    for process in range(processes):
        owner = (0x1A << 48) | (4000 + process) << 24
        for text, start, end, stream in KERNELS:
            row = (1000 * start, 1000 * end)
            if "Memcpy" in text:
                base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (?, ?, ?, ?)", (*row, owner, 8))
            else:
                base.execute(
                    "INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?, ?)", (*row, stream, owner, texts[text])
                )
        for text, start, end in RANGES:
            row = (1000 * start, 1000 * (end + 6 * process), 59, text if old else None, owner | 17)
            base.execute(
                f"INSERT INTO NVTX_EVENTS VALUES (?, ?, ?, ?, ?{'' if old else ', ?'})",
                row if old else (*row, texts[text]),
            )
        base.execute(f"INSERT INTO NVTX_EVENTS VALUES (5, NULL, 34, 'a mark', {owner}{'' if old else ', NULL'})")
    base.commit()
    base.close()
    return path


def shares(path: Path) -> dict:
    (timeline,) = read_trace(path)
    found = share_of(timeline)._asdict()
    assert timeline.device == "GPU" and found["seconds"] == pytest.approx(1e-4)
    return {name: found[name] for name in SHARES}


def test_a_chrome_trace_with_known_answers(tmp_path):
    path = write_chrome(tmp_path / "trace.json", rank=3)
    assert shares(path) == pytest.approx(SHARES, abs=1e-6) and read_trace(path)[0].rank == "3"
    packed = tmp_path / "trace.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert shares(packed) == pytest.approx(SHARES, abs=1e-6)


@pytest.mark.parametrize("old", [True, False], ids=["older nsys", "newer nsys"])
def test_an_export_of_nsys_with_known_answers(tmp_path, old):
    path = write_nsys(tmp_path / "report.sqlite", old=old)
    assert shares(path) == pytest.approx(SHARES)
    rows = {row["range"]: row for row in slowest_ranges(read_trace(path))}
    assert rows["iteration 1"]["seconds"] == pytest.approx(6e-5) and rows["forward"]["times"] == 2
    assert "a mark" not in rows
    assert slowest_kernels(read_trace(path))[0] == {
        "kernel": "sm90_xmma_gemm_bf16_tn",
        "kind": "gemm",
        "seconds": pytest.approx(4e-5),
    }


def test_the_skew_of_ranks(tmp_path):
    """The second process is six microseconds longer in each range."""
    timelines = read_trace(write_nsys(tmp_path / "report.sqlite", old=False, processes=2))
    assert [timeline.rank for timeline in timelines] == ["report:4000", "report:4001"]
    rows = {row["range"]: row for row in slowest_ranges(timelines)}
    assert rows["iteration 1"]["skew"] == pytest.approx(66 / 63 - 1)


def test_an_export_without_a_table_is_no_error(tmp_path):
    path = write_nsys(tmp_path / "report.sqlite", old=True)
    with sqlite3.connect(path) as base:
        base.execute("DROP TABLE NVTX_EVENTS")
        base.execute("DROP TABLE CUPTI_ACTIVITY_KIND_MEMCPY")
    (timeline,) = read_trace(path)
    assert not timeline.ranges and share_of(timeline).memory == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("nvshmem_kernel", "communication"),
        ("c10d::allreduce_", "communication"),
        ("void flash::flash_fwd_kernel<cutlass::bfloat16_t>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", "attention"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", "gemm"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_nn", "gemm"),
        ("aten::addmm", "gemm"),
        ("Memcpy HtoD (Pinned -> Device)", "memory"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>", "other"),
        # What stands in template arguments and parameters is data, not work.
        (
            "void split_embedding_codegen_forward_kernel<float>(at::PackedTensorAccessor64<float, 2>, "
            "fbgemm_gpu::FixedDivisor)",
            "other",
        ),
        ("void fbgemm_gpu::bounds_check_indices_kernel<long>(fbgemm_gpu::FixedDivisor)", "other"),
        ("void vllm::rms_norm_kernel<cutlass::bfloat16_t>(cutlass::bfloat16_t*, float)", "other"),
        ("void flashinfer::norm::RMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)", "other"),
        ("void flashinfer::BatchDecodeWithPagedKVCacheKernel<true, 2u>(Params)", "attention"),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>(__nv_bfloat16 const*)", "memory"),
        (
            "bmm_MxE4m3_MxE2m1E4m3_Fp32_bA32_bB16_t128x8x512u2_s4_et64x8_m128x8x32_cga1x1x1_16dp256b_TN_transOut_sm100f",
            "gemm",
        ),
        ("Cijk_Ailk_Bljk_BBS_BH_MT128x128x32_MI32x32x8x1_SN_1LDSB0", "gemm"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x64x64_stage3", "gemm"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x1_tn_align8>(Params)", "gemm"),
        (
            "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<cutlass::bfloat16_t>>>(Params)",  # noqa: E501 (a kernel's name)
            "attention",
        ),
        ("_ZN5flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi128ELi128EEEvv", "attention"),
        (
            "void at::native::elementwise_kernel<128, 4, "
            "at::native::gpu_kernel_impl<at::native::direct_copy_kernel_cuda(int)>>(int)",
            "memory",
        ),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<float>(float*)", "memory"),
        ("triton_poi_fused__to_copy_add_mul_3", "other"),
        ("triton_tem_fused_mm_4", "gemm"),
        ("void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(RankData*)", "communication"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::to", "memory"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


INTERVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 10)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12
)


def points(intervals) -> set[int]:
    return {point for start, end in intervals for point in range(int(start), int(end))}


@given(INTERVALS, INTERVALS)
def test_unions_are_sets_of_points(first, second):
    both = [union(np.array(each, float).reshape(-1, 2)) for each in (first, second)]
    for found, given_ones in zip(both, (first, second), strict=True):
        assert points(found) == points(given_ones) and length(found) == len(points(given_ones))
        assert all(earlier[1] < later[0] for earlier, later in pairwise(found))
    assert overlap(*both) == len(points(first) & points(second))


def test_the_innermost_call_has_the_time():
    calls = np.array([(0, 100), (10, 40), (20, 30), (50, 60), (120, 130)], float)
    parts = innermost(calls)
    assert [length(part) for part in parts] == [60, 20, 10, 10, 10]
    assert parts[0].tolist() == [[0, 10], [40, 50], [60, 100]]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> list[Path]:
    """Three steps of a tiny GPT with TP 2, by torch.profiler on two processes."""
    folder = tmp_path_factory.mktemp("trace")
    tiny_dataset(folder / "data")
    launch(2, WORKER, folder)
    return [folder / "rank0.json", folder / "rank1.json"]


def test_a_real_trace(real):
    for rank, path in enumerate(real):
        (timeline,) = read_trace(path)
        assert (timeline.rank, timeline.device) == (str(rank), "CPU")
        assert len(timeline.ranges["step"]) == 3
        found = share_of(timeline)
        assert found.gemm > 0.01 and found.attention > 0.001 and found.communication > 0.1, (
            "TP 2 over gloo waits for messages"
        )
        assert "gloo:all_reduce" in timeline.names and "gloo:all_reduce" not in timeline.ranges
        # The innermost operators of a thread overlap with none of it: they are no longer than the time, and as long as
        # what is busy.
        assert 0 <= found.idle < 1 and found.exposed_communication + found.hidden_communication == pytest.approx(
            found.communication
        )
        names = " ".join(timeline.names)
        assert "aten::addmm" in names or "aten::mm" in names


def test_the_command(real, tmp_path, capsys):
    page = tmp_path / "trace.html"
    assert main(["trace", *map(str, real), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    assert "the innermost operators on the CPU stand in for kernels" in told and "step" in told
    text = page.read_text()
    assert not re.search(r"<(script|link|img)|https?://", text), "self-contained"
    assert text.count('class="bar"') == 2 and "aten::" in text
    assert "No GPU in the trace: the innermost operators on the CPU stand in for kernels." in text
    assert main(["trace", *map(str, real), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rank"] for row in found["ranks"]] == ["0", "1"] and found["ranges"][0]["times"] == 3


def test_steps_of_a_run_are_profiled(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data")
    run = [
        "train",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=9",
        "logging.tensorboard=false",
    ]
    assert main([*run, "--profile-steps", "3-5"]) == 0
    told = capsys.readouterr().err
    assert re.search(
        r"3 profiled steps took [\d.]+ s, the 5 others [\d.]+ s \(medians\): [+-]\d+%, the profiler's part", told
    ), "step 1 warms up"
    (timeline,) = read_trace(tmp_path / "run" / "trace-rank0.json")
    assert {name for name in timeline.ranges if name.startswith("iteration")} == {
        "iteration 3",
        "iteration 4",
        "iteration 5",
    }
    assert not list((tmp_path / "run").glob("*.tmp.json"))
    assert main(["train", "tiny", f"data.path={data}", "checkpoint.save=null", "--profile-steps", "2"]) == 2
    assert "set checkpoint.save" in capsys.readouterr().err
    for window in ("4-2", "0-2", "x", "2-", "-3"):
        with pytest.raises(SystemExit):
            main(["train", "tiny", f"--profile-steps={window}"])
        assert "is no window of iterations" in capsys.readouterr().err


def test_the_profiler_s_own_probes_stay_off_the_terminal(tmp_path):
    command = [
        "train",
        "tiny",
        f"data.path={tiny_dataset(tmp_path / 'data')}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=3",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-m", "megatron_music", *command, "--profile-steps", "2"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and (tmp_path / "run" / "trace-rank0.json").is_file()
    assert "USDT" not in done.stderr + done.stdout and "iteration 3/3" in done.stderr


def test_a_run_that_ends_within_the_window_is_written(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data")
    run = [
        "train",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=3",
        "logging.tensorboard=false",
    ]
    assert main([*run, "--profile-steps", "2-100"]) == 0
    (timeline,) = read_trace(tmp_path / "run" / "trace-rank0.json")
    assert {"iteration 2", "iteration 3"} <= set(timeline.ranges)
    assert "too few steps to say what the profiler costs: 2 profiled, 0 others" in capsys.readouterr().err


def test_a_window_that_no_step_falls_in_is_refused_or_said(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data")
    run = ["train", "tiny", f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", "logging.tensorboard=false"]
    assert main([*run, "train.train_iters=3", "--profile-steps", "10-12"]) == 2
    assert "--profile-steps begins at iteration 10, and train.train_iters is 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*run, "train.train_iters=3"]) == 0
    capsys.readouterr()
    assert main([*run, "train.train_iters=5", "--profile-steps", "1-2"]) == 0
    assert "no step was profiled: this start had none of the iterations 1-2" in capsys.readouterr().err
    assert main([*run, "train.train_iters=8", "--profile-steps", "1-7"]) == 0
    (timeline,) = read_trace(tmp_path / "run" / "trace-rank0.json")
    assert {"iteration 6", "iteration 7"} <= set(timeline.ranges), "a window that a resumed run is within"


def test_names_cannot_break_the_page(tmp_path):
    path = write_chrome(tmp_path / "trace.json", kernels=[("<script>alert(1)</script>", 0, 10, 1)])
    assert main(["trace", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert "<script>" not in (tmp_path / "page.html").read_text()


def test_the_page_is_read_on_a_telephone_in_the_dark_and_aloud(tmp_path):
    kernels = [("sgemm", 0, 60, 1), ("ncclDevKernel_AllReduce", 40, 80, 2), ("<b>&\n", 90, 100, 1)]
    path = write_chrome(tmp_path / "trace.json", kernels=kernels)
    assert main(["trace", str(path), "--html", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = Reader(text)
    assert ("lang", "en") in read.attributes and ("name", "viewport") in read.attributes
    assert [read.elements.count(tag) for tag in ("h1", "main", "header")] == [1, 1, 1] and read.elements.count(
        "h2"
    ) == 3
    label = next(value for name, value in read.attributes if name == "aria-label" and "gemm" in value)
    assert "gemm 60.0%, attention 0.0%, communication 40.0%" in label and "idle 10.0%" in label
    assert re.search(r'title="gemm 60.0%"><span>60%</span>', text), "a wide piece says its share"
    assert r"&lt;b&gt;&amp;\n" in text
    found = schemes(text)
    for scheme, colours in found.items():
        assert contrast(colours["ink"], colours["paper"]) >= 7 and contrast(colours["soft"], colours["paper"]) >= 4.5, (
            scheme
        )
        kinds = [colours[kind] for kind in KINDS]
        assert min(contrast(colour, colours["paper"]) for colour in kinds) >= 3, scheme
        worst = min(
            (distance(one, other, vision), one, other) for vision in VISIONS for one, other in combinations(kinds, 2)
        )
        assert worst[0] >= 8, (scheme, worst)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no Chrome trace"),
        (b"{", "is no Chrome trace"),
        (b"[1, 2]", "has no kernel and no operator"),
        (b'{"traceEvents": 3}', "has no traceEvents"),
        (b"SQLite format 3\x00 and nothing more", "cannot be read as nsys's sqlite"),
        (b"\x1f\x8b and nothing more", "is no Chrome trace"),
        (None, "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, content, sentence):
    path = tmp_path / "trace"
    if content is not None:
        path.write_bytes(content)
    assert main(["trace", str(path)]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1


def test_kernels_of_long_names_fit_the_terminal_and_are_whole_for_programs(tmp_path, capsys, monkeypatch):
    name = (
        "void kernel_with_a_name<"
        + ", ".join(f"Argument{number}<float>" for number in range(60))
        + ">(float*)::the_end"
    )
    path = write_chrome(tmp_path / "trace.json", kernels=[(name, 0, 10, 1)])
    monkeypatch.setenv("COLUMNS", "90")
    for form in ([], ["--markdown"]):
        assert main(["trace", str(path), *form]) == 0
        told = [line for line in capsys.readouterr().out.splitlines() if "kernel_with_a_name" in line]
        assert all(len(line) <= 90 and "the_end" in line for line in told) and told
    assert main(["trace", str(path), "--json", "--html", str(tmp_path / "page.html")]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"][0]["kernel"] == name
    assert "Argument30&lt;float&gt;" in (tmp_path / "page.html").read_text()


def test_cuda_graphs_of_nsys_are_no_idle_time(tmp_path, capsys):
    """nsys's default has one row for a graph; here it fills the twenty microseconds that are idle otherwise."""
    path = write_nsys(tmp_path / "report.sqlite", old=False)
    with sqlite3.connect(path) as base:
        (owner,) = base.execute("SELECT globalPid FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
        (start,) = base.execute("SELECT min(start) FROM CUPTI_ACTIVITY_KIND_KERNEL").fetchone()
        base.execute(
            'CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER, "end" INTEGER, deviceId INTEGER, globalPid '
            "INTEGER, graphId INTEGER)"
        )
        base.execute(
            "INSERT INTO CUPTI_ACTIVITY_KIND_GRAPH_TRACE VALUES (?, ?, 0, ?, 5)",
            (start + 60_000, start + 80_000, owner),
        )
    found = shares(path)
    assert found["idle"] == pytest.approx(0) and found["other"] == pytest.approx(0.2)
    assert main(["trace", str(path)]) == 0
    assert "CUDA graphs traced as a whole, which count as other: 1;" in capsys.readouterr().out


def test_calls_that_emit_nvtx_numbers_are_added_up(tmp_path):
    path = write_nsys(tmp_path / "report.sqlite", old=True)
    with sqlite3.connect(path) as base:
        (owner,) = base.execute("SELECT globalTid FROM NVTX_EVENTS").fetchone()
        for number, name in enumerate(
            ("aten::to, op_id = 998949", "aten::to, op_id = 998950", "aten::to, seq = 7, op_id = 3")
        ):
            base.execute(
                'INSERT INTO NVTX_EVENTS (start, "end", text, eventType, globalTid) VALUES (?, ?, ?, 59, ?)',
                (number * 10, number * 10 + 5, name, owner),
            )
    (row,) = [row for row in slowest_ranges(read_trace(path)) if row["range"].startswith("aten::to")]
    assert (row["range"], row["times"]) == ("aten::to", 3)


def test_ranks_of_nsys_come_in_the_order_of_their_gpus(tmp_path):
    path = write_nsys(tmp_path / "report.sqlite", old=False, processes=2)
    with sqlite3.connect(path) as base:
        base.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_KERNEL ADD COLUMN deviceId INTEGER")
        base.execute("ALTER TABLE CUPTI_ACTIVITY_KIND_MEMCPY ADD COLUMN deviceId INTEGER")
        for table in ("KERNEL", "MEMCPY"):
            base.execute(f"UPDATE CUPTI_ACTIVITY_KIND_{table} SET deviceId = 1 - ((globalPid >> 24) & 1)")
    assert [timeline.rank for timeline in read_trace(path)] == ["report:4001", "report:4000"]


EVENT = '{"ph": "X", "cat": "kernel", "name": "%s", "pid": 0, "tid": 7, "ts": 100.0, "dur": 5.0}'


@pytest.mark.parametrize(
    ("text", "kernels", "left_out"),
    [
        ('{"traceEvents": [' + EVENT % "torch/x.py(0): \n\x01 sgemm" + "]}", ["torch/x.py(0): \n\x01 sgemm"], 0),
        ('{"traceEvents": [' + EVENT % r"torch\cuda\__init__ sgemm" + "]}", [r"torch\cuda\__init__ sgemm"], 0),
        ("[" + EVENT % "sgemm" + ",\n" + EVENT % "dgemm" + ",\n", ["sgemm", "dgemm"], 0),
        ('{"traceEvents": [' + EVENT % "sgemm", ["sgemm"], 0),
        ('[{"ph": "X", "cat": "Kernel", "name": "volta_sgemm", "ts": 100, "dur": 5}]', ["volta_sgemm"], 0),
        ('[{"ph": "X", "cat": "kernel", "name": "sgemm", "ts": "100", "dur": "5"}]', ["sgemm"], 0),
        ('{"traceEvents": [' + EVENT % "sgemm" + '], "distributedInfo": "x"}', ["sgemm"], 0),
        ("[" + EVENT % "sgemm" + ', {"ph": "X", "cat": "kernel", "ts": 1, "dur": 5}]', ["sgemm"], 1),
        ("[" + EVENT % "sgemm" + ', {"ph": "X", "cat": "kernel", "name": "x", "dur": 5}]', ["sgemm"], 1),
        ("[" + EVENT % "sgemm" + ', {"ph": "X", "cat": "kernel", "name": "x", "ts": 1, "dur": null}]', ["sgemm"], 1),
        ("[" + EVENT % "sgemm" + ', {"ph": "X", "cat": "kernel", "name": 3, "ts": [], "dur": {}}]', ["sgemm"], 1),
    ],
    ids=[
        "control characters",
        "single backslashes",
        "array left open",
        "object left open",
        "torch 1.8",
        "numbers as strings",
        "distributedInfo a string",
        "no name",
        "no ts",
        "dur null",
        "odd types",
    ],
)
def test_what_profilers_really_write_is_read(tmp_path, capsys, text, kernels, left_out):
    path = tmp_path / "host_1.json.gz"
    path.write_bytes(gzip.compress(text.encode()))
    (timeline,) = read_trace(path)
    assert list(timeline.names) == kernels and timeline.num_left_out == left_out and timeline.rank == "host_1"
    assert main(["trace", str(path)]) == 0
    told = capsys.readouterr().out
    assert "\x01" not in told and ("left out, without a name, a start or a length: 1 event\n" in told) == bool(left_out)


def test_the_page_has_milliseconds(tmp_path):
    path = write_chrome(tmp_path / "trace.json", kernels=[("sgemm", 0, 2032, 1)])
    assert main(["trace", str(path), "--html", str(tmp_path / "page.html")]) == 0
    assert '<td class="number">2.032</td>' in (tmp_path / "page.html").read_text()
