"""A step as the host lays it out, before the model sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from zipar_vllm.attention.interface import AttentionInputs, Tiling

from .policy import NO_INTS, IntArray
from .samples import SampleBatch


@dataclass(frozen=True, slots=True)
class HostStep:
    """A step on the host.

    Attributes:
        arrays: By field of the header, arrays to be joined.
        lanes: Each lane's index, starts and last position, as in ``AttentionInputs``.
        num_decoding: As there.
        tiling: As there.
        samples: What is sampled.
        embedded: As in :class:`~zipar_vllm.decoding.batch.StepBatch`.
    """

    arrays: Mapping[str, Sequence[NDArray[Any]]]
    lanes: tuple[IntArray, IntArray, IntArray]
    num_decoding: int
    tiling: Tiling | None
    samples: SampleBatch
    embedded: Sequence[tuple[int, torch.Tensor]] = ()

    @classmethod
    def blank(cls, tiling: Tiling) -> HostStep:
        """A step without inputs, to be captured for others of its shape."""
        return cls({}, (NO_INTS, NO_INTS, NO_INTS), 0, tiling, SampleBatch.nothing())

    @property
    def num_inputs(self) -> int:
        return int(self.lanes[1][-1])

    @property
    def num_entries(self) -> int:
        """The most entries of any field."""
        counts = [sum(map(len, own)) for own in self.arrays.values()]
        return max(*counts, len(self.samples.inputs))


@dataclass(frozen=True, slots=True)
class SentStep:
    """The same on its way.

    Attributes:
        step: As it was laid out.
        tensors: What is on the device of it, by field.
        parts: Its samples, as many as are drawn at once in each; with their tensors.
        attention: Who asks for what, for the attention kernel.
    """

    step: HostStep
    tensors: Mapping[str, torch.Tensor]
    parts: Sequence[SampleBatch]
    attention: AttentionInputs
