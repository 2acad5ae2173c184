"""Where a step's time goes, counted by the model runner as it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StepTimes:
    """Seconds spent in each part of a step, since the last reset.

    On a GPU the parts are what the host spends: kernels run behind it.
    """

    PARTS = ("prepare", "forward", "sample")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting afresh."""
        self._seconds = dict.fromkeys(self.PARTS, 0.0)
        self._steps = 0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Add the duration of the block to ``part``."""
        start = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - start

    def count_step(self) -> None:
        """Count a forward pass."""
        self._steps += 1

    def summary(self) -> dict[str, float]:
        """Totals: ``prepare``, ``forward``, ``sample`` in seconds, and ``steps``."""
        return {**self._seconds, "steps": self._steps}
