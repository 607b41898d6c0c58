"""Converts checkpoints to folders that transformers loads, and such folders to runs.

Owns transformers, huggingface_hub and safetensors. Weights are read from safetensors alone, never from a pickle, and no
code that lies in a folder is run. Which model is which, and how tensors are cut, is known to
models/huggingface_weights.py.
"""

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.load import read_run
from megatron_music.config.log import quiet_cuda_search
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import ModelConfig, ParallelConfig, TrainConfig
from megatron_music.storage.reading import read_json_object, refusing, regular
from megatron_music.tokens import vocabulary
from megatron_music.tokens.constraints import Walk
from megatron_music.tokens.lexicon import read_wording
from megatron_music.tokens.tokenizer_folder import ENCODING_FILE, write_tokenizer_folder

quiet_cuda_search()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # megatron-core names what it lacks: apex, Transformer Engine
    from megatron_music.checkpoints.find import find_checkpoint
    from megatron_music.checkpoints.folder import CONFIG as RUN_CONFIG
    from megatron_music.checkpoints.folder import TOKENIZER
    from megatron_music.checkpoints.new_folder import new_folder, one_process
    from megatron_music.generation.load_models import load_model_for_inference
    from megatron_music.models.gpt import build_gpt
    from megatron_music.models.huggingface_config import config_fields, model_of
    from megatron_music.models.huggingface_weights import (
        Form,
        form_named,
        form_of,
        from_huggingface,
        to_huggingface,
    )
    from megatron_music.parallel import distributed
    from megatron_music.training.model_card import write_card
    from megatron_music.training.state import save_weights

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_JSON = "tokenizer.json"

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth")
# Buffers that earlier versions of transformers kept among the weights.
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


def convert_to_huggingface(checkpoint: str | os.PathLike, folder: str | os.PathLike) -> Form:
    """Write a checkpoint as a folder for ``AutoModelForCausalLM`` and ``AutoTokenizer``.

    Args:
        checkpoint: a run's folder or one of its checkpoints, saved in any layout.
        folder: a new one, or an empty one; it appears whole or not at all. The weights are float32, or bfloat16 where
            the run's are.

    Returns:
        The form that the model has there.

    Raises:
        ValueError: no checkpoint, a model that has no form in transformers, or a folder that holds something.
    """
    checkpoint = find_checkpoint(checkpoint)
    form = form_of(read_run(checkpoint / RUN_CONFIG).model)
    with new_folder(folder) as unfinished, one_process():
        module, run = load_model_for_inference(checkpoint, own_layers=True)
        dtype = torch.bfloat16 if run.train.bf16 else torch.float32
        weights = {name: tensor.to("cpu", dtype) for name, tensor in _weights(module).items()}
        theirs = to_huggingface(run.model, weights)
        save_torch_state_dict(theirs, unfinished, metadata={"format": "pt"})
        _write_config(run.model, form, dtype, unfinished)
        write_tokenizer(unfinished, checkpoint / TOKENIZER)
        _limit_length(unfinished / "tokenizer_config.json", run.model.seq_length)
        parameters = sum(tensor.numel() for tensor in theirs.values())
        write_card(unfinished, checkpoint, run, form.class_name, parameters, str(dtype).removeprefix("torch."))
    return form


