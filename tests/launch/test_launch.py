"""The job scripts without Slurm: their text, and the commands they give to srun, pyxis and apptainer.

Stand-ins on PATH record what they are called with and run the payload, each as the real one treats the environment: an
image's ENV goes before the job's, but for what is handed in by name. No container runs here, and no Slurm: tests/slurm
has that.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_corpus

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*"))
# What an image sets for itself.
IMAGE_ENVIRONMENT = {"CUDA_DEVICE_MAX_CONNECTIONS": "", "MASTER_ADDR": "of-the-image", "HF_HUB_OFFLINE": "0"}

RECORDER = f"""\
#!{sys.executable}
import json, os, re, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
image = {IMAGE_ENVIRONMENT!r}
if name == "scontrol":
    if arguments[:2] == ["show", "hostnames"]:
        print("\\n".join(f"node{{number}}" for number in range(1, 2000)))
    sys.exit()
if name == "nsys":
    sys.exit()
options = [argument for argument in arguments if argument.startswith("-")]
if name == "srun":
    count = next(place for place, argument in enumerate(arguments) if not argument.startswith("-"))
    options, payload = arguments[:count], arguments[count:]
    os.environ.update(SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_STEP_NUM_TASKS="4", SLURM_STEP_TASKS_PER_NODE="2(x2)")
    (output,) = [option.partition("=")[2] for option in options if option.startswith("--output=")] or [None]
    for task in range(int(os.environ.get("TASKS_WITH_A_LOG", "4")) if output else 0):
        said = {{"%x": "job", "%j": os.environ["SLURM_JOB_ID"], "%t": str(task), "%%": "%"}}
        open(re.sub("%.", lambda code: said[code[0]], output), "a").close()
    named = [option.partition("=")[2].split(",") for option in options if option.startswith("--container-env=")]
    if any(option.startswith("--container-image=") for option in options):
        os.environ.update({{key: value for key, value in image.items() if not named or key not in named[0]}})
        os.environ["PATH"] = "/usr/bin:/bin"  # an image has no scontrol
else:  # apptainer
    payload = arguments[next(place for place, argument in enumerate(arguments) if argument.endswith(".sif")) + 1:]
    os.environ.update(image)
    given = {{key: value for key, value in os.environ.items() if key.startswith("APPTAINERENV_")}}
    os.environ.update({{key.removeprefix("APPTAINERENV_"): value for key, value in given.items()}})
os.execvp(payload[0], payload)
"""
SHOW = (
    'echo "$RANK $LOCAL_RANK $WORLD_SIZE '
    '$LOCAL_WORLD_SIZE|$MASTER_ADDR:$MASTER_PORT|$CUDA_DEVICE_MAX_CONNECTIONS|$HF_HUB_OFFLINE"'
)
SEEN = "3 1 4 2|node1:10042|1|1"


@pytest.fixture
def job(tmp_path):
    """Runs lines of a job script; gives what it printed, its status, and what was called."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name in ("srun", "scontrol", "apptainer", "nsys"):
        (stand_ins / name).write_text(RECORDER)
        (stand_ins / name).chmod(0o755)
    record = tmp_path / "record"

    def run(lines: str, **variables: str):
        record.write_text("")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM", "MEGATRON_MUSIC", "MASTER", "CUDA", "HF_"))
        }
        environment = kept | {
            "PATH": f"{stand_ins}:{os.environ['PATH']}",
            "RECORD": str(record),
            "SLURM_JOB_ID": "42",
            "SLURM_NTASKS": "4",
            "SLURM_JOB_NODELIST": "node[1-1999]",
            "MEGATRON_MUSIC_ARCH": "hopper",
            "MEGATRON_MUSIC_VENV": sys.prefix,
            "MEGATRON_MUSIC_LOGS": str(tmp_path / "logs"),
        }
        script = f"set -euo pipefail\nsource launch/env.sh\n{lines}"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return (
            done.stdout.strip() + done.stderr.strip(),
            done.returncode,
            [json.loads(line) for line in record.read_text().splitlines()],
        )

    return run


