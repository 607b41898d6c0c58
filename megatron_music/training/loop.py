"""The training loop: steps, evaluations, checkpoints, and an orderly end when a signal asks for one.

Knows nothing about models or losses (tasks.py joins those) or about how a step is computed (engine.py).
"""

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from megatron_music.config import RunConfig
from megatron_music.training import distributed
from megatron_music.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from megatron_music.training.engine import Engine
from megatron_music.training.metrics import Metrics
from megatron_music.training.run_folder import held_folder, starting_point, with_vocabulary_of_data
from megatron_music.training.tasks import Task, gpt_task

DONE, FAILED, REQUEUE = 0, 1, 75  # exit status; 75 is EX_TEMPFAIL of sysexits.h: try again


def train(config: RunConfig) -> int:
    """Carry out a run, alone or as one process of torchrun; go on where ``checkpoint.save`` holds a part of it.

    Returns:
        0 when all iterations are done, 75 when a signal stopped the run after a checkpoint, 1 when it stopped a run
        that has no ``checkpoint.save``.

    Raises:
        ValueError: the run cannot be; one sentence, and nothing was written.
    """
    config.check_world_size(distributed.launched_size())
    distributed.start(config.parallel)
    try:
        return _train(config)
    finally:
        distributed.stop()


def _train(config: RunConfig) -> int:
    config = distributed.on_main(lambda: with_vocabulary_of_data(config))
    origin, is_own = starting_point(config)
    task = gpt_task(config)
    engine = Engine(config, task)
    progress = Progress()
    if origin:
        progress = load_checkpoint(origin, engine, resume=is_own)
    folder = Path(config.checkpoint.save) if config.checkpoint.save else None
    with contextlib.ExitStack() as held:
        distributed.on_main(lambda: held.enter_context(held_folder(folder, config)))
        return _run(config, task, engine, progress, folder)


def _run(config: RunConfig, task: Task, engine: Engine, progress: Progress, folder: Path | None) -> int:
    total = config.train.train_iters
    metrics = Metrics(
        folder,
        iteration=progress.iteration,
        total=total,
        log_interval=config.logging.log_interval,
        tensorboard=config.logging.tensorboard,
        speaks=distributed.is_main(),
    )
    batches = task.train_batches(progress.consumed_samples)
    stopped = False
    with _signals() as asked, contextlib.closing(metrics):
        while progress.iteration < total and not stopped:
            start = time.perf_counter()
            result = engine.step(batches, stop=bool(asked))
            seconds = time.perf_counter() - start
            progress = Progress(progress.iteration + 1, progress.consumed_samples + config.train.global_batch_size)
            metrics.write(
                progress.iteration,
                loss=result.loss,
                grad_norm=result.grad_norm,
                learning_rate=result.learning_rate,
                tokens_per_second=config.train.global_batch_size * task.seq_length / seconds,
                step_seconds=seconds,
                consumed_samples=progress.consumed_samples,
            )
            is_last = progress.iteration == total
            stopped = result.stop and not is_last
            if task.valid_batches and _is_due(progress.iteration, config.train.eval_interval, is_last):
                loss, num_tokens = engine.evaluate(task.valid_batches(), config.train.eval_iters)
                metrics.write(progress.iteration, valid_loss=loss, valid_tokens=num_tokens)
            if folder and _is_due(progress.iteration, config.checkpoint.save_interval, is_last or stopped):
                save_checkpoint(folder, engine, progress)
    if not stopped:
        return DONE
    return REQUEUE if folder else FAILED  # nothing was saved: to begin again would never end


def _is_due(iteration: int, interval: int, is_last: bool) -> bool:
    return is_last or (interval > 0 and iteration % interval == 0)


@contextlib.contextmanager
def _signals() -> Iterator[list]:
    """A list that fills when the run is asked to stop.

    Slurm sends SIGUSR1 or SIGTERM before it kills, a person SIGINT. A second one takes its usual course.
    """
    asked: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def ask(number, frame) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    previous = {kind: signal.getsignal(kind) for kind in kinds}
    try:
        for kind in kinds:
            signal.signal(kind, ask)
    except ValueError:
        # Only the main thread may listen; elsewhere, whoever started the thread does.
        pass
    try:
        yield asked
    finally:
        with contextlib.suppress(ValueError):
            for kind, handler in previous.items():
                signal.signal(kind, handler)
