"""The pure parts of the load test."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks.load import (
    PROMPTS,
    Record,
    Setting,
    Target,
    aiperf_command,
    dataset,
    draw,
    first_partials,
    make_record,
    make_tables,
    parse,
    percentile,
    problems_of,
    settings_of,
    windows_of,
    write,
)
from benchmarks.serving import Metrics, Model, Server, client_environment

TARGET = Target(
    server=Server("http://localhost:1"),
    model=Model("a-model", "192x192", 24),
    tokenizer=Path("a-folder"),
    guidance_scale=2.0,
    seed=5,
    bound_ms=2500.0,
)
RASTER = Setting(window=24, streaming=False, concurrency=4, requests=8)
STREAM = Setting(window=4, streaming=True, concurrency=4, requests=8)

# The fields that are read, as AIPerf 0.13 names and nests them.
EXPORT = {
    "aiperf_version": "0.13.0",
    "request_throughput": {"unit": "requests/sec", "avg": 0.5},
    "request_latency": {"unit": "ms", "avg": 900.0, "p50": 800.0, "p95": 1500.0, "p99": 2000.0},
    "request_count": {"unit": "requests", "avg": 8.0},
    "request_error_rate": {"unit": "%", "avg": 0.0},
    "goodput": {"unit": "requests/sec", "avg": 0.25},
    "good_request_fraction": {"unit": "ratio", "avg": 0.5},
}
FAILED = {"aiperf_version": "0.13.0", "request_error_rate": {"unit": "%", "avg": 100.0}}


def record(setting: Setting, rate: float = 0.5, **changes: object) -> Record:
    export = {**EXPORT, "request_throughput": {"avg": rate}}
    partials = [0.5, 1.0] if setting.streaming else []
    made = make_record(
        export, partials, setting, TARGET, 116.0, setting.requests, "a machine", "a command"
    )
    return replace(made, **changes)


def raw_line(phase: str, events: list[tuple[int, str]]) -> str:
    responses = [
        {"perf_ns": ns, "packets": [{"name": "event", "value": name}]} for ns, name in events
    ]
    responses.insert(0, {"perf_ns": 10, "packets": [{"name": "comment", "value": "keep-alive"}]})
    raw = {"metadata": {"benchmark_phase": phase}, "start_perf_ns": 0, "responses": responses}
    return json.dumps(raw)


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_the_command_nests_the_window_and_passes_the_rest():
    command = aiperf_command(TARGET, STREAM, Path("data"), Path("out"))
    assert command[:2] == ["aiperf", "profile"]
    assert option(command, "--endpoint-type") == "image_generation"
    assert option(command, "--concurrency") == "4"
    assert option(command, "--request-count") == "8"
    assert option(command, "--goodput") == "request_latency:2500"
    assert option(command, "--tokenizer") == "a-folder"
    assert "--streaming" in command
    assert json.loads(option(command, "--extra-inputs")) == {
        "zipar": {"window": 4},
        "guidance_scale": 2.0,
        "size": "192x192",
        "partial_images": 3,
    }


def test_without_streaming_no_partial_pictures_are_asked_for():
    command = aiperf_command(TARGET, RASTER, Path("data"), Path("out"))
    assert "--streaming" not in command
    assert "partial_images" not in json.loads(option(command, "--extra-inputs"))


def test_every_request_has_a_seed_of_its_own():
    lines = [json.loads(line) for line in dataset(10, seed=5).splitlines()]
    assert [line["extra"]["seed"] for line in lines] == list(range(5, 15))
    assert lines[8]["text"] == PROMPTS[0]


def test_settings_keep_every_place_busy_twice():
    settings = list(settings_of([4, 24], [1, 64], 32))
    assert len(settings) == 8
    assert {(s.concurrency, s.requests) for s in settings} == {(1, 32), (64, 128)}
    assert [s.streaming for s in settings] == [False] * 4 + [True] * 4


def test_first_partials_skip_warm_up_keep_alives_and_streams_without_any():
    partial, whole = "image_generation.partial_image", "image_generation.completed"
    lines = [
        raw_line("warmup", [(1, partial)]),
        raw_line("profiling", [(500_000_000, partial), (900_000_000, partial), (10**9, whole)]),
        raw_line("profiling", [(10**9, whole)]),
        json.dumps(
            {
                "metadata": {"benchmark_phase": "profiling"},
                "start_perf_ns": 0,
                "responses": None,
            }
        ),
    ]
    assert first_partials(lines) == [0.5]


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0)])
def test_percentiles_lie_between_the_closest_values(percent: float, expected: float):
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == expected


def test_there_is_no_percentile_of_nothing():
    assert percentile([], 50) is None


def test_a_record_is_in_seconds_and_fractions():
    made = record(STREAM)
    assert (made.latency_s_p50, made.latency_s_p95, made.latency_s_p99) == (0.8, 1.5, 2.0)
    assert (made.first_partial_s_p50, made.first_partial_s_p95) == (0.75, 0.975)
    assert (made.bound_s, made.goodput_per_s, made.goodput_share) == (2.5, 0.25, 0.5)
    assert (made.order, made.steps, made.error_rate) == ("zipar", 116.0, 0.0)
    assert Record(**json.loads(json.dumps(asdict(made)))) == made


def test_a_run_that_failed_altogether_is_a_record_too():
    made = make_record(FAILED, [], STREAM, TARGET, None, 0, "m", "c")
    assert (made.error_rate, made.images_per_s, made.latency_s_p50) == (1.0, 0.0, None)
    assert len(problems_of(made)) == 3
    assert "| 4 | 4 | 8 |  | 0.000 |  |  |  |  |  | 100 % | 0.000 (0 %) |" in make_tables([made])


def test_the_servers_count_has_to_agree():
    assert problems_of(record(RASTER)) == []
    assert problems_of(record(RASTER, images_finished=7)) == [
        "24 (raster), concurrency 4: 8 requests, 7 images"
    ]


def test_the_table_has_raster_order_and_ratios_to_it():
    table = make_tables([record(Setting(4, False, 4, 8), 1.5), record(RASTER), record(STREAM)])
    assert "| 4 | 4 | 8 | 116 | 1.500 (3.00x) | 0.80 | 1.50 | 2.00 | 0 % | 0.250 (50 %) |" in table
    assert "| 24 (raster) | 4 | 8 | 116 | 0.500 | 0.80 |" in table
    assert table.index("## Not streaming") < table.index("## Streaming")
    assert "first partial p50" in table


def test_files_and_plots_are_written(tmp_path: Path):
    pytest.importorskip("matplotlib")
    failed = make_record(FAILED, [], STREAM, TARGET, None, 0, "m", "c")
    write([record(RASTER), failed], tmp_path)
    listing = json.loads((tmp_path / "load.json").read_text())
    assert [raw["window"] for raw in listing] == [24, 4]
    for name in ("load_latency.png", "load_throughput.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["latency", "throughput"])
def test_plots_show_all_points(name: str):
    pytest.importorskip("matplotlib")
    axes = draw([record(RASTER, 0.5), record(STREAM, 5.0)], name).axes
    values = {"latency": [0.8, 1.5], "throughput": [0.5, 5.0]}[name]
    for axis in axes:
        low, high = axis.get_ylim()
        assert low <= min(values)
        assert high >= max(values)


def test_one_mode_alone_can_be_plotted():
    pytest.importorskip("matplotlib")
    assert len(draw([record(STREAM)], "latency").axes) == 1


def test_options():
    usual, quick = parse([]), parse(["--quick"])
    assert usual.concurrency == [1, 4, 16, 64]
    assert windows_of(usual, 24) == [2, 4, 8, 24]
    assert (quick.concurrency, quick.requests) == ([1, 4], 4)
    assert windows_of(quick, 24) == [4, 24]
    given = parse(["--quick", "--concurrency", "2", "--windows", "24", "8", "99"])
    assert (given.concurrency, windows_of(given, 24)) == ([2], [8, 24])
    assert given.command == "python -m benchmarks.load --quick --concurrency 2 --windows 24 8 99"


def test_metrics_are_summed_over_labels():
    metrics = Metrics(
        "# TYPE zipar:images_failed counter\n"
        'zipar:images_failed_total{reason="abandoned"} 2.0\n'
        'zipar:images_failed_total{reason="TimeoutError"} 1.0\n'
    )
    assert metrics.total("zipar:images_failed_total") == 3
    assert metrics.total("zipar:images_failed_total", reason="abandoned") == 2
    assert metrics.total("zipar:nothing") == 0


def test_clients_are_not_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" not in client_environment()
