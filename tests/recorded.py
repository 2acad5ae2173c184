"""CUDA graphs without CUDA: what a capture records is done again, operation by operation.

A replay has the addresses, shapes and Python numbers of the capture, and whatever the buffers hold
by then: a value that did not go through a persistent buffer is that of the capture's batch. What
only CUDA forbids while it captures is forbidden here as well: to read a tensor on the host, to make
one from a number or to bring one from the host, shapes that depend on contents. Operators written
in Python are recorded by what they call; launches of Triton's interpreter as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
Tensor = torch.Tensor

ON_HOST: set[Any] = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.pin_memory, Tensor.cuda),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__array__),
    *(torch.tensor, torch.as_tensor),
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COMPILED = {"aten", "prims", "_C"}
"""Namespaces of operators written in C++: torch's own and vLLM's."""
UNSET = {aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.new_empty_strided}


class NotCapturedError(RuntimeError):
    """What a capture does not allow."""


class _Host(TorchFunctionMode):
    """Refuses what needs the host, where torch's dispatcher is not asked."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        moves = func in (Tensor.to, Tensor.copy_) and "non_blocking" in kwargs
        assigns_number = func is Tensor.__setitem__ and not isinstance(args[2], Tensor)
        if func in ON_HOST or moves or assigns_number:
            raise NotCapturedError(f"{func.__name__} while a step is captured")
        return func(*args, **kwargs)


class _Recorder(TorchDispatchMode):
    """Records operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace not in COMPILED:
            with self:
                return func._op_dk(torch._C.DispatchKey.CPU, *args, **kwargs)
        if _depends_on_contents(func, args):
            raise NotCapturedError(f"{func.name()} while a step is captured")
        result = func(*args, **kwargs)
        known = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        fresh = [
            tensor
            for tensor in _tensors(result)
            if tensor.untyped_storage().data_ptr() not in known
        ]
        if func.overloadpacket in UNSET:
            self.calls += [partial(_unset, own) for own in fresh]
        elif fresh:
            self.calls.append(lambda: _copy(fresh, func(*args, **kwargs), known))
        elif func._schema.is_mutable:
            self.calls.append(lambda: func(*args, **kwargs))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _depends_on_contents(func: Any, args: Any) -> bool:
    if func.overloadpacket in INDEXING:
        masks = any(own is not None and own.dtype == torch.bool for own in args[1])
        return masks or (len(args) > 2 and args[2].dim() == 0)  # a number, still on the host
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return any(tag in func.tags for tag in tags)


def _copy(olds: list[Tensor], result: Any, known: set[int]) -> None:
    news = [own for own in _tensors(result) if own.untyped_storage().data_ptr() not in known]
    for old, new in zip(olds, news, strict=True):
        old.copy_(new)


def _unset(tensor: Tensor) -> None:
    """Memory that is not set holds anything."""
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    else:
        tensor.fill_(-7)


class RecordedGraph:
    """Stands in for ``torch.cuda.CUDAGraph``."""

    replayed: list[RecordedGraph]

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def replay(self) -> None:
        self.replayed.append(self)
        for call in self.calls:
            call()


@contextmanager
def recorded_graphs() -> Iterator[list[RecordedGraph]]:
    """Replace ``torch.cuda``'s graphs; the list grows with every replay."""
    from triton.runtime.interpreter import GridExecutor

    launch = GridExecutor.__call__
    recorders: list[_Recorder] = []
    RecordedGraph.replayed = []

    def record_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        if recorders:
            recorders[-1].calls.append(lambda: launch(self, *args, **kwargs))
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            launch(self, *args, **kwargs)

    @contextmanager
    def graph(recorded: RecordedGraph, **kwargs: Any) -> Iterator[None]:
        with _Recorder() as recorder, _Host():
            recorders.append(recorder)
            yield
        recorded.calls = recorders.pop().calls

    with (
        patch.object(torch.cuda, "CUDAGraph", RecordedGraph),
        patch.object(torch.cuda, "graph", graph),
        patch.object(torch.cuda, "current_stream", lambda: None),
        patch.object(GridExecutor, "__call__", record_launch),
    ):
        yield RecordedGraph.replayed
