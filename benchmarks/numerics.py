"""How often rounding tips a token: the same seeds alone, in company, and in another dtype.

    python -m benchmarks.numerics

Images under several windows are drawn one at a time, one at a time again, and together with others;
all of it in both dtypes. Writes ``benchmarks/results/numerics.json`` and ``numerics.md``. Set
``VLLM_BATCH_INVARIANT=1`` to see what vLLM's own switch does here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import machine_name
from benchmarks.pictures import PROMPTS
from benchmarks.report import RESULTS, command_line, markdown_table, write_results
from server.cli.environment import set_environment
from zipar_vllm import ImageLLM

DTYPES = ("bfloat16", "float32")
WINDOWS = (4, 8, 24)


@dataclass(frozen=True)
class Record:
    """How many pictures and tokens differ between two drawings of the same seeds."""

    dtype: str
    compared: str
    images: int
    images_differ: int
    tokens: int
    tokens_differ: int
    machine: str
    command: str


Tokens = Sequence[Sequence[int]]


def make_record(dtype: str, compared: str, first: Tokens, second: Tokens) -> Record:
    pairs = list(zip(first, second, strict=True))
    return Record(
        dtype=dtype,
        compared=compared,
        images=len(pairs),
        images_differ=sum(a != b for a, b in pairs),
        tokens=sum(len(a) for a, _ in pairs),
        tokens_differ=sum(x != y for a, b in pairs for x, y in zip(a, b, strict=True)),
        machine=machine_name(),
        command=command_line("benchmarks.numerics"),
    )


def make_table(records: Sequence[Record]) -> str:
    first = records[0]
    rows = [
        [
            record.dtype,
            record.compared,
            f"{record.images_differ} of {record.images}",
            f"{record.tokens_differ} of {record.tokens}",
        ]
        for record in records
    ]
    table = markdown_table(["", "one at a time, and", "pictures that differ", "tokens"], rows)
    return "\n".join(["# Numerics", "", f"{first.machine}; `{first.command}`", "", *table]) + "\n"


def draw(dtype: str, options: argparse.Namespace) -> Iterator[tuple[str, Tokens]]:
    """The same seeds, drawn in several ways, the first of which is one at a time."""
    count = max(options.batches)
    wishes = {} if options.temperature is None else {"temperature": options.temperature}
    with ImageLLM(dtype=dtype, kv_cache_memory_bytes=1 << 30, max_num_seqs=count) as llm:
        images = [
            llm.prepare(
                [PROMPTS[seed % len(PROMPTS)]], seed=seed, window=WINDOWS[seed % 3], **wishes
            )[0]
            for seed in range(count)
        ]
        for name in ("alone", "one at a time again"):
            yield name, [llm.decode([image])[0].tokens for image in images]
        for size in options.batches:
            batches = [images[start : start + size] for start in range(0, count, size)]
            together = [done.tokens for batch in batches for done in llm.decode(batch)]
            yield f"{size} together", together


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 44, 64])
    parser.add_argument("--temperature", type=float, help="default: the model's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    set_environment()
    records, alone = [], {}
    for dtype in DTYPES:
        ways = draw(dtype, options)
        _, alone[dtype] = next(ways)
        for name, tokens in ways:
            records.append(make_record(dtype, name, alone[dtype], tokens))
            print(records[-1], file=sys.stderr, flush=True)
    records.append(make_record(DTYPES[0], f"in {DTYPES[1]}", *alone.values()))
    write_results(options.output, "numerics", [asdict(r) for r in records], make_table(records))
    print(make_table(records))


if __name__ == "__main__":
    main()
