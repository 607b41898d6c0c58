"""A number with its noun, in the right number: ``1 piece``, ``2 pieces``; names in a list."""

from collections.abc import Sequence


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``counted(1, "row")`` is ``1 row``; ``counted(1200, "entry", "entries")`` is ``1,200 entries``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
