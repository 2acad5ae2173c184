"""The access log: one line an image request, beside vLLM's own logging."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field

from .jobs import ImageJob

logger = logging.getLogger("zipar.access")

ABANDONED = 499
"""Status of a request whose client left before the answer, as nginx logs it."""


def configure() -> None:
    """Write the log to standard error, whatever vLLM has set up for other loggers."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


@dataclass(slots=True)
class Entry:
    """A line in the making.

    Attributes:
        request_id: As the client knows it.
        job: What was asked for, once that is understood.
        status: HTTP status, or that of an error told inside a stream.
        steps: Forward passes of the slowest image.
        start: When the request came, on the monotonic clock.
    """

    request_id: str
    job: ImageJob | None = None
    status: int = ABANDONED
    steps: int | None = None
    start: float = field(default_factory=time.monotonic)

    def write(self) -> None:
        """Log the request as answered now."""
        job = self.job
        logger.info(
            "id=%s status=%d n=%s size=%s window=%s adaptive=%s steps=%s ms=%.0f",
            self.request_id,
            self.status,
            job.count if job else "-",
            job.size if job else "-",
            job.params.window if job else "-",
            str(job.params.adaptive).lower() if job else "-",
            "-" if self.steps is None else self.steps,
            (time.monotonic() - self.start) * 1000,
        )
