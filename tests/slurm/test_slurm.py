"""The job scripts of launch/ on real Slurm daemons: two nodes of this machine, gloo between them.

`make test-slurm` runs these, as root with slurm-wlm and munge installed; the ordinary suite does not. What a container
would make of them is in tests/launch/test_launch.py.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_corpus
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.cli.entry import main
from megatron_music.profiling.sweep import outcome_of, read_sweep
from megatron_music.training.loop import DONE, train
from megatron_music.training.metrics import FILE

NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
TENSOR = "parallel.tensor_model_parallel_size=2"
QUIET = ("logging.tensorboard=false", "train.eval_iters=0", "checkpoint.save_interval=0")
# Steps of a few milliseconds; so many that a run never ends while it is watched.
ENDLESS = "train.train_iters=1000000"


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / FILE).read_text().splitlines()]
    return {row["iteration"]: row["loss"] for row in rows if "loss" in row}


def steps_of(run: Path) -> int:
    """The iteration a run has come to, as its file says so far."""
    return (
        int((re.findall(r'"iteration": (\d+), "loss"', (run / FILE).read_text()) or [0])[-1])
        if (run / FILE).exists()
        else 0
    )


def wait_for(condition, seconds: float = 90, what: str = "it") -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} has not come within {seconds} s"
        time.sleep(0.2)


def said(folder: Path) -> str:
    """All that a job and its ranks have said."""
    return "\n".join(
        path.read_text(errors="replace") for path in sorted([*folder.glob("*.out"), *folder.glob("ranks/*.log")])
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data") / "data")


def test_two_nodes_train_as_one_process_does(cluster, data, tmp_path):
    """TP 2 over two nodes, each rank found by the address that the batch host knows; the losses are one process's."""
    wanted = (f"data.path={data}", "train.train_iters=12", *QUIET)
    job = cluster.submit(
        tmp_path, *NODES, "launch/train.sbatch", "tiny", f"checkpoint.save={tmp_path / 'run'}", TENSOR, *wanted
    )
    facts = cluster.wait(job)
    assert facts["JobState"] == "COMPLETED", said(tmp_path)
    assert re.search(r"2 tasks on n\[1-2\], ranks meet at n1:\d+", said(tmp_path))
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {
        f"music-train-{job}-start0-rank{rank}.log" for rank in (0, 1)
    }
    assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'alone'}", *wanted[1:])) == DONE
    alone, split = losses(tmp_path / "alone"), losses(tmp_path / "run")
    assert len(split) == 12 and split == pytest.approx(alone, rel=1e-4)


