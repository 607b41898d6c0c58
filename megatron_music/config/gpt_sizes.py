"""Named model sizes, each stated whole, and what follows from a size: the number of parameters.

Arithmetic only, without torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPTSize:
    """The shape of a GPT, by Megatron's names."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    num_query_groups: int  # key and value heads; equal to num_attention_heads: no grouping
    ffn_hidden_size: int
    seq_length: int


SIZES: dict[str, GPTSize] = {
    # A training step takes milliseconds: for tests.
    "tiny": GPTSize(
        num_layers=2, hidden_size=64, num_attention_heads=4, num_query_groups=4, ffn_hidden_size=256, seq_length=64
    ),
    # A few minutes of training on two CPU cores give music.
    "demo": GPTSize(
        num_layers=4, hidden_size=256, num_attention_heads=8, num_query_groups=8, ffn_hidden_size=1024, seq_length=512
    ),
    # The GPT-2 of the NVIDIA post "Leveraging AI Music with NVIDIA DGX-2": what most of its models were.
    "article": GPTSize(
        num_layers=6, hidden_size=512, num_attention_heads=8, num_query_groups=8, ffn_hidden_size=2048, seq_length=2048
    ),
    # GPT-3 Small, Medium and XL (Brown et al. 2020, arXiv:2005.14165, table 2.1; XL with 16 heads of 128).
    "125m": GPTSize(
        num_layers=12,
        hidden_size=768,
        num_attention_heads=12,
        num_query_groups=12,
        ffn_hidden_size=3072,
        seq_length=2048,
    ),
    "350m": GPTSize(
        num_layers=24,
        hidden_size=1024,
        num_attention_heads=16,
        num_query_groups=16,
        ffn_hidden_size=4096,
        seq_length=2048,
    ),
    "1.3b": GPTSize(
        num_layers=24,
        hidden_size=2048,
        num_attention_heads=16,
        num_query_groups=16,
        ffn_hidden_size=8192,
        seq_length=2048,
    ),
    # GPT-3 2.7B and 6.7B, of the same table.
    "2.7b": GPTSize(
        num_layers=32,
        hidden_size=2560,
        num_attention_heads=32,
        num_query_groups=32,
        ffn_hidden_size=10240,
        seq_length=2048,
    ),
    "6.7b": GPTSize(
        num_layers=32,
        hidden_size=4096,
        num_attention_heads=32,
        num_query_groups=32,
        ffn_hidden_size=16384,
        seq_length=2048,
    ),
}


def gpt_parameter_count(
    *,
    num_layers: int,
    hidden_size: int,
    num_attention_heads: int,
    num_query_groups: int,
    ffn_hidden_size: int,
    seq_length: int,
    vocab_size: int,
    position_embedding_type: str = "rope",
    normalization: str = "LayerNorm",
    swiglu: bool = False,
    add_bias_linear: bool = True,
    share_embeddings_and_output_weights: bool = True,
) -> int:
    """Number of parameters of the whole GPT. The output layer has no bias.

    A tied embedding counts once; it counts once too where pipeline stages each hold a copy.

    Returns:
        The exact count: tests compare it with the built model.
    """
    norm = hidden_size * (2 if normalization == "LayerNorm" else 1)
    bias = 1 if add_bias_linear else 0
    key_value_size = hidden_size // num_attention_heads * num_query_groups
    attention = (hidden_size + bias) * (hidden_size + 2 * key_value_size) + (hidden_size + bias) * hidden_size
    feed_forward = (hidden_size + bias) * ffn_hidden_size * (2 if swiglu else 1) + (
        ffn_hidden_size + bias
    ) * hidden_size
    embedding = vocab_size * hidden_size * (1 if share_embeddings_and_output_weights else 2)
    positions = seq_length * hidden_size if position_embedding_type == "learned_absolute" else 0
    return num_layers * (attention + feed_forward + 2 * norm) + norm + embedding + positions
