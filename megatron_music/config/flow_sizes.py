"""Named sizes of the two text-to-music models, each stated whole, and the number of parameters that follows.

Stage 1, Text2MuQ, turns words into one embedding of music; stage 2, the DiT, turns conditions into latents of sound.
Arithmetic only, without torch.
"""

from dataclasses import dataclass
from typing import ClassVar

MODULATIONS = 6  # scale, shift and gate, of self-attention and of the feed-forward layer


@dataclass(frozen=True)
class DiTSize:
    """The shape of a diffusion transformer like that of Stable Audio Open 1.0.

    Its layers are self-attention, attention to the context with fewer heads for keys and values, and a gated
    feed-forward layer. Attention has no biases, the feed-forward layer has; half of each head is rotated by its
    position.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    ffn_hidden_size: int
    latent_channels: int
    latent_length: int  # frames, in training; any length runs
    context_input_size: int  # of each token of the context as it is given
    context_size: int  # ... and as the layers attend to it
    global_size: int  # of the one vector of a sample
    time_features: int  # random frequencies, and as many sines as cosines
    # How sigma and the global vector are heard. prepend: as a position before the latents. adaln: they scale, shift and
    # gate what self-attention and the feed-forward layer do, as in later versions of stable-audio-tools.
    global_conditioning: str = "prepend"

    has_self_attention: ClassVar[bool] = True
    gated_linear_unit: ClassVar[bool] = True
    attention_bias: ClassVar[bool] = False
    rotary_percent: ClassVar[float] = 0.5

    @property
    def is_modulated(self) -> bool:
        return self.global_conditioning == "adaln"

    @property
    def num_extra_positions(self) -> int:
        """Before the latents."""
        return 0 if self.is_modulated else 1

    @property
    def num_context_groups(self) -> int:
        """Heads for the context's keys and values: as many as its own width has, at the heads' size."""
        return self.context_size * self.num_attention_heads // self.hidden_size

    @property
    def parameter_count(self) -> int:
        """Number of parameters, the fixed frequencies included; the conditions' own embedders are not among them."""
        width, context = self.hidden_size, self.context_size
        attention = 4 * width**2 + 2 * width**2 + 2 * context**2
        feed_forward = (width + 1) * 2 * self.ffn_hidden_size + (self.ffn_hidden_size + 1) * width
        layers = self.num_layers * (attention + feed_forward + 3 * 2 * width)
        time = self.time_features // 2 + (self.time_features + 1) * width + (width + 1) * width
        embedders = self.global_size * width + width**2 + self.context_input_size * context + context**2
        if self.is_modulated:
            layers += MODULATIONS * width * self.num_layers
            embedders += (width + 1) * width + (width + 1) * MODULATIONS * width
        return layers + time + embedders + 2 * self.latent_channels * (width + self.latent_channels)


@dataclass(frozen=True)
class Text2MuQSize:
    """The shape of a model of one embedding: a sequence of one position that attends to words.

    Everything has biases; the feed-forward layer is not gated.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    ffn_hidden_size: int
    embedding_size: int
    context_size: int  # of each word, as the text encoder gives it
    time_features: int
    has_self_attention: bool = True  # over one position it is a linear map: attention to itself is always 1

    gated_linear_unit: ClassVar[bool] = False
    attention_bias: ClassVar[bool] = True
    rotary_percent: ClassVar[float | None] = None
    num_extra_positions: ClassVar[int] = 0
    is_modulated: ClassVar[bool] = False

    @property
    def num_context_groups(self) -> int:
        """Heads for the context's keys and values: all of them."""
        return self.num_attention_heads

    @property
    def parameter_count(self) -> int:
        """Number of parameters; time's frequencies are no parameters here."""
        width = self.hidden_size
        own = 4 * (width + 1) * width + 2 * width if self.has_self_attention else 0
        context = 2 * (width + 1) * width + 2 * (self.context_size + 1) * width + 2 * width
        feed_forward = (width + 1) * self.ffn_hidden_size + (self.ffn_hidden_size + 1) * width + 2 * width
        time = (self.time_features + 1) * width + (width + 1) * width
        ends = (self.embedding_size + 1) * width + (width + 1) * self.embedding_size
        return self.num_layers * (own + context + feed_forward) + time + ends


FlowSize = DiTSize | Text2MuQSize
SECONDS_TOKENS = 2  # in stage 2, beside words and music


def num_tokens(size: FlowSize, words: int, *, hears_music: bool) -> int:
    """What a sample attends to: the states of its words; in stage 2 also seconds, and music where it is heard."""
    return words + (SECONDS_TOKENS + hears_music if isinstance(size, DiTSize) else 0)


DIT_SIZES: dict[str, DiTSize] = {
    # For tests: heads of 16, of which two layers and two groups can be split over two processes.
    "tiny": DiTSize(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        ffn_hidden_size=256,
        latent_channels=8,
        latent_length=16,
        context_input_size=24,
        context_size=32,
        global_size=48,
        time_features=16,
    ),
    # For `make demo-audio`: minutes on two CPU cores.
    "demo": DiTSize(
        num_layers=4,
        hidden_size=192,
        num_attention_heads=3,
        ffn_hidden_size=512,
        latent_channels=64,
        latent_length=128,
        context_input_size=64,
        context_size=64,
        global_size=128,
        time_features=64,
    ),
    # The DiT of Stable Audio Open 1.0 (Evans et al. 2024, arXiv:2407.14358): 1,056,939,136 parameters, 47.55 s of 64
    # channels at 21.53 frames a second, T5's words of 768 and two embeddings of seconds.
    "stable-audio-open": DiTSize(
        num_layers=24,
        hidden_size=1536,
        num_attention_heads=24,
        ffn_hidden_size=6144,
        latent_channels=64,
        latent_length=1024,
        context_input_size=768,
        context_size=768,
        global_size=1536,
        time_features=256,
    ),
}

TEXT2MUQ_SIZES: dict[str, Text2MuQSize] = {
    "tiny": Text2MuQSize(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        ffn_hidden_size=256,
        embedding_size=12,
        context_size=24,
        time_features=16,
    ),
    # For `make demo-audio`.
    "demo": Text2MuQSize(
        num_layers=3,
        hidden_size=512,
        num_attention_heads=8,
        ffn_hidden_size=1024,
        embedding_size=512,
        context_size=64,
        time_features=64,
        has_self_attention=False,
    ),
    # The published figures, 271 M parameters in 16 layers of 1024, leave the layers' insides open; these give
    # 271,109,632.
    "text2muq": Text2MuQSize(
        num_layers=16,
        hidden_size=1024,
        num_attention_heads=16,
        ffn_hidden_size=4096,
        embedding_size=512,
        context_size=1024,
        time_features=256,
    ),
    # As large, with what attention to itself would hold in a wider feed-forward layer.
    "text2muq-wide": Text2MuQSize(
        num_layers=16,
        hidden_size=1024,
        num_attention_heads=16,
        ffn_hidden_size=6144,
        embedding_size=512,
        context_size=1024,
        time_features=256,
        has_self_attention=False,
    ),
}
