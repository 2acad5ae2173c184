"""Nothing is left of a tethered command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.tether import run_tethered

FAMILY = """
import os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL)
open("pids.tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
"""
OWNER = """
import os, sys
from pathlib import Path
from benchmarks.tether import run_tethered
run_tethered([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]), os.environ)
"""


def pids(folder: Path) -> list[int]:
    deadline = time.monotonic() + 20
    while not (folder / "pids").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return [int(word) for word in (folder / "pids").read_text().split()]


def assert_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_output_comes_back(tmp_path):
    code = "import os; print(os.getcwd(), os.environ['ANSWER'])"
    output = run_tethered([sys.executable, "-c", code], tmp_path, os.environ | {"ANSWER": "42"})
    assert output == f"{tmp_path} 42\n"


def test_failure_is_raised(tmp_path):
    with pytest.raises(subprocess.CalledProcessError, match="3"):
        run_tethered([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, os.environ)


def test_what_outlives_the_command_is_killed(tmp_path):
    run_tethered([sys.executable, "-c", FAMILY], tmp_path, os.environ)
    assert_gone(pids(tmp_path))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_all_end_with_their_owner(tmp_path, end):
    code = FAMILY + "time.sleep(600)"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, code, str(tmp_path)], stderr=subprocess.DEVNULL
    )
    family = pids(tmp_path)
    owner.send_signal(end)
    owner.wait(20)
    assert_gone(family)
