"""Who imports whom: the rows of the house, and who never sees torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "megatron_music"

ROWS = {
    "storage": 0, "recipes": 0, "music": 0, "flow": 0, "models": 0,
    "tokens": 1, "audio": 1,
    "data": 2, "profiling": 2, "generation": 2,
    "training": 3,
    "hosts": 4, "app": 4, "rehearsal": 4,
}  # fmt: skip

# The one file that imports each of these; folders own where any file in them may.
OWNERS = {
    "miditoolkit": "music/midi.py",
    "music21": "data/bach.py",
    "megatron.core.datasets": "data/",
    "transformers": ("audio/text_encoder.py", "hosts/huggingface.py"),
    "safetensors": ("hosts/huggingface.py", "data/latents.py", "audio/"),
    "huggingface_hub": "hosts/huggingface.py",
    "diffusers": ("audio/oobleck.py", "hosts/stable_audio.py", "generation/v_sampling.py"),
    "soundfile": "audio/waveform.py",
    "scipy": "audio/",
    "numba": "music/compiling.py",
    "tokenizers": "tokens/bpe.py",
    "datatrove": "data/cluster.py",
    "wandb": "training/metrics.py",
    "megatron.bridge": "hosts/bridge.py",
    "nemo": "hosts/nemo.py",
    "nemo_run": "hosts/nemo_run.py",
    "matplotlib": ("music/pianoroll.py", "training/curve.py", "audio/spectrogram.py",
                   "profiling/scaling_chart.py"),
    "muq": "audio/muq_server.py",
    "fcntl": "storage/holding.py",
}

NEVER_TORCH = [
    "megatron_music.cli", "megatron_music.commands", "megatron_music.config", "megatron_music.contradictions",
    "megatron_music.convert_commands", "megatron_music.doctor", "megatron_music.errors", "megatron_music.flow_run",
    "megatron_music.predict_commands", "megatron_music.findings", "megatron_music.preflight", "megatron_music.preflight_run", "megatron_music.preflight_scripts",
    "megatron_music.processes", "megatron_music.sbatch_options", "megatron_music.recipes", "megatron_music.audio.captions", "megatron_music.audio.probe",
    "megatron_music.audio.reading", "megatron_music.audio.render", "megatron_music.audio.timbres", "megatron_music.audio.waveform",
    "megatron_music.audio.listening", "megatron_music.counted", "megatron_music.demo", "megatron_music.launch_commands",
    "megatron_music.audio.words", "megatron_music.audio_commands", "megatron_music.recipes.reference",
    "megatron_music.data.archives", "megatron_music.data.build", "megatron_music.data.building", "megatron_music.data.captioned", "megatron_music.data.crops",
    "megatron_music.data.charts", "megatron_music.data.corpus",
    "megatron_music.data.encode", "megatron_music.data.figures", "megatron_music.data.file_list", "megatron_music.data.folders", "megatron_music.data.grouping", "megatron_music.data.hashes", "megatron_music.data.id_counts", "megatron_music.data.index_cache", "megatron_music.data.labels",
    "megatron_music.data.latents", "megatron_music.data.latents_index", "megatron_music.data.latents_options", "megatron_music.data.merge",
    "megatron_music.data.sounds", "megatron_music.storage.holding", "megatron_music.storage.owners", "megatron_music.storage.writing",
    "megatron_music.data.tar_stream",
    "megatron_music.data.page", "megatron_music.data.reasons", "megatron_music.data.words", "megatron_music.data.plan", "megatron_music.data.report", "megatron_music.data.shard",
    "megatron_music.data.worker", "megatron_music.data.worker_process", "megatron_music.data.workers", "megatron_music.data.audio_worker", "megatron_music.audio.excerpts", "megatron_music.dataset_commands",
    "megatron_music.generation.continuing", "megatron_music.generation.given_bars",
    "megatron_music.generation.infill", "megatron_music.generation.output_folder", "megatron_music.generation.wishes", "megatron_music.generate_commands", "megatron_music.generate_audio_commands", "megatron_music.hosts.megatron_lm",
    "megatron_music.output", "megatron_music.models.backends", "megatron_music.models.flow_sizes", "megatron_music.models.sizes",
    "megatron_music.music.midi", "megatron_music.music.midi_arrays", "megatron_music.music.midi_tables", "megatron_music.music.midi_edits", "megatron_music.music.midi_events", "megatron_music.music.names",
    "megatron_music.music.grid", "megatron_music.music.likeness",
    "megatron_music.music.instruments", "megatron_music.music.measures", "megatron_music.music.pianoroll",
    "megatron_music.profiling.compare", "megatron_music.profiling.flops", "megatron_music.profiling.flow_flops", "megatron_music.profiling.logs",
    "megatron_music.profiling.memory", "megatron_music.profiling.mfu", "megatron_music.profiling.peaks",
    "megatron_music.profiling.gpu_monitor", "megatron_music.profiling.intervals", "megatron_music.profiling.predict", "megatron_music.profiling.tables",
    "megatron_music.profiling.sweep", "megatron_music.sweep_commands",
    "megatron_music.profiling.chrome_trace", "megatron_music.profiling.kernel_kinds", "megatron_music.profiling.log_facts",
    "megatron_music.profiling.nsys_trace", "megatron_music.profiling.timeline",
    "megatron_music.profiling.trace", "megatron_music.profiling.trace_page", "megatron_music.profiling_commands", "megatron_music.mfu_commands", "megatron_music.profiling.json_stream",
    "megatron_music.trace_commands", "megatron_music.rehearsal_commands", "megatron_music.rehearsal.roles",
    "megatron_music.tokens.augment", "megatron_music.tokens.blend", "megatron_music.tokens.bpe", "megatron_music.tokens.compiled",
    "megatron_music.tokens.compiled_sums", "megatron_music.tokens.compiled_windows", "megatron_music.music.compiling",
    "megatron_music.tokens.density", "megatron_music.tokens.fills", "megatron_music.tokens.folder",
    "megatron_music.tokens.grammar", "megatron_music.tokens.infill", "megatron_music.tokens.mmmtrack",
    "megatron_music.storage.reading", "megatron_music.storage.sealed", "megatron_music.tokens.vocabulary", "megatron_music.tokens.windows", "megatron_music.tokens.wording",
    "megatron_music.training.checkpoint_folder", "megatron_music.training.guard", "megatron_music.training.manifest",
]  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    place = path.relative_to(PACKAGE).parts
    if len(place) == 1:
        return  # cli, commands, config and doctor stand beside the rows
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "megatron_music" or len(parts) < 2 or parts[1] not in ROWS:
            continue
        assert ROWS[parts[1]] <= ROWS[place[0]], f"{path} imports {name}, which stands above it"
        assert {place[0], parts[1]} != {"tokens", "audio"}, f"{path} imports {name}: the columns never meet"
        if place[0] == "models":
            assert parts[1] not in ("data", "flow", "training"), f"{path} imports {name}"
        if place[0] == "hosts":
            assert parts[1] != "hosts", f"{path} imports {name}: a host knows no other"
        if place[0] == "generation":
            assert parts[1] not in ("data", "hosts"), f"{path} imports {name}: it is given a model"


@pytest.mark.parametrize("path", sorted((PACKAGE / "flow").glob("*.py")), ids=lambda path: path.name)
def test_flow_is_torch_alone(path):
    for name in imports(path):
        is_own = name.startswith("megatron_music.flow")
        assert is_own or name.split(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_dependency_has_one_owner(path):
    place = str(path.relative_to(PACKAGE))
    for name in imports(path):
        for dependency, owners in OWNERS.items():
            if name == dependency or name.startswith(dependency + "."):
                owners = owners if isinstance(owners, tuple) else (owners,)
                assert any(place.startswith(owner) for owner in owners), f"{place} imports {name}; {owners} owns it"


def test_files_are_replaced_and_synced_by_one_writer():
    """Parts of shards and of datasets grow while they are on their way to the disk; they take their names by it, too."""
    allowed = {"os.replace(": ("storage/writing.py", "data/shard.py"), "os.fsync(": ("storage/writing.py",), "os.getpid()}": ()}
    for path in modules():
        place, text = str(path.relative_to(PACKAGE)), path.read_text(encoding="utf-8")
        for call, places in allowed.items():
            assert call not in text or place in places, f"{place} calls {call}; storage.writing writes whole files"


def test_there_are_no_circles():
    graph = {}
    for path in modules():
        name = ".".join(("megatron_music", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = imports(path, top_level_only=True)
    done = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail, name))}"
        if name not in done:
            for imported in graph[name] & graph.keys():
                visit(imported, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_these_never_import_torch():
    code = f"import sys\nfor name in {NEVER_TORCH!r}: __import__(name)\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_files_stay_short_and_rooms_are_named():
    for path in modules():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, f"{path} is long; split it"
        assert path.stem not in ("utils", "common", "base", "helpers"), f"{path} needs a name that says what it is"
