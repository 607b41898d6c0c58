"""Step times and losses from our ``metrics.jsonl``, or from a log of Megatron-LM, Megatron-Bridge or NeMo.

A log may hold several starts one after another, and lines of several ranks, labelled as ``srun --label`` and torchrun
do. Colours are dropped; a line that the terminal wrapped is put together; two lines run together are two.
"""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_music.config.errors import counted
from megatron_music.profiling.log_facts import facts_of
from megatron_music.storage.reading import TABLE_BYTES, read_bytes, reason_of

_NUMBER = r"([\d.]+(?:[eE][+-]?\d+)?)"
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_LABEL = re.compile(r"^\s*(?:(\d+): ?|\[(?:default|rank|Rank )(\d+)\]:? ?)")
# Matched without white space, since a terminal wraps a line anywhere, in the middle of a word or a number.
_MEGATRON_HEAD = re.compile(r"iteration(\d+)/\d+\|")
_MEGATRON_TIME = re.compile(rf"elapsedtimeperiteration\(ms\):{_NUMBER}")
_MEGATRON_MARK = re.compile(r"\biteration\s+\d+\s*/\s*\d+\s*\|")
_NEMO = re.compile(rf"global_step[:=] ?{_NUMBER}.*?train_step_timing in s[:=] ?{_NUMBER}")
_BAR = re.compile(r"\| (\d+)/(?:\d+|\?) \[")
_LOSS = re.compile(rf"(?:lm ?loss|reduced_train_loss)[:=] ?{_NUMBER}")
_BATCH = re.compile(r"global[ _]?batch[ _]?size: ?(\d+)")
_TFLOPS = re.compile(rf"(?:throughputperGPU\(TFLOP/s/GPU\):|TFLOPS_per_GPU[:=] ?|\bTFLOPs:){_NUMBER}")
_TFLOPS_OF_BRIDGE = re.compile(rf"GPU utilization: {_NUMBER}(?:MODEL_)?TFLOP/s/GPU")
_MOST_WRAPPED_LINES = 12


class Step(NamedTuple):
    """One line of a log; where several ranks print the same step, the mean of their lines."""

    iteration: int  # the last one it covers
    seconds: float  # of one step
    loss: float | None = None
    tflops_per_gpu: float | None = None  # as the log states it
    global_batch_size: int | None = None
    covers_one: bool = False  # the time is that of the iteration alone, not the mean since the line before


class Log(NamedTuple):
    """The contents of a log."""

    kind: str
    steps: list[Step]  # in the order of the file
    facts: dict  # of ``log_facts.facts_of``


class StepTime(NamedTuple):
    """Seconds of a step, over the lines of a log that are not warm-up."""

    median: float
    lower_quartile: float
    upper_quartile: float
    num_lines: int  # counted
    num_warmup_lines: int  # left out


def read_log(path: Path) -> Log:
    """The steps of a log.

    Raises:
        ValueError: the file cannot be read, or has no line of a known kind.
    """
    try:
        text = read_bytes(path, TABLE_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({reason_of(error)}); name a metrics.jsonl, a run's folder or a host's log"
        ) from None
    lines = re.split(r"[\r\n]+", _COLOUR.sub("", text))
    for kind, read in (
        ("metrics.jsonl", _own_steps),
        ("Megatron-LM or Megatron-Bridge", _megatron_steps),
        ("NeMo", _nemo_steps),
    ):
        steps = list(read(lines))
        if steps:
            facts = facts_of(lines)
            if kind == "metrics.jsonl" and any('"process_memory_gib"' in line for line in lines):
                facts["device"] = "CPU"  # of a GPU the file has cuda_memory_gib
            return Log(kind, steps, facts)
    raise ValueError(
        f"{path} has no line with the time of a step; name a metrics.jsonl, or a log of Megatron-LM or Bridge "
        "('elapsed time per iteration (ms)') or of NeMo ('train_step_timing in s')"
    )


def summarize(steps: Sequence[Step], warmup: int) -> StepTime:
    """The median and the quartiles without warm-up.

    Args:
        steps: of one log. Where the iteration does not grow, the run was started again and warms up again.
        warmup: iterations left out after each start; a line that covers one of them is left out whole.

    Raises:
        ValueError: nothing is left.
    """
    kept = sorted(step.seconds for step in after_warmup(steps, warmup))
    return StepTime(
        _quantile(kept, 0.5), _quantile(kept, 0.25), _quantile(kept, 0.75), len(kept), len(steps) - len(kept)
    )


