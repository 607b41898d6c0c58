"""What is said of a job before it is queued: each mistake found where it is, and nothing wrong where nothing is."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from tiny import write_corpus
from tiny_gpt import tiny_dataset

from megatron_music.cli.entry import main
from megatron_music.cli.preflight import preflight
from megatron_music.cli.sbatch import read_job, seconds_of
from megatron_music.reports.findings import NOTE, WRONG

LAUNCH = Path(__file__).parents[2] / "launch"
GOOD = """\
#!/usr/bin/env bash
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=a100:2
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@300
set -euo pipefail
trap 'true' USR1
srun true
"""
HERE = {"MEGATRON_MUSIC_VENV": sys.prefix}


@pytest.fixture(autouse=True)
def _no_slurm(monkeypatch):
    """Without Slurm's commands, whatever this machine has."""
    which = shutil.which
    monkeypatch.setattr(
        "megatron_music.cli.preflight.shutil.which", lambda name: None if name == "sinfo" else which(name)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("preflight") / "data")


def look(tmp_path, text: str = GOOD, recipe=(), environment=HERE, **options):
    script = tmp_path / "job.sbatch"
    script.write_bytes(text.encode())
    return preflight(script, recipe, environment=environment, **options)


def wrong(findings) -> list[str]:
    return [f"{finding.where}: {finding.what}; {finding.remedy}" for finding in findings if finding.status == WRONG]


def run_of(data, tmp_path, *overrides) -> list[str]:
    return ["tiny", f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", *overrides]


def test_a_good_job_has_nothing_wrong(data, tmp_path):
    findings = look(tmp_path, recipe=run_of(data, tmp_path, "parallel.tensor_model_parallel_size=2"))
    assert not wrong(findings)
    said = "\n".join(finding.what for finding in findings)
    assert "4 tasks: tensor 2 x pipeline 1 x data 2, 2 micro batches per step" in said
    assert "tensor 1 x pipeline 1 x data 4, 1 micro batch per step" in "\n".join(
        finding.what
        for finding in look(
            tmp_path, recipe=run_of(data, tmp_path, "train.micro_batch_size=2", "train.global_batch_size=8")
        )
    )
    assert "of 80 GB: it fits" in said and "sinfo is not on this machine" in said


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.sbatch")), ids=lambda path: path.name)
def test_our_own_scripts_have_nothing_wrong(path):
    assert not wrong(preflight(path, (), environment=HERE))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GOOD.replace("\n", "\r\n"), "job.sbatch:1: line ends are those of Windows (CRLF); run: sed"),
        (GOOD + "#SBATCH --time=02:00:00\n", "job.sbatch:10: '#SBATCH --time=02:00:00' stands after the first command"),
        (GOOD[GOOD.index("\n") + 1 :], "job.sbatch:1: the first line names no shell"),
        (GOOD + "if true; then\n", "bash cannot read it"),
        (
            GOOD.replace("B:USR1", "USR1"),
            "--signal=USR1@300 goes to the steps, and the script's trap never runs; write --signal=B:USR1@300",
        ),
        (
            GOOD.replace("set -euo pipefail", "set -eu").replace("srun true", "srun true | tee log"),
            "a pipe behind srun hides the status",
        ),
        (
            GOOD.replace("a100:2", "a100:1"),
            "4 tasks on 2 nodes of 1 GPU: more tasks than GPUs; set --ntasks-per-node=1",
        ),
        (GOOD.replace("01:00:00", "00:08:00"), "the signal comes 300 s before the end of 480 s"),
        (GOOD.replace("#SBATCH --time", "#SBATCH --requeue\n#SBATCH --time"), "--requeue without --open-mode=append"),
        (
            GOOD.replace("#SBATCH --time", "#SBATCH --output=missing/%j.out\n#SBATCH --time"),
            "the folder of --output=missing/%j.out is missing",
        ),
        (GOOD.replace("nodes=2", "nodes=two"), "sbatch's option --nodes=two cannot be read"),
        (GOOD.replace("@300", "@65536"), "sbatch's option --signal has 65536 s, where Slurm takes 0 to 65,535"),
        (GOOD.replace("@300", "@" + "9" * 5000), "sbatch's option --signal has 999"),
    ],
)
def test_mistakes_of_a_script(tmp_path, text, sentence):
    assert any(sentence in found for found in wrong(look(tmp_path, text))), wrong(look(tmp_path, text))
    assert not wrong(look(tmp_path))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["parallel.tensor_model_parallel_size=3"], "is not divisible by parallel.tensor_model_parallel_size 3"),
        (
            ["parallel.pipeline_model_parallel_size=8", "model.num_layers=8"],
            "4 processes cannot be divided by tensor x pipeline",
        ),
        (["train.global_batch_size=6"], "train.global_batch_size 6 is not a multiple of"),
        (["checkpoint.load=nowhere"], "checkpoint.load=nowhere is missing"),
        (["checkpoint.save=null"], "checkpoint.save is not set: what is trained would be lost"),
        (["data.path=nowhere"], "nowhere has no train.bin and no train.idx and no tokenizer; build it"),
        (["data.path=null"], "data.path is not set"),
        (["train.lr=1"], "unknown key train.lr"),
        (["model.size=6.7b", "train.micro_batch_size=1", "train.global_batch_size=8"], "it does not fit"),
    ],
)
def test_mistakes_of_a_run(data, tmp_path, overrides, sentence):
    found = wrong(look(tmp_path, recipe=run_of(data, tmp_path, *overrides)))
    assert any(sentence in line for line in found), found