def convert_to_megatron(
    source: str | os.PathLike, folder: str | os.PathLike, tokenizer: str | os.PathLike | None = None
) -> Form:
    """Write a folder of transformers as a run that has not begun: weights alone.

    Args:
        source: a folder with config.json and safetensors.
        folder: a new one, or an empty one; it appears whole or not at all.
        tokenizer: the tokenizer folder of the data it was trained on; left out: that in ``source``.

    Returns:
        The form that the model had there.

    Raises:
        ValueError: no such folder, weights that are pickled, damaged or of other names and shapes, a model that is none
            of ours, another vocabulary, or a folder that holds something.
    """
    source = Path(source)
    tokenizer = Path(tokenizer or source)
    form, model = _read_config(source)
    _check_vocabulary(source, tokenizer, model.vocab_size)
    tensors = _read_tensors(source)
    held = sum(tensor.numel() for tensor in tensors.values())
    refuse_unless(
        model.parameter_count <= 2 * held,  # a tensor that is missing is named below
        f"{source / CONFIG} describes a model of {model.parameter_count:,} parameters, and the tensors beside it have "
        f"{held:,} elements; "
        "save the whole model again",
    )
    dtype = torch.bfloat16 if {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16} else torch.float32
    run = RunConfig(model=model, train=TrainConfig(bf16=dtype == torch.bfloat16))
    with new_folder(folder) as unfinished, one_process():
        distributed.start(ParallelConfig())
        distributed.seed_for_building(run.train.seed)
        module = build_gpt(model, run.parallel, dtype=dtype, explicit_attention_mask=True)
        wanted = to_huggingface(model, {name: tensor.to("meta") for name, tensor in _weights(module).items()})
        tensors = _checked(tensors, wanted, form, source)
        module.load_state_dict(from_huggingface(model, tensors), strict=False)
        written = unfinished / TOKENIZER
        write_tokenizer(written, tokenizer)
        files = {f"{TOKENIZER}/{path.name}": path.read_bytes() for path in written.iterdir()}
        shutil.rmtree(written)
        save_weights(unfinished, module, run, files)
    return form


def write_tokenizer(folder: str | os.PathLike, tokenizer_dir: str | os.PathLike) -> None:
    """Write the tokenizer of a dataset or a checkpoint into a folder, for ``AutoTokenizer`` and for ours.

    Args:
        folder: made if need be; its other files stay.
        tokenizer_dir: a tokenizer folder: ``OUT/tokenizer``, or one that this function wrote.

    Raises:
        ValueError: it is none, is damaged, or has another vocabulary.
    """
    encoding, bpe, _ = read_wording(tokenizer_dir)
    write_tokenizer_folder(folder, encoding, bpe)


class GrammarLogits(transformers.LogitsProcessor):
    """Keeps transformers' ``generate`` within the grammar, so that every piece decodes without repair.

    Pass it as ``logits_processor=[GrammarLogits(grammars)]``. Of a model with merged tokens it allows the others alone.

    Args:
        grammars: a fresh one for each sequence; it reads the prompt, too. Ids after its end are PAD.
    """

    def __init__(self, grammars: Sequence[Walk]):
        self._grammars, self._read = grammars, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [sequences, vocabulary], -inf where an id [sequences, length] may not be followed by it.

        Raises:
            ValueError: an id of the prompt cannot stand in its place.
        """
        allowed = torch.zeros(scores.shape, dtype=torch.bool)
        for row, grammar in enumerate(self._grammars):
            for token_id in input_ids[row, self._read :].tolist():
                grammar.advance(token_id)
            allowed[row, : vocabulary.SIZE] = torch.from_numpy(grammar.allowed().copy())
        self._read = input_ids.shape[1]
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)


def _write_config(model: ModelConfig, form: Form, dtype: torch.dtype, folder: Path) -> None:
    ids = {
        "bos_token_id": vocabulary.PIECE_START,
        "eos_token_id": vocabulary.DOCUMENT_END,
        "pad_token_id": vocabulary.PAD,
    }
    fields, earlier = config_fields(model, form)
    config = transformers.CONFIG_MAPPING[form.model_type](**fields, **ids, dtype=dtype, architectures=[form.class_name])
    content = json.dumps({**config.to_dict(), **earlier}, indent=2, sort_keys=True)
    (folder / CONFIG).write_text(content + "\n", encoding="utf-8")
    transformers.GenerationConfig(**ids).save_pretrained(folder)


def _limit_length(path: Path, seq_length: int) -> None:
    """Tell transformers how many tokens the model reads, which a dataset's tokenizer does not know."""
    content = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": seq_length}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read_config(folder: Path) -> tuple[Form, ModelConfig]:
    path = folder / CONFIG
    try:
        content = read_json_object(path)
        form = form_named(content["model_type"], str(folder))
        refuse_unless(
            "quantization_config" not in content, f"{folder} is quantized; save the model as it was before that"
        )
        config = transformers.CONFIG_MAPPING[form.model_type].from_dict(content)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; name a folder written by save_pretrained") from None
    except ConfigError:
        raise
    except Exception as error:  # transformers has many kinds for a file that is wrong
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"{path} cannot be read ({reason}); save the model with save_pretrained") from None
    return form, model_of(config, form, str(path))


