"""A whole run as frozen dataclasses: its sections, the checks between them, and loading it from YAML and overrides."""

from megatron_music.config.errors import ConfigError
from megatron_music.config.load import load_run, read_run, recipe_names, write_run
from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import Run

__all__ = ["ConfigError", "FlowRunConfig", "Run", "RunConfig", "load_run", "read_run", "recipe_names", "write_run"]
