"""Our checkpoints as transformers' models and back: logits, bits, tokenizers, layouts, and what is refused."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from megatron.core.tokenizers import MegatronTokenizer
from safetensors.torch import load_file, save_file
from tiny import tiny_score
from tiny_gpt import launch, tiny_dataset, tiny_run

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.cli.entry import guarded, main
from megatron_music.config.errors import ConfigError
from megatron_music.config.load import read_run
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import ModelConfig, ParallelConfig
from megatron_music.generation.load_models import load_model_for_inference
from megatron_music.hosts.huggingface import (
    GrammarLogits,
    convert_to_huggingface,
    convert_to_megatron,
    write_tokenizer,
)
from megatron_music.models.gpt import build_gpt
from megatron_music.models.huggingface_weights import form_of
from megatron_music.music.midi import read_midi
from megatron_music.parallel import distributed
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.bpe import Bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.grammar import Grammar
from megatron_music.tokens.lexicon import read_wording
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.loop import DONE, train
from megatron_music.training.state import load_checkpoint, save_weights

LEARNED = {"position_embedding_type": "learned_absolute"}
GATED = {"normalization": "RMSNorm", "swiglu": True}
UNTIED = {"share_embeddings_and_output_weights": False}
FORMS = {
    "GPT2LMHeadModel": LEARNED | {"ffn_hidden_size": 96, "attention_dropout": 0.1, "hidden_dropout": 0.2},
    "GPT2LMHeadModel untied": LEARNED | UNTIED,
    "GPTNeoXForCausalLM": {"rotary_base": 500, "hidden_dropout": 0.1},
    "GPTNeoXForCausalLM untied": UNTIED,
    "LlamaForCausalLM": GATED | {"num_query_groups": 2, "ffn_hidden_size": 96, "rotary_base": 500},
    "LlamaForCausalLM untied": GATED | UNTIED | {"num_query_groups": 1, "add_bias_linear": False},
    "LlamaForCausalLM without groups": GATED | {"add_bias_linear": False, "attention_dropout": 0.1},
}
LABELS = (("GENRE", ("JAZZ", "ROCK")),)
BPE = Bpe([(v.NOTE_ON + 60, v.TIME_DELTA + 4), (v.SIZE, v.NOTE_OFF + 60)])
MERGED = Encoding(labels=LABELS, bpe=2)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    transformers.utils.logging.disable_progress_bar()


def random_model(folder: Path, bf16: bool = False, tokenizer: Path | None = None, **fields) -> Path:
    """A run that has not begun, of a model whose every parameter is random: no bias is 0, no norm's weight 1."""
    config = tiny_run("data", f"train.bf16={bf16}")
    if tokenizer is None:
        tokenizer = folder.with_name(f"{folder.name}-tokenizer")
        write_tokenizer_folder(tokenizer, Encoding())
    model = ModelConfig(size="tiny", vocab_size=read_wording(tokenizer)[0].vocab_size, **fields)
    config = RunConfig(model=model, train=config.train)
    distributed.start(ParallelConfig())
    distributed.seed_for_building(0)
    module = build_gpt(model, config.parallel, dtype=torch.bfloat16 if bf16 else torch.float32)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        noise = 0.2 * torch.randn(parameter.shape, generator=generator)
        parameter.data = (noise + name.endswith("layernorm.weight")).to(parameter.dtype)
    save_weights(folder, module, config, {f"tokenizer/{path.name}": path.read_bytes() for path in tokenizer.iterdir()})
    distributed.stop()
    return folder


def parameters_of(run: Path) -> dict[str, torch.Tensor]:
    module, _ = load_model_for_inference(run)
    found = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    distributed.stop()
    return found


def our_logits(run: Path, ids: torch.Tensor) -> torch.Tensor:
    module, _ = load_model_for_inference(run)
    with torch.no_grad():
        logits = module(ids, torch.arange(ids.shape[1]).expand_as(ids), None)
    distributed.stop()
    return logits


def their_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model, found = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    with torch.no_grad():
        return model(ids).logits


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


