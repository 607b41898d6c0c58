"""Does a sound have what was asked for? A linear classifier of sounds, fitted on real ones whose answers are known.

It hears the same statistics as the small encoder of music and nothing of the models. Shapes: N sounds, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of which the best by leave-one-out is taken


@dataclass(frozen=True, eq=False)
class Probe:
    """A classifier of features.

    Args:
        labels: the classes.
        mean_F, weights_FK, bias_K: score of each class.
    """

    labels: tuple[str, ...]
    mean_F: np.ndarray
    weights_FK: np.ndarray
    bias_K: np.ndarray

    def classify(self, features_NF: np.ndarray) -> list[str]:
        """The most likely label of each sound."""
        best = ((features_NF - self.mean_F) @ self.weights_FK + self.bias_K).argmax(1)
        return [self.labels[number] for number in best]

    def accuracy(self, features_NF: np.ndarray, labels: Sequence[str]) -> float:
        """Share of sounds with the label they should have."""
        return float(np.mean([found == label for found, label in zip(self.classify(features_NF), labels, strict=True)]))


def fit_probe(features_NF: np.ndarray, labels: Sequence[str]) -> Probe:
    """A classifier by ridge regression to one column a class, each class weighing the same.

    Raises:
        ValueError: fewer than two classes.
    """
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ValueError(f"a probe needs two classes to tell apart and got {len(classes)}; give other sounds")
    numbers = np.array([classes.index(label) for label in labels])
    target_NK = np.eye(len(classes))[numbers] * 2 - 1
    weight_N = 1 / np.bincount(numbers)[numbers] * len(numbers) / len(classes)
    mean_F, scale_F = features_NF.mean(0), features_NF.std(0).clip(1e-3)
    root_N1 = np.sqrt(weight_N)[:, None]
    design = np.hstack([(features_NF - mean_F) / scale_F, np.ones((len(numbers), 1))]) * root_N1
    left, strengths, right = np.linalg.svd(design, full_matrices=False)
    projected = left.T @ (target_NK * root_N1)
    best = None
    for ridge in RIDGES:
        shrink = strengths**2 / (strengths**2 + ridge * len(numbers))
        leverage = ((left**2) @ shrink).clip(max=1 - 1e-6)[:, None]
        fitted = left @ (shrink[:, None] * projected)
        left_out = (target_NK * root_N1) - (target_NK * root_N1 - fitted) / (1 - leverage)
        wrong = float(np.mean((left_out / root_N1).argmax(1) != numbers))
        if best is None or wrong < best[0]:
            best = wrong, right.T @ ((shrink / strengths.clip(1e-9))[:, None] * projected)
    return Probe(tuple(classes), mean_F, best[1][:-1] / scale_F[:, None], best[1][-1])
