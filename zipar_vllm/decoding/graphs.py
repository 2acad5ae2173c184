"""Steps captured as CUDA graphs: launched in one piece, whatever batch they are of.

A captured step reads all that it needs where the step's header (:mod:`.header`) brings it, and so
serves every step that fits its shape. Padding inputs are written nowhere, padding samples are not
drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zipar_vllm.attention.interface import Tiling

from .header import bucket
from .host_step import HostStep


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured step.

    Attributes:
        capacity: Inputs that there is room for.
        tiling: The shape of its attention.
        graph: Its launches.
    """

    capacity: int
    tiling: Tiling
    graph: Any

    def fits(self, tiling: Tiling) -> bool:
        """Whether a step's attention can be divided like that."""
        own = self.tiling
        return tiling.parts <= own.parts and len(tiling.table) <= len(own.table)

    def replay(self) -> None:
        """Launch it."""
        self.graph.replay()


class StepGraphs:
    """Captured steps by their shapes."""

    def __init__(self) -> None:
        self._captured: dict[tuple[int, int], Captured] = {}

    def __len__(self) -> int:
        return len(self._captured)

    def capture(self, tiling: Tiling, capacity: int, run: Callable[[], None], pool: Any) -> None:
        """Capture a step of some shape.

        Args:
            tiling: The shape of its attention.
            capacity: Inputs that there is room for.
            run: Launches it.
            pool: CUDA's memory pool for what it makes on its way.
        """
        run()  # compiles what has to be
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
            run()
        self._captured[capacity, tiling.rows] = Captured(capacity, tiling, graph)

    def find(self, step: HostStep) -> Captured | None:
        """The captured step that this one fits, if there is one."""
        samples = step.samples
        if not self._captured or step.tiling is None or step.embedded:
            return None
        if samples.logprobs or samples.is_verified_by_host:
            return None
        found = self._captured.get((bucket(step.num_entries), step.tiling.rows))
        return found if found and found.fits(step.tiling) else None
