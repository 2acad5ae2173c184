"""The model on one device: loaded and allocated as a vLLM worker asks, stepped by the decoder."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from zipar_vllm.attention.interface import AttentionKernel
from zipar_vllm.attention.select import select_kernel
from zipar_vllm.attention.torch_attention import TorchAttention
from zipar_vllm.decoding.batch import StepBatch
from zipar_vllm.decoding.decoder import ImageDecoder
from zipar_vllm.decoding.header import BUCKETS, bucket
from zipar_vllm.decoding.pass_cost import PassCost, measure_pass_cost
from zipar_vllm.decoding.table import MAX_LANES
from zipar_vllm.models.registry import load_spec

from . import compiled_models
from .attention_backend import FLOAT8, FLOAT8_CAPABILITY, StepAttention
from .messages import ImageRunnerOutput, ImageSchedulerOutput, StepOutput
from .pixel_memory import measure_pixels, renders_pixels
from .runner_stubs import UnusedRunnerMethods
from .vllm_api import (
    AttentionLayerBase,
    CompilationMode,
    JitWarmupRegistry,
    KVCacheConfig,
    KVCacheSpec,
    ModelRunnerOutput,
    VllmConfig,
    allocate_kv_cache,
    bind_kv_cache_to_layers,
    clear_layer_kv_caches,
    current_platform,
    get_kv_cache_config_from_groups,
    get_kv_cache_groups,
    get_kv_cache_spec,
    get_layers_from_vllm_config,
    get_model,
    graph_capture,
    set_forward_context,
)

MAX_SPARE_INPUTS = 4096
"""Where more inputs take no time at all, as on a GPU that waits for its memory."""


class ImageModelRunner(UnusedRunnerMethods):
    """Owns the model and its KV cache; a step's images and its layout are the decoder's.

    What a vLLM worker calls on its model runner is what this class has; a contract test reads
    the list from vLLM's source.

    Args:
        vllm_config: vLLM's configuration.
        device: Where the model runs.

    Attributes:
        kernel: The attention kernel, from the KV cache's allocation on.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.load_config = vllm_config.load_config
        self.scheduler_config = vllm_config.scheduler_config
        # vLLM's GPU worker warms up the kernels of what is registered here, and of the attention
        # backends whose metadata it builds: none, this runner builds its own.
        self.jit_warmup_registry = JitWarmupRegistry(vllm_config)
        self.attn_groups: list[Any] = []
        self.kv_cache_config: KVCacheConfig
        self.lora_config = None
        self.device = device
        self.is_pooling_model = False
        self.model: Any
        self.model_memory_usage = 0
        self.kv_caches: list[torch.Tensor] = []
        self._async = self.scheduler_config.async_scheduling
        self._pending: Any = None
        self._pass_cost = PassCost(0.0, 0.0)
        self.decoder: ImageDecoder
        self.kernel: AttentionKernel

    @torch.inference_mode()
    def execute_model(
        self, scheduler_output: ImageSchedulerOutput, intermediate_tensors: Any = None
    ) -> ModelRunnerOutput | None:
        """Take a step or several: update the images, forward, sample, release complete rows.

        With asynchronous scheduling vLLM fetches the output by :meth:`sample_tokens`.
        """
        for request_id in scheduler_output.finished_req_ids:
            self.decoder.remove(request_id)
        for request in scheduler_output.scheduled_new_reqs:
            job = scheduler_output.new_jobs[request.req_id]
            prompt = request.prompt_token_ids or [0] * job.prompt_length
            blocks, embeddings = request.block_ids[0], request.prompt_embeds
            self.decoder.add(request.req_id, job, prompt, blocks, embeddings)
        scheduled = scheduler_output.num_scheduled_tokens
        if not scheduled:
            return ImageRunnerOutput(req_ids=[], req_id_to_index={})
        result = self.decoder.step(
            scheduled, self, scheduler_output.passes, scheduler_output.drafts
        )
        table = self.decoder.table
        output = StepOutput(list(scheduled), result, table, self._pass_cost)
        if not self._async:
            return output.get_output()
        self._pending = output
        return None

    def sample_tokens(self, grammar_output: Any = None) -> Any:
        """Hand over the output of the step just executed."""
        output, self._pending = self._pending, None
        return output

    def forward(self, batch: StepBatch) -> torch.Tensor:
        """Run the model on a step; see :class:`~zipar_vllm.decoding.decoder.StepModel`."""
        attention = StepAttention(self.kernel, self.kernel.prepare(batch.attention))
        with set_forward_context(
            attention, self.vllm_config, num_tokens=batch.num_inputs, slot_mapping={}
        ):
            return self._run(batch.input_ids, batch.positions, batch.embedded)

    def _run(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        embedded: Sequence[tuple[int, torch.Tensor]] = (),
    ) -> torch.Tensor:
        """Run the model; one whose prompts are embeddings is fed these alone, in every step."""
        if not self.model_config.enable_prompt_embeds:
            return self.model(input_ids=input_ids, positions=positions)
        embeddings = self.model.embed_input_ids(input_ids)
        for start, rows in embedded:
            embeddings[start : start + len(rows)] = rows
        return self.model(input_ids=None, positions=positions, inputs_embeds=embeddings)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the model's columns."""
        return self.model.compute_logits(hidden)  # type: ignore[no-any-return]

    def load_model(self, load_dummy_weights: bool = False) -> None:
        """Load the model through vLLM, which shards, quantises and compiles it."""
        before = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
        with self.jit_warmup_registry.activate():
            self.model = get_model(vllm_config=self.vllm_config)
        if self.device.type == "cuda":
            self.model_memory_usage = torch.cuda.memory_allocated() - before

    def get_model(self) -> nn.Module:
        """The loaded model."""
        return self.model

    def get_supported_tasks(self) -> tuple[str, ...]:
        """vLLM's name for token generation; images are asked for by ``extra_args``."""
        return ("generate",)

    def get_kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """KV cache format of each attention layer."""
        return get_kv_cache_spec(self.vllm_config)  # type: ignore[no-any-return]

    def initialize_kv_cache(
        self,
        kv_cache_config: KVCacheConfig,
        is_profiling: bool = False,
        kv_cache_allocation_context: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Allocate the KV cache and the state of running images.

        Raises:
            ValueError: the model's layers do not share one KV cache format.
        """
        self.kv_cache_config = kv_cache_config
        groups = kv_cache_config.kv_cache_groups
        if len(groups) != 1:
            raise ValueError(f"the model needs {len(groups)} KV cache groups, supported is one")
        spec = groups[0].kv_cache_spec
        layout = self.vllm_config.cache_config.get_resolved_kv_cache_layout()
        with kv_cache_allocation_context or nullcontext():
            caches = allocate_kv_cache(kv_cache_config, self.device, layout, [spec.block_size])
        context = self.vllm_config.compilation_config.static_forward_context
        bind_kv_cache_to_layers(caches, context, kv_cache_groups=groups)
        self.kv_caches = list(caches.values())
        image_model = load_spec(self.model_config.model, self.model_config.revision)
        self.decoder = ImageDecoder(
            max_images=self.vllm_config.scheduler_config.max_num_seqs,
            max_tokens=self.model_config.max_model_len,
            block_size=spec.block_size,
            vocabulary=image_model.vocabulary,
            positions=image_model.positions,
            device=self.device,
        )
        self.kernel = self._select_kernel(spec.block_size)

    def _select_kernel(self, block_size: int) -> AttentionKernel:
        layers = get_layers_from_vllm_config(self.vllm_config, AttentionLayerBase)
        shapes = {(la.num_heads // la.num_kv_heads, la.head_size) for la in layers.values()}
        if len(shapes) != 1:
            raise ValueError(f"attention layers differ in their heads: {sorted(shapes)}")
        heads_per_kv_head, head_size = shapes.pop()
        dtype, cache_dtype = self.model_config.dtype, self.vllm_config.cache_config.cache_dtype
        kernel = select_kernel(self.device, dtype, heads_per_kv_head, head_size, block_size)
        if cache_dtype in FLOAT8 and (
            isinstance(kernel, TorchAttention)
            or torch.cuda.get_device_capability(self.device) < FLOAT8_CAPABILITY
        ):
            needed = "needs Triton and a GPU of compute capability 8.9 or higher"
            raise ValueError(f"kv_cache_dtype: {cache_dtype} {needed}")
        return kernel

    def warming_up_model(self) -> None:
        """Compile the model (vLLM's CPU worker calls this)."""
        if self.vllm_config.compilation_config.mode != CompilationMode.NONE:
            with compiled_models.loadable():
                self._dummy_run(self.scheduler_config.max_num_batched_tokens)

    @torch.inference_mode()
    def profile_run(self, randomize_inputs: bool = False) -> None:
        """Run the widest steps, so that the worker can measure their memory, and that of pixels.

        All is as in service, the state of images and the kernels' scratch memory included, but for
        the KV cache: it has one block, which all lanes read.
        """
        budget = self.vllm_config.scheduler_config.max_num_batched_tokens
        pixels = self._measure_pixels()
        self._dummy_run(budget)
        specs = self.get_kv_cache_spec()
        self.initialize_kv_cache(self._one_block(specs), is_profiling=True)
        captured = self._measure_captured()
        lanes = self._most_lanes(specs)
        # What a narrower step saves in activations, its attention may need for parts of lanes.
        width = budget
        while width >= min(lanes, budget):
            self.decoder.rehearse(self, width, lanes)
            width //= 2
        del pixels, captured, self.decoder, self.kernel, self.kv_cache_config
        self.kv_caches.clear()
        clear_layer_kv_caches(self.vllm_config.compilation_config.static_forward_context.values())
        gc.collect()

    def _measure_pixels(self) -> torch.Tensor | None:
        """As much memory as the processes that render pixels on this GPU will take."""
        config, model = self.vllm_config, self.model_config
        is_measured = config.cache_config.kv_cache_memory_bytes is None
        if not is_measured or not renders_pixels(config.additional_config, self.device):
            return None
        taken = measure_pixels(model.model, model.revision, self.device, model.max_model_len)
        taken *= config.parallel_config._api_process_count  # each has a decoder of its own
        gc.collect()
        torch.cuda.empty_cache()
        return torch.empty(taken, dtype=torch.uint8, device=self.device)

    def capture_model(self) -> int:
        """Capture steps as CUDA graphs; bytes that these take. Skipped with ``enforce_eager``."""
        return self._capture(self._capacities(), current_platform.get_global_graph_pool())

    def _capacities(self) -> list[int]:
        """Inputs that captured steps have room for."""
        widest = bucket(self.scheduler_config.max_num_batched_tokens)
        return [capacity for capacity in BUCKETS if capacity <= widest]

    @torch.inference_mode()
    def _capture(self, capacities: Sequence[int], pool: Any) -> int:
        torch.cuda.empty_cache()
        before = torch.cuda.mem_get_info(self.device)[0]
        with graph_capture(self.device):
            self.decoder.capture(self, capacities, pool)
        torch.cuda.empty_cache()
        return max(0, before - torch.cuda.mem_get_info(self.device)[0])

    def _measure_captured(self) -> torch.Tensor | None:
        """As much memory as captured steps will take, found by capturing them."""
        if self.device.type != "cuda" or self.model_config.enforce_eager:
            return None
        taken = self._capture(self._capacities(), current_platform.graph_pool_handle())
        self.decoder.capture(self, [])  # forgets it
        return torch.empty(taken, dtype=torch.uint8, device=self.device)

    def _one_block(self, specs: dict[str, KVCacheSpec]) -> KVCacheConfig:
        """The least KV cache."""
        cache = self.vllm_config.cache_config
        wanted, cache.num_gpu_blocks_override = cache.num_gpu_blocks_override, 1
        groups = get_kv_cache_groups(self.vllm_config, specs)
        config = get_kv_cache_config_from_groups(self.vllm_config, groups, available_memory=0)
        cache.num_gpu_blocks_override = wanted
        return config

    def _most_lanes(self, specs: Mapping[str, KVCacheSpec]) -> int:
        """Lanes of the longest length, at most, that keys and values may be held of at a time."""
        most = MAX_LANES * self.scheduler_config.max_num_seqs
        memory = self.vllm_config.cache_config.kv_cache_memory_bytes
        if memory is None and self.device.type == "cuda":
            memory = torch.cuda.mem_get_info(self.device)[0]
        if memory is None:
            return most
        longest = self.model_config.max_model_len
        lane = sum(-(-longest // spec.block_size) * spec.page_size_bytes for spec in specs.values())
        return max(1, min(most, memory // lane))

    @torch.inference_mode()
    def _dummy_run(self, num_tokens: int, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward ``num_tokens`` meaningless inputs without touching the KV cache."""
        zeros = torch.zeros(num_tokens, dtype=torch.int64, device=self.device)
        with set_forward_context(None, self.vllm_config, num_tokens=num_tokens, slot_mapping={}):
            hidden = self._run(zeros, zeros.clone())
        return hidden, hidden

    @torch.inference_mode()
    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The logits of some hidden states: what sampling needs most memory for."""
        return self.model.compute_logits(hidden_states)  # type: ignore[no-any-return]

    def measure_pass_cost(self) -> None:
        """Find out what a pass costs beside its inputs, from the warmed-up model.

        All ranks measure alike; the scheduler believes the one whose output it gets.
        """
        spec = load_spec(self.model_config.model, self.model_config.revision)
        longest = self.model_config.max_model_len
        grid = next((grid for grid in spec.grids.values() if grid.num_positions < longest), None)
        if grid is not None:  # else no picture fits, as each request will be told
            self._pass_cost = measure_pass_cost(
                self.decoder,
                self,
                grid,
                self.kv_cache_config.num_blocks,
                self.scheduler_config.max_num_batched_tokens,
            )

    def update_max_model_len(self, max_model_len: int) -> None:
        """vLLM fitted the longest length to memory, before the KV cache is allocated."""
        self.model_config.max_model_len = max_model_len

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not supported."""
        raise NotImplementedError("reloading weights is not supported")

    def shutdown(self) -> None:
        """Release the model and its cache."""
        self.kv_caches.clear()
