"""Trains the image tokenizer: pictures to 24x24 tokens and back."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from training.data import GROUNDS, Image
from zipar_vllm.models.fsq import FSQAutoencoder


@dataclass(frozen=True, slots=True)
class TokenizerRun:
    """How to train the tokenizer; ``seconds`` bounds it by the clock, whatever the machine."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    width: int = 144
    batch: int = 16
    crop: int = 96
    seconds: float = 600.0
    learning_rate: float = 2e-3
    code_noise: float = 0.05
    seed: int = 0


def composite(rgba: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
    """Put premultiplied drawings on grounds.

    Args:
        rgba: uint8 ``[B, H, W, 4]``, premultiplied.
        ground: float ``[B, 3]`` in [0, 255].

    Returns:
        float ``[B, 3, H, W]`` in [-1, 1].
    """
    values = rgba.float()
    mixed = values[..., :3] + (1 - values[..., 3:] / 255) * ground[:, None, None]
    return (mixed.clamp(0, 255) / 127.5 - 1).permute(0, 3, 1, 2)


def random_crops(images: torch.Tensor, side: int, generator: random.Random) -> torch.Tensor:
    """One square out of every picture, anywhere; ``[B, H, W, C]`` to ``[B, side, side, C]``."""
    out = []
    for image in images:
        # On the token grid in half the cases (as it is used), anywhere in the others.
        step = generator.choice((1, 8))
        top = generator.randrange(0, image.shape[0] - side + 1, step)
        left = generator.randrange(0, image.shape[1] - side + 1, step)
        out.append(image[top : top + side, left : left + side])
    return torch.stack(out)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 plus L1 of the gradients, which keeps outlines sharp; float ``[B, 3, H, W]``, scalar."""
    loss = F.l1_loss(output, target)
    for dim in (2, 3):
        loss = loss + F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def jitter(values: torch.Tensor, half: torch.Tensor, rate: float) -> torch.Tensor:
    """Moves some channels by one level, so that the decoder forgives near misses.

    Args:
        values: Quantised channels in [-1, 1], ``[B, H, W, C]``.
        half: ``(levels - 1) / 2`` of each channel, ``[C]``.
        rate: Share of channels that move.
    """
    hit = (torch.rand_like(values) < rate) * torch.randint_like(values, 0, 2).mul(2).sub(1)
    return (values + hit / half).clamp(-1, 1)


def train_tokenizer(
    main: list[Image], extra: list[Image], run: TokenizerRun, folder: Path
) -> FSQAutoencoder:
    """Train and save to ``folder``; ``main`` (the decoder's pictures) makes two thirds of a batch.

    Both lists: premultiplied RGBA, uint8 ``[192, 192, 4]``.
    """
    torch.manual_seed(run.seed)
    generator = random.Random(run.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = FSQAutoencoder(run.levels, run.width).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, betas=(0.9, 0.97))
    pools = [torch.from_numpy(np.stack(images)) for images in (main, extra) if images]
    palette = torch.tensor(GROUNDS, dtype=torch.float32)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / run.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * min(1, (step + 1) / 50, 0.01 + 2 * (1 - done))
        picks = [
            pools[0 if len(pools) == 1 or generator.random() < 0.67 else 1]
            for _ in range(run.batch)
        ]
        images = torch.stack([pool[generator.randrange(len(pool))] for pool in picks])
        ground = palette[torch.randint(len(palette), (run.batch,))]
        target = composite(random_crops(images, run.crop, generator), ground).to(device)
        target = target.contiguous(memory_format=torch.channels_last)
        # On a CPU the convolutions are faster in float32.
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            latents = model.latents(target)
            values = model.quantizer.quantize(latents)
            # Towards the end the codes are as they will be, so that detail settles.
            if done < 0.8:
                values = jitter(values, model.quantizer.radius, run.code_noise)
            output = model.render(values)
        loss = reconstruction_loss(output.float(), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            error = F.mse_loss(output.detach().float(), target)
            seconds = time.monotonic() - start
            print(
                f"tokenizer {step} loss {loss:.4f} psnr {-10 * (error / 4).log10():.2f} dB"
                f" {seconds:.0f} s",
                flush=True,
            )
        step += 1
        if step % 500 == 0:
            model.save_pretrained(folder)
    model.save_pretrained(folder)
    return FSQAutoencoder.from_pretrained(folder)


def sharpen(
    model: FSQAutoencoder, main: list[Image], seconds: float, folder: Path, seed: int = 0
) -> None:
    """Train the pixel decoder on with the encoder, and so every token, left as it is.

    It learns the shapes that this set of pictures has, and to see past a few wrong tokens, since
    sampled pictures have some. Saves to ``folder``.
    """
    torch.manual_seed(seed)
    generator = random.Random(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).train()
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    rate, batch, crop = 1.5e-3, 16, 96
    optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=rate, betas=(0.9, 0.97))
    pool, palette = torch.from_numpy(np.stack(main)), torch.tensor(GROUNDS, dtype=torch.float32)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50, 1.5 * (1 - done))
        images = pool[torch.tensor([generator.randrange(len(pool)) for _ in range(batch)])]
        ground = palette[torch.randint(len(palette), (batch,))]
        target = composite(random_crops(images, crop, generator), ground).to(device)
        codes = model.encode(target)
        wrong = torch.randint_like(codes, model.quantizer.num_codes)
        codes = torch.where(torch.rand(codes.shape, device=device) < 0.01, wrong, codes)
        values = jitter(model.quantizer.from_codes(codes), model.quantizer.radius, 0.02)
        output = model.render(values)
        loss = reconstruction_loss(output, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.decoder.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            error = F.mse_loss(output.detach(), target)
            spent = time.monotonic() - start
            psnr = -10 * (error / 4).log10()
            print(f"sharpen {step} loss {loss:.4f} psnr {psnr:.2f} dB {spent:.0f} s", flush=True)
        step += 1
    model.save_pretrained(folder)
