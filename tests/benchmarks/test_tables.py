"""The tables of README and docs, and that they are those of the result files."""

import pytest

from benchmarks.tables import PAGES, ROOT, TABLES, drafts_table, fill, http_table, latency_table


def latency(mode, window, requests, seconds, guidance=False):
    return {
        "mode": mode,
        "window": window,
        "requests": requests,
        "guidance": guidance,
        "steps": {None: 600, 24: 576, 4: 116}[window],
        "latency_s_p50": seconds,
        "images_per_s": requests / seconds,
    }


def test_latency_is_listed_from_stock_to_the_narrowest_window():
    records = [
        latency("zipar", 4, 1, 0.5),
        latency("zipar", 4, 1, 0.7, guidance=True),
        latency("zipar", 24, 1, 1.0),
        latency("stock", None, 1, 2.0),
        latency("zipar", 4, 16, 4.0),
        latency("zipar", 24, 16, 8.0),
        latency("stock", None, 16, 8.0),
    ]
    assert latency_table(records) == [
        "|  | forward passes | latency, s | images/s, 1 at a time | 16 at a time |",
        "| --- | --- | --- | --- | --- |",
        "| stock vLLM | 600 | 2.00 | 0.50 | 2.00 |",
        "| window 24, raster order | 576 | 1.00 | 1.00 (2.0x) | 2.00 (1.0x) |",
        "| window 4 | 116 | 0.50 | 2.00 (4.0x) | 4.00 (2.0x) |",
    ]


def test_drafts_are_listed_from_the_widest_window():
    def row(window, drafts, requests, passes, rate, speedup):
        return {
            "window": window,
            "drafts": drafts,
            "requests": requests,
            "passes": passes,
            "images_per_s": rate,
            "speedup": speedup,
        }

    records = [
        row(4, 0, 1, 116.0, 8.0, 1.0),
        row(4, "auto", 1, 40.4, 10.0, 1.25),
        row(24, 0, 1, 576.0, 2.0, 1.0),
        row(24, "auto", 1, 60.0, 8.0, 4.0),
    ]
    assert drafts_table(records) == [
        "|  | drafts | forward passes, 1 at a time | images/s, 1 at a time |",
        "| --- | --- | --- | --- |",
        "| window 24, raster order | 0 | 576 | 2.00 |",
        "| window 24, raster order | auto | 60 | 8.00 (4.00x) |",
        "| window 4 | 0 | 116 | 8.00 |",
        "| window 4 | auto | 40 | 10.00 (1.25x) |",
    ]


def test_http_is_listed_by_clients():
    def row(window, clients, rate, streaming=False):
        return {
            "window": window,
            "concurrency": clients,
            "images_per_s": rate,
            "streaming": streaming,
        }

    records = [
        row(4, 1, 2.0),
        row(24, 1, 1.0),
        row(4, 8, 3.0),
        row(24, 8, 2.0),
        row(4, 1, 9.0, True),
    ]
    assert http_table(records) == [
        "|  | images/s, 1 client | 8 clients |",
        "| --- | --- | --- |",
        "| window 24, raster order | 1.00 | 2.00 |",
        "| window 4 | 2.00 (2.0x) | 3.00 (1.5x) |",
    ]


def test_blocks_are_filled_and_the_rest_is_kept(monkeypatch):
    monkeypatch.setitem(TABLES, "answer", lambda: ["| 42 |"])
    page = "Before\n\n<!-- answer -->\nold\n<!-- /answer -->\n\nafter\n"
    filled = "Before\n\n<!-- answer -->\n\n| 42 |\n\n<!-- /answer -->\n\nafter\n"
    assert fill(page) == filled
    assert fill(filled) == filled
    with pytest.raises(KeyError, match="question"):
        fill("<!-- question -->\n<!-- /question -->")


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_up_to_date(page):
    text = (ROOT / page).read_text()
    assert "<!-- /" in text
    assert fill(text) == text, "run: python -m benchmarks.tables"
