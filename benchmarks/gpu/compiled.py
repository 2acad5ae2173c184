"""Compile the Triton kernels for GPUs that need not be there, and say what they take of them.

    python -m benchmarks.gpu.compiled [--sample] [--processes 4]

Every variant in use goes through Triton and its own ptxas, from the very launches that serve a
step. It needs torch and triton alone, no GPU and no driver. Exits with 1 if any variant takes more
than the bounds below. "Compiled for" is all that it says: nothing runs.

The whole list takes minutes; ``--sample``, every third variant for one of the GPUs and the most
usual one for all, is what the ordinary tests run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from zipar_vllm.attention import triton_kernels
from zipar_vllm.attention.interface import AttentionInputs
from zipar_vllm.attention.triton_attention import FP8, TritonAttention, tile_rows
from zipar_vllm.decoding import triton_sampling

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that a block may have, by compute capability (CUDA C++ Programming Guide, table of technical
specifications per compute capability).
"""
REGISTERS = 65536
"""Of a multiprocessor, all of these GPUs alike."""
SPILLED_BYTES = 128
"""Per thread, at most: 32 registers of 255."""

FP8_CAPABILITY = 89

MODELS = {
    "Emu3": (32, 8, 128),
    "7B, a key head per head": (32, 32, 128),
    "LlamaGen-XL": (20, 20, 64),
    "LlamaGen-3B": (32, 32, 100),
    "heads of 80": (32, 32, 80),
    "heads of 256": (16, 8, 256),
}
"""Heads, key heads and their size."""

VOCABULARIES = {"Emu3": 32768, "LlamaGen": 16384, "Lumina": 8192, "embedded": 256, "uneven": 1000}
"""Image tokens; a number that is no multiple of 16 is read in narrower loads."""


