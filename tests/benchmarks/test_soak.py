"""The pure parts of the soak test."""

import base64
import json
import random
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.soak import (
    SIZES,
    Memory,
    Order,
    Outcome,
    Report,
    add_sizes,
    checks_of,
    count,
    digest,
    draw_order,
    fixed_bodies,
    judge,
    locust_command,
    make_table,
    memory_of,
    parse,
    read_outcomes,
    slope,
)
from zipar_vllm.models.registry import load_image_model

PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"
PICTURE = base64.b64encode(PNG).decode()
WHOLE = json.dumps({"data": [{"b64_json": PICTURE}]})
ORDER = Order({"prompt": "x", "zipar": {"window": 4}}, None)
STREAM = Order({"prompt": "x", "stream": True, "zipar": {"window": 2}}, 0.5)
COUNTS = {"requests": 10, "streaming": 5, "drawn": 6, "refused": 3, "left": 1, "lost": 0}
BOOKS = {"accepted": 7.0, "finished": 6.0, "abandoned": 1.0, "failed": 0.0, "rejected": 3.0}
IDLE = {"vllm:kv_cache_usage_perc": 0.0, "zipar:images_active": 0.0}
FLAT = Memory(warm_up_s=60.0, first_mb=1000.0, last_mb=1010.0, slope_mb_per_hour=30.0)
DIGESTS = {"window 2": "a", "window 24": "b"}


def event(kind: str, picture: str = PICTURE) -> str:
    data = json.dumps({"type": f"image_generation.{kind}", "b64_json": picture})
    return f"event: image_generation.{kind}\ndata: {data}\n\n"


def holds(**changes: object) -> list[bool]:
    given = {
        "counts": COUNTS,
        "books": BOOKS,
        "idle": IDLE,
        "memory": FLAT,
        "before": DIGESTS,
        "after": DIGESTS,
        "exit_code": 0,
    }
    return [check.holds for check in checks_of(**{**given, **changes})]


def test_the_mix_has_everything_and_is_the_same_for_a_seed():
    draw, again = random.Random("0/1"), random.Random("0/1")
    orders = [draw_order(draw, [2, 4, 8, 24], SIZES) for _ in range(2000)]
    assert orders == [draw_order(again, [2, 4, 8, 24], SIZES) for _ in range(2000)]
    assert {order.body["size"] for order in orders} == set(SIZES)
    assert {order.body["zipar"]["adaptive"] for order in orders} == {True, False}
    assert all(order.body["zipar"]["window"] <= SIZES[order.body["size"]] for order in orders)
    assert {order.body["zipar"]["window"] for order in orders} == {2, 4, 8, 12, 24}
    assert {order.body.get("stream", False) for order in orders} == {True, False}
    assert {order.body.get("partial_images", 0) for order in orders} == {0, 1, 2, 3}
    assert len({order.body["guidance_scale"] for order in orders}) == 3
    leaving = sum(order.leaves_after_s is not None for order in orders)
    assert leaving == pytest.approx(200, abs=60)


@pytest.mark.parametrize(
    ("status", "headers", "text", "is_stream", "kind"),
    [
        (200, {}, WHOLE, False, "drawn"),
        (200, {}, ": keep-alive\n\n" + event("partial_image") + event("completed"), True, "drawn"),
        (503, {"Retry-After": "1"}, "{}", False, "refused"),
        (503, {"retry-after": "2"}, "{}", True, "refused"),
        (503, {}, "{}", False, "lost"),
        (503, {"Retry-After": "soon"}, "{}", False, "lost"),
        (500, {}, "{}", False, "lost"),
        (200, {}, "", False, "lost"),
        (200, {}, '{"data": []}', False, "lost"),
        (200, {}, '{"data": null}', False, "lost"),
        (200, {}, json.dumps({"data": [{"b64_json": PICTURE[:12]}]}), False, "lost"),
        (200, {}, "", True, "lost"),
        (200, {}, event("partial_image"), True, "lost"),
        (200, {}, event("partial_image") + 'data: {"type": "error"}\n\n', True, "lost"),
        (200, {}, event("completed", "!"), True, "lost"),
    ],
)
def test_answers_are_drawn_refused_or_lost(status, headers, text, is_stream, kind):
    assert judge(status, headers, text, is_stream)[0] == kind


def test_outcomes_survive_their_file():
    outcomes = [
        Outcome("drawn", "", 200, 1.5, ORDER),
        Outcome("refused", "", 503, 0.1, STREAM, 1.0),
        Outcome("left", "", 0, 0.5, STREAM),
    ]
    read = read_outcomes(json.dumps(asdict(outcome)) for outcome in outcomes)
    assert read == outcomes
    assert count(read) == {
        "requests": 3,
        "streaming": 2,
        "drawn": 1,
        "refused": 1,
        "left": 1,
        "lost": 0,
    }


