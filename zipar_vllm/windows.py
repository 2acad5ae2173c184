"""Compare windows: the same prompts and seeds under each, and what it costs the pictures.

Two figures judge a picture beside the eye. Its *nats* are the model's own: mean negative
log-probability of its tokens, each predicted from all before it in raster order, without
guidance, temperature and cuts; broken shapes are unlikely. A window's *loss* is how many nats more
its pictures have than the raster ones of the same prompts and seeds. *PSNR* is against those too.

Intervals are of 95 %, by the bootstrap over pictures: quantiles of the means of resamples (Efron
and Tibshirani, "An introduction to the bootstrap", 1993, section 13.3).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from .errors import InvalidOptionError

if TYPE_CHECKING:
    from .llm import ImageLLM

RESAMPLES = 5000
MAX_PSNR = 99.0
TILE, GAP, HEAD, CAPTION = 160, 6, 62, 18
SHEET_ROWS = 12


@dataclass(frozen=True, slots=True)
class Setting:
    """A window, fixed or adaptive."""

    window: int
    adaptive: bool = False

    def __str__(self) -> str:
        return f"{self.window} or more" if self.adaptive else str(self.window)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture's figures, as its file in the folder has them.

    Attributes:
        request: What it is of: model, prompt, seed, window, adaptive, and the options.
        steps: Forward passes.
        seconds: Of its tokens.
        nats: Mean negative log-probability of its tokens in raster order.
        psnr_db: Against the raster picture of its seed, at most 99; None of that one itself.
    """

    request: dict[str, Any]
    steps: int
    seconds: float
    nats: float
    psnr_db: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """Figures of one window: means over its pictures, but for the seconds, a median.

    Attributes:
        window, adaptive: Which.
        pictures: How many were drawn.
        steps, steps_min, steps_max: Forward passes.
        seconds_p50: Of a picture's tokens.
        nats, nats_low, nats_high: Per token, and its interval.
        loss, loss_low, loss_high: Nats per token more than raster order has, and its interval.
        psnr_db: Against the raster pictures; None of those themselves.
    """

    window: int
    adaptive: bool
    pictures: int
    steps: float
    steps_min: int
    steps_max: int
    seconds_p50: float
    nats: float
    nats_low: float
    nats_high: float
    loss: float
    loss_low: float
    loss_high: float
    psnr_db: float | None


