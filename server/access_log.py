"""The access log: one line per image request, beside vLLM's own logging."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .prepare import PreparedRequest

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
class AccessRecord:
    """What is known of a request so far.

    Attributes:
        request_id: As the client knows it.
        request: What was asked for, once that is understood.
        status: HTTP status, or that of an error told inside a stream.
        steps: Forward passes of the slowest image.
        start: When the request came, on the monotonic clock.
    """

    request_id: str
    request: PreparedRequest | None = None
    status: int = ABANDONED
    steps: int | None = None
    start: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """The record as it is logged; what is not known is ``-``."""
        request = self.request
        params = request.images[0].params if request else None
        values = {
            "id": self.request_id,
            "status": self.status,
            "n": len(request.images) if request else None,
            "size": request.size if request else None,
            "window": params.window if params else None,
            "policy": params.policy if params else None,
            "steps": self.steps,
            "ms": f"{(time.monotonic() - self.start) * 1000:.0f}",
        }
        known = {name: "-" if value is None else value for name, value in values.items()}
        return " ".join(f"{name}={value}" for name, value in known.items())


@contextmanager
def access_record(request_id: str) -> Iterator[AccessRecord]:
    """Log a request once the block is left."""
    record = AccessRecord(request_id)
    try:
        yield record
    finally:
        logger.info("%s", record.line())
