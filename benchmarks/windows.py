"""Compare windows, fixed and adaptive: forward passes, seconds, and what becomes of the pictures.

``python -m benchmarks.windows`` draws everything the embedded model knows, as ``zipar windows``
does, and writes ``benchmarks/results/windows.json`` and ``windows.md``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_name
from benchmarks.report import RESULTS, command_line, write_results
from zipar_vllm import ImageLLM
from zipar_vllm.windows import WindowComparison, make_table

WINDOWS = (8, 4, 2, 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windows", description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS))
    parser.add_argument("--pictures", type=int, help="default: one of all the model knows")
    parser.add_argument("--seed", type=int, default=1, help="of the first picture, then one more")
    parser.add_argument("--temperature", type=float, help="default: the model's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    options = parser.parse_args()
    wishes = {} if options.temperature is None else {"temperature": options.temperature}
    with ImageLLM() as llm, tempfile.TemporaryDirectory() as folder:
        known: Any = llm.model.spec.details["concepts"]
        records = WindowComparison(
            llm,
            "the embedded model",
            known[: options.pictures],
            Path(folder),
            windows=options.windows,
            adaptive=True,
            seed=options.seed,
            **wishes,
        ).draw()
    source = {"machine": machine_name(), "command": command_line("benchmarks.windows")}
    told = f"{source['machine']}; `{source['command']}`; {records[0].pictures} pictures per line"
    text = make_table("Windows", records, f"{told}, one at a time")
    listing = [asdict(record) | source for record in records]
    write_results(options.output, "windows", listing, text)
    print(text)


if __name__ == "__main__":
    main()
