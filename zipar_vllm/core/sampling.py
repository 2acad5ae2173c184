"""Sampling maths: guidance, temperature and cuts; the noise is :mod:`.noise`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import cpu_sampling
from .noise import gumbel_noise
from .transfer import to_device

OPTION_DTYPES: dict[str, type[np.generic]] = {
    "seed": np.int64,
    "temperature": np.float32,
    "top_k": np.int64,
    "top_p": np.float32,
    "min_p": np.float32,
}
"""The options of an image that its tokens are sampled by, as arrays of many images hold them."""

LEAST_TEMPERATURE = 1e-30
"""What is smaller counts as 0: logits over it overflow, and noise could only decide on ties."""

_MASK32 = 0xFFFFFFFF
_WEIGHT_BITS = 36  # sums over 2**17 tokens are still exact in float64


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """What a batch asks for, known on the host so that no device has to be waited for.

    Attributes:
        all_greedy: Every token takes its highest logit.
        truncated: Some token that is sampled has a top-k, or a top-p below 1.
        top: How many of the highest logits have to be sorted for that; 0 means all.
        min_p: Some token that is sampled has a min-p.
        mixed: Some tokens take their highest logit and others do not.
    """

    all_greedy: bool
    truncated: bool = False
    top: int = 0
    min_p: bool = False
    mixed: bool = False

    @classmethod
    def of(cls, options: Mapping[str, NDArray[Any]]) -> SamplingFlags:
        """Summarise host arrays of shape ``[n]``, named as in :data:`OPTION_DTYPES`."""
        sampled = ~_is_greedy(options["temperature"])
        if not sampled.any():
            return cls(all_greedy=True)
        top_k = options["top_k"][sampled]
        return cls(
            all_greedy=False,
            truncated=bool((top_k > 0).any() or (options["top_p"][sampled] < 1).any()),
            top=int(top_k.max()) if (top_k > 0).all() else 0,
            min_p=bool((options["min_p"][sampled] > 0).any()),
            mixed=not sampled.all(),
        )

    @classmethod
    def merge(cls, flags: Sequence[SamplingFlags]) -> SamplingFlags:
        """Summarise batches that are sampled together."""
        if flags and flags.count(flags[0]) == len(flags):
            return flags[0]
        sampled = [own for own in flags if not own.all_greedy]
        tops = [own.top for own in sampled]
        return cls(
            all_greedy=not sampled,
            truncated=any(own.truncated for own in sampled),
            top=max(tops) if tops and all(tops) else 0,
            min_p=any(own.min_p for own in sampled),
            mixed=bool(sampled) and any(own.all_greedy or own.mixed for own in flags),
        )


def guide(
    conditional: torch.Tensor, unconditional: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Classifier-free guidance, ``u + g * (c - u)``.

    Args:
        conditional, unconditional: float32 ``[n, count]``.
        scale: float32 ``[n]``.
    """
    return unconditional + scale.unsqueeze(1) * (conditional - unconditional)


