"""What decides the order in which an image's tokens are decoded, and the table of such policies.

A :class:`Policy` is shared by all images of one grid and one set of options; a :class:`Progress`
belongs to one image and says, step by step, what is fed and sampled. Scheduler, runner, table,
batch and sampler know both by these interfaces only. A policy is one module, named in
:data:`POLICIES` or, from another package, by an entry point of the group :data:`ENTRY_POINTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.sampling import SamplingBatch
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageParams

IntArray = NDArray[np.int64]

NO_INTS: IntArray = np.zeros(0, dtype=np.int64)

NOT_SAMPLED = -1
"""Target of an input whose logits nobody reads: it is fed for its key and value."""

DRAFTED = {"fixed_window": "zipar_vllm.decoding.drafted_window:make_policy"}
"""By name, the policies that can be had with drafts."""
POLICIES = {
    "fixed_window": "zipar_vllm.decoding.fixed_window:make_policy",
    "adaptive_window": "zipar_vllm.decoding.adaptive_window:make_policy",
}
ENTRY_POINTS = "zipar_vllm.policies"


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of one image; inputs are in raster order, each position at most once.

    Attributes:
        positions: int64 ``[n]``, position in the picture that each input is fed at.
        sources: int64 ``[n]``, position whose token is fed there; differs from ``positions`` for
            a proxy only, the stand-in for a token that is not known yet.
        targets: int64 ``[n]``, position of the token that each input's logits predict, or
            ``NOT_SAMPLED``.
        orders: int32 ``[n]``, from when on each input's token counts as known; its query sees what
            is known by then (:mod:`zipar_vllm.core.visibility`).
        sampled: int64 ``[m]``, the inputs that have a target.
        drafts: int64 ``[k]``, the inputs whose target is a draft: a token that the policy's
            :class:`Verification` may replace.
        attempts: int64 ``[k]``, how often each draft was drawn before; 0 for a new one.
        previous: int64 ``[k]``, position whose token each draft is compared with.
        forget: int64 ``[f]``, positions that become unwritten before the inputs are written.
    """

    positions: IntArray
    sources: IntArray
    targets: IntArray
    orders: NDArray[np.int32]
    sampled: IntArray
    drafts: IntArray
    attempts: IntArray
    previous: IntArray
    forget: IntArray

    @classmethod
    def of(
        cls,
        inputs: Mapping[int, tuple[int, int]],
        order: int | Mapping[int, int],
        drafts: Mapping[int, int] | None = None,
        forget: Iterable[int] = (),
    ) -> Step:
        """Make a step.

        Args:
            inputs: ``{position: (source, target)}``.
            order: Of all inputs, as in plain decoding, where it is the number of the step; or of
                each by its position.
            drafts: Of the positions whose target is a draft, the number of earlier attempts.
            forget: Positions that become unwritten first.
        """
        drafts = drafts or {}
        positions = np.array(sorted(inputs), dtype=np.int64)
        table = np.array([inputs[p] for p in positions.tolist()], dtype=np.int64).reshape(-1, 2)
        sources, targets = np.ascontiguousarray(table.T)
        orders = np.full(len(positions), order if isinstance(order, int) else 0, dtype=np.int32)
        if not isinstance(order, int):
            orders[:] = [order[position] for position in positions.tolist()]
        draft_inputs = np.searchsorted(positions, sorted(drafts))
        return cls(
            positions=positions,
            sources=sources,
            targets=targets,
            orders=orders,
            sampled=np.flatnonzero(targets != NOT_SAMPLED),
            drafts=draft_inputs,
            attempts=np.array([drafts[p] for p in sorted(drafts)], dtype=np.int64),
            previous=targets[draft_inputs],
            forget=np.array(sorted(forget), dtype=np.int64),
        )

    @property
    def num_inputs(self) -> int:
        return len(self.positions)

    @property
    def num_sampled(self) -> int:
        return len(self.sampled)


class Progress(Protocol):
    """Where one image stands, from its first token on: the prefill has drawn that."""

    @property
    def finished(self) -> bool:
        """Whether every token is final."""
        ...

    @property
    def complete_rows(self) -> int:
        """Rows from the top whose tokens are final, so that they may be released."""
        ...

    def step(self) -> Step:
        """The step to take now; the same until :meth:`advance`."""
        ...

    def advance(self, accepted: Sequence[bool]) -> None:
        """Count the tokens of the step just taken.

        Args:
            accepted: For each draft of the step, whether it passed its verification.
        """
        ...


@dataclass(frozen=True, slots=True)
class DraftCount:
    """How far an image has come by looking ahead.

    Attributes:
        plain_steps: Steps, the prefill counted, after which plain decoding would have come as far.
        made: Drafts so far.
        accepted: How many of them were accepted.
    """

    plain_steps: int
    made: int
    accepted: int

    def __add__(self, other: DraftCount) -> DraftCount:
        return DraftCount(
            self.plain_steps + other.plain_steps,
            self.made + other.made,
            self.accepted + other.accepted,
        )

    def __sub__(self, other: DraftCount) -> DraftCount:
        return DraftCount(
            self.plain_steps - other.plain_steps,
            self.made - other.made,
            self.accepted - other.accepted,
        )

    @property
    def rejected(self) -> int:
        """Drafts that were not accepted."""
        return self.made - self.accepted