class WindowComparison:
    """Pictures of some prompts under several windows, in a folder that keeps what is done.

    Args:
        llm: Draws and scores; its engine starts once there is something to draw.
        model: Its name, for the files.
        prompts: What to draw, two or more; picture k has the seed ``seed + k``.
        folder: Where the pictures and their figures go; pictures that are there already, of the
            same request, are not drawn again.
        windows: Windows to compare with raster order; :func:`default_windows` if None.
        adaptive: Whether to compare each as an adaptive window too.
        seed: Of the first picture.
        **options: Further fields of :class:`~zipar_vllm.params.ImageOptions`, alike for all.

    Raises:
        InvalidOptionError: names the option, what came and what is allowed.
    """

    def __init__(
        self,
        llm: ImageLLM,
        model: str,
        prompts: Sequence[str],
        folder: Path,
        *,
        windows: Sequence[int] | None = None,
        adaptive: bool = False,
        seed: int = 1,
        **options: Any,
    ) -> None:
        if len(prompts) < 2:
            raise InvalidOptionError.of("prompts", list(prompts), "two or more")
        self._llm = llm
        self._model = model
        self._prompts = prompts
        self._folder = folder
        self._seed = seed
        self._options = options
        grid = llm.prepare(prompts, seed=seed, **options)[0].grid
        if windows is None:
            windows = default_windows(grid.columns, llm.model.spec.defaults.window)
        kinds = (False, True) if adaptive else (False,)
        self.settings = [Setting(grid.columns)]
        self.settings += [
            Setting(window, kind)
            for window in sorted(set(windows) - {grid.columns}, reverse=True)
            for kind in kinds
        ]
        for setting in self.settings:
            llm.prepare(prompts[:1], seed=seed, **asdict(setting), **options)

    def draw(self, progress: bool = True) -> list[Record]:
        """Draw and score, one picture at a time, what the folder does not have.

        Args:
            progress: Whether to show a bar of pictures.

        Returns:
            A record per setting, raster order first.

        Raises:
            InvalidOptionError: the folder holds pictures of other requests.
        """
        wanted = [(k, setting) for k in range(len(self._prompts)) for setting in self.settings]
        found = {key: self._read(*key) for key in wanted}
        missing = [key for key in wanted if found[key] is None]
        done = len(wanted) - len(missing)
        if missing:  # what only the first picture waits for, the engine's start above all
            window = self.settings[-1].window
            self._llm.generate(self._prompts[0], window=window, progress=False, **self._options)
        with tqdm(total=len(wanted), initial=done, unit="picture", disable=not progress) as bar:
            for key in missing:
                found[key] = self._draw(*key)
                bar.update()
        by_setting = [
            [drawn for k in range(len(self._prompts)) if (drawn := found[k, setting])]
            for setting in self.settings
        ]
        return [
            _summarise(setting, own, by_setting[0])
            for setting, own in zip(self.settings, by_setting, strict=True)
        ]

    def sheet(self, records: Sequence[Record]) -> Image.Image:
        """Lay the first pictures out: a column per window, a row per prompt."""
        prompts = self._prompts[:SHEET_ROWS]
        with Image.open(self._path(0, self.settings[0], "png")) as first:
            height = round(TILE * first.height / first.width)
        step = height + CAPTION
        size = ((TILE + GAP) * len(records) + GAP, HEAD + step * len(prompts))
        sheet = Image.new("RGB", size, "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
        small = ImageFont.load_default(12)
        for column, (setting, record) in enumerate(zip(self.settings, records, strict=True)):
            x = GAP + column * (TILE + GAP)
            name = "raster order" if column == 0 else f"window {setting}"
            head = f"{name}\n{record.steps:.0f} passes\n{record.seconds_p50:.2f} s"
            pen.multiline_text((x, 2), head, fill="black", font=font)
            for k, prompt in enumerate(prompts):
                with Image.open(self._path(k, setting, "png")) as picture:
                    tile = picture.resize((TILE, height), Image.Resampling.LANCZOS)
                sheet.paste(tile, (x, HEAD + k * step))
                if column == 0:
                    pen.text((x, HEAD + k * step + height), prompt, fill="black", font=small)
        return sheet

    def _path(self, k: int, setting: Setting, ending: str) -> Path:
        kind = "adaptive" if setting.adaptive else "window"
        return self._folder / f"{kind}-{setting.window}" / f"{k + 1:04d}.{ending}"

    def _request(self, k: int, setting: Setting) -> dict[str, Any]:
        own = {"model": self._model, "prompt": self._prompts[k], "seed": self._seed + k}
        return own | asdict(setting) | self._options

    def _read(self, k: int, setting: Setting) -> Drawn | None:
        path, request = self._path(k, setting, "json"), self._request(k, setting)
        if not path.exists():
            return None
        drawn = Drawn(**json.loads(path.read_text()))
        if drawn.request != request:
            theirs = drawn.request.items() - request.items()
            told = ", ".join(f"{name} {value}" for name, value in sorted(theirs)) or "fewer options"
            problem = f"{path} is of another request ({told}), allowed is an empty folder"
            raise InvalidOptionError("output", problem)
        return drawn

    def _draw(self, k: int, setting: Setting) -> Drawn:
        options = {"seed": self._seed + k, **asdict(setting), **self._options}
        prompt = self._prompts[k]
        (result,) = self._llm.generate(prompt, progress=False, **options)
        codes = self._llm.model.spec.vocabulary.codes_of_picture(result.tokens)
        (logprobs,) = self._llm.score(self._llm.prepare([prompt], **options), [codes])
        path = self._path(k, setting, "png")
        path.parent.mkdir(parents=True, exist_ok=True)
        result.image.save(path)
        ratio = None
        if setting != self.settings[0]:
            with Image.open(self._path(k, self.settings[0], "png")) as raster:
                ratio = psnr(np.asarray(result.image), np.asarray(raster))
        drawn = Drawn(
            request=self._request(k, setting),
            steps=result.steps,
            seconds=result.seconds,
            nats=-float(logprobs.mean(dtype=np.float64)),
            psnr_db=ratio,
        )
        # Last, and all at once: a picture whose figures are there is done.
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(asdict(drawn), indent=1) + "\n")
        unfinished.replace(path.with_suffix(".json"))
        return drawn


