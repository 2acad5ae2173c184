"""Import the engine while the server is imported: each takes as long as the other.

Python's fork server does the importing in a process of its own, from the first second on; vLLM's
engine process is forked from it once the server is ready to start it, with everything imported.
"""

from __future__ import annotations

import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess

ENGINE_MODULE = "zipar_vllm.engine.preload"


class _Process(ForkServerProcess):
    """A process with its parent's environment as it is at the start.

    A fork server's children would have the fork server's, but vLLM tells its engine by variables.
    """

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.update(self._environment)
        super().run()


class PreloadedContext(ForkServerContext):
    """A multiprocessing context whose processes have the engine imported."""

    Process = _Process


def preload_engine() -> PreloadedContext:
    """Begin to import the engine, in the background."""
    context = PreloadedContext()
    context.set_forkserver_preload([ENGINE_MODULE])
    forkserver.ensure_running()
    return context
