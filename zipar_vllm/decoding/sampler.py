"""Sample a step's tokens, of all images at once, into the state table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.sampling import OPTION_DTYPES, SamplingBatch, guide_rows, highest
from zipar_vllm.core.transfer import to_device
from zipar_vllm.core.vocabulary import Vocabulary

from .header import Field
from .policy import Drafts, Verification
from .samples import DraftBatch, SampleBatch
from .table import StateTable


class StepSampler:
    """Samples steps of a table's images.

    Args:
        table: The running images; tokens are written into their rows.
        vocabulary: The numberings of the model's image tokens.
        device: The model's device.

    Attributes:
        fields: What it needs of each sample on the device, brought there with the step.
    """

    fields: Mapping[str, Field] = {"places": Field(np.int64)}

    def __init__(self, table: StateTable, vocabulary: Vocabulary, device: torch.device) -> None:
        self._table = table
        self._vocabulary = vocabulary
        self._device = device
        self._tokens = table.tokens.view(-1)
        self._verifications: dict[type[Verification], Verification] = {}

    def columns(self, batch: SampleBatch) -> Mapping[str, NDArray[Any]]:
        """Its fields: where the tokens go."""
        return {"places": batch.tokens}

    def verdicts(self, batch: SampleBatch) -> Mapping[int, Sequence[bool]]:
        """Those on a whole step's drafts that :meth:`sample` left on the device."""
        return {}

    def sample(self, logits: torch.Tensor, batch: SampleBatch) -> dict[int, Sequence[bool]]:
        """Sample a step's tokens.

        Args:
            logits: float32, bfloat16 or float16 ``[inputs, num_codes]``, of the batch's inputs.
            batch: What is sampled.

        Returns:
            By table index, the verdicts on the images' drafts, but for those of :meth:`verdicts`.
        """
        options = self._table.options
        if len(batch.guided):
            scale = options["guidance_scale"][batch.images[batch.guided]]
            guided = self._to_device(batch.guided)
            logits = guide_rows(logits, guided, self._to_device(scale))
        accepted: dict[int, Sequence[bool]] = {}
        if batch.flags.all_greedy and not batch.drafts:
            codes = highest(logits)
        else:
            of_tokens = {name: options[name][batch.images] for name in OPTION_DTYPES}
            sampling = SamplingBatch.of(of_tokens, batch.grid_positions, self._device, batch.flags)
            codes = sampling.sample(logits)
            for kind, drafts in batch.drafts.items():
                index = self._to_device(drafts.entries)
                codes[index], verdicts = self._verify(
                    kind,
                    drafts,
                    batch,
                    logits[index].float(),
                    codes[index],
                    self._read(drafts.previous),
                    sampling[index],
                )
                accepted |= verdicts
        tokens = batch.tensors["places"]
        if len(batch.given):
            codes[self._to_device(batch.given)] = self._read(batch.tokens[batch.given])
        self._tokens.index_copy_(0, tokens, self._vocabulary.ids(codes))
        if batch.logprobs and self._table.scores is not None:
            self._table.scores.view(-1, 2).index_copy_(0, tokens, score(logits.float(), codes))
        return accepted

    def _verify(
        self,
        kind: type[Verification],
        drafts: DraftBatch,
        batch: SampleBatch,
        logits: torch.Tensor,
        drawn: torch.Tensor,
        previous: torch.Tensor,
        sampling: SamplingBatch,
    ) -> tuple[torch.Tensor, dict[int, Sequence[bool]]]:
        """Have some drafts decided on: the codes to keep, and by table index the verdicts."""
        codes, verdicts = self._verification(kind).verify(
            Drafts(
                images=self._to_device(batch.images[drafts.entries]),
                logits=logits,
                drawn=drawn,
                previous=previous,
                attempts=drafts.attempts,
                sampling=sampling,
            )
        )
        return codes, by_image(batch, drafts, verdicts)

    def _read(self, places: NDArray[Any]) -> torch.Tensor:
        """Codes of some of the table's tokens."""
        return self._vocabulary.codes(self._tokens[self._to_device(places)])

    def _verification(self, kind: type[Verification]) -> Verification:
        """The one object of a kind; made when an image first needs it."""
        if kind not in self._verifications:
            count = self._vocabulary.num_codes
            self._verifications[kind] = kind(self._table.max_images, count, self._device)
        return self._verifications[kind]

    def _to_device(self, array: NDArray[Any]) -> torch.Tensor:
        return to_device(array, self._device)


def score(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Log-probability of tokens, and their rank.

    Args:
        logits: float32 ``[n, num_codes]``, after guidance; neither temperature nor cuts change the
            answer, as with vLLM's raw log-probabilities.
        codes: int64 ``[n]``.

    Returns:
        float32 ``[n, 2]``; the likeliest token has rank 1.
    """
    own = logits.gather(1, codes.unsqueeze(1))
    rank = (logits > own).sum(dim=1, keepdim=True) + 1
    return torch.cat([own - logits.logsumexp(dim=1, keepdim=True), rank], dim=1)


def by_image(
    batch: SampleBatch, drafts: DraftBatch, verdicts: Sequence[bool]
) -> dict[int, Sequence[bool]]:
    """Drafts' verdicts by table index."""
    accepted: dict[int, list[bool]] = {}
    for image, verdict in zip(batch.images[drafts.entries].tolist(), verdicts, strict=True):
        accepted.setdefault(image, []).append(verdict)
    return dict(accepted)
