"""What the engine does at this moment, from the scheduler to ``/metrics``.

vLLM carries a scheduler's statistics to its API server after every step, in a type of its own
that has no room for ours: a decoded image is more than one token a step. They travel in
``running_lora_adapters``, the one open mapping of it that nothing reads here, because the engine
refuses LoRA (:func:`~zipar_vllm.engine.arguments.check_config`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client import Gauge, Histogram

from .vllm_api import SchedulerStats, StatLoggerBase, VllmConfig

PREFIX = "zipar."

tokens_per_step = Histogram(
    "zipar:tokens_per_step",
    "Image tokens sampled in a forward pass, of all images.",
    ["engine"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)
rows_active = Gauge(
    "zipar:rows_active",
    "Rows being decoded at the same time, of all images.",
    ["engine"],
    multiprocess_mode="mostrecent",
)
guidance_lanes = Gauge(
    "zipar:guidance_lanes",
    "Unconditional lanes in use: images under guidance.",
    ["engine"],
    multiprocess_mode="mostrecent",
)


@dataclass(frozen=True, slots=True)
class ImageStats:
    """A step's statistics.

    Attributes:
        tokens: Tokens sampled in the step.
        rows: Rows in progress after it.
        guidance_lanes: Images under guidance after it.
    """

    tokens: int
    rows: int
    guidance_lanes: int

    def pack(self) -> dict[str, int]:
        """As they travel."""
        return {PREFIX + name: value for name, value in asdict(self).items()}

    @classmethod
    def unpack(cls, packed: dict[str, int]) -> ImageStats | None:
        """Undo :meth:`pack`; None for the statistics of another scheduler."""
        names = cls.__slots__
        if any(PREFIX + name not in packed for name in names):
            return None
        return cls(**{name: packed[PREFIX + name] for name in names})


class ImageStatLogger(StatLoggerBase):  # type: ignore[misc]
    """Puts :class:`ImageStats` into Prometheus (entry point ``vllm.stat_logger_plugins``)."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        engine = str(engine_index)
        self._tokens = tokens_per_step.labels(engine)
        self._rows = rows_active.labels(engine)
        self._lanes = guidance_lanes.labels(engine)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Count one step."""
        if scheduler_stats is None:
            return
        stats = ImageStats.unpack(scheduler_stats.running_lora_adapters)
        if stats is None:
            return
        if stats.tokens:
            self._tokens.observe(stats.tokens)
        self._rows.set(stats.rows)
        self._lanes.set(stats.guidance_lanes)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
