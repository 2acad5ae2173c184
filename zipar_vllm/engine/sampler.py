"""Draw a step's tokens, of all images at once, into the state table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.adaptive import check
from zipar_vllm.core.sampling import SamplingFlags, guide, probabilities, sample
from zipar_vllm.models.base import ImageTokens

from .batch import SampleBatch
from .state import StateTable


@dataclass(frozen=True, slots=True)
class _Cuts:
    """What turns logits into a distribution: one entry a token, on the device."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    flags: SamplingFlags

    def draw(
        self, logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        return sample(
            logits,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seeds=seeds,
            positions=positions,
            flags=self.flags,
        )

    def distributions(self, logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return probabilities(
            logits[at],
            temperature=self.temperature[at],
            top_k=self.top_k[at],
            top_p=self.top_p[at],
            flags=self.flags,
        )


class StepSampler:
    """Samples steps of a table's images.

    Args:
        table: The running images; tokens are written into its raster buffers.
        tokens: The model's vocabulary layout.
        device: The model's device.
    """

    def __init__(self, table: StateTable, tokens: ImageTokens, device: torch.device) -> None:
        self._table = table
        self._start = tokens.start
        self._device = device

    def draw(self, logits: torch.Tensor, batch: SampleBatch) -> dict[int, bool]:
        """Draw a step's tokens.

        Args:
            logits: float32 ``[conditional + unconditional, image tokens]``, in the batch's order.
            batch: What is sampled.

        Returns:
            By image row, whether the candidate that opens a row was kept, where one was checked.
        """
        options = self._table.options
        logits, unconditional = logits[: len(batch)], logits[len(batch) :]
        if len(batch.guided):
            guided = self._to_device(batch.guided)
            scale = self._to_device(options.guidance_scale[batch.rows[batch.guided]])
            logits[guided] = guide(logits[guided], unconditional, scale)
        temperature, top_k = options.temperature[batch.rows], options.top_k[batch.rows]
        top_p = options.top_p[batch.rows]
        cuts = _Cuts(
            self._to_device(temperature),
            self._to_device(top_k),
            self._to_device(top_p),
            SamplingFlags.of(temperature, top_k, top_p),
        )
        seeds = self._to_device(options.seed[batch.rows])
        positions = self._to_device(batch.grid_positions)
        codes = cuts.draw(logits, seeds, positions)
        rows, slots = self._to_device(batch.rows), self._to_device(batch.token_slots)
        kept = {}
        if len(batch.openings):
            at = self._to_device(batch.openings)
            distributions = cuts.distributions(logits, at)
            again = np.flatnonzero(batch.attempts)
            if len(again):
                checked = self._to_device(batch.openings[again])
                passed, codes[checked] = check(
                    distributions[self._to_device(again)],
                    self._table.openings[rows[checked]],
                    self._table.tokens[rows[checked], slots[checked]] - self._start,
                    seeds=seeds[checked],
                    positions=positions[checked],
                    attempts=self._to_device(batch.attempts[again]),
                )
                images = batch.rows[batch.openings[again]]
                # The next step depends on it, so the host has to wait here.
                kept = dict(zip(images.tolist(), passed.tolist(), strict=True))
            self._table.openings[rows[at]] = distributions
        self._table.tokens[rows, slots] = codes + self._start
        return kept

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)
