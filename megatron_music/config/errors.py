"""What is refused, in one sentence: what was given, what is allowed, what to do."""

import difflib
import math
import re
from collections.abc import Sequence

REQUEUE = 75  # exit status: stopped, and the same command goes on; EX_TEMPFAIL of sysexits.h

_LOST = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket timeout|timed? ?out waiting|remote process "
    r"(exited|has)|"
    r"ncclRemoteError|ncclSystemError",
    re.IGNORECASE,
)


class ConfigError(ValueError):
    """A run that cannot be: the message says what was given, what is allowed and what to do."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended, or cannot be reached; what this one was at is not at fault."""


def is_lost_process(error: BaseException) -> bool:
    """Whether torch.distributed says that another process has ended: it has no type for it that all its
    backends raise.
    """
    if isinstance(error, LostProcessError) or type(error).__name__ in ("DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError | OSError) and bool(_LOST.search(str(error)))


def refuse_unless(condition: bool, sentence: str) -> None:
    """Raise ConfigError with the sentence, unless the condition holds."""
    if not condition:
        raise ConfigError(sentence)


def either(words: Sequence[str]) -> str:
    """The words as a choice: a, b or c."""
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]


def closest(word: str, known: Sequence[str]) -> str:
    """What the word may have been meant to be, in brackets; empty if nothing is near."""
    match = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def divisors(number: int) -> str:
    """Everything that a number divides by, as a list in words."""
    low = [value for value in range(1, math.isqrt(number) + 1) if number % value == 0]
    high = [number // value for value in reversed(low) if value * value != number]
    return ", ".join(map(str, low + high))


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``counted(1, "row")`` is ``1 row``; ``counted(1200, "entry", "entries")`` is ``1,200 entries``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
