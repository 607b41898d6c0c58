"""The index cache of a run, which may come from a stranger, a kill or a full disk: nothing in it runs, and none of it
is believed.
"""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.config.errors import ConfigError
from megatron_music.config.sections import DataConfig, ParallelConfig
from megatron_music.data import index_cache
from megatron_music.data.batches import build_datasets
from megatron_music.parallel import distributed
from megatron_music.training.loop import DONE, train

ARRAYS = ["document_index", "sample_index", "shuffle_index", "dataset_index", "dataset_sample_index"]


@pytest.fixture
def one_process():
    distributed.start(ParallelConfig())
    yield
    distributed.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return tiny_dataset(folder / "a"), tiny_dataset(folder / "b", seed=1)


@pytest.fixture
def cache(two, tmp_path, one_process):
    """A whole index cache of a blend, and the samples that it gives."""
    samples = read(two, tmp_path)
    (folder,) = tmp_path.glob("cache/*")
    return folder, samples


def read(two, place: Path) -> list:
    data = DataConfig([0.3, str(two[0]), 0.7, str(two[1])], cache_path=str(place / "cache"))
    train_set, valid_set, _ = build_datasets(data, seq_length=32, seed=1, num_samples=(400, 16, 0))
    return [dataset[number]["tokens"].tolist() for dataset in (train_set, valid_set) for number in range(len(dataset))]


