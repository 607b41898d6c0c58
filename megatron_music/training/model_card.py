"""The README.md of an exported model: what it is, what it was trained on, and how to load it, as Markdown."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import megatron_music
from megatron_music.checkpoints.folder import TOKENIZER
from megatron_music.checkpoints.state import read_state
from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import ModelConfig, Run
from megatron_music.data.folders import DATA_RECORD
from megatron_music.storage.reading import (
    TABLE_BYTES,
    parse_json,
    read_json_object,
    read_text,
)
from megatron_music.tokens import vocabulary
from megatron_music.tokens.lexicon import read_wording
from megatron_music.training.metrics import FILE

CARD = "README.md"
_BYTES_PER_TOKEN = 2  # of a .bin

_LOAD_GPT = """```python
import transformers
from megatron_music.hosts.huggingface import GrammarLogits
from megatron_music.music.midi import write_midi
from megatron_music.tokens.tokenizer_folder import read_encoding
from megatron_music.tokens.grammar import Grammar
from megatron_music.tokens.mmmtrack import decode_piece

folder = "."  # this one
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
encoding, prompt = read_encoding(folder), tokenizer("PIECE_START", return_tensors="pt")
grammar = GrammarLogits([Grammar(encoding, {length})])
ids = model.generate(**prompt, do_sample=True, max_length={length}, logits_processor=[grammar])
write_midi(decode_piece(ids[0].tolist(), encoding.steps_per_quarter), "piece.mid")
```

`megatron-music convert FOLDER -o run --to megatron` turns it into a run for `generate midi` and further training."""

_LOAD_DIT = """Copy a published Stable Audio Open folder, replace its `transformer/` and `projection_model/` by these two, and load it:

