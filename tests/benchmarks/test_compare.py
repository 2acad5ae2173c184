"""The pure parts of the comparison with another commit."""

from benchmarks.compare import make_records, make_table

BEFORE = [{(4, 1, False): 2.0, (24, 16, True): 1.0}, {(4, 1, False): 4.0, (24, 16, True): 1.0}]
AFTER = [{(4, 1, False): 3.0, (24, 16, True): 0.9}, {(4, 1, False): 4.0, (24, 16, True): 0.8}]


def test_the_ratio_is_of_rounds_not_of_medians():
    first, second = make_records(BEFORE, AFTER, "abc", "m", "c")
    assert (first.window, first.requests, first.guidance) == (4, 1, False)
    assert first.ratio == 1.25  # between 1.5 and 1.0
    assert second.ratio == 0.85
    assert second.after == [0.9, 0.8]


def test_table():
    text = make_table(make_records(BEFORE, AFTER, "abc", "m", "c"))
    assert "# Compared with abc" in text
    assert "| 4 | 1 | off | 3.000 | 3.500 | 1.250 |" in text
    assert "| 24 | 16 | on | 1.000 | 0.850 | 0.850 |" in text
