"""The access log: one line an image request, beside vLLM's own logging."""

from __future__ import annotations

import logging
import sys

from .jobs import ImageJob

logger = logging.getLogger("zipar.access")


def configure() -> None:
    """Write the log to standard error, whatever vLLM has set up for other loggers."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def write(
    request_id: str, job: ImageJob, status: int, seconds: float, steps: int | None = None
) -> None:
    """Log an answered request; ``seconds`` from acceptance to answer."""
    logger.info(
        "id=%s status=%d n=%d size=%s window=%d steps=%s ms=%.0f",
        request_id,
        status,
        job.count,
        job.size,
        job.params.window,
        "-" if steps is None else steps,
        seconds * 1000,
    )
