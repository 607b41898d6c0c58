"""What a job asks of Slurm: the options of its script, of sbatch's environment and of its command line, as Slurm reads
them.

The command line goes before the environment (``SBATCH_...``), and that before the script's ``#SBATCH`` lines, which end
at the first command. A line may hold several options, quotes and a comment. Of a heterogeneous job the first part
counts: srun starts tasks there.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_music.config.errors import counted
from megatron_music.storage.reading import read_text, reason_of

SCRIPT_BYTES = 1 << 20  # of a job script
_SHORT = {
    "J": "job-name",
    "N": "nodes",
    "n": "ntasks",
    "c": "cpus-per-task",
    "t": "time",
    "p": "partition",
    "o": "output",
    "A": "account",
    "G": "gpus",
    "a": "array",
    "d": "dependency",
    "e": "error",
    "q": "qos",
    "C": "constraint",
    "w": "nodelist",
    "x": "exclude",
    "D": "chdir",
    "M": "clusters",
    "L": "licenses",
    "m": "distribution",
    "b": "begin",
    "i": "input",
    "B": "extra-node-info",
    "F": "nodefile",
    "S": "core-spec",
}
_SHORT_FLAGS = {
    "H": "hold",
    "O": "overcommit",
    "s": "oversubscribe",
    "W": "wait",
    "Q": "quiet",
    "v": "verbose",
    "k": "no-kill",
    "h": "help",
    "V": "version",
}
# Options without a value, or with one behind "=" alone.
_FLAGS = frozenset(
    (
        "hold",
        "overcommit",
        "oversubscribe",
        "wait",
        "quiet",
        "verbose",
        "no-kill",
        "help",
        "version",
        "requeue",
        "no-requeue",
        "exclusive",
        "contiguous",
        "parsable",
        "ignore-pbs",
        "spread-job",
        "use-min-nodes",
        "reboot",
        "test-only",
        "get-user-env",
        "nice",
        "propagate",
        "usage",
        "disable-stdout-job-summary",
    )
)
_ENVIRONMENT = {
    "SBATCH_PARTITION": "partition",
    "SBATCH_TIMELIMIT": "time",
    "SBATCH_EXPORT": "export",
    "SBATCH_GPUS": "gpus",
    "SBATCH_GPUS_PER_NODE": "gpus-per-node",
    "SBATCH_GPUS_PER_TASK": "gpus-per-task",
    "SBATCH_GRES": "gres",
    "SBATCH_SIGNAL": "signal",
    "SBATCH_ARRAY_INX": "array",
    "SBATCH_OPEN_MODE": "open-mode",
    "SBATCH_REQUEUE": "requeue",
}
_NO_LIMIT = ("unlimited", "infinite", "-1")
_NUMBERS = ("nodes", "ntasks", "ntasks-per-node", "cpus-per-task", "ntasks-per-gpu", "time", "array")
_GPU_COUNTS = ("gpus", "gpus-per-node", "gpus-per-task", "gres")
_DEFAULT_LEAD = 60  # of --signal without @
_MOST_LEAD = 65535  # sbatch(1): sig_time is an integer between 0 and 65535


class Job(NamedTuple):
    """A job as it would be submitted."""

    path: Path
    options: dict[str, str]  # by their long names; of a flag: ""
    text: str
    command_line: tuple[str, ...] = ()  # sbatch's own options
    num_parts: int = 1  # of a heterogeneous job

    def check_numbers(self) -> None:
        """Refuse values that the properties below cannot read.

        Raises:
            ValueError: one sentence.
        """
        for name in (*_NUMBERS, *_GPU_COUNTS):
            if name not in self.options:
                continue
            value = self.options[name]
            try:
                _READ.get(name, lambda job, name=name: int(job.options[name]))(self)
            except ValueError:
                raise ValueError(f"sbatch's option --{name}={value[:80]} cannot be read") from None
        lead = self._signal_lead()
        if lead and (len(lead) > 5 or int(lead) > _MOST_LEAD):
            raise ValueError(f"sbatch's option --signal has {lead[:80]} s, where Slurm takes 0 to {_MOST_LEAD:,}")
        if self.num_nodes < 1 or self.num_tasks < 1:
            raise ValueError(f"the job has {counted(self.num_nodes, 'node')} and {counted(self.num_tasks, 'task')}")

    @property
    def num_nodes(self) -> int:
        if "nodes" in self.options:
            return int(re.split(r"[-,:]", self.options["nodes"])[0])
        per_node = int(self.options.get("ntasks-per-node", "0"))
        return math.ceil(int(self.options["ntasks"]) / per_node) if per_node and "ntasks" in self.options else 1

    @property
    def num_tasks(self) -> int:
        if "ntasks" in self.options:
            return int(self.options["ntasks"])
        if "ntasks-per-node" in self.options:
            return self.num_nodes * int(self.options["ntasks-per-node"])
        if "ntasks-per-gpu" in self.options and (gpus := self.num_gpus):
            return gpus * int(self.options["ntasks-per-gpu"])
        if "gpus-per-task" in self.options and "gpus" in self.options:
            return max(1, _count(self.options["gpus"]) // max(1, _count(self.options["gpus-per-task"])))
        return self.num_nodes

    @property
    def tasks_per_node(self) -> int:
        return math.ceil(self.num_tasks / self.num_nodes)

    @property
    def num_gpus(self) -> int | None:
        """Of the whole job; None: it asks for none."""
        if "gpus" in self.options:
            return _count(self.options["gpus"])
        per_node = self.gpus_per_node
        return per_node * self.num_nodes if per_node is not None else None

    @property
    def gpus_per_node(self) -> int | None:
        """None: the job asks for none."""
        if "gpus-per-node" in self.options:
            return _count(self.options["gpus-per-node"])
        listed = [_count(item.partition(":")[2] or "1") for item in self._gpu_resources]
        if listed:
            return sum(listed)
        if "gpus" in self.options:
            return math.ceil(_count(self.options["gpus"]) / self.num_nodes)
        if "gpus-per-task" in self.options:
            return _count(self.options["gpus-per-task"]) * self.tasks_per_node
        return None

    @property
    def _gpu_resources(self) -> list[str]:
        """The items of --gres that are GPUs: of gpu:2,craynetwork:1 the first."""
        items = [item.removeprefix("gres/").removeprefix("gres:") for item in self.options.get("gres", "").split(",")]
        return [re.sub(r"\(.*", "", item) for item in items if re.match(r"gpu(:|$)", item)]

    @property
    def gpu(self) -> str | None:
        """The type that the job names, as in --gpus-per-node=a100:8."""
        texts = [self.options.get(name, "") for name in ("gpus-per-node", "gpus", "gpus-per-task")]
        texts += [item.partition(":")[2] for item in self._gpu_resources]
        found = (re.match(r"([A-Za-z][\w-]*)(:\d+)?$", text.split(",")[0]) for text in texts)
        return next((match[1] for match in found if match), None)

    @property
    def partitions(self) -> list[str]:
        """One of them runs the job; empty: the cluster's default."""
        return [name for name in self.options.get("partition", "").split(",") if name]

    @property
    def seconds(self) -> int | None:
        """The time limit; None: that of the partition."""
        return seconds_of(self.options["time"]) if "time" in self.options else None

    @property
    def lead_seconds(self) -> int | None:
        """How long before the end Slurm signals."""
        if "signal" not in self.options:
            return None
        return int(self._signal_lead() or _DEFAULT_LEAD)

    def _signal_lead(self) -> str | None:
        found = re.search(r"@(\d+)$", self.options.get("signal", ""))
        return found[1] if found else None

    @property
    def array_tasks(self) -> set[int]:
        """The numbers of an array's tasks, as of 0-7:2,9%4; empty where the job is no array."""
        if "array" not in self.options:
            return set()
        found: set[int] = set()
        for part in self.options["array"].partition("%")[0].split(","):
            match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
            if match is None:
                raise ValueError(part)
            found |= set(range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1)))
        return found


