"""The reference decoder: one image, any Hugging Face causal model, plain torch, slow.

It restates the decoding rule token by token, shares no code with the plans the engine runs, and
is the oracle of every exactness test. Source: ZipAR (arXiv 2412.04062), section 3.2; visibility
and proxies as ``docs/structures.md`` describes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .grid import Grid
from .noise import gumbel_noise, uniform_noise
from .sampling import SamplingBatch, guide


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """A decoded image.

    Attributes:
        tokens: Vocabulary ids in raster order, terminators included.
        num_forward_passes: Passes taken, the prefill counted; two lanes share a pass.
    """

    tokens: list[int]
    num_forward_passes: int


@dataclass
class _Lane:
    """A sequence in the order it was fed: positions may repeat, then the latest one counts."""

    model: Any
    prompt_length: int
    cache: Any = None
    positions: list[int] = field(default_factory=list)
    superseded: list[bool] = field(default_factory=list)

    def feed(self, tokens: list[int], positions: list[int]) -> torch.Tensor:
        """Run the model on some inputs; logits float32 ``[inputs, vocabulary]``."""
        for index, position in enumerate(self.positions):
            self.superseded[index] |= position in positions
        self.positions += positions
        self.superseded += [False] * len(positions)
        visible = torch.tensor(
            [
                [
                    not old and at <= query
                    for at, old in zip(self.positions, self.superseded, strict=True)
                ]
                for query in positions
            ]
        )
        bias = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
        output = self.model(
            input_ids=torch.tensor([tokens]),
            position_ids=torch.tensor([positions]),
            attention_mask=bias[None, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = output.past_key_values
        logits: torch.Tensor = output.logits[0].float()
        return logits


@dataclass
class _Draft:
    """A row's first token while more of the row above may change it."""

    token: int
    weights: torch.Tensor
    attempts: int = 0

    def verify(self, weights: torch.Tensor, seed: int, position: int) -> bool:
        """Rejection sampling: keep the token, or draw one from what the new weights have more."""
        self.attempts += 1
        noise = (torch.tensor([seed]), torch.tensor([position + (self.attempts << 32)]))
        accepted = float(uniform_noise(*noise)) * self.weights[self.token] <= weights[self.token]
        if not accepted:
            more = (weights - self.weights).clamp(min=0)
            self.token = int((more.log() + gumbel_noise(*noise, len(more))[0]).argmax())
        self.weights = weights
        return bool(accepted)


@dataclass(frozen=True, slots=True)
class _Sampling:
    """From logits to a token, or to probabilities, of one place in the picture."""

    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int

    def guided(self, lanes: list[torch.Tensor]) -> torch.Tensor:
        """Combine the lanes' logits, ``[count]`` each."""
        if len(lanes) == 1:
            return lanes[0]
        conditional, unconditional = (lane.unsqueeze(0) for lane in lanes)
        return guide(conditional, unconditional, torch.tensor([self.guidance_scale]))[0]

    def sample(self, logits: torch.Tensor, position: int) -> int:
        options = {
            "seed": np.array([self.seed]),
            "temperature": np.array([self.temperature], dtype=np.float32),
            "top_k": np.array([self.top_k]),
            "top_p": np.array([self.top_p], dtype=np.float32),
            "min_p": np.array([self.min_p], dtype=np.float32),
        }
        return int(SamplingBatch.of(options, np.array([position])).sample(logits.unsqueeze(0)))

    def distribution(self, logits: torch.Tensor) -> torch.Tensor:
        order = logits.argsort(descending=True)
        if self.temperature == 0:
            return torch.zeros_like(logits).index_fill(0, order[:1], 1.0)
        if self.min_p:
            distance = (logits[order[0]] - logits[order]) / self.temperature
            order = order[distance <= -np.log(self.min_p)]
        order = order[: self.top_k or None]
        weights = (logits[order] / self.temperature).softmax(dim=0)
        if self.top_p < 1:
            weights[weights.cumsum(dim=0) - weights >= self.top_p] = 0
        return torch.zeros_like(logits).index_copy(0, order, weights / weights.sum())


@torch.no_grad()
def decode_image(
    model: Any,
    prompt_ids: Sequence[int],
    grid: Grid,
    window: int,
    *,
    image_tokens: tuple[int, int],
    row_terminator_id: int | None = None,
    adaptive: bool = False,
    unconditional_ids: Sequence[int] = (),
    guidance_scale: float = 1.0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> ReferenceResult:
    """Decode one image, a ready set at a time.

    Args:
        model: A Hugging Face causal language model in float32.
        prompt_ids: Conditional prompt.
        grid: The grid; must have a terminator exactly if ``row_terminator_id`` is given.
        window: 1 to ``grid.columns``, which is raster order.
        adaptive: Whether the window is only the least that a row waits for.
        image_tokens: First id and number of the image tokens.
        row_terminator_id: Token that ends every row, or None.
        unconditional_ids: Prompt of the unconditional lane; empty turns guidance off.
        guidance_scale, temperature, top_k, top_p, min_p, seed: As
            :class:`zipar_vllm.params.ImageParams` has them.
    """
    grid.check_window(window)
    start, count = image_tokens
    width, rows = grid.columns, grid.rows
    lanes = [_Lane(model, len(ids)) for ids in (prompt_ids, unconditional_ids) if ids]

    sampling = _Sampling(guidance_scale, temperature, top_k, top_p, min_p, seed)

    def guided(logits: list[torch.Tensor]) -> torch.Tensor:
        return sampling.guided([lane[start : start + count] for lane in logits])

    prompts = [list(ids) for ids in (prompt_ids, unconditional_ids) if ids]
    first = [
        lane.feed(ids, list(range(len(ids))))[-1] for lane, ids in zip(lanes, prompts, strict=True)
    ]
    decoded: list[list[int]] = [[] for _ in range(rows)]
    decoded[0].append(start + sampling.sample(guided(first), 0))
    closed = [False] * rows  # the row's last token has been fed
    draft: _Draft | None = None  # for the next row's first token
    passes = 1
    while len(decoded[-1]) < width:
        inputs: dict[int, tuple[int, int | None]] = {}  # position -> token, row it predicts for
        before = [len(row) for row in decoded]
        for row in range(rows):
            if 0 < before[row] < width:
                inputs[grid.position(row, before[row] - 1)] = (decoded[row][-1], row)
            elif before[row] == width and not closed[row]:
                inputs[grid.position(row, width - 1)] = (decoded[row][-1], None)
                closed[row] = True
            elif row and not before[row] and before[row - 1] >= window:
                opening = decoded[row - 1][-1] if row_terminator_id is None else row_terminator_id
                inputs[grid.position(row, 0) - 1] = (opening, row)
        fed = sorted(inputs)
        tokens = [inputs[position][0] for position in fed]
        logits = [lane.feed(tokens, [lane.prompt_length + p for p in fed]) for lane in lanes]
        for index, position in enumerate(fed):
            target = inputs[position][1]
            if target is None:
                continue
            scores = guided([lane[index] for lane in logits])
            if before[target] or not adaptive:
                code = sampling.sample(scores, target * width + before[target])
                decoded[target].append(start + code)
                continue
            weights, accepted = sampling.distribution(scores), False
            if draft is None:
                draft = _Draft(sampling.sample(scores, target * width), weights)
            else:
                accepted = draft.verify(weights, seed, target * width)
            if accepted or before[target - 1] == width:
                decoded[target].append(start + draft.token)
                draft = None
        passes += 1
    ending = [] if row_terminator_id is None else [row_terminator_id]
    return ReferenceResult([token for row in decoded for token in [*row, *ending]], passes)