TENSOR = "parallel.tensor_model_parallel_size=2"
STEP = f"set_rendezvous; set_gpu_environment tiny {TENSOR}; set_offline; run_tasks -- bash -c '{SHOW}'"


@pytest.mark.parametrize(
    ("runtime", "image"),
    [("bare", ""), ("pyxis", "music.sqsh"), ("apptainer", "music.sif")],
    ids=lambda value: value or "-",
)
def test_each_runtime_hands_every_variable_to_the_tasks(job, runtime, image):
    said, status, called = job(STEP, MEGATRON_MUSIC_RUNTIME=runtime, MEGATRON_MUSIC_IMAGE=image)
    assert (said, status) == (SEEN, 0)
    (srun,) = [call for call in called if call[0] == "srun"]
    assert {"--kill-on-bad-exit=1", "--mpi=none", "--open-mode=append", "--export=ALL"} < set(srun)
    assert any(re.fullmatch(r"--output=.*/logs/%x-%j-start0-rank%t\.log", option) for option in srun)


@pytest.mark.parametrize("venv", ["", sys.prefix])
def test_an_empty_environment_is_the_python_on_path(job, venv):
    _, status, called = job(STEP, MEGATRON_MUSIC_VENV=venv)
    assert status == 0 and ("env" in called[-1]) == bool(venv)


def test_without_the_names_an_image_wins(job):
    """What a script that merely exports gets: the image's own settings, and an address that is not the batch host's."""
    naive = (
        f"export MASTER_ADDR=node1 MASTER_PORT=10042 CUDA_DEVICE_MAX_CONNECTIONS=1 HF_HUB_OFFLINE=1\nsrun "
        f"--container-image=x bash -c '{SHOW}'"
    )
    said, _, _ = job(naive)
    assert said.endswith("|of-the-image:10042||0")


def test_the_command_lines_of_containers(job):
    mounts = "/data:/data:ro,/runs:/runs"
    _, _, called = job(
        STEP,
        MEGATRON_MUSIC_RUNTIME="pyxis",
        MEGATRON_MUSIC_IMAGE="nvcr.io#nvidia/nemo:26.06",
        MEGATRON_MUSIC_MOUNTS=mounts,
    )
    srun = called[-1]
    assert {
        "--container-image=nvcr.io#nvidia/nemo:26.06",
        f"--container-mounts={mounts}",
        "--no-container-mount-home",
        f"--container-workdir={ROOT}",
    } < set(srun)
    (names,) = [option.partition("=")[2].split(",") for option in srun if option.startswith("--container-env=")]
    assert {"MASTER_ADDR", "MASTER_PORT", "CUDA_DEVICE_MAX_CONNECTIONS", "NCCL_NVLS_ENABLE", "HF_HUB_OFFLINE"} < set(
        names
    )
    _, _, called = job(
        STEP, MEGATRON_MUSIC_RUNTIME="apptainer", MEGATRON_MUSIC_IMAGE="/images/music.sif", MEGATRON_MUSIC_MOUNTS=mounts
    )
    assert called[-1][:8] == ["apptainer", "exec", "--nv", "--bind", mounts, "--pwd", str(ROOT), "/images/music.sif"]


def test_the_address_is_found_on_the_batch_host(job):
    said, _, called = job('set_rendezvous; echo "$MASTER_ADDR $MASTER_PORT"', SLURM_JOB_ID="123456")
    assert said == "node1 33456" and called == [["scontrol", "show", "hostnames", "node[1-1999]"]]


@pytest.mark.parametrize(
    ("architecture", "connections"),
    [("volta", "1"), ("ampere", "1"), ("hopper", "1"), ("blackwell", "32"), ("none", "")],
)
def test_settings_by_architecture(job, architecture, connections):
    said, _, _ = job(
        f'set_gpu_environment {TENSOR}; echo "${{CUDA_DEVICE_MAX_CONNECTIONS:-}}"', MEGATRON_MUSIC_ARCH=architecture
    )
    assert said == connections


