"""MFU and HFU of measured steps: from a shape and a time, from our runs, and from the logs of hosts."""

import csv
import io
import json
import re

import pytest
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.cli.entry import main
from megatron_music.profiling.flops import step_flops
from megatron_music.profiling.logs import Step, read_log, summarize
from megatron_music.reports.tables import format_table
from megatron_music.training.loop import DONE, train

# arXiv:2205.05198, the 175B of table 5: 13.75 s a step with selective recomputation, 51.4 % MFU and 52.8 % HFU. Second
# hand.
GPT_175B = [
    "--num-layers",
    "96",
    "--hidden-size",
    "12288",
    "--num-attention-heads",
    "96",
    "--seq-length",
    "2048",
    "--vocab-size",
    "51200",
    "--global-batch-size",
    "64",
    "--num-gpus",
    "64",
    "--gpu",
    "a100",
    "--recomputation",
    "selective",
]
# The lines as these hosts write them; the numbers are made up. What lies before a line is what `srun --label` and NeMo
# put there.
MEGATRON_LM = """\
0: using world size: 64, data-parallel size: 1, tensor-model-parallel size: 8
0: ------------------------ arguments ------------------------
0:   global_batch_size ............................... 64
0:   group_query_attention ........................... False
0:   hidden_size ..................................... 12288
0:   ffn_hidden_size ................................. 49152
0:   num_attention_heads ............................. 96
0:   num_layers ...................................... 96
0:   num_query_groups ................................ 1
0:   padded_vocab_size ............................... 51200
0:   recompute_granularity ........................... selective
0:   seq_length ...................................... 2048
0:   swiglu .......................................... False
0:   world_size ...................................... 64
0: -------------------- end of arguments ---------------------
"""
MEGATRON_STEP = (
    " [2026-01-02 03:04:05] iteration {iteration:8d}/     100 | consumed samples: {samples:12d} | elapsed time per "
    "iteration (ms): "
    "{milliseconds:.1f} | throughput per GPU (TFLOP/s/GPU): 160.3 | learning rate: 1.000000E-04 | global batch size:  "
    "  64 | "
    "lm loss: 6.400000E+00 | loss scale: 1.0 | grad norm: 1.234 | number of skipped iterations:   0 |"
)
BRIDGE_STEP = "Step Time : {seconds:.2f}s GPU utilization: 58.2MODEL_TFLOP/s/GPU\n"
NEMO_STEP = (
    "[NeMo I 2026-01-02 03:04:05 nemo_logging:393] Training epoch 0, iteration {iteration}/99 | lr: 0.0001 | "
    "consumed_samples: "
    "{samples} | global_batch_size: 64 | global_step: {iteration} | reduced_train_loss: 6.4 | train_step_timing in s: "
    "{seconds}"
)


def megatron_log(times: dict[int, float]) -> str:
    lines = [
        f"63: {MEGATRON_STEP.format(iteration=step, samples=64 * step, milliseconds=1000 * time)}"
        for step, time in times.items()
    ]
    return MEGATRON_LM + "\n".join(lines) + "\n"