def test_a_v100_has_no_bf16(data, tmp_path):
    text = GOOD.replace("a100", "v100")
    assert any("no bfloat16" in line for line in wrong(look(tmp_path, text, run_of(data, tmp_path, "train.bf16=true"))))
    assert any(
        "no bfloat16" in line
        for line in wrong(
            look(tmp_path, GOOD.replace("a100:", ""), run_of(data, tmp_path, "train.bf16=true"), gpu="V100")
        )
    )


def test_checkpoints_further_apart_than_a_start_is_long(data, tmp_path):
    (tmp_path / "run").mkdir()
    lines = [json.dumps({"iteration": step, "loss": 1.0, "step_seconds": 2.0}) for step in range(1, 40)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (line,) = wrong(look(tmp_path, recipe=run_of(data, tmp_path, "checkpoint.save_interval=2000")))
    assert (
        "2,000 steps of 2 s from checkpoint to checkpoint: more than the 3300 s a start has; set "
        "checkpoint.save_interval=412" in line
    )
    findings = look(tmp_path, recipe=run_of(data, tmp_path, "checkpoint.save_interval=100"))
    assert not wrong(findings) and any("1,650 of them in one start" in finding.what for finding in findings)


def test_containers(data, tmp_path):
    image = tmp_path / "music.sqsh"
    environment = {
        "MEGATRON_MUSIC_RUNTIME": "pyxis",
        "MEGATRON_MUSIC_IMAGE": str(image),
        "MEGATRON_MUSIC_MOUNTS": f"{data.parent}:/data:ro",
    }
    found = wrong(look(tmp_path, recipe=run_of(data, tmp_path), environment=environment))
    assert any(f"the image {image} is missing" in line for line in found)
    assert any(f"{tmp_path / 'run'} lies below no mount" in line for line in found)
    image.touch()
    environment["MEGATRON_MUSIC_MOUNTS"] += f",{tmp_path}:{tmp_path}"
    assert not wrong(look(tmp_path, recipe=run_of(data, tmp_path), environment=environment))
    environment["MEGATRON_MUSIC_MOUNTS"] += ",/nowhere/at/all:/x"
    assert any(
        "/nowhere/at/all, which is to be mounted, is missing" in line
        for line in wrong(look(tmp_path, environment=environment))
    )
    for changes, sentence in (
        ({"MEGATRON_MUSIC_IMAGE": ""}, "MEGATRON_MUSIC_IMAGE is not set"),
        ({"MEGATRON_MUSIC_RUNTIME": "docker"}, "is docker"),
    ):
        assert any(sentence in line for line in wrong(look(tmp_path, environment=environment | changes)))
    assert any(
        "has no bin/python" in line
        for line in wrong(look(tmp_path, environment={"MEGATRON_MUSIC_VENV": str(tmp_path)}))
    )


def test_a_folder_that_is_not_ours(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "megatron_music.cli.preflight_run.os.access", lambda path, mode: str(path) != "/usr"
    )  # root may write anywhere
    assert any(
        "cannot be written" in line
        for line in wrong(look(tmp_path, recipe=["tiny", f"data.path={data}", "checkpoint.save=/usr/run"]))
    )


SLURM = """\
#!/bin/sh
case $(basename "$0") in
  sinfo) printf 'batch*|04:00:00|4|16\\nlong|7-00:00:00|4|16\\n' ;;
  sbatch) {answer} ;;
esac
"""


@pytest.mark.parametrize(
    ("text", "answer", "sentence"),
    [
        (
            GOOD.replace("01:00:00", "05:00:00"),
            "true",
            "--time=05:00:00 is above the limit 04:00:00 of partition batch",
        ),
        (
            GOOD.replace("#SBATCH --time", "#SBATCH --partition=fast\n#SBATCH --time"),
            "true",
            "there is no partition fast; use one of batch, long",
        ),
        (
            GOOD.replace("#SBATCH --time", "#SBATCH -p long\n#SBATCH -c 9\n#SBATCH --time"),
            "true",
            "18 cores per node are asked for",
        ),
        (
            GOOD,
            "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1",
            "sbatch --test-only refuses it (Requested node",
        ),
        (GOOD, "echo 'sbatch: Job 7 to start at once' >&2", None),
    ],
)
def test_with_slurm_at_hand(tmp_path, monkeypatch, text, answer, sentence):
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name in ("sinfo", "sbatch"):
        (stand_ins / name).write_text(SLURM.format(answer=answer))
        (stand_ins / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_ins}:{os.environ['PATH']}")
    monkeypatch.setattr("megatron_music.cli.preflight.shutil.which", lambda name: str(stand_ins / name))
    found = wrong(look(tmp_path, text))
    assert any(sentence in line for line in found) if sentence else not found, found


def test_time_limits():
    cases = {"5": 300, "5:30": 330, "1:00:00": 3600, "2-3": 183600, "2-3:04": 183840, "1-00:00:05": 86405}
    assert {text: seconds_of(text) for text in cases} == cases
    assert seconds_of("0") is None, "no limit"
    for text in ("1:2:3:4", "5:-1", "x"):
        with pytest.raises(ValueError):
            seconds_of(text)


@pytest.mark.parametrize("option", ["--gpus-per-node=8gb", "--gpus-per-task=-1x", "--gres=gpu:8gb"])
def test_a_count_of_gpus_that_cannot_be_read_is_named(tmp_path, option):
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\n#SBATCH {option}\nsrun true\n")
    name, value = option.split("=")
    with pytest.raises(ValueError, match=f"sbatch's option {name}={value} cannot be read"):
        read_job(script).check_numbers()


def job_of(tmp_path, *lines: str, command_line=(), environment=None):
    path = tmp_path / "head.sbatch"
    path.write_text("\n".join(["#!/usr/bin/env bash", *(f"#SBATCH {line}" for line in lines), "srun true"]) + "\n")
    return read_job(path, command_line, environment)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["-N 2 -n 8 --gpus-per-node=2 --time=01:00:00"],
            {"num_nodes": 2, "num_tasks": 8, "gpus_per_node": 2, "seconds": 3600},
        ),
        (["-N2 -n8", '--job-name="a b" # a comment'], {"num_nodes": 2, "num_tasks": 8}),
        (["--time=UNLIMITED"], {"seconds": None}),
        (["--time=infinite"], {"seconds": None}),
        (['--time="01:00:00"'], {"seconds": 3600}),
        (["--time '2-3'"], {"seconds": 183600}),
        (["--gres=gpu:2,craynetwork:1"], {"gpus_per_node": 2, "gpu": None}),
        (["--gres=craynetwork:1,gpu:a100:4(S:0-1)"], {"gpus_per_node": 4, "gpu": "a100"}),
        (["--gres=gpu"], {"gpus_per_node": 1}),
        (["--gres=craynetwork:1"], {"gpus_per_node": None}),
        (["--nodes=2", "--gpus=a100:16"], {"gpus_per_node": 8, "gpu": "a100", "num_gpus": 16}),
        (["-G 4"], {"gpus_per_node": 4}),
        (["--ntasks=8", "--nodes=2", "--gpus-per-task=1"], {"gpus_per_node": 4, "num_tasks": 8}),
        (["--gpus=8", "--gpus-per-task=2"], {"num_tasks": 4}),
        (["--gpus=8", "--ntasks-per-gpu=2"], {"num_tasks": 16}),
        (["--ntasks=16", "--ntasks-per-node=8"], {"num_nodes": 2}),
        (["--nodes=2-4", "--exclusive --ntasks-per-node 8"], {"num_nodes": 2, "num_tasks": 16}),
        (["--partition=batch,high"], {"partitions": ["batch", "high"]}),
        (["--signal=B:USR1"], {"lead_seconds": 60}),
        (["--nodes=1 --ntasks=1", "hetjob", "--nodes=4 --ntasks=8"], {"num_parts": 2, "num_nodes": 1, "num_tasks": 1}),
        (["--array=0-6:2,9%4"], {"array_tasks": {0, 2, 4, 6, 9}}),
    ],
    ids=str,
)
def test_headers_are_read_as_slurm_reads_them(tmp_path, lines, expected):
    job = job_of(tmp_path, *lines)
    job.check_numbers()
    assert {name: getattr(job, name) for name in expected} == expected


