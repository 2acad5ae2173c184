"""What the latency benchmark is asked for, and what its engines answer."""

import json
from dataclasses import asdict

import pytest

from benchmarks.latency import parse, read_records, settings_of
from benchmarks.latency_report import Setting

from .test_latency_report import STOCK


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
    options = parse(["--quick"])
    assert (options.windows, options.requests) == ([4, 24], [1])
    assert (options.repeats, options.rounds) == (1, 1)
    assert options.command == "python -m benchmarks.latency --quick"


@pytest.mark.parametrize(
    ("native", "words", "dtype"),
    [
        (True, [], "bfloat16"),
        (False, [], "float32"),
        (True, ["--instructions", "avx2"], "float32"),
        (False, ["--dtype", "bfloat16"], "bfloat16"),
    ],
)
def test_dtype_is_what_the_server_would_take(monkeypatch, native, words, dtype):
    monkeypatch.setattr("benchmarks.latency.has_bfloat16", lambda: native)
    assert parse(words).dtype == dtype


def test_records_are_found_among_logs():
    listing = json.dumps([asdict(STOCK)])
    assert read_records(f"INFO\n{listing}\nbye\n") == [STOCK]
    with pytest.raises(RuntimeError, match="no records: INFO"):
        read_records("INFO")
