"""The processes of test_rehearsal.py: a step of every layout of one world size, watched as it really runs, in one
launch of torchrun.

    torchrun --nproc_per_node N tests/rehearsal_worker.py FOLDER

FOLDER holds ``data``, ``latents``, ``flow.yaml`` and ``cases.json``, lists of overrides by kind of model; a list of
this rank's figures is left for each.
"""

import contextlib
import gc
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_gpt import tiny_run

from megatron_music.config.load import load_run
from megatron_music.parallel import distributed
from megatron_music.rehearsal.batches import counted
from megatron_music.rehearsal.collectives import group_names
from megatron_music.rehearsal.one_rank import watch_step
from megatron_music.rehearsal.recorder import Recorder
from megatron_music.training.engine import Engine
from megatron_music.training.run_folder import with_facts_of_data
from megatron_music.training.tasks import task_of


def run_of(folder: Path, kind: str, overrides: list[str]):
    if kind == "gpt":
        return tiny_run(folder / "data", *overrides)
    return load_run(str(folder / "flow.yaml"), [f"data.path={folder / 'latents'}", *overrides])


def recorded(config) -> dict:
    """What a rank of a real run does and holds in its first step."""
    distributed.start(config.parallel)
    recorder = Recorder(alone=False)
    recorder.groups = group_names()
    engine = Engine(config, counted(task_of(config), recorder.micro_batch))
    run_backward = torch.autograd.graph._engine_run_backward

    def backward(*args, **kwargs):
        with recorder.during("backward"):
            return run_backward(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for owner in (torch.autograd, torch.autograd.graph):
            stack.callback(setattr, owner, "_engine_run_backward", owner._engine_run_backward)
            owner._engine_run_backward = backward
        stack.enter_context(recorder)
        memory, missing = watch_step(engine, recorder)
    return {
        "messages": [
            [*message[:2], list(message.shape), *message[3:]]
            for segment in recorder.segments
            for message, *_ in segment.messages
        ],
        "flops": sum(value for segment in recorder.segments for value in segment.flops.values()),
        "parameters": sum(parameter.numel() for module in engine.modules for parameter in module.parameters()),
        "memory": memory,
        "peak": recorder.ledger.peak().num_bytes,
        "missing": missing,
    }


if __name__ == "__main__":
    gc.freeze()  # what is imported stays: to leave a layout's groups is to collect what is left, and that is quick then
    folder = Path(sys.argv[1])
    cases = json.loads((folder / "cases.json").read_text())
    found = {
        kind: [recorded(with_facts_of_data(run_of(folder, kind, overrides))) for overrides in cases[kind]]
        for kind in cases
    }
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
    distributed.stop()
