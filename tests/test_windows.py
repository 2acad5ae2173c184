"""Windows compared, over a fake model: what is drawn, kept, resumed and summed up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from tests.fakes import FakeModel
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageOptions, parse
from zipar_vllm.prepare import PreparedImage, make_seeds, prepare_images
from zipar_vllm.windows import (
    Record,
    Setting,
    WindowComparison,
    default_windows,
    interval,
    make_table,
    narrowest,
    psnr,
)

PROMPTS = ["red apple", "house", "pizza"]


class FakeLLM:
    """Draws a picture of one code: the seed's in raster order, one more under narrower windows.

    Its score of a picture is minus its code for every token.
    """

    def __init__(self) -> None:
        self.model = FakeModel()
        self.drawn: list[tuple[str, Any]] = []

    def prepare(self, prompts: Sequence[str], *, seed: Any, **options: Any) -> list[PreparedImage]:
        wishes = parse(ImageOptions, options)
        seeds = make_seeds(seed, len(prompts))
        return [
            prepare_images(self.model, prompt, wishes, [own])[0]  # type: ignore[arg-type]
            for prompt, own in zip(prompts, seeds, strict=True)
        ]

    def generate(
        self, prompt: str, *, seed: int = 0, progress: bool = True, **options: Any
    ) -> list[Any]:
        (image,) = self.prepare([prompt], seed=seed, **options)
        self.drawn.append((prompt, image.params.window))
        grid, params = image.grid, image.params
        code = seed % 8 + (params.window < grid.columns)
        codes = torch.full((1, grid.rows, grid.columns), code)
        picture = Image.fromarray(self.model.decode(codes)[0].numpy())
        tokens = [*[10 + code] * grid.columns, 3] * grid.rows
        steps = grid.num_steps(params.window) + (params.policy == "adaptive_window") * seed
        return [SimpleNamespace(tokens=tokens, image=picture, steps=steps, seconds=steps / 100)]

    def score(
        self, images: Sequence[PreparedImage], pictures: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float32]]:
        return [
            -np.array(codes, dtype=np.float32).reshape(image.grid.rows, image.grid.columns)
            for image, codes in zip(images, pictures, strict=True)
        ]


def compare(llm: FakeLLM, folder: Path, **options: Any) -> WindowComparison:
    options = {"prompts": PROMPTS, "windows": [4, 2], "seed": 1, **options}
    return WindowComparison(llm, "fake", options.pop("prompts"), folder, **options)  # type: ignore[arg-type]


def test_figures_of_every_window(tmp_path: Path) -> None:
    raster, four, two = compare(FakeLLM(), tmp_path).draw(progress=False)
    assert [raster.window, four.window, two.window] == [8, 4, 2]
    assert (raster.steps, four.steps, two.steps) == (48, 28, 18)
    assert (raster.seconds_p50, two.seconds_p50) == (0.48, 0.18)
    assert (raster.nats, four.nats) == (2, 3)  # codes 1, 2, 3, and one more
    assert 1 <= raster.nats_low < raster.nats < raster.nats_high <= 3
    assert (four.loss, four.loss_low, four.loss_high) == (1, 1, 1)
    assert (raster.loss, raster.psnr_db) == (0, None)
    assert four.psnr_db == pytest.approx(10 * np.log10(255**2 / 10**2), abs=0.01)


def test_adaptive_windows_beside_fixed_ones(tmp_path: Path) -> None:
    comparison = compare(FakeLLM(), tmp_path, adaptive=True)
    assert [str(setting) for setting in comparison.settings] == [
        "8",
        "4",
        "4 or more",
        "2",
        "2 or more",
    ]
    record = comparison.draw(progress=False)[2]
    assert (record.steps, record.steps_min, record.steps_max) == (30, 29, 31)


def test_it_goes_on_where_it_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = compare(FakeLLM(), tmp_path).draw(progress=False)
    (tmp_path / "window-2" / "0002.json").unlink()
    llm = FakeLLM()
    assert compare(llm, tmp_path).draw() == first
    assert llm.drawn == [("red apple", 2), ("house", 2)]  # the first is the warm-up
    assert "9/9" in capfd.readouterr().err
    llm = FakeLLM()
    assert compare(llm, tmp_path).draw(progress=False) == first
    assert llm.drawn == []
    assert len(compare(llm, tmp_path, prompts=[*PROMPTS, "cat"]).draw(progress=False)) == 3
    assert {prompt for prompt, _ in llm.drawn[1:]} == {"cat"}


@pytest.mark.parametrize(
    ("other", "told"), [({"seed": 2}, "seed 1"), ({"temperature": 1.0}, "fewer options")]
)
def test_pictures_of_other_requests_are_left_alone(
    tmp_path: Path, other: dict[str, Any], told: str
) -> None:
    compare(FakeLLM(), tmp_path).draw(progress=False)
    before = (tmp_path / "window-8" / "0001.json").read_text()
    assert json.loads(before)["request"]["prompt"] == "red apple"
    with pytest.raises(InvalidOptionError, match=rf"^output: .*0001.json .*\({told}\)"):
        compare(FakeLLM(), tmp_path, **other).draw(progress=False)
    assert (tmp_path / "window-8" / "0001.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "field"),
    [({"windows": [9]}, "window"), ({"prompts": ["one"]}, "prompts"), ({"size": "1x1"}, "size")],
)
def test_bad_options_are_named_before_anything_is_drawn(
    tmp_path: Path, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidOptionError, match=f"^{field}: "):
        compare(FakeLLM(), tmp_path, **options)


def test_the_sheet_has_a_column_per_window(tmp_path: Path) -> None:
    comparison = compare(FakeLLM(), tmp_path)
    sheet = np.asarray(comparison.sheet(comparison.draw(progress=False)))
    assert sheet.shape == (62 + 3 * (120 + 18), 3 * 166 + 6, 3)
    first_row = sheet[62 + 60]
    assert [first_row[6 + 80 + 166 * column, 0] for column in range(3)] == [10, 20, 20]


def test_default_windows() -> None:
    assert default_windows(24, 4) == [16, 8, 4, 2, 1]
    assert default_windows(16, 7) == [8, 7, 4, 2, 1]
    assert default_windows(1, None) == []


def test_the_interval_of_a_mean() -> None:
    """Of many values it is the normal one."""
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = interval(values.tolist())
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.03)
    assert high == pytest.approx(values.mean() + error, abs=0.03)


RASTER = Record(
    window=8,
    adaptive=False,
    pictures=3,
    steps=64,
    steps_min=64,
    steps_max=64,
    seconds_p50=0.5,
    nats=2,
    nats_low=1.9,
    nats_high=2.1,
    loss=0,
    loss_low=0,
    loss_high=0,
    psnr_db=None,
)
FOUR = replace(RASTER, window=4, steps=36, loss=0.01, loss_low=0.0, loss_high=0.02, psnr_db=50)
TWO = replace(
    FOUR, window=2, steps=22, steps_min=21, steps_max=23, adaptive=True, loss=0.03, loss_high=0.05
)


@pytest.mark.parametrize(("bound", "window"), [(0, 8), (0.01, 8), (0.02, 4), (0.04, 4), (0.05, 2)])
def test_the_narrowest_window_within_a_bound(bound: float, window: int) -> None:
    assert narrowest([RASTER, FOUR, TWO], bound).window == window


def test_the_table() -> None:
    lines = make_table("Title", [RASTER, TWO], "Of three.").splitlines()
    assert lines[:3] == ["# Title", "", "Of three."]
    assert lines[-2] == "| 8 (raster) | 64 | 0.50 | 2.000 (1.900 to 2.100) |  |  |"
    assert lines[-1].startswith("| 2 or more | 22 (21 to 23) | 0.50 | ")
    assert lines[-1].endswith(" | 0.030 (0.000 to 0.050) | 50.0 |")


def test_psnr() -> None:
    black = np.zeros((4, 4, 3), dtype=np.uint8)
    assert psnr(black, black) == 99
    assert psnr(black, black + 255) == 0
    assert str(Setting(4, True)) == "4 or more"
