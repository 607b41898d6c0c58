"""The two kinds of runs: a GPT, and a text-to-music model."""

from dataclasses import dataclass, field

from megatron_music.config import checks
from megatron_music.config.checks import check_flow_run
from megatron_music.config.errors import either, refuse_unless
from megatron_music.config.flow_sections import (
    FlowConfig,
    FlowModelConfig,
    LatentsConfig,
)
from megatron_music.config.sections import (
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    Run,
    TrainConfig,
)


@dataclass(frozen=True)
class RunConfig(Run):
    """A whole run of the GPT."""

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self):
        checks.check_run(self)


@dataclass(frozen=True)
class FlowRunConfig(Run):
    """A whole run of a text-to-music model."""

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
            f"logging.sample_pieces is {self.logging.sample_pieces} with model.kind={self.model.kind}, which writes "
            f"no MIDI; "
            f"set logging.sample_pieces=0: {either(('generate audio',))} makes sounds from a checkpoint",
        )
        check_flow_run(self)
