"""Drafts: a fixed window's picture, to the token, in fewer passes.

A token is a function of what it sees, because its noise is one of (seed, place). So a pass feeds
not only the inputs of the next plain step but those of the next steps too, with *drafts* for the
tokens that are not known yet: what the pass before drew there. An input is *settled* once its token
and all that it sees are final and it was fed like that; what it predicts is then final too, as if
decoded plainly. A draft is accepted if the very same token comes out of the pass; then the
input that it was fed as may be settled as well, and so on along the row. What is settled is not fed
again.

Every input sees what it would see in plain decoding, by its order, and has the order that it has
there. The inputs of the next plain step are always settled by a pass, so that drafts cost no
passes, and how many there are changes no token: each pass may have another number.

Sources: fixed-point iteration with common noise, Wiggers and Hoogeboom, "Predictive sampling with
forecasting autoregressive models" (arXiv 2002.09928); for text, Daliri et al., drafter-invariant
speculative decoding (arXiv 2408.07978). Drafts are accepted if equal and never by a ratio of
probabilities: with common noise that would bias the draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from zipar_vllm.core.grid import Grid
from zipar_vllm.params import ImageParams

from .fixed_window import FixedWindow, fixed_window
from .policy import NO_INTS, NOT_SAMPLED, DraftCount, Drafts, IntArray, Step


def make_policy(grid: Grid, params: ImageParams) -> DraftedWindow:
    """The policy of ``params.window`` with drafts.

    Raises:
        InvalidOptionError: the window is wider than the grid.
    """
    return _drafted_window(fixed_window(grid, params.window))


@lru_cache(maxsize=256)
def _drafted_window(plain: FixedWindow) -> DraftedWindow:
    return DraftedWindow(plain)


class Equality:
    """Keeps what is drawn; a draft was right if it is the same."""

    def __init__(self, max_images: int, num_codes: int, device: torch.device) -> None:
        pass

    def verify(self, drafts: Drafts) -> tuple[torch.Tensor, list[bool]]:
        """Compare; the host waits for the answer, on which the next step depends."""
        return drafts.drawn, (drafts.drawn == drafts.previous).tolist()


class DraftedWindow:
    """A fixed window's inputs in the order of its steps.

    A row's inputs are numbered by the column that they predict: 0 opens the row, and the grid's
    number of columns is its last token, fed for its key and value only. Where that token itself
    opens the next row, in raster order without terminators, the picture is one long row here.

    Attributes:
        plain: The window without drafts.
        columns: Columns of a row.
        ends: int64 ``[rows]``, inputs of each row, the prefill's counted.
        leads: int64 ``[rows]``, step of each row's input 0.
        starts: int64 ``[steps + 1]``, where each step's inputs begin among all of them.
        row, column, order: int64 ``[inputs]``, of each input; its order is its step.
        position, source, target: int64 ``[inputs]``, as a
            :class:`~zipar_vllm.decoding.policy.Step` has them.
        waits: bool ``[inputs]``, the inputs that take a proxy's slot: what still sees the proxy has
            to be settled before.
    """

    num_steps = None
    verification = Equality

    def __init__(self, plain: FixedWindow) -> None:
        grid, window = plain.grid, plain.window
        self.plain = plain
        self.orders = plain.orders
        self.max_inputs = plain.max_inputs
        is_one_row = window == grid.columns and not grid.row_terminator
        rows, self.columns = (1, grid.num_positions) if is_one_row else (grid.rows, grid.columns)
        self.leads = window * np.arange(rows)
        self.ends = np.full(rows, self.columns + 1)
        self.ends[-1] = self.columns
        row, column = (index.ravel() for index in np.indices((rows, self.columns + 1)))
        order = self.leads[row] + column
        fed = np.flatnonzero((column < self.ends[row]) & (order > 0))
        fed = fed[np.lexsort((row[fed], order[fed]))]
        self.row, self.column, self.order = row[fed], column[fed], order[fed]
        self.starts = np.searchsorted(self.order, np.arange(plain.num_steps + 1))
        self.position = self.row * grid.stride + self.column - 1
        self.target = np.where(self.column < self.columns, self.position + 1, NOT_SAMPLED)
        self.source = self.position.copy()
        self.waits = np.zeros(len(fed), dtype=bool)
        if not grid.row_terminator and not is_one_row:
            opens = self.column == 0
            self.source[opens] += window - self.columns  # the proxy
            self.waits = self.column == self.columns

    def width(self, step: int) -> int:
        """The most inputs of a step without drafts."""
        return self.max_inputs

    def start(self) -> DraftedProgress:
        """Begin an image."""
        return DraftedProgress(self)


class DraftedProgress:
    """How far an image's rows are settled, from its prefill on."""

    def __init__(self, policy: DraftedWindow) -> None:
        self._policy = policy
        self._drafts = 0
        self._plain_steps, self._made, self._accepted = 1, 0, 0
        # While no row is ahead of where plain decoding would have it, the steps without drafts are
        # plain decoding's, and this is not kept: how many inputs of each row are settled.
        self._is_level = True
        self._settled = NO_INTS
        self._has_token = np.zeros(policy.plain.grid.num_positions, dtype=bool)  # final or not
        self._has_token[0] = True
        self._noted = 1  # plain steps up to which that is kept
        if policy.plain.grid.row_terminator:
            self._has_token[policy.columns :: policy.plain.grid.stride] = True
        self._fed = NO_INTS
        self._step: Step | None = None

    @property
    def drafts(self) -> int:
        """Plain steps that the next step looks ahead; may be set before each."""
        return self._drafts

    @drafts.setter
    def drafts(self, number: int) -> None:
        if number != self._drafts:
            self._drafts, self._step = number, None

    @property
    def count(self) -> DraftCount:
        return DraftCount(self._plain_steps, self._made, self._accepted)

    @property
    def active_rows(self) -> int:
        return self._policy.plain.step(self._plain_steps).num_sampled

    @property
    def finished(self) -> bool:
        return self._plain_steps == self._policy.plain.num_steps

    @property
    def complete_rows(self) -> int:
        policy = self._policy
        if self._is_level:
            return policy.plain.complete_rows(self._plain_steps - 1)
        if len(policy.ends) == 1:
            return int(self._settled[0]) // policy.plain.grid.columns
        return int(np.count_nonzero(self._settled >= policy.columns))

    @property
    def is_plain(self) -> bool:
        return self._is_level and not self._drafts

    def step(self) -> Step:
        if self._step is None:
            now = self._plain_steps
            self._step = self._policy.plain.step(now) if self.is_plain else self._look_ahead(now)
        return self._step

    def advance(self, accepted: Sequence[bool]) -> None:
        """Count what the step settled.

        Args:
            accepted: For each token that the step drew and fed as well, whether they are the same.
        """
        step, self._step = self.step(), None
        if self.is_plain:
            self._plain_steps += 1
        else:
            self._has_token[step.targets[step.sampled]] = True
            self._settle(step, accepted)

    def _look_ahead(self, now: int) -> Step:
        """The inputs of the next plain steps that are not settled."""
        policy = self._policy
        if self._is_level:
            self._settled = self._settled_by(now)
            drawn = policy.target[policy.starts[self._noted] : policy.starts[now]]
            self._has_token[drawn[drawn != NOT_SAMPLED]] = True
            self._noted = now
        end = min(now + self._drafts + 1, policy.plain.num_steps)
        near = slice(policy.starts[now], policy.starts[end])
        is_fed = policy.column[near] >= self._settled[policy.row[near]]
        is_fed &= ~policy.waits[near] | (policy.order[near] == now)
        fed = near.start + np.flatnonzero(is_fed)
        self._fed = fed = fed[policy.position[fed].argsort()]
        targets, row = policy.target[fed], policy.row[fed]
        sources = self._guess(policy.source[fed])
        drafts = np.flatnonzero(row[1:] == row[:-1])
        return Step(
            positions=policy.position[fed],
            sources=sources,
            targets=targets,
            orders=policy.order[fed].astype(np.int32),
            sampled=np.flatnonzero(targets != NOT_SAMPLED),
            drafts=drafts,
            attempts=np.zeros_like(drafts),
            previous=sources[drafts + 1],
            forget=NO_INTS,
        )

    def _guess(self, sources: IntArray) -> IntArray:
        """Put others in the place of sources without a token: the one above, or the last before."""
        missing = np.flatnonzero(~self._has_token[sources])
        if not len(missing):
            return sources
        grid = self._policy.plain.grid
        above = sources[missing] - grid.stride
        places = np.where(self._has_token, np.arange(len(self._has_token)), 0)
        places[grid.columns :: grid.stride] *= not grid.row_terminator
        before = np.maximum.accumulate(places)[sources[missing]]
        has_above = (above >= 0) & self._has_token[above]
        sources[missing] = np.where(has_above, above, before)
        return sources

    def _settle(self, step: Step, accepted: Sequence[bool]) -> None:
        policy, settled, fed = self._policy, self._settled, self._fed
        columns, now = policy.columns, self._plain_steps
        tokens = np.minimum(settled, columns).sum()
        # A row's inputs follow one another; all but the last have a verdict on what they drew.
        rows, starts = np.unique(policy.row[fed], return_index=True)
        verdicts = iter(accepted)
        for row, inputs in zip(
            rows.tolist(), np.split(policy.column[fed], starts[1:]), strict=True
        ):
            right = [next(verdicts) for _ in inputs[1:]]
            reached = int(inputs[0]) + 1 + [*right, False].index(False)
            if row and settled[row - 1] <= columns:  # it sees more of the row above than is settled
                reached = min(reached, int(settled[row - 1]) - int(policy.leads[1]))
            settled[row] = max(reached, settled[row])
        late = settled < policy.ends
        next_step = (policy.leads + settled)[late].min() if late.any() else policy.plain.num_steps
        sure = int(np.count_nonzero(policy.order[fed[step.sampled]] == now))
        settled_now = int(np.minimum(settled, columns).sum() - tokens)
        self._plain_steps = int(next_step)
        self._made += step.num_sampled - sure
        self._accepted += settled_now - sure
        self._is_level = bool((settled == self._settled_by(self._plain_steps)).all())

    def _settled_by(self, step: int) -> IntArray:
        """Inputs of each row that plain decoding has fed before a step."""
        return np.clip(step - self._policy.leads, 0, self._policy.ends)
