"""Small random LlamaGen files as they are published, and the published architecture in plain torch.

Source: github.com/FoundationVision/LlamaGen, ``autoregressive/models/gpt.py`` and
``tokenizer/tokenizer_image/vq_model.py``, restated. Real numbers of codes and classes, small
widths.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from torch.nn import functional
from transformers import T5Config, T5EncoderModel

from zipar_vllm.models.llamagen_files import convert

CODES, CLASSES = 16_384, 1000
WIDTH, HEADS, LAYERS = 64, 4, 2
CAPTION, FEATURES = 120, 32
CHANNELS = (1, 1, 2, 2, 4)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1 + torch.randn(width) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=2.0 / inputs**0.5)
    return layer


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv, self.wo = linear(width, 3 * width), linear(width, width)

    def forward(
        self, x: torch.Tensor, turns: torch.Tensor, visible: torch.Tensor, cache: dict[str, Any]
    ) -> torch.Tensor:
        count, width = x.shape
        q, k, v = self.wqkv(x).view(count, 3, self.heads, -1).unbind(1)
        q, k = (self.turn(part, turns) for part in (q, k))
        cache["k"] = torch.cat([cache["k"], k]) if cache else k
        cache["v"] = torch.cat([cache["v"], v]) if "v" in cache else v
        scores = torch.einsum("qhd,khd->hqk", q, cache["k"]) / (width // self.heads) ** 0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return self.wo(torch.einsum("hqk,khd->qhd", weights, cache["v"]).reshape(count, width))

    @staticmethod
    def turn(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
        """Pairs of neighbours as complex numbers, times a complex number."""
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns[:, None]).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 256 * -(-int(2 * 4 * width / 3) // 256)
        self.w1, self.w2, self.w3 = (
            linear(*sizes) for sizes in ((width, hidden), (hidden, width), (width, hidden))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads), FeedForward(width)
        self.attention_norm, self.ffn_norm = Norm(width), Norm(width)

    def forward(self, x: torch.Tensor, *step: Any) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), *step)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """The published transformer; also as a causal model of codes and, behind them, ``rows``.

    Args:
        features: Of a text encoder's; 0 for a model of classes.

    Attributes:
        rows: Embeddings of what is no code: of the classes, or of the prompts in use.
        prompt: How many positions of a lane are the prompt's.
    """

    def __init__(
        self,
        side: int,
        width: int = WIDTH,
        heads: int = HEADS,
        layers: int = LAYERS,
        features: int = 0,
    ) -> None:
        super().__init__()
        self.side, self.head_size = side, width // heads
        self.length = CAPTION if features else 1
        if features:
            parts = {"fc1": linear(features, width), "fc2": linear(width, width)}
            self.cls_embedding = nn.ModuleDict({"cap_proj": nn.ModuleDict(parts)})
            unconditional = torch.randn(CAPTION, features)
            self.cls_embedding.register_buffer("uncond_embedding", unconditional)
        else:
            table = nn.Embedding(CLASSES + 1, width)
            self.cls_embedding = nn.ModuleDict({"embedding_table": table})
            self.rows, self.prompt = table.weight, 1
        self.tok_embeddings = nn.Embedding(CODES, width)
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.output = Norm(width), linear(width, CODES)
        before = [torch.zeros(self.head_size // 2, dtype=torch.complex64)] * self.length
        self.turns = torch.stack([*before, *(self.turn(place) for place in range(side**2))])

    def turn(self, place: int) -> torch.Tensor:
        """What the pairs at a place of the picture are multiplied by; before it, by 0."""
        quarter = self.head_size // 4
        speeds = [10_000 ** (-2 * i / (self.head_size // 2)) for i in range(quarter)]
        row, column = divmod(place, self.side)
        angles = torch.tensor([at * speed for at in (row, column) for speed in speeds])
        return torch.polar(torch.ones_like(angles), angles)

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: list[dict[str, Any]] | None,
        use_cache: bool,
    ) -> Any:
        caches = past_key_values or [{} for _ in self.layers]
        x = torch.cat([self.tok_embeddings.weight, self.rows])[input_ids[0]]
        # However long the prompt is, the picture begins where the longest would end.
        places = position_ids[0] - self.prompt
        turns = self.turns[torch.where(places < 0, 0, places + self.length)]
        logits = self.run(x, turns, attention_mask[0, 0] == 0, caches)
        return SimpleNamespace(logits=logits[None], past_key_values=caches)

    def run(
        self,
        x: torch.Tensor,
        turns: torch.Tensor,
        visible: torch.Tensor,
        caches: list[dict[str, Any]],
    ) -> torch.Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, turns, visible, cache)
        return self.output(self.norm(x))

    @torch.no_grad()
    def generate(self, label: int, guidance: float, count: int | None = None) -> list[int]:
        """The greedy picture of a class, or its beginning."""
        lanes = [self.cls_embedding.embedding_table.weight[[i]] for i in (label, CLASSES)]
        return self.continue_from(lanes, torch.ones(1, dtype=torch.bool), guidance, count)

    @torch.no_grad()
    def generate_text(
        self, features: torch.Tensor, kept: torch.Tensor, guidance: float, count: int
    ) -> list[int]:
        """The beginning of the greedy picture of a caption, padded as the authors do it.

        ``features`` of CAPTION tokens, padding last; ``kept`` says which are none.
        """
        lanes, kept = self.text_lanes(features, kept)
        return self.continue_from(lanes, kept, guidance, count)

    def text_lanes(
        self, features: torch.Tensor, kept: torch.Tensor
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Both lanes' captions, padding first, and which of their tokens are none."""
        number = int(kept.sum())
        features, kept = torch.cat([features[number:], features[:number]]), kept.flip(0)
        projection = self.cls_embedding["cap_proj"]
        lanes = [
            projection["fc2"](functional.gelu(projection["fc1"](of), approximate="tanh"))
            for of in (features * kept[:, None], self.cls_embedding.uncond_embedding)
        ]
        return lanes, kept

    def follow_text(
        self, features: torch.Tensor, kept: torch.Tensor, guidance: float, codes: list[int]
    ) -> list[int]:
        """What it would draw greedily after each beginning of a picture, the empty one first."""
        lanes, kept = self.text_lanes(features, kept)
        logits = [
            self.logits_of(lane, kept, codes[:-1])[self.length - 1 :]
            for lane in (lanes if guidance != 1 else lanes[:1])
        ]
        return (logits[-1] + guidance * (logits[0] - logits[-1])).argmax(dim=1).tolist()

    def continue_from(
        self, lanes: list[torch.Tensor], kept: torch.Tensor, guidance: float, count: int | None
    ) -> list[int]:
        """Everything is computed anew for each token."""
        codes: list[int] = []
        while len(codes) < (count or self.side**2):
            logits = [
                self.logits_of(lane, kept, codes)[-1]
                for lane in (lanes if guidance != 1 else lanes[:1])
            ]
            guided = logits[-1] + guidance * (logits[0] - logits[-1])
            codes.append(int(guided.argmax()))
        return codes

    def logits_of(self, lane: torch.Tensor, kept: torch.Tensor, codes: list[int]) -> torch.Tensor:
        """Logits after every token of a lane's caption and of the picture's beginning."""
        x = torch.cat([lane, self.tok_embeddings(torch.tensor(codes, dtype=torch.int64))])
        visible = torch.ones(len(x), len(x), dtype=torch.bool).tril()
        visible[:, : self.length] &= kept
        visible |= torch.eye(len(x), dtype=torch.bool)
        caches: list[dict[str, Any]] = [{} for _ in self.layers]
        return self.run(x, self.turns[: len(x)], visible, caches)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, 1e-6), nn.GroupNorm(32, outputs, 1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        changed = self.conv1(functional.silu(self.norm1(x)))
        changed = self.conv2(functional.silu(self.norm2(changed)))
        return changed + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class PixelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        q, k, v = (part(normed).flatten(2).mT for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed.mT.view_as(x))


class Level(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, lowest: bool, highest: bool):
        super().__init__()
        self.res = nn.ModuleList(
            ResnetBlock(outputs if block else inputs, outputs) for block in range(blocks)
        )
        self.attn = nn.ModuleList(PixelAttention(outputs) for _ in range(blocks) if lowest)
        if not highest:
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(outputs, outputs, 3, padding=1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, block in enumerate(self.res):
            x = block(x)
            if self.attn:
                x = self.attn[number](x)
        if hasattr(self, "upsample"):
            x = self.upsample["conv"](x.repeat_interleave(2, -1).repeat_interleave(2, -2))
        return x


class PixelDecoder(nn.Module):
    def __init__(self, latent: int, base: int, blocks: int) -> None:
        super().__init__()
        widths = [base * multiple for multiple in reversed(CHANNELS)]
        self.conv_in = nn.Conv2d(latent, widths[0], 3, padding=1)
        self.mid = nn.ModuleList(
            [
                ResnetBlock(widths[0], widths[0]),
                PixelAttention(widths[0]),
                ResnetBlock(widths[0], widths[0]),
            ]
        )
        last = len(widths) - 1
        self.conv_blocks = nn.ModuleList(
            Level(widths[max(level - 1, 0)], width, blocks, level == 0, level == last)
            for level, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(32, widths[-1], 1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for module in (*self.mid, *self.conv_blocks):
            x = module(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class VQModel(nn.Module):
    """The published pixel decoder; of the encoder, whose tensors are published beside it, one."""

    def __init__(self, latent: int = 64, base: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(CODES, 8)})
        self.quantize.register_buffer("codebook_used", torch.zeros(65_536))
        self.encoder = nn.ModuleDict({"conv_in": nn.Conv2d(3, base, 3, padding=1)})
        self.quant_conv, self.post_quant_conv = nn.Conv2d(latent, 8, 1), nn.Conv2d(8, latent, 1)
        self.decoder = PixelDecoder(latent, base, blocks)
        with torch.no_grad():  # published ones answer in about [-1, 1]
            self.decoder.conv_out.weight.div_(4)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels in about [-1, 1], ``[B, 3, H, W]``, of codes ``[B, rows, columns]``."""
        entries = functional.normalize(self.quantize["embedding"].weight, dim=-1)[codes]
        return self.decoder(self.post_quant_conv(entries.permute(0, 3, 1, 2)))


def make_files(folder: Path, side: int = 8, **shape: int) -> tuple[Path, Path]:
    """Save a transformer as DDP training does and a pixel decoder."""
    torch.manual_seed(0)
    paths = [folder / name for name in file_names(side, **shape)]
    options = argparse.Namespace(gpt_model="GPT-tiny")
    transformer = Transformer(side, **shape).state_dict()
    torch.save({"model": transformer, "steps": 1, "args": options}, paths[0])
    torch.save({"model": VQModel().state_dict()}, paths[1])
    return paths[0], paths[1]


def file_names(side: int, features: int = 0, **shape: int) -> tuple[str, str]:
    kind = "t2i" if features else "c2i"
    return f"{kind}_tiny_{16 * side}.pt", f"vq_ds16_{kind}.pt"


def load_oracles(path: Path, side: int = 8, **shape: int) -> tuple[Transformer, VQModel]:
    """The modules of what :func:`make_llamagen` saved, from the files as they are published."""
    modules = Transformer(side, **shape).eval(), VQModel().eval()
    for module, name in zip(modules, file_names(side, **shape), strict=True):
        contents = torch.load(path.parent / name, weights_only=False)
        module.load_state_dict(contents["model"])
    return modules


def make_llamagen(path: Path, side: int = 8, **shape: int) -> None:
    """Save files as they are published, beside ``path``, and convert them to it."""
    files = make_files(path.parent, side, **shape)
    text_encoder = path.parent / "t5"
    if "features" in shape:
        make_t5(text_encoder)
    heads = shape.get("heads", HEADS)
    convert(*files, path, heads=heads, text_encoder=str(text_encoder))


def make_t5(path: Path) -> None:
    """Save a text encoder as Flan-T5's is; its tokens are bytes, and one that ends a text."""
    config = T5Config(
        vocab_size=300,
        d_model=FEATURES,
        d_kv=16,
        d_ff=64,
        num_heads=2,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    T5EncoderModel(config).save_pretrained(path)
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, "</s>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 256)]
    )
    tokenizer.save(str(path / "tokenizer.json"))


@torch.no_grad()
def encode_padded(path: Path, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of a text padded to CAPTION tokens, and which of them are no padding."""
    ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    kept = torch.arange(CAPTION) < len(ids)
    padded = torch.tensor([[*ids, *[0] * (CAPTION - len(ids))]])
    encoder = T5EncoderModel.from_pretrained(path, dtype=torch.float32).eval()
    return encoder(padded, attention_mask=kept[None].long())[0][0], kept