IDS = torch.randint(0, v.SIZE, (2, 64), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", FORMS)
def test_there_the_same_logits_and_back_the_same_bits(tmp_path, name):
    run = random_model(tmp_path / "run", **FORMS[name])
    assert convert_to_huggingface(run, tmp_path / "theirs").class_name == name.split()[0]
    logits = our_logits(run, IDS)
    assert logits.abs().mean() > 0.5  # of an order that an error would show in
    torch.testing.assert_close(their_logits(tmp_path / "theirs", IDS), logits, rtol=0, atol=1e-5)

    convert_to_megatron(tmp_path / "theirs", tmp_path / "back")
    assert_same(parameters_of(tmp_path / "back"), parameters_of(run))
    fields = vars(read_run(find_checkpoint(run) / "config.yaml").model) | {"size": "custom"}
    assert vars(read_run(tmp_path / "back" / "config.yaml").model) == fields
    for file in ("mmmtrack.json", "tokenizer.json"):
        old, new = (find_checkpoint(folder) / "tokenizer" / file for folder in (run, tmp_path / "back"))
        assert old.read_bytes() == new.read_bytes()


def stranger(name: str, **fields) -> transformers.PreTrainedModel:
    """A model as transformers builds it, of random parameters."""
    shape = {"vocab_size": 768, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    shape |= {"max_position_embeddings": 64}
    rope = {"rope_type": "default", "rope_theta": 250.0}
    config = {
        "gpt2": {"activation_function": "gelu", "embd_pdrop": 0.0},
        "gpt_neox": {
            "use_parallel_residual": False,
            "intermediate_size": 80,
            "rope_parameters": rope | {"partial_rotary_factor": 1.0},
        },
        "llama": {"rms_norm_eps": 1e-5, "num_key_value_heads": 3, "rope_parameters": rope, "intermediate_size": 80},
    }[name]
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.CONFIG_MAPPING[name](**(shape | config | fields))
    )
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model.eval()


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    write_tokenizer_folder(tmp_path / "tokenizer", Encoding())
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("gpt2", {}),
        ("gpt_neox", {"tie_word_embeddings": True}),
        ("gpt_neox", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
    ],
)
def test_what_transformers_writes_is_read(tmp_path, tokenizer, name, fields):
    model = stranger(name, **fields)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert (
        main(
            [
                "convert",
                str(tmp_path / "theirs"),
                "-o",
                str(tmp_path / "run"),
                "--to",
                "megatron",
                "--tokenizer",
                str(tokenizer),
            ]
        )
        == 0
    )
    with torch.no_grad():
        torch.testing.assert_close(our_logits(tmp_path / "run", IDS), model(IDS).logits, rtol=0, atol=1e-5)


def test_an_output_layer_written_though_it_is_the_embedding(tmp_path, tokenizer):
    stranger("gpt2").save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors | {"transformer.h.0.attn.bias": torch.ones(64, 64)}, path)  # a mask, which is no weight
    convert_to_megatron(tmp_path / "theirs", tmp_path / "run", tokenizer)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(ConfigError, match=r"besides its own, the tensor lm_head.weight"):
        convert_to_megatron(tmp_path / "theirs", tmp_path / "other", tokenizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path, tokenizer, dtype):
    """bfloat16 stays what it is there and back; float16 becomes float32, which holds all its values."""
    model = stranger("llama").to(dtype)
    model.save_pretrained(tmp_path / "theirs")
    convert_to_megatron(tmp_path / "theirs", tmp_path / "run", tokenizer)
    assert read_run(tmp_path / "run" / "config.yaml").train.bf16 == (dtype == torch.bfloat16)
    convert_to_huggingface(tmp_path / "run", tmp_path / "back")
    old, new = load_file(tmp_path / "theirs" / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16 if dtype == torch.bfloat16 else torch.float32}
    assert_same(*({name: tensor.float() for name, tensor in tensors.items()} for tensors in (new, old)))
    assert (
        json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == str(next(iter(new.values())).dtype)[6:]
    )


