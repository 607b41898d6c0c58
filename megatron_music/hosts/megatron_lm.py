"""A run of ours as arguments of Megatron-LM's own ``pretrain_gpt.py``: the same model, data, batches and optimizer.

    torchrun --nproc_per_node 8 pretrain_gpt.py $(python -m megatron_music.hosts.megatron_lm article data.path=OUT)

Megatron-LM keeps its own loop, schedule of batches and checkpoints. Imports neither torch nor Megatron, so it tells
nothing about what their versions accept: tests/latest/test_megatron_lm.py does.
"""

import shlex
import sys

from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.load import load_run
from megatron_music.config.run import RunConfig
from megatron_music.data.folders import cache_folder
from megatron_music.parallel.backends import has_gradient_fusion
from megatron_music.tokens import vocabulary
from megatron_music.tokens.tokenizer_folder import read_encoding

TOKENIZERS = ("huggingface", "null", "null-0.16")


def tokenizer_arguments(folder, tokenizer: str = "huggingface") -> list[str]:
    """The flags under which Megatron-LM's tokenizer has our ids for the vocabulary, the document end and the padding.

    Args:
        folder: ``OUT/tokenizer``.
        tokenizer: ``huggingface`` reads the folder, in every version. ``null`` knows numbers alone, as of core 0.19.
            ``null-0.16`` is the same for core 0.16, which counts the document end apart and has no padding.

    Raises:
        ValueError: an unknown word, a damaged folder, or merged tokens, which put the document end before the last id.
    """
    refuse_unless(tokenizer in TOKENIZERS, f"tokenizer is {tokenizer!r}; use one of {', '.join(TOKENIZERS)}")
    encoding = read_encoding(folder)
    if tokenizer == "huggingface":
        return ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder)]
    if tokenizer == "null":
        return [
            "--tokenizer-type",
            "NullTokenizer",
            "--vocab-size",
            str(encoding.vocab_size),
            "--null-tokenizer-eod-id",
            str(vocabulary.DOCUMENT_END),
            "--null-tokenizer-pad-id",
            str(vocabulary.PAD),
        ]
    refuse_unless(
        encoding.bpe == 0,
        f"{folder} has {encoding.bpe} merged tokens, and the NullTokenizer of core 0.16 ends documents with the last "
        f"id; "
        "use huggingface",
    )
    return ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(vocabulary.DOCUMENT_END)]


def _check_attention_backend(backend: str, local: bool) -> None:
    refuse_unless(
        not local or backend in ("auto", "local"),
        f"model.attention_backend is {backend}, a kernel of Transformer Engine, and the flags take our own layers; set "
        "model.attention_backend=auto, or call pretrain_gpt_arguments(run, local=False)",
    )
    refuse_unless(
        local or backend != "local",
        "model.attention_backend is local, and the flags take Transformer Engine's layers; set "
        "model.attention_backend=auto, or "
        "call pretrain_gpt_arguments(run) for our own layers",
    )