_READ = {"nodes": lambda job: job.num_nodes, "time": lambda job: job.seconds, "array": lambda job: job.array_tasks}
_READ |= {name: lambda job, name=name: _count(job.options[name]) for name in ("gpus", "gpus-per-node", "gpus-per-task")}
_READ["gres"] = lambda job: [_count(item.partition(":")[2]) for item in job._gpu_resources]


def read_job(path: Path, command_line: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Job:
    """The job of a script.

    Args:
        command_line: sbatch's own options, before the script.
        environment: where SBATCH_... are looked up.

    Raises:
        ValueError: the script cannot be read, or an option of the command line lacks its value.
    """
    try:
        text = read_text(path, SCRIPT_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({reason_of(error)}); name an sbatch script; `megatron-music launch -o DIR` "
            f"copies those of this package"
        ) from None
    options: dict[str, str] = {}
    num_parts = 1
    for words in _directives(text):
        if words in (["hetjob"], ["packjob"]):
            num_parts += 1
        elif num_parts == 1:
            options |= dict(_pairs(words))
    if environment:
        options |= {name: environment[variable] for variable, name in _ENVIRONMENT.items() if environment.get(variable)}
    return Job(path, options | dict(_pairs(command_line)), text, tuple(command_line), num_parts)


def split_command_line(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of sbatch at the head of its arguments, and the rest: the script and its arguments."""
    place = 0
    while place < len(words) and words[place].startswith("-") and words[place] != "-":
        if words[place] == "--":
            return list(words[:place]), list(words[place + 1 :])
        place += _length(words[place])
    return list(words[:place]), list(words[place:])


def heading(text: str) -> list[str]:
    """The lines before the first command, which alone Slurm reads for options."""
    lines = text.splitlines()
    return lines[
        : next((number for number, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    ]


def seconds_of(time: str) -> int | None:
    """Slurm's time limits: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on; None: no limit, which
    0 means as well.

    Raises:
        ValueError: it is none of these.
    """
    if time.lower() in _NO_LIMIT:
        return None
    days, dash, rest = time.rpartition("-")
    parts: list[int] = [int(part) for part in rest.split(":")]
    if len(parts) > 3 or any(part < 0 for part in parts):
        raise ValueError(f"{time} is no time limit of Slurm")
    if dash:
        hours, minutes, seconds = ([*parts, 0, 0])[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, minutes, seconds = 0, parts[0], parts[1] if len(parts) > 1 else 0
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or None


def _directives(text: str) -> Iterator[list[str]]:
    """The words of each #SBATCH line."""
    for line in heading(text):
        if re.match(r"#SBATCH\s", line):
            try:
                yield shlex.split(line.removeprefix("#SBATCH"), comments=True)
            except ValueError:  # a quote that is not closed
                yield line.split()[1:]


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and values of a line of arguments, as getopt reads it."""
    place = 0
    while place < len(words):
        word = words[place]
        taken = _length(word)
        following = words[place + 1] if taken == 2 and place + 1 < len(words) else ""
        place += taken
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            yield name, value or following
        elif re.match(r"-\w", word):
            name = _SHORT_FLAGS.get(word[1]) or _SHORT.get(word[1], word[1])
            yield name, (word[2:].removeprefix("=") or following) if word[1] not in _SHORT_FLAGS else ""


def _length(word: str) -> int:
    """Words that an option takes: itself, and its value where that stands apart."""
    if word.startswith("--"):
        return 1 if "=" in word or word[2:] in _FLAGS else 2
    return 2 if len(word) == 2 and word[0] == "-" and word[1] not in _SHORT_FLAGS else 1


def _count(text: str) -> int:
    """GPUs in a list as of --gpus: 4, a100:4, a100, or a100:2,v100:2."""
    total = 0
    for item in text.split(","):
        last = re.sub(r"\(.*", "", item).rpartition(":")[2]
        total += int(last) if last[:1].isdigit() or last[:1] == "-" else 1
    return total