def test_the_command_line_goes_before_the_environment_and_that_before_the_script(tmp_path):
    environment = {"SBATCH_TIMELIMIT": "2:00:00", "SBATCH_PARTITION": "long"}
    job = job_of(
        tmp_path,
        "--nodes=2",
        "--time=1:00:00",
        "--partition=short",
        command_line=["-N", "4", "--time=3:00:00"],
        environment=environment,
    )
    assert (job.num_nodes, job.seconds, job.partitions) == (4, 3 * 3600, ["long"])


def test_the_command_that_submits_can_be_given_whole(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEGATRON_MUSIC_VENV", sys.prefix)
    (tmp_path / "job.sbatch").write_text(GOOD)
    command = [
        "preflight",
        "sbatch",
        "--nodes=1",
        "-J",
        "name",
        str(tmp_path / "job.sbatch"),
        *run_of(data, tmp_path),
        "--gpu",
        "a100",
    ]
    assert main(command) == 0
    assert "2 tasks: tensor 1 x pipeline 1 x data 2" in capsys.readouterr().out
    assert main(["preflight", "sbatch", "--nodes=4"]) == 2
    assert "names no script" in capsys.readouterr().err


def test_what_a_plain_srun_does_with_gpus_per_task_and_export_none_is_noted(tmp_path):
    text = "#!/usr/bin/env bash\n#SBATCH --ntasks=2\n#SBATCH --gpus-per-task=1\n#SBATCH --export=NONE\n"
    notes = {
        finding.what.partition(":")[0] for finding in look(tmp_path, text + "srun true\n") if finding.status == NOTE
    }
    assert {"--gpus-per-task", "--export=NONE"} < notes
    cared = look(tmp_path, text + "source launch/env.sh\nrun_tasks -- true\n")
    assert not {finding.what.partition(":")[0] for finding in cared} & {"--gpus-per-task", "--export=NONE"}


def given(script: str, *arguments, **options) -> list:
    return preflight(LAUNCH / script, [str(argument) for argument in arguments], environment=HERE, **options)


def test_a_script_that_is_not_known_says_so(data, tmp_path):
    (note, *_) = [finding.what for finding in look(tmp_path, recipe=run_of(data, tmp_path)) if finding.status == NOTE]
    assert note.startswith("job.sbatch runs none of this package's commands: its arguments are read as a recipe")
    assert not any(
        "none of this package's" in finding.what for finding in given("train.sbatch", *run_of(data, tmp_path))
    )


def test_arguments_of_the_jobs_that_build_a_dataset(tmp_path):
    source = tmp_path / "midi"
    write_corpus(source)
    planned = tmp_path / "out"
    assert any(f"{planned} is not planned" in line for line in wrong(given("merge_dataset.sbatch", planned)))
    assert main(["build", "plan", str(source), "-o", str(planned)]) == 0
    assert not wrong(given("merge_dataset.sbatch", planned))
    assert not wrong(given("build_shards.sbatch", planned, sbatch=["--array=0-3"]))
    assert any("the job is no array" in line for line in wrong(given("build_shards.sbatch", planned)))
    assert any(
        "is not counted from 0 in ones" in line
        for line in wrong(given("build_shards.sbatch", planned, sbatch=["--array=1-4"]))
    )
    assert any("takes OUT alone" in line for line in wrong(given("merge_dataset.sbatch", planned, "x")))
    assert not wrong(given("build_dataset.sh", 4, planned, source, "--meters", "all"))
    assert any(
        "JOBS, OUT and at least one SOURCE" in line for line in wrong(given("build_dataset.sh", "x", planned, source))
    )
    assert any("--metres" in line for line in wrong(given("build_dataset.sh", 4, planned, source, "--metres", "all")))
    assert any(
        "nowhere is missing" in line for line in wrong(given("build_dataset.sh", 4, planned, tmp_path / "nowhere"))
    )


def test_arguments_of_a_sweep(tmp_path):
    words = ["sweep", "tiny", "-o", str(tmp_path / "sweep"), "--num-gpus=1,2,16", "--sequences-per-gpu", "8", "--plan"]
    assert main(words) == 0
    assert not wrong(given("benchmark_sweep.sbatch", tmp_path / "sweep", sbatch=["--array=0-2", "--nodes=2"]))
    assert any(
        "a row of" in line and "takes 16 tasks, and the job has 8; submit with --nodes=2" in line
        for line in wrong(given("benchmark_sweep.sbatch", tmp_path / "sweep", sbatch=["--array=0-2"]))
    )
    assert any("submit with --array=0-2" in line for line in wrong(given("benchmark_sweep.sbatch", tmp_path / "sweep")))
    assert any(
        "has task 3" in line
        for line in wrong(given("benchmark_sweep.sbatch", tmp_path / "sweep", sbatch=["--array=0-3", "--nodes=2"]))
    )
    assert any("holds no plan of a sweep" in line for line in wrong(given("benchmark_sweep.sbatch", tmp_path)))


def test_arguments_of_generation(tmp_path):
    (tmp_path / "run").mkdir()
    assert not wrong(given("generate.sbatch", "midi", tmp_path / "run", "-o", tmp_path / "new", "--num", "64"))
    assert any(
        "run2 is missing" in line
        for line in wrong(given("generate.sbatch", "midi", tmp_path / "run2", "-o", tmp_path / "new"))
    )
    assert any(
        "--numb" in line
        for line in wrong(given("generate.sbatch", "midi", tmp_path / "run", "-o", tmp_path / "new", "--numb=x"))
    )


def test_arguments_of_a_profiled_run(data):
    found = given(
        "profile_nsys.sbatch", "tiny", f"data.path={data}", "train.train_iters=3", "train.global_batch_size=16"
    )
    assert any("PROFILE_STEPS=10-12 begins after the last iteration" in line for line in wrong(found))
    assert not wrong(
        given("profile_nsys.sbatch", "tiny", f"data.path={data}", "train.train_iters=15", "train.global_batch_size=16")
    )


def test_the_article_runs_on_the_scripts_own_two_nodes(data, tmp_path):
    found = given("train.sbatch", "article", f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", gpu="a100")
    assert not wrong(found) and any("16 tasks: tensor 1 x pipeline 1 x data 16" in finding.what for finding in found)
    assert any(finding.what.startswith("train.bf16 is false: a100 computes in float32") for finding in found)
    found = given(
        "train.sbatch",
        "article",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.bf16=true",
        gpu="a100",
    )
    assert not wrong(found) and not any("train.bf16" in finding.what for finding in found)


def test_data_that_train_refuses_is_wrong_here_too(data, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(data, cut)
    with open(cut / "train.bin", "r+b") as file:
        file.truncate(1000)
    (line,) = wrong(look(tmp_path, recipe=run_of(cut, tmp_path)))
    assert str(cut / "train") in line
    assert str(cut / "train") in "".join(wrong(look(tmp_path, recipe=run_of(f"[0.5,{data},0.5,{cut}]", tmp_path))))


def test_a_seed_that_no_generator_takes(data, tmp_path):
    assert any(
        "train.seed is 4294967296" in line
        for line in wrong(look(tmp_path, recipe=run_of(data, tmp_path, "train.seed=4294967296")))
    )


def test_the_command(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MEGATRON_MUSIC_VENV", sys.prefix)
    script = tmp_path / "job.sbatch"
    script.write_text(GOOD)
    assert main(["preflight", str(script), *run_of(data, tmp_path)]) == 0
    assert "nothing wrong, as far as it can be seen from here" in capsys.readouterr().out
    assert main(["preflight", str(script), *run_of(data, tmp_path, "train.global_batch_size=6"), "--json"]) == 2
    assert any(finding["status"] == WRONG for finding in json.loads(capsys.readouterr().out))
    assert main(["preflight", str(tmp_path / "missing")]) == 2
    assert "missing cannot be read" in capsys.readouterr().err


def test_steps_measured_on_a_cpu_are_not_taken_for_those_of_a_gpu(data, tmp_path):
    (tmp_path / "run").mkdir()
    lines = [
        json.dumps({"iteration": step, "loss": 1.0, "step_seconds": 2.0, "process_memory_gib": 1.0})
        for step in range(1, 40)
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    recipe = run_of(data, tmp_path, "checkpoint.save_interval=2000")
    findings = look(tmp_path, recipe=recipe)
    assert not wrong(findings) and any(
        f"the steps in {tmp_path / 'run'} were measured on a CPU" in finding.what for finding in findings
    )
    on_cpu = GOOD.replace("#SBATCH --gpus-per-node=a100:2\n", "")
    assert any(
        "2,000 steps of 2 s from checkpoint to checkpoint" in line for line in wrong(look(tmp_path, on_cpu, recipe))
    )


def test_without_an_environment_the_one_that_runs_is_offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = [line for line in wrong(look(tmp_path, environment={})) if "has no bin/python" in line]
    assert f".venv has no bin/python; set MEGATRON_MUSIC_VENV={sys.prefix}, the environment that runs this" in line


def test_a_folder_without_a_plan_of_a_sweep_is_said_once(tmp_path):
    (line,) = [line for line in wrong(given("benchmark_sweep.sbatch", tmp_path)) if "plan" in line]
    assert (
        line == f"{tmp_path}: {tmp_path} holds no plan of a sweep; make one: megatron-music sweep RECIPE -o {tmp_path} "
        f"--plan"
    )
