"""Pictures to train on: downloads emoji drawings from npm and renders them on coloured grounds."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from training.concepts import FLAGS, NAMED, RENAMED, STYLES

SIZE = 192  # side of a training picture in pixels
MARGIN = 6  # ground left around the drawing, pixels
PACKAGES: dict[str, str] = {
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojitwo": "@iconify-json/emojione@1.2.3",
}
FLAG_NAMES: dict[str, str] = {"twemoji": "flag-{}", "emojitwo": "flag-for-{}"}

# Soft grounds (RGB). No white: an unsure model falls back on the commonest token, and then every
# picture is an empty page. Picked per picture, so that the ground is part of what is drawn.
GROUNDS: tuple[tuple[int, int, int], ...] = (
    (174, 214, 241),  # sky
    (250, 215, 160),  # sand
    (171, 235, 198),  # mint
    (215, 189, 226),  # lilac
    (245, 183, 177),  # rose
    (93, 109, 126),  # slate
    (118, 170, 180),  # teal
    (249, 231, 159),  # straw
)

Image = npt.NDArray[np.uint8]
Icons = dict[str, dict[str, dict[str, object]]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One drawing of the training set.

    Attributes:
        concept: Name used in captions, e.g. ``"red car"``.
        style: One of :data:`training.concepts.STYLES`.
        icon: Name in the icon set, e.g. ``"automobile"``.
    """

    concept: str
    style: str
    icon: str


def download(folder: Path) -> dict[str, Path]:
    """Fetch the icon sets with npm, once; returns the unpacked folder of every style."""
    folders = {}
    for style, package in PACKAGES.items():
        target = folder / style
        if not (target / "icons.json").exists():
            target.mkdir(parents=True, exist_ok=True)
            npm = shutil.which("npm")
            if npm is None:
                raise RuntimeError("npm is needed to download the icon sets (install Node.js)")
            packed = subprocess.run(
                [npm, "pack", "--silent", package], cwd=target, check=True, capture_output=True
            )
            archive = target / packed.stdout.decode().split()[-1]
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    member.name = member.name.removeprefix("package/")
                tar.extractall(target, filter="data")
            archive.unlink()
        folders[style] = target
    return folders


def load_icons(folder: Path) -> Icons:
    """Read ``icons.json`` (Iconify's format: SVG bodies by name)."""
    icons: Icons = json.loads((folder / "icons.json").read_text())
    return icons


def find_icon(icons: Icons, name: str) -> str | None:
    """The icon that has ``name``, aliases followed; None when the set lacks it."""
    if name in icons["icons"]:
        return name
    alias = icons.get("aliases", {}).get(name)
    # Aliases that turn or flip the drawing are other pictures.
    return str(alias["parent"]) if alias is not None and set(alias) == {"parent"} else None


