"""What the engine does at this moment, on ``/metrics``."""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge, Histogram

from .borrowed import get_stats
from .vllm_api import SchedulerStats, StatLoggerBase, VllmConfig

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
drafts_made = Counter(
    "zipar:drafts_made", "Tokens drawn before all they see was known, by looking ahead.", ["engine"]
)
drafts_accepted = Counter(
    "zipar:drafts_accepted", "Drafts that were right and saved work.", ["engine"]
)


class ImageStatLogger(StatLoggerBase):  # type: ignore[misc]
    """Puts statistics into Prometheus (entry point group ``vllm.stat_logger_plugins``)."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        engine = str(engine_index)
        self._tokens = tokens_per_step.labels(engine)
        self._rows = rows_active.labels(engine)
        self._lanes = guidance_lanes.labels(engine)
        self._drafts = drafts_made.labels(engine)
        self._accepted_drafts = drafts_accepted.labels(engine)

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """Count what the engine did since the last time."""
        if scheduler_stats is None:
            return
        stats = get_stats(scheduler_stats)
        if stats is None:
            return
        for _ in range(stats.passes):  # they differ by little: the same images took part
            self._tokens.observe(stats.tokens / stats.passes)
        self._rows.set(stats.rows)
        self._lanes.set(stats.guidance_lanes)
        self._drafts.inc(stats.drafts)
        self._accepted_drafts.inc(stats.accepted_drafts)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