def guide_rows(logits: torch.Tensor, guided: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Guidance of the rows that have it.

    Args:
        logits: float32, bfloat16 or float16 ``[n + k, count]``: n rows, then the unconditional ones
            of k of them.
        guided: int64 ``[k]``, those rows, ascending.
        scale: float32 ``[k]``.

    Returns:
        float32 ``[n, count]``.
    """
    if cpu_sampling.is_served(logits):
        return cpu_sampling.guide(logits, guided, scale)
    count = len(logits) - len(guided)
    rows, unconditional = logits[:count].float(), logits[count:].float()
    return rows.index_copy(0, guided, guide(rows[guided], unconditional, scale))


def highest(logits: torch.Tensor) -> torch.Tensor:
    """The place of each row's highest logit, the first of equal ones.

    Args:
        logits: float32, bfloat16 or float16 ``[n, count]``.

    Returns:
        int64 ``[n]``.
    """
    if cpu_sampling.is_served(logits):
        tokens, num_undecided = cpu_sampling.highest(logits)
        if not num_undecided:
            return tokens
    return logits.float().argmax(dim=-1)


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """How each of n tokens is sampled; all tensors are ``[n]`` and on one device.

    Attributes:
        temperature: float32; 0, and what is below ``LEAST_TEMPERATURE``, takes the highest logit.
        top_k: int64; 0 keeps all.
        top_p: float32 in (0, 1].
        min_p: float32 in [0, 1]; 0 keeps all.
        seed: int64.
        position: int64, the tokens' places in the grid, ``row * columns + column``.
        flags: The batch's summary; must agree with the tensors.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    position: torch.Tensor
    flags: SamplingFlags

    @classmethod
    def of(
        cls,
        options: Mapping[str, NDArray[Any]],
        position: NDArray[np.int64],
        device: torch.device | str = "cpu",
        flags: SamplingFlags | None = None,
    ) -> SamplingBatch:
        """Bring host arrays of shape ``[n]``, named as in :data:`OPTION_DTYPES`, to the device.

        ``flags`` are worked out from the options where they are not known already.
        """
        tensors = {
            name: to_device(array, device)
            for name, array in {**options, "position": position}.items()
        }
        return cls(**tensors, flags=flags or SamplingFlags.of(options))

    def __getitem__(self, index: torch.Tensor) -> SamplingBatch:
        """Some of the tokens: int64 or bool index on the device."""
        tensors = {name: getattr(self, name)[index] for name in (*OPTION_DTYPES, "position")}
        return SamplingBatch(**tensors, flags=self.flags)

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw the tokens: temperature, then min-p, top-k and top-p, then Gumbel-max.

        Of equal logits the lowest tokens come first, in every cut as in the choice of the highest,
        so that a token depends on nothing but its own logits and options.

        Args:
            logits: float32, bfloat16 or float16 ``[n, count]``; sampled from in float32.

        Returns:
            int64 ``[n]`` in [0, count).
        """
        if self.flags.all_greedy:
            return highest(logits)
        if self.flags.truncated or not cpu_sampling.is_served(logits):
            return self._sample(logits.float())
        drawn, num_undecided = cpu_sampling.draw(
            logits,
            self.temperature,
            LEAST_TEMPERATURE,
            self.min_p if self.flags.min_p else None,
            self.seed,
            self.position,
        )
        if num_undecided:
            undecided = drawn < 0
            drawn[undecided] = self[undecided]._sample(logits[undecided].float())
        return drawn

    def _sample(self, logits: torch.Tensor) -> torch.Tensor:
        """The same by torch's operations."""
        scaled, tokens = self._scale(logits)
        noise = gumbel_noise(self.seed, self.position, logits.shape[1], tokens)
        if self.flags.mixed:
            noise = noise.masked_fill_(_is_greedy(self.temperature).unsqueeze(1), 0.0)
        scaled = noise.add_(scaled)
        if tokens is None:
            return scaled.argmax(dim=-1)
        is_highest = scaled >= scaled.amax(dim=-1, keepdim=True)
        return torch.where(is_highest, tokens, logits.shape[1] - 1).amin(dim=-1)

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The distributions that :meth:`sample` draws from: float32 ``[n, count]``.

        A greedy token has all its weight on one.
        """
        certain = torch.zeros_like(logits).scatter_(1, logits.argmax(dim=-1, keepdim=True), 1.0)
        if self.flags.all_greedy:
            return certain
        scaled, tokens = self._scale(logits)
        weights = scaled.softmax(dim=-1)
        if tokens is not None:
            weights = torch.zeros_like(logits).scatter_(1, tokens, weights)
        return torch.where(_is_greedy(self.temperature).unsqueeze(1), certain, weights)

    def _scale(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits after temperature and cuts; sorted, with their tokens, for top-k and top-p."""
        temperature = self.temperature
        if self.flags.mixed:
            temperature = temperature.masked_fill(_is_greedy(temperature), 1.0)
        scaled = logits / temperature.unsqueeze(1)
        if self.flags.min_p:
            least = scaled.amax(dim=-1, keepdim=True) + self.min_p.log().unsqueeze(1)
            scaled = scaled.masked_fill(scaled < least, float("-inf"))
        if not self.flags.truncated:
            return scaled, None
        count = logits.shape[1]
        tokens = _rank(scaled, min(self.flags.top, count) or count)
        return _truncate(scaled.gather(1, tokens), self.top_k, self.top_p), tokens


def _is_greedy(temperature: Any) -> Any:
    """Which tokens take their highest logit; array or tensor in, the same out."""
    return temperature < LEAST_TEMPERATURE


def _rank(scaled: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens of the highest logits, from high to low; of equal logits the lowest token first."""
    bits = (scaled + 0.0).view(torch.int32)  # -0.0 equals 0.0
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long().bitwise_left_shift_(32)
    keys += torch.arange(_MASK32, _MASK32 - scaled.shape[1], -1, device=scaled.device)
    return _MASK32 - (keys.topk(count, dim=-1).values & _MASK32)


def _truncate(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Apply top-k and top-p to logits sorted from high to low; the highest always stays.

    Probabilities are added up as integers, which are the same in any order.
    """
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    limit = torch.where(top_k > 0, top_k, scaled.shape[1]).unsqueeze(1)
    scaled = scaled.masked_fill(rank >= limit, float("-inf"))
    weights = (scaled - scaled[:, :1]).exp().mul_(2**_WEIGHT_BITS).long()
    reached = weights.cumsum(dim=-1)
    least = (reached[:, -1:] * top_p.double().unsqueeze(1)).ceil().long()
    outside = (reached - weights >= least) & (top_p < 1).unsqueeze(1)
    return scaled.masked_fill(outside, float("-inf"))
