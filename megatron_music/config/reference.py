"""The fields of a run in words: as YAML that can be edited and trained, and as the page docs/configuration.md.

Meanings are those in the fields of ``sections.py`` and ``flow_sections.py``. ``python -m
megatron_music.config.reference > docs/configuration.md`` writes the page.
"""

import dataclasses
import textwrap

import yaml

from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import Run

COMMENT_COLUMN, WIDTH = 46, 140


def meaning_of(item: dataclasses.Field) -> str:
    """What a field of a section means; empty if nobody has written it down."""
    return item.metadata.get("meaning", "")


def as_yaml(run: Run, description: str = "") -> str:
    """Every field of a run as YAML with its meaning, and its default where the run has another value.

    The text is a recipe again: saved as a file, it is what ``train FILE.yaml`` takes.
    """
    lines = [f"description: {_scalar(description)}"] if description else []
    for section in dataclasses.fields(run):
        config = getattr(run, section.name)
        lines += ["", f"# {_first_line(type(config))}", f"{section.name}:"]
        for item in dataclasses.fields(config):
            value = getattr(config, item.name)
            other = "" if value == item.default or item.default is None else f" (default {_scalar(item.default)})"
            entry = f"  {item.name}: {_scalar(value)}"
            comment = textwrap.wrap(meaning_of(item) + other, WIDTH - COMMENT_COLUMN - 2)
            lines.append(f"{entry + ' ':{COMMENT_COLUMN}}# {(comment or [''])[0]}".rstrip())
            lines += [f"{'':{COMMENT_COLUMN}}# {rest}" for rest in comment[1:]]
    return "\n".join(lines).strip() + "\n"


def _scalar(value) -> str:
    """A value as YAML on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("\n...\n").strip()
    )


def _first_line(kind: type) -> str:
    return kind.__doc__.splitlines()[0]


def page() -> str:
    """The text of docs/configuration.md."""
    parts = [_HEAD]
    shared = {item.name: item.type for item in dataclasses.fields(RunConfig)}
    flow = {item.name: item.type for item in dataclasses.fields(FlowRunConfig)}
    for name, kind in shared.items():
        parts.append(_table(name, kind, "" if flow[name] is kind else " of a GPT"))
        if flow[name] is not kind:
            parts.append(_table(name, flow[name], " of a text-to-music model"))
    parts += [_table(name, kind, " of a text-to-music model") for name, kind in flow.items() if name not in shared]
    return "\n".join(parts)


def _table(name: str, kind: type, of: str) -> str:
    rows = [
        f"| `{name}.{item.name}` | `{_scalar(item.default)}` | {meaning_of(item).replace('|', chr(92) + '|')} |"
        for item in dataclasses.fields(kind)
    ]
    return "\n".join(
        [
            f"## `{name}`{of}",
            "",
            kind.__doc__.strip(),
            "",
            "| field | default | meaning |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


_HEAD = """# The fields of a run

A run is a recipe with overrides: `megatron-music train RECIPE section.field=value ...`. `megatron-music recipes` lists the recipes,
and `megatron-music recipes NAME` prints one with every field, its value and its meaning. That text is a recipe again:

```bash
megatron-music recipes demo > mine.yaml      # edit it
megatron-music train mine.yaml data.path=data checkpoint.save=run
```

Values are YAML: `null` means that a field is omitted, lists are written `data.path=[0.7,a,0.3,b]`. A run writes its whole configuration to
`RUN/config.yaml`. Fields that contradict each other are refused before anything is built, with what to change.

This page is generated from the code by `python -m megatron_music.config.reference > docs/configuration.md`.
"""


if __name__ == "__main__":
    print(page(), end="")
