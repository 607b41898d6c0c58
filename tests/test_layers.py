"""Who imports whom: the rows of packages, circles, owners of dependencies, and who never imports torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "megatron_music"

# Packages import those of lower rows, never others of their own row.
ROWS = {
    "storage": 1,
    "flow": 1,
    "music": 2,
    "tokens": 3,
    "config": 4,
    "parallel": 5,
    "models": 6,
    "audio": 7,
    "checkpoints": 7,
    "corpora": 8,
    "reports": 8,
    "data": 9,
    "profiling": 9,
    "generation": 10,
    "training": 11,
    "rehearsal": 12,
    "hosts": 13,
    "cli": 14,
}
AT_THE_ROOT = {"__init__.py", "__main__.py", "_moved.py"}

# Packages whose modules never import torch or megatron-core, and the modules in them that do.
WITHOUT_TORCH = {"storage", "music", "tokens", "config", "corpora", "reports", "data", "profiling", "cli"}
WITH_TORCH = {
    "tokens/tokenizer.py",  # is a class of megatron-core
    "data/batches.py",
    "data/indexed.py",
    "data/build_latents.py",
    "data/latents_encoders.py",
    "data/latents_shards.py",
}

# The one file that imports each of these; folders own where any file in them may.
OWNERS = {
    "miditoolkit": "music/midi.py",
    "music21": "corpora/bach.py",
    "megatron.core.datasets": "data/",
    "transformers": ("audio/text_encoder.py", "hosts/huggingface.py"),
    "safetensors": ("hosts/huggingface.py", "data/latents.py", "audio/"),
    "huggingface_hub": "hosts/huggingface.py",
    "diffusers": ("audio/oobleck.py", "hosts/stable_audio.py", "generation/dpm_solver.py"),
    "soundfile": "audio/waveform.py",
    "scipy": "audio/",
    "numba": "music/numba_jit.py",
    "tokenizers": "tokens/bpe.py",
    "datatrove": "data/cluster.py",
    "wandb": "training/metrics.py",
    "megatron.bridge": "hosts/bridge.py",
    "nemo": "hosts/nemo.py",
    "nemo_run": "hosts/nemo_run.py",
    "matplotlib": ("reports/", "profiling/scaling_chart.py"),
    "muq": "audio/muq_server.py",
    "fcntl": "storage/holding.py",
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(("megatron_music", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


NAMES = {name_of(path): path for path in modules()}


def imports(path: Path) -> set[str]:
    """Everything a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def place(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_every_module_stands_in_a_package_of_the_table():
    assert {path.name for path in PACKAGE.glob("*.py")} <= AT_THE_ROOT
    assert {path.relative_to(PACKAGE).parts[0] for path in modules()} - AT_THE_ROOT == set(ROWS)


@pytest.mark.parametrize("path", modules(), ids=place)
def test_imports_point_down(path):
    package = path.relative_to(PACKAGE).parts[0]
    if package in AT_THE_ROOT:
        return  # they start the program and hold no code of it
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "megatron_music" and len(parts) > 1 and parts[1] in ROWS and parts[1] != package:
            assert ROWS[parts[1]] < ROWS[package], f"{place(path)} imports {name}, which does not stand below it"
            assert {package, parts[1]} != {"tokens", "audio"}, (
                f"{place(path)} imports {name}: scores and sound never meet"
            )
    if package == "hosts":
        others = {name for name in imports(path) if name.startswith("megatron_music.hosts.")}
        assert others == set(), f"{place(path)} imports {others}: a host does not need another"


@pytest.mark.parametrize("path", sorted((PACKAGE / "flow").glob("*.py")), ids=lambda path: path.name)
def test_flow_is_torch_alone(path):
    for name in imports(path):
        is_own = name.startswith("megatron_music.flow")
        assert is_own or name.split(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=place)
def test_every_dependency_has_one_owner(path):
    for name in imports(path):
        for dependency, owners in OWNERS.items():
            if name == dependency or name.startswith(dependency + "."):
                owners = owners if isinstance(owners, tuple) else (owners,)
                assert any(place(path).startswith(owner) for owner in owners), (
                    f"{place(path)} imports {name}; {owners} owns it"
                )


def test_there_are_no_circles_even_inside_functions():
    graph = {name: imports(path) & NAMES.keys() for name, path in NAMES.items()}
    for name in graph:  # a package is imported with every module in it, and holds no code of its own
        graph[name] -= {name, name.rpartition(".")[0]}
    done = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail, name))}"
        if name not in done:
            for imported in sorted(graph[name]):
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_modules_that_never_import_torch():
    names = [
        name
        for name, path in NAMES.items()
        if path.relative_to(PACKAGE).parts[0] in WITHOUT_TORCH and place(path) not in WITH_TORCH
    ]
    code = (
        f"import sys\nfor name in {names!r}: __import__(name)\nsys.exit(bool({{'torch', 'megatron'}} & "
        f"set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_stay_short_and_packages_are_named():
    for path in modules():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, f"{path} is long; split it"
        assert path.stem not in ("utils", "common", "base", "helpers"), f"{path} needs a name that says what it is"