def default_windows(columns: int, default: int | None) -> list[int]:
    """Powers of two below a grid's columns, and the model's own window."""
    powers = {2**k for k in range(columns.bit_length()) if 2**k < columns}
    return sorted(powers | ({default} if default and default < columns else set()), reverse=True)


def narrowest(records: Sequence[Record], bound: float) -> Record:
    """The record of fewest passes whose loss is within a bound, its whole interval.

    Args:
        records: Raster order's first, whose loss is 0.
        bound: In nats per token, 0 or more.
    """
    within = [record for record in records if record.loss_high <= bound]
    return min(within, key=lambda record: record.steps)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures in dB, at most 99."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return min(MAX_PSNR, 10 * math.log10(255**2 / error)) if error else MAX_PSNR


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which the mean of values lies, at 95 %; the same for the same values."""
    array = np.array(values)
    random = np.random.default_rng(0)
    means = [array[random.integers(len(array), size=len(array))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _summarise(setting: Setting, drawn: Sequence[Drawn], raster: Sequence[Drawn]) -> Record:
    steps, nats = [one.steps for one in drawn], [one.nats for one in drawn]
    losses = [one.nats - other.nats for one, other in zip(drawn, raster, strict=True)]
    ratios = [one.psnr_db for one in drawn if one.psnr_db is not None]
    (nats_low, nats_high), (loss_low, loss_high) = interval(nats), interval(losses)
    return Record(
        window=setting.window,
        adaptive=setting.adaptive,
        pictures=len(drawn),
        steps=round(statistics.mean(steps), 1),
        steps_min=min(steps),
        steps_max=max(steps),
        seconds_p50=round(statistics.median(one.seconds for one in drawn), 4),
        nats=round(statistics.mean(nats), 4),
        nats_low=round(nats_low, 4),
        nats_high=round(nats_high, 4),
        loss=round(statistics.mean(losses), 4),
        loss_low=round(loss_low, 4),
        loss_high=round(loss_high, 4),
        psnr_db=round(statistics.mean(ratios), 2) if ratios else None,
    )


EXPLANATION = (
    "Passes are means, with the fewest and the most; seconds are of a picture's tokens, median. "
    "Nats are the model's own, per token in raster order; the loss is against the raster pictures "
    "of the same prompts and seeds, as PSNR is. In brackets, 95 % intervals (bootstrap over "
    "pictures)."
)


def make_table(title: str, records: Sequence[Record], *paragraphs: str) -> str:
    """The records as Markdown, one per line, below a title and some paragraphs."""
    parts = [f"# {title}", *paragraphs, EXPLANATION]
    names = ["window", "forward passes", "seconds", "nats per token", "loss", "PSNR, dB"]
    rows = [names, ["---"] * len(names), *map(_cells, records)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    return "\n\n".join([*parts, table]) + "\n"


def _cells(record: Record) -> list[str]:
    name, steps = str(Setting(record.window, record.adaptive)), f"{record.steps:.0f}"
    if record.steps_min < record.steps_max:
        steps += f" ({record.steps_min} to {record.steps_max})"
    nats = f"{record.nats:.3f} ({record.nats_low:.3f} to {record.nats_high:.3f})"
    if record.psnr_db is None:
        return [f"{name} (raster)", steps, f"{record.seconds_p50:.2f}", nats, "", ""]
    loss = f"{record.loss:.3f} ({record.loss_low:.3f} to {record.loss_high:.3f})"
    return [name, steps, f"{record.seconds_p50:.2f}", nats, loss, f"{record.psnr_db:.1f}"]
