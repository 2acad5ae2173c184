"""Run the model over ready sets: one forward pass a step, for all images and lanes at once."""

from __future__ import annotations

import gc
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from zipar_vllm.attention.select import select_kernel
from zipar_vllm.attention.step import AttentionKernel
from zipar_vllm.models.registry import load_spec

from .attention_backend import StepAttention
from .batch import BatchBuilder, SampleBatch, StepBatch
from .job import ImageJob
from .output import ImageRunnerOutput, Release, StepOutput
from .sampler import StepSampler
from .scheduler import ImageSchedulerOutput
from .state import ImageState, StateTable
from .timing import StepTimes
from .vllm_api import (
    AttentionLayerBase,
    CompilationMode,
    KVCacheConfig,
    KVCacheSpec,
    ModelRunnerOutput,
    NewRequestData,
    VllmConfig,
    allocate_kv_cache,
    bind_kv_cache_to_layers,
    get_kv_cache_spec,
    get_layers_from_vllm_config,
    get_model,
    set_forward_context,
)
from .worker_contract import WorkerContract

logger = logging.getLogger(__name__)


class ImageModelRunner(WorkerContract):
    """Owns the model, its KV cache and the state of running images, on one device.

    What a vLLM worker calls on its model runner is what this class has; a contract test reads
    the list from vLLM's source.

    Args:
        vllm_config: vLLM's configuration.
        device: Where the model runs.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config
        self.load_config = vllm_config.load_config
        self.lora_config = None
        self.device = device
        self.is_pooling_model = False
        self.model: Any
        self.model_memory_usage = 0
        self.kv_caches: list[torch.Tensor] = []
        self.times = StepTimes()
        self._tokens = load_spec(vllm_config.model_config.model).tokens
        self._async = vllm_config.scheduler_config.async_scheduling
        self._pending: Any = None
        self._table: StateTable
        self._batches: BatchBuilder
        self._sampler: StepSampler
        self._kernel: AttentionKernel

    # ---- What a step does -------------------------------------------------------------------

    @torch.inference_mode()
    def execute_model(
        self, scheduler_output: ImageSchedulerOutput, intermediate_tensors: Any = None
    ) -> ModelRunnerOutput | None:
        """Take one step: update the running images, forward, sample, release complete rows.

        With asynchronous scheduling vLLM fetches the output by :meth:`sample_tokens`.
        """
        self._update_images(scheduler_output)
        if not scheduler_output.num_scheduled_tokens:
            return ImageRunnerOutput(req_ids=[], req_id_to_index={})
        decoding, prefilling = self._active(scheduler_output)
        if decoding or prefilling:
            with self.times.measure("prepare"):
                batch = self._batches.build(decoding, prefilling)
            with self.times.measure("forward"):
                hidden = self._forward(batch)
            with self.times.measure("sample"):
                kept = self._sample(hidden, batch.samples)
                self._advance(decoding, kept)
            self.times.count_step()
        output = self._release(scheduler_output)
        if not self._async:
            return output.get_output()
        self._pending = output
        return None

    def sample_tokens(self, grammar_output: Any = None) -> Any:
        """Hand over the output of the step just executed."""
        output, self._pending = self._pending, None
        return output

    def _update_images(self, output: ImageSchedulerOutput) -> None:
        for request_id in output.finished_req_ids:
            self._table.remove(request_id)
        for request in output.scheduled_new_reqs:
            self._add_image(request)

    def _add_image(self, request: NewRequestData) -> None:
        prompt = request.prompt_token_ids or []
        job = ImageJob.from_request(len(prompt), request.sampling_params, self._tokens)
        self._table.add(request.req_id, job, prompt, request.block_ids[0])

    def _active(
        self, output: ImageSchedulerOutput
    ) -> tuple[list[tuple[ImageState, int]], list[tuple[ImageState, int]]]:
        """Images to decode, each with its step, and to prefill, each with its tokens."""
        decoding: list[tuple[ImageState, int]] = []
        prefilling: list[tuple[ImageState, int]] = []
        for request_id, count in output.num_scheduled_tokens.items():
            image = self._table[request_id]
            step = output.steps.get(request_id, 0)
            if step == 0:
                prefilling.append((image, count))
            # Scheduling ahead, vLLM asks once more before it hears that an image is complete.
            elif not (image.frontier and image.frontier.finished):
                decoding.append((image, step))
        return decoding, prefilling

    def _forward(self, batch: StepBatch) -> torch.Tensor:
        attention = StepAttention(self._kernel, self._kernel.plan(batch.attention))
        with set_forward_context(
            attention, self.vllm_config, num_tokens=batch.num_inputs, slot_mapping={}
        ):
            return self.model(input_ids=batch.input_ids, positions=batch.positions)

    def _sample(self, hidden: torch.Tensor, batch: SampleBatch) -> dict[int, bool]:
        """Draw the step's tokens; says which rows that were tried start, by image."""
        if not len(batch):
            return {}
        inputs = np.concatenate([batch.conditional, batch.unconditional])
        logits = self.model.compute_logits(hidden[torch.from_numpy(inputs).to(self.device)])
        logits = logits[:, self._tokens.start : self._tokens.stop].float()
        return self._sampler.draw(logits, batch)

    def _advance(self, decoded: list[tuple[ImageState, int]], kept: dict[int, bool]) -> None:
        for image, _ in decoded:
            if image.frontier is not None:
                image.frontier.advance(kept.get(image.row, False))

    def _release(self, output: ImageSchedulerOutput) -> StepOutput:
        """Collect the rows that this step completed, in raster order."""
        request_ids = list(output.num_scheduled_tokens)
        releases, rows = [], {}
        for index, request_id in enumerate(request_ids):
            step = output.steps.get(request_id)
            if step is None:
                continue
            image = self._table[request_id]
            start, stride = image.job.prompt_length, image.job.plan.grid.stride
            before, after = image.released, image.completed_rows(step)
            if after > before:
                release = Release(index, image.row, start + before * stride, start + after * stride)
                releases.append(release)
                image.released = after
            if image.frontier is not None:
                rows[request_id] = image.frontier.num_sampled
        return StepOutput(request_ids, releases, self._table.tokens, rows)

    # ---- What a worker sets up --------------------------------------------------------------

    def load_model(self, load_dummy_weights: bool = False) -> None:
        """Load the model through vLLM, which shards, quantises and compiles it."""
        before = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
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
        self._table = StateTable(
            max_images=self.vllm_config.scheduler_config.max_num_seqs,
            max_tokens=self.model_config.max_model_len,
            block_size=spec.block_size,
            image_tokens=self._tokens,
            device=self.device,
        )
        self._batches = BatchBuilder(self._table, self.device)
        self._sampler = StepSampler(self._table, self._tokens, self.device)
        self._kernel = self._select_kernel(spec.block_size)

    def _select_kernel(self, block_size: int) -> AttentionKernel:
        layers = get_layers_from_vllm_config(self.vllm_config, AttentionLayerBase)
        shapes = {(la.num_heads // la.num_kv_heads, la.head_size) for la in layers.values()}
        if len(shapes) != 1:
            raise ValueError(f"attention layers differ in their heads: {sorted(shapes)}")
        heads_per_kv_head, head_size = shapes.pop()
        dtype = self.model_config.dtype
        return select_kernel(self.device, dtype, heads_per_kv_head, head_size, block_size)

    def warming_up_model(self) -> None:
        """Compile the model (vLLM's CPU worker calls this)."""
        if self.vllm_config.compilation_config.mode != CompilationMode.NONE:
            self.profile_run()

    @torch.inference_mode()
    def profile_run(self, randomize_inputs: bool = False) -> None:
        """Run the widest step, so that the worker can measure its memory."""
        hidden, _ = self._dummy_run(self.vllm_config.scheduler_config.max_num_batched_tokens)
        self._dummy_sampler_run(hidden[: self.vllm_config.scheduler_config.max_num_seqs])
        gc.collect()

    @torch.inference_mode()
    def _dummy_run(self, num_tokens: int, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward ``num_tokens`` meaningless inputs without touching the KV cache."""
        zeros = torch.zeros(num_tokens, dtype=torch.int64, device=self.device)
        with set_forward_context(None, self.vllm_config, num_tokens=num_tokens, slot_mapping={}):
            hidden = self.model(input_ids=zeros, positions=zeros.clone())
        return hidden, hidden

    @torch.inference_mode()
    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The logits of some hidden states: what sampling needs most memory for."""
        return self.model.compute_logits(hidden_states)  # type: ignore[no-any-return]

    def update_max_model_len(self, max_model_len: int) -> None:
        """vLLM fitted the longest length to memory, before the KV cache is allocated."""
        self.model_config.max_model_len = max_model_len

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not supported."""
        raise NotImplementedError("reloading weights is not supported")

    def shutdown(self) -> None:
        """Release the model and its cache."""
        self.kv_caches.clear()