def pretrain_gpt_arguments(run: RunConfig, *, tokenizer: str = "huggingface", local: bool = True) -> list[str]:
    """All flags of a run.

    Args:
        local: take ``gpt_layer`` of models/specs.py; else Transformer Engine's layers, which Megatron-LM chooses
            itself. These fuse the accumulation of gradients where apex's extension for it can be imported on this
            machine.

    Raises:
        ValueError: the run names no data, or Megatron-LM has no flag for what it asks.
    """
    model, train, optimizer, data, parallel = run.model, run.train, run.optimizer, run.data, run.parallel
    if data.path is None:
        raise ConfigError(
            "data.path is not set; name the folder made by `megatron-music build tokens`, as in data.path=OUT"
        )
    refuse_unless(
        len(data.folders) == 1,
        f"data.path names {len(data.folders)} folders, and the splits of a blend have no weights in Megatron-LM; use "
        f"one",
    )
    _check_attention_backend(model.attention_backend, local)
    folder = data.folders[0]
    values = {
        "num-layers": model.num_layers,
        "hidden-size": model.hidden_size,
        "ffn-hidden-size": model.ffn_hidden_size,
        "num-attention-heads": model.num_attention_heads,
        "seq-length": model.seq_length,
        "max-position-embeddings": model.seq_length,
        "position-embedding-type": model.position_embedding_type,
        "rotary-base": model.rotary_base,
        "normalization": model.normalization,
        "attention-dropout": model.attention_dropout,
        "hidden-dropout": model.hidden_dropout,
        "tensor-model-parallel-size": parallel.tensor_model_parallel_size,
        "pipeline-model-parallel-size": parallel.pipeline_model_parallel_size,
        "micro-batch-size": train.micro_batch_size,
        "global-batch-size": train.global_batch_size,
        "train-iters": train.train_iters,
        "eval-interval": train.eval_interval or train.train_iters,
        "eval-iters": train.eval_iters,
        "seed": train.seed,
        "lr": optimizer.lr,
        "min-lr": optimizer.min_lr,
        "lr-decay-style": optimizer.lr_decay_style,
        "lr-decay-iters": max(train.train_iters, optimizer.lr_warmup_iters + 1),
        "lr-warmup-iters": optimizer.lr_warmup_iters,
        "weight-decay": optimizer.weight_decay,
        "adam-beta1": optimizer.adam_beta1,
        "adam-beta2": optimizer.adam_beta2,
        "clip-grad": optimizer.clip_grad,
        "train-data-path": folder / "train",
        "valid-data-path": folder / "valid",
        "test-data-path": folder / "test",
        "data-cache-path": cache_folder(data),
        "log-interval": run.logging.log_interval,
        "save-interval": run.checkpoint.save_interval or train.train_iters,
        # 768 divides by every tensor parallel size in use; padding would change the model.
        "make-vocab-size-divisible-by": 1,
    }
    if model.num_query_groups != model.num_attention_heads:
        values["num-query-groups"] = model.num_query_groups
    if not local:
        values["attention-backend"] = model.attention_backend
    if run.checkpoint.save:
        values |= {"save": run.checkpoint.save, "load": run.checkpoint.save}
    switches = {
        "swiglu": model.swiglu,
        "disable-bias-linear": not model.add_bias_linear,
        "untie-embeddings-and-output-weights": not model.share_embeddings_and_output_weights,
        "group-query-attention": model.num_query_groups != model.num_attention_heads,
        "sequence-parallel": parallel.sequence_parallel,
        "use-distributed-optimizer": optimizer.use_distributed_optimizer,
        "bf16": train.bf16,
        "reset-attention-mask": data.reset_attention_mask,
        "reset-position-ids": data.reset_position_ids,
        "eod-mask-loss": data.eod_mask_loss,
        "no-create-attention-mask-in-dataloader": not data.reset_attention_mask,
        "calculate-per-token-loss": True,
        # These need kernels of apex or Transformer Engine, which our own layers do without.
        "no-persist-layer-norm": local,
        "no-gradient-accumulation-fusion": local or not has_gradient_fusion(),
        "no-rope-fusion": local,
        "no-masked-softmax-fusion": local,
        "no-bias-swiglu-fusion": local,
        "no-bias-gelu-fusion": local,
    }
    arguments = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    arguments += [f"--{name}" for name, is_set in switches.items() if is_set]
    arguments += tokenizer_arguments(folder / "tokenizer", tokenizer)
    if local:
        arguments += ["--transformer-impl", "local", "--spec", "megatron_music.models.specs", "gpt_layer"]
    return arguments


if __name__ == "__main__":
    try:
        print(shlex.join(pretrain_gpt_arguments(load_run(sys.argv[1] if sys.argv[1:] else "article", sys.argv[2:]))))
    except ValueError as error:
        sys.exit(str(error))
