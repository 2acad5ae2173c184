"""Triton's kernels without a GPU: under its interpreter, which works on numpy arrays.

Where there is a GPU they are compiled, and the same tests run on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from unittest.mock import patch


@cache
def has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def interpret() -> None:
    """Have kernels interpreted that are defined from now on, in this process alone."""
    # Triton's own functions take the mode from the environment that they are imported in.
    with patch.dict(os.environ, TRITON_INTERPRET="1"):
        import triton

    triton.knobs.runtime.interpret = True
    _multiply_bfloat16()
    _round_float8()
    _compute_functions()


def _multiply_bfloat16() -> None:
    """Teach the interpreter products of bfloat16, which it keeps as uint16: exact in float32."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    multiply = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self, a, b, *others):
        return multiply(self, widened(a), widened(b), *others)

    InterpreterBuilder.create_dot = create_dot


def _round_float8() -> None:
    """Have the interpreter round to float8 as GPUs and torch do; it cuts the bits off."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float
    twins = {
        tl.float8e4nv: torch.float8_e4m3fn,
        tl.float16: torch.float16,
        tl.bfloat16: torch.bfloat16,
        tl.float32: torch.float32,
    }

    def rounded(numbers, source, target, rounding):
        if tl.float8e4nv not in (source, target):
            return convert(numbers, source, target, rounding)
        bits = torch.from_numpy(np.array(numbers, order="C")).view(twins[source])
        integers = getattr(torch, f"uint{target.primitive_bitwidth}")
        return bits.to(twins[target]).view(integers).numpy()

    interpreter._convert_float = rounded


def _compute_functions() -> None:
    """Teach the interpreter CUDA's functions of float32: as torch computes them, here on a CPU."""
    import torch
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import TensorHandle

    def taught(function):
        def compute(x):
            numbers = function(torch.from_numpy(x.handle.data.copy())).numpy()
            return tl.tensor(TensorHandle(numbers, tl.float32), x.type)

        return compute

    for name in ("exp", "log", "log1p"):
        setattr(libdevice, name, taught(getattr(torch, name)))
