"""What a checkpoint says of itself in ``state.json``, checked, and whether its weights are of the wanted model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_music.checkpoints.folder import CONFIG, STATE
from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sections import FlowModelConfig
from megatron_music.config.load import read_run
from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import ModelConfig
from megatron_music.storage.reading import read_json_object, reason_of
from megatron_music.tokens import vocabulary

MOST = 2**53  # iterations, samples: what a number of JSON holds exactly


def read_state(checkpoint: Path) -> dict:
    """What a checkpoint says of itself: iteration, consumed_samples, layout, and of a GPT its vocabulary.

    Raises:
        ConfigError: it cannot be read, says something else than a run writes, or is of another vocabulary.
    """
    path = checkpoint / STATE
    try:
        facts = read_json_object(path, follow_links=False)
        _check(facts)
        if "vocabulary" not in facts and isinstance(read_run(checkpoint / CONFIG), FlowRunConfig):
            return facts
        name, digest = str(facts["vocabulary"]["name"]), str(facts["vocabulary"]["hash"])
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(f"{path} cannot be read (it lacks {error}); name another checkpoint") from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({reason_of(error)}); name another checkpoint") from None
    if digest != vocabulary.HASH:
        raise ConfigError(
            f"{checkpoint} was trained on the vocabulary {name[:40]} ({digest[:12]}), while this version reads "
            f"{vocabulary.NAME} "
            f"({vocabulary.HASH[:12]}); train anew or install the version that made it"
        )
    return facts


def _check(facts: dict) -> None:
    """
    Raises:
        KeyError: a fact is missing.
        ValueError: one is of another kind.
    """
    numbers = {name: facts[name] for name in ("iteration", "consumed_samples")}
    _want("layout", facts["layout"], dict)
    _want("weights_only", facts.get("weights_only", False), bool)
    if not facts.get("weights_only"):
        _want("has_main_parameters", facts["has_main_parameters"], bool)
        _want("schedule", facts["schedule"], dict)
        numbers |= {"optimizer_step": facts["optimizer_step"], "schedule.num_steps": facts["schedule"]["num_steps"]}
        _want("guard", facts["guard"], dict)
        numbers["guard.skipped"] = facts["guard"]["skipped"]
        for name in ("recent_losses", "in_a_row"):
            _want(f"guard.{name}", facts["guard"][name], list)
        for loss in facts["guard"]["recent_losses"]:
            _want("a loss in guard.recent_losses", loss, (int, float))
        numbers |= {
            f"number {place} of guard.in_a_row": number for place, number in enumerate(facts["guard"]["in_a_row"], 1)
        }
    if "average_step" in facts:
        numbers["average_step"] = facts["average_step"]
    for name, number in numbers.items():
        _want(name, number, int)
        if not 0 <= number <= MOST:
            raise ValueError(f"{name} is {str(number)[:40]}, which is outside 0..2^53")


def _want(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    is_flag = isinstance(value, bool)
    if not isinstance(value, kind) or is_flag != (kind is bool):
        words = {dict: "an object", list: "a list", bool: "true or false", int: "a whole number"}
        raise ValueError(f"{name} is {str(value)[:40]!r}, where {words.get(kind, 'a number')} is wanted")


def check_same_model(found: ModelConfig | FlowModelConfig, wanted: ModelConfig | FlowModelConfig, where: Path) -> None:
    """Refuse the weights of another model.

    Raises:
        ConfigError: the first field that differs.
    """
    kinds = [getattr(model, "kind", "gpt") for model in (found, wanted)]
    if kinds[0] != kinds[1]:
        raise ConfigError(f"{where} is of a {kinds[0]}, not of a {kinds[1]}; name another folder")
    if isinstance(wanted, FlowModelConfig):
        for (name, old), new in zip(asdict(found.shape).items(), asdict(wanted.shape).values(), strict=True):
            if old != new and name != "latent_length":  # any length runs
                raise ConfigError(
                    f"{where} is of a model with {name} {old}, not {new}; take the same model.size, or name another "
                    f"folder"
                )
        return
    names = ["num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size"]
    names += ["position_embedding_type", "rotary_base", "normalization", "swiglu", "add_bias_linear"]
    names += ["share_embeddings_and_output_weights"]
    if wanted.position_embedding_type == "learned_absolute":
        names.append("seq_length")
    for name in names:
        if getattr(found, name) != getattr(wanted, name):
            raise ConfigError(
                f"{where} is of a model with model.{name}={getattr(found, name)}, not {getattr(wanted, name)}; "
                f"set model.{name}={getattr(found, name)} or name another folder"
            )
