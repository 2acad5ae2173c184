"""How many steps an image looks ahead, where that is left to the scheduler.

A pass costs a fixed part, a part per lane and a part per input; here all is counted in inputs.
Looking further ahead costs an image inputs, and brings it further if its drafts are right. The best
number is the one that brings it furthest for what the pass costs on its account: alone it bears all
of the fixed part, so that many inputs more are cheap; among many it bears next to nothing of it.

How far drafts bring images is learnt from those of the same grid and window, and from the image
itself, lately.
"""

from __future__ import annotations

from functools import lru_cache

NUMBERS = (0, 1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64)
"""The numbers of steps to choose from."""
GAIN = 1.15
"""How much faster drafts have to be: what a pass costs is known to some percent only."""
FAULT = 0.3
"""How often a draft for the very next step is wrong, before anything is known."""
RIPENING = 0.4
"""Drafts made further ahead are guessed more often before they count. Where passes look ``d`` steps
ahead, a step is wrong ``d ** -RIPENING`` times as often as where they look one ahead: a fit to the
embedded model (windows 4, 8 and raster order, 1 to 16 steps)."""
FINENESS = 64
"""A choice is remembered for faults and costs as fine as this."""


class Experience:
    """How often one step more was wrong, lately, and what it cost.

    Args:
        memory: What the past weighs after one more pass with drafts.
        recovery: The same after a pass without, so that in the end a doubtful one tries again.
    """

    def __init__(self, memory: float, recovery: float) -> None:
        self._memory = memory
        self._recovery = recovery
        self._tried = 0.0
        self._wrong = 0.0  # as many as if all had looked one step ahead
        self._ahead = 0.0
        self._made = 0.0

    def observe(self, drafts: int, passes: int, plain_steps: int, made: int) -> None:
        """Count what passes brought.

        Args:
            drafts: Steps that each of them looked ahead.
            passes: How many they were.
            plain_steps: Steps of plain decoding that they did.
            made: Drafts that they made.
        """
        kept = (self._memory if drafts else self._recovery) ** passes
        wrong = 0.0
        if drafts:  # A pass ends at its first step that is wrong, unless all are right.
            wrong = passes * (1 - _chance(self.fault(1.0, FAULT), drafts) ** drafts)
        self._tried = kept * self._tried + plain_steps - passes + wrong
        self._wrong = kept * self._wrong + wrong * drafts**RIPENING
        self._ahead = kept * self._ahead + passes * drafts
        self._made = kept * self._made + made

    def fault(self, weight: float, expected: float) -> float:
        """How often the very next step is wrong: as counted, and as expected with a weight."""
        return (self._wrong + weight * expected) / (self._tried + weight)

    def inputs(self, expected: float) -> float:
        """Inputs of one lane that one step more adds to a pass."""
        return (self._made + expected) / (self._ahead + 1)


class DraftChooser:
    """Chooses one image's number of drafts.

    Args:
        kind: Experience with images of its grid and window.
        plain_inputs: Inputs of a lane in a step without drafts, on average.
        num_lanes: Its lanes.
    """

    def __init__(self, kind: Experience, plain_inputs: float, num_lanes: int) -> None:
        self._kind = kind
        self._own = Experience(memory=0.9, recovery=0.99)
        self._plain_inputs = plain_inputs
        self._num_lanes = num_lanes

    def observe(self, drafts: int, passes: int, plain_steps: int, made: int) -> None:
        """Count what passes brought; see :meth:`Experience.observe`."""
        self._kind.observe(drafts, passes, plain_steps, made)
        self._own.observe(drafts, passes, plain_steps, made)

    def choose(self, share: float) -> int:
        """How many steps to look ahead.

        Args:
            share: What the pass costs on the image's account beside its inputs, in inputs.
        """
        fault = self._own.fault(8.0, self._kind.fault(4.0, FAULT))
        inputs = self._kind.inputs(self._plain_inputs)
        return _best_number(
            round(fault * FINENESS),
            round(share / (self._num_lanes * self._plain_inputs) * FINENESS),
            round(inputs / self._plain_inputs * FINENESS),
        )


def make_experience() -> Experience:
    """No experience with a kind of images yet."""
    return Experience(memory=0.99, recovery=0.9995)


def _chance(fault: float, drafts: int) -> float:
    """That one step more is right, where passes look so far ahead."""
    return min(max(0.0, 1 - fault * drafts**-RIPENING), 1 - 1 / FINENESS)


@lru_cache(maxsize=65536)
def _best_number(fault: int, share: int, inputs: int) -> int:
    """Steps to look ahead for the most plain steps in the least time.

    Args:
        fault: How often the very next step is wrong.
        share: What the pass costs beside inputs, as a multiple of what a plain step's inputs cost.
        inputs: Inputs that one step more adds, as a multiple of a plain step's.

    All are in parts of ``FINENESS``.
    """
    fixed, added = share / FINENESS, inputs / FINENESS
    best, best_rate = 0, GAIN / (fixed + 1)
    for number in NUMBERS[1:]:
        right = _chance(fault / FINENESS, number)
        steps = (1 - right ** (number + 1)) / (1 - right)
        # Every input that plain decoding has is fed at least once.
        rate = steps / (fixed + max(steps, 1 + added * number))
        if rate > best_rate:
            best, best_rate = number, rate
    return best
