"""Free-running ZipAR sampling of a whole batch, with a key-value cache, and picture grids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from training.masks import demo_grid
from training.model import HEAD_DIM, Decoder
from zipar_vllm.models.fsq import FSQAutoencoder


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling options; temperature 0 is greedy, top_k 0 keeps all tokens."""

    window: int = 4
    guidance: float = 3.0
    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids around the picture."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    eol: int
    image_start: int
    pad: int = 0


def pad_prompts(
    prompts: list[list[int]], layout: Layout, length: int
) -> tuple[torch.Tensor, list[int]]:
    """Whole prompts padded on the left; int64 ``[B, length]`` and the padding of each."""
    rows, pads = [], []
    for text in prompts:
        ids = [*layout.prefix, *text, *layout.suffix]
        pads.append(length - len(ids))
        rows.append([layout.pad] * pads[-1] + ids)
    return torch.tensor(rows), pads


class _Cache:
    """Keys and values of both lanes, by raster position, and which of them are written."""

    def __init__(self, model: Decoder, lanes: int, length: int, dtype: torch.dtype) -> None:
        shape = (model.config.layers, lanes, model.config.heads, length, HEAD_DIM)
        device = model.norm.weight.device
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.written = torch.zeros(lanes, length, dtype=torch.bool, device=device)

    def feed(
        self, model: Decoder, table: torch.Tensor, ids: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Run ``ids`` ``[lanes, n]`` at ``positions`` ``[n]``; hidden states ``[lanes, n, h]``."""
        end = int(positions.max()) + 1
        causal = torch.arange(end, device=ids.device) <= positions[:, None]
        visible = self.written[:, None, None, :end] & causal
        # A padded query sees itself, else its softmax is over nothing.
        visible = visible | (torch.arange(end, device=ids.device) == positions[:, None])
        x = F.embedding(ids, table).to(self.keys.dtype)
        rope = model.rope(positions)
        for k, layer in enumerate(model.blocks()):
            q, key, value = layer.self_attn.qkv(layer.input_layernorm(x), rope)
            self.keys[k][:, :, positions] = key.to(self.keys.dtype)
            self.values[k][:, :, positions] = value.to(self.values.dtype)
            keys, values = self.keys[k][:, :, :end], self.values[k][:, :, :end]
            x = x + layer.self_attn.output(q, keys, values, visible)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x


def feed_plan(window: int) -> list[list[tuple[int, int]]]:
    """Cells fed at each step after the prompt; column ``columns`` stands for the terminator."""
    grid = demo_grid()
    steps: dict[int, list[tuple[int, int]]] = {}
    for i in range(grid.rows):
        for j in range(grid.columns):
            steps.setdefault(i * window + j + 1, []).append((i, j))
        if i + 1 < grid.rows:
            steps.setdefault((i + 1) * window, []).append((i, grid.columns))
    return [steps[s] for s in range(1, max(steps))]  # the picture's last token is never fed


def choose(logits: torch.Tensor, options: Sampling, generator: torch.Generator) -> torch.Tensor:
    """Sample from combined logits ``[B, n, count]``; int64 ``[B, n]``."""
    if options.temperature == 0:
        return logits.argmax(-1)
    if options.top_k:
        kth = logits.topk(options.top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    noise = torch.rand(logits.shape, generator=generator).clamp_min(1e-20)
    gumbel = -torch.log(-torch.log(noise)).to(logits.device)
    return (logits / options.temperature + gumbel).argmax(-1)


@torch.inference_mode()
def sample(
    model: Decoder, prompts: list[list[int]], layout: Layout, options: Sampling
) -> torch.Tensor:
    """Draw a picture for every prompt (text ids); int64 codes ``[B, rows, columns]``."""
    grid, batch = demo_grid(), len(prompts)
    device = model.norm.weight.device
    guided = options.guidance != 1
    unguided: list[list[int]] = [[] for _ in prompts] if guided else []
    texts = prompts + unguided
    length = max(map(len, texts)) + len(layout.prefix) + len(layout.suffix)
    ids, pads = pad_prompts(texts, layout, length)
    cache = _Cache(model, len(texts), length + grid.num_positions, torch.float32)
    for row, pad in zip(cache.written, pads, strict=True):
        row[pad:length] = True
    table = model.embed_tokens.table()
    codes = torch.zeros(batch, grid.rows, grid.columns + 1, dtype=torch.long, device=device)
    generator = torch.Generator().manual_seed(options.seed)

    def combine(hidden: torch.Tensor) -> torch.Tensor:
        logits = model.image_logits(hidden).float()
        if not guided:
            return logits
        conditional, free = logits[:batch], logits[batch:]
        return free + options.guidance * (conditional - free)

    hidden = cache.feed(model, table, ids.to(device), torch.arange(length, device=device))
    codes[:, 0, 0] = choose(combine(hidden[:, -1:]), options, generator)[:, 0]
    for cells in feed_plan(options.window):
        rows, columns = (torch.tensor(part, device=device) for part in zip(*cells, strict=True))
        fed = codes[:, rows, columns] + layout.image_start
        fed[:, columns == grid.columns] = layout.eol
        positions = length + rows * (grid.columns + 1) + columns
        cache.written[:, positions] = True
        lanes = fed.repeat(2, 1) if guided else fed
        hidden = cache.feed(model, table, lanes, positions)
        keep = columns != grid.columns - 1  # after a row's last token comes its terminator
        wraps = columns[keep] == grid.columns
        next_rows = rows[keep] + wraps
        next_columns = (columns[keep] + 1) * ~wraps
        chosen = choose(combine(hidden[:, keep]), options, generator)
        codes[:, next_rows, next_columns] = chosen
    return codes[:, :, : grid.columns].cpu()


def save_grid(pictures: torch.Tensor, columns: int, path: Path, side: int = 96) -> None:
    """Write pictures (uint8 ``[N, H, W, 3]``) as one sheet, each scaled to ``side`` pixels."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    gap = 2
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap), rows * (side + gap)), "white")
    for k, picture in enumerate(pictures):
        tile = Image.fromarray(picture.numpy()).resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(tile, (k % columns * (side + gap), k // columns * (side + gap)))
    sheet.save(path)


def draw(
    model: Decoder,
    autoencoder: FSQAutoencoder,
    prompts: list[list[int]],
    layout: Layout,
    options: Sampling,
) -> torch.Tensor:
    """Sample and render; uint8 ``[B, 192, 192, 3]``."""
    return autoencoder.decode(sample(model, prompts, layout, options))
