"""Floating-point operations of both text-to-music models, from their sizes alone. A multiplication and an addition are
two.

Counted are the matrix products and the attention, all of it: no position is hidden. Norms, activations, sines, and the
fixed parts of the solver are not.
"""

from megatron_music.config.flow_sizes import (
    MODULATIONS,
    SECONDS_TOKENS,
    DiTSize,
    FlowSize,
    Text2MuQSize,
    num_tokens,
)
from megatron_music.profiling.flops import PASSES, RECOMPUTATIONS, StepFlops

FORMULA = "flow"
SECONDS_FEATURES = 257  # of each of these two


def forward_flops(size: FlowSize, frames: int, tokens: int) -> float:
    """Operations of one sample in one call of the velocity; conditions' embedders not counted.

    Args:
        frames: latent frames; 1 of stage 1.
        tokens: that are attended to.
    """
    return _layers(size, frames, tokens) + key_value_flops(size, tokens) + _ends(size, frames, tokens)


def key_value_flops(size: FlowSize, tokens: int) -> float:
    """What of it the layers make of the context, which does not change from step to step and can be made once."""
    return float(size.num_layers * 2 * tokens * size.context_size * 2 * _context_width(size))


def condition_flops(size: DiTSize, music_size: int | None) -> float:
    """Operations of the embedders of one sample's music, where it is heard, and seconds."""
    return 2.0 * ((music_size or 0) + SECONDS_TOKENS * SECONDS_FEATURES) * size.context_input_size


def step_flops(
    size: FlowSize,
    global_batch_size: int,
    *,
    frames: int,
    words: int,
    music_size: int | None = None,
    recomputation: str = "none",
) -> StepFlops:
    """Operations of one training step, forward and backward, of all GPUs together.

    Args:
        words: states of a caption.
        music_size: of the embedding that stage 2 is told; None: it is told of none.
        recomputation: what the backward pass computes again: ``none``, the core attention (``selective``) or whole
            layers (``full``).

    Raises:
        ValueError: another word.
    """
    if recomputation not in RECOMPUTATIONS:
        raise ValueError(f"recomputation is {recomputation!r}; use one of {', '.join(RECOMPUTATIONS)}")
    tokens = num_tokens(size, words, hears_music=music_size is not None)
    conditions = condition_flops(size, music_size) if isinstance(size, DiTSize) else 0.0
    needed = PASSES * (forward_flops(size, frames, tokens) + conditions)
    again = {
        "none": 0.0,
        "selective": _attention(size, frames, tokens),
        "full": _layers(size, frames, tokens) + key_value_flops(size, tokens),
    }[recomputation]
    return StepFlops(FORMULA, recomputation, global_batch_size * needed, global_batch_size * (needed + again))


def sampling_flops(size: FlowSize, evaluations: int, *, frames: int, tokens: int, guided: bool) -> float:
    """Operations of one sample, guidance's second half of the batch included; stage 1 makes its keys and values
    once.
    """
    branches = 1 + guided
    if isinstance(size, Text2MuQSize):
        step = forward_flops(size, frames, tokens) - key_value_flops(size, tokens)
        return branches * (evaluations * step + key_value_flops(size, tokens))
    return branches * evaluations * forward_flops(size, frames, tokens)


def _layers(size: FlowSize, frames: int, tokens: int) -> float:
    """All layers without the context's keys and values."""
    positions, width = frames + size.num_extra_positions, size.hidden_size
    projections = (12 if size.has_self_attention else 4) * positions * width**2
    matrices = 3 if size.gated_linear_unit else 2
    feed_forward = 2 * matrices * positions * width * size.ffn_hidden_size
    return float(size.num_layers * (projections + feed_forward)) + _attention(size, frames, tokens)


def _attention(size: FlowSize, frames: int, tokens: int) -> float:
    """All layers' scores and their products with the values: of the positions themselves, and of the context."""
    positions = frames + size.num_extra_positions
    seen = tokens + (positions if size.has_self_attention else 0)
    return float(size.num_layers * 4 * positions * seen * size.hidden_size)


def _context_width(size: FlowSize) -> int:
    return size.num_context_groups * size.hidden_size // size.num_attention_heads


def _ends(size: FlowSize, frames: int, tokens: int) -> float:
    width = size.hidden_size
    time = 2 * (size.time_features * width + width**2)
    if isinstance(size, Text2MuQSize):
        return float(time + 4 * size.embedding_size * width)
    channels, context = size.latent_channels, size.context_size
    embedders = 2 * (size.global_size * width + width**2) + 2 * tokens * (
        size.context_input_size * context + context**2
    )
    modulator = 2 * (1 + MODULATIONS) * width**2 if size.is_modulated else 0
    return float(time + embedders + modulator + 4 * frames * (channels**2 + channels * width))
