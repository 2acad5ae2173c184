"""Where an image in hand stands: how many are ahead of it while it waits, then its rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zipar_vllm.progress import ImageProgress


class Standing:
    """Where one image stands, for whoever waits for it.

    Args:
        rows: Of its grid.
        waiting: The images handed to the engine that it has not begun, in that order, which is
            the order in which one engine begins them; shared by all images of this server.
    """

    def __init__(self, rows: int, waiting: dict[Standing, None]) -> None:
        self._rows = rows
        self._complete_rows = 0
        self._waiting = waiting

    @contextmanager
    def queued(self) -> Iterator[None]:
        """Wait behind the others, until it is begun or the block is left."""
        self._waiting[self] = None
        try:
            yield
        finally:
            self._waiting.pop(self, None)

    def update(self, progress: ImageProgress) -> None:
        """Take in that it is begun, and how far it has come."""
        self._waiting.pop(self, None)
        self._complete_rows = progress.complete_rows

    def report(self) -> dict[str, int]:
        """``{"queued": images ahead of it}``, or ``{"rows": complete ones, "of": all}``."""
        if self in self._waiting:
            return {"queued": list(self._waiting).index(self)}
        return {"rows": self._complete_rows, "of": self._rows}