def test_published_seconds_on_the_command_line(capsys):
    assert main(["mfu", *GPT_175B, "--step-time", "13.75", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 100 * found["72-form"]["mfu"] == pytest.approx(51.4, abs=0.2)
    assert 100 * found["72-form"]["hfu"] == pytest.approx(52.8, abs=0.2)
    assert found["mcore"]["mfu"] < found["72-form"]["mfu"], "half of the scores"
    assert found["paper-eq3"]["recomputation"] == "full" and found["paper-eq3"]["mfu"] == found["72-form"]["mfu"]
    # With full recomputation, 18.13 s: equation 3 counts what the 72-form's HFU does.
    full = [*GPT_175B[:-1], "full", "--step-time", "18.13", "--json"]
    assert main(["mfu", *full]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["paper-eq3"]["hfu"] == pytest.approx(found["72-form"]["hfu"])


def test_the_table_names_formula_peak_and_vocabulary(capsys):
    assert main(["mfu", *GPT_175B, "--step-time", "13.75"]) == 0
    told = capsys.readouterr().out
    assert "vocabulary 51200" in told and "peak 312 TFLOP/s per GPU: a100" in told
    rows = {line.split()[0]: line for line in told.splitlines() if "arXiv" in line or "mcore" in line}
    assert "51.39%" in rows["72-form"] and "causal" in rows["mcore"] and "always" in rows["paper-eq3"]
    assert "waits for kernel launches" not in told
    small = (
        "--num-layers 6 --hidden-size 512 --num-attention-heads 8 --seq-length 2048 --vocab-size 640 "
        "--global-batch-size 16"
    )
    assert main(["mfu", *small.split(), "--num-gpus", "16", "--gpu", "v100", "--step-time", "0.0634"]) == 0
    assert "below 10% a step waits for kernel launches" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--global-batch-size", "--num-gpus"])
def test_a_number_of_hundreds_of_digits_is_one_sentence(capsys, option):
    given = list(GPT_175B)
    given[given.index(option) + 1] = "9" * 400
    assert main(["mfu", *given, "--step-time", "13.75"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "too large" in told and "Traceback" not in told, told


def test_csv_has_the_numbers_in_full(capsys):
    assert main(["mfu", *GPT_175B, "--step-time", "13.75", "--csv"]) == 0
    rows = {row["formula"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert main(["mfu", *GPT_175B, "--step-time", "13.75", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for formula, row in rows.items():
        assert float(row["hfu"]) == found[formula]["hfu"]
    assert main(["mfu", *GPT_175B, "--step-time", "13.75", "--markdown"]) == 0
    assert "| 72-form | selective |" in capsys.readouterr().out


def test_a_formula_that_is_not_derived_for_the_model_has_no_figure(capsys):
    assert main(["mfu", *GPT_175B, "--num-query-groups", "8", "--step-time", "13.75", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["72-form"]["mfu"] is None and "num_query_groups 8" in found["72-form"]["counts"]
    assert found["mcore"]["mfu"] > 0


def test_a_log_of_megatron_lm_says_all_but_the_gpu(tmp_path, capsys):
    log = tmp_path / "slurm-1.out"
    slow_start = {step: 13.75 if step > 10 else 40.0 for step in range(1, 31)}
    log.write_text(megatron_log(slow_start))
    assert main(["mfu", str(log), "--gpu", "a100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 100 * found["72-form"]["mfu"] == pytest.approx(51.4, abs=0.2) and found["num_gpus"] == 64
    assert found["measured"] == {
        "median": 13.75,
        "lower_quartile": 13.75,
        "upper_quartile": 13.75,
        "num_lines": 20,
        "num_warmup_lines": 10,
    }
    assert main(["mfu", str(log), "--gpu", "a100", "--num-gpus", "128", "--json"]) == 0
    half = json.loads(capsys.readouterr().out)
    assert half["72-form"]["mfu"] == found["72-form"]["mfu"] / 2, "what is typed goes before what the log says"


def test_warm_up_is_left_out_after_each_start():
    first, second = [Step(step, 1.0) for step in range(1, 21)], [Step(step, 2.0) for step in range(15, 40)]
    found = summarize([*first, *second], 10)
    assert (found.num_lines, found.num_warmup_lines) == (10 + 15, 20) and found.median == 2.0
    # Lines about ten iterations each: those about any of the first fifteen go.
    found = summarize([Step(step, float(step)) for step in range(10, 60, 10)], 15)
    assert (found.num_lines, found.num_warmup_lines, found.median) == (3, 2, 40.0)
    with pytest.raises(ValueError, match="--warmup 0"):
        summarize(first, 20)


def test_quartiles():
    found = summarize([Step(step + 1, time) for step, time in enumerate([4.0, 1.0, 3.0, 2.0, 5.0])], 0)
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2.0, 3.0, 4.0)


def test_logs_of_bridge_and_of_nemo(tmp_path):
    bridge = "".join(
        BRIDGE_STEP.format(seconds=2) + MEGATRON_STEP.format(iteration=step, samples=step, milliseconds=2000.0) + "\n"
        for step in (1, 2, 3)
    )
    nemo = "\n".join(NEMO_STEP.format(iteration=step, samples=step, seconds=0.0345) for step in (0, 1, 2))
    bar = "".join(
        f"\rEpoch 0: : {step}%|x| {step}/100 [00:01<00:02, reduced_train_loss=6.4, global_step={step}.000, "
        f"train_step_timing in s=1.250]"
        for step in (1, 2, 2)
    )
    for name, text, steps in (
        (
            "bridge",
            bridge.replace("throughput per GPU (TFLOP/s/GPU): 160.3 | ", ""),
            [Step(step, 2.0, 6.4, 58.2, 64) for step in (1, 2, 3)],
        ),
        ("nemo", nemo, [Step(step, 0.0345, 6.4, None, 64, True) for step in (0, 1, 2)]),
        ("bar", bar, [Step(step, 1.25, 6.4, covers_one=True) for step in (1, 2)]),
    ):
        (tmp_path / name).write_text(text)
        assert read_log(tmp_path / name).steps == steps, name
    assert read_log(tmp_path / "nemo").facts == {"global_batch_size": 64}


def test_of_a_batch_size_that_grows_one_is_chosen(tmp_path, capsys):
    lines = MEGATRON_LM + "".join(
        MEGATRON_STEP.replace("size:    64", f"size:    {16 * step}").format(
            iteration=step, samples=step, milliseconds=1000.0 * step
        )
        + "\n"
        for step in (1, 2)
    )
    log = tmp_path / "log"
    log.write_text(lines)
    assert "global_batch_size" not in read_log(log).facts
    assert main(["mfu", str(log), "--gpu", "a100", "--warmup", "0"]) == 2
    assert (
        "the log has 2 global batch sizes (16, 32); give the one to look at: --global-batch-size 32"
        in capsys.readouterr().err
    )
    assert main(["mfu", str(log), "--gpu", "a100", "--warmup", "0", "--global-batch-size", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step_seconds"] == 1.0, "the time of the steps of that size"


def test_our_own_run(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data")
    run = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=6", "logging.peak_tflops=0.5")
    assert train(run) == DONE
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 7, "loss": 1.0, "step_sec')  # killed while it wrote
    capsys.readouterr()
    for source in (tmp_path / "run", tmp_path / "run" / "metrics.jsonl"):
        assert main(["mfu", str(source), "--peak", "0.5", "--warmup", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:-1]]
        seconds = sorted(line["step_seconds"] for line in lines if "step_seconds" in line and line["iteration"] > 2)
        assert found["measured"]["num_lines"] == 4 and found["step_seconds"] == pytest.approx(
            (seconds[1] + seconds[2]) / 2
        )
        assert found["mcore"]["mfu"] == pytest.approx(
            step_flops(run.model, 8).model / found["step_seconds"] / 1e12 / 0.5
        )
        assert found["num_gpus"] == 1 and found["model"]["vocab_size"] == run.model.vocab_size

    log = tmp_path / "run" / "metrics.jsonl"  # as a GPU writes it; the run is in float32
    log.write_text(log.read_text().replace("process_memory_gib", "cuda_memory_gib"))
    for words, peak in (
        (["--gpu", "h100"], 494.5),
        (["--gpu", "v100"], 15.7),
        (["--gpu", "h100", "--dtype", "bf16"], 989),
        (["--peak", "3"], 3),
    ):
        assert main(["mfu", str(tmp_path / "run"), "--warmup", "2", "--json", *words]) == 0
        assert json.loads(capsys.readouterr().out)["peak_tflops"] == peak


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (GPT_175B, "mfu needs the time of a step, once; give --step-time"),
        ([*GPT_175B, "--step-time", "0"], "--step-time is 0.0; use a number above 0"),
        ([*GPT_175B, "--step-time", "nan"], "--step-time is nan"),
        ([*GPT_175B, "--step-time", "1", "--peak", "0"], "--peak is 0.0; use TFLOP/s above 0"),
        ([*GPT_175B, "--step-time", "1", "--gpu", "h900"], "no peak of 'h900' is known; use one of v100, "),
        ([*GPT_175B, "--step-time", "1", "--gpu", "v100", "--dtype", "bf16"], "v100 does not compute in bf16"),
        ([*GPT_175B, "--step-time", "1", "--num-gpus", "0"], "--num-gpus is 0"),
        ([*GPT_175B, "--step-time", "1", "--hidden-size", "100"], "model.hidden_size 100 does not divide"),
        (["--step-time", "1", "--gpu", "a100"], "missing are --num-layers, --hidden-size"),
        (["--step-time", "1"], "give --gpu"),
        (["missing.log", "--gpu", "a100"], "missing.log cannot be read"),
        ([__file__, "--gpu", "a100"], "has no line with the time of a step"),
        ([__file__, "--gpu", "a100", "--warmup", "-1"], "--warmup is -1"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, capsys):
    assert main(["mfu", *arguments]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1


def test_a_log_that_does_not_say_the_shape(tmp_path, capsys):
    (tmp_path / "nemo.log").write_text(NEMO_STEP.format(iteration=50, samples=1, seconds=2) + "\n")
    assert main(["mfu", str(tmp_path / "nemo.log"), "--gpu", "h100", "--warmup", "0"]) == 2
    assert (
        "the log does not say --num-layers, --hidden-size, --num-attention-heads, --seq-length, --vocab-size, "
        "--num-gpus; give them" in capsys.readouterr().err
    )


def test_the_vocabulary_is_in_a_line_of_its_own(tmp_path):
    """Megatron-LM prints its arguments before the tokenizer is built: padded_vocab_size is not among them."""
    text = megatron_log({step: 1.0 for step in range(1, 31)})
    text = (
        re.sub(r".*padded_vocab_size.*\n", "", text)
        + "0:  > padded vocab (size: 50257) with 431 dummy tokens (new size: 50688)\n"
    )
    (tmp_path / "log").write_text(text)
    assert read_log(tmp_path / "log").facts["vocab_size"] == 50688


LLAMA_8 = {
    "hidden_size": 4096,
    "ffn_hidden_size": 14336,
    "num_attention_heads": 32,
    "num_layers": 32,
    "group_query_attention": True,
    "num_query_groups": 8,
    "padded_vocab_size": 32000,
    "seq_length": 4096,
    "swiglu": True,
    "world_size": 16,
    "global_batch_size": 128,
    "kv_channels": 128,
    "moe_router_topk": 2,
    "num_experts": None,
}


def other_log(milliseconds: float = 10000.0, stated: float = 160.3, **arguments) -> str:
    listed = "".join(f"  {name} {'.' * (48 - len(name))} {value}\n" for name, value in (LLAMA_8 | arguments).items())
    step = MEGATRON_STEP.replace("160.3", f"{stated:.1f}").replace("size:    64", "size:   128")
    return listed + "".join(
        step.format(iteration=number, samples=number, milliseconds=milliseconds) + "\n" for number in range(1, 31)
    )


def figures(tmp_path, capsys, text: str, *options: str) -> dict:
    (tmp_path / "other.log").write_text(text)
    assert main(["mfu", str(tmp_path / "other.log"), "--gpu", "h100", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_experts_are_counted_as_far_as_a_token_passes_through_them(tmp_path, capsys):
    """Mixtral's shape: two of eight experts. The sum by hand: 128 sequences, 32 layers, causal half."""
    dense = figures(tmp_path, capsys, other_log())["mcore"]["model_tflops_per_gpu"]
    found = figures(tmp_path, capsys, other_log(num_experts=8, moe_ffn_hidden_size=14336))
    expert = 3 * 128 * 32 * (2 * 3 * 4096 * 4096 * 14336)
    assert found["mcore"]["model_tflops_per_gpu"] - dense == pytest.approx(expert / 10 / 16 / 1e12)
    assert found["72-form"]["mfu"] is None and "experts" in found["72-form"]["counts"]
    half = figures(tmp_path, capsys, other_log(num_experts=8, moe_layer_freq="[" + ", ".join(["0, 1"] * 16) + "]"))
    assert half["mcore"]["model_tflops_per_gpu"] - dense == pytest.approx(expert / 2 / 10 / 16 / 1e12)
    shared = figures(
        tmp_path, capsys, other_log(num_experts=8, moe_router_topk=1, moe_shared_expert_intermediate_size=14336)
    )
    assert shared["mcore"] == found["mcore"]


def test_heads_of_another_size_are_counted(tmp_path, capsys):
    found = figures(tmp_path, capsys, other_log(hidden_size=5120, kv_channels=128))
    projections = 2 * 4096 * 5120 * (2 * 4096 + 2 * 1024)
    layer = projections + 2 * 4096**2 * 4096 + 6 * 4096 * 5120 * 14336
    assert found["mcore"]["model_tflops_per_gpu"] == pytest.approx(
        3 * 128 * (32 * layer + 2 * 4096 * 5120 * 32000) / 10 / 16 / 1e12
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"multi_latent_attention": True},
        {"hybrid_override_pattern": "M-M*"},
        {"mtp_num_layers": 1},
        {"num_experts": 8, "moe_layer_freq": "x"},
    ],
    ids=str,
)
def test_what_no_formula_counts_is_refused(tmp_path, capsys, arguments):
    (tmp_path / "log").write_text(other_log(**arguments))
    assert main(["mfu", str(tmp_path / "log"), "--gpu", "h100"]) == 2
    told = capsys.readouterr().err
    assert "has what no formula here counts" in told and list(arguments)[-1] in told and told.count("\n") == 1


@pytest.mark.parametrize("half", [True, False], ids=["half of the scores", "all scores"])
def test_the_formula_of_a_logs_own_speed_is_found(tmp_path, capsys, half):
    counted = figures(tmp_path, capsys, other_log())["mcore"]["model_tflops_per_gpu"]
    everything = counted + 3 * 128 * 32 * 2 * 4096**2 * 4096 / 10 / 16 / 1e12
    log = other_log(stated=counted if half else everything)
    assert figures(tmp_path, capsys, log)["stated"]["follows"] == ("causal" if half else "all scores")
    assert main(["mfu", str(tmp_path / "other.log"), "--gpu", "h100"]) == 0
    assert (
        f"TFLOP/s per GPU counts {'half of the scores, as mcore' if half else 'all scores, as Megatron-LM until 2025'}"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("fp8", ["hybrid", None])
def test_more_than_the_peak_is_said(tmp_path, capsys, fp8):
    (tmp_path / "log").write_text(other_log(500.0, fp8=fp8))
    assert main(["mfu", str(tmp_path / "log"), "--gpu", "h100"]) == 0
    reason = "the log has fp8 hybrid" if fp8 else "check --gpu, --num-gpus and the shape"
    assert f"above 100% of a bf16 peak: {reason}" in capsys.readouterr().out


@pytest.mark.parametrize("first", [0, 5000])
def test_the_line_after_a_first_iteration_is_warm_up(first):
    """Megatron-LM logs the first iteration by itself; the next line averages it again with all up to the hundredth."""
    steps = [
        Step(first + 1, 60.0),
        *(Step(first + number, 1.59 if number == 100 else 1.0) for number in (100, 200, 300)),
    ]
    for length, kept in ((3, 1), (4, 2)):
        found = summarize(steps[:length], 10)
        assert (found.median, found.num_lines, found.num_warmup_lines) == (1.0, kept, 2)
    with pytest.raises(ValueError, match="--warmup 0"):
        summarize(steps[:2], 10)


def test_bars_of_nemo_beyond_what_tqdm_prints_exactly(tmp_path):
    def bar(step: int, shown: str, counter: int) -> str:
        return (
            f"\rEpoch 0: :  20%|##  | {counter}/603000 [1:03:17<317:00:58, v_num=, reduced_train_loss=2.6, "
            f"global_step={shown}, "
            f"train_step_timing in s={1 + step % 5 / 100:.3f}]"
        )

    log = tmp_path / "log"
    log.write_text("".join(bar(step, "1.2e+5", step) for step in range(120_000, 120_030)))
    assert [step.iteration for step in read_log(log).steps] == list(range(120_000, 120_030))
    # The first of an epoch that began at 900, whose counter starts anew.
    texts = {step: f"{step}.0" if step < 1000 or step > 1004 else "1e+3" for step in range(995, 1010)}
    log.write_text("".join(bar(step, text, step - 900) for step, text in texts.items()))
    assert [step.iteration for step in read_log(log).steps] == list(texts)


def test_ranks_that_print_the_same_step_are_one(tmp_path):
    lines = [
        f"{rank}: " * label + MEGATRON_STEP.format(iteration=step, samples=1, milliseconds=1000.0 + 2 * rank) + "\n"
        for label in (1, 0)
        for step in range(1, 41)
        for rank in (0, 1)
    ]
    for part in (
        lines[:80],
        lines[80:],
        lines[0:80:2] + lines[1:80:2],
    ):  # labelled, not labelled, one rank after the other
        (tmp_path / "log").write_text("".join(part))
        found = summarize(read_log(tmp_path / "log").steps, 10)
        assert (found.num_lines, found.num_warmup_lines) == (30, 10) and found.median == pytest.approx(1.001)
    # A second start on fewer ranks is a start.
    (tmp_path / "log").write_text("".join(lines[1:80:2] + lines[40:80:2]))
    assert summarize(read_log(tmp_path / "log").steps, 10).num_warmup_lines == 20


def test_lines_as_terminals_and_launchers_mangle_them(tmp_path):
    whole = [
        MEGATRON_STEP.format(iteration=step, samples=512 * step, milliseconds=13212.7 + step) for step in range(1, 9)
    ]
    wanted = [(step, pytest.approx(13.2127 + step / 1000), 6.4) for step in range(1, 9)]
    wrapped = "".join("\n".join(line[at : at + 86] for at in range(0, len(line), 86)) + "\n" for line in whole)
    labelled = "".join(
        "".join(f"[default7]:{line[at : at + 86]}\n" for at in range(0, len(line), 86)) for line in whole
    )
    together = "".join(first + second + "\n" for first, second in zip(whole[::2], whole[1::2], strict=True))
    coloured = "".join(f"\x1b[1m{line.replace('iteration', chr(27) + '[32miteration')}\x1b[0m\n" for line in whole)
    for name, text in (("wrapped", wrapped), ("labelled", labelled), ("together", together), ("coloured", coloured)):
        (tmp_path / name).write_text(text)
        assert [step[:3] for step in read_log(tmp_path / name).steps] == wanted, name


def test_tables():
    rows = [{"name": "a", "share": 0.5}, {"name": "long name", "share": None}]
    columns = {"name": "", "share": ".1%"}
    assert format_table(columns, rows) == "name       share\na          50.0%\nlong name      -"
    assert format_table(columns, rows, "markdown").splitlines() == [
        "| name | share |",
        "| --- | ---: |",
        "| a | 50.0% |",
        "| long name | - |",
    ]
    assert format_table(columns, rows, "csv") == "name,share\na,0.5\nlong name,"
    with pytest.raises(ValueError, match="use one of text"):
        format_table(columns, rows, "xml")


def test_a_run_on_a_cpu_is_compared_with_no_gpu(tmp_path, capsys):
    """Its metrics have no memory of a GPU. Without a peak there is no share, and a low one is no hint about kernels."""
    log = tmp_path / "metrics.jsonl"
    rows = [
        {"iteration": number, "loss": 2.0, "step_seconds": 0.5, "process_memory_gib": 0.4} for number in range(1, 5)
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = (
        "--num-layers 1 --hidden-size 64 --num-attention-heads 1 --seq-length 64 --vocab-size 768 --global-batch-size "
        "1 --num-gpus 1"
    )
    command = ["mfu", str(log), *shape.split(), "--warmup", "3"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "no peak of the CPU is known" in told and "%" not in told and "kernel launches" not in told
    assert (
        "1 layer x 64, 1 head, 64 tokens, vocabulary 768; 1 sequence per step, 1 process on the CPU" in told
        and "the median of 1 line," in told
    )
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mcore"]["mfu"] is None and found["mcore"]["model_tflops_per_gpu"] > 0 and found["gpu"] is None
    assert main([*command, "--peak", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "peak 0.5 TFLOP/s per process: the CPU" in told and "%" in told and "kernel launches" not in told
    assert main([*command, "--gpu", "h100"]) == 2
    assert (
        "ran on a CPU, and --gpu h100 would compare it with a GPU; omit --gpu, or give --peak"
        in capsys.readouterr().err
    )
    log.write_text(log.read_text().replace("process_memory_gib", "cuda_memory_gib"))
    assert main([*command, "--gpu", "h100"]) == 0
    assert "below 10% a step waits for kernel launches" in capsys.readouterr().out


def test_the_help_of_the_shape_says_what_each_field_is(capsys):
    with pytest.raises(SystemExit):
        main(["mfu", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--num-layers L transformer layers" in said and "--hidden-size H width of the residual stream" in said


def test_a_file_that_is_missing_is_said_before_a_missing_peak(tmp_path, capsys):
    for words in ([], ["--gpu", "h100"]):
        assert main(["mfu", str(tmp_path / "nowhere"), *words]) == 2
        assert "nowhere cannot be read" in capsys.readouterr().err
