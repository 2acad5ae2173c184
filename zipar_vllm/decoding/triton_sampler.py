"""The sampler for GPUs: all tokens of a step in one launch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zipar_vllm.core.sampling import OPTION_DTYPES, SamplingBatch, guide

from . import triton_sampling
from .sampler import StepSampler, score
from .samples import SampleBatch
from .triton_sampling import SampleColumns


class TritonSampler(StepSampler):
    """Draws with :mod:`.triton_sampling`; drafts are verified as elsewhere."""

    def sample(self, logits: torch.Tensor, batch: SampleBatch) -> dict[int, Sequence[bool]]:
        """Sample a step's tokens; see :meth:`StepSampler.sample`.

        Args:
            logits: float32, bfloat16 or float16 ``[inputs, num_codes]``, of the batch's inputs.
            batch: What is sampled.
        """
        columns, scores = self._columns(batch), None
        if batch.logprobs and self._table.scores is not None:
            scores = self._table.scores.view(-1, 2)
        # Read before it is written: a draft's new token takes the place of the previous one.
        previous = [self._read(drafts.previous) for drafts in batch.drafts.values()]
        triton_sampling.sample(logits, columns, self._tokens, self._vocabulary.first_id, scores)
        accepted: dict[int, Sequence[bool]] = {}
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

    def _columns(self, batch: SampleBatch) -> SampleColumns:
        """The batch on the device, in two copies."""
        count = len(batch)
        unconditional, given = np.full(count, -1), np.zeros(count, dtype=np.int64)
        unconditional[batch.guided] = count + np.arange(len(batch.guided))
        given[batch.given] = 1
        options = {name: column[batch.images] for name, column in self._table.options.items()}
        integers = {
            "count": np.full(count, count),
            "conditional": np.arange(count),
            "unconditional": unconditional,
            "places": batch.tokens,
            "given": given,
            "position": batch.grid_positions,
            "seed": options.pop("seed"),
            "top_k": options.pop("top_k"),
        }
        copied = {
            **dict(zip(integers, self._to_device(np.stack([*integers.values()])), strict=True)),
            **dict(zip(options, self._to_device(np.stack([*options.values()])), strict=True)),
        }
        return SampleColumns(**copied)


def _guided(logits: torch.Tensor, columns: SampleColumns, index: torch.Tensor) -> torch.Tensor:
    """Some entries' logits after guidance: float32 ``[k, num_codes]``."""
    logit, other = logits[columns.conditional[index]].float(), columns.unconditional[index]
    guided = guide(logit, logits[other.clamp(min=0)].float(), columns.guidance_scale[index])
    return torch.where((other >= 0).unsqueeze(1), guided, logit)


def _sampling(columns: SampleColumns, batch: SampleBatch) -> SamplingBatch:
    tensors = {name: getattr(columns, name) for name in (*OPTION_DTYPES, "position")}
    return SamplingBatch(**tensors, flags=batch.flags)
