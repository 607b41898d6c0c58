"""`nemorun music pretrain`: our training, started by NeMo-Run on whatever its executors reach.

    nemorun music pretrain --factory article data.path=OUT run.executor=torchrun run.executor.ntasks_per_node=8

The sections and fields are those of our recipes. NeMo-Run finds this module through the entry-point group
`nemo_run.cli`. A run is handed to ``training/loop.py``.
"""

import sys
import types

import nemo_run as run
import yaml
from nemo_run.cli.cli_parser import type_parser

from megatron_music.config.load import RECIPES, SECTIONS, recipe_names
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)

NAMESPACE = "music"


@type_parser.register_parser(types.UnionType)
def _read_value(value: str, annotation):
    """A value of ``int | None`` and its like, which NeMo-Run does not read; in YAML, as in our recipes."""
    return yaml.safe_load(value)


@run.cli.entrypoint(namespace=NAMESPACE, help="Train a GPT on tokens of `megatron-music build tokens`.")
def pretrain(
    model: ModelConfig,
    data: DataConfig,
    parallel: ParallelConfig,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    checkpoint: CheckpointConfig,
    logging: LoggingConfig,
):
    """Train, on each process that the executor started. The parameters are the sections of a recipe."""
    from megatron_music.training import (
        loop,  # torch, which the command line does without until a run starts
    )

    status = loop.train(RunConfig(model, data, parallel, optimizer, train, checkpoint, logging))
    if status:
        sys.exit(status)


def recipe(name: str) -> run.Partial:
    """A recipe's file as arguments of ``pretrain``: what it leaves out stays open to its size and defaults."""
    tree = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    sections = {section: run.Config(kind, **tree.get(section, {})) for section, kind in SECTIONS.items()}
    return run.Partial(pretrain, **sections)


def _register(name: str) -> None:
    def factory() -> run.Partial:
        return recipe(name)

    factory.__name__ = name
    factory.__doc__ = recipe_names()[name]
    run.cli.factory(factory, target=pretrain, name=name)


for _name in recipe_names():
    _register(_name)


@run.cli.factory(name="torchrun")
@run.autoconvert
def torchrun() -> run.LocalExecutor:
    """This machine, with ``run.executor.ntasks_per_node`` processes."""
    return run.LocalExecutor(ntasks_per_node=1, launcher="torchrun")
