"""The whole recipe, one command: ``python -m training.run --work DIR``."""

from __future__ import annotations

import argparse
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing import spawn

from training.captions import BOI, BOS, EOL, PAD, build_tokenizer, text_vocabulary
from training.concepts import CORE, FEATURED, HELD_OUT, all_concepts
from training.data import (
    GROUNDS,
    Image,
    Picture,
    choose_grounds,
    download,
    list_pictures,
    load_icons,
    paint_ground,
    render_all,
)
from training.decoder import DecoderRun, DecoderTraining, Example
from training.export import export
from training.layout import Layout
from training.model import DecoderConfig
from training.parallel import Workers
from training.tokenizer import TokenizerRun, sharpen, train_tokenizer
from zipar_vllm.models.fsq import FSQAutoencoder

PORT = 29531  # where workers on this machine meet
EXTRA_PICTURES = 1200  # drawings of other things, for the image tokenizer only


def load_drawings(work: Path, extra: int) -> tuple[dict[Picture, Image], list[Image]]:
    """The decoder's pictures (held-out ones too), and ``extra`` others; premultiplied RGBA."""
    sets = {style: load_icons(folder) for style, folder in download(work / "npm").items()}
    pictures = list_pictures(sets)
    drawn = render_all(sets, [(p.style, p.icon) for p in pictures])
    used = {(p.style, p.icon) for p in pictures}
    others = [
        (style, name)
        for style, icons in sets.items()
        for name in icons["icons"]
        if (style, name) not in used and "skin-tone" not in name
    ]
    random.Random(0).shuffle(others)
    return dict(zip(pictures, drawn, strict=True)), render_all(sets, others[:extra])


def tokenize(drawings: dict[Picture, Image], autoencoder: FSQAutoencoder) -> list[Example]:
    """Each picture on its ground, as tokens."""
    grounds = choose_grounds(drawings)
    examples = []
    for picture, rgba in drawings.items():
        rgb = paint_ground(rgba, GROUNDS[grounds[picture]])
        pixels = torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
        codes = autoencoder.encode(pixels.unsqueeze(0))[0]
        examples.append(Example(picture.concept, picture.style, codes))
    return examples


def build_layout(concepts: list[str]) -> Layout:
    entries = text_vocabulary(concepts)
    index = {entry: k for k, entry in enumerate(entries)}
    return Layout((index[BOS],), (index[BOI],), index[EOL], len(entries), index[PAD])


def decoder_config(layout: Layout, tokenizer: Any, levels: tuple[int, ...]) -> DecoderConfig:
    return DecoderConfig(tokenizer.get_vocab_size(), layout.image_start, levels)


def prepare(work: Path, seconds: float) -> tuple[list[Example], FSQAutoencoder]:
    """Pictures and a trained image tokenizer, made once and kept in ``work``."""
    folder = work / "vq"
    trained = (folder / "done").exists()
    drawings, extra = load_drawings(work, 0 if trained else EXTRA_PICTURES)
    if not trained:
        run = replace(TokenizerRun(), seconds=seconds)
        train_tokenizer(list(drawings.values()), extra, run, folder)
        (folder / "done").touch()
    autoencoder = FSQAutoencoder.from_pretrained(folder)
    examples = tokenize(drawings, autoencoder)
    return examples, autoencoder


def train_worker(rank: int, size: int, work: Path, run: DecoderRun, shown: list[Example]) -> None:
    """One of ``size`` processes that train the decoder together."""
    workers = Workers(rank, size)
    shown = shown + [e for e in shown if e.concept in FEATURED]
    if size > 1:
        torch.set_num_threads(1)
        os.setsid()  # a scheduling group of its own, where the system groups by session
        workers.join(PORT)
    autoencoder = FSQAutoencoder.from_pretrained(work / "vq")
    concepts = all_concepts()
    tokenizer = build_tokenizer(concepts, autoencoder.quantizer.num_codes)
    layout = build_layout(concepts)
    config = decoder_config(layout, tokenizer, autoencoder.quantizer.levels)
    training = DecoderTraining(config, run, shown, tokenizer, layout, workers)
    if rank == 0:
        count = sum(p.numel() for p in training.model.parameters())
        print(f"decoder: {count / 1e6:.2f} M parameters", flush=True)
    training.train(work / "decoder.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--tokenizer-seconds", type=float, default=TokenizerRun().seconds)
    parser.add_argument("--seconds", type=float, default=DecoderRun().seconds)
    parser.add_argument("--sharpen-seconds", type=float, default=300.0)
    parser.add_argument("--hold", type=float, default=DecoderRun().hold)
    parser.add_argument("--stage", choices=("core", "all"), default="core")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--workers", type=int, default=1, help="single-threaded processes")
    parser.add_argument("--output", type=Path, help="export here when done")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    examples, autoencoder = prepare(options.work, options.tokenizer_seconds)
    shown = [e for e in examples if (e.style, e.concept) not in HELD_OUT]
    if options.stage == "core":
        shown = [e for e in shown if e.concept in CORE]
    print(f"{len(shown)} pictures, {len({e.concept for e in shown})} concepts", flush=True)
    run = replace(DecoderRun(), seconds=options.seconds, hold=options.hold)
    spawn(
        train_worker,
        args=(options.workers, options.work, run, shown),
        nprocs=options.workers,
    )
    if not (options.work / "vq" / "sharp").exists() and options.sharpen_seconds > 0:
        drawings, _ = load_drawings(options.work, 0)
        sharpen(autoencoder, list(drawings.values()), options.sharpen_seconds, options.work / "vq")
        (options.work / "vq" / "sharp").touch()
    if options.output:
        export(options.work, options.output)


if __name__ == "__main__":
    main()