```python
import diffusers

pipeline = diffusers.StableAudioPipeline.from_pretrained("the copy")
audio = pipeline("slow organ music", audio_end_in_s=10.0).audios[0]
```"""


def write_card(folder: Path, checkpoint: Path, run: Run, class_name: str, parameters: int, dtype: str) -> None:
    """Write the card of one checkpoint into a folder.

    Args:
        folder: what is exported.
        class_name: of the model in the library that loads the folder.
        parameters: how many the exported model has.
        dtype: of its weights.
    """
    is_gpt = not isinstance(run, FlowRunConfig)
    sections = {
        f"# {class_name} for {'symbolic music' if is_gpt else 'text-to-music'}": _what(is_gpt),
        "## Architecture": _table(_architecture(run, class_name, parameters, dtype)),
        **({"## Tokenizer": _tokenizer(checkpoint / TOKENIZER)} if is_gpt else {}),
        "## Data": _data(checkpoint, run),
        "## Training": _training(checkpoint, run),
        "## Losses": _losses(checkpoint),
        "## How to load it": _LOAD_GPT.format(length=run.model.seq_length) if is_gpt else _LOAD_DIT,
        "## Licence": "Not stated: whoever publishes this model chooses a licence, with regard to the data it was "
        "trained on.",
    }
    text = "\n\n".join(f"{heading}\n\n{body}" for heading, body in sections.items())
    (folder / CARD).write_text(text + "\n", encoding="utf-8")


def _what(is_gpt: bool) -> str:
    by = (
        f"trained with megatron_music {megatron_music.__version__} on megatron-core and exported with `megatron-music "
        f"convert`"
    )
    if is_gpt:
        return (
            f"A language model of music, {by}. It reads and writes MIDI as tokens: a piece is a sequence of tracks, "
            f"bars and notes."
        )
    return f"A diffusion transformer that generates audio latents from a text prompt, {by}."


def _table(facts: dict[str, object]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())])


def _architecture(run: Run, class_name: str, parameters: int, dtype: str) -> dict[str, object]:
    facts: dict[str, object] = {"class": class_name, "parameters": f"{parameters:,}", "dtype": dtype}
    fields = asdict(run.model) if isinstance(run.model, ModelConfig) else run.model.__dict__
    skipped = ("size", "attention_backend")
    return facts | {name: value for name, value in fields.items() if name not in skipped and value is not None}


def _tokenizer(folder: Path) -> str:
    encoding, _, wording = read_wording(folder)
    kept = [name for name in ("velocity", "tempo", "density", "bar_density", "infill") if getattr(encoding, name)]
    return _table(
        {
            "encoding": vocabulary.NAME,
            "token ids": f"{len(wording.words):,}" + (f", {encoding.bpe:,} of them merged" if encoding.bpe else ""),
            "grid": f"{encoding.steps_per_quarter} steps per quarter note",
            "windows": f"{encoding.bars} bars" if encoding.bars else "whole pieces",
            "meters": ", ".join(encoding.meters),
            "optional tokens": ", ".join(kept) or "none",
            "labels": ", ".join(name for name, _ in encoding.labels) or "none",
        }
    )


def _data(checkpoint: Path, run: Run) -> str:
    """Name, weight and size of each dataset; the sizes are those that the checkpoint recorded."""
    try:
        recorded = read_json_object(checkpoint / DATA_RECORD, follow_links=False)["folders"]
    except (OSError, ValueError, KeyError, TypeError):
        recorded = None
    if isinstance(run, FlowRunConfig):
        return (
            f"`{Path(run.data.path).name}`, a dataset of `megatron-music build latents`."
            if run.data.path
            else "Not recorded."
        )
    if not run.data.path:
        return "Not recorded: the weights were converted from another format."
    names = [Path(folder).name for folder in run.data.folders]
    if recorded is None or len(recorded) != len(names):
        return f"{_listed(names)}; sizes were not recorded."
    rows = ["| dataset | split | documents | tokens |", "| --- | --- | ---: | ---: |"]
    for name, splits in zip(names, recorded, strict=True):
        for split, facts in splits.items():
            rows.append(f"| {name} | {split} | {facts['documents']:,} | {facts['bin_bytes'] // _BYTES_PER_TOKEN:,} |")
    weights = run.data.weights
    blend = (
        f"\n\nBlended with the weights {', '.join(f'{weight:g}' for weight in weights)}."
        if len(names) > 1 and weights
        else ""
    )
    return "\n".join(rows) + blend


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _training(checkpoint: Path, run: Run) -> str:
    state = read_state(checkpoint)
    facts: dict[str, object] = {
        "steps": f"{state['iteration']:,} of {run.train.train_iters:,}",
        "samples": f"{state['consumed_samples']:,}",
        "global batch size": run.train.global_batch_size,
        "learning rate": f"{run.optimizer.lr:g}, {run.optimizer.lr_decay_style} decay to {run.optimizer.min_lr:g}",
        "precision": "bfloat16 with float32 main weights" if run.train.bf16 else "float32",
        "seed": run.train.seed,
    }
    if not isinstance(run, FlowRunConfig):
        facts["tokens"] = f"{state['consumed_samples'] * run.model.seq_length:,}"
    return _table(facts) if state["iteration"] else "None here: the weights were converted from another format."


def _losses(checkpoint: Path) -> str:
    """The last training loss and the last validation loss up to this checkpoint, as the run's metrics have them."""
    last = read_state(checkpoint)["iteration"]
    found: dict[str, tuple[float, int]] = {}
    try:
        rows = [parse_json(line) for line in read_text(checkpoint.parent / FILE, TABLE_BYTES).splitlines()]
        for row in rows:
            for name in ("loss", "valid_loss"):
                if row["iteration"] <= last and row.get(name) is not None:
                    found[name] = row[name], row["iteration"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    kinds = {"loss": "training loss", "valid_loss": "validation loss"}
    lines = [f"| {kinds[name]} | {value:.4f} | {iteration:,} |" for name, (value, iteration) in found.items()]
    return (
        "\n".join(["| | value | step |", "| --- | ---: | ---: |", *lines])
        if lines
        else "Not recorded beside the checkpoint."
    )
