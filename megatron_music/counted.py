"""A number with its noun, in the right number: ``1 piece``, ``2 pieces``."""


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``counted(1, "row")`` is ``1 row``; ``counted(1200, "entry", "entries")`` is ``1,200 entries``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
