"""Where a step's time goes, counted by the model runner as it runs."""

from __future__ import annotations

import time


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
        self.start()

    def start(self) -> None:
        """Begin the first part of a step."""
        self._since = time.perf_counter()

    def end(self, part: str) -> None:
        """End a part, and begin the next."""
        now = time.perf_counter()
        self._seconds[part] += now - self._since
        self._since = now

    def count_step(self) -> None:
        """Count a forward pass."""
        self._steps += 1

    def summary(self) -> dict[str, float]:
        """Totals: ``prepare``, ``forward``, ``sample`` in seconds, and ``steps``."""
        return {**self._seconds, "steps": self._steps}
