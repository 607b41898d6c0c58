"""The container's files: their text, and what they give to docker and enroot. Nothing was built and no
container ran.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from megatron_music.config.checks import check_world_size
from megatron_music.config.load import load_run

ROOT = Path(__file__).parents[2]
NGC = ROOT / "ngc"
RECORDER = f"""\
#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if sys.argv[1] == "import":
    open(sys.argv[3], "w").write("half")
    sys.exit(int(os.environ.get("FAILS", "0")))
"""


@pytest.fixture
def script(tmp_path):
    """Runs one of the scripts; gives what it said, its status, and what was called."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    for name in ("docker", "enroot"):
        (stand_ins / name).write_text(RECORDER)
        (stand_ins / name).chmod(0o755)
    record = tmp_path / "record"

    def run(name: str, *arguments: str, **variables: str):
        record.write_text("")
        environment = os.environ | {"PATH": f"{stand_ins}:{os.environ['PATH']}", "RECORD": str(record)} | variables
        done = subprocess.run(
            ["bash", NGC / name, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.stderr, done.returncode, [json.loads(line) for line in record.read_text().splitlines()]

    return run


def test_a_command_in_the_container(script, tmp_path):
    _, status, (called,) = script("run.sh", "train", "article", "data.path=a b")
    assert status == 0 and called[-4:] == ["megatron-music", "train", "article", "data.path=a b"]
    assert {"--rm", "--ipc=host", f"{os.getuid()}:{os.getgid()}", f"{tmp_path}:/workspace/music"} < set(called)


def test_jupyter_is_open_on_loopback_alone(script):
    _, status, (called,) = script("jupyter.sh", PORT="9999")
    assert status == 0 and "127.0.0.1:9999:9999" in called
    (page,) = [word.partition("=")[2] for word in called if word.startswith("--LabApp.default_url=")]
    assert (ROOT / page.removeprefix("/lab/tree/")).is_file(), "the address it prints leads to the notebook"
    assert not any("token" in word or "password" in word for word in called), (
        "Jupyter draws the token itself, at each start"
    )


@pytest.mark.parametrize("port", ["80; rm", "0099", "01024", "99999", "65536", "1023", "-8888", "8888 "])
def test_jupyter_refuses_a_port_that_there_is_not(script, port):
    said, status, called = script("jupyter.sh", PORT=port)
    assert status == 2 and "use a number from 1024 to 65535" in said and not called


def test_an_image_appears_whole(script, tmp_path):
    _, status, (called,) = script("import.sh", "music.sqsh")
    assert status == 0 and called[-1] == "dockerd://megatron-music" and (tmp_path / "music.sqsh").exists()
    said, status, called = script("import.sh", "music.sqsh")
    assert status == 2 and "is there already" in said and not called
    _, status, _ = script("import.sh", "other.sqsh", "docker://nvcr.io#nvidia/nemo:26.06", FAILS="1")
    assert status == 1 and not list(tmp_path.glob("other*")), "nothing is left of half an image"


@pytest.mark.parametrize("path", sorted(NGC.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(path):
    text = path.read_text()
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert "set -euo pipefail" in text and not re.search(r"(?i)(api_key|password)=", text)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, as (name, text), on one line each."""
    text = "\n".join(line for line in (NGC / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    return [tuple(line.split(None, 1)) for line in text.replace("\\\n", " ").splitlines() if line]


def test_the_image_is_built_as_root_and_runs_as_a_user_under_nvidias_entry_point():
    lines = instructions()
    names = [name for name, _ in lines]
    assert lines[0] == ("ARG", "FROM_IMAGE_NAME=nvcr.io/nvidia/nemo:26.06") and lines[1] == (
        "FROM",
        "${FROM_IMAGE_NAME}",
    )
    first_run, last_run = names.index("RUN"), len(names) - 1 - names[::-1].index("RUN")
    assert [text for name, text in lines[:first_run] if name == "USER"] == ["0"], (
        "root: some of NVIDIA's images end as a user"
    )
    assert [text for name, text in lines[last_run:] if name == "USER"] == ["10001"]
    assert ("SHELL", '["/bin/bash", "-o", "pipefail", "-c"]') in lines[:first_run]
    assert dict(lines)["ENTRYPOINT"] == '["/opt/nvidia/nvidia_entrypoint.sh", "megatron-music"]'


def test_nothing_is_installed_but_under_the_constraint_and_compared_afterwards():
    runs = [text for name, text in instructions() if name == "RUN"]
    installs = [line for text in runs for line in re.findall(r"pip install [^&|;}]*", text)]
    assert installs and all(
        "-c /image-constraints.txt" in line or line.split()[-1] == "/opt/megatron_music" for line in installs
    )
    assert not any(re.search(r"\btorch\b", line) for line in installs)
    (written,) = [place for place, text in enumerate(runs) if "kept_packages.py write /image-constraints.txt" in text]
    (checked,) = [place for place, text in enumerate(runs) if "kept_packages.py check /image-constraints.txt" in text]
    places = [place for place, text in enumerate(runs) if "pip install" in text]
    assert written < min(places) and max(places) < checked


# What an image of NVIDIA's has: torch from a file, megatron-core editable, of which `pip freeze` names no version.
IMAGE = {
    "torch": "2.12.0a0+5aff3928d8.nv26.4",
    "megatron_core": "0.18.0",
    "transformer_engine": "2.16.0",
    "numpy": "1.26.4",
}


def write_metadata(folder: Path, name: str, version: str, *requirements: str) -> None:
    folder.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {text}" for text in requirements),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    (folder / "RECORD").write_text("")
    (folder / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")


@pytest.fixture
def image(tmp_path):
    """A Python with the image's packages, and what its pip can find; runs kept_packages.py and pip there."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for name, version in IMAGE.items():
        write_metadata(site / f"{name}-{version}.dist-info", name, version)
    for name in ("torch", "megatron_core"):
        (site / f"{name}-{IMAGE[name]}.dist-info" / "direct_url.json").write_text(
            '{"url": "file:///opt/x", "dir_info": {"editable": true}}'
        )
    index = tmp_path / "index"
    index.mkdir()
    wheels = (
        ("newcomer", "1.0", ["megatron-core>=0.19"]),
        ("megatron_core", "0.19.2", []),
        ("modest", "1.0", ["numpy", "torch"]),
    )
    for name, version, requirements in wheels:
        write_metadata(tmp_path / name / f"{name}-{version}.dist-info", name, version, *requirements)
        with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as file:
            for path in (tmp_path / name).rglob("*.*/*"):
                file.write(path, path.relative_to(tmp_path / name))

    def run(*words):
        if words[0] == "pip":
            words = (
                sys.executable,
                "-m",
                "pip",
                "--isolated",
                "--python",
                python,
                "install",
                "--no-index",
                "--find-links",
                index,
                *words[1:],
            )
        else:
            words = (python, NGC / "kept_packages.py", *words)
        return subprocess.run(words, capture_output=True, text=True, check=False)

    return run


def test_pip_cannot_replace_what_the_image_has(image, tmp_path):
    file = tmp_path / "constraints.txt"
    assert image("write", file).returncode == 0
    assert file.read_text().splitlines() == [
        f"{name.replace('_', '-')}=={version}" for name, version in sorted(IMAGE.items())
    ]
    done = image("pip", "-c", file, "newcomer")
    assert done.returncode != 0 and "megatron-core" in done.stdout + done.stderr, (
        "without the constraint it would be replaced"
    )
    assert image("pip", "-c", file, "modest").returncode == 0, "what is content with the image's versions goes in"
    assert image("check", file).returncode == 0


def test_what_the_image_lacks_comes_in_the_tested_version(image, tmp_path):
    file, versions = tmp_path / "constraints.txt", tmp_path / "versions.txt"
    versions.write_text("modest==2.0\n")
    image("write", file, versions)
    assert image("pip", "-c", file, "modest").returncode != 0
    versions.write_text("# tested\nnumpy==9.9\nMegatron.Core==0.18.0\nnvidia-extra==1.0\nmodest==1.0\n-e .\n")
    assert image("write", file, versions).returncode == 0
    assert file.read_text().splitlines()[len(IMAGE) :] == ["modest==1.0"], "the image's own versions go before"
    assert image("pip", "-c", file, "modest").returncode == 0 and image("check", file).returncode == 0


def test_a_build_that_replaced_something_is_stopped_with_its_name(image, tmp_path):
    file = tmp_path / "constraints.txt"
    image("write", file)
    assert image("pip", "newcomer").returncode == 0
    done = image("check", file)
    assert done.returncode == 1 and "megatron-core is 0.19.2, and was 0.18.0 in the image" in done.stderr


def test_the_image_has_what_the_package_needs():
    """The package goes in without its dependencies, so each is named in the file or is the image's own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["train"],
        *project["optional-dependencies"]["corpus"],
    ]
    for extra in ("fast", "bpe", "cluster", "huggingface", "audio", "notebook"):
        wanted += project["optional-dependencies"][extra]
    text = " ".join(text for name, text in instructions() if name == "RUN")
    for requirement in wanted:
        name = re.match(r"[\w-]+", requirement)[0]
        assert name in ("torch", "megatron-music") or re.search(rf"\b{re.escape(name)}\b", text), name


# Names and types as JobCreateRequest, JobRunPolicy, JobWorkspaceMountInfo and Env of NVIDIA's ngcsdk 4.37.0 have them.
JOB = {
    "name": str,
    "aceName": str,
    "aceInstance": str,
    "dockerImageName": str,
    "useImageEntryPoint": bool,
    "command": str,
    "envs": list,
    "workspaceMounts": list,
    "resultContainerMountPoint": str,
    "replicaCount": int,
    "runPolicy": dict,
}


def test_the_job_of_base_command():
    """A run that divides over the instance's GPUs, resumable: taken off and started again, the same command goes on."""
    job = json.loads((NGC / "base_command.json").read_text())
    assert {name: type(value) for name, value in job.items()} == JOB
    assert re.fullmatch(r"[a-zA-Z\d][a-zA-Z\d\-. ,_]*", job["name"]) and 2 <= len(job["name"]) <= 128
    assert job["runPolicy"] == {"preemptClass": "RESUMABLE", "totalRuntimeSeconds": 86400} and job["replicaCount"] == 1
    (mount,) = job["workspaceMounts"]
    assert mount.keys() == {"id", "containerMountPoint", "mountMode"} and all(
        env.keys() == {"name", "value"} for env in job["envs"]
    )
    place, words = job["command"].split(" && ")
    words = shlex.split(words)
    assert (
        place == f"cd {mount['containerMountPoint']}"
        and words[:2] == ["torchrun", "--nproc_per_node"]
        and words[3:6] == ["-m", "megatron_music", "train"]
    )
    num_gpus = int(words[2])
    assert f".{num_gpus}.norm" in job["aceInstance"]
    run = load_run(words[6], words[7:])
    check_world_size(run, num_gpus)
    assert not Path(run.checkpoint.save).is_absolute(), "below the workspace, which outlives the job"


@pytest.mark.parametrize(("name", "missing"), [("run.sh", "docker"), ("jupyter.sh", "docker"), ("import.sh", "enroot")])
def test_a_machine_without_the_tool_gets_a_sentence(tmp_path, name, missing):
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "basename", "id", "rm"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        ["bash", NGC / name, "x.sqsh"],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 2
        and f"{name}: {missing} is not on this machine; " in done.stderr
        and done.stderr.count("\n") == 1
    )
