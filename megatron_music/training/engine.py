"""A model in training: one optimizer step, one evaluation, in any parallel layout.

loop.py decides when a step, an evaluation or a save is due.
"""

import math
from collections.abc import Callable, Iterator
from itertools import islice, tee
from typing import NamedTuple

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config

from megatron_music.config.checks import check_capability
from megatron_music.config.errors import ConfigError
from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import Run
from megatron_music.flow.ema import WeightAverage
from megatron_music.parallel import distributed
from megatron_music.training.optimizer import build_optimizer, build_schedule
from megatron_music.training.task import Task


class StepResult(NamedTuple):
    """What one step reports, the same on every process."""

    loss: float  # mean over the unmasked tokens of the global batch
    grad_norm: float  # before clipping
    learning_rate: float
    stop: bool  # some process asked to stop
    skipped: str | None = None  # why the weights were left as they were


class Engine:
    """This rank's part of a model, wrapped for data parallelism, with its optimizer and schedule.

    It is one chunk of the model, or several where the pipeline is interleaved: chunk ``i`` of the first stage, then
    that of the second and so on come before chunk ``i + 1`` of the first.

    Attributes:
        modules: the bare chunks, as the task built them.
        chunks: the same, wrapped.
        averages: of each chunk's weights over the steps, which is sampled from; empty where the run asks for none.

    Raises:
        ConfigError: this GPU cannot do what the run asks, or the task's model would give wrong gradients.
    """

    def __init__(self, config: Run, task: Task):
        if torch.cuda.is_available():
            check_capability(config, torch.cuda.get_device_capability(), torch.cuda.get_device_name())
            set_float32_precision(config)
        distributed.seed_for_building(config.train.seed)
        self.config, self.task = config, task
        self.world_size = distributed.launched_size()
        parallel = config.parallel
        dtype = torch.bfloat16 if config.train.bf16 else torch.float32
        stages = range(parallel.virtual_pipeline_model_parallel_size or 0) or [None]
        self.modules = [task.build_model(dtype, vp_stage) for vp_stage in stages]
        # The schedules ask the first chunk's; the others' say the same.
        self.core_config = get_model_config(self.modules[0])
        check_messages(self.core_config)
        # Hides the reduction behind the backward pass; there is nothing to hide with on the CPU.
        self.overlaps_reduce = parallel.overlap_grad_reduce
        if self.overlaps_reduce is None:
            self.overlaps_reduce = torch.cuda.is_available() or parallel.overlap_param_gather
        self.chunks = [self._wrap(module, is_first=module is self.modules[0]) for module in self.modules]
        self.optimizer = build_optimizer(
            config.optimizer, self.chunks, dtype, overlap_param_gather=parallel.overlap_param_gather
        )
        self.schedule = build_schedule(config.optimizer, self.optimizer, config.train.train_iters)
        self.averages: list[WeightAverage] = []
        if isinstance(config, FlowRunConfig) and config.flow.ema_decay:
            self.begin_averages()
        self.core_config.finalize_model_grads_func = finalize_model_grads
        self.core_config.grad_scale_func = self.optimizer.scale_loss
        self.core_config.no_sync_func = self._each_or_only([chunk.no_sync for chunk in self.chunks])
        self.forward_backward = get_forward_backward_func()
        distributed.seed_for_training(config.train.seed, iteration=0)

    def _wrap(self, module, *, is_first: bool) -> DistributedDataParallel:
        config, core_config = self.config, get_model_config(module)
        if torch.cuda.is_available():
            module = module.cuda(torch.cuda.current_device())
        if config.train.bf16:
            module = Float16Module(core_config, module)
        return DistributedDataParallel(
            core_config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                use_distributed_optimizer=config.optimizer.use_distributed_optimizer,
                overlap_grad_reduce=self.overlaps_reduce,
                overlap_param_gather=config.parallel.overlap_param_gather,
                bucket_size=config.parallel.ddp_bucket_size,
            ),
            module,
            # Later chunks have the backward pass of the first to hide behind; portions would only cost messages.
            disable_bucketing=not is_first,
        )

    def compute_gradients(self, batches: Iterator, *, on_every_rank: bool = False) -> list[float]:
        """Forward and backward over one global batch; the gradients lie in each parameter's ``main_grad``.

        Args:
            on_every_rank: leave the whole gradients on every data-parallel rank, also where the distributed
                optimizer needs only a part.

        Returns:
            The summed loss and its number of tokens, of this process: 0 and 0 on all but the last pipeline stage.
        """
        starts = None
        if self.overlaps_reduce and not on_every_rank:
            # Pipeline stages reduce at the same time, when the first of them does: a lone one would slow the others.
            starts = self._each_or_only([chunk.start_grad_sync for chunk in self.chunks])
        self.core_config.grad_sync_func = starts
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
            chunk.force_all_reduce = on_every_rank
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
        if self.averages:
            self.gather_parameters()
            for average, module in zip(self.averages, self.modules, strict=True):
                average.update(module.named_parameters())

    def begin_averages(self) -> None:
        """Average from the weights as they are now."""
        decay = self.config.flow.ema_decay
        self.averages = [WeightAverage(module.named_parameters(), decay=decay) for module in self.modules]

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
        for chunk in self.chunks:
            chunk.eval()
        sums = [0.0, 0.0]
        for _ in range(num_global_batches):
            reports = self._run(batches, forward_only=True)
            sums = [total + value for total, value in zip(sums, self._local_sums(reports), strict=True)]
        loss, num_tokens = distributed.sum_over_processes(sums)
        return loss / max(num_tokens, 1), int(num_tokens)

    def gather_parameters(self) -> None:
        """Bring every rank's parameters up to date, where the next forward pass would otherwise have done so."""
        if self.config.parallel.overlap_param_gather:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)

    def _run(self, batches: Iterator, **options) -> list[dict]:
        num_microbatches = self.config.num_microbatches(self.world_size)
        if len(self.chunks) > 1:
            # Every chunk sees the same micro batches, the first one earlier than the last.
            batches = list(tee(islice(batches, num_microbatches), len(self.chunks)))
        return self.forward_backward(
            forward_step_func=self.task.forward_step,
            data_iterator=batches,
            model=self._each_or_only(self.chunks),
            num_microbatches=num_microbatches,
            seq_length=self.task.seq_length,
            micro_batch_size=self.config.train.micro_batch_size,
            **options,
        )

    @staticmethod
    def _each_or_only(items: list):
        # megatron-core's schedules take a list for an interleaved pipeline alone.
        return items if len(items) > 1 else items[0]

    @staticmethod
    def _local_sums(reports: list[dict]) -> list[float]:
        # Tensor-parallel ranks hold the same loss: one of them tells it.
        if not reports or parallel_state.get_tensor_model_parallel_rank() != 0:
            return [0.0, 0.0]
        return torch.stack([report["loss"] for report in reports]).double().sum(0).tolist()


