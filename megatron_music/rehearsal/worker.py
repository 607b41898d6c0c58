"""The start of a process that rehearses ranks.

Imports neither torch nor megatron-core, whose warnings come when they are imported.
"""


def begin_worker() -> None:
    """End with the parent, and keep the warnings of dependencies off the terminal."""
    from megatron_music.config.log import quiet_dependencies
    from megatron_music.parallel.processes import end_with_parent

    end_with_parent()
    quiet_dependencies()
