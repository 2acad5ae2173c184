"""From runs to records to tables."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.latency_report import (
    PARTS,
    Circumstances,
    Record,
    Run,
    Setting,
    make_record,
    make_tables,
    merge_rounds,
    step_ms,
    step_ratio_share,
)

WHERE = Circumstances("a machine", "float32", "a command", busy_cores=0.25)
TIMES = {"prepare": 0.1, "forward": 0.6, "sample": 0.2, "steps": 100}
STOCK = make_record("stock", Setting(None, 1, False), [Run(3.0, 600)], WHERE)
ZIPAR = make_record("zipar", Setting(4, 1, False), [Run(1.0, 100, TIMES)], WHERE)


def test_parts_add_up_to_the_wall_time():
    split = step_ms(Run(1.0, 100, TIMES))
    assert split == pytest.approx(
        {"prepare": 1, "forward": 6, "sample": 2, "overhead": 1, "total": 10}
    )


def test_stock_tells_only_its_total():
    assert step_ms(Run(3.0, 600)) == {**dict.fromkeys(PARTS), "total": pytest.approx(5)}


def test_records_hold_medians():
    runs = [Run(seconds, 600) for seconds in (9.0, 2.0, 4.0)]
    record = make_record("stock", Setting(None, 16, False), runs, WHERE)
    assert (record.latency_s_p50, record.images_per_s) == (4.0, 4.0)
    assert record.step_ms["total"] == pytest.approx(6.667)
    assert Record(**json.loads(json.dumps(asdict(record)))) == record


def test_share_of_the_step_ratio():
    assert step_ratio_share(ZIPAR, STOCK) == pytest.approx(3 / 6)
    assert step_ratio_share(ZIPAR, None) is None


def test_tables():
    guided = [
        replace(ZIPAR, guidance=True, requests=n, window=w, images_per_s=n / w)
        for w in (4, 24)
        for n in (1, 16)
    ]
    text = make_tables([STOCK, ZIPAR, *guided])
    assert "| stock vLLM | 600 | 3.00 | 0.333 (1.00x) |  |" in text
    assert "| ZipAR, window 4 | 100 | 1.00 | 1.000 (3.00x) | 0.50 |" in text
    assert "| ZipAR, window 4 | 100 | 1.00 | 0.250 (6.00x) | 4.000 (6.00x) | 1.00 |" in text
    assert "| ZipAR, window 4 | 1 | off | 1.00 | 6.00 | 2.00 | 1.00 | 10.00 | 40% |" in text
    assert "| stock vLLM | 1 | off |  |  |  |  | 5.00 |  |" in text


def test_tables_without_guidance_have_one_section():
    assert "With guidance" not in make_tables([STOCK, ZIPAR])


def test_tables_say_where_they_are_from():
    text = make_tables([STOCK, ZIPAR])
    assert "a machine, float32; `a command`. Other processes kept 0.25 of its cores busy" in text


def test_rounds_are_merged_to_the_median():
    def slow(seconds, busy, peak):
        return replace(STOCK, latency_s_p50=seconds, busy_cores=busy, peak_rss_mb=peak)

    merged = merge_rounds([ZIPAR, slow(5.0, 0.0, 10.0), slow(3.0, 0.3, 30.0), slow(4.0, 0.0, 20.0)])
    assert merged == [slow(4.0, 0.1, 30.0), ZIPAR]
