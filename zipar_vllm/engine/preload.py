"""Everything that an engine's process imports, in one import."""

from __future__ import annotations

from . import executor, scheduler, worker
from .vllm_api import EngineCoreProc

__all__ = ["EngineCoreProc", "executor", "scheduler", "worker"]