def test_the_slope_is_that_of_a_line():
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) == pytest.approx(2)
    assert slope([(1.0, 5.0)]) == 0


def test_memory_is_judged_after_warm_up():
    growing_at_first = [(5.0 * k, min(1000.0, 500 + 50.0 * k)) for k in range(100)]
    memory = memory_of(growing_at_first)
    assert (memory.first_mb, memory.last_mb, memory.slope_mb_per_hour) == (1000, 1000, 0)
    assert memory.warm_up_s == pytest.approx(123.8, abs=0.1)
    assert memory.is_flat
    leaking = memory_of([(5.0 * k, 1000 + 5.0 * k) for k in range(100)])
    assert leaking.slope_mb_per_hour == pytest.approx(3600)
    assert not leaking.is_flat


def test_a_good_run_holds():
    assert all(holds())


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": {**COUNTS, "lost": 1}},
        {"counts": {**COUNTS, "drawn": 0}},
        {"counts": {**COUNTS, "refused": 0}},
        {"counts": {**COUNTS, "left": 0}},
        {"books": {**BOOKS, "finished": 5.0}},
        {"books": {**BOOKS, "failed": 1.0}},
        {"books": {**BOOKS, "rejected": 2.0}},
        {"idle": {**IDLE, "vllm:kv_cache_usage_perc": 0.01}},
        {"memory": replace(FLAT, last_mb=1060.0)},
        {"after": {2: "a", 24: "c"}},
        {"after": {2: "a"}},
        {"exit_code": 1},
    ],
)
def test_a_bad_run_fails_in_one_place(changes):
    assert holds(**changes).count(False) == 1


def test_the_table_says_what_does_not_hold():
    checks = checks_of(COUNTS, BOOKS, IDLE, FLAT, DIGESTS, {**DIGESTS, "window 2": "c"}, 0)
    report = Report(
        machine="a machine",
        command="a command",
        seconds=90.0,
        counts=COUNTS,
        drawn_s_p50=1.0,
        drawn_s_p95=2.0,
        server=BOOKS,
        memory=FLAT,
        checks=checks,
        lost=["whole, window 4: status 500"],
        samples=[],
    )
    table = make_table(report)
    assert "1.5 minutes under load; requests 10, streaming 5, drawn 6" in table
    assert "1.00 s (p50), 2.00 s (p95)" in table
    assert "| the same bytes before and after | **no** | differs: window 2 |" in table
    assert "| no request was lost | yes | 0 of 10 |" in table
    assert "- whole, window 4: status 500" in table
    json.dumps(asdict(report))


def test_the_embedded_model_with_more_sizes(tmp_path):
    model = load_image_model(add_sizes(tmp_path, SIZES))
    assert {size: grid.columns for size, grid in model.spec.grids.items()} == SIZES
    for size, grid in model.spec.grids.items():
        pixels = model.decode(torch.zeros(1, grid.rows, grid.columns, dtype=torch.int64))
        assert f"{pixels.shape[2]}x{pixels.shape[1]}" == size


def test_fixed_pictures_sample_at_temperature_1():
    bodies = fixed_bodies([2, 24], {"192x192": 24, "96x192": 12})
    zipar = {name: body["zipar"] for name, body in bodies.items()}
    assert zipar == {
        "192x192, window 2": {"window": 2},
        "192x192, window 24": {"window": 24},
        "192x192, window 1 or more": {"window": 1, "adaptive": True},
        "96x192, window 2": {"window": 2},
        "96x192, window 1 or more": {"window": 1, "adaptive": True},
    }
    assert all(name.startswith(body["size"]) for name, body in bodies.items())
    assert {body["temperature"] for body in bodies.values()} == {1.0}
    assert len(digest(json.loads(WHOLE))) == 64


def test_options_and_command(tmp_path):
    assert (parse([]).minutes, parse(["--quick"]).minutes) == (20.0, 1.0)
    arguments = parse(["--minutes", "0.5", "--users", "3", "--max-active-images", "4"])
    arguments.outcomes = tmp_path / "outcomes.jsonl"
    command = locust_command(arguments, "http://localhost:1", [2, 24])
    assert command[command.index("--run-time") + 1] == "30s"
    assert command[command.index("--users") + 1] == "4"
    assert command[command.index("--burst-size") + 1] == "8"
    start = command.index("--draw-windows") + 1
    assert command[start : start + 2] == ["2", "24"]