class DraftingProgress(Progress, Protocol):
    """Where an image with ``params.drafts`` stands: its steps look ahead as far as they are told.

    Whatever they are told, its tokens are those of plain decoding, and it takes no more steps.

    Attributes:
        drafts: How many plain steps the next step looks ahead; may be set before each.
    """

    drafts: int

    @property
    def is_plain(self) -> bool:
        """Whether its next steps are plain decoding's, as long as it is told nothing else."""
        ...

    @property
    def count(self) -> DraftCount:
        """How far it has come."""
        ...

    @property
    def active_rows(self) -> int:
        """Rows that plain decoding would sample a token of now."""
        ...


@dataclass(frozen=True, slots=True)
class Drafts:
    """Drafts that a step drew, of all images whose policies verify alike; on the device.

    A wide step is sampled in parts, so they need not be all of an image's.

    Attributes:
        images: int64 ``[k]``, each image's index in the state table.
        logits: float32 ``[k, num_codes]``, after guidance.
        drawn: int64 ``[k]``, codes sampled from those logits with the token's own noise.
        previous: int64 ``[k]``, codes to compare with, as the policy says: of the attempt before,
            or what was fed for the token; meaningless where there was no attempt.
        attempts: int64 ``[k]``, earlier attempts, on the host.
        sampling: How each is sampled.
    """

    images: torch.Tensor
    logits: torch.Tensor
    drawn: torch.Tensor
    previous: torch.Tensor
    attempts: IntArray
    sampling: SamplingBatch


class Verification(Protocol):
    """How drafts become final; one object serves all images of a runner.

    It is made with the number of images that may run at once, the codebook's size and the device.
    """

    def __init__(self, max_images: int, num_codes: int, device: torch.device) -> None: ...

    def verify(self, drafts: Drafts) -> tuple[torch.Tensor, Sequence[bool]]:
        """Decide on a step's drafts.

        Returns:
            The codes to keep, int64 ``[k]`` on the device, and whether each draft was accepted;
            that the host has to know, because the next step depends on it.
        """
        ...


class Policy(Protocol):
    """A decoding order for one grid and one set of options."""

    @property
    def max_inputs(self) -> int:
        """Inputs of the widest step, per lane: what admission reserves."""
        ...

    @property
    def num_steps(self) -> int | None:
        """Forward passes per image, the prefill counted; None if that depends on what is drawn."""
        ...

    @property
    def orders(self) -> NDArray[np.int32] | None:
        """Order of every position, where steps do not depend on what is drawn, else None.

        int32 ``[num_positions]``: the step that first feeds the position, ``UNWRITTEN`` where none
        does. The images' orders then stand from their start, and no step has to write them. Nor may
        any ``forget``: steps may be laid out before those ahead of them have run.
        """
        ...

    @property
    def verification(self) -> type[Verification] | None:
        """The class that decides on its drafts; None if it has none."""
        ...

    def width(self, step: int) -> int:
        """Inputs of a step per lane, or a bound; the prefill is step 0 and has none of its own."""
        ...

    def start(self) -> Progress:
        """Begin an image."""
        ...


PolicyFactory = Callable[[Grid, ImageParams], Policy]
"""Makes, or finds, the policy of a grid and options.

Raises :class:`~zipar_vllm.errors.InvalidOptionError` for options that it cannot follow.
"""


def make_policy(grid: Grid, params: ImageParams) -> Policy:
    """The policy that an image's options name.

    Raises:
        InvalidOptionError: there is none of that name, or it cannot follow the other options.
    """
    if not params.drafts:
        return _factory(params.policy)(grid, params)
    if params.policy not in DRAFTED:
        allowed = f"0 with policy {params.policy}"
        raise InvalidOptionError.of("drafts", params.drafts, allowed)
    return _load(DRAFTED[params.policy])(grid, params)


def policy_names() -> list[str]:
    """All that may be asked for: the project's own first, then those of other packages."""
    return [*POLICIES, *sorted(found.name for found in entry_points(group=ENTRY_POINTS))]


@cache
def _factory(name: str) -> PolicyFactory:
    own = POLICIES.get(name)
    if own is not None:
        return _load(own)
    for found in entry_points(group=ENTRY_POINTS):
        if found.name == name:
            return cast(PolicyFactory, found.load())
    raise InvalidOptionError.of("policy", name, " or ".join(policy_names()))


@cache
def _load(place: str) -> PolicyFactory:
    """A factory by ``module:function``."""
    module, _, function = place.partition(":")
    return cast(PolicyFactory, getattr(import_module(module), function))
