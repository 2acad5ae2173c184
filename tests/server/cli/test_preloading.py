"""Processes that are forked off a server with everything imported."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import os, sys
from server.cli import preloading

def tell(queue):
    queue.put(("colorsys" in sys.modules, os.environ.get("SET_LATER"), os.getppid()))

if __name__ == "__main__":
    preloading.ENGINE_MODULE = "colorsys"  # imported by nothing else, and fast
    context = preloading.preload_engine()
    os.environ["SET_LATER"] = "yes"
    queue = context.Queue()
    process = context.Process(target=tell, args=(queue,))
    process.start()
    imported, variable, parent = queue.get(timeout=60)
    process.join(60)
    print(imported, variable, parent != os.getpid(), process.exitcode)
"""


def test_a_process_has_the_module_and_todays_environment(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "script.py")
    with open(script, "w") as file:
        file.write(CODE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.split() == ["True", "yes", "True", "0"], done.stderr
