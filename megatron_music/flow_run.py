"""A whole run of one of the two models of words to music: the sections that differ from the GPT's, in ``config.py``.

Facts are fields, what follows is a property, contradictions are refused. Imports neither torch nor megatron-core.
"""

from dataclasses import dataclass, field, fields, replace

from megatron_music import contradictions
from megatron_music.config import (
    CheckpointConfig,
    LoggingConfig,
    OptimizerConfig,
    ParallelConfig,
    Run,
    TrainConfig,
    choice,
    positive,
)
from megatron_music.errors import either, refuse_unless
from megatron_music.models.flow_sizes import DIT_SIZES, MODULATIONS, TEXT2MUQ_SIZES, DiTSize, FlowSize, Text2MuQSize

KINDS = {"text2muq": TEXT2MUQ_SIZES, "dit": DIT_SIZES}
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

    kind: str = "dit"  # text2muq: words to an embedding of music; dit: words and embedding to latents of sound
    size: str = "tiny"
    # Of a dit. music: words, an embedding of music, and seconds. stable-audio: words and seconds, as the published model has them.
    conditions: str = "music"
    global_conditioning: str = "prepend"  # of a dit; or adaln: adaptive norms, as in later versions of stable-audio-tools
    num_layers: int | None = None
    hidden_size: int | None = None
    num_attention_heads: int | None = None
    ffn_hidden_size: int | None = None
    text_size: int | None = None  # of each word, as the text encoder gives it
    embedding_size: int | None = None  # of music
    latent_channels: int | None = None
    latent_length: int | None = None  # frames of a sample

    def __post_init__(self):
        choice("model", self, "kind", tuple(KINDS))
        choice("model", self, "size", tuple(KINDS[self.kind]))
        choice("model", self, "conditions", CONDITIONS)
        choice("model", self, "global_conditioning", ("prepend", "adaln"))
        for name, default in (("conditions", "music"), ("global_conditioning", "prepend")):
            refuse_unless(
                self.kind == "dit" or getattr(self, name) == default,
                f"model.{name} is {getattr(self, name)}, which a {self.kind} does not have; leave model.{name} out",
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
            f"model.global_conditioning=adaln needs a context that divides {MODULATIONS} x model.hidden_size, and model.size "
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

    path: str | None = None  # a folder made by `build latents`


@dataclass(frozen=True)
class FlowConfig:
    """What is learned, and what is drawn at random for it."""

    # flow: the velocity from noise to data. v: that of a quarter circle, as Stable Audio Open 1.0 was trained. regression: the
    # data at once, from the condition alone, to compare with.
    objective: str = "flow"
    sigma: str = "uniform"  # or logit_normal, mostly in the middle of the path
    sigma_uniform_share: float = 0.0  # of logit_normal: this part is uniform all the same
    sigma_shift: float = 1.0  # above 1: more noise
    condition_dropout: float = 0.1  # samples that see no condition, for classifier-free guidance
    ema_decay: float = 0.999  # of the average of the weights, which is sampled from; 0: none

    def __post_init__(self):
        choice("flow", self, "objective", ("flow", "v", "regression"))
        choice("flow", self, "sigma", ("uniform", "logit_normal"))
        positive("flow", self, "sigma_shift")
        for name in ("sigma_uniform_share", "condition_dropout"):
            value = getattr(self, name)
            refuse_unless(0 <= value <= 1, f"flow.{name} is {value}; use a share from 0 to 1")
        refuse_unless(
            0 <= self.ema_decay < 1, f"flow.ema_decay is {self.ema_decay}; use 0 (no average) up to, not with, 1, such as 0.999"
        )


@dataclass(frozen=True)
class FlowRunConfig(Run):
    """A whole run of a model of words to music."""

    model: FlowModelConfig
    data: LatentsConfig = field(default_factory=LatentsConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self):
        refuse_unless(
            self.logging.sample_pieces == 0,
            f"logging.sample_pieces is {self.logging.sample_pieces} with model.kind={self.model.kind}, which writes no MIDI; "
            f"set logging.sample_pieces=0: {either(('generate audio',))} makes sounds from a checkpoint",
        )
        contradictions.check_flow_run(self)