def slug(name: str) -> str:
    """``"Ear of corn"`` -> ``"ear-of-corn"``, the way icon sets name their drawings."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def list_pictures(sets: Mapping[str, Icons]) -> list[Picture]:
    """Every (concept, style) that exists, sorted by concept, then style."""
    pictures = []
    for style in STYLES:
        wanted = {name: slug(name) for name in NAMED} | RENAMED
        wanted |= {f"flag of {c}": FLAG_NAMES[style].format(slug(c)) for c in FLAGS}
        for concept, name in wanted.items():
            icon = find_icon(sets[style], name)
            if icon is not None:
                pictures.append(Picture(concept, style, icon))
    return sorted(pictures, key=lambda p: (p.concept, p.style))


def render_icon(icons: Icons, name: str, side: int) -> Image:
    """Draw one icon, its longer side scaled to ``side``; uint8 ``[side, side, 4]`` RGBA."""
    import resvg_py

    icon = icons["icons"][name]
    width = icon.get("width") or icons.get("width") or 16
    height = icon.get("height") or icons.get("height") or 16
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{side}" height="{side}">'
    data = resvg_py.svg_to_bytes(svg_string=f"{svg}{icon['body']}</svg>")
    return _read_rgba(bytes(data))


def _read_rgba(data: bytes) -> Image:
    from PIL import Image as Pillow

    return np.asarray(Pillow.open(io.BytesIO(data)).convert("RGBA"))


def crop_tight(rgba: Image, size: int = SIZE, margin: int = MARGIN) -> Image:
    """Cut the empty border off and scale to fill a square; uint8 ``[size, size, 4]``.

    Empty rows are tokens that carry no picture, and that a small model learns first and then
    cannot leave.
    """
    from PIL import Image as Pillow

    ys, xs = np.nonzero(rgba[..., 3] > 8)
    if len(ys) == 0:
        return np.zeros((size, size, 4), np.uint8)
    cut = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    scale = (size - 2 * margin) / max(cut.shape[:2])
    height, width = (max(1, round(side * scale)) for side in cut.shape[:2])
    # Premultiplied, else the colour hidden under transparent pixels bleeds into the outline.
    alpha = cut[..., 3:].astype(np.float32) / 255
    flat = np.concatenate([cut[..., :3] * alpha, cut[..., 3:]], -1).round().astype(np.uint8)
    planes = [
        np.asarray(Pillow.fromarray(flat[..., c]).resize((width, height), Pillow.Resampling.BOX))
        if scale < 0.6
        else np.asarray(
            Pillow.fromarray(flat[..., c]).resize((width, height), Pillow.Resampling.BICUBIC)
        )
        for c in range(4)
    ]
    out = np.zeros((size, size, 4), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    out[top : top + height, left : left + width] = np.stack(planes, -1)
    return out


def paint_ground(premultiplied: Image, ground: tuple[int, int, int]) -> Image:
    """Put a premultiplied RGBA drawing on a plain ground; uint8 ``[H, W, 3]``."""
    clear = 1 - premultiplied[..., 3:].astype(np.float32) / 255
    mixed = premultiplied[..., :3] + clear * np.asarray(ground, np.float32)
    return mixed.round().clip(0, 255).astype(np.uint8)


def choose_grounds(drawings: Mapping[Picture, Image]) -> dict[Picture, int]:
    """A ground for each picture: well apart from its colours, differing between its styles.

    The first token then already tells the styles of one concept apart, so that a caption without
    a style commits to one at once instead of mixing them.
    """
    palette = np.asarray(GROUNDS, np.float32)
    taken: dict[str, set[int]] = {}
    chosen: dict[Picture, int] = {}
    for picture, rgba in drawings.items():
        ink = rgba[rgba[..., 3] > 250][:, :3].astype(np.float32)
        sample = ink[:: max(1, len(ink) // 400)] if len(ink) else np.zeros((1, 3), np.float32)
        apart = np.linalg.norm(sample[:, None] - palette[None], axis=-1)
        score = (apart > 60).mean(0)  # share of the drawing that stands out from each ground
        name = f"{picture.concept}/{picture.style}"
        hashes = [crc32(f"{name}/{g}".encode()) for g in range(len(GROUNDS))]
        ranks = [(score[g] < 0.9, hashes[g], g) for g in range(len(GROUNDS))]
        order = [g for _, _, g in sorted(ranks)]
        used = taken.setdefault(picture.concept, set())
        chosen[picture] = next((g for g in order if g not in used), order[0])
        used.add(chosen[picture])
    return chosen


def render_all(
    jobs: Mapping[str, Icons], names: list[tuple[str, str]], side: int = 256
) -> list[Image]:
    """Draw and crop many (style, icon) pairs; a drawing that fails comes back empty."""
    draw: Callable[[str, str], Image] = partial(_render_one, jobs, side)
    return [draw(style, name) for style, name in names]


def _render_one(sets: Mapping[str, Icons], side: int, style: str, name: str) -> Image:
    try:
        return crop_tight(render_icon(sets[style], name, side))
    except (ValueError, OSError):  # a few icons use SVG features the renderer lacks
        return np.zeros((SIZE, SIZE, 4), np.uint8)
