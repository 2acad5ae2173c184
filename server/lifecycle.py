"""Whether the server stopped because it was told to: the exit code says so.

vLLM's server ends by itself when its engine died, with exit code 0, which would tell an
orchestrator that all is well.
"""

from __future__ import annotations

import asyncio
import signal
from types import FrameType
from typing import Any

from . import vllm_server

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_told_to_stop = False


def stop_requested() -> bool:
    """Whether a signal asked this process to stop since :func:`watch_signals` ran."""
    return _told_to_stop


async def watch_signals(state: Any) -> None:
    """Note the signals that vLLM stops at; it still gets them.

    The event loop hears of a signal by its wakeup descriptor, so a Python handler beside the
    loop's own takes nothing from it. But it has to be set after vLLM's.

    Args:
        state: The application's; vLLM puts its ``server`` there, once it runs.
    """
    while not vllm_server.is_started(state):
        await asyncio.sleep(0.1)
    for number in SIGNALS:
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _told_to_stop
    _told_to_stop = True
