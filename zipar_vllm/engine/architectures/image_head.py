"""What the families' vLLM classes are made of: a language model without its own head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..vllm_models import (
    LlamaForCausalLM,
    LogitsProcessor,
    ParallelLMHead,
    SupportsQuant,
    maybe_prefix,
)


class BodyModel(nn.Module, SupportsQuant):  # type: ignore[misc]
    """A body of vLLM's; the head is the subclass's.

    Args:
        model: The body.
    """

    packed_modules_mapping = LlamaForCausalLM.packed_modules_mapping

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Input embeddings of text and image tokens."""
        return self.model.embed_input_ids(input_ids)  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states, ``[n, width]``."""
        return self.model(  # type: ignore[no-any-return]
            input_ids, positions, intermediate_tensors, inputs_embeds
        )


class ImageHeadModel(BodyModel):
    """A body, and a part of its head: the rows of the image tokens alone.

    Args:
        model: The body.
        width: Size of its hidden states.
        image_ids: Ids of the image tokens, by code.
        prefix: vLLM's name of the whole.

    Attributes:
        BODY: Beginning of the names of the body's tensors in a checkpoint.
        HEAD: Name of the whole head's.
        LEFT_OUT: Beginnings of the names of what draws nothing, within the body's.
    """

    BODY = "model."
    HEAD = "lm_head.weight"
    LEFT_OUT: tuple[str, ...] = ()

    def __init__(self, model: nn.Module, width: int, image_ids: range, prefix: str) -> None:
        super().__init__(model)
        self._image_ids = slice(image_ids.start, image_ids.stop)
        self.lm_head = ParallelLMHead(
            len(image_ids), width, prefix=maybe_prefix(prefix, self.HEAD.removesuffix(".weight"))
        )
        self.logits_processor = LogitsProcessor(len(image_ids))

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits by code, ``[n, num_codes]``; on the first rank."""
        logits: torch.Tensor | None = self.logits_processor(self.lm_head, hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a checkpoint's tensors; those of a pixel coder are left out."""

        def body() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name == self.HEAD:
                    weight = self.lm_head.weight
                    weight.weight_loader(weight, tensor[self._image_ids])
                elif name.startswith(self.BODY) and not name.startswith(self.LEFT_OUT):
                    yield name.removeprefix(self.BODY), tensor

        loaded = {f"model.{name}" for name in self.model.load_weights(body())}
        return loaded | {"lm_head.weight"}
