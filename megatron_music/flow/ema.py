"""An average of a model's weights over training, in float32: what is sampled from.

Element by element, so that each process averages its own piece, whatever the layout.
"""

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


class WeightAverage:
    """The exponential moving average of named parameters.

    Float32 whatever the parameters are: in bfloat16 an average with decay 0.999 would not move at all, since what is
    added is below its rounding.

    Args:
        named_parameters: as ``module.named_parameters()`` gives them.
        decay: what remains of the average at a step; 0.9999 averages over some ten thousand steps.
        warmup: begin with the shorter memory (1 + step) / (10 + step), so that the first weights are soon forgotten.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], *, decay: float = 0.9999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(
                f"the average's decay is {decay}, where at least 0 and less than 1 is needed; 0.9999 is usual"
            )
        self.decay, self.warmup, self.step = decay, warmup, 0
        self.weights = {name: parameter.detach().float().clone() for name, parameter in named_parameters}

    @torch.no_grad()
    def update(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Take in the weights after a step."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step)) if self.warmup else self.decay
        for name, parameter in self._matched(named_parameters):
            self.weights[name].lerp_(parameter.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def applied(self, named_parameters: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """The parameters hold the average within, and again their own values, bit for bit, afterwards."""
        parameters = list(self._matched(named_parameters))
        own = [parameter.detach().clone() for _, parameter in parameters]
        try:
            with torch.no_grad():
                for name, parameter in parameters:
                    parameter.copy_(self.weights[name])
            yield
        finally:
            with torch.no_grad():
                for (_, parameter), value in zip(parameters, own, strict=True):
                    parameter.copy_(value)

    def state_dict(self) -> dict:
        """The step and the average by name; the tensors are the average's own."""
        return {"step": self.step, "weights": dict(self.weights)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from ``state_dict``.

        Raises:
            ValueError: other parameters.
        """
        for name, value in self._matched(state["weights"].items()):
            self.weights[name].copy_(value)
        self.step = state["step"]

    def _matched(self, named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        named = list(named)
        shapes = {name: list(value.shape) for name, value in named}
        mine = {name: list(value.shape) for name, value in self.weights.items()}
        if shapes != mine:
            names = sorted(name for name in shapes.keys() | mine.keys() if shapes.get(name) != mine.get(name))
            raise ValueError(
                f"the average has other parameters than it is given: {', '.join(names[:4])}; use one of this model"
            )
        return named
