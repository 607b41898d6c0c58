"""The Hugging Face route in one program: a GPT-2 trained with transformers' Trainer, then a run of ours, then new
pieces.

    megatron-music corpus bach -o midi
    megatron-music build tokens midi -o data
    python examples/02_hugging_face.py data out

The data is a dataset of `build tokens`, read from its .bin/.idx. `--size article --steps 20000` is the GPT-2 of
NVIDIA's post on AI music; by default it is the demo's size for 100 steps, which one tries out. docs/huggingface.md says
more.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

from megatron_music.cli.entry import guarded
from megatron_music.config.gpt_sizes import SIZES
from megatron_music.config.log import quiet_dependencies
from megatron_music.tokens import vocabulary
from megatron_music.tokens.tokenizer_folder import read_encoding

SEED = 0


class Blocks(torch.utils.data.Dataset):
    """A split of a dataset as token ids [seq_length]: documents one after another, cut into blocks of one length."""

    def __init__(self, data: Path, split: str, seq_length: int):
        from megatron_music.data.indexed import open_split

        documents = open_split(data, split)
        ids = np.concatenate([documents[number] for number in range(len(documents))])
        self.ids = ids[: len(ids) // seq_length * seq_length].reshape(-1, seq_length)
        if not len(self.ids):
            raise ValueError(
                f"{split} of {data} has fewer than {seq_length} tokens; build a larger one or use --size tiny"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.ids[number].astype(np.int64))
        labels = ids.clone()
        labels[0] = -100  # nothing foretells the first id, and Trainer's mean would count it
        return {"input_ids": ids, "labels": labels}  # the model moves the labels on by one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a dataset made by `megatron-music build tokens`")
    parser.add_argument("folder", type=Path, help="gets everything; a new one")
    parser.add_argument("--size", choices=SIZES, default="demo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--pieces", type=int, default=4)
    options = parser.parse_args()
    quiet_dependencies()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from megatron_music.hosts.huggingface import convert_to_megatron

    if options.folder.exists():
        raise ValueError(f"{options.folder} is there already; name a new folder")

    model_dir, run, pieces = (options.folder / name for name in ("gpt2", "run", "pieces"))
    print(f"[1/3] a GPT-2 of the size {options.size}, {options.steps} steps of Trainer -> {model_dir}", flush=True)
    theirs = train(options, model_dir)
    print(f"[2/3] the same as a run of ours -> {run}", flush=True)
    convert_to_megatron(model_dir, run)
    ours = valid_loss(run, options.data)
    print(f"[3/3] {options.pieces} pieces -> {pieces}", flush=True)
    compose(run, pieces, options.pieces)
    (options.folder / "losses.json").write_text(json.dumps({"transformers": theirs, "megatron_core": ours}) + "\n")
    print(
        f"validation loss    {theirs:.4f} nats a token by transformers, {ours:.4f} by megatron-core after the "
        f"conversion"
    )
    return 0


def train(options, folder: Path) -> float:
    """Train from nothing and save; returns the loss on the split `valid`."""
    from megatron_music.hosts.huggingface import write_tokenizer

    size = SIZES[options.size]
    transformers.set_seed(SEED)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=read_encoding(options.data / "tokenizer").vocab_size,
            n_positions=size.seq_length,
            n_embd=size.hidden_size,
            n_layer=size.num_layers,
            n_head=size.num_attention_heads,
            n_inner=size.ffn_hidden_size,
            activation_function="gelu",  # GPT2Config's own, gelu_new, is an approximation that our layers do not have
            bos_token_id=vocabulary.PIECE_START,
            eos_token_id=vocabulary.DOCUMENT_END,
            pad_token_id=vocabulary.PAD,
        )
    )
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder.with_name("trainer")),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.lr,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, options.steps // 10),
            weight_decay=0.01,
            logging_steps=max(1, options.steps // 10),
            save_strategy="no",
            report_to="none",
            disable_tqdm=not sys.stderr.isatty(),
            seed=SEED,
        ),
        train_dataset=Blocks(options.data, "train", size.seq_length),
        eval_dataset=Blocks(options.data, "valid", size.seq_length),
    )
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(folder))
    write_tokenizer(folder, options.data / "tokenizer")  # for AutoTokenizer, and for ours
    return loss


@torch.inference_mode()
def valid_loss(run: Path, data: Path) -> float:
    """The loss of the same tokens with megatron-core's GPT."""
    from megatron_music.generation.load_models import load_model_for_inference
    from megatron_music.parallel import distributed

    model, config = load_model_for_inference(run)
    blocks = Blocks(data, "valid", config.model.seq_length)
    device = next(model.parameters()).device
    positions = torch.arange(config.model.seq_length - 1, device=device)[None]
    losses = []
    for number in range(len(blocks)):
        ids = blocks[number]["input_ids"][None].to(device)
        losses.append(model(ids[:, :-1], positions, None, labels=ids[:, 1:]).float().mean().item())
    distributed.stop()
    return sum(losses) / len(losses)


def compose(run: Path, folder: Path, count: int) -> None:
    from megatron_music.generation.from_checkpoint import load_composer
    from megatron_music.generation.sampling import Sampler
    from megatron_music.music.midi import write_midi
    from megatron_music.parallel import distributed

    composer = load_composer(run, sampler=Sampler(temperature=0.9, top_p=0.95))
    scores = composer.compose(range(SEED, SEED + count))
    distributed.stop()
    folder.mkdir(parents=True)
    for number, score in enumerate(scores, 1):
        write_midi(score, folder / f"{number:03}.mid")


if __name__ == "__main__":
    sys.exit(guarded(main, ("huggingface",)))