def after_warmup(steps: Sequence[Step], warmup: int) -> list[Step]:
    """The lines that ``summarize`` counts.

    Raises:
        ValueError: there are none.
    """
    kept = [step for step, before in _with_iterations_before(steps) if before >= warmup]
    if not kept:
        raise ValueError(
            f"every line ({len(steps)}) covers some of the first {counted(warmup, 'iteration')} of a start, the "
            f"warm-up; give --warmup 0, or "
            "a longer run"
        )
    return kept


def _with_iterations_before(steps: Sequence[Step]) -> Iterable[tuple[Step, int]]:
    """Each line with the number of iterations of its start that precede those it covers."""
    for start in _starts(steps):
        gaps = [later.iteration - earlier.iteration for earlier, later in itertools.pairwise(start)]
        first = start[0].iteration
        interval = _interval(first, gaps)
        # Megatron-LM logs the first iteration of a start by itself and does not reset its timer: the next line covers
        # that one again.
        logs_first = bool(gaps) and gaps[0] < interval and first % interval != 0
        begin = first if logs_first or start[0].covers_one else first - interval + 1
        for step in start:
            covered = 1 if step.covers_one else interval
            yield step, max(0, step.iteration - covered + 1 - begin)


def _interval(first: int, gaps: Sequence[int]) -> int:
    """Iterations from one line to the next."""
    if not gaps:
        return first or 1
    if len(gaps) == 1 and gaps[0] > 1 and (first + gaps[0]) % (gaps[0] + 1) == 0:
        return gaps[0] + 1  # 1 and 100: every 100, and the first
    counted = Counter(gaps)
    return max(counted, key=lambda gap: (counted[gap], gap))


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
            yield Step(int(entry["iteration"]), _positive(entry["step_seconds"]), entry.get("loss"), covers_one=True)
        except (ValueError, KeyError, TypeError):
            continue  # an evaluation, or the last line of a run that was killed


def _megatron_steps(lines: Sequence[str]) -> Iterable[Step]:
    return _merge_ranks(list(_megatron_lines(lines)))


def _megatron_lines(lines: Sequence[str]) -> Iterable[tuple[str, Step]]:
    """Each record with the label of its rank."""
    bridge_tflops: dict[str, float] = {}  # Bridge prints them in a line of their own, before the record
    unlabelled = [_LABEL.sub("", line, count=1) for line in lines]
    for number, line in enumerate(lines):
        label = _LABEL.match(line)
        rank = (label[1] or label[2] or "") if label else ""
        marks = [mark.start() for mark in _MEGATRON_MARK.finditer(line)]
        ahead = _TFLOPS_OF_BRIDGE.search(line[: marks[0]] if marks else line)
        if ahead:
            bridge_tflops[rank] = float(ahead[1])
        for begin, end in zip(marks, [*marks[1:], None], strict=False):
            record = re.sub(r"\s+", "", line[begin:end])
            if end is None and not _is_whole(record):
                record = _unwrapped(record, lines, unlabelled, number, rank)
            head, time = _MEGATRON_HEAD.match(record), _MEGATRON_TIME.search(record)
            if head and time and 0 < float(time[1]) < math.inf:
                tflops = _number(_TFLOPS, record) or bridge_tflops.pop(rank, None)
                batch = _BATCH.search(record)
                yield (
                    rank,
                    Step(
                        int(head[1]),
                        float(time[1]) * 1e-3,
                        _number(_LOSS, record),
                        tflops,
                        int(batch[1]) if batch else None,
                    ),
                )


def _unwrapped(record: str, lines: Sequence[str], unlabelled: Sequence[str], number: int, rank: str) -> str:
    """A record that goes on in the next lines of its rank, without white space, to its last bar."""
    for following in range(number + 1, min(number + 1 + _MOST_WRAPPED_LINES, len(lines))):
        label = _LABEL.match(lines[following])
        if ((label[1] or label[2] or "") if label else "") != rank:
            continue
        if _MEGATRON_MARK.search(unlabelled[following]) or "Step Time :" in unlabelled[following]:
            break
        record += re.sub(r"\s+", "", unlabelled[following])
        if _is_whole(record):
            break
    return record


