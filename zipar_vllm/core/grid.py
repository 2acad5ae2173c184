"""Grid arithmetic: where each image token lies in the flattened raster sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grid:
    """A picture of ``rows`` x ``columns`` tokens, flattened row by row.

    With ``row_terminator`` every row is followed by one fixed token (Emu3 and Lumina-mGPT
    have it, LlamaGen and Janus do not), so a row takes ``stride`` raster slots.

    Raises:
        ValueError: ``rows`` or ``columns`` is smaller than 1.
    """

    rows: int
    columns: int
    row_terminator: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ValueError(
                f"a grid needs at least one row and one column, got {self.rows}x{self.columns}"
            )

    @property
    def stride(self) -> int:
        """Raster slots a row takes, terminator included."""
        return self.columns + int(self.row_terminator)

    @property
    def num_slots(self) -> int:
        """Raster slots of the whole picture, terminators included."""
        return self.rows * self.stride

    @property
    def num_sampled(self) -> int:
        """Tokens the model has to sample: every slot but the terminators."""
        return self.rows * self.columns

    def slot(self, row: int, column: int) -> int:
        """Raster slot of a token; ``column == columns`` names the row's terminator."""
        return row * self.stride + column

    def window(self, window: int) -> int:
        """The window that takes effect: one wider than the grid decodes like ``columns``.

        Raises:
            ValueError: ``window`` is smaller than 1.
        """
        if window < 1:
            raise ValueError(f"a window is at least 1, got {window}")
        return min(window, self.columns)

    def num_steps(self, window: int) -> int:
        """Forward passes an image takes, the prefill counted (ZipAR, section 3.2)."""
        return self.columns + (self.rows - 1) * self.window(window)