def test_checkpoints_of_any_layout(tmp_path):
    tiny_dataset(tmp_path / "data")
    run = random_model(tmp_path / "run", **(GATED | UNTIED | {"num_query_groups": 2}))
    torch.save(IDS, tmp_path / "ids.pt")
    launch(2, Path(__file__).parents[1] / "huggingface_worker.py", tmp_path)
    convert_to_huggingface(run, tmp_path / "theirs")
    wanted = load_file(tmp_path / "theirs" / "model.safetensors")
    for layout in ("tp", "pp"):
        convert_to_huggingface(tmp_path / layout, tmp_path / f"{layout}-theirs")
        assert_same(load_file(tmp_path / f"{layout}-theirs" / "model.safetensors"), wanted)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    torch.testing.assert_close(logits, their_logits(tmp_path / "theirs", IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("train.bf16=true",),
        ("optimizer.use_distributed_optimizer=true",),
        ("train.bf16=true", "optimizer.use_distributed_optimizer=true"),
    ],
)
def test_a_run_starts_from_weights_alone(tmp_path, options):
    """Before a step and after one of next to no length, the model computes what it was given."""
    run = random_model(tmp_path / "run")
    data = tiny_dataset(tmp_path / "data")
    tolerance = 0.05 if "train.bf16=true" in options else 1e-5
    config = tiny_run(data, "optimizer.lr=1e-12", "optimizer.lr_warmup_iters=0", *options)
    distributed.start(config.parallel)
    engine = Engine(config, gpt_task(config))
    assert load_checkpoint(find_checkpoint(run), engine, resume=False).iteration == 0
    engine.step(engine.task.train_batches(0))
    found = {name: parameter.detach().float() for name, parameter in engine.modules[0].named_parameters()}
    distributed.stop()
    for name, parameter in parameters_of(run).items():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=tolerance)


def test_train_and_generate_take_a_converted_folder(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data")
    random_model(tmp_path / "run", seq_length=256)
    convert_to_huggingface(tmp_path / "run", tmp_path / "theirs")
    convert_to_megatron(tmp_path / "theirs", tmp_path / "back")
    model = ["model.seq_length=256", "train.train_iters=1"]
    more = [f"checkpoint.load={tmp_path / 'back'}", f"checkpoint.save={tmp_path / 'more'}"]
    assert train(tiny_run(data, *more, *model)) == DONE
    (tmp_path / "scratch").mkdir()
    assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'scratch'}", *model)) == DONE
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("more", "scratch")]
    losses = [json.loads(lines[0])["loss"] for lines in metrics]
    assert losses[0] > losses[1] + 0.5  # random weights of this size are far worse than fresh ones
    with pytest.raises(ValueError, match=r"holds weights alone, .* start one from them with checkpoint.load="):
        train(tiny_run(data, f"checkpoint.save={tmp_path / 'back'}", *model))
    assert main(["generate", "midi", str(tmp_path / "back"), "-o", str(tmp_path / "new")]) == 0
    assert "1 piece of 4 bars" in capsys.readouterr().out
    assert read_midi(tmp_path / "new" / "001.mid").tracks


