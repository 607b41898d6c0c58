"""The command line: one module for each family of commands, and the parser in ``entry``."""

import warnings


def __getattr__(name: str):
    """``main`` and ``build_parser``, which stood here in earlier versions."""
    if name not in ("main", "build_parser"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"megatron_music.cli.{name} moved to megatron_music.cli.entry; import it from there",
        DeprecationWarning,
        stacklevel=2,
    )
    from megatron_music.cli import entry

    return getattr(entry, name)
