"""Seconds and losses of steps out of what a run wrote: our ``metrics.jsonl``, or the log of Megatron-LM, Megatron-Bridge or NeMo 2.

A log may be of several ranks, with a prefix before each line as ``srun --label`` puts it, and of several starts one after
another. Knows nothing about formulas.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

# What Megatron-LM prints as its arguments, and what it is called here.
_ARGUMENTS = {
    "num_layers": "num_layers", "hidden_size": "hidden_size", "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "ffn_hidden_size", "seq_length": "seq_length", "padded_vocab_size": "vocab_size",
    "global_batch_size": "global_batch_size", "world_size": "num_gpus",
}  # fmt: skip
_RECOMPUTATIONS = {"full": "full", "selective": "selective", "None": "none"}
_NUMBER = r"([\d.]+(?:[eE][+-]?\d+)?)"
_ARGUMENT = re.compile(r"\b(\w+) \.{3,} (\S+)\s*$")
# One a step or an interval of steps. Megatron-LM and Bridge write the same line; NeMo a line, or a bar with "=".
_MEGATRON = re.compile(rf"\biteration\s+(\d+)\s*/\s*\d+ \|.*?elapsed time per iteration \(ms\): {_NUMBER}")
_NEMO = re.compile(rf"global_step[:=] ?{_NUMBER}.*?train_step_timing in s[:=] ?{_NUMBER}")
_LOSS = re.compile(rf"\b(?:lm loss|reduced_train_loss)[:=] ?{_NUMBER}")
_BATCH = re.compile(r"global[ _]batch[ _]size:\s+(\d+)")


class Step(NamedTuple):
    """One line of a log."""

    iteration: int  # the last it is about
    seconds: float  # of a step
    loss: float | None = None


class Log(NamedTuple):
    """What a log says."""

    kind: str
    steps: list[Step]  # in the order of the file
    facts: dict  # of the run, by the names of the command line: as many as the log tells


class StepTime(NamedTuple):
    """Seconds of a step, over the lines of a log that are no warm-up."""

    median: float
    lower_quartile: float
    upper_quartile: float
    num_lines: int  # that count
    num_warmup_lines: int  # that were left out


def read_log(path: Path) -> Log:
    """The steps of a log.

    Raises:
        ValueError: the file cannot be read, or has no line of a kind known here.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name a metrics.jsonl, a run's folder or a host's log") from None
    lines = re.split(r"[\r\n]+", text)
    for kind, read in (("metrics.jsonl", _own_steps), ("Megatron-LM or Megatron-Bridge", _megatron_steps), ("NeMo", _nemo_steps)):
        steps = list(read(lines))
        if steps:
            return Log(kind, steps, _facts(lines))
    raise ValueError(
        f"{path} has no line with the time of a step; name a metrics.jsonl, or a log of Megatron-LM or Bridge "
        "('elapsed time per iteration (ms)') or of NeMo ('train_step_timing in s')"
    )


def summarize(steps: Sequence[Step], warmup: int) -> StepTime:
    """The median and the quartiles without warm-up.

    Args:
        steps: of one log. Where the iteration does not grow, the run was started again and warms up again.
        warmup: iterations left out after each start; a line that is about one of them is left out whole.

    Raises:
        ValueError: nothing is left.
    """
    kept = sorted(step.seconds for step in after_warmup(steps, warmup))
    return StepTime(_quantile(kept, 0.5), _quantile(kept, 0.25), _quantile(kept, 0.75), len(kept), len(steps) - len(kept))


def after_warmup(steps: Sequence[Step], warmup: int) -> list[Step]:
    """The lines that ``summarize`` counts.

    Raises:
        ValueError: there are none.
    """
    kept = [step for step, before in _with_iterations_before(steps) if before >= warmup]
    if not kept:
        raise ValueError(
            f"all {len(steps)} lines are within the first {warmup} iterations of a start, the warm-up; give --warmup 0, or a "
            "longer run"
        )
    return kept


def _with_iterations_before(steps: Sequence[Step]) -> Iterable[tuple[Step, int]]:
    """Each line with the number of iterations since the start that are over before those it is about."""
    for start in _starts(steps):
        gaps = [later.iteration - earlier.iteration for earlier, later in zip(start, start[1:], strict=False)]
        interval = min(gaps, default=start[0].iteration)
        first = start[0].iteration - interval
        before = 0
        for step in start:
            yield step, before
            before = step.iteration - first


def _starts(steps: Sequence[Step]) -> list[list[Step]]:
    starts: list[list[Step]] = []
    for step in steps:
        if not starts or step.iteration <= starts[-1][-1].iteration:
            starts.append([])
        starts[-1].append(step)
    return starts


def _own_steps(lines: Sequence[str]) -> Iterable[Step]:
    for line in lines:
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
            yield Step(int(entry["iteration"]), _positive(entry["step_seconds"]), entry.get("loss"))
        except (ValueError, KeyError, TypeError):
            continue  # an evaluation, or the last line of a run that was killed


def _megatron_steps(lines: Sequence[str]) -> Iterable[Step]:
    return _matches(_MEGATRON, lines, 1e-3)


def _nemo_steps(lines: Sequence[str]) -> Iterable[Step]:
    return _matches(_NEMO, lines, 1.0)


def _matches(pattern: re.Pattern, lines: Sequence[str], unit_seconds: float) -> Iterable[Step]:
    last = None
    for line in lines:
        found = pattern.search(line)
        if found:
            loss = _LOSS.search(line)
            step = Step(int(float(found[1])), float(found[2]) * unit_seconds, float(loss[1]) if loss else None)
            if step != last and step.seconds > 0:  # a bar is drawn more than once, and several ranks may tell of one step
                yield step
            last = step


def _facts(lines: Sequence[str]) -> dict:
    """What the log says of the run."""
    facts: dict = {}
    arguments = dict(match.groups() for line in lines if (match := _ARGUMENT.search(line)))
    for name, ours in _ARGUMENTS.items():
        if arguments.get(name, "").isdigit():
            facts[ours] = int(arguments[name])
    if "num_layers" in facts:
        if arguments.get("group_query_attention") == "True" and arguments.get("num_query_groups", "").isdigit():
            facts["num_query_groups"] = int(arguments["num_query_groups"])
        facts["swiglu"] = arguments.get("swiglu") == "True"
        facts["recomputation"] = _RECOMPUTATIONS.get(arguments.get("recompute_granularity", "None"), "none")
    batches = {int(match[1]) for line in lines if (match := _BATCH.search(line))}
    if len(batches) == 1:
        facts["global_batch_size"] = batches.pop()
    elif batches:
        facts.pop("global_batch_size", None)  # it was ramped up: no one number
    return facts


def _positive(seconds: float) -> float:
    if not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
        raise ValueError(seconds)
    return float(seconds)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
