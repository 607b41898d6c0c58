"""Loading weights out of a checkpoint, and the checks that come before."""

from pathlib import Path

from megatron.core.dist_checkpointing import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException

from megatron_music.checkpoints.reader import read_tensors
from megatron_music.checkpoints.sharding import ShardedWeight, sharded_weights
from megatron_music.config.errors import ConfigError, LostProcessError, is_lost_process

AVERAGE = "average"  # before the names of averaged weights on disk


def load_tensors(request: dict, checkpoint: Path) -> dict:
    """The tensors of a request, a tree of sharded ones, from a checkpoint.

    Raises:
        ConfigError: it cannot be read.
        LostProcessError: another process ended meanwhile.
        KeyboardInterrupt: this one, or another, was stopped.
    """
    try:
        return read_tensors(request, checkpoint)
    except (Exception, CheckpointException) as error:  # many kinds for one thing, and torch's is no Exception
        causes = [cause for cause, _ in getattr(error, "failures", {}).values()] or [error]
        if any(
            isinstance(cause, KeyboardInterrupt | SystemExit) for cause in causes
        ):  # of any process: torch tells all
            raise KeyboardInterrupt from error
        if any(map(is_lost_process, causes)):
            raise LostProcessError(
                f"another process of the run was lost while {checkpoint} was read, which is no fault of the checkpoint"
            ) from error
        reason = (str(causes[0]).splitlines() or [type(causes[0]).__name__])[0][:200]
        raise ConfigError(
            f"{checkpoint} cannot be loaded ({reason}); name an earlier iter_ folder of the run"
        ) from error


def load_weights(modules: list, checkpoint: Path) -> None:
    """Load a model's weights, in place; what cannot be read is a ConfigError."""
    load_tensors({"model": _pieces(sharded_weights(modules))}, checkpoint)


def load_average(module, checkpoint: Path) -> None:
    """Load the average of the weights into a model's parameters, in place; what cannot be read is a ConfigError."""
    weights = sharded_weights([module])
    names = [f"0.{name}" for name, _ in module.named_parameters()]
    request = {
        name: weights[name].beside(AVERAGE, weights[name].tensor.detach().view(-1), is_replicated=True)
        for name in names
    }
    load_tensors({"average": request}, checkpoint)


def _pieces(weights: dict[str, ShardedWeight]) -> dict[str, list[ShardedTensor]]:
    return {name: weight.pieces for name, weight in weights.items()}
