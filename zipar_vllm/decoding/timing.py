"""Where a step's time goes, counted by the model runner as it runs."""

from __future__ import annotations

import time


class PartTime:
    """Adds up the durations of the blocks it is entered for.

    Attributes:
        seconds: Their sum.
    """

    __slots__ = ("_start", "seconds")

    def __init__(self) -> None:
        self.seconds = self._start = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start


class StepTimes:
    """Seconds spent in each part of a step, since the last reset.

    On a GPU the parts are what the host spends: kernels run behind it.
    """

    PARTS = ("prepare", "forward", "sample")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting afresh."""
        self._parts = {part: PartTime() for part in self.PARTS}
        self._steps = 0

    def measure(self, part: str) -> PartTime:
        """Add the duration of a block to ``part``; a block within it is of another part."""
        return self._parts[part]

    def count_step(self) -> None:
        """Count a forward pass."""
        self._steps += 1

    def summary(self) -> dict[str, float]:
        """Totals: ``prepare``, ``forward``, ``sample`` in seconds, and ``steps``."""
        seconds = {name: part.seconds for name, part in self._parts.items()}
        return {**seconds, "steps": self._steps}
