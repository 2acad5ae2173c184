"""How many drafts an image makes in a pass, where that is left to the scheduler.

A pass costs a fixed part and a part per input. Looking one step further ahead costs an image's
share of inputs in any case, and saves it a pass if all drafts up to there are right. So it is worth
while as long as that is likely enough, which depends on how much of a pass an image has to carry:
alone, all of its fixed part; among many, next to nothing.
"""

from __future__ import annotations

import math

from zipar_vllm.params import MAX_DRAFTS

MEMORY = 0.9
"""What the past weighs after one more pass with drafts."""
RECOVERY = 0.995
"""The same after a pass without: in the end a doubtful image tries again."""


class DraftChooser:
    """Chooses one image's number of drafts by how many steps its drafts saved lately."""

    def __init__(self) -> None:
        self._right = 0.0
        self._wrong = 0.0

    def observe(self, drafts: int, passes: int, plain_steps: int) -> None:
        """Count what passes with drafts brought.

        Args:
            drafts: Steps that they looked ahead.
            passes: How many they were.
            plain_steps: Steps of plain decoding that they did.
        """
        memory = (MEMORY if drafts else RECOVERY) ** passes
        failed = passes if drafts and plain_steps < passes * (drafts + 1) else 0
        self._right = memory * self._right + plain_steps - passes
        self._wrong = memory * self._wrong + failed

    def choose(self, inputs: int, spare_inputs: float) -> int:
        """How many steps to look ahead.

        Args:
            inputs: What each of them costs, in inputs.
            spare_inputs: The image's share of a pass's fixed part, in inputs.
        """
        chance = (self._right + 1) / (self._right + self._wrong + 2)  # that one more step is right
        needed = inputs / (inputs + spare_inputs)
        return min(MAX_DRAFTS, int(math.log(needed) / math.log(chance)))