@pytest.mark.parametrize(
    ("arguments", "is_split"),
    [
        ("article data.path=x", False),
        ("article parallel.pipeline_model_parallel_size=2 parallel.tensor_model_parallel_size=1", False),
        ("article parallel.tensor_model_parallel_size=16", True),
        ("article parallel.context_parallel_size=2", True),
        ("midi run --tensor-model-parallel-size 2", True),
        ("midi run --tensor-model-parallel-size=1", False),
        ("split.yaml", True),
        ("whole.yaml", False),
        ("sweep", True),
    ],
)
def test_one_queue_only_where_layers_are_split(job, tmp_path, arguments, is_split):
    """Elsewhere CUDA's own number holds, and what the user set always does."""
    (tmp_path / "split.yaml").write_text("parallel:\n  tensor_model_parallel_size: 4\n")
    (tmp_path / "whole.yaml").write_text("parallel:\n  tensor_model_parallel_size: 1\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "plan.json").write_text(
        '{"rows": [{"settings": {"parallel.tensor_model_parallel_size": "2"}}]}'
    )
    lines = f'cd {tmp_path}; set_gpu_environment {arguments}; echo "${{CUDA_DEVICE_MAX_CONNECTIONS:-}}"'
    assert job(lines)[0] == ("1" if is_split else "")
    assert job(lines, CUDA_DEVICE_MAX_CONNECTIONS="16")[0] == "16"


def test_no_setting_that_pytorch_warns_of(job):
    show = (
        "set_gpu_environment; echo "
        '"${PYTORCH_ALLOC_CONF:-}|${PYTORCH_CUDA_ALLOC_CONF:-}|${TORCH_NCCL_AVOID_RECORD_STREAMS:-}"'
    )
    assert job(show)[0] == "expandable_segments:True||"
    assert job(show, PYTORCH_ALLOC_CONF="backend:native")[0] == "backend:native||"
    assert job(show, PYTORCH_CUDA_ALLOC_CONF="backend:native")[0] == "|backend:native|"


def test_a_rank_without_a_log_fails_the_job(job):
    """Slurm ends such a step with 0: of the four tasks three ran."""
    said, status, _ = job(STEP, TASKS_WITH_A_LOG="3")
    assert status == 2 and "only 3 of 4 tasks ran: the others could not open their logs" in said


def test_a_percent_sign_in_the_folder_of_logs_is_one(job, tmp_path):
    _, status, called = job(STEP, MEGATRON_MUSIC_LOGS=str(tmp_path / "100%x"))
    assert status == 0 and any(option.startswith(f"--output={tmp_path}/100%%x/%x-") for option in called[-1])
    assert len(list((tmp_path / "100%x").iterdir())) == 4


def test_each_task_sees_all_gpus_of_its_node(job):
    show = (
        "run_tasks -- bash -c 'echo \"${SLURM_GPUS_PER_TASK:-none} ${SLURM_TRES_PER_TASK:-none} "
        "${SLURM_GPU_BIND:-none}\"'"
    )
    assert (
        job(show, SLURM_GPUS_PER_TASK="1", SLURM_TRES_PER_TASK="gres/gpu=1", SLURM_GPU_BIND="per_task:1")[0]
        == "none none none"
    )
    assert job(show, SLURM_GPU_BIND="closest")[0] == "none none closest"


