"""From a checkpoint on disk to a ``Composer``: where training's files and generation's models are joined."""

import os

import torch

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.manifest import fingerprint
from megatron_music.config.errors import counted
from megatron_music.generation.load_models import load_model
from megatron_music.generation.midi import Composer
from megatron_music.generation.sampling import Sampler
from megatron_music.parallel import distributed
from megatron_music.tokens.tokenizer_folder import read_encoding


def load_composer(
    checkpoint: str | os.PathLike,
    tensor_model_parallel_size: int | None = None,
    sampler: Sampler = Sampler(),  # noqa: B008 (frozen)
) -> Composer:
    """The model of a run's folder, or of one of its checkpoints, ready to compose.

    Starts megatron-core's process groups; ``distributed.stop()`` ends them. Under torchrun every process must call
    this, and make the same calls of the composer; all get the same pieces.

    Args:
        tensor_model_parallel_size: over how many processes each layer is split; None: over all. The layers are shared
            out over what remains as pipeline stages.

    Raises:
        ValueError: no checkpoint, another vocabulary, or a size that does not divide the model or the processes.
    """
    world_size = distributed.launched_size()
    tensor = world_size if tensor_model_parallel_size is None else tensor_model_parallel_size
    if tensor < 1 or world_size % tensor:
        raise ValueError(
            f"tensor-parallel size {tensor} does not divide {counted(world_size, 'process', 'processes')}; use a "
            f"divisor of them"
        )
    checkpoint = find_checkpoint(checkpoint)
    encoding = read_encoding(checkpoint / "tokenizer")
    model, run = load_model(checkpoint, tensor, world_size // tensor)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    made_with = {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": distributed.on_main(lambda: fingerprint(checkpoint)),
    }
    return Composer(model, encoding, run.model.seq_length, sampler, device, made_with=made_with)
