"""The sampler for GPUs: all tokens of a step in one launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.sampling import OPTION_DTYPES, SamplingBatch, guide
from zipar_vllm.core.transfer import to_host
from zipar_vllm.core.vocabulary import Vocabulary

from . import triton_sampling
from .adaptive_window import RejectionSampling
from .header import Field
from .policy import Verification
from .sampler import StepSampler, by_image, score
from .samples import OWN_VERIFICATIONS, DraftBatch, SampleBatch
from .table import StateTable
from .triton_sampling import DraftColumns, SampleColumns

INTEGERS = ("count", "conditional", "unconditional", "places", "given", "position")
FIELDS = {
    **{name: Field(np.int64) for name in INTEGERS},
    **{name: Field(dtype) for name, dtype in OPTION_DTYPES.items()},
    "guidance_scale": Field(np.float32),
    "verdicts": Field(np.int32),
    "previous": Field(np.int64),
    "attempts": Field(np.int32, padding=-1),
}
"""As :class:`SampleColumns` has them; room for verdicts; of drafts, if there are any, the place of
the token that each is compared with, and what :class:`DraftColumns` has."""


class TritonSampler(StepSampler):
    """Draws with :mod:`.triton_sampling`, which verifies drafts too, but for others' ways to."""

    fields = FIELDS

    def __init__(self, table: StateTable, vocabulary: Vocabulary, device: torch.device) -> None:
        super().__init__(table, vocabulary, device)
        count = (table.max_images, vocabulary.num_codes)
        self._predictions = self._tokens.new_zeros(count, dtype=torch.float32)

    def sample(self, logits: torch.Tensor, batch: SampleBatch) -> dict[int, Sequence[bool]]:
        """Sample a step's tokens; see :meth:`StepSampler.sample`."""
        others = {kind: own for kind, own in batch.drafts.items() if kind not in OWN_VERIFICATIONS}
        # A draft's new token takes the place of the previous one.
        previous = [self._read(own.previous) for own in others.values()]
        self.draw(logits, batch)
        return self._verify_others(logits, batch, others, previous) if others else {}

    def draw(self, logits: torch.Tensor, batch: SampleBatch) -> None:
        """Draw all tokens and write them into the table; nothing of it depends on the host."""
        drafts = None
        if "attempts" in batch.tensors:
            drafts = DraftColumns(
                compared=self._tokens.index_select(0, batch.tensors["previous"]),
                attempts=batch.tensors["attempts"],
                predictions=self._predictions,
                image_tokens=self._table.tokens.shape[1],
                verdicts=batch.tensors["verdicts"],
            )
        columns, scores = _columns(batch), self._scores(batch)
        first_id = self._vocabulary.first_id
        triton_sampling.sample(logits, columns, self._tokens, first_id, scores, drafts)

    def verdicts(self, batch: SampleBatch) -> dict[int, Sequence[bool]]:
        """What the kernel decided on drafts; the host waits for it where there are any."""
        own = [drafts for kind, drafts in batch.drafts.items() if kind in OWN_VERIFICATIONS]
        if not own:
            return {}
        verdicts = to_host(batch.tensors["verdicts"][: len(batch)]).numpy() == 1
        accepted: dict[int, Sequence[bool]] = {}
        for drafts in own:
            accepted |= by_image(batch, drafts, verdicts[drafts.entries].tolist())
        return accepted

    def columns(self, batch: SampleBatch) -> dict[str, NDArray[Any]]:
        """The batch, and by what its tokens are sampled; see :class:`SampleColumns`.

        All are as long, so that those of a part of ``MAX_SAMPLES`` begin where Triton expects it.
        """
        count = len(batch)
        unconditional, given = np.full(count, -1), np.zeros(count, dtype=np.int64)
        unconditional[batch.guided] = count + np.arange(len(batch.guided))
        given[batch.given] = 1
        return {
            "count": np.full(count, count),
            "conditional": np.arange(count),
            "unconditional": unconditional,
            "places": batch.tokens,
            "given": given,
            "position": batch.grid_positions,
            "verdicts": np.zeros(count, dtype=np.int32),
            **{name: column[batch.images] for name, column in self._table.options.items()},
            **_draft_columns(batch),
        }

    def _verify_others(
        self,
        logits: torch.Tensor,
        batch: SampleBatch,
        drafts: Mapping[type[Verification], DraftBatch],
        previous: Sequence[torch.Tensor],
    ) -> dict[int, Sequence[bool]]:
        """Have drafts decided on by their policies' own ways."""
        accepted: dict[int, Sequence[bool]] = {}
        columns, scores = _columns(batch), self._scores(batch)
        for (kind, own), compared in zip(drafts.items(), previous, strict=True):
            index = self._to_device(own.entries)
            places, guided = columns.places[index], _guided(logits, columns, index)
            drawn = self._vocabulary.codes(self._tokens[places])
            sampling = _sampling(columns, batch)[index]
            codes, verdicts = self._verify(kind, own, batch, guided, drawn, compared, sampling)
            accepted |= verdicts
            self._tokens.index_copy_(0, places, self._vocabulary.ids(codes))
            if scores is not None:
                scores.index_copy_(0, places, score(guided, codes))
        return accepted

    def _scores(self, batch: SampleBatch) -> torch.Tensor | None:
        scores = self._table.scores
        return scores.view(-1, 2) if batch.logprobs and scores is not None else None


def _draft_columns(batch: SampleBatch) -> dict[str, NDArray[Any]]:
    """Nothing where there are no drafts: then nothing is compared."""
    if not batch.drafts.keys() & OWN_VERIFICATIONS:
        return {}
    previous, attempts = np.zeros(len(batch), dtype=np.int64), np.full(len(batch), -1)
    for kind, drafts in batch.drafts.items():
        previous[drafts.entries] = drafts.previous
        if kind is RejectionSampling:
            attempts[drafts.entries] = drafts.attempts
    return {"previous": previous, "attempts": attempts}


def _columns(batch: SampleBatch) -> SampleColumns:
    return SampleColumns(**{own.name: batch.tensors[own.name] for own in fields(SampleColumns)})


def _guided(logits: torch.Tensor, columns: SampleColumns, index: torch.Tensor) -> torch.Tensor:
    """Some entries' logits after guidance: float32 ``[k, num_codes]``."""
    logit, other = logits[columns.conditional[index]].float(), columns.unconditional[index]
    guided = guide(logit, logits[other.clamp(min=0)].float(), columns.guidance_scale[index])
    return torch.where((other >= 0).unsqueeze(1), guided, logit)


def _sampling(columns: SampleColumns, batch: SampleBatch) -> SamplingBatch:
    tensors = {name: getattr(columns, name) for name in (*OPTION_DTYPES, "position")}
    return SamplingBatch(**tensors, flags=batch.flags)
