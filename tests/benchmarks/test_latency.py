"""The pure parts of the latency benchmark."""

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.latency import (
    PARTS,
    Record,
    Run,
    Setting,
    _json_line,
    make_record,
    make_tables,
    parse,
    settings_of,
    step_ms,
    step_ratio_share,
)

TIMES = {"prepare": 0.1, "forward": 0.6, "sample": 0.2, "steps": 100}
STOCK = make_record("stock", Setting(None, 1, False), [Run(3.0, 600)], "a machine", "a command")
ZIPAR = make_record("zipar", Setting(4, 1, False), [Run(1.0, 100, TIMES)], "a machine", "c")


def test_parts_add_up_to_the_wall_time():
    split = step_ms(Run(1.0, 100, TIMES))
    assert split == pytest.approx(
        {"prepare": 1, "forward": 6, "sample": 2, "overhead": 1, "total": 10}
    )


def test_stock_tells_only_its_total():
    assert step_ms(Run(3.0, 600)) == {**dict.fromkeys(PARTS), "total": pytest.approx(5)}


def test_records_hold_medians():
    runs = [Run(seconds, 600) for seconds in (9.0, 2.0, 4.0)]
    record = make_record("stock", Setting(None, 16, False), runs, "m", "c")
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
    assert "| ZipAR, window 4 | off | 1.00 | 6.00 | 2.00 | 1.00 | 10.00 |" in text
    assert "| stock vLLM | off |  |  |  |  | 5.00 |" in text


def test_tables_without_guidance_have_one_section():
    assert "With guidance" not in make_tables([STOCK, ZIPAR])


def test_settings():
    assert settings_of("stock", [2, 4], [1, 4]) == [
        Setting(None, 1, False),
        Setting(None, 4, False),
    ]
    zipar = settings_of("zipar", [2], [1, 4, 16])
    assert [(s.requests, s.guidance) for s in zipar] == [
        (1, False),
        (4, False),
        (16, False),
        (1, True),
        (16, True),
    ]


def test_quick_is_one_short_run():
    arguments = parse(["--quick"])
    assert (arguments.windows, arguments.requests, arguments.repeats) == ([4], [1], 1)
    assert arguments.command == "python -m benchmarks.latency --quick"


def test_records_are_found_among_logs():
    listing = json.dumps([asdict(STOCK)])
    assert [Record(**raw) for raw in _json_line(f"INFO\n{listing}\nbye\n")] == [STOCK]
    with pytest.raises(RuntimeError, match="no records: INFO"):
        _json_line("INFO")
