"""Emu3-Gen (arXiv 2409.18869) in transformers' layout, ``BAAI/Emu3-Gen-hf``.

Texts, guidance, sampling and sizes are those of the authors' ``image_generation.py`` and
``processing_emu3.py`` (github.com/baaivision/Emu3): the size stands in both lanes' prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from tokenizers import Tokenizer
from transformers import Emu3Config, Emu3ForConditionalGeneration

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.params import ImageOptions

from .base import ImageModelSpec, Prompts
from .checkpoint import SAME_SOURCE, Checkpoint
from .emu3_pixels import FirstFrameDecoder
from .emu3_tokens import BEGIN, BEGIN_OF_IMAGE, IMAGE, ROW_TERMINATOR, VISUAL, begin_picture
from .sizes import AnySizes
from .tiles import render

QUALITY = " masterpiece, film grained, best quality."
NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
    "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, "
    "username, blurry."
)
IMAGE_AREA = 518_400
"""Pixels of a picture, whatever its shape: 720 x 720."""
SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
"""Width to height of the sizes worth naming."""

ON_DISK = {
    "model.text_model.": "text_model.model.",
    "lm_head.": "text_model.lm_head.",
    "model.vqmodel.": "vqmodel.",
}
"""Prefixes of the tensors' names in transformers' model, and in the files that it writes."""
PIXELS = "vqmodel."


class Emu3Model:
    """Prompts that tell the picture's rows and columns; pixels by the checkpoint's VQ decoder."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        config = checkpoint.parse_config(Emu3Config)
        self.spec = self.read_spec(checkpoint)
        with checkpoint.finding():
            self._tokenizer = Tokenizer.from_file(str(checkpoint.file("tokenizer.json")))
            for token in (BEGIN, BEGIN_OF_IMAGE, IMAGE):
                if self._tokenizer.token_to_id(token) != config.vocabulary_map.get(token):
                    raise checkpoint.error(
                        f"tokenizer.json and config.json differ in the id of {token}", SAME_SOURCE
                    )
        whole = checkpoint.build(Emu3ForConditionalGeneration, config)
        shapes = {_on_disk(name): tensor.shape for name, tensor in whole.state_dict().items()}
        with checkpoint.finding():
            checkpoint.check({n: shape for n, shape in shapes.items() if not n.startswith(PIXELS)})
        vq_model = whole.model.vqmodel
        del vq_model.encoder, vq_model.quant_conv
        checkpoint.load(vq_model, PIXELS, device)
        self._decoder = FirstFrameDecoder(vq_model)
        self._device = device

    @staticmethod
    def read_spec(checkpoint: Checkpoint) -> ImageModelSpec:
        """The facts of its ``config.json``; the window is ZipAR's for Emu3 (arXiv 2412.04062)."""
        config = checkpoint.parse_config(Emu3Config)
        ids, num_codes = config.vocabulary_map or {}, config.vq_config.codebook_size
        area = checkpoint.config.get("image_area", IMAGE_AREA)
        sizes = AnySizes(
            listed=_listed(area, 2 ** (len(config.vq_config.channel_multiplier) - 1)),
            factor=2 ** (len(config.vq_config.channel_multiplier) - 1),
            max_positions=config.text_config.max_position_embeddings,
            row_terminator=True,
        )
        default = next(iter(sizes.listed.values()))
        return ImageModelSpec(
            family="emu3",
            vocabulary=Vocabulary(
                first_id=_first_id(checkpoint, ids, num_codes),
                num_codes=num_codes,
                row_terminator=ids[ROW_TERMINATOR],
                first_column=0,
            ),
            sizes=sizes,
            defaults=ImageOptions(
                window=min(7, default.columns),
                guidance_scale=3.0,
                temperature=1.0,
                top_k=2048,
                top_p=1.0,
            ),
            max_prompt_tokens=sizes.max_positions - default.num_positions,
        )

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """Encode both lanes; without a negative prompt, the second is the authors' own."""
        conditional = self._encode(text + QUALITY, grid)
        if not guided:
            return Prompts(conditional, [])
        return Prompts(conditional, self._encode(NEGATIVE if negative is None else negative, grid))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Render pictures: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        return render(self._decoder, codes.to(self._device))

    def _encode(self, text: str, grid: Grid) -> list[int]:
        prompt = f"{BEGIN}{text}{begin_picture(grid)}"
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids


def _listed(area: int, factor: int) -> dict[str, Grid]:
    """The sizes of an area in several shapes, each side rounded to tokens as the authors do."""
    listed = {}
    for width, height in SHAPES:
        scale = (area / (width * height)) ** 0.5 / factor
        grid = Grid(round(height * scale), round(width * scale), row_terminator=True)
        listed[f"{grid.columns * factor}x{grid.rows * factor}"] = grid
    return listed


def _first_id(checkpoint: Checkpoint, ids: Mapping[str, int], num_codes: int) -> int:
    """The id of code 0, once the others are known to follow it in order."""
    names = (VISUAL.format(code=code) for code in range(num_codes))
    found = [ids.get(name) for name in names]
    first = found[0]
    if first is None or found != list(range(first, first + num_codes)):
        raise checkpoint.error(
            f"config.json: vocabulary_map lacks some of {num_codes} visual tokens, or their order"
        )
    if ROW_TERMINATOR not in ids:
        raise checkpoint.error(f"config.json: vocabulary_map has no {ROW_TERMINATOR}")
    return first


def _on_disk(name: str) -> str:
    for prefix, written in ON_DISK.items():
        if name.startswith(prefix):
            return written + name.removeprefix(prefix)
    return name