def _check_vocabulary(source: Path, tokenizer: Path, vocab_size: int) -> None:
    """Refuse a model whose ids mean something else than ours."""
    remedy = "name the tokenizer folder of the data the model was trained on with --tokenizer OUT/tokenizer"
    refuse_unless(
        (tokenizer / ENCODING_FILE).is_file(),
        f"{tokenizer} holds no {ENCODING_FILE}, which says what the ids mean; {remedy}",
    )
    _, _, wording = read_wording(tokenizer)
    size = len(wording.words)
    refuse_unless(
        vocab_size == size, f"{source} has vocab_size={vocab_size}, and the tokenizer {size} tokens; {remedy}"
    )
    theirs = source / TOKENIZER_JSON
    if theirs.is_file():
        try:
            ids = read_json_object(theirs)["model"]["vocab"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{theirs} cannot be read ({error}); remove it, or save the tokenizer again") from None
        refuse_unless(ids == wording.ids, f"{theirs} has other ids than the tokens of {tokenizer}; {remedy}")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of one file or, by its index, of several, in their own types."""
    try:
        if (folder / INDEX).is_file():
            with refusing(folder / INDEX, "save the model again with save_pretrained"):
                names = set(read_json_object(folder / INDEX)["weight_map"].values())
                is_beside = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
            refuse_unless(
                is_beside,
                f"{folder / INDEX} names files outside of the folder; save the model again with save_pretrained",
            )
        elif (folder / WEIGHTS).is_file():
            names = {WEIGHTS}
        else:
            pickles = [path.name for kind in _PICKLES for path in sorted(folder.glob(kind))]
            reason = f"{pickles[0]} is a pickle, which may run any code" if pickles else f"it holds no {WEIGHTS}"
            raise ConfigError(f"{folder} cannot be read: {reason}; save the model as safetensors with save_pretrained")
        return {name: tensor for file in sorted(names) for name, tensor in load_file(regular(folder / file)).items()}
    except (SafetensorError, FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the weights in {folder} cannot be read ({error}); save the model with save_pretrained"
        ) from None


def _checked(tensors: dict[str, Tensor], wanted: dict[str, Tensor], form: Form, folder: Path) -> dict[str, Tensor]:
    """The wanted tensors.

    Raises:
        ConfigError: one is missing, is too many, or has another shape or a type that is no floating-point number.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_BUFFERS)}
    has_both = form.output_name in tensors.keys() - wanted.keys() and form.embedding_name in tensors
    if has_both and torch.equal(tensors[form.output_name], tensors[form.embedding_name]):
        del tensors[form.output_name]  # the output layer is the embedding, and was written all the same
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    for names, word in ((missing, "lacks"), (extra, "has, besides its own,")):
        if names:
            raise ConfigError(f"{folder} {word} the tensor {names[0]}; save the whole {form.class_name} again")
    for name, tensor in tensors.items():
        found, asked = list(tensor.shape), list(wanted[name].shape)
        refuse_unless(
            found == asked, f"{name} in {folder} is {found}, and by its config.json {asked}; save the model again"
        )
        refuse_unless(
            tensor.dtype in (torch.float32, torch.float16, torch.bfloat16),
            f"{name} in {folder} is of the type {tensor.dtype}; save the model as float32, float16 or bfloat16",
        )
    return tensors


def _weights(module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items() if not name.endswith("_extra_state")}
