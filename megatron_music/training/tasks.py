"""The task of any run: what the training loop needs to know of its model, data and loss."""

from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import Run
from megatron_music.data.folders import differences
from megatron_music.training.flow_task import flow_task
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.task import Task


def task_of(config: Run) -> Task:
    """The task of a run. Every process must call this; the groups must exist."""
    return flow_task(config) if isinstance(config, FlowRunConfig) else gpt_task(config)


def facts_to_tell(config: Run) -> list[str]:
    """Sentences about a run's data for the user, before the first step."""
    if isinstance(config, FlowRunConfig):
        return []
    said = differences(config.data)
    return [said] if said else []
