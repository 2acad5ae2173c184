"""The comparison with another commit, over engines that are none."""

import pytest

from benchmarks.compare import Engine, make_record, make_table, measure
from benchmarks.paired_engine import ANSWER

from .test_tether import assert_gone

ABOUT = "abc", "m", "c"


def test_the_ratio_is_of_pairs_not_of_medians():
    """The machine becomes four times slower; each pair sees it."""
    record = make_record((4, 1, False), ([1.0, 4.0, 4.0], [0.5, 2.0, 4.0]), *ABOUT)
    assert (record.window, record.requests, record.guidance) == (4, 1, False)
    assert record.ratio == 2.0
    assert (record.low, record.high) == (1.0, 2.0)


@pytest.mark.parametrize(("pairs", "outside"), [(1, 0), (5, 0), (20, 5), (100, 40)])
def test_the_interval_narrows_with_pairs(pairs, outside):
    record = make_record((4, 1, False), ([1.0 + n for n in range(pairs)], [1.0] * pairs), *ABOUT)
    assert (record.low, record.high) == (1.0 + outside, float(pairs - outside))


def test_engines_draw_in_turns(monkeypatch):
    monkeypatch.setattr("benchmarks.compare.PAUSE", 0.0)
    drawn = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def draw(self, setting):
            drawn.append(self.name)
            return float(len(drawn))

    seconds = measure((Fake("old"), Fake("new")), (4, 1, False), 2)
    assert drawn == ["old", "new", "old", "new", "new", "old"]
    assert seconds == [[3.0, 6.0], [4.0, 5.0]]


def test_table():
    records = [
        make_record((4, 1, False), ([0.5] * 3, [0.25] * 3), *ABOUT),
        make_record((24, 16, True), ([8.0] * 3, [16.0] * 3), *ABOUT),
    ]
    text = make_table(records, 0.25)
    assert "kept 0.25 of its cores busy" in text
    assert "# Compared with abc" in text
    assert "| 4 | 1 | off | 2.000 | 4.000 | 2.000 | 2.000 to 2.000 |" in text
    assert "| 24 | 16 | on | 2.000 | 1.000 | 0.500 | 0.500 to 0.500 |" in text


def test_an_engine_ends_with_its_block(tmp_path, monkeypatch):
    """And what it started with it, although it never was ready."""
    program = tmp_path / "benchmarks" / "paired_engine.py"
    program.parent.mkdir()
    program.write_text(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"print({ANSWER!r}, child.pid, flush=True)\n"
        "child.wait()\n"
    )
    monkeypatch.setattr("benchmarks.compare.ROOT", tmp_path)
    with Engine(tmp_path) as engine:
        child = int(engine._answer())
    assert_gone([child])


def test_an_engine_that_does_not_start_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.compare.ROOT", tmp_path)  # where there is none
    with pytest.raises(RuntimeError, match="an engine ended with code 2"), Engine(tmp_path) as own:
        own.wait()
