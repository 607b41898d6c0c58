"""The training loop: steps, evaluations, checkpoints, and an orderly end when a signal asks for one."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from megatron_music.checkpoints.folder import read_latest
from megatron_music.config.checks import check_world_size
from megatron_music.config.errors import REQUEUE, counted, refuse_unless
from megatron_music.config.sections import Run
from megatron_music.parallel import distributed
from megatron_music.training import messages
from megatron_music.training.checkpointer import Saver
from megatron_music.training.engine import Engine
from megatron_music.training.loss_guard import iterations_as_words, reason_to_skip
from megatron_music.training.metrics import Metrics
from megatron_music.training.run_folder import (
    count_start,
    held_folder,
    starting_point,
    take_folder,
    with_facts_of_data,
)
from megatron_music.training.sample_pieces import Samples
from megatron_music.training.state import Progress, load_checkpoint
from megatron_music.training.step_profiler import StepProfiler
from megatron_music.training.task import Task
from megatron_music.training.tasks import facts_to_tell, task_of
from megatron_music.training.throughput import Throughput

DONE, FAILED = 0, 1  # exit status, beside REQUEUE


def train(config: Run, *, profile_steps: tuple[int, int] | None = None) -> int:
    """Carry out a run, alone or as one process of torchrun; go on where ``checkpoint.save`` holds a part of it.

    Args:
        profile_steps: the first and the last iteration to profile; see ``StepProfiler``.

    Returns:
        0 when all iterations are done; 75 when a signal stopped the run after a checkpoint; 1 when a signal stopped a
        run that has no ``checkpoint.save``, when its last checkpoint could not be written, when too many steps were
        skipped in a row, when its last step was skipped or its last evaluation was not finite, and when it has
        started too often without getting on.

    Raises:
        ValueError: the run cannot be; one sentence, and nothing was written.
    """
    check_world_size(config, distributed.launched_size())
    refuse_unless(
        profile_steps is None or profile_steps[0] <= config.train.train_iters,
        f"--profile-steps begin at {profile_steps and profile_steps[0]}, after the last step: train.train_iters is "
        f"{config.train.train_iters}; profile earlier steps",
    )
    distributed.start(config.parallel)
    try:
        status = _train(config, profile_steps)
        distributed.on_main(
            lambda: None
        )  # a launcher may end all as soon as one has ended, and the main process writes last
        return status
    finally:
        distributed.stop()


def _train(config: Run, profile_steps: tuple[int, int] | None) -> int:
    config = distributed.on_main(lambda: with_facts_of_data(config))
    folder = Path(config.checkpoint.save) if config.checkpoint.save else None
    with contextlib.ExitStack() as held:
        distributed.on_main(
            lambda: held.enter_context(held_folder(folder))
        )  # before its newest checkpoint is looked for
        origin, is_own = starting_point(config)
        for sentence in distributed.on_main(lambda: facts_to_tell(config)):
            distributed.tell(sentence)
        task = task_of(config)
        engine = Engine(config, task)
        progress = load_checkpoint(origin, engine, resume=is_own) if origin else Progress()
        distributed.on_main(lambda: take_folder(folder, config))
        if folder and is_own and progress.iteration >= config.train.train_iters:
            if progress.guard.in_a_row:  # saved by an earlier version
                return _give_up(progress, None, folder)
            _tell(messages.finished(config, progress.iteration))
        elif folder:
            refusal = distributed.on_main(lambda: count_start(folder, progress.iteration, config))
            if refusal:
                distributed.warn(refusal)
                return FAILED
        if progress.iteration < config.train.train_iters:
            _tell(
                messages.opening(config, task.work, progress.iteration, origin, is_own, task.valid_batches is not None)
            )
        return _run(config, task, engine, progress, folder, StepProfiler(folder, profile_steps))


def _run(
    config: Run, task: Task, engine: Engine, progress: Progress, folder: Path | None, profiler: StepProfiler
) -> int:
    total, first = config.train.train_iters, progress.iteration
    throughput = Throughput(config, task.work, speaks=first < total)  # before there is a bar for its line to run into
    metrics = Metrics(
        folder,
        iteration=progress.iteration,
        total=total,
        log_interval=config.logging.log_interval,
        tensorboard=config.logging.tensorboard,
        speaks=distributed.is_main(),
        wandb_project=config.logging.wandb_project,
        run=asdict(config),
    )
    stopped = is_owed = False
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(_signals())
        stack.enter_context(contextlib.closing(metrics))
        stack.enter_context(contextlib.closing(profiler))
        samples = Samples(config, folder) if task.valid_batches else None
        record = _recorder(metrics)
        saver = Saver(config.checkpoint, record) if folder else None
        if saver:
            stack.enter_context(contextlib.closing(saver))
        batches = task.train_batches(progress.consumed_samples)
        while progress.iteration < total and not stopped:
            start = time.perf_counter()
            judge = partial(reason_to_skip, progress.guard, loss_spike_factor=config.train.loss_spike_factor)
            with profiler.step(progress.iteration + 1):
                result = engine.step(batches, stop=bool(asked), judge=judge)
            seconds = time.perf_counter() - start
            iteration = progress.iteration + 1
            progress = Progress(
                iteration,
                progress.consumed_samples + config.train.global_batch_size,
                progress.guard.after(iteration, result.loss, result.skipped),
            )
            numbers = {
                "loss": result.loss,
                "grad_norm": result.grad_norm,
                "learning_rate": result.learning_rate,
                "tokens_per_second": config.train.global_batch_size * task.work.tokens_per_sample / seconds,
                "step_seconds": seconds,
                "consumed_samples": progress.consumed_samples,
                **throughput.of_step(seconds, progress.consumed_samples),
            }
            if result.skipped:
                distributed.warn(f"step {iteration} was skipped, since {result.skipped}; the weights stay as they were")
                # NaN is no JSON, and what is missing is noticed where a strange number is averaged.
                numbers = {name: value for name, value in numbers.items() if value is None or math.isfinite(value)} | {
                    "skipped": 1
                }
            record(iteration, **numbers)
            if len(progress.guard.in_a_row) >= config.train.max_skipped_steps:
                return _give_up(progress, saver, folder)
            is_last, is_sound = iteration == total, result.skipped is None
            if task.valid_batches and _is_due(iteration, config.train.eval_interval, is_last):
                loss, num_tokens = engine.evaluate(task.valid_batches(), config.train.eval_iters)
                is_sound = is_sound and math.isfinite(loss)
                if math.isfinite(loss):
                    music = samples.take(engine.modules[0], iteration, loss, metrics)
                    record(iteration, valid_loss=loss, valid_tokens=num_tokens, **music)
                else:
                    distributed.warn(
                        f"the evaluation after step {iteration} gave a loss of {loss}: the weights have diverged"
                    )
            if saver:
                saver.poll()
            if is_last and not is_sound:
                return _give_up(progress, saver, folder)
            stopped = result.stop and is_sound and not is_last  # else after the next step that is not skipped
            is_owed = is_owed or _is_due(iteration, config.checkpoint.save_interval, is_last or stopped)
            if saver and is_owed and is_sound:
                saver.save(engine, progress)
                is_owed = False
        if saver:
            saver.finish()
    cost = profiler.cost()
    if cost:
        distributed.tell(cost)
    if saver and saver.failure:
        distributed.warn(
            f"{saver.failure}; the run ends without its last steps: make room, and give the same command again"
        )
        return FAILED
    if not stopped:
        if first < total:
            _tell(messages.done(config))
        return DONE
    _tell(messages.stopped(config, progress.iteration))
    return REQUEUE if folder else FAILED  # nothing was saved: to begin again would never end


def _tell(sentences: list[str]) -> None:
    for sentence in sentences:
        distributed.tell(sentence)


def _give_up(progress: Progress, saver: Saver | None, folder: Path | None) -> int:
    """End a run that skipped its last steps, or whose evaluation is not finite, and save nothing over its last good
    state.
    """
    if saver:
        saver.finish()  # of a state before; it was good then
    skipped = progress.guard.in_a_row
    reason = (
        f"{counted(len(skipped), 'step')} in a row had to be skipped ({iterations_as_words(skipped)})"
        if skipped
        else f"the weights after iteration {progress.iteration} give no finite loss"
    )
    newest = distributed.on_main(lambda: read_latest(folder)[0]) if folder else None
    kept = f"the newest checkpoint is {newest}, of before" if newest else "no checkpoint was saved"
    distributed.warn(
        f"the run ends unfinished at iteration {progress.iteration}, since {reason}: {kept}; lower optimizer.lr, look "
        f"at the "
        "data there, go back to an earlier checkpoint with checkpoint.load, or raise train.max_skipped_steps or "
        "train.train_iters"
    )
    return FAILED


def _recorder(metrics: Metrics) -> Callable[..., None]:
    """``metrics.write``, but a full disk does not end the run.

    The file's buffer of 8 KiB keeps the lines until there is room; where that lasts longer, lines are lost.
    """

    def record(iteration: int, **values: float) -> None:
        try:
            metrics.write(iteration, **values)
        except OSError as error:
            distributed.warn(
                f"the metrics of iteration {iteration} could not be written yet ({error.strerror}); make room"
            )

    return record


def _is_due(iteration: int, interval: int, is_last: bool) -> bool:
    return is_last or (interval > 0 and iteration % interval == 0)


@contextlib.contextmanager
def _signals() -> Iterator[list]:
    """A list that fills when the run is asked to stop.

    Slurm sends SIGUSR1 or SIGTERM before it kills, a person SIGINT, a terminal that closes SIGHUP. A second one takes
    its usual course. Signals that are ignored, as under nohup or in a script's background, stay ignored.
    """
    asked: list[int] = []
    kinds = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

    def ask(number, frame) -> None:
        asked.append(number)
        signal.signal(number, previous[number])

    previous = {kind: handler for kind in kinds if (handler := signal.getsignal(kind)) not in (signal.SIG_IGN, None)}
    try:
        for kind in previous:
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
