"""Janus-Pro (arXiv 2501.17811) in transformers' layout, ``deepseek-community/Janus-Pro-1B``, -7B.

Template, unconditional prompt, guidance and sampling are those of the authors'
``generation_inference.py`` (github.com/deepseek-ai/Janus). They have no negative prompt: one is
phrased as a prompt is.
"""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from transformers import JanusConfig, JanusForConditionalGeneration

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions

from .base import ImageModelSpec, Prompts
from .checkpoint import SAME_SOURCE, Checkpoint
from .sizes import FixedSizes
from .tiles import render
from .vqgan import JanusVQDecoder

TEMPLATE = "<|User|>: {text}\n\n<|Assistant|>:<begin_of_image>"
BEGIN = "<｜begin▁of▁sentence｜>"  # noqa: RUF001 (the token's own characters)
PAD = "<｜▁pad▁｜>"  # noqa: RUF001
BEGIN_OF_IMAGE = "<begin_of_image>"

NOT_NEEDED = ("model.vision_model.", "model.aligner.", "model.vqmodel.", "lm_head.")
"""Tensors of image understanding and of text; the pixel decoder's are checked as it is loaded."""


class JanusModel:
    """Prompts in the authors' template; pixels by the checkpoint's own VQ decoder."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        config = checkpoint.parse_config(JanusConfig)
        self.spec = self.read_spec(checkpoint)
        with checkpoint.finding():
            self._tokenizer = Tokenizer.from_file(str(checkpoint.file("tokenizer.json")))
            self._begin, self._pad, self._begin_of_image = (
                self._special_id(checkpoint, token, config.text_config.vocab_size)
                for token in (BEGIN, PAD, BEGIN_OF_IMAGE)
            )
        whole = checkpoint.build(JanusForConditionalGeneration, config)
        with checkpoint.finding():
            checkpoint.check(
                {
                    name: tensor.shape
                    for name, tensor in whole.state_dict().items()
                    if not name.startswith(NOT_NEEDED)
                }
            )
        self._decoder = checkpoint.build(JanusVQDecoder, config.vq_config)
        checkpoint.load(self._decoder, "model.vqmodel.", device)
        self._device = device

    @staticmethod
    def read_spec(checkpoint: Checkpoint) -> ImageModelSpec:
        """The facts of its ``config.json``; the window is a third of a row.

        Nobody has published a window for Janus; a third is what ZipAR's authors take for
        Lumina-mGPT (15 of 48, arXiv 2412.04062).
        """
        config = checkpoint.parse_config(JanusConfig)
        side = config.vq_config.num_patches
        pixels = side * 2 ** (len(config.vq_config.channel_multiplier) - 1)
        grid = Grid(side, side)
        return ImageModelSpec(
            family="janus-pro",
            vocabulary=Vocabulary(
                first_id=config.text_config.vocab_size,
                num_codes=config.vq_config.num_embeddings,
                first_column=0,
            ),
            sizes=FixedSizes({f"{pixels}x{pixels}": grid}),
            defaults=ImageOptions(
                window=max(side // 3, 1),
                guidance_scale=5.0,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
            ),
            max_prompt_tokens=config.text_config.max_position_embeddings - grid.num_positions,
        )

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """Encode both lanes; without a negative prompt, all text of the second one is padding."""
        conditional = self._encode(text)
        if not guided:
            return Prompts(conditional, [])
        if negative is not None:
            return Prompts(conditional, self._encode(negative))
        kept = (self._begin, self._begin_of_image)
        return Prompts(conditional, [i if i in kept else self._pad for i in conditional])

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Render pictures: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        return render(self._decoder, codes.to(self._device))

    def _encode(self, text: str) -> list[int]:
        prompt = TEMPLATE.format(text=text.strip())
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return [self._begin, *ids]

    def _special_id(self, checkpoint: Checkpoint, token: str, vocabulary: int) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None:
            raise checkpoint.error(f"tokenizer.json has no token {token}")
        if found >= vocabulary:
            raise checkpoint.error(
                f"tokenizer.json gives {token} the id {found}, the model has {vocabulary}",
                f"tokenizer.json and config.json: {SAME_SOURCE}",
            )
        return found
