"""What a step samples, in parts where that is much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from zipar_vllm.core.sampling import SamplingFlags

from .adaptive_window import RejectionSampling
from .drafted_window import Equality
from .policy import NO_INTS, IntArray, Verification

MAX_SAMPLES = 512
"""Tokens that are sampled at once: their logits, of the whole vocabulary, take much memory."""

OWN_VERIFICATIONS = {RejectionSampling, Equality}
"""Those that a sampler may know, and carry out as it draws; policies of others may bring theirs."""


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """Drafts of a step that are verified together.

    Attributes:
        entries: Their places in the sample batch, ascending.
        attempts: How often each was drawn before.
        previous: Where the token that each is compared with stands among the table's tokens.
    """

    entries: IntArray
    attempts: IntArray
    previous: IntArray


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Tokens to sample in a step; host arrays, one entry per token.

    Attributes:
        inputs: Inputs whose logits are read: of all entries, then the unconditional ones of the
            guided entries.
        guided: Entries that have an unconditional lane, ascending.
        images: Table index of the image.
        tokens: Where the token stands among the table's tokens, row after row.
        grid_positions: ``row * columns + column``, which keys the sampling noise.
        flags: What their sampling asks for.
        drafts: By what decides on them, the drafts among them.
        logprobs: Whether the log-probability of any of them is wanted.
        given: Entries whose token stands among the table's already and is only scored, ascending.
        tensors: What of it is on the device, by field of the step's header; empty until it is sent.
    """

    inputs: IntArray
    guided: IntArray
    images: IntArray
    tokens: IntArray
    grid_positions: IntArray
    flags: SamplingFlags
    drafts: Mapping[type[Verification], DraftBatch]
    logprobs: bool
    given: IntArray
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_verified_by_host(self) -> bool:
        """Whether some of its drafts are decided on operation by operation."""
        return not self.drafts.keys() <= OWN_VERIFICATIONS

    @classmethod
    def nothing(cls) -> SampleBatch:
        """No tokens."""
        no = NO_INTS
        flags = SamplingFlags(all_greedy=True)
        return cls(no, no, no, no, no, flags, drafts={}, logprobs=False, given=no)

    @classmethod
    def widest(cls, num_inputs: int, max_images: int) -> SampleBatch:
        """Guided, cut, verified and scored, as much as is sampled at once of so many inputs."""
        num_guided = min(MAX_SAMPLES, num_inputs // 2)
        count = max(1, num_guided)
        drafts = np.arange(min(count, max_images))
        nothing = np.zeros(count, dtype=np.int64)
        return cls(
            inputs=np.arange(count + num_guided),
            guided=np.arange(num_guided),
            images=np.arange(count) % max_images,
            tokens=nothing,
            grid_positions=nothing,
            flags=SamplingFlags(all_greedy=False, truncated=True, top=0, min_p=True, mixed=True),
            drafts={RejectionSampling: DraftBatch(drafts, drafts + 1, nothing[: len(drafts)])},
            logprobs=True,
            given=nothing[:0],
        )

    def parts(self) -> list[SampleBatch]:
        """The batch in parts of up to ``MAX_SAMPLES``: itself, if it is no more."""
        if len(self) <= MAX_SAMPLES:
            return [self]
        parts = []
        for start in range(0, len(self), MAX_SAMPLES):
            stop = min(start + MAX_SAMPLES, len(self))
            guided = slice(*np.searchsorted(self.guided, [start, stop]))
            drafts = {}
            for verification, own in self.drafts.items():
                places = slice(*np.searchsorted(own.entries, [start, stop]))
                if places.start < places.stop:
                    drafts[verification] = DraftBatch(
                        own.entries[places] - start, own.attempts[places], own.previous[places]
                    )
            part = SampleBatch(
                inputs=np.concatenate([self.inputs[start:stop], self.inputs[len(self) :][guided]]),
                guided=self.guided[guided] - start,
                images=self.images[start:stop],
                tokens=self.tokens[start:stop],
                grid_positions=self.grid_positions[start:stop],
                flags=self.flags,
                drafts=drafts,
                logprobs=self.logprobs,
                given=self.given[slice(*np.searchsorted(self.given, [start, stop]))] - start,
            )
            parts.append(part)
        return parts