@pytest.mark.parametrize(
    ("script", "variables", "missing"),
    [
        (
            "train.sbatch tiny",
            {},
            "SLURM_JOB_ID is not set: this is no Slurm job; submit it: sbatch launch/train.sbatch",
        ),
        ("train.sbatch tiny", {"SLURM_JOB_ID": "3"}, "SLURM_JOB_NODELIST is not set"),
        ("generate.sbatch midi run", {}, "SLURM_JOB_ID is not set"),
        ("profile_nsys.sbatch tiny", {}, "SLURM_JOB_ID is not set"),
        ("merge_dataset.sbatch out", {}, "SLURM_JOB_ID is not set"),
        (
            "build_shards.sbatch out",
            {"SLURM_JOB_ID": "3"},
            "SLURM_ARRAY_TASK_ID is not set; submit this script as an array: sbatch --array=0-3",
        ),
        (
            "benchmark_sweep.sbatch sweep",
            {"SLURM_JOB_ID": "3"},
            "SLURM_ARRAY_TASK_ID is not set; submit this script as an array",
        ),
    ],
)
def test_a_script_that_is_not_submitted_says_so(script, variables, missing):
    name, *arguments = script.split()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(
        ["bash", LAUNCH / name, *arguments], cwd=ROOT, env=kept | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and missing in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("runtime", ["bare", "pyxis", "apptainer"])
def test_a_python_without_the_package_plans_nothing(tmp_path, runtime):
    """One sentence in place of a traceback, in container modes too, and nothing is submitted."""
    (tmp_path / "bin").mkdir()
    for name, lines in (
        ("python", "echo No module named megatron_music >&2; exit 1"),
        ("sbatch", f"touch {tmp_path}/submitted"),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "MEGATRON_MUSIC_VENV": "",
        "MEGATRON_MUSIC_RUNTIME": runtime,
    }
    command = ["bash", LAUNCH / "build_dataset.sh", "2", tmp_path / "out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2 and "its python cannot import this package" in done.stderr and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "submitted").exists() and not (tmp_path / "out").exists()


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [
        str(path.relative_to(ROOT))
        for folder in ("launch", "ngc", "tests/slurm")
        for path in sorted((ROOT / folder).glob("*"))
        if path.suffix in (".sh", ".sbatch")
    ]
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("lines", "variables", "sentence"),
    [
        (STEP, {"MEGATRON_MUSIC_RUNTIME": "docker"}, "MEGATRON_MUSIC_RUNTIME is docker; use bare, pyxis or apptainer"),
        (STEP, {"MEGATRON_MUSIC_RUNTIME": "pyxis"}, "MEGATRON_MUSIC_IMAGE is not set; name a .sqsh file"),
        (STEP, {"MEGATRON_MUSIC_RUNTIME": "apptainer"}, "MEGATRON_MUSIC_IMAGE is not set; name a .sif file"),
        (STEP, {"MEGATRON_MUSIC_ARCH": "pascal"}, "MEGATRON_MUSIC_ARCH is pascal; use volta"),
    ],
)
def test_wrong_settings_are_one_sentence(job, lines, variables, sentence):
    said, status, called = job(lines, **variables)
    assert sentence in said and status == 2 and not [call for call in called if call[0] == "srun"]


def test_the_status_is_the_trainers_own_though_a_trap_ran(job):
    """bash's `wait` comes back with 138 when a trapped signal arrives; the script's own loop waits for the 75 of the
    step.
    """
    train = (LAUNCH / "train.sbatch").read_text()
    body = train[train.index("ended=") : train.index("# Preemption")]
    step = (
        "bash -c 'trap \"sleep 0.3; exit 75\" USR1; while :; do sleep 0.05; done' &\nstep=$!\n(sleep 0.5; kill -USR1 "
        "$$) &\n"
    )
    careful, _, _ = job(f'{step}{body}\necho "status $status"')
    assert careful.endswith("status 75")
    naive, _, _ = job(
        f'{step}trap \'kill -USR1 "$step"\' USR1\nstatus=0; wait "$step" || status=$?\necho "status $status"'
    )
    assert naive.endswith("status 138")


@pytest.mark.parametrize(("ranks", "profiled"), [("0", False), ("0 3", True)])
def test_nsys_profiles_the_chosen_ranks_alone(job, tmp_path, ranks, profiled):
    """The stand-in for srun starts rank 3."""
    script = (LAUNCH / "profile_nsys.sbatch").read_text()
    body = script[script.index("set_rendezvous") :].replace("python -m megatron_music", "echo")
    said, status, called = job(
        f"set -- tiny data.path=x\n{body}", PROFILE_RANKS=ranks, PROFILE_STEPS="10-12", SLURM_JOB_NAME="music-profile"
    )
    nsys = [call for call in called if call[0] == "nsys"]
    assert status == 0 and len(nsys) == (2 if profiled else 0), said
    command = "echo train tiny data.path=x checkpoint.save=null --profile-steps 10-12"
    if profiled:
        assert {
            "--capture-range=cudaProfilerApi",
            "--cuda-graph-trace=node",
            f"--output={tmp_path}/logs/music-profile-42-rank3",
        } < set(nsys[0])
        assert " ".join(nsys[0]).endswith(command) and nsys[1][1] == "export"
    else:
        assert said == command.removeprefix("echo ")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(path):
    text = path.read_bytes().decode()
    assert "\r" not in text and subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert not re.search(r"(?i)(api_key|token|password)=", text), "no secret"
    assert text.startswith("#!/usr/bin/env bash\n")
    if path.name == "env.sh":
        return
    assert "set -euo pipefail" in text
    lines = text.splitlines()
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(number < first_command for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert "--signal" not in text or "--signal=B:USR1@" in text


def test_no_task_goes_past_the_one_function():
    """srun is called in one place, so that no step lacks what makes it safe."""
    for path in SCRIPTS:
        commands = [line for line in path.read_text().splitlines() if re.match(r"\s*(exec )?srun\b", line)]
        assert not commands or path.name == "env.sh", (path, commands)


@pytest.mark.parametrize(
    ("refused", "sentences"),
    [
        (1, ("sbatch refused the array; the plan is kept in {out}.building", "give the same command again")),
        (
            2,
            (
                "sbatch refused the merge, and job 7 encodes; the plan is kept in {out}.building",
                "run sbatch launch/merge_dataset.sbatch {out}",
            ),
        ),
    ],
)
def test_where_sbatch_refuses_a_job_the_plan_is_kept_and_how_to_go_on_is_said(tmp_path, refused, sentences):
    write_corpus(tmp_path / "midi")
    (tmp_path / "bin").mkdir()
    count = (
        f"echo x >> {tmp_path}/calls; [ $(wc -l < {tmp_path}/calls) -ne {refused} ] || {{ echo 'invalid account' >&2; "
        f"exit 1; }}; echo 7"
    )
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\n{count}\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "MEGATRON_MUSIC_VENV": sys.prefix,
        "MEGATRON_MUSIC_RUNTIME": "bare",
    }
    command = ["bash", LAUNCH / "build_dataset.sh", "2", tmp_path / "out", tmp_path / "midi"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "invalid account" in done.stderr, done.stderr
    for sentence in sentences:
        assert sentence.format(out=tmp_path / "out") in done.stderr, done.stderr
    assert (tmp_path / "out.building" / "plan.json").is_file()


def test_a_copy_that_has_no_room_is_one_sentence_and_can_be_made_again(tmp_path):
    """A limit of a file's size stands for the full disk: the first two folders have room, and the last has not."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "large.py").write_bytes(bytes(200_000))
    code = f"""
import sys
from pathlib import Path
from megatron_music.cli import entry, launch
shipped = launch.shipped
launch.shipped = lambda name: Path({str(tmp_path / "examples")!r}) if name == "examples" else shipped(name)
sys.exit(entry.main(["launch", "-o", {str(tmp_path / "out")!r}]))
"""
    command = [sys.executable, "-c", code]
    short = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert short.returncode == 1 and short.stderr.count("\n") == 1 and "Errno" not in short.stderr, short.stderr
    assert (
        "File too large" in short.stderr
        and str(tmp_path / "out") in short.stderr
        and "run the command again" in short.stderr
    )
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert all((tmp_path / "out" / name).is_dir() for name in ("launch", "ngc", "examples"))
