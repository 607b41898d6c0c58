"""The checkpoints of a run under way: written now or beside the training, the old ones removed, failures told.

A save that fails leaves the checkpoint before in force, and the training goes on.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from megatron_music.checkpoints.folder import prune, sweep
from megatron_music.checkpoints.writer import WriteFailed
from megatron_music.config.sections import CheckpointConfig
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.state import Progress, Save, begin_save


class Saver:
    """Writes one checkpoint at a time. Every process must make one and call the same methods at the same iterations.

    Args:
        config: where to, and how; ``config.save`` is set.
        record: told ``(iteration, save_failed=1)`` on the main process and nothing on the others.

    Attributes:
        failure: why the newest save failed; None where it did not.
        completed: how many checkpoints were completed.
    """

    def __init__(self, config: CheckpointConfig, record: Callable[..., None]):
        self.config, self.record = config, record
        self.folder = Path(config.save)
        self.failure: str | None = None
        self.completed = 0
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if config.async_save else None
        self._pending: tuple[Save, Future] | None = None
        # The folder is held by now: nobody else is writing there.
        distributed.on_main(lambda: sweep(self.folder))

    def save(self, engine: Engine, progress: Progress) -> None:
        """Save the state as it is now, after whatever is still being written."""
        self.finish()
        try:
            save = begin_save(self.folder, engine, progress, copies=self._threads is not None)
        except OSError as error:
            self._fail(progress.iteration, str(error))
            return
        if self._threads is None:
            self._complete(save, save.write)
        else:
            self._pending = save, self._threads.submit(save.write)

    def poll(self) -> None:
        """Complete the checkpoint being written if every process has written its part; return at once if not."""
        if self._pending is None:
            return
        (still_writing,) = distributed.sum_over_processes([float(not self._pending[1].done())])
        if not still_writing:
            self.finish()

    def finish(self) -> None:
        """Wait for the checkpoint being written, and complete it."""
        if self._pending is not None:
            save, written = self._pending
            self._pending = None
            self._complete(save, written.result)

    def close(self) -> None:
        """Wait for this process's own writing, without the others: also where some of them are gone."""
        if self._threads is not None:
            self._threads.shutdown()

    def _complete(self, save: Save, write: Callable) -> None:
        try:
            save.finish(write)
        except (WriteFailed, OSError) as error:
            distributed.on_main(lambda: _abandon(save))
            self._fail(save.iteration, str(error))
            return
        self.failure = None
        self.completed += 1
        try:
            distributed.on_main(lambda: prune(self.folder, self.config.most_recent_k, self.config.keep_every))
        except OSError as error:
            distributed.warn(f"an old checkpoint of {self.folder} could not be removed ({error}); remove it by hand")

    def _fail(self, iteration: int, reason: str) -> None:
        self.failure = f"the checkpoint after iteration {iteration} could not be written to {self.folder} ({reason})"
        distributed.warn(f"{self.failure}; the one before stays and the training goes on: make room for the next save")
        self.record(iteration, save_failed=1)


def _abandon(save: Save) -> None:
    with contextlib.suppress(OSError):  # the next save sweeps, too
        save.abandon()
