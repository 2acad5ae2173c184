"""LlamaGen (arXiv 2406.06525), text-conditional, as ``zipar convert`` writes it.

Source: github.com/FoundationVision/LlamaGen, ``language/t5.py``, ``CaptionEmbedder`` in
``autoregressive/models/gpt.py``; guidance and sampling are those of ``sample_t2i.py``. The authors
pad captions on the left and mask the padding; queries and keys are 0 before the picture, so a
caption without padding gives the same picture, as long as the picture's positions stay.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import T5Config, T5EncoderModel

from zipar_vllm.core.grid import Grid

from .base import ImageModelSpec, Prompts
from .checkpoint import CONFIG, Checkpoint
from .llamagen import CONVERT_AGAIN, LlamaGenModel, LlamaGenPictures, read_config

CAPTIONS = "caption"
"""Folder of what makes embeddings of a text encoder's features."""


class CaptionEmbedder(nn.Module):
    """From a text encoder's features ``[n, features]`` to embeddings ``[n, width]``."""

    def __init__(self, features: int, width: int, length: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)
        self.unconditional = nn.Parameter(torch.empty(length, features))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Two layers."""
        hidden = nn.functional.gelu(self.fc1(features), approximate="tanh")
        return self.fc2(hidden)  # type: ignore[no-any-return]


class LlamaGenTextModel(LlamaGenPictures):
    """A prompt is the embeddings of a caption, by a T5 that runs here."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        with checkpoint.finding():
            super().__init__(checkpoint, device)
            self.spec = self.read_spec(checkpoint)
        name = checkpoint.config.get("caption_encoder")
        if not isinstance(name, str):
            raise checkpoint.error(
                f"{CONFIG}: caption_encoder is missing, or no text", CONVERT_AGAIN
            )
        encoder = Checkpoint(name)
        t5 = encoder.parse_config(T5Config)
        config = read_config(checkpoint)
        length, width = config.condition_length, config.hidden_size
        with checkpoint.finding():
            self._tokenizer = Tokenizer.from_file(str(encoder.file("tokenizer.json")))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(length)
        self._t5 = encoder.build(T5EncoderModel, t5)
        with torch.device("meta"):
            self._embedder = CaptionEmbedder(t5.d_model, width, length)
        self._t5.encoder.embed_tokens = self._t5.shared
        with checkpoint.finding():
            for prefix, module in (
                ("shared.", self._t5.shared),
                ("encoder.block.", self._t5.encoder.block),
                ("encoder.final_layer_norm.", self._t5.encoder.final_layer_norm),
            ):
                encoder.load(module, prefix, device)
        self._t5.eval()
        checkpoint.part(CAPTIONS).load(self._embedder, "", device)

    @staticmethod
    def read_spec(checkpoint: Checkpoint) -> ImageModelSpec:
        """The facts of its ``config.json``; the window as for classes."""
        spec = LlamaGenModel.read_spec(checkpoint)
        return replace(
            spec,
            family="llamagen-t2i",
            defaults=spec.defaults.model_copy(update={"guidance_scale": 7.5, "top_k": 1000}),
            positions=partial(_positions, spec.max_prompt_tokens),
            embeds_prompts=True,
            details={},
        )

    @torch.inference_mode()
    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """Encode both lanes; without a negative prompt, the second has the features of no text.

        These are as many as the caption's, the last ones, because the authors mask both alike.
        """
        lanes = [self._features(text)]
        if guided and negative is None:
            lanes.append(self._embedder.unconditional[-len(lanes[0]) :])
        elif guided and negative is not None:
            lanes.append(self._features(negative))
        counts = [[0] * len(lane) for lane in lanes]
        embeddings = self._embedder(torch.cat(lanes)).cpu()
        return Prompts(counts[0], counts[1] if guided else [], embeddings)

    def _features(self, text: str) -> torch.Tensor:
        """T5's last hidden states, ``[tokens, features]``."""
        ids = self._tokenizer.encode(clean(text)).ids
        hidden: torch.Tensor = self._t5(torch.tensor([ids], device=self._device))[0][0]
        return hidden


def clean(text: str) -> str:
    """A caption as those of the training were, as far as prompts need it.

    Small letters, no addresses, mark-up or ornaments, plain dashes and quotes, single spaces. The
    authors' rules against file names, article numbers and other marks of crawled captions are left
    out.
    """
    text = html.unescape(html.unescape(text)).lower()
    text = re.sub(r"https?://\S+|www\.\S+|<[^<>]*>|@\w+", " ", text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    text = re.sub("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"', text)
    text = re.sub("[\u2018\u2019]", "'", text)
    text = re.sub(r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+|\.{2,}", " ", text)
    return " ".join(text.split())


def _positions(length: int, grid: Grid, prompt: int) -> NDArray[np.int64]:
    """The picture begins behind the longest prompt, however long its own is."""
    return np.concatenate([np.arange(prompt), length + np.arange(grid.num_positions)])
