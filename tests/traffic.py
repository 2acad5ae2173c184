"""Counts what the host asks of a GPU, over tensors of torch's "meta" device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
MEMORY = {aten.empty, aten.new_empty, aten.empty_like, aten.empty_strided, aten.detach}


class Traffic(TorchDispatchMode):
    """Counts copies between host and device, and launches on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        self.copies_in = self.copies_out = self.launches = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        sources = {tensor.device.type for tensor in before}
        is_copy = func.overloadpacket in (aten._to_copy, aten.to, aten.copy_)
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True))
        if is_copy and kwargs.get("device") == torch.device("cpu") and sources == {"meta"}:
            self.copies_out += 1
            self.waits += waits
            return torch.empty(args[0].shape, dtype=args[0].dtype)
        result = func(*args, **kwargs)
        after = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not any(tensor.device.type == "meta" for tensor in after):
            return result
        if is_copy and "cpu" in sources:
            self.copies_in += 1
            self.waits += waits
        elif func.overloadpacket not in MEMORY:
            known = {tensor.untyped_storage()._cdata for tensor in before}
            writes = func._schema.is_mutable
            writes |= any(tensor.untyped_storage()._cdata not in known for tensor in after)
            self.launches += writes  # else it is a view
        return result
