"""Sampling on a CPU in one pass over the logits: cpu_sampling.cpp, built by the machine's compiler.

What comes out is what torch's operations give, to the last bit. Of a row only few tokens can be the
highest with their noise; for those alone it is worked out, in float64. Where the two highest are as
close as float32 may round them, or a logit is no number, nothing is decided: that is left to torch.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .native import load_native

SOURCE = Path(__file__).with_name("cpu_sampling.cpp")
SEPARATE_ROUNDING = "-ffp-contract=off"
"""Products are rounded before they are added to, as in torch."""


def is_served(logits: torch.Tensor) -> bool:
    """Whether this file serves: float32 or bfloat16 on a CPU, and there is a compiler."""
    return (
        logits.device.type == "cpu"
        and logits.dtype in (torch.float32, torch.bfloat16)
        and logits.stride(1) == 1
        and load_library() is not None
    )


def guide(logits: torch.Tensor, guided: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance of the rows that have it.

    Args:
        logits: ``[n + k, count]``, served: n rows, then the unconditional ones of k of them.
        guided: int64 ``[k]``, those rows, ascending.
        scale: float32 ``[k]``.

    Returns:
        float32 ``[n, count]``.
    """
    total, count = logits.shape
    rows = total - len(guided)
    found = torch.empty(rows, count)
    _library().zipar_guide(
        logits.element_size(),
        logits.data_ptr(),
        logits.stride(0),
        rows,
        count,
        guided.data_ptr(),
        scale.data_ptr(),
        len(guided),
        found.data_ptr(),
    )
    return found


def highest(logits: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The place of each row's highest logit, the first of equal ones.

    Args:
        logits: ``[n, count]``, served.

    Returns:
        int64 ``[n]``, -1 where that is not decided; and how many are not.
    """
    return _draw(logits, 0.0, None, None, None, None)


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    least_temperature: float,
    min_p: torch.Tensor | None,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> tuple[torch.Tensor, int]:
    """Draw tokens: temperature, then min-p, then Gumbel-max.

    Args:
        logits: ``[n, count]``, served.
        temperature: float32 ``[n]``.
        least_temperature: Where it is lower, the highest logit is taken.
        min_p: float32 ``[n]``, or None where there is none.
        seed, position: int64 ``[n]``, as the noise takes them.

    Returns:
        The tokens, int64 ``[n]``, -1 where that is not decided; and how many are not.
    """
    log_min_p = None if min_p is None else min_p.log()
    return _draw(logits, least_temperature, temperature, log_min_p, seed, position)


def _draw(
    logits: torch.Tensor, least_temperature: float, *options: torch.Tensor | None
) -> tuple[torch.Tensor, int]:
    rows, count = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64)
    num_undecided = _library().zipar_draw(
        logits.element_size(),
        logits.data_ptr(),
        logits.stride(0),
        rows,
        count,
        least_temperature,
        *[None if own is None else own.data_ptr() for own in options],
        tokens.data_ptr(),
    )
    return tokens, num_undecided


def _library() -> Any:
    library = load_library()
    assert library is not None  # as is_served says
    return library


@cache
def load_library() -> ctypes.CDLL | None:
    """The functions, ready to be called; None where they could not be built."""
    library = load_native(SOURCE, SEPARATE_ROUNDING)
    if library is None:
        return None
    pointer: Any = ctypes.c_void_p
    integer: Any = ctypes.c_int64
    logits = [ctypes.c_int, pointer, *[integer] * 3]
    library.zipar_complements.restype = None
    library.zipar_complements.argtypes = [pointer, pointer, integer, pointer, integer, pointer]
    library.zipar_draw.restype = integer
    library.zipar_draw.argtypes = [*logits, ctypes.c_float, *[pointer] * 5]
    library.zipar_guide.restype = None
    library.zipar_guide.argtypes = [*logits, pointer, pointer, integer, pointer]
    return library
