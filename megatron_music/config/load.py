"""Named runs as YAML files, and reading a run: a recipe first, ``section.field=value`` on top.

`megatron-music recipes` lists the files of this folder. Knows the names and types of the fields; ``reference.py`` their
meaning.
"""

import contextlib
import difflib
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import yaml

from megatron_music.config.errors import ConfigError, closest, either, refuse_unless
from megatron_music.config.flow_sections import KINDS
from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import ModelConfig, Run
from megatron_music.storage.reading import parse_yaml, read_yaml
from megatron_music.storage.writing import write_whole

RECIPES = Path(__file__).parent / "recipes"
SECTIONS: dict[str, type] = {item.name: item.type for item in fields(RunConfig)}
FLOW_SECTIONS: dict[str, type] = {item.name: item.type for item in fields(FlowRunConfig)}


def load_run(recipe: str, overrides: Sequence[str] = ()) -> Run:
    """The run of a recipe with overrides on top.

    Args:
        recipe: a name of ``recipe_names()`` or the path of a YAML file.
        overrides: ``section.field=value``, the value in YAML.

    Raises:
        ConfigError: an unknown recipe, section or field, a wrong type, or a contradiction.

    Returns:
        A RunConfig; a FlowRunConfig where ``model.kind`` is one of its kinds.
    """
    path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        path = Path(recipe)
        names = list(recipe_names())
        refuse_unless(
            path.is_file(),
            f"recipe {recipe!r} is neither a recipe nor a YAML file; use {either(names)}{closest(recipe, names)} or a "
            f"path",
        )
    tree = _read_yaml(path)
    tree.pop("description", None)
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.partition(".")
        meant = "" if dot else _hint("", name, _kinds_of(tree, overrides))
        refuse_unless(
            bool(equals and dot and key),
            f"override {override!r} is not section.field=value{meant}; write it as in train.train_iters=100",
        )
        _check_section(section, SECTIONS | FLOW_SECTIONS, "the overrides")
        try:
            value = parse_yaml(text)
        except (yaml.YAMLError, ValueError):  # no number of so many digits, no such date, too deep
            raise ConfigError(
                f"the value of override {override!r} is no YAML; quote it, as in {name}='\"text\"'"
            ) from None
        tree.setdefault(section, {})[key] = value
    return _run_of(tree, str(path))


def read_run(path: str | os.PathLike) -> Run:
    """The run written by ``write_run``.

    Raises:
        ConfigError: the file is missing, damaged or of another version's fields; the sentence names it.
    """
    tree = _read_yaml(Path(path))
    try:
        return _run_of(tree, str(path))
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def write_run(config: Run, path: str | os.PathLike) -> None:
    """Write every field of a run, defaults included, as YAML; the file is there whole or not at all."""
    write_whole(path, yaml.safe_dump(asdict(config), sort_keys=False).encode(), syncs_folder=True)


def description_of(recipe: str) -> str:
    """What a recipe says of itself in one line; empty for a file that does not."""
    path = RECIPES / f"{recipe}.yaml"
    return str(_read_yaml(path if path.is_file() else Path(recipe)).get("description", ""))


def recipe_names() -> dict[str, str]:
    """The named recipes and what each is, in one line."""
    return {path.stem: str(_read_yaml(path).get("description", "")) for path in sorted(RECIPES.glob("*.yaml"))}


def _read_yaml(path: Path) -> dict:
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; name a run's folder or a recipe") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{path} cannot be read as YAML ({reason}); compare it with megatron_music/recipes/tiny.yaml"
        ) from None
    refuse_unless(isinstance(tree, dict), f"{path} holds no sections; compare it with megatron_music/recipes/tiny.yaml")
    for section, content in tree.items():
        refuse_unless(
            section == "description" or isinstance(content, dict),
            f"{path} gives {section} as {content!r}; write its fields below it, one a line",
        )
    return tree


def _check_section(section: str, sections: dict[str, type], source: str) -> None:
    refuse_unless(
        section in sections,
        f"unknown section {section!r} in {source}; use {either(tuple(sections))}{closest(section, sections)}",
    )


def _kinds_of(tree: dict, overrides: Sequence[str] = ()) -> dict[str, type]:
    kind = tree.get("model", {}).get("kind")
    is_flow = (isinstance(kind, str) and kind in KINDS) or any(f"model.kind={kind}" in overrides for kind in KINDS)
    return FLOW_SECTIONS if is_flow else SECTIONS


def _hint(section: str, key: str, kinds: dict[str, type]) -> str:
    """Which field of any section a name may have been meant to be, in brackets; empty if nothing is near.

    A field of that very name in another section goes first, then one that is the name with its section's in front, such
    as
    train_iters for iters, then one that is spelt alike: of the same section, or of any.
    """
    known = {name: [item.name for item in fields(kind)] for name, kind in kinds.items()}
    found = [f"{name}.{key}" for name, names in known.items() if key in names]
    found += [
        f"{name}.{name}_{key}" for name, names in known.items() if f"{name}_{key}" in names and section in ("", name)
    ]
    if not found:
        near = closest(key, known.get(section, ()))
        if near:
            return near
        alike = difflib.get_close_matches(str(key), [field for names in known.values() for field in names], n=1)
        found = [f"{name}.{field}" for name, names in known.items() for field in names if field in alike]
    return f" (did you mean {either(found)}?)" if found else ""


def _run_of(tree: dict, source: str) -> Run:
    if "kind" in (model := tree.get("model", {})):
        kind = model["kind"]
        refuse_unless(
            isinstance(kind, str) and kind in KINDS,
            f"model.kind is {kind!r}; use {either(tuple(KINDS))}{closest(kind, KINDS)}, or omit it for a GPT",
        )
    kinds = _kinds_of(tree)
    is_flow = kinds is FLOW_SECTIONS
    sections = {}
    for section, content in tree.items():
        _check_section(section, kinds, source)
        kind = kinds[section]
        known = {item.name: item for item in fields(kind)}
        values = {}
        for key, value in content.items():
            refuse_unless(
                key in known, f"unknown key {section}.{key}{_hint(section, key, kinds)}; use {either(tuple(known))}"
            )
            values[key] = _coerced(value, known[key], f"{section}.{key}")
        sections[section] = kind(**values)
    if "model" not in sections:
        sections["model"] = ModelConfig()
    return (FlowRunConfig if is_flow else RunConfig)(**sections)


def _coerced(value, item, name: str):
    """``value`` as the field's type; YAML reads 1e-3 as text, and 1 where 1.0 is meant."""
    kinds = typing.get_args(item.type) if isinstance(item.type, types.UnionType) else (item.type,)
    if value is None and (type(None) in kinds or (item.default is not MISSING and item.default is None)):
        return None
    if isinstance(value, str) and str not in kinds:
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{name} has {len(str(value))} digits; use a finite number, such as 1.0") from None
    if isinstance(value, float) and int in kinds and value.is_integer():
        return int(value)
    # True is an int to Python, never to a reader of recipes.
    if isinstance(value, bool) == (bool in kinds) and any(isinstance(value, kind) for kind in kinds):
        return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list: "a list"}
    allowed = [words[kind] for kind in kinds if kind in words]
    raise ConfigError(f"{name} is {value!r}; use {either(allowed)}")
