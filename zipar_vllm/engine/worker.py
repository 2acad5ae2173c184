"""vLLM's workers with the image model runner in place of their own."""

from __future__ import annotations

from typing import Any

from . import attention_backend
from .arguments import check_config
from .model_runner import ImageModelRunner
from .vllm_api import CPUWorker, VllmConfig, Worker


class _ImageWorker:
    """What both workers add: the attention backend, the runner and a look at its timing."""

    model_runner: Any
    vllm_config: VllmConfig

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        check_config(vllm_config)
        # Attention layers are built in this process, so this is where vLLM has to know of it;
        # a stock engine in another process keeps its own backend.
        attention_backend.register()
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]

    def compile_or_warm_up_model(self) -> Any:
        """Warm up as vLLM does; what a pass costs is measured after that."""
        result = super().compile_or_warm_up_model()  # type: ignore[misc]
        self.model_runner.measure_pass_cost()
        return result

    def step_times(self, reset: bool = True) -> dict[str, float]:
        """Tell where the steps' time went; see :class:`zipar_vllm.decoding.timing.StepTimes`."""
        summary: dict[str, float] = self.model_runner.decoder.times.summary()
        if reset:
            self.model_runner.decoder.times.reset()
        return summary


class ZipARWorker(_ImageWorker, Worker):  # type: ignore[misc]
    """vLLM's GPU worker over images."""

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        # Else its start-up feeds text requests to what it takes for vLLM's second model runner.
        self.use_v2_model_runner = False

    def _make_model_runner(self) -> ImageModelRunner:
        return ImageModelRunner(self.vllm_config, self.device)


class ZipARCPUWorker(_ImageWorker, CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker over images."""

    def init_device(self) -> None:
        """Set the device up as vLLM does, then take its model runner's place."""
        super().init_device()
        self.model_runner = ImageModelRunner(self.vllm_config, self.device)
