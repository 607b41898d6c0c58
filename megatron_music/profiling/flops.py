"""Floating-point operations of a GPT's training step by the formulas that are published with, and MFU and HFU from
them.

Counts follow from the configuration alone, without torch.

MFU divides the operations that the model needs by what the GPUs could have done; HFU those that are carried out, the
recomputed ones included. A figure means something only beside the name of its formula, the vocabulary size and the
sequence
length: the logits alone are half of a small model.

| formula | a step, and the paper on arXiv | attention | recomputation | holds for |
| --- | --- | --- | --- | --- |
| ``mcore`` | as Megatron-LM prints since 2025 | causal half | not counted in MFU | every GPT here; experts, kv_channels
|
| ``72-form`` | 72 B s l h^2 (1 + s/6h + V/12lh), 2205.05198 | all s^2 | not counted in MFU | MHA, GELU, FFN 4h |
| ``paper-eq3`` | 96 B s l h^2 (1 + s/6h + V/16lh), 2104.04473 | all s^2 | full, always: an HFU | the same |
"""

from typing import NamedTuple

from megatron_music.config.sections import ModelConfig

FORMULAS = ("mcore", "72-form", "paper-eq3")
RECOMPUTATIONS = ("none", "selective", "full")
# A backward pass does each product of the forward pass twice: for the inputs' gradients and for the weights'.
PASSES = 3


class Variant(NamedTuple):
    """What other frameworks' GPTs have beyond ``ModelConfig``: a head size of its own, and mixtures of experts."""

    kv_channels: int | None = None  # head size; None: hidden_size / num_attention_heads
    num_moe_layers: int = 0  # layers whose feed-forward is a mixture of experts
    moe_router_topk: int = 0  # experts that a token passes through
    moe_ffn_hidden_size: int = 0  # of one expert
    moe_shared_expert_intermediate_size: int = 0  # of the expert that every token passes through


PLAIN = Variant()


class StepFlops(NamedTuple):
    """Operations of one step, forward and backward, of all GPUs together."""

    formula: str
    recomputation: str
    model: float  # what the model needs: for MFU
    hardware: float  # with what is recomputed: for HFU


def step_flops(
    model: ModelConfig,
    global_batch_size: int,
    *,
    formula: str = "mcore",
    recomputation: str = "none",
    variant: Variant = PLAIN,
) -> StepFlops:
    """The operations of one training step. A multiplication and an addition are two.

    Counted are the matrix products and the attention; norms, activations, embeddings and the optimizer are not.

    Args:
        global_batch_size: sequences of ``model.seq_length`` tokens.
        formula: ``mcore``, ``72-form`` or ``paper-eq3``. The model part of ``paper-eq3`` is the 72-form.
        recomputation: what the backward pass computes again: ``none``, the core attention (``selective``) or whole
            layers (``full``). The output layer never is. Under ``72-form``, ``selective`` doubles the attention term as
            the paper does (s/3h); a strict count of one more forward attention would be s/4.5h, which ``mcore`` uses.
        variant: counted by ``mcore`` alone. Of experts, those a token passes through count; the router's product does
            not.

    Raises:
        ValueError: an unknown word, or a model for which the formula is not derived.
    """
    if formula not in FORMULAS:
        raise ValueError(f"formula is {formula!r}; use one of {', '.join(FORMULAS)}")
    if recomputation not in RECOMPUTATIONS:
        raise ValueError(f"recomputation is {recomputation!r}; use one of {', '.join(RECOMPUTATIONS)}")
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size is {global_batch_size}; use 1 or more")
    if formula == "mcore":
        layers, attention, logits = forward_flops(model, causal=True, variant=variant)
        again = {"none": 0.0, "selective": attention, "full": layers}[recomputation]
        needed = PASSES * (layers + logits)
        return StepFlops(formula, recomputation, global_batch_size * needed, global_batch_size * (needed + again))
    _refuse_other_shapes(model, formula, variant)
    if formula == "paper-eq3" and recomputation != "full":
        raise ValueError(
            f"paper-eq3 counts full recomputation, and recomputation is {recomputation}; use 72-form, or "
            f"recomputation=full"
        )
    layers, attention, logits = forward_flops(model, causal=False)
    needed = PASSES * (layers + logits)
    again = {"none": 0.0, "selective": PASSES * attention, "full": layers}[recomputation]
    return StepFlops(formula, recomputation, global_batch_size * needed, global_batch_size * (needed + again))


def forward_flops(model: ModelConfig, *, causal: bool, variant: Variant = PLAIN) -> tuple[float, float, float]:
    """Operations of one sequence's forward pass.

    Args:
        causal: count half of the scores, as kernels that skip the hidden half do.

    Returns:
        All layers together, the core attention's share of them (scores and their product with the values), the logits.
    """
    seq_length, hidden_size, num_layers = model.seq_length, model.hidden_size, model.num_layers
    head_size = variant.kv_channels or hidden_size // model.num_attention_heads
    query_size, key_value_size = model.num_attention_heads * head_size, model.num_query_groups * head_size
    matrices = 3 if model.swiglu else 2
    attention = 4 * seq_length**2 * query_size * (0.5 if causal else 1.0)
    projections = 2 * seq_length * hidden_size * (2 * query_size + 2 * key_value_size)
    experts = variant.moe_router_topk * variant.moe_ffn_hidden_size + variant.moe_shared_expert_intermediate_size
    widths = (
        num_layers - variant.num_moe_layers
    ) * model.ffn_hidden_size + variant.num_moe_layers * experts  # of all layers
    feed_forward = 2 * matrices * seq_length * hidden_size * widths
    layers = num_layers * (projections + attention) + feed_forward
    return float(layers), float(num_layers * attention), 2.0 * seq_length * hidden_size * model.vocab_size


def tflops_per_gpu(flops: float, seconds: float, num_gpus: int) -> float:
    """Tera operations a second of each GPU; on a CPU, of each process."""
    return flops / seconds / num_gpus / 1e12


def utilization(flops: float, seconds: float, num_gpus: int, peak_tflops: float) -> float:
    """The share of the peak, in [0, 1]: MFU of ``StepFlops.model``, HFU of ``StepFlops.hardware``."""
    return tflops_per_gpu(flops, seconds, num_gpus) / peak_tflops


def _refuse_other_shapes(model: ModelConfig, formula: str, variant: Variant) -> None:
    reasons = {
        f"kv_channels {variant.kv_channels}": variant.kv_channels is not None,
        "experts": variant.num_moe_layers > 0,
        f"model.num_query_groups {model.num_query_groups}": model.num_query_groups != model.num_attention_heads,
        "model.swiglu true": model.swiglu,
        f"model.ffn_hidden_size {model.ffn_hidden_size}": model.ffn_hidden_size != 4 * model.hidden_size,
    }
    found = [reason for reason, differs in reasons.items() if differs]
    if found:
        raise ValueError(
            f"{formula} is derived for as many query groups as heads, GELU and an FFN of 4 x hidden_size, not for "
            f"{' and '.join(found)}; use the formula mcore"
        )
