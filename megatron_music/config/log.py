"""What a command prints: its result on stdout, messages on stderr. ``-q`` and ``-v`` set how much of it.

Messages go through the logger ``megatron_music``, so that a program that imports the package can filter or redirect
them.
"""

import logging
import os
import shlex
import sys
import warnings

from megatron_music.music.names import printable

logger = logging.getLogger("megatron_music")
LOADING = "loading PyTorch and megatron-core"


def shown(text: str) -> str:
    """A text of any number of lines for a terminal: names in it are strangers' words, and what would steer a terminal
    is escaped.
    """
    return "\n".join(line if line.isprintable() else printable(line) for line in text.split("\n"))


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


class _Stderr(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is at the moment, since progress bars replace it."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.setFormatter(_Shown("megatron-music: %(message)s"))

    @property
    def stream(self):
        return sys.stderr


if not logger.handlers:
    logger.addHandler(_Stderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def quiet_cuda_search() -> None:
    """Keep torch from reporting that a CUDA toolkit is installed and no GPU is visible: layers then run on the CPU, as
    `doctor` says.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def quiet_dependencies() -> None:
    """Keep torch's and megatron-core's warnings about their own code off the terminal; `doctor` says what is absent."""
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "6"
    )  # torch's profiler writes its own probes (USDT) above every other level
    for options in (
        {"module": r"torch\.|megatron\."},
        {"message": r"Please use DTensor instead", "category": FutureWarning},
        {"message": r"The .grad attribute of a Tensor that is not a leaf", "category": UserWarning},
        {"message": r"`torch.distributed.\w+` is deprecated", "category": FutureWarning},
    ):
        warnings.filterwarnings("ignore", **options)
    quiet_cuda_search()


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Quiet: warnings and errors only, no progress bars. Verbose: also tracebacks and the warnings of dependencies."""
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def is_quiet() -> bool:
    return not logger.isEnabledFor(logging.INFO)


def is_verbose() -> bool:
    return logger.isEnabledFor(logging.DEBUG)


def announce(text: str) -> None:
    """Say on a terminal what takes the next seconds; in a log nobody waits for it."""
    if sys.stderr.isatty() and not is_quiet():
        logger.info(text)


def print_text(text: str) -> None:
    """Print text for a person at once, with what would steer a terminal escaped.

    JSON and tables are printed as they are.
    """
    print(shown(text), flush=True)


def command_line(*words: object) -> str:
    """A ``megatron-music`` command that a shell takes as it stands, names with spaces in quotes."""
    return shlex.join(["megatron-music", *map(str, words)])