@dataclass(frozen=True)
class Variant:
    """What a launch is compiled for."""

    model: str
    dtype: torch.dtype
    rows: int
    block_size: int = 64
    is_fp8: bool = False

    def __str__(self) -> str:
        dtype = f"{self.dtype}".removeprefix("torch.") + (" fp8" * self.is_fp8)
        return f"{self.model}, {dtype}, {self.rows} rows, blocks of {self.block_size}"

    def launch(self) -> None:
        """Run a step's attention over tensors without contents: one lane, split into parts."""
        heads, kv_heads, size = MODELS[self.model]
        group = heads // kv_heads
        count = max(self.rows // group, 1)
        step = AttentionInputs(
            positions=_meta(count, dtype=torch.int64),
            limits=_meta(count, dtype=torch.int32),
            slot_mapping=_meta(count, dtype=torch.int64),
            lanes=np.zeros(1, dtype=np.int64),
            lane_starts=np.array([0, count]),
            last_positions=np.array([8191]),
            num_decoding=1,
            orders=_meta(2, 8192, dtype=torch.int32),
            block_table=_meta(2, 8192 // self.block_size, dtype=torch.int64),
            block_size=self.block_size,
        )
        query, output = (_meta(count, heads, size, dtype=self.dtype) for _ in range(2))
        key, value = (_meta(count, kv_heads, size, dtype=self.dtype) for _ in range(2))
        kernel = TritonAttention(group, size, self.dtype, torch.device("meta"))
        shape = (2, kv_heads, self.block_size, 2 * (-(-size // 8) * 8))
        cache = _meta(*shape, dtype=FP8 if self.is_fp8 else self.dtype)
        kernel.run(query, key, value, cache, kernel.prepare(step), 0.1, output, 0.5, 0.5)


@dataclass(frozen=True)
class SamplingVariant:
    """What a step's sampling is compiled for."""

    model: str
    dtype: torch.dtype
    is_scored: bool = False
    has_drafts: bool = False

    def __str__(self) -> str:
        dtype = f"{self.dtype}".removeprefix("torch.")
        return f"{self.model}, {VOCABULARIES[self.model]} tokens, {dtype}" + (
            ", scored" * self.is_scored + ", with drafts" * self.has_drafts
        )

    def launch(self) -> None:
        """Sample 64 tokens of a table of 4,096, all without contents."""
        names = [field.name for field in fields(triton_sampling.SampleColumns)]
        floats = {"guidance_scale", "temperature", "top_p", "min_p"}
        columns = {
            name: _meta(64, dtype=torch.float32 if name in floats else torch.int64)
            for name in names
        }
        drafts = triton_sampling.DraftColumns(
            _meta(64, dtype=torch.int64),
            _meta(64, dtype=torch.int32),
            _meta(8, VOCABULARIES[self.model], dtype=torch.float32),
            512,
            _meta(64, dtype=torch.int32),
        )
        triton_sampling.sample(
            _meta(128, VOCABULARIES[self.model], dtype=self.dtype),
            triton_sampling.SampleColumns(**columns),
            _meta(4096, dtype=torch.int64),
            32,
            _meta(4096, 2, dtype=torch.float32) if self.is_scored else None,
            drafts if self.has_drafts else None,
        )


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes of a GPU: registers and spilled bytes per thread, shared bytes."""

    capability: int
    variant: Variant | SamplingVariant
    kernel: str
    warps: int
    registers: int
    spilled: int
    shared: int

    def excess(self) -> str:
        """What it takes too much of, if anything."""
        problems = {
            f"{self.spilled} bytes spilled per thread": self.spilled > SPILLED_BYTES,
            f"{self.shared} bytes of shared memory": self.shared
            > SHARED_MEMORY[self.capability] * 1024,
            f"{self.registers} registers per thread": self.registers * self.warps * 32 > REGISTERS,
        }
        return ", ".join(problem for problem, is_so in problems.items() if is_so)


MAIN = (Variant("Emu3", torch.bfloat16, 64), SamplingVariant("Emu3", torch.bfloat16, True, True))


def variants() -> Iterator[Variant | SamplingVariant]:
    """All in use: models times dtypes times tiles, other block sizes, float8 caches; sampling."""
    for model, (_, _, size) in MODELS.items():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            rows = 16
            while rows == tile_rows(rows, size, dtype):
                yield Variant(model, dtype, rows)
                rows *= 2
    for block_size in (16, 32, 128):
        yield Variant("Emu3", torch.bfloat16, 64, block_size)
    for model in MODELS:
        for rows in (16, 64):
            yield Variant(model, torch.bfloat16, rows, is_fp8=True)
    yield Variant("Emu3", torch.float16, 64, is_fp8=True)
    yield Variant("Emu3", torch.float32, 32, is_fp8=True)
    for model in VOCABULARIES:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for is_scored, has_drafts in product((False, True), repeat=2):
                yield SamplingVariant(model, dtype, is_scored, has_drafts)


def jobs(sample: bool) -> list[tuple[int, Variant | SamplingVariant]]:
    """What is to be compiled for which GPU."""
    capabilities = list(SHARED_MEMORY)
    found = []
    for index, variant in enumerate(variants()):
        for capability in capabilities:
            if isinstance(variant, Variant) and variant.is_fp8 and capability < FP8_CAPABILITY:
                continue
            is_sampled = index % 3 == 0 and capability == capabilities[index // 3 % 6]
            if not sample or variant in MAIN or is_sampled:
                found.append((capability, variant))
    return found


class _Target:
    """Triton's driver of a GPU that is not there: it only says for what to compile."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> int:
        return self._capability  # so that Triton keeps what it compiled apart

    def get_current_stream(self, device: int) -> int:
        return 0


class _Recorder:
    """Stands in for a kernel: compiles what it is launched with."""

    def __init__(self, kernel: Any, found: dict[str, Any]) -> None:
        self._kernel = kernel
        self._found = found

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            compiled = self._kernel.warmup(*args, grid=grid, **kwargs)
            self._found[self._kernel.__name__] = compiled

        return launch


KERNELS = {
    (module, name): getattr(module, name)
    for module, names in (
        (triton_kernels, ("write", "attend", "merge")),
        (triton_sampling, ("sample_tokens",)),
    )
    for name in names
}


def compile_for(capability: int, variant: Variant | SamplingVariant) -> list[Compiled]:
    """Compile a variant's kernels, or take them from Triton's cache."""
    found: dict[str, Any] = {}
    triton.runtime.driver.set_active(_Target(capability))
    for (module, name), kernel in KERNELS.items():
        setattr(module, name, _Recorder(kernel, found))
    variant.launch()
    return [
        Compiled(
            capability,
            variant,
            name,
            kernel.metadata.num_warps,
            *_resources(kernel.asm["cubin"]),
            kernel.metadata.shared,
        )
        for name, kernel in found.items()
    ]


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a compiled kernel, as its header tells."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    match = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout)
    assert match is not None, told.stdout
    return int(match[1]), int(match[2])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", action="store_true", help="what the tests compile")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(words)
    excess = 0
    with ProcessPoolExecutor(options.processes) as pool:
        for results in pool.map(compile_for, *zip(*jobs(options.sample), strict=True)):
            for result in results:
                print(
                    f"sm_{result.capability} {result.kernel:6} {result.variant}: "
                    f"{result.warps} warps, "
                    f"{result.registers} registers, {result.spilled} bytes spilled, "
                    f"{result.shared} bytes shared {result.excess()}",
                    flush=True,
                )
                excess += bool(result.excess())
    print(f"{excess} beyond the bounds")
    return int(excess > 0)


if __name__ == "__main__":
    sys.exit(main())
