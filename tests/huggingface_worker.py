"""A converted run under two parallel layouts: what it computes there, and checkpoints that are saved there.

    torchrun --nproc_per_node 2 tests/huggingface_worker.py FOLDER

FOLDER holds ``data`` and ``run``; it gets ``tp`` and ``pp``, runs saved from there before any step, and ``logits.pt``.
"""

import gc
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_gpt import tiny_run

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.config.load import read_run
from megatron_music.generation.load_models import load_model_for_inference
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.state import Progress, load_checkpoint, save_checkpoint


def main(folder: Path) -> None:
    checkpoint = find_checkpoint(folder / "run")
    fields = vars(read_run(checkpoint / "config.yaml").model)
    model = [f"model.{name}={value}" for name, value in fields.items() if name != "size"]
    for name, layout in (("tp", "tensor"), ("pp", "pipeline")):
        config = tiny_run(folder / "data", *model, f"parallel.{layout}_model_parallel_size=2")
        distributed.start(config.parallel)
        engine = Engine(config, gpt_task(config))
        load_checkpoint(checkpoint, engine, resume=False)
        save_checkpoint(folder / name, engine, Progress(1, 8))
    module, _ = load_model_for_inference(folder / "run", tp=2)
    ids = torch.load(folder / "ids.pt", weights_only=True)
    with torch.no_grad():
        logits = module(ids, torch.arange(ids.shape[1]).expand_as(ids), None, runtime_gather_output=True)
    if distributed.is_main():
        torch.save(logits, folder / "logits.pt")
    distributed.stop()


if __name__ == "__main__":
    gc.freeze()  # what is imported stays: to leave a layout's groups is to collect what is left, and that is quick then
    main(Path(sys.argv[1]))
