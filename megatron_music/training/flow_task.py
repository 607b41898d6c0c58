"""The task of training a text-to-music model."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from megatron.core import parallel_state

from megatron_music.config.errors import counted
from megatron_music.config.run import FlowRunConfig
from megatron_music.data.latents import LatentDataset, check_before_training
from megatron_music.data.latents_index import INDEX, encoder_files
from megatron_music.models.build import build_flow_model
from megatron_music.models.flow_transformer import padded_length
from megatron_music.parallel import distributed
from megatron_music.profiling import flow_flops
from megatron_music.training import flow_step
from megatron_music.training.task import Task, Work


def flow_task(config: FlowRunConfig) -> Task:
    """The velocity of cached embeddings or latents, of a folder of ``build latents``."""
    kind, shape, train, folder = config.model.kind, config.model.shape, config.train, Path(config.data.path)
    train_set, valid_set = LatentDataset(folder, "train"), LatentDataset(folder, "valid")
    hears_music = config.model.conditions == "music"
    positions = (shape.latent_length if kind == "dit" else 1) + shape.num_extra_positions

    def batches(dataset: LatentDataset, consumed_samples: int, shuffles: bool = True) -> Iterator:
        return flow_step.flow_batches(
            dataset,
            kind,
            config.flow,
            train,
            consumed_samples=consumed_samples,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            shuffles=shuffles,
            hears_music=hears_music,
        )

    return Task(
        build_model=partial(build_flow_model, config),
        forward_step=flow_step.forward_step,
        train_batches=lambda consumed_samples: batches(train_set, consumed_samples),
        valid_batches=(lambda: batches(valid_set, 0, shuffles=False)) if train.eval_iters and len(valid_set) else None,
        files=_files_of_latents(folder),
        seq_length=padded_length(positions, config.parallel),
        work=Work(
            positions,
            positions * len(train_set),
            flow_flops.step_flops(
                shape,
                train.global_batch_size,
                frames=positions - shape.num_extra_positions,
                words=train_set.info.text_length,
                music_size=train_set.info.embedding_size if hears_music else None,
            ).model,
            f"{flow_flops.FORMULA} (all attention, {counted(positions, 'position')}, "
            f"{counted(train_set.info.text_length, 'word')})",
        ),
    )


def _files_of_latents(folder: Path) -> dict[str, bytes]:
    """What a checkpoint takes from a dataset of latents, whose hashes were compared."""
    distributed.on_main(lambda: check_before_training(folder))
    return dict(encoder_files(folder)) | {INDEX: (folder / INDEX).read_bytes()}
