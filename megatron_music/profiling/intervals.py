"""Sets of points in time as sorted, disjoint intervals: what is a sum where nothing overlaps, and is not where
it does.
"""

import numpy as np


def union(intervals: np.ndarray) -> np.ndarray:
    """The same points as disjoint intervals in order.

    Args:
        intervals: [N, 2], start and end, in any order, overlapping or not.

    Returns:
        [M, 2]; intervals that touch are one.
    """
    intervals = np.asarray(intervals, float).reshape(-1, 2)
    intervals = intervals[intervals[:, 1] > intervals[:, 0]]
    if not len(intervals):
        return np.zeros((0, 2))
    ordered = intervals[np.argsort(intervals[:, 0], kind="stable")]
    ends = np.maximum.accumulate(ordered[:, 1])
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:, 0] > ends[:-1]]))
    return np.stack([ordered[begins, 0], ends[np.append(begins[1:] - 1, len(ordered) - 1)]], 1)


def length(intervals: np.ndarray) -> float:
    """Of disjoint intervals."""
    return float((intervals[:, 1] - intervals[:, 0]).sum())


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """The length of the points in both unions: |A| + |B| - |A or B|."""
    return length(first) + length(second) - length(union(np.concatenate([first, second])))


def innermost(intervals: np.ndarray) -> list[np.ndarray]:
    """For calls of one thread, which are nested: the part of each that is in no call within it.

    Args:
        intervals: [N, 2], each two nested or apart.

    Returns:
        For each, in the order given, its own disjoint intervals.
    """
    order = sorted(range(len(intervals)), key=lambda number: (intervals[number][0], -intervals[number][1]))
    own: list[list[tuple[float, float]]] = [[] for _ in intervals]
    stack: list[int] = []
    reached = -np.inf

    def close(until: float) -> None:
        nonlocal reached
        while stack and intervals[stack[-1]][1] <= until:
            number = stack.pop()
            if intervals[number][1] > reached:
                own[number].append((reached, intervals[number][1]))
                reached = intervals[number][1]

    for number in order:
        start = intervals[number][0]
        close(start)
        if stack and start > reached:
            own[stack[-1]].append((reached, start))
        reached = max(reached, start)
        stack.append(number)
    close(np.inf)
    return [np.array(parts, float).reshape(-1, 2) for parts in own]