def _is_whole(record: str) -> bool:
    return record.endswith("|") and bool(_MEGATRON_TIME.search(record) and _LOSS.search(record))


def _nemo_steps(lines: Sequence[str]) -> Iterable[Step]:
    found, places = [], _NemoPlaces()
    for line in lines:
        matched = _NEMO.search(line)
        if not matched or not 0 < float(matched[2]) < math.inf:
            continue
        label = _LABEL.match(line)
        bar = _BAR.search(line)
        iteration = places.iteration(matched[1], int(bar[1]) if bar else None)
        batch = _BATCH.search(line)
        step = Step(
            iteration,
            float(matched[2]),
            _number(_LOSS, line),
            _number(_TFLOPS, line),
            int(batch[1]) if batch else None,
            covers_one=True,
        )
        found.append(((label[1] or label[2] or "") if label else "", step))
    return _merge_ranks(found)


class _NemoPlaces:
    """Exact iterations of a bar whose ``global_step`` tqdm rounds to three digits, as in 1.2e+5: from the counter
    beside it.
    """

    def __init__(self):
        self.offset: int | None = None  # of the iteration to the bar's counter, which starts anew in each epoch
        self.last = (0, 0)  # iteration and counter

    def iteration(self, text: str, counter: int | None) -> int:
        stated = float(text)
        if counter is None or "e" not in text.lower():
            found = int(stated)
            self.offset = found - counter if counter is not None else None
        else:
            tolerance = 0.006 * stated + 1
            if self.offset is None or abs(counter + self.offset - stated) > tolerance:
                new_epoch = counter < self.last[1] and abs(self.last[0] + 1 - stated) <= tolerance
                plain = abs(counter - stated) <= tolerance
                self.offset = self.last[0] + 1 - counter if new_epoch else 0 if plain else int(stated) - counter
            found = counter + self.offset
        self.last = (found, counter or 0)
        return found


def _merge_ranks(found: list[tuple[str, Step]]) -> list[Step]:
    """One step for each iteration of each start: ranks that print the same one are averaged; a bar drawn twice counts
    once.
    """
    repeated = sum(earlier[1].iteration == later[1].iteration for earlier, later in itertools.pairwise(found))
    # Most steps come in twos: these are ranks, not starts. A single pair may be the first step of two starts.
    without_labels = len(found) > 1 and 2 * repeated >= len(found) - 1 and (repeated > 1 or len(found) == 2)
    starts: list[dict[int, dict[str, list[Step]]]] = []
    latest: dict[str, int] = {}  # each rank's last iteration in this start
    for rank, step in found:
        here = starts[-1].get(step.iteration) if starts else None
        if (
            here is not None
            and rank in here
            and step.iteration == latest[rank]
            and (without_labels or here[rank][-1] == step)
        ):
            if here[rank][-1] != step:
                here[rank].append(step)
            continue
        last = max(starts[-1]) if starts else None
        joins = here is not None and rank not in here and (rank in latest or step.iteration in (last, min(starts[-1])))
        if last is None or (step.iteration <= last and not (joins and latest.get(rank, -1) < step.iteration)):
            starts.append({})
            latest = {}
        starts[-1].setdefault(step.iteration, {}).setdefault(rank, []).append(step)
        latest[rank] = step.iteration
    return [
        _mean([step for own in ranks.values() for step in own])
        for start in starts
        for _, ranks in sorted(start.items())
    ]


def _mean(steps: Sequence[Step]) -> Step:
    if len(steps) == 1:
        return steps[0]
    tflops = [step.tflops_per_gpu for step in steps if step.tflops_per_gpu is not None]
    return steps[0]._replace(
        seconds=sum(step.seconds for step in steps) / len(steps),
        loss=next((step.loss for step in steps if step.loss is not None), None),
        tflops_per_gpu=sum(tflops) / len(tflops) if tflops else None,
    )


def _number(pattern: re.Pattern, text: str) -> float | None:
    found = pattern.search(text)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None


def _positive(seconds: float) -> float:
    if not (isinstance(seconds, int | float) and 0 < seconds < math.inf):
        raise ValueError(seconds)
    return float(seconds)


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
