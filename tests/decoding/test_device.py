"""What a step asks of a device: every copy is asynchronous, and nothing waits for a result.

The device is torch's "meta", whose tensors have no contents: whoever reads one on the host fails.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.cases import NEGATIVE, make_image
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.decoder import ImageDecoder
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.prepare import PreparedImage

DEVICE = torch.device("meta")
BLOCK_SIZE = 16
aten = torch.ops.aten
INDEXING = (aten.index_put, aten.index_put_, aten._index_put_impl_)


class Model:
    """Hidden states and logits without contents."""

    kernel = TorchAttention(1, torch.float32)

    def forward(self, batch: StepBatch) -> torch.Tensor:
        return torch.empty(batch.num_inputs, 8, device=DEVICE)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.empty(len(hidden), 160, device=DEVICE)


class Waits(TorchDispatchMode):
    """Records what makes the host wait for a CUDA device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if name in (aten._to_copy, aten.to) and kwargs.get("device", DEVICE).type not in devices:
            self.copies += 1
            if not kwargs.get("non_blocking"):
                self.found.append("a copy to the device that blocks")
        elif name is aten.copy_ and len(devices) > 1 and not (len(args) > 2 and args[2]):
            self.found.append("a copy into the device that blocks")
        elif name in INDEXING and args[2].device.type == "cpu":
            self.found.append("an assignment of a number")
        return func(*args, **kwargs)


@pytest.mark.parametrize("terminated", [True, False], ids=["terminated", "plain"])
def test_neither_images_that_arrive_nor_steps_of_fixed_windows_wait(terminated: bool) -> None:
    vocabulary = Vocabulary(32, 100, row_terminator=3 if terminated else None)
    decoder = ImageDecoder(
        max_images=4, max_tokens=256, block_size=BLOCK_SIZE, vocabulary=vocabulary, device=DEVICE
    )
    sampled: dict[str, Any] = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "seed": 3}

    def add(name: str, image: PreparedImage, logprobs: bool = False) -> None:
        prompts = image.prompts
        lanes = tuple(len(ids) for ids in (prompts.conditional, prompts.unconditional) if ids)
        job = ImageJob(image.grid, image.params, lanes, logprobs)
        blocks = list(range(job.num_blocks(BLOCK_SIZE)))
        decoder.add(name, job, [*prompts.conditional, *prompts.unconditional], blocks)

    guided: dict[str, Any] = {"unconditional": NEGATIVE, "guidance_scale": 2.0}
    with Waits() as waits:
        add("guided", make_image(terminated, window=4, **guided, **sampled))
        add("greedy", make_image(terminated, window=2), logprobs=True)
        arriving = waits.copies
        decoder.step({"guided": 8, "greedy": 5}, Model())
        for _ in range(12):
            decoder.step({"guided": 1, "greedy": 1}, Model())
    assert arriving == 2  # one of each: tokens, orders and blocks in one piece
    assert waits.copies > arriving
    assert waits.found == []
