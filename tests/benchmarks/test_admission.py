"""The admission benchmark's simulation, on small pictures."""

import pytest

from benchmarks import admission
from benchmarks.admission import (
    ALL_FREE,
    FORECAST,
    PEAK,
    make_report,
    simulate,
    waiting_for_all_blocks,
)
from zipar_vllm.core.grid import Grid
from zipar_vllm.decoding.job import ImageJob
from zipar_vllm.params import ImageParams


@pytest.fixture
def small(monkeypatch):
    """Ten images of 4 x 4 tokens, two prompts of 4, a block per row; 5 blocks a lane."""
    monkeypatch.setattr(admission, "EMU3", Grid(4, 4))
    monkeypatch.setattr(admission, "PROMPTS", (4, 4))
    monkeypatch.setattr(admission, "BLOCK_SIZE", 4)
    monkeypatch.setattr(admission, "IMAGES", 10)


def test_images_that_wait_for_all_blocks_run_in_turns(small):
    """Raster order takes 16 steps, two images fit: five turns."""
    record = simulate(ALL_FREE, [4], 2.0, at_once=True)
    assert (record.passes, record.at_a_time) == (5 * 16, 2)
    assert record.latency == 16 * (1 + 2 + 3 + 4 + 5) / 5


def test_the_peak_of_images_that_start_together_is_theirs_at_the_end(small):
    """So the third starts no sooner on a cache for two; on one for two and a half it does.

    A lane needs blocks from steps 0, 1, 5, 9 and 13 on. With 25 blocks two images leave five, so a
    third may hold four while they run, two a lane: it starts when they have five steps left.
    """
    assert simulate(PEAK, [4], 2.0, at_once=True).passes == 5 * 16
    record = simulate(PEAK, [4], 2.5, at_once=True)
    assert record.passes < 5 * 16
    assert record.at_a_time == pytest.approx(10 * 16 / record.passes)


@pytest.mark.parametrize("cache", [2.5, 4.5])
@pytest.mark.parametrize("at_once", [False, True])
def test_by_forecast_more_run_at_a_time(small, cache, at_once):
    old, new = (simulate(way, [4], cache, at_once) for way in (ALL_FREE, FORECAST))
    assert new.at_a_time > old.at_a_time
    assert new.passes < old.passes
    assert new.at_a_time * new.passes == pytest.approx(10 * 16)


def test_report(small):
    records = [simulate(way, [4], 2.5, at_once=True) for way in (ALL_FREE, PEAK, FORECAST)]
    text = make_report(records, "command", "machine")
    assert "| 4 | 2.5 | all at once | 2.0 |" in text
    assert "Measured" not in text


def test_the_engine_is_made_to_wait_for_all_blocks_and_let_go():
    job = ImageJob(Grid(4, 4), ImageParams(temperature=1.0, window=4), (4,))
    before = job.block_steps(4).tolist()
    with waiting_for_all_blocks():
        assert job.block_steps(4).tolist() == [0] * 5
    assert job.block_steps(4).tolist() == before == [0, 1, 5, 9, 13]