def test_an_exported_model_says_what_it_is_and_everybody_can_read_it(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "my data")
    run = tmp_path / "run"
    assert (
        train(
            tiny_run(
                data,
                f"checkpoint.save={run}",
                "train.train_iters=2",
                "train.global_batch_size=4",
                "train.micro_batch_size=4",
            )
        )
        == DONE
    )
    capsys.readouterr()
    assert main(["convert", str(run), "-o", str(tmp_path / "theirs"), "--to", "huggingface", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {"output": str(tmp_path / "theirs"), "form": "huggingface", "model": "GPTNeoXForCausalLM"}
    card = (tmp_path / "theirs" / "README.md").read_text()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    tokens = (data / "train.bin").stat().st_size // 2
    values = {
        line["iteration"]: line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "valid_loss" in line
    }
    for line in (
        "| class | GPTNeoXForCausalLM |",
        f"| parameters | {model.num_parameters():,} |",
        "| encoding | mmmtrack-1 |",
        f"| my data | train | 60 | {tokens:,} |",
        "| steps | 2 of 2 |",
        "| samples | 8 |",
        f"| validation loss | {values[2]['valid_loss']:.4f} | 2 |",
    ):
        assert line in card.splitlines(), line
    assert "AutoModelForCausalLM.from_pretrained" in card and "## Licence" in card
    code = (
        card.partition("```python\n")[2]
        .partition("```")[0]
        .replace('folder = "."', f"folder = {str(tmp_path / 'theirs')!r}")
    )
    exec(
        code.replace('"piece.mid"', repr(str(tmp_path / "piece.mid"))), {}
    )  # the lines of the card as a reader copies them
    assert read_midi(tmp_path / "piece.mid").tracks
    pieces = transformers.pipeline("text-generation", model=str(tmp_path / "theirs"))
    text = pieces("PIECE_START ", max_length=64, logits_processor=[GrammarLogits([Grammar(Encoding(), 64)])])[0][
        "generated_text"
    ]
    assert text.startswith("PIECE_START TRACK_START ")
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in (tmp_path / "theirs").iterdir()} == {(tmp_path / "plain").stat().st_mode}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert tokenizer.model_max_length == find_seq_length(run)


def test_importing_what_generates_prints_nothing():
    code = "from megatron_music.hosts.huggingface import GrammarLogits"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def find_seq_length(run: Path) -> int:
    return read_run(find_checkpoint(run) / "config.yaml").model.seq_length


@pytest.fixture
def merged(tmp_path) -> Path:
    write_tokenizer_folder(tmp_path / "merged", MERGED, BPE)
    return tmp_path / "merged"


def test_the_tokenizer_goes_along(tmp_path, merged):
    run = random_model(tmp_path / "run", tokenizer=merged)
    convert_to_huggingface(run, tmp_path / "theirs")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    encoding, bpe, wording = read_wording(tmp_path / "theirs")
    assert (encoding, bpe) == (MERGED, BPE) and loaded.get_vocab() == wording.ids
    ids = encode_piece(tiny_score(), MERGED, (v.IDS["GENRE=1"],))
    window = bpe.encode(ids, np.array([len(ids)]))[0].tolist()
    assert max(window) >= v.SIZE
    text = wording.to_text(window)
    assert "GENRE=ROCK" in text and loaded(text)["input_ids"] == window and loaded.decode(window) == text
    names = (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id)
    assert names == (v.PAD, v.PIECE_START, v.DOCUMENT_END)
    convert_to_megatron(tmp_path / "theirs", tmp_path / "back")
    assert read_wording(find_checkpoint(tmp_path / "back") / "tokenizer")[:2] == (MERGED, BPE)


def test_transformers_generates_under_our_grammar(tmp_path):
    run = random_model(tmp_path / "run", seq_length=256, **LEARNED)
    convert_to_huggingface(run, tmp_path / "theirs")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    prompt = torch.tensor([[v.PIECE_START]] * 3)
    torch.manual_seed(0)
    mask = torch.ones_like(prompt)
    free = model.generate(prompt, attention_mask=mask, do_sample=True, max_new_tokens=50)
    pieces = [decode_piece(row) for row in free.tolist()]  # whatever they are
    assert any(encode_piece(piece).tolist() != row for piece, row in zip(pieces, free.tolist(), strict=True))
    grammars = [Grammar(Encoding(), 200) for _ in prompt]
    found = model.generate(
        prompt, attention_mask=mask, do_sample=True, max_length=200, logits_processor=[GrammarLogits(grammars)]
    )
    for row in found.tolist():
        ids = row[: row.index(v.DOCUMENT_END)]
        assert encode_piece(decode_piece(ids)).tolist() == ids
        assert not any(row[len(ids) + 1 :])
    with pytest.raises(ValueError, match="TRACK_END cannot be token 2"):
        GrammarLogits([Grammar(Encoding(), 200)])(torch.tensor([[v.PIECE_START, v.TRACK_END]]), torch.zeros(1, v.SIZE))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"normalization": "RMSNorm"},
            "model.normalization=RMSNorm has no form in transformers; the nearest is "
            "GPTNeoXForCausalLM, for which train one with model.normalization=LayerNorm",
        ),
        ({"swiglu": True}, "the nearest is GPTNeoXForCausalLM, for which train one with model.swiglu=false"),
        ({"num_query_groups": 2}, "train one with model.num_query_groups=4"),
        (
            LEARNED | GATED | {"add_bias_linear": False},
            "the nearest is LlamaForCausalLM, for which train one with model.position_embedding_type=rope",
        ),
        (
            LEARNED | {"add_bias_linear": False},
            "is GPT2LMHeadModel, for which train one with model.add_bias_linear=true",
        ),
    ],
)
def test_models_without_a_form(fields, said):
    with pytest.raises(ConfigError) as error:
        form_of(ModelConfig(size="tiny", **fields))
    assert said in str(error.value)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """Folders of strangers, by model_type, to be spoiled in a copy."""
    folder = tmp_path_factory.mktemp("written")
    for name in ("gpt2", "gpt_neox", "llama"):
        stranger(name).save_pretrained(folder / name)
    return {name: folder / name for name in ("gpt2", "gpt_neox", "llama")}


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "gpt2",
            {"activation_function": "gelu_new"},
            "has activation_function='gelu_new', where our layers have 'gelu'",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx=True"),
        (
            "gpt2",
            {"layer_norm_epsilon": 1e-6},
            "layer_norm_epsilon=1e-06, where our layers have 1e-05; train a model with",
        ),
        ("gpt2", {"n_layer": "two"}, "cannot be read"),
        (
            "gpt2",
            {"n_layer": 3},
            "lacks the tensor transformer.h.2.attn.c_attn.bias; save the whole GPT2LMHeadModel again",
        ),
        ("gpt2", {"n_layer": 1}, "has, besides its own, the tensor transformer.h.1.attn.c_attn.bias"),
        ("gpt2", {"n_inner": 64}, "transformer.h.0.mlp.c_fc.bias in .* is \\[192\\], and by its config.json \\[64\\]"),
        ("gpt2", {"vocab_size": 50257}, "has vocab_size=50257, and the tokenizer 768"),
        ("gpt2", {"model_type": "bloom"}, "is a model of the type 'bloom'; use gpt2, gpt_neox or llama"),
        ("gpt2", {"model_type": ["gpt2"]}, "is a model of the type"),
        ("gpt_neox", {"use_parallel_residual": True}, "has use_parallel_residual=True"),
        ("gpt_neox", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.25}}, "has partial_rotary_factor=0.25"),
        (
            "gpt_neox",
            {"rope_parameters": ROPE | {"rope_theta": 0.5}},
            "has rope_theta=0.5, where ours is a whole number",
        ),
        ("llama", {"rms_norm_eps": 1e-6}, "has rms_norm_eps=1e-06"),
        ("llama", {"rope_parameters": ROPE | {"rope_type": "linear", "factor": 2.0}}, "has rope_type='linear'"),
        ("llama", {"mlp_bias": True}, "has mlp_bias=True, where our layers have False"),
        ("llama", {"head_dim": 16}, "has head_dim=16, where our layers have 8"),
        ("llama", {"hidden_act": "gelu"}, "has hidden_act='gelu'"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "is quantized"),
    ],
)
def test_strangers_models_that_are_none_of_ours(tmp_path, tokenizer, written, name, change, said):
    shutil.copytree(written[name], tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=said) as error:
        convert_to_megatron(tmp_path / "theirs", tmp_path / "run", tokenizer)
    assert "\n" not in str(error.value) and sorted(path.name for path in tmp_path.iterdir()) == ["theirs", "tokenizer"]


