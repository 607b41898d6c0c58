"""Import paths of earlier versions: each imports what it had, with a DeprecationWarning. They go with the next
release.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType

# The old module, and where its names are now, the first that has a name.
MOVED = {
    "megatron_music.audio.captions": ("megatron_music.corpora.captions",),
    "megatron_music.audio.probe": ("megatron_music.audio.linear_probe",),
    "megatron_music.audio.spectrogram": ("megatron_music.reports.spectrogram",),
    "megatron_music.contradictions": ("megatron_music.config.checks",),
    "megatron_music.data.bach": ("megatron_music.corpora.bach",),
    "megatron_music.data.corpus": ("megatron_music.corpora.midi_files",),
    "megatron_music.data.labels": ("megatron_music.corpora.labels",),
    "megatron_music.data.options": ("megatron_music.data.build_options",),
    "megatron_music.data.report": ("megatron_music.reports.dataset", "megatron_music.config.sections"),
    "megatron_music.data.sounds": ("megatron_music.corpora.rendered_sounds",),
    "megatron_music.demo": ("megatron_music.cli.demo",),
    "megatron_music.errors": ("megatron_music.config.errors",),
    "megatron_music.flow_run": ("megatron_music.config.run", "megatron_music.config.flow_sections"),
    "megatron_music.models.sizes": ("megatron_music.config.gpt_sizes",),
    "megatron_music.music.likeness": ("megatron_music.music.fingerprint",),
    "megatron_music.music.measures": ("megatron_music.music.statistics",),
    "megatron_music.music.pianoroll": ("megatron_music.reports.pianoroll",),
    "megatron_music.recipes": ("megatron_music.config.load",),
    "megatron_music.recipes.reference": ("megatron_music.config.reference",),
    "megatron_music.tokens.folder": ("megatron_music.tokens.tokenizer_folder", "megatron_music.tokens.encoding"),
    "megatron_music.training.checkpoint": ("megatron_music.training.state", "megatron_music.checkpoints.weights"),
    "megatron_music.training.curve": ("megatron_music.reports.loss_curve",),
    "megatron_music.training.distributed": ("megatron_music.parallel.distributed",),
    "megatron_music.training.inference": ("megatron_music.generation.from_checkpoint",),
    "megatron_music.training.load": ("megatron_music.generation.load_models",),
    "megatron_music.training.sound": ("megatron_music.generation.audio_from_checkpoint",),
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for the old names after every other finder."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        homes = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} moved to {homes[0]}; import it from there", DeprecationWarning, stacklevel=2)

        def find(name: str):
            for home in homes:
                if hasattr(here := importlib.import_module(home), name):
                    return getattr(here, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find
        module.__doc__ = f"Moved to {', '.join(homes)}."


def install() -> None:
    """Make the old import paths known."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
