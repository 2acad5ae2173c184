"""Let vLLM load what it compiled for a CPU before.

On a CPU vLLM 0.32 compiles by inductor itself, without its own backend in between
(``CompilationMode.DYNAMO_TRACE_ONCE``). It saves the result, but refuses it at the next start: it
asks the loaded function to ``finalize_loading``, as its own backend's functions can, and inductor's
are plain functions that need no such thing (``vllm/compilation/decorators.py``,
``_try_load_aot_compiled_fn``: "'function' object has no attribute 'finalize_loading'"). Every start
then compiles again, which takes tens of seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def loadable() -> Iterator[None]:
    """Give functions that are loaded within the block the method that vLLM asks for."""
    compiler: Any = torch.compiler
    load = compiler.load_compiled_function

    def load_and_complete(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        function = loaded._artifacts.compiled_fn
        if not hasattr(function, "finalize_loading"):
            function.finalize_loading = lambda vllm_config: None
        return loaded

    compiler.load_compiled_function = load_and_complete
    try:
        yield
    finally:
        compiler.load_compiled_function = load
