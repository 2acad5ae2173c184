"""The attention backend vLLM's layers call; the arithmetic is :mod:`zipar_vllm.attention`'s."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from zipar_vllm.attention.interface import AttentionKernel

from .vllm_api import (
    AttentionBackend,
    AttentionBackendEnum,
    AttentionImpl,
    AttentionMetadataBuilder,
    KVCacheLayout,
    MultipleOf,
    current_platform,
    register_backend,
)

FLOAT8 = ("fp8", "fp8_e4m3")
"""vLLM's names for KV caches in float8 e4m3: read by the Triton kernel alone, so on GPUs only."""
FLOAT8_CAPABILITY = (8, 9)

ALIGNMENT = 16
"""Bytes that a GPU copies at a time: a slot's key, and its value, begin at multiples of it."""


def register() -> None:
    """Make vLLM build its attention layers with this backend, in the calling process."""
    is_cpu = current_platform.is_cpu()
    member = AttentionBackendEnum.CPU_ATTN if is_cpu else AttentionBackendEnum.CUSTOM
    register_backend(member, f"{__name__}.{ZipARAttentionBackend.__name__}")


@dataclass(frozen=True, slots=True)
class StepAttention:
    """A step's attention metadata, the same for every layer: a kernel and what it prepared."""

    kernel: AttentionKernel
    metadata: Any


class ZipARAttentionBackend(AttentionBackend):  # type: ignore[misc]
    """Attention over partly written slots, for any decoder with plain softmax attention."""

    supported_dtypes = [torch.float16, torch.bfloat16, torch.float32]  # noqa: RUF012
    supported_kv_cache_dtypes = ["auto", "float16", "bfloat16", *FLOAT8]  # noqa: RUF012

    @staticmethod
    def get_name() -> str:
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[ZipARAttentionImpl]:
        return ZipARAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        # The model runner builds the metadata itself, once per step.
        return AttentionMetadataBuilder  # type: ignore[type-abstract]

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int | MultipleOf]:
        return [MultipleOf(1)]

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """Widen the slots of heads whose size is not aligned, as that of 100 is not, on a GPU."""
        size = spec.head_size * spec.dtype.itemsize
        if current_platform.is_cpu() or size % ALIGNMENT == 0:
            return spec
        return replace(spec, state_content_bytes=2 * (size + -size % ALIGNMENT))

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        # Blocks in one piece each: how the numbers lie within one is the kernel's own affair.
        return (KVCacheLayout.LBHNC,)


class ZipARAttentionImpl(AttentionImpl[Any]):  # type: ignore[misc]
    """One layer's attention.

    Raises:
        NotImplementedError: the layer wants a feature the visibility rule is not defined for.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = "decoder",
        kv_sharing_target_layer_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        unsupported = {
            "ALiBi": alibi_slopes,
            "a sliding window": sliding_window,
            "logit soft-capping": logits_soft_cap,
            "KV sharing between layers": kv_sharing_target_layer_name,
            f"a KV cache in {kv_cache_dtype}": kv_cache_dtype.startswith("fp8")
            and (current_platform.is_cpu() or kv_cache_dtype not in FLOAT8),
            "attention sinks": kwargs.get("sinks"),
        }
        for feature, wanted in unsupported.items():
            if wanted:
                raise NotImplementedError(f"image decoding does not support {feature}")
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.kv_cache_dtype = kv_cache_dtype

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: StepAttention | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write this step's keys and values, then attend.

        Args:
            layer: Holds the scales of float8 keys and values.
            query: ``[inputs, heads, head_size]``.
            key, value: ``[inputs, kv_heads, head_size]``.
            kv_cache: ``[blocks, kv_heads, block_size, 2 * head_size]``, or wider.
            attn_metadata: None while vLLM warms up or profiles.
            output: ``[inputs, heads, head_size]``, written in place.
            output_scale, output_block_scale: Unused.
        """
        if attn_metadata is None:
            return output.zero_()
        run, metadata = attn_metadata.kernel.run, attn_metadata.metadata
        if self.kv_cache_dtype in FLOAT8:
            cache = kv_cache.view(torch.float8_e4m3fn)
            scales: Any = {"key_scale": layer._k_scale_float, "value_scale": layer._v_scale_float}
            run(query, key, value, cache, metadata, self.scale, output, **scales)
        else:
            run(query, key, value, kv_cache, metadata, self.scale, output)
        return output
