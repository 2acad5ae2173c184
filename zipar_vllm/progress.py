"""How far an image has come, as whoever asked for it is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """The picture so far.

    Attributes:
        codes: Image codes in raster order, 0 to the codebook size, terminators left out;
            always whole rows.
        complete_rows: Rows they make.
        finished: Whether the picture is complete.
        steps: Forward passes the engine took, counted by it; None until finished.
        accepted_drafts: Share of its drafts that were accepted; None until finished, or if it
            made none.
        queue_seconds: Time between arrival and the first forward pass, None until known.
    """

    codes: list[int]
    complete_rows: int
    finished: bool
    steps: int | None = None
    accepted_drafts: float | None = None
    queue_seconds: float | None = None
