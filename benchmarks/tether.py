"""Run a command of which nothing is left, however the benchmark that runs it ends.

As a program, ``python tether.py COMMAND ...`` runs the command in a process group of its own, ends
with its exit code, and kills the whole group as soon as its own standard input closes: which it
does when whoever holds the other end dies, of whatever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_tethered(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Run a command to its end and return its standard output; standard error is passed on.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    tethered = [sys.executable, str(Path(__file__).resolve()), *command]
    with subprocess.Popen(
        tethered,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us; it ends by its standard input
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            output = process.stdout.read()
        finally:
            process.stdin.close()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command), output)
    return output


def _hold(command: Sequence[str]) -> int:
    """Run the command in a group of its own until it ends or standard input does."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)

    def end_group() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        end_group()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    end_group()  # whoever outlived it
    return code


if __name__ == "__main__":
    code = _hold(sys.argv[1:])
    os._exit(code if code >= 0 else 128 - code)
