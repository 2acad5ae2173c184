"""When an image may start: KV blocks that pass from one to the next, and whose turn it is.

What an image needs grows: raster order needs its last blocks in its last steps only. And when it
ends is known beforehand, where its steps do not depend on what is drawn. So an image is admitted
once each of its blocks is free or will be before the image needs it: then it *inherits* the block
from the image that holds it. It is told all its blocks at its start and is not told again.

Images may fall behind, as when a long prompt takes all of a step's tokens. An image whose next step
would write to a block that another still holds waits, and nothing else depends on time. It waits
only for images admitted before it; so the eldest never waits, it ends, and then another is
the eldest: all images end, none is preempted, and whoever is to be admitted next, is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from zipar_vllm.decoding.policy import IntArray

FREE = -1
"""Stands for any block that nobody holds."""
NEVER = 2**31 - 1
"""A step that no image reaches."""


class BlockLedger:
    """The holders of every block, in the order in which they write to it."""

    def __init__(self) -> None:
        self._holders: dict[int, list[str]] = {}
        self._blocks: dict[str, list[int]] = {}
        self._to_inherit: dict[str, list[int]] = {}  # of which an image is the last holder
        self._waits: dict[str, list[tuple[int, int]]] = {}  # step and block, latest first

    def find(
        self, block_steps: IntArray, num_free: int, steps_left: Mapping[str, int]
    ) -> IntArray | None:
        """Find blocks for an image that would take its first step now.

        Args:
            block_steps: The first step that writes to each of its blocks.
            num_free: Blocks that nobody holds.
            steps_left: Of the running images of which it is known, the steps until each ends, the
                one that is planned now counted.

        Returns:
            For each of its blocks the one that it inherits, or ``FREE``: int64; None if the image
            does not fit. As many as possible are inherited, each from whoever ends last.
        """
        latest_first = np.argsort(-block_steps, kind="stable")
        blocks = np.full(len(block_steps), FREE, dtype=np.int64)
        inherited = 0
        for name in sorted(steps_left, key=lambda name: -steps_left[name]):
            can = int(np.count_nonzero(block_steps >= steps_left[name]))
            offered = self._to_inherit[name][: max(0, can - inherited)]
            blocks[latest_first[inherited : inherited + len(offered)]] = offered
            inherited += len(offered)
        return blocks if len(block_steps) - inherited <= num_free else None

    def admit(self, name: str, block_steps: IntArray, blocks: Sequence[int]) -> None:
        """Let an image hold blocks, those that others hold after these.

        Args:
            name: The image.
            block_steps: The first step that writes to each.
            blocks: What it inherits, as :meth:`find` said, and free ones.
        """
        waits = []
        for step, block in zip(block_steps.tolist(), blocks, strict=True):
            holders = self._holders.setdefault(block, [])
            if holders:
                self._to_inherit[holders[-1]].remove(block)
                waits.append((step, block))
            holders.append(name)
        self._blocks[name], self._to_inherit[name] = list(blocks), list(blocks)
        self._waits[name] = sorted(waits, reverse=True)

    def first_wait(self, name: str) -> int:
        """The first step of an image that has to wait for another image's end, or ``NEVER``."""
        waits = self._waits.get(name, [])
        while waits and self._holders[waits[-1][1]][0] == name:
            waits.pop()
        return waits[-1][0] if waits else NEVER

    def end(self, name: str) -> None:
        """Let go of an image's blocks: all its steps are planned, or it is aborted."""
        if name not in self._blocks:
            return
        for block in self._blocks.pop(name):
            holders = self._holders[block]
            was_last = holders[-1] == name
            holders.remove(name)
            if not holders:
                del self._holders[block]
            elif was_last:
                self._to_inherit[holders[-1]].append(block)
        del self._to_inherit[name], self._waits[name]


CROWD = 2
"""How many times the cache all images that are here must need for starts to be put off."""


def is_crowded(blocks: Iterable[int], most_images: int, usable: int) -> bool:
    """Whether the cache would have to be much larger, and is less than as many as may run need.

    Args:
        blocks: What each image needs that is here, those first that come first.
        most_images: As many may run at a time.
        usable: Blocks of the cache.
    """
    needed = 0
    for number, own in enumerate(blocks, 1):
        needed += own
        if needed > CROWD * usable:
            return True
        if number == most_images and needed <= usable:
            return False
    return False


def block_passes(block_steps: IntArray, num_steps: int | None) -> int:
    """The blocks that an image holds in each of its steps, added up; 0 if that is not known."""
    return 0 if num_steps is None else int((num_steps - block_steps).sum())


class Pace:
    """Puts off starts, so that images hold few blocks while others hold many.

    Images that start together need all their blocks together, and until they end, together again,
    none can start. So where many have to wait anyway, each start is put off until the cache has had
    the passes for those before: more than that cannot be started for long. With few it would only
    make the last of them later.
    """

    def __init__(self) -> None:
        self._next_start = 0.0

    def is_reached(self, now: int) -> bool:
        """Whether another image may start.

        Args:
            now: Passes since any moment.
        """
        return now >= self._next_start

    def start(self, now: int, passes: float, alone: bool) -> None:
        """Count an image that starts.

        Args:
            now: As in :meth:`is_reached`.
            passes: For how long it would need the whole cache, if it could use all of it.
            alone: Whether no other image is running, so that the past does not matter.
        """
        self._next_start = passes + (now if alone else max(now, self._next_start))