def set_float32_precision(config: Run) -> None:
    """Choose how this process's GPU multiplies float32 matrices, and say so where all of the run is in float32."""
    precision = config.train.float32_matmul_precision
    torch.set_float32_matmul_precision(precision)
    if not config.train.bf16:
        products = {"highest": "float32 units", "high": "TF32 units", "medium": "bfloat16 units"}[precision]
        distributed.tell(
            f"training is in float32 on {torch.cuda.get_device_name()}, matrix products on {products} "
            f"(train.float32_matmul_precision={precision}); train.bf16=true is faster and takes half the activations"
        )


def check_messages(core_config: TransformerConfig) -> None:
    """Refuse an interleaved pipeline whose stages send their messages in batches.

    megatron-core takes it, and gives a right loss in the first step and wrong gradients.

    Raises:
        ConfigError: one sentence.
    """
    is_interleaved = core_config.virtual_pipeline_model_parallel_size is not None
    if is_interleaved and (core_config.batch_p2p_comm or not core_config.overlap_p2p_comm):
        raise ConfigError(
            f"the model has virtual_pipeline_model_parallel_size={core_config.virtual_pipeline_model_parallel_size} "
            f"with "
            f"batch_p2p_comm={core_config.batch_p2p_comm} and overlap_p2p_comm={core_config.overlap_p2p_comm}, which "
            f"gives "
            "wrong gradients; set batch_p2p_comm=False and overlap_p2p_comm=True"
        )