class Gift:
    """Whoever unpickles it runs a command."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def array_of(folder: Path, name: str) -> Path:
    return next(iter(sorted(folder.glob(f"*-train-{name}.npy"))))


def overwrite(path: Path, change) -> None:
    """Save an array again after a change, as it would be saved."""
    values = np.load(path)
    np.save(path, change(values))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("kind", ["pickle", "objects"])
def test_a_pickle_that_is_named_as_an_array_runs_nothing(two, tmp_path, cache, capsys, name, kind):
    folder, samples = cache
    content = pickle.dumps(Gift(tmp_path / "PWNED"))
    if kind == "objects":
        np.save(array_of(folder, name), np.array([Gift(tmp_path / "PWNED")], object), allow_pickle=True)
    else:
        array_of(folder, name).write_bytes(content)
    with pytest.raises(FileNotFoundError):
        (tmp_path / "PWNED").stat()
    assert read(two, tmp_path) == samples
    assert not (tmp_path / "PWNED").exists()
    assert capsys.readouterr().err.count("is removed and built again") == 1


def test_the_gift_would_have_run(tmp_path):
    """Else the test above proves nothing."""
    (tmp_path / "gift.npy").write_bytes(pickle.dumps(Gift(tmp_path / "PWNED")))
    np.load(tmp_path / "gift.npy", allow_pickle=True)
    assert (tmp_path / "PWNED").is_dir()


def repeated(values: np.ndarray) -> np.ndarray:
    values[-1] = values[0]
    return values


def far(values: np.ndarray) -> np.ndarray:
    values.reshape(-1)[3] = np.iinfo(values.dtype).max
    return values


def negative(values: np.ndarray) -> np.ndarray:
    values.reshape(-1)[3] = -1
    return values


def beheaded(path: Path) -> None:
    """All bytes zero, as after a power cut: the file has its size."""
    path.write_bytes(bytes(path.stat().st_size))


def emptied_after_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:128] + bytes(path.stat().st_size - 128))


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_link(path: Path) -> None:
    shutil.move(path, path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)


FILE_DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "the first 128 bytes": lambda path: os.truncate(path, 128),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(8)),
    "zeros": beheaded,
    "zeros behind the header": emptied_after_header,
    "a flipped bit": flipped,
    "missing": Path.unlink,
    "a pipe": to_pipe,
    "a link": to_link,
    "another type": lambda path: overwrite(path, lambda values: values.astype(np.float64)),
    "another byte order": lambda path: overwrite(path, lambda values: values.astype(values.dtype.newbyteorder(">"))),
    "columns": lambda path: (
        overwrite(path, np.asfortranarray) if path.name.endswith("-sample_index.npy") else beheaded(path)
    ),
    "one fewer": lambda path: overwrite(path, lambda values: values[:-1]),
    "a repeated value": lambda path: overwrite(path, repeated),
    "a far value": lambda path: overwrite(path, far),
    "a header of parentheses": lambda path: path.write_bytes(
        b"\x93NUMPY\x01\x00\x00\x20" + b"(" * 8191 + b"\n" + bytes(64)
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_array_is_built_again(two, tmp_path, cache, capsys, name, damage):
    folder, samples = cache
    path = array_of(folder, name)
    before = sorted(entry.name for entry in folder.iterdir())
    if damage == "a repeated value" and name == "dataset_index":
        overwrite(path, lambda values: np.sort(values))
    else:
        FILE_DAMAGES[damage](path)
    assert read(two, tmp_path) == samples
    said = capsys.readouterr().err
    assert said.count("is removed and built again") == 1 and str(folder) in said
    assert sorted(entry.name for entry in folder.iterdir()) == before
    assert read(two, tmp_path) == samples and not capsys.readouterr().err


@pytest.mark.parametrize("name", ["document_index", "sample_index", "dataset_index", "dataset_sample_index"])
def test_negative_places_are_refused(two, tmp_path, cache, capsys, name):
    """Python would count them from the end, and train on something else."""
    folder, samples = cache
    overwrite(array_of(folder, name), negative)
    assert read(two, tmp_path) == samples and "is removed and built again" in capsys.readouterr().err


def test_a_description_of_other_data_is_refused(two, tmp_path, cache, capsys):
    folder, samples = cache
    for path in folder.glob("*GPTDataset-train-description.txt"):
        path.write_text(path.read_text().replace('"num_samples": ', '"num_samples": 1'))
    assert read(two, tmp_path) == samples and "is not what its name says" in capsys.readouterr().err


def test_a_folder_that_others_may_write_to_is_refused(two, tmp_path, cache, capsys):
    folder, samples = cache
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert read(two, tmp_path) == samples and "another user could have written it" in capsys.readouterr().err
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_link_in_place_of_the_cache_is_removed_and_its_target_kept(two, tmp_path, cache, capsys):
    folder, samples = cache
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert read(two, tmp_path) == samples and "it is not a folder" in capsys.readouterr().err
    assert not folder.is_symlink() and any((tmp_path / "elsewhere").iterdir())


def test_what_is_no_part_of_a_cache_is_never_removed(two, tmp_path, cache):
    folder, _ = cache
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds 'thesis.txt', which is no part of an index cache; move it away"):
        read(two, tmp_path)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert len(list(folder.iterdir())) > 1


def test_megatron_core_reads_what_was_verified_and_writes_nothing_beside_it(two, tmp_path, cache, capsys):
    """Its private names of files are known here: a version with others would build its index in place."""
    folder, samples = cache
    before = {path: path.stat().st_ino for path in sorted(tmp_path.rglob("*"))}
    assert len(before) == 2 + 2 * (2 * 4 + 3)
    assert read(two, tmp_path) == samples
    assert {path: path.stat().st_ino for path in sorted(tmp_path.rglob("*"))} == before and not capsys.readouterr().err


def test_other_settings_have_a_cache_of_their_own(two, tmp_path, cache):
    data = DataConfig(str(two[0]), cache_path=str(tmp_path / "cache"))
    for number, options in enumerate(({"seed": 1}, {"seed": 2}, {"seed": 2, "num_samples": (401, 16, 0)})):
        build_datasets(data, **({"seq_length": 32, "num_samples": (400, 16, 0)} | options))
        assert len(list((tmp_path / "cache").iterdir())) == 2 + number


def test_a_run_that_was_faster_keeps_its_cache(two, tmp_path, cache):
    folder, samples = cache
    own = index_cache.IndexCache(folder, indexed(two), is_held=False)
    built = own.begin(1000)
    shutil.copytree(folder, built, dirs_exist_ok=True)
    built.chmod(0o700)
    before = folder.stat().st_ino
    own.publish(built)
    own.discard(built)
    assert folder.stat().st_ino == before and [*folder.parent.iterdir()] == [folder]


def indexed(two) -> index_cache.Indexed:
    return index_cache.Indexed({split: [str(folder / split) for folder in two] for split in ("train", "valid")}, 32, 1)


def test_what_killed_starts_left_goes_but_not_what_another_run_is_building(two, tmp_path, cache):
    folder, _ = cache
    own, shared = (index_cache.IndexCache(folder, indexed(two), is_held=is_held) for is_held in (True, False))
    living = shared.begin(1000)
    (living / sorted(path.name for path in folder.iterdir())[0]).write_bytes(b"half")
    second = shared.begin(1000)
    assert living.is_dir()
    old = time.time() - 2 * 24 * 3600
    os.utime(living, (old, old))
    third = shared.begin(1000)
    assert not living.exists() and second.is_dir()
    fourth = own.begin(1000)
    assert not second.exists() and not third.exists() and fourth.is_dir()


SLOW = "train.train_iters=400000"  # an index of 75 MB


def command(data: Path, run: Path, *words: str) -> list[str]:
    options = [f"data.path={data}", f"checkpoint.save={run}", "train.eval_iters=0", "logging.tensorboard=false", *words]
    return [sys.executable, "-W", "ignore", "-m", "megatron_music", "train", "tiny", *options]


@pytest.mark.parametrize("name", ["description.txt", "shuffle_index.npy"])
def test_a_start_that_is_killed_while_it_writes_the_cache_goes_on(two, tmp_path, name):
    """Killed as soon as a file appears, which is long before it is whole."""
    run = tmp_path / "run"
    words = command(two[0], run, SLOW, "train.global_batch_size=16")
    running = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    while not any(run.glob(f"cache/.*/*{name}")) and running.poll() is None:
        time.sleep(0.0005)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert not [path for path in run.glob("cache/*") if not path.name.startswith(".")]
    running = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").is_file() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=900)
    assert running.returncode == 75 and "index cache" not in said, said
    assert len(list(run.glob("cache/*"))) == len(list((run / "cache").iterdir())) == 1


def can_mount() -> bool:
    words = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("is_foreseen", [True, False])
def test_a_disk_that_is_full_at_the_start_is_told_and_the_same_command_goes_on(two, tmp_path, is_foreseen):
    """Where it is known before, and where the room ends while megatron-core writes."""
    if not can_mount():
        pytest.skip("this user may not mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    lie = "" if is_foreseen else "import os; os.posix_fallocate = lambda *place: None; "
    program = f"{lie}from megatron_music.cli.entry import main; import sys; sys.exit(main(sys.argv[1:]))"
    options = (
        f"train.train_iters=60000 train.global_batch_size=8 train.eval_iters=0 logging.tensorboard=false "
        f"data.path={two[0]}"
    )
    start = f'{sys.executable} -W ignore -c "{program}" train tiny {options} checkpoint.save={disk}/run'
    script = f"""
        mount -t tmpfs -o size=5m tmpfs {disk}
        {start}; echo status $?
        find {disk}
        mount -o remount,size=300m {disk}
        {start} & until [ -s {disk}/run/metrics.jsonl ] || ! kill -0 $!; do sleep 0.1; done
        kill -TERM $!; wait $!; echo status $?
        ls {disk}/run/cache
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=900
    )
    first, second = done.stdout.split("status ")[1:]
    assert first.split() == ["1", str(disk)], done
    assert second.split()[0] == "75" and len(second.split()) == 2, done
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if "cannot be written" in line]
    assert (
        f"the index cache cannot be written to {disk}/run/cache (" in said
        and "set data.cache_path to another folder" in said
    )


