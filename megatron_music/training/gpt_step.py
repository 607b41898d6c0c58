"""One forward pass of the GPT on one micro batch, and its loss.

Knows nothing about where batches come from, or about updates. Shapes: B sequences, S tokens.
"""

from collections.abc import Iterator
from functools import partial

import torch
from megatron.core.utils import get_batch_on_this_cp_rank
from torch import Tensor


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
    batch = {key: value.to(torch.cuda.current_device(), non_blocking=True) for key, value in next(batches).items()}
    # Under context parallelism, this rank's two parts of every sequence; all of it otherwise.
    batch = get_batch_on_this_cp_rank(batch)
    output = model(
        batch.get("tokens"), batch.get("position_ids"), batch.get("attention_mask"), labels=batch.get("labels")
    )
    return output, partial(sum_loss, batch.get("loss_mask"))


def sum_loss(loss_mask_BS: Tensor, loss_BS: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The summed loss of the unmasked tokens, for ``calculate_per_token_loss``.

    Returns:
        The sum, the number of tokens (int32, added up and divided by in ``finalize_model_grads``), and for the report
        ``loss`` = [sum, tokens]. The report is a copy: the schedule scales the first in place.
    """
    total = (loss_BS.float() * loss_mask_BS).sum()
    num_tokens = loss_mask_BS.sum()
    return total, num_tokens.to(torch.int32), {"loss": torch.stack([total.detach(), num_tokens])}
