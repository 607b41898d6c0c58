"""When an update is skipped: a loss or gradient that is no number, or a loss that leaps.

The state is a value, so that it can be saved with a checkpoint and a resumed run judges as an undisturbed one would.
It receives numbers that are the same on every process.
"""

import math
import statistics
from dataclasses import asdict, dataclass

WINDOW = 50  # good steps whose median a loss is held against
ENOUGH = 10  # good steps before a loss is held against anything


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers."""

    recent_losses: tuple[float, ...] = ()  # of the last good steps, oldest first
    skipped: int = 0  # steps of the whole run
    in_a_row: tuple[int, ...] = ()  # iterations skipped since the last good step

    def after(self, iteration: int, loss: float, reason: str | None) -> "GuardState":
        """The state after a step."""
        if reason is not None:
            return GuardState(self.recent_losses, self.skipped + 1, (*self.in_a_row, iteration))
        return GuardState((*self.recent_losses, loss)[-WINDOW:], self.skipped, ())

    def as_json(self) -> dict:
        """The state as lists and numbers; JSON gives every float back as it was."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict) -> "GuardState":
        """What ``as_json`` gave."""
        return cls(tuple(tree["recent_losses"]), tree["skipped"], tuple(tree["in_a_row"]))


def reason_to_skip(state: GuardState, loss: float, grad_norm: float, loss_spike_factor: float) -> str | None:
    """Why a step must not change the weights, as half a sentence; None where it may.

    Args:
        state: before this step.
        loss: of the global batch.
        grad_norm: before clipping; infinite or NaN where any gradient is.
        loss_spike_factor: how many times the median of the recent losses is too much; 0 asks for numbers alone.
    """
    if not math.isfinite(loss):
        return f"its loss is {loss}"
    if not math.isfinite(grad_norm):
        return f"the norm of its gradients is {grad_norm}"
    if loss_spike_factor and len(state.recent_losses) >= ENOUGH:
        median = statistics.median(state.recent_losses)
        if loss > loss_spike_factor * median:
            return (
                f"its loss {loss:.4f} is above {loss_spike_factor:g} times {median:.4f}, the median of the last "
                f"{len(state.recent_losses)} good steps"
            )
    return None


def iterations_as_words(iterations: tuple[int, ...]) -> str:
    """Iterations as a person writes them: 7, or 7 to 12."""
    return str(iterations[0]) if len(iterations) == 1 else f"{iterations[0]} to {iterations[-1]}"
