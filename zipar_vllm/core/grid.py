"""Grid arithmetic: where each image token lies in the flattened raster sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grid:
    """A picture of ``rows`` x ``columns`` tokens, flattened row by row.

    With ``row_terminator`` every row is followed by one fixed token (Emu3 and Lumina-mGPT
    have it, LlamaGen and Janus do not), so a row takes ``stride`` positions.

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
        """Positions per row, terminator included."""
        return self.columns + int(self.row_terminator)

    @property
    def num_positions(self) -> int:
        """Tokens of the whole picture, terminators included."""
        return self.rows * self.stride

    @property
    def num_sampled(self) -> int:
        """Tokens that the model has to sample: all but the terminators."""
        return self.rows * self.columns

    def position(self, row: int, column: int) -> int:
        """Position of a token in raster order; ``column == columns`` names the terminator."""
        return row * self.stride + column

    def num_steps(self, window: int) -> int:
        """Forward passes per image under a fixed window, the prefill counted (ZipAR, section 3.2).

        Raises:
            ValueError: ``window`` is smaller than 1 or wider than the grid.
        """
        self.check_window(window)
        return self.columns + (self.rows - 1) * window

    def check_window(self, window: int) -> None:
        """Refuse what is no window of this grid.

        Raises:
            ValueError: ``window`` is smaller than 1 or wider than the grid.
        """
        if not 1 <= window <= self.columns:
            raise ValueError(f"window: got {window}, allowed is 1 to {self.columns}")
