"""A model in training: one optimizer step, one evaluation, in any parallel layout.

Knows nothing about files, recipes' data or when to do what: loop.py decides that.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.utils import get_model_config

from megatron_music.config import RunConfig
from megatron_music.training import distributed
from megatron_music.training.optimizer import build_optimizer, build_schedule
from megatron_music.training.tasks import Task


class StepResult(NamedTuple):
    """What one step reports, the same on every process."""

    loss: float  # mean over the unmasked tokens of the global batch
    grad_norm: float  # before clipping
    learning_rate: float
    stop: bool  # some process asked to stop
    skipped: str | None = None  # why the weights were left as they were


class Engine:
    """This rank's part of a model, wrapped for data parallelism, with its optimizer and schedule.

    Attributes:
        module: the bare model, as the task built it.
        model: the same, wrapped.
    """

    def __init__(self, config: RunConfig, task: Task):
        distributed.seed_for_building(config.train.seed)
        self.config, self.task = config, task
        self.world_size = distributed.launched_size()
        dtype = torch.bfloat16 if config.train.bf16 else torch.float32
        self.module = task.build_model(dtype)
        core_config = get_model_config(self.module)
        model = self.module
        if torch.cuda.is_available():
            model = model.cuda(torch.cuda.current_device())
        if config.train.bf16:
            model = Float16Module(core_config, model)
        self.model = DistributedDataParallel(
            core_config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=config.optimizer.use_distributed_optimizer,
                # Hides the reduction behind the backward pass; there is nothing to hide with on the CPU.
                overlap_grad_reduce=torch.cuda.is_available(),
            ),
            model,
        )
        self.optimizer = build_optimizer(config.optimizer, self.model, dtype)
        self.schedule = build_schedule(config.optimizer, self.optimizer, config.train.train_iters)
        core_config.finalize_model_grads_func = finalize_model_grads
        core_config.grad_scale_func = self.optimizer.scale_loss
        core_config.no_sync_func = self.model.no_sync
        self.forward_backward = get_forward_backward_func()
        distributed.seed_for_training(config.train.seed, iteration=0)

    def compute_gradients(self, batches: Iterator, *, on_every_rank: bool = False) -> list[float]:
        """Forward and backward over one global batch; the gradients lie in each parameter's ``main_grad``.

        Args:
            on_every_rank: leave the whole gradients on every data-parallel rank, also where the distributed
                optimizer needs only a part.

        Returns:
            The summed loss and its number of tokens, of this process: 0 and 0 on all but the last pipeline stage.
        """
        self.model.train()
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self._run(batches, forward_only=False, force_all_reduce=on_every_rank)
        return self._local_sums(reports)

    def measure(self) -> float:
        """Make the gradients ready for ``update``, and measure them.

        Returns:
            Their norm before clipping; infinite or NaN where any of them is.
        """
        overflowed = self.optimizer.prepare_grads()
        grad_norm = float(self.optimizer.get_grad_norm())
        return float("inf") if overflowed else grad_norm

    def update(self, grad_norm: float) -> None:
        """Clip and step with the gradients there are, of the norm that ``measure`` gave."""
        for inner in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            parameters = inner.get_parameters()
            if parameters and inner.config.clip_grad > 0:
                clip_grad_by_total_norm_fp32(
                    parameters,
                    inner.config.clip_grad,
                    grad_norm,
                    inner.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8,
                )
        self.optimizer.step_with_ready_grads()

    def step(
        self,
        batches: Iterator,
        *,
        stop: bool = False,
        judge: Callable[[float, float], str | None] = lambda loss, grad_norm: None,
    ) -> StepResult:
        """One optimizer step on the next global batch, at the schedule's next learning rate.

        Args:
            stop: this process asks all of them to stop.
            judge: given the loss and the norm of the gradients, why this step must leave the weights and the optimizer
                as they are; None where it may change them. Asked on every process with the same numbers.
        """
        sums = self.compute_gradients(batches)
        self.schedule.step(increment=1)
        grad_norm = self.measure()
        # A norm that is no number on one process is none on any, or they would part ways.
        strays = float(not math.isfinite(grad_norm))
        loss, num_tokens, stops, strays = distributed.sum_over_processes([*sums, float(stop), strays])
        loss = loss / max(num_tokens, 1)
        skipped = judge(loss, grad_norm if not strays else math.nan)
        if skipped is None:
            self.update(grad_norm)
        return StepResult(loss, grad_norm, self.optimizer.param_groups[0]["lr"], stops > 0, skipped)

    @torch.no_grad()
    def evaluate(self, batches: Iterator, num_global_batches: int) -> tuple[float, int]:
        """The loss without dropout.

        Returns:
            The mean over all unmasked tokens of the global batches, and their number.
        """
        self.model.eval()
        sums = [0.0, 0.0]
        for _ in range(num_global_batches):
            reports = self._run(batches, forward_only=True)
            sums = [total + value for total, value in zip(sums, self._local_sums(reports))]
        loss, num_tokens = distributed.sum_over_processes(sums)
        return loss / max(num_tokens, 1), int(num_tokens)

    def _run(self, batches: Iterator, **options) -> list[dict]:
        return self.forward_backward(
            forward_step_func=self.task.forward_step,
            data_iterator=batches,
            model=self.model,
            num_microbatches=self.config.num_microbatches(self.world_size),
            seq_length=self.task.seq_length,
            micro_batch_size=self.config.train.micro_batch_size,
            **options,
        )

    @staticmethod
    def _local_sums(reports: list[dict]) -> list[float]:
        # Tensor-parallel ranks hold the same loss: one of them tells it.
        if not reports or parallel_state.get_tensor_model_parallel_rank() != 0:
            return [0.0, 0.0]
        return torch.stack([report["loss"] for report in reports]).double().sum(0).tolist()
