"""Which requests are taken in, so that a full server says so at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import lifecycle, metrics
from .errors import overloaded, stopping
from .prepare import PreparedRequest


class Admission:
    """Counts the images that were accepted and not answered yet.

    Args:
        limit: How many there may be.

    Attributes:
        active: How many there are.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.active = 0

    @contextmanager
    def admit(self, request: PreparedRequest) -> Iterator[None]:
        """Hold a request's places until the block is left.

        Raises:
            APIError: 503 with Retry-After, while the server is full or stops.
        """
        count = len(request.images)
        if lifecycle.stop_requested():
            raise stopping()
        if self.active + count > self._limit:
            metrics.requests_rejected.inc()
            raise overloaded(
                f"the server has {self.active} images in hand, its limit is {self._limit}"
            )
        params = request.images[0].params
        metrics.windows.labels(params.window, params.policy).inc(count)
        self._add(count)
        try:
            yield
        finally:
            self._add(-count)

    def _add(self, count: int) -> None:
        self.active += count
        metrics.images_active.set(self.active)
