"""What each extra serves, as commands: docs/install.md in a form that is run.

``tests/test_extras.py`` runs them with every other package hidden, ``make test-extras`` in an environment of each
extra's own. Commands run in an empty folder with ``chorale.mid`` in it, in this order; a leading ``!`` says that status
2 is right too, where what is asked cannot be had without a GPU or a network.
"""

MIDI = "chorale.mid"
BUILD = f"build tokens {MIDI} -o data --bars 1"
TRAIN = (
    "train tiny data.path=data checkpoint.save=run train.train_iters=2 train.global_batch_size=2 "
    "train.micro_batch_size=2"
)
COMMANDS = {
    "base": [
        "--version",
        "doctor",
        "recipes",
        f"tokenize {MIDI}",
        f"tokenize {MIDI} --bars 2",
        f"plot {MIDI} -o roll.png",
        f"render {MIDI} -o chorale.wav",
        f"render {MIDI} -o wavs --html page.html",
        BUILD,
        "inspect data",
        "inspect data --html data.html",
        "memory tiny",
        "predict tiny --num-gpus 1",
        "sweep tiny -o sweep --plan",
        "launch -o scripts",
        "!preflight scripts/launch/train.sbatch tiny data.path=data",
    ],
    "train": [
        BUILD,
        TRAIN,
        "generate midi run -o new --bars 2",
        "inspect data --document 0",
        "sweep tiny -o sweep --steps 1 --warmup 0",
        "!preflight scripts/launch/train.sbatch tiny data.path=data",
    ],
    "corpus": ["corpus bach -o midi --workers 2"],
    "plot": [f"plot {MIDI} -o roll.png"],
    "fast": [BUILD],
    "bpe": [f"build tokens {MIDI} -o bpe --bars 1 --bpe 8"],
    "cluster": [BUILD, "build plan chorale.mid -o planned --bars 1", "build shard planned", "build merge planned"],
    "huggingface": [BUILD, TRAIN, "convert run -o hf --to huggingface", "convert hf -o back --to megatron"],
    "audio": [
        "corpus sounds . -o sounds --num 8 --seconds 2 --own",
        "build latents sounds -o latents --seconds 2 --min-seconds 1 --valid-fraction 0.25 --test-fraction 0.25",
        "train demo-text2muq data.path=latents checkpoint.save=stage1 train.train_iters=2",
    ],
    "wandb": [BUILD, f"{TRAIN} logging.wandb_project=chorales"],
}
