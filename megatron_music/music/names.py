"""Names from files, as they are shown to a person."""


def printable(name: str) -> str:
    r"""The name on one line, without what a terminal would act on: control characters are written as ``\n``,
    ``\x1b``.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
