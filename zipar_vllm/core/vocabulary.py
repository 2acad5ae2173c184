"""The numberings of an image token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Where the picture's tokens lie among a model's inputs and outputs.

    An image token has three numbers: its *code*, 0 to ``num_codes`` - 1, is the pixel decoder's;
    its *id* is what the model is fed; its *column* is where the model's logits predict it. Ids
    and columns of neighbouring codes are neighbours. A model whose logits are of its whole
    vocabulary has the ids as columns; one with a head for image tokens alone does not.

    Attributes:
        first_id: Id of code 0.
        num_codes: Size of the codebook.
        row_terminator: Id of the token that ends every row, or None.
        first_column: Column of code 0; None if it is its id.
    """

    first_id: int
    num_codes: int
    row_terminator: int | None = None
    first_column: int | None = None

    @property
    def is_terminated(self) -> bool:
        """Whether every row ends with a terminator."""
        return self.row_terminator is not None

    def ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Input ids of codes, of any shape."""
        return codes + self.first_id

    def codes(self, ids: torch.Tensor) -> torch.Tensor:
        """Codes of input ids, of any shape; the inverse of :meth:`ids`."""
        return ids - self.first_id

    def codes_of_picture(self, ids: Iterable[int]) -> list[int]:
        """Codes of a picture's tokens in raster order, terminators left out."""
        return [token - self.first_id for token in ids if token != self.row_terminator]

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """The columns of the image tokens: ``[n, columns]`` to ``[n, num_codes]``, by code."""
        first = self.first_id if self.first_column is None else self.first_column
        return logits[:, first : first + self.num_codes]
