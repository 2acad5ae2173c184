"""The sampler for GPUs: all tokens of a step in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.sampling import OPTION_DTYPES, SamplingBatch, guide

from . import triton_sampling
from .header import Field
from .sampler import StepSampler, score
from .samples import SampleBatch
from .triton_sampling import SampleColumns

INTEGERS = ("count", "conditional", "unconditional", "places", "given", "position")
FIELDS = {
    **{name: Field(np.int64) for name in INTEGERS},
    **{name: Field(dtype) for name, dtype in OPTION_DTYPES.items()},
    "guidance_scale": Field(np.float32),
}


class TritonSampler(StepSampler):
    """Draws with :mod:`.triton_sampling`; drafts are verified as elsewhere."""

    fields = FIELDS

    def sample(self, logits: torch.Tensor, batch: SampleBatch) -> dict[int, Sequence[bool]]:
        """Sample a step's tokens; see :meth:`StepSampler.sample`.

        Args:
            logits: float32, bfloat16 or float16 ``[inputs, num_codes]``, of the batch's inputs.
            batch: What is sampled.
        """
        if not batch.tensors:  # part of a wide step
            own = {name: self._to_device(array) for name, array in self.columns(batch).items()}
            batch = replace(batch, tensors=own)
        previous = self.read_previous(batch)
        self.draw(logits, batch)
        return self.verify(logits, batch, previous)

    def read_previous(self, batch: SampleBatch) -> list[torch.Tensor]:
        """What drafts are compared with: a draft's new token takes the place of the previous."""
        return [self._read(drafts.previous) for drafts in batch.drafts.values()]

    def draw(self, logits: torch.Tensor, batch: SampleBatch) -> None:
        """Draw all tokens and write them into the table; nothing of it depends on the host."""
        columns, scores = _columns(batch), self._scores(batch)
        triton_sampling.sample(logits, columns, self._tokens, self._vocabulary.first_id, scores)

    def verify(
        self, logits: torch.Tensor, batch: SampleBatch, previous: list[torch.Tensor]
    ) -> dict[int, Sequence[bool]]:
        """Have the drafts among them decided on: by table index, the verdicts."""
        accepted: dict[int, Sequence[bool]] = {}
        if not batch.drafts:
            return accepted
        columns, scores = _columns(batch), self._scores(batch)
        for (kind, drafts), compared in zip(batch.drafts.items(), previous, strict=True):
            index = self._to_device(drafts.entries)
            places, guided = columns.places[index], _guided(logits, columns, index)
            drawn = self._vocabulary.codes(self._tokens[places])
            sampling = _sampling(columns, batch)[index]
            codes, verdicts = self._verify(kind, drafts, batch, guided, drawn, compared, sampling)
            accepted |= verdicts
            self._tokens.index_copy_(0, places, self._vocabulary.ids(codes))
            if scores is not None:
                scores.index_copy_(0, places, score(guided, codes))
        return accepted

    def columns(self, batch: SampleBatch) -> dict[str, NDArray[Any]]:
        """The batch, and by what its tokens are sampled; see :class:`SampleColumns`."""
        count = len(batch)
        unconditional, given = np.full(count, -1), np.zeros(count, dtype=np.int64)
        unconditional[batch.guided] = count + np.arange(len(batch.guided))
        given[batch.given] = 1
        return {
            "count": np.full(1, count),
            "conditional": np.arange(count),
            "unconditional": unconditional,
            "places": batch.tokens,
            "given": given,
            "position": batch.grid_positions,
            **{name: column[batch.images] for name, column in self._table.options.items()},
        }

    def _scores(self, batch: SampleBatch) -> torch.Tensor | None:
        scores = self._table.scores
        return scores.view(-1, 2) if batch.logprobs and scores is not None else None


def _columns(batch: SampleBatch) -> SampleColumns:
    return SampleColumns(**{name: batch.tensors[name] for name in FIELDS})


def _guided(logits: torch.Tensor, columns: SampleColumns, index: torch.Tensor) -> torch.Tensor:
    """Some entries' logits after guidance: float32 ``[k, num_codes]``."""
    logit, other = logits[columns.conditional[index]].float(), columns.unconditional[index]
    guided = guide(logit, logits[other.clamp(min=0)].float(), columns.guidance_scale[index])
    return torch.where((other >= 0).unsqueeze(1), guided, logit)


def _sampling(columns: SampleColumns, batch: SampleBatch) -> SamplingBatch:
    tensors = {name: getattr(columns, name) for name in (*OPTION_DTYPES, "position")}
    return SamplingBatch(**tensors, flags=batch.flags)
