"""One step of decoding as CUDA graphs: launched whole, instead of kernel by kernel.

Tests run the same step on the CPU, through static buffers as here; the capture itself needs CUDA and has not been run.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# The graph of a step looks back over a multiple of this many tokens: few graphs, little reading in vain.
STRIDE = 256


class StepGraphs:
    """CUDA graphs of a step, one for each batch size and look-back, captured when first asked for.

    Args:
        step: of entering tensor, positions and limit, as ``Decoder`` has it; it must not wait for the host.
    """

    def __init__(self, step: Callable[..., Tensor]):
        self._step = step
        self._captured: dict[tuple, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    def run(self, entering: Tensor, positions_S: Tensor, limit: int) -> Tensor:
        """What the step makes of these; positions up to ``limit - 1`` may be anywhere before it."""
        key = (*entering.shape, limit)
        if key not in self._captured:
            self._captured[key] = self._capture(entering.clone(), positions_S.clone(), limit)
        graph, static_entering, static_positions, leaving = self._captured[key]
        static_entering.copy_(entering)
        static_positions.copy_(positions_S)
        graph.replay()
        return leaving.clone()

    def _capture(self, entering: Tensor, positions_S: Tensor, limit: int):
        # Libraries make their work space in the first run, which must not be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(entering.clone(), positions_S, limit, is_exact=False)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            leaving = self._step(entering, positions_S, limit, is_exact=False)
        return graph, entering, positions_S, leaving
