"""Runner methods that vLLM's workers call and image decoding does not need.

``tests/engine/test_contract.py`` reads from vLLM's source which names a worker uses.
"""

from __future__ import annotations

from typing import Any

import torch


class UnusedRunnerMethods:
    """Empty answers, in one place, so that the model runner holds what it does and no more."""

    def profile_cudagraph_memory(self) -> int:
        """Steps are captured without vLLM's dispatcher; their memory is in the profile run."""
        return 0

    def needs_cudagraph_capture(self) -> bool:
        """Not by vLLM's dispatcher."""
        return False

    def take_draft_token_ids(self) -> None:
        """No speculative decoding."""

    def get_draft_model(self) -> None:
        """No speculative decoding."""

    def get_encoder_timing_stats(self) -> dict[str, Any]:
        """No multimodal encoder."""
        return {}

    def reset_mm_cache(self) -> None:
        """No multimodal inputs."""

    def reset_encoder_cache(self) -> None:
        """No multimodal encoder."""

    def maybe_remove_all_loras(self, lora_config: Any) -> None:
        """No LoRA."""

    def reset_lora_state(self) -> None:
        """No LoRA."""

    def add_lora(self, lora_request: Any) -> bool:
        """No LoRA: nothing is added."""
        return False

    def remove_lora(self, lora_id: int) -> bool:
        """No LoRA: nothing is removed."""
        return False

    def pin_lora(self, lora_id: int) -> bool:
        """No LoRA: nothing is pinned."""
        return False

    def list_loras(self) -> set[int]:
        """No LoRA."""
        return set()

    def _dummy_pooler_run(self, hidden_states: torch.Tensor) -> None:
        """No pooling."""

    def pool(self) -> None:
        """No pooling."""

    def _init_kv_zero_meta(self) -> None:
        """Slots are masked until written, so blocks need no zeroing."""