def test_the_array_and_its_merge_give_the_bytes_of_one_build(cluster, tmp_path):
    sources = tmp_path / "midi"
    write_corpus(sources)
    assert main(["build", "tokens", str(sources), "-o", str(tmp_path / "local"), "--bars", "0"]) == 0
    submitted = cluster.run(
        "bash",
        "launch/build_dataset.sh",
        "3",
        str(tmp_path / "cluster"),
        str(sources),
        "--bars",
        "0",
        MEGATRON_MUSIC_SBATCH=f"--output={tmp_path}/%A-%a.out --mem=500 --cpus-per-task=1",
        MEGATRON_MUSIC_LOGS=str(tmp_path / "ranks"),
    )
    array, merge = re.search(r"jobs (\d+) \(array of 3\) and (\d+) \(merge\)", submitted).groups()
    assert cluster.wait(merge)["JobState"] == "COMPLETED", said(tmp_path)
    assert "rank 2 of 3" in said(tmp_path), array
    for name in ("train.bin", "train.idx", "valid.bin", "test.bin"):
        assert (tmp_path / "cluster" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name


def test_a_shard_that_fails_holds_the_merge_back(cluster, tmp_path):
    """The merge waits for all: of an array with a failed task it never starts, and is taken out of the queue."""
    (tmp_path / "planned").mkdir()
    array = cluster.submit(
        tmp_path,
        "--array=0-1",
        "--mem=500",
        "--cpus-per-task=1",
        "launch/build_shards.sbatch",
        str(tmp_path / "planned"),
    )
    merge = cluster.submit(
        tmp_path,
        f"--dependency=afterok:{array}",
        "--kill-on-invalid-dep=yes",
        "--mem=500",
        "--cpus-per-task=1",
        "launch/merge_dataset.sbatch",
        str(tmp_path / "planned"),
    )
    assert cluster.wait(merge)["JobState"] == "CANCELLED"
    assert "is not planned" in said(tmp_path) or "build plan" in said(tmp_path)


def test_a_sweep_is_one_array(cluster, tmp_path):
    """Each task a row on as many nodes as it needs; a row that cannot be ends at once, one that is killed says where to
    look.
    """
    folder = tmp_path / "sweep"
    words = [
        "sweep",
        "tiny",
        "train.global_batch_size=2",
        "-o",
        str(folder),
        "--num-gpus=1,2",
        "--steps=2",
        "--warmup=1",
    ]
    assert (
        main(
            [
                *words,
                "--vary=parallel.tensor_model_parallel_size=1,2",
                "--vary=train.micro_batch_size=1,1000000000",
                "--plan",
            ]
        )
        == 0
    )
    sweep = read_sweep(folder)
    possible = [row.number for row in sweep.rows if not row.impossible]
    assert possible == [0, 4, 6], "one alone, data parallel, tensor parallel"
    array = cluster.submit(tmp_path, *NODES, "--mem=500", "--array=0-7", "launch/benchmark_sweep.sbatch", str(folder))
    wait_for(lambda: not cluster.run("squeue", "-h", "--job", array, check=False), 240, "the end of the array")
    statuses = [outcome_of(sweep, row).status for row in sweep.rows]
    assert statuses == ["measured" if row.number in possible else "impossible" for row in sweep.rows], said(tmp_path)
    assert len(list((tmp_path / "ranks").glob("music-sweep-*-rank1.log"))) == 8
    (folder / "rows" / "006.json").unlink()
    job = cluster.submit(
        tmp_path,
        *NODES,
        "--mem=500",
        "--array=6",
        "launch/benchmark_sweep.sbatch",
        str(folder),
        PYTHONPATH=str(killer(tmp_path)),
    )
    wait_for(lambda: not cluster.run("squeue", "-h", "--job", job, check=False), 120, "the end of a killed row")
    found = outcome_of(sweep, sweep.rows[6])
    # 137 of those that were killed; 143, which is more, where srun ended one that was not dead yet.
    assert found.status == "failed" and re.search("ended with (137|143); see the logs of job", found.reason), said(
        tmp_path
    )
    assert ": Killed" in said(tmp_path)


def killer(folder: Path) -> Path:
    """A folder that on PYTHONPATH makes a row's processes die of SIGKILL, as those that take too much memory do."""
    (folder / "killer").mkdir()
    code = "import os, sys\nif 'sweep' in sys.orig_argv: os.kill(os.getpid(), 9)\n"
    (folder / "killer" / "sitecustomize.py").write_text(code)
    return folder / "killer"


def test_a_signal_saves_requeues_and_goes_on_exactly(cluster, data, tmp_path):
    """Slurm's warning in the middle of a run: saved, queued again, and in the end the losses of an undisturbed run."""
    wanted = (f"data.path={data}", "train.train_iters=60", *QUIET)
    job = cluster.submit(
        tmp_path, *NODES, "launch/train.sbatch", "tiny", f"checkpoint.save={tmp_path / 'run'}", TENSOR, *wanted
    )
    wait_for(lambda: steps_of(tmp_path / "run") > 10, what="the tenth step")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    facts = cluster.wait(job, until=lambda facts: facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED"))
    assert facts["JobState"] == "COMPLETED" and facts["Restarts"] == "1", said(tmp_path)
    words = said(tmp_path)
    places = [
        words.index(word)
        for word in ("Slurm says USR1; the ranks save", "Exited with exit code 75", "queueing again", "start 1 of job")
    ]
    assert places == sorted(places), f"the ranks are waited for: {words}"
    assert (tmp_path / "ranks" / f"music-train-{job}-start1-rank0.log").exists()
    undisturbed = cluster.submit(
        tmp_path, *NODES, "launch/train.sbatch", "tiny", f"checkpoint.save={tmp_path / 'whole'}", TENSOR, *wanted
    )
    assert cluster.wait(undisturbed)["JobState"] == "COMPLETED"
    assert losses(tmp_path / "run") == losses(tmp_path / "whole") and len(losses(tmp_path / "run")) == 60


def test_the_time_limit_saves_and_requeues_until_the_restarts_are_used_up(cluster, data, tmp_path):
    """Slurm's own clock. The second start, too, is told to stop, and is the last that MAX_RESTARTS allows."""
    job = cluster.submit(
        tmp_path,
        *NODES,
        "--time=3",
        "--signal=B:USR1@105",
        "launch/train.sbatch",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        TENSOR,
        *QUIET,
        ENDLESS,
        MAX_RESTARTS="1",
    )
    cluster.wait(job, 240, until=lambda facts: facts["Restarts"] == "1" and facts["JobState"] == "RUNNING")
    saved = int((tmp_path / "run" / "latest").read_text().strip().removeprefix("iter_"))
    assert saved > 0
    wait_for(lambda: steps_of(tmp_path / "run") > saved, what="a step of the second start")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    facts = cluster.wait(job)
    assert facts["JobState"] == "FAILED" and facts["ExitCode"] == "75:0" and facts["Restarts"] == "1"
    assert "not queued again: after 1 restarts, MAX_RESTARTS=1" in said(tmp_path)
    steps = list(losses(tmp_path / "run"))
    assert steps == list(range(1, len(steps) + 1)), "no step is missing, none was done twice"
    assert int((tmp_path / "run" / "latest").read_text().strip().removeprefix("iter_")) == steps[-1] > saved


def test_a_signal_before_the_ranks_listen_is_not_a_failure(cluster, data, tmp_path):
    job = cluster.submit(
        tmp_path,
        *NODES,
        "launch/train.sbatch",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        TENSOR,
        *QUIET,
        ENDLESS,
    )
    wait_for(lambda: processes_of(str(tmp_path / "run")), what="a rank")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait(job, 60, until=lambda facts: facts["Restarts"] == "1")
    assert "queueing again" in said(tmp_path)
    cluster.run("scancel", job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"


def test_a_preempted_job_saves_and_goes_on(cluster, data, tmp_path):
    job = cluster.submit(
        tmp_path,
        *NODES,
        "launch/train.sbatch",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        TENSOR,
        *QUIET,
        ENDLESS,
    )
    wait_for(lambda: steps_of(tmp_path / "run") > 10, what="the tenth step")
    other = cluster.submit(tmp_path, "--partition=high", "--nodes=2", "--exclusive", "--time=1", "--wrap=sleep 1")
    assert cluster.wait(other)["JobState"] == "COMPLETED"
    saved = int((tmp_path / "run" / "latest").read_text().strip().removeprefix("iter_"))
    assert saved > 10, said(tmp_path)
    cluster.wait(job, 120, until=lambda facts: facts["Restarts"] == "1" and facts["JobState"] == "RUNNING")
    wait_for(lambda: steps_of(tmp_path / "run") > saved, what="a step after the restart")
    cluster.run("scancel", job)
    facts = cluster.wait(job)
    assert facts["JobState"] == "CANCELLED" and facts["Restarts"] == "1", (
        "a job that its user ends does not queue again"
    )


def test_a_rank_that_dies_fails_the_job(cluster, data, tmp_path):
    job = cluster.submit(
        tmp_path,
        *NODES,
        "launch/train.sbatch",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        TENSOR,
        *QUIET,
        ENDLESS,
    )
    wait_for(lambda: steps_of(tmp_path / "run") > 5, what="the fifth step")
    ranks = processes_of(str(tmp_path / "run"))
    assert len(ranks) == 2, ranks
    os.kill(ranks[1], signal.SIGKILL)
    facts = cluster.wait(job, 60)
    assert facts["JobState"] == "FAILED" and facts["Restarts"] == "0", said(tmp_path)
    assert not processes_of(str(tmp_path / "run")), "the other rank is gone, too"


def processes_of(word: str) -> list[int]:
    """The Python processes with a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        if (
            arguments[0].endswith(b"python")
            and b"megatron_music" in arguments
            and any(word.encode() in argument for argument in arguments)
        ):
            found.append(int(path.parent.name))
    return sorted(found)


# Each with what a script does without care, which must fail here, or the test would prove nothing.
def test_without_a_requeue_of_our_own_a_stopped_job_has_failed(cluster, tmp_path):
    naive = script(tmp_path, "trap 'exit 1' USR1\nsleep 60 & wait")
    job = cluster.submit(tmp_path, "--requeue", str(naive))
    cluster.wait(job, until=lambda facts: facts["JobState"] == "RUNNING")
    time.sleep(1)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    facts = cluster.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0")


def test_a_signal_without_b_never_reaches_the_script(cluster, tmp_path):
    """--signal=USR1@60 goes to the steps: the trap of the batch script does not run. With B: it does."""
    content = "trap 'echo trapped' USR1\nsleep 4 & wait; wait\nexit 0"
    jobs = {}
    for kind, arguments in (("steps", ()), ("batch", ("--batch",))):
        (tmp_path / kind).mkdir()
        jobs[kind] = cluster.submit(tmp_path / kind, str(script(tmp_path / kind, content)))
        cluster.wait(jobs[kind], until=lambda facts: facts["JobState"] == "RUNNING")
        time.sleep(1)
        cluster.run("scancel", *arguments, "--signal=USR1", jobs[kind])
        cluster.wait(jobs[kind])
    assert "trapped" not in said(tmp_path / "steps") and "trapped" in said(tmp_path / "batch")


@pytest.mark.parametrize("careful", [False, True])
def test_a_pipe_hides_a_rank_that_failed(cluster, tmp_path, careful):
    command = f"cd {Path.cwd()}; source launch/env.sh; run_tasks --ntasks=2 -- bash -c 'exit $((9 * RANK))'"
    naive = f"srun --ntasks=2 bash -c 'exit $((9 * SLURM_PROCID))' | tee {tmp_path}/log"
    job = cluster.submit(
        tmp_path, "--nodes=2", "--ntasks=2", str(script(tmp_path, command if careful else naive, strict=careful))
    )
    facts = cluster.wait(job, until=lambda facts: facts["JobState"] in ("COMPLETED", "FAILED"))
    assert facts["ExitCode"] == ("9:0" if careful else "0:0"), said(tmp_path)


@pytest.mark.parametrize("careful", [False, True])
def test_without_kill_on_bad_exit_the_others_go_on(cluster, tmp_path, careful):
    task = "if [ $SLURM_PROCID = 1 ]; then exit 9; fi; sleep 8; touch outlived"
    command = f"cd {Path.cwd()}; source launch/env.sh; cd {tmp_path}; run_tasks --ntasks=2 -- bash -c '{task}'"
    naive = f"cd {tmp_path}; srun --ntasks=2 bash -c '{task}'"
    job = cluster.submit(
        tmp_path,
        "--nodes=2",
        "--ntasks=2",
        str(script(tmp_path, command if careful else naive, strict=careful)),
        MEGATRON_MUSIC_VENV="",
    )
    # The status of a step is its highest: that of the rank that was terminated, where one was.
    assert cluster.wait(job)["ExitCode"] == ("143:0" if careful else "9:0"), said(tmp_path)
    assert "task 1: Exited with exit code 9" in said(tmp_path)
    assert (tmp_path / "outlived").exists() != careful


def test_two_tasks_of_a_node_see_their_places(cluster, tmp_path):
    show = 'echo "rank $RANK of $WORLD_SIZE local $LOCAL_RANK of $LOCAL_WORLD_SIZE at $MASTER_ADDR"'
    content = f"cd {Path.cwd()}; source launch/env.sh; set_rendezvous; run_tasks -- bash -c '{show}'"
    job = cluster.submit(tmp_path, "--nodes=2", "--ntasks-per-node=2", str(script(tmp_path, content)))
    assert cluster.wait(job)["JobState"] == "COMPLETED", said(tmp_path)
    lines = sorted(re.findall(r"rank .*", said(tmp_path)))
    assert lines == [f"rank {rank} of 4 local {rank % 2} of 2 at n1" for rank in range(4)]


def script(folder: Path, content: str, *, strict: bool = True) -> Path:
    path = folder / "job.sbatch"
    path.write_text(f"#!/usr/bin/env bash\n{'set -euo pipefail' if strict else ''}\n{content}\n")
    return path


def test_a_percent_sign_in_the_folder_of_logs_is_one(cluster, tmp_path):
    """Slurm would read %x as the job's name, find no such folder, run nothing and end with 0."""
    content = f"cd {Path.cwd()}; source launch/env.sh; run_tasks -- bash -c 'echo ran $RANK'"
    logs = tmp_path / "ranks%x"
    job = cluster.submit(
        tmp_path, "--nodes=2", "--ntasks=2", str(script(tmp_path, content)), MEGATRON_MUSIC_LOGS=str(logs)
    )
    assert cluster.wait(job)["JobState"] == "COMPLETED"
    assert sorted(path.read_text() for path in logs.iterdir()) == ["ran 0\n", "ran 1\n"]


@pytest.mark.parametrize(
    ("careful", "runs_train"), [(False, False), (True, False), (True, True)], ids=["naive", "run_tasks", "train.sbatch"]
)
def test_tasks_that_cannot_open_their_logs_fail_the_job(cluster, data, tmp_path, careful, runs_train):
    """Slurm itself ends such a step with 0, and no task has run: a COMPLETED job of nothing."""
    (tmp_path / "ranks").mkdir()
    # A folder in the place of each rank's log cannot be opened as a file, whoever asks.
    remove = f"for rank in 0 1; do mkdir -p {tmp_path}/ranks/$SLURM_JOB_NAME-$SLURM_JOB_ID-start0-rank$rank.log; done"
    naive = f"{remove}; srun --output={tmp_path}/ranks/%x-%j-start0-rank%t.log touch {tmp_path}/ran"
    cared = f"{remove}; cd {Path.cwd()}; source launch/env.sh; run_tasks -- touch {tmp_path}/ran"
    if runs_train:
        text = (
            Path("launch/train.sbatch")
            .read_text()
            .replace("set -euo pipefail\n", f"set -euo pipefail\n{remove}\ncd {Path.cwd()}\n", 1)
        )
        (tmp_path / "job.sbatch").write_text(text)
        job = cluster.submit(
            tmp_path,
            *NODES,
            str(tmp_path / "job.sbatch"),
            "tiny",
            f"data.path={data}",
            f"checkpoint.save={tmp_path}/run",
            TENSOR,
        )
    else:
        job = cluster.submit(tmp_path, "--nodes=2", "--ntasks=2", str(script(tmp_path, cared if careful else naive)))
    facts = cluster.wait(job, until=lambda facts: facts["JobState"] in ("COMPLETED", "FAILED"))
    told = "\n".join(path.read_text(errors="replace") for path in tmp_path.glob("*.out"))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "run").exists()
    assert facts["ExitCode"] == ("2:0" if careful else "0:0"), told
    assert ("could not open their logs" in told) == careful


@pytest.mark.parametrize("careful", [False, True])
def test_a_job_without_the_submitters_environment_still_gives_its_tasks_a_path(cluster, tmp_path, careful):
    command = "env echo reached"
    cared = (
        f"cd {Path.cwd()}; source launch/env.sh; MEGATRON_MUSIC_LOGS={tmp_path}/ranks; MEGATRON_MUSIC_VENV=; "
        f"run_tasks -- {command}"
    )
    naive = f"srun --output={tmp_path}/ranks.log {command}"
    job = cluster.submit(tmp_path, "--export=NONE", str(script(tmp_path, cared if careful else naive)))
    facts = cluster.wait(job, until=lambda facts: facts["JobState"] in ("COMPLETED", "FAILED"))
    assert (facts["JobState"] == "COMPLETED") == careful, said(tmp_path)
    assert ("reached" in said(tmp_path)) == careful


def test_one_task_of_an_array_queues_itself_again_and_no_other(cluster, data, tmp_path):
    """The number of an array's last task is the array's own: requeued by that, all would start anew."""
    wanted = (f"data.path={data}", "parallel.tensor_model_parallel_size=1", *QUIET)
    body = (
        Path("launch/train.sbatch")
        .read_text()
        .replace('"${@:2}"', '"${@:2}" "checkpoint.save=$RUNS/$SLURM_ARRAY_TASK_ID"')
    )
    body = body.replace("set -euo pipefail\n", f"set -euo pipefail\ncd {Path.cwd()}\n", 1)
    (tmp_path / "job.sbatch").write_text(body)
    one = ("--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=500", "--oversubscribe")
    array = cluster.submit(
        tmp_path,
        *one,
        "--array=0-1",
        str(tmp_path / "job.sbatch"),
        "tiny",
        *wanted,
        ENDLESS,
        RUNS=str(tmp_path / "runs"),
    )
    wait_for(
        lambda: all(steps_of(tmp_path / "runs" / str(task)) > 5 for task in (0, 1)), 120, "the fifth step of both tasks"
    )
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_1")
    cluster.wait(f"{array}_1", 90, until=lambda facts: facts["Restarts"] == "1")
    assert cluster.facts(f"{array}_0")["Restarts"] == "0", "its neighbour goes on undisturbed"
    assert cluster.facts(f"{array}_0")["JobState"] == "RUNNING"
    cluster.run("scancel", array)


def test_each_task_sees_all_gpus_of_its_node_though_one_was_asked_for_each(cluster, tmp_path):
    """As LOCAL_RANK counts on: with --gpus-per-task alone each task sees a single GPU."""
    show = 'echo "rank $RANK of $LOCAL_RANK sees $CUDA_VISIBLE_DEVICES"'
    content = f"cd {Path.cwd()}; source launch/env.sh; run_tasks -- bash -c '{show}'"
    job = cluster.submit(tmp_path, "--nodes=1", "--ntasks=2", "--gpus-per-task=1", str(script(tmp_path, content)))
    assert cluster.wait(job)["JobState"] == "COMPLETED", said(tmp_path)
    assert sorted(re.findall(r"rank .*", said(tmp_path))) == ["rank 0 of 0 sees 0,1", "rank 1 of 1 sees 0,1"]


@pytest.mark.parametrize(
    "head",
    [
        "--time=UNLIMITED",
        "--time=infinite",
        '--time="01:00:00"',
        "--time=00:30",
        "--time=0-02:00",
        "--time=05:00:00",
        "--partition=batch,high",
        "--partition=nowhere",
        "-N 2 -n 4 --gpus-per-node=2 --time=01:00:00",
        "--gpus=2",
        "-G 2",
        "--ntasks=2 --gpus-per-task=1",
        "--gres=gpu:2",
        "--gres=gpu:v100:2",
        "--gres=gpu:5",
        "--nodes=9",
        "--ntasks=2 --cpus-per-task=2",
        "--ntasks=2 --cpus-per-task=2 --partition=batch,high",
        "--nodes=1 --export=NONE",
        "--nodes=2-3 --exclusive",
        "--job-name='a b' --comment=x  # a comment",
    ],
)
def test_preflight_agrees_with_slurm_on_a_header(cluster, tmp_path, head):
    """Wrong where sbatch refuses it or the job would wait for ever, and nowhere else."""
    path = tmp_path / "job.sbatch"
    path.write_text(f"#!/usr/bin/env bash\n#SBATCH {head}\nsrun true\n")
    tested = subprocess.run(
        ["sbatch", "--test-only", str(path)], env=cluster.environment, capture_output=True, check=False
    )
    told = json.loads(
        cluster.run(sys.executable, "-m", "megatron_music", "preflight", str(path), "--json", check=False)
    )
    # Slurm takes a time above the partition's limit, and the job is never started.
    waits_for_ever = any(time in head for time in ("UNLIMITED", "infinite", "05:00:00"))
    assert any(finding["status"] == "wrong" for finding in told) == (tested.returncode != 0 or waits_for_ever), (
        tested.stderr,
        told,
    )


def test_preflight_takes_the_options_of_sbatch(cluster, data, tmp_path):
    command = ("launch/train.sbatch", "tiny", f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", TENSOR)
    preflight = (sys.executable, "-m", "megatron_music", "preflight")
    told = cluster.run(*preflight, "sbatch", *NODES, *command, check=False)
    assert "2 tasks: tensor 2 x pipeline 1 x data 1" in told and "nothing wrong" in told, told
    assert "sbatch --test-only refuses it" in cluster.run(*preflight, *command, check=False), (
        "8 GPUs per node are not here"
    )
