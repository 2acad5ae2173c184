"""Where a step's time goes, counted by the model runner as it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepTimes:
    """Seconds spent in each part of a step, and what the steps did, since the last reset.

    On a GPU the parts are what the host spends: kernels run behind it.
    """

    PARTS = ("prepare", "forward", "sample")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting afresh."""
        self._seconds = dict.fromkeys(self.PARTS, 0.0)
        self._steps = 0
        self._inputs = 0
        self._sampled = 0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the duration of the block to ``part``."""
        start = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - start

    def count_step(self, num_inputs: int, num_sampled: int) -> None:
        """Count a forward pass with its inputs and sampled tokens."""
        self._steps += 1
        self._inputs += num_inputs
        self._sampled += num_sampled

    def summary(self) -> dict[str, float]:
        """Totals: ``prepare``, ``forward``, ``sample`` in seconds, and counts."""
        return {
            **self._seconds,
            "steps": self._steps,
            "inputs": self._inputs,
            "sampled": self._sampled,
        }
