"""The processes of test_memory.py: what every layout of one world size really allocates, in one launch of torchrun.

    torchrun --nproc_per_node N tests/memory_worker.py FOLDER

FOLDER holds ``data`` and ``layouts.json``, lists of overrides; a list of this rank's figures is left for each.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_gpt import tiny_run

from megatron_music.models import layers
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task

# Under hooks a saved weight comes back as another Python object, without its ``main_grad``. This keeps the same
# tensors.
layers._linear = torch.nn.functional.linear


class SavedTensors:
    """Bytes that the autograd graph keeps, each storage once, as they come and go; parameters not counted."""

    def __init__(self, modules):
        self._users: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._parameters = {
            parameter.untyped_storage().data_ptr() for module in modules for parameter in module.parameters()
        }
        self.live = self.peak = 0

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor)

    def add(self, storage) -> int | None:
        place = storage.data_ptr()
        if place in self._parameters or not storage.nbytes():
            return None
        if not self._users.get(place):
            self.live += storage.nbytes()
            self._sizes[place] = storage.nbytes()
            self.peak = max(self.peak, self.live)
        self._users[place] = self._users.get(place, 0) + 1
        return place

    def remove(self, place: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self.live -= self._sizes[place]


class _Kept:
    def __init__(self, ledger: SavedTensors, tensor: torch.Tensor):
        self.tensor, self._ledger, self._place = tensor, ledger, ledger.add(tensor.untyped_storage())

    def __del__(self):
        if self._place is not None:
            self._ledger.remove(self._place)


def bytes_of(tensors) -> int:
    """Bytes of the storages, each once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())


def measure(folder: Path, overrides: list[str]) -> dict:
    config = tiny_run(folder / "data", *overrides)
    distributed.start(config.parallel)
    engine = Engine(config, task := gpt_task(config))
    batches = task.train_batches(0)
    saved = SavedTensors(engine.modules)
    with saved.hooks():
        engine.compute_gradients(batches)
    assert saved.live == 0, f"{saved.live} bytes are still kept after the backward pass"
    engine.measure()
    engine.update(1.0)
    parameters = [parameter for module in engine.modules for parameter in module.parameters()]
    inner = [part.optimizer for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])]
    held = [parameter.data for parameter in parameters]
    state = [
        tensor
        for part in inner
        for entry in part.state.values()
        for tensor in entry.values()
        if torch.is_tensor(tensor)
    ]
    of_groups = [parameter for part in inner for group in part.param_groups for parameter in group["params"]]
    gradients = [
        buffer.grad_data for chunk in engine.chunks for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]
    ]
    places = {tensor.untyped_storage().data_ptr() for tensor in held}
    mains = [tensor.data for tensor in of_groups if tensor.data.untyped_storage().data_ptr() not in places]
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "weights": bytes_of(held),
        "gradients": bytes_of(gradients),
        "optimizer": bytes_of([*state, *mains]),
        "activations": saved.peak,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    found = [measure(folder, overrides) for overrides in json.loads((folder / "layouts.json").read_text())]
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    distributed.stop()


if __name__ == "__main__":
    main()