def spoil_type(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"transformer.ln_f.bias": torch.zeros(48, dtype=torch.int8)}, folder / "model.safetensors")


def spoil_with_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_index(folder: Path) -> None:
    content = {"weight_map": {"transformer.wte.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def spoil_vocabulary(folder: Path) -> None:
    vocabulary = dict(zip(v.TOKENS, reversed(range(v.SIZE)), strict=True))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08" + bytes(7) + b"nonsense"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
        (spoil_vocabulary, "tokenizer.json has other ids than the tokens of"),
        (spoil_with_pickle, "pytorch_model.bin is a pickle, which may run any code; save the model as safetensors"),
        (spoil_index, "names files outside of the folder"),
        (spoil_type, "transformer.ln_f.bias in .* is of the type torch.int8"),
    ],
)
def test_damaged_folders(tmp_path, tokenizer, written, spoil, said):
    shutil.copytree(written["gpt2"], tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    with pytest.raises(ConfigError, match=said) as error:
        convert_to_megatron(tmp_path / "theirs", tmp_path / "run", tokenizer)
    assert "\n" not in str(error.value) and sorted(path.name for path in tmp_path.iterdir()) == ["theirs", "tokenizer"]


def test_nothing_is_written_over_or_left_half(tmp_path, capsys, monkeypatch):
    run = random_model(tmp_path / "run")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "song.mid").write_bytes(b"MThd")

    def refused(*arguments) -> str:
        assert main(["convert", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "taken is not empty; name a new folder" in refused(run, "-o", taken, "--to", "huggingface")
    assert "song.mid is a file; name a new folder" in refused(run, "-o", taken / "song.mid", "--to", "huggingface")
    assert "taken holds no checkpoint" in refused(taken, "-o", tmp_path / "new", "--to", "huggingface")
    assert "config.json is missing" in refused(run, "-o", tmp_path / "new", "--to", "megatron")
    to_huggingface = [run, "-o", tmp_path / "new", "--to", "huggingface"]
    assert "--tokenizer goes with --to megatron" in refused(*to_huggingface, "--tokenizer", taken)
    with monkeypatch.context() as two:
        two.setenv("WORLD_SIZE", "2")
        assert "in one process, not in 2" in refused(run, "-o", tmp_path / "new", "--to", "huggingface")

    def full(*_, **__):
        raise OSError(28, "No space left on device", "new")

    with monkeypatch.context() as disk:
        disk.setattr("megatron_music.hosts.huggingface.write_tokenizer", full)
        assert main(["convert", str(run), "-o", str(tmp_path / "new"), "--to", "huggingface"]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-tokenizer", "taken"]
    assert [path.name for path in taken.iterdir()] == ["song.mid"]
    (tmp_path / "new").mkdir()
    assert main(["convert", str(run), "-o", str(tmp_path / "new"), "--to", "huggingface"]) == 0
    assert main(["convert", str(tmp_path / "new"), "-o", str(tmp_path / "back"), "--to", "megatron"]) == 0
    assert not list(tmp_path.glob(".*"))


def test_a_tokenizer_alone(tmp_path, merged):
    write_tokenizer(tmp_path / "copy", merged)
    assert {path.name: path.read_bytes() for path in merged.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()
    }
    with pytest.raises(ValueError, match=r"mmmtrack.json is missing"):
        write_tokenizer(tmp_path / "other", tmp_path)


def test_megatrons_tokenizer_of_hugging_face(tmp_path, merged):
    """The route of `--tokenizer-type HuggingFaceTokenizer` in Megatron-LM, beside that of no tokenizer at all."""
    loaded = MegatronTokenizer.from_pretrained(str(merged), {"library": "huggingface"})
    window = [v.PIECE_START, v.IDS["GENRE=1"], v.TRACK_START, v.BAR_START, v.SIZE + 1, v.BAR_END, v.DOCUMENT_END]
    text = read_wording(merged)[2].to_text(window)
    assert loaded.tokenize(text) == window and loaded.tokenize("PIECE_START flute") == [v.PIECE_START, v.PAD]
    assert (loaded.vocab_size, loaded.eod, loaded.pad) == (770, v.DOCUMENT_END, v.PAD)
    null = MegatronTokenizer.from_pretrained(None, {"library": "null"}, vocab_size=v.SIZE - 1)
    assert (null.vocab_size, null.eod) == (v.SIZE, v.DOCUMENT_END)


def test_the_example(tmp_path, monkeypatch, capsys):
    """Trainer, the conversion and new pieces in one program; both libraries find the same loss."""
    path = Path(__file__).parents[2] / "examples" / "02_hugging_face.py"
    spec = importlib.util.spec_from_file_location("hugging_face_example", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    data, out = tiny_dataset(tmp_path / "data"), tmp_path / "out"
    options = ["--size", "tiny", "--steps", "8", "--pieces", "2", "--lr", "0.01"]
    monkeypatch.setattr("sys.argv", ["", str(data), str(out), *options])
    assert guarded(example.main) == 0, capsys.readouterr().err
    losses = json.loads((out / "losses.json").read_text())
    assert losses["megatron_core"] == pytest.approx(losses["transformers"], abs=1e-4) and losses["transformers"] < 6
    assert [len(read_midi(path).tracks) > 0 for path in sorted((out / "pieces").iterdir())] == [True, True]
    assert guarded(example.main) == 2 and "is there already; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["transformers", "safetensors"])
def test_the_missing_extra_is_named(tmp_path, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "megatron_music.hosts.huggingface")
    assert main(["convert", str(tmp_path), "-o", str(tmp_path / "new"), "--to", "huggingface"]) == 2
    assert f"needs {module}; run: {sys.executable} -m pip install {module}" in capsys.readouterr().err
