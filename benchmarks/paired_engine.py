"""Draw as told: the engine of one tree, for :mod:`benchmarks.compare`.

A line of standard input is a setting, ``[window, requests, guidance]``; the answer is a line with
the seconds it took. Ends with its standard input. The tree's own ``benchmarks.latency`` starts the
engine, so the tree has to be on the path, and no other.
"""

from __future__ import annotations

import json
import os
import signal
import sys

ANSWER = "seconds: "


def main() -> None:
    from benchmarks import latency
    from benchmarks.latency_report import Setting
    from zipar_vllm.models import DEMO_PATH

    options = latency.parse([])
    run = latency.zipar_engine(
        DEMO_PATH,
        dtype=options.dtype,
        enforce_eager=False,
        gpu_memory_utilization=0.3,  # of the machine's memory: there are two
    )
    print(ANSWER, 0, flush=True)
    for line in sys.stdin:
        print(ANSWER, run(Setting(*json.loads(line))).seconds, flush=True)
    os.killpg(0, signal.SIGKILL)  # and whatever the engine started


if __name__ == "__main__":
    main()
