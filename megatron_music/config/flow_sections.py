"""A whole run of one of the two text-to-music models: the sections that differ from the GPT's, in ``sections.py``.

Facts are fields, what follows is a property, contradictions are refused. Imports neither torch nor megatron-core.
"""

from dataclasses import dataclass, fields, replace

from megatron_music.config.errors import refuse_unless
from megatron_music.config.flow_sizes import (
    DIT_SIZES,
    MODULATIONS,
    TEXT2MUQ_SIZES,
    DiTSize,
    FlowSize,
    Text2MuQSize,
)
from megatron_music.config.sections import (
    WIDE,
    check_numbers,
    choice,
    positive,
    setting,
)

KINDS = {"text2muq": TEXT2MUQ_SIZES, "dit": DIT_SIZES}
SIZE_NAMES = "; ".join(f"{kind}: {', '.join(sizes)}" for kind, sizes in KINDS.items())
CONDITIONS = ("music", "stable-audio")
# Fields of a size, by kind, that the data decide, and the names of those facts here.
OF_DATA = {
    "text2muq": {"embedding_size": "embedding_size", "context_size": "text_size"},
    "dit": {
        "latent_channels": "latent_channels",
        "latent_length": "latent_length",
        "context_input_size": "text_size",
        "global_size": "text_size",
    },
}


@dataclass(frozen=True)
class FlowModelConfig:
    """The model. A field left out comes from ``size``; the last four are of the data, and a run takes theirs."""

    kind: str = setting(
        "dit",
        "text2muq (stage 1: words to an embedding of music) or dit (stage 2: words and embedding to latents of audio)",
    )
    size: str = setting("tiny", f"a named shape of this kind ({SIZE_NAMES})")
    conditions: str = setting(
        "music",
        "of a dit: music (words, an embedding of music, seconds) or stable-audio (words and seconds, as published)",
    )
    global_conditioning: str = setting(
        "prepend", "of a dit: prepend (a position before the latents) or adaln (adaptive norms)"
    )
    num_layers: int | None = setting(None, "transformer layers", at_most=2**14)
    hidden_size: int | None = setting(None, "width of the residual stream", at_most=WIDE)
    num_attention_heads: int | None = setting(None, "attention heads of a layer; divides hidden_size", at_most=WIDE)
    ffn_hidden_size: int | None = setting(None, "width of the feed-forward layer", at_most=4 * WIDE)
    text_size: int | None = setting(
        None, "width of a word's state, as the text encoder gives it; if omitted: that of the data", at_most=WIDE
    )
    embedding_size: int | None = setting(
        None, "width of an embedding of music; if omitted: that of the data", at_most=WIDE
    )
    latent_channels: int | None = setting(None, "channels of the latents; if omitted: those of the data", at_most=WIDE)
    latent_length: int | None = setting(None, "latent frames of a sample; if omitted: those of the data", at_most=2**24)

    def __post_init__(self):
        check_numbers("model", self)
        choice("model", self, "kind", tuple(KINDS))
        choice("model", self, "size", tuple(KINDS[self.kind]))
        choice("model", self, "conditions", CONDITIONS)
        choice("model", self, "global_conditioning", ("prepend", "adaln"))
        for name, default in (("conditions", "music"), ("global_conditioning", "prepend")):
            refuse_unless(
                self.kind == "dit" or getattr(self, name) == default,
                f"model.{name} is {getattr(self, name)}, which a {self.kind} does not have; omit model.{name}",
            )
        for item in fields(self)[4:]:
            if getattr(self, item.name) is not None:
                positive("model", self, item.name)
        for name in ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(KINDS[self.kind][self.size], name))
        refuse_unless(
            self.hidden_size % self.num_attention_heads == 0,
            f"model.hidden_size {self.hidden_size} does not divide into model.num_attention_heads "
            f"{self.num_attention_heads}; use a multiple, such as {self.num_attention_heads * 64}",
        )
        refuse_unless(
            self.kind == "text2muq" or self.shape.context_size % (self.hidden_size // self.num_attention_heads) == 0,
            f"model.size {self.size} attends to its context {self.shape.context_size} wide, which heads of "
            f"{self.hidden_size // self.num_attention_heads} do not divide; change model.num_attention_heads",
        )

        modulations = MODULATIONS * self.hidden_size
        refuse_unless(
            not self.shape.is_modulated or modulations % self.shape.context_size == 0,
            f"model.global_conditioning=adaln needs a context that divides {MODULATIONS} x model.hidden_size, and "
            f"model.size "
            f"{self.size} has one of {self.shape.context_size}; use a model.hidden_size that is a multiple of it",
        )

    @property
    def shape(self) -> FlowSize:
        """The size with what these fields change."""
        size: DiTSize | Text2MuQSize = KINDS[self.kind][self.size]
        names = ("num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size")
        changes = {name: getattr(self, name) for name in names}
        if self.kind == "dit":
            changes["global_conditioning"] = self.global_conditioning
        for name, fact in OF_DATA[self.kind].items():
            value = getattr(self, fact)
            if value is not None:
                changes[name] = 2 * value if name == "global_size" else value  # seconds_start and seconds_total
        return replace(size, **changes)


@dataclass(frozen=True)
class LatentsConfig:
    """Where the cached embeddings and latents lie."""

    path: str | None = setting(None, "a folder made by `build latents`")


@dataclass(frozen=True)
class FlowConfig:
    """The objective, and the random choices of training."""

    objective: str = setting(
        "flow",
        "flow (velocity from noise to data), v (as Stable Audio Open 1.0), or regression (the data at once, to "
        "compare with)",
    )
    sigma: str = setting(
        "uniform", "noise levels drawn in training: uniform, or logit_normal, mostly in the middle of the path"
    )
    sigma_uniform_share: float = setting(0.0, "of logit_normal: this share is uniform all the same")
    sigma_shift: float = setting(1.0, "above 1: more noise")
    condition_dropout: float = setting(
        0.1, "share of samples trained without their condition, for classifier-free guidance"
    )
    ema_decay: float = setting(0.999, "of the average of the weights, which is sampled from; 0: no average")

    def __post_init__(self):
        check_numbers("flow", self)
        choice("flow", self, "objective", ("flow", "v", "regression"))
        choice("flow", self, "sigma", ("uniform", "logit_normal"))
        positive("flow", self, "sigma_shift")
        for name in ("sigma_uniform_share", "condition_dropout"):
            value = getattr(self, name)
            refuse_unless(0 <= value <= 1, f"flow.{name} is {value}; use a share from 0 to 1")
        refuse_unless(
            0 <= self.ema_decay < 1,
            f"flow.ema_decay is {self.ema_decay}; use 0 (no average) up to, not with, 1, such as 0.999",
        )
