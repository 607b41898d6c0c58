"""Tiny runs with and without sample pieces, on the processes of torchrun."""

import sys

from tiny_gpt import tiny_run

from megatron_music.parallel import distributed
from megatron_music.training.loop import DONE, train


def main(data: str, folder: str) -> None:
    stop, distributed.stop = distributed.stop, lambda: None  # parted processes do not meet again
    for name, overrides in {
        "tp2": ["parallel.tensor_model_parallel_size=2"],
        "tp2_sp": ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"],
        "dp2": [],
        "pp2": ["parallel.pipeline_model_parallel_size=2"],
    }.items():
        for pieces in (0, 2):
            save = f"checkpoint.save={folder}/{name}_{pieces}"
            run = tiny_run(
                data,
                save,
                "train.train_iters=4",
                "train.eval_interval=2",
                "model.hidden_dropout=0.1",
                f"logging.sample_pieces={pieces}",
                *overrides,
            )
            assert train(run) == DONE
    stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
