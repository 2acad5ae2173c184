"""Shapes of published models: what their memory and time are computed from, and random ones made.

Sources: the ``config.json`` of ``BAAI/Emu3-Gen-hf`` (transformers' ``Emu3TextConfig``), of
``deepseek-ai/Janus-Pro-7B`` and ``-1B`` (DeepSeek LLM, arXiv 2401.02954, table 2) and of
``Alpha-VLLM/Lumina-mGPT-7B-768`` (transformers' ``ChameleonConfig``); LlamaGen's ``gpt.py`` (its
inner width is 8/3 of the outer one, rounded up to multiples of 256).
"""

from __future__ import annotations

from dataclasses import dataclass

from zipar_vllm.core.grid import Grid


@dataclass(frozen=True)
class Shape:
    """A causal model with gated feed-forward layers, and its picture.

    Attributes:
        name: As published.
        layers, heads, kv_heads, head_size, inner: Of the model; ``inner`` is the feed-forward's.
        columns: Ids of its output layer.
        num_codes: Of them, how many are image tokens.
        size: Of a picture, in pixels, with its grid.
        grid: Its tokens.
        window: The default.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    columns: int
    num_codes: int
    size: str
    grid: Grid
    window: int

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return self.heads * self.head_size

    @property
    def weights(self) -> int:
        """Weights that a step reads: all but the input embeddings, of which it reads a few rows."""
        attention = 2 * self.width * (self.heads + self.kv_heads) * self.head_size
        return self.layers * (attention + 3 * self.width * self.inner) + self.width * self.columns

    def kv_bytes(self, itemsize: int = 2) -> int:
        """Bytes of keys and values of a token of a lane."""
        return 2 * self.layers * self.kv_heads * self.head_size * itemsize


# Janus-Pro has LlamaGen's VQ tokenizer, and pictures of the same grid.
_LLAMAGEN = {"columns": 16384, "num_codes": 16384, "size": "384x384", "grid": Grid(24, 24)}

EMU3 = Shape("Emu3-Gen", 32, 32, 8, 128, 14336, 184622, 32768, "720x720", Grid(90, 90, True), 7)
JANUS_7B = Shape("Janus-Pro-7B", 30, 32, 32, 128, 11008, window=8, **_LLAMAGEN)  # type: ignore[arg-type]
LLAMAGEN_XL = Shape("LlamaGen-XL", 36, 20, 20, 64, 3584, window=16, **_LLAMAGEN)  # type: ignore[arg-type]
TINY = Shape("tiny", 2, 4, 2, 32, 64, 200, 100, "64x64", Grid(8, 8, True), 4)
"""For trying things out."""

SHAPES = (
    EMU3,
    Shape(
        "Lumina-mGPT-7B-768", 32, 32, 32, 128, 11008, 65536, 8192, "768x768", Grid(48, 48, True), 15
    ),
    JANUS_7B,
    Shape("Janus-Pro-1B", 24, 16, 16, 128, 5632, window=8, **_LLAMAGEN),  # type: ignore[arg-type]
    Shape("LlamaGen-3B", 24, 32, 32, 100, 8704, window=16, **_LLAMAGEN),  # type: ignore[arg-type]
    LLAMAGEN_XL,
    Shape("LlamaGen-B", 12, 12, 12, 64, 2048, window=16, **_LLAMAGEN),  # type: ignore[arg-type]
)