def test_a_run_of_two_processes_reads_the_cache_that_the_first_one_verified(two, tmp_path):
    """Also where it is a gift: neither of them unpickles it."""
    run = tmp_path / "run"
    words = command(two[0], run, "train.train_iters=2")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        *words[4:],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    assert train(tiny_run(two[0], f"checkpoint.save={run}", "train.train_iters=2", "train.eval_iters=0")) == DONE
    (folder,) = run.glob("cache/*")
    array_of(folder, "shuffle_index").write_bytes(pickle.dumps(Gift(tmp_path / "PWNED")))
    again = subprocess.run(torchrun, capture_output=True, text=True, check=False, timeout=900, env=environment)
    assert again.returncode == 0 and not (tmp_path / "PWNED").exists(), again.stderr
    assert again.stderr.count("is removed and built again") == 1


def test_two_processes_on_a_full_disk_say_it_once(two, tmp_path):
    """The one that writes must not leave the other waiting for it, to be told of a lost connection."""
    if not can_mount():
        pytest.skip("this user may not mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    words = command(two[0], disk / "run", "train.train_iters=60000")[4:]
    script = (
        f"mount -t tmpfs -o size=3m tmpfs {disk}; exec {sys.executable} -m torch.distributed.run --standalone "
        f"--nproc_per_node 2 -m {' '.join(words)}"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=900, env=environment
    )
    assert done.returncode == 1 and "Connection closed" not in done.stderr
    assert f"the index cache cannot be written to {disk}/run/cache (it takes " in done.stderr, done.stderr


def test_two_runs_at_once_share_a_place_for_their_caches(two, tmp_path):
    shared = f"data.cache_path={tmp_path / 'cache'}"
    running = [
        subprocess.Popen(
            command(two[0], tmp_path / name, "train.train_iters=2", shared), stderr=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    for process in running:
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_run_folder_that_is_a_gift_trains_as_one_that_is_not(two, tmp_path):
    """As a stranger's run would be gone on with: every array of its cache is a pickle."""
    runs = [tmp_path / name for name in ("own", "gift")]
    for run in runs:
        assert train(tiny_run(two[0], f"checkpoint.save={run}", "train.train_iters=2")) == DONE
    for path in runs[1].glob("cache/*/*.npy"):
        path.write_bytes(pickle.dumps(Gift(tmp_path / "PWNED")))
    for run in runs:
        assert train(tiny_run(two[0], f"checkpoint.save={run}", "train.train_iters=2")) == DONE
    assert not (tmp_path / "PWNED").exists()
    own, gift = (sorted(run.glob("cache/*/*.npy")) for run in runs)
    assert [path.read_bytes() for path in own] == [path.read_bytes() for path in gift]
