"""One forward pass of the GPT on one micro batch, and its loss. Shapes: B sequences, S tokens."""

from collections.abc import Iterator
from functools import partial

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_music.parallel import distributed


def forward_step(batches: Iterator[dict[str, Tensor]], model) -> tuple[Tensor, partial]:
    """The forward step that megatron-core's schedules call.

    Args:
        batches: micro batches of ``data/batches.py``, of whole sequences; on a middle pipeline stage it may yield
            empty ones.
        model: this rank's part of the GPT.

    Returns:
        The model's output (on the last stage the loss of every token [B, S], under context parallelism of this
        rank's tokens) and the loss function for it.

    Context parallelism needs Transformer Engine and CUDA. It has not been run: tests hold the slicing of batches alone.
    """
    batch = distributed.to_device(next(batches))
    size = parallel_state.get_context_parallel_world_size()
    if size > 1:
        rank = parallel_state.get_context_parallel_rank()
        batch = {key: own_parts(value, rank, size) for key, value in batch.items()}
    output = model(
        batch.get("tokens"), batch.get("position_ids"), batch.get("attention_mask"), labels=batch.get("labels")
    )
    return output, partial(sum_loss, batch.get("loss_mask"))


def own_parts(whole_BS: Tensor, rank: int, size: int) -> Tensor:
    """The two of ``2 x size`` parts of every sequence that a context-parallel rank has, [B, S / size].

    One from the front and its mirror image from the back, so that causal attention costs every rank the same. It is
    what megatron-core's ``get_batch_on_this_cp_rank`` cuts, whose arguments change from version to version.
    """
    parts = whole_BS.chunk(2 * size, dim=1)
    return torch.cat([parts[rank], parts[2 * size - 1 - rank]], dim=1)


def sum_loss(loss_mask_BS: Tensor, loss_BS: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The summed loss of the unmasked tokens, for ``calculate_per_token_loss``.

    Returns:
        The sum, the number of tokens (int32, added up and divided by in ``finalize_model_grads``), and for the report
        ``loss`` = [sum, tokens]. The report is a copy: the schedule scales the first in place.
    """
    total = (loss_BS.float() * loss_mask_BS).sum()
    num_tokens = loss_mask_BS.sum()
    return total, num_tokens.to(torch.int32), {"loss": torch.stack([total.detach(), num_tokens])}
