"""The one place that joins a recipe's model, its data and its loss.

A task is all that the loop knows of what is trained: it builds the model, makes batches and runs a forward step.
"""

from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import Run
from megatron_music.data.folders import (
    differences,
)
from megatron_music.training.flow_task import flow_task
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.task import Task


def task_of(config: Run) -> Task:
    """The task of a run. Every process must call this; the groups must exist."""
    return flow_task(config) if isinstance(config, FlowRunConfig) else gpt_task(config)


def facts_to_tell(config: Run) -> list[str]:
    """What a person should hear of a run's data before its first step, each in a sentence."""
    if isinstance(config, FlowRunConfig):
        return []
    said = differences(config.data)
    return [said] if said else []
