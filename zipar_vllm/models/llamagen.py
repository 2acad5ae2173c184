"""LlamaGen (arXiv 2406.06525) as ``zipar convert`` writes it: what all have, and classes.

Guidance and sampling are those of the authors' ``sample_c2i.py``
(github.com/FoundationVision/LlamaGen). They have no negative prompt: one is a class, as the prompt
is.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from transformers import JanusVQVAEConfig, LlamaConfig, LlamaModel

from zipar_vllm.core.grid import Grid
from zipar_vllm.core.vocabulary import Vocabulary
from zipar_vllm.errors import InvalidOptionError
from zipar_vllm.params import ImageOptions

from .base import ImageModelSpec, Prompts
from .checkpoint import CONFIG, Checkpoint
from .sizes import FixedSizes
from .tiles import render
from .vqgan import JanusVQDecoder

PIXELS = "vq"
"""Folder of the pixel decoder."""
CONVERT_AGAIN = "write the folder anew, by zipar convert"
FIELDS = ("num_codes", "num_classes", "grid_side", "condition_length")
"""What its ``config.json`` says beside a Llama's."""


class LlamaGenPictures:
    """The transformer's tensors, checked, and pixels by the checkpoint's own VQ decoder."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        config = read_config(checkpoint)
        # Behind the classes there is the one that stands for none.
        tokens = config.num_codes + (config.num_classes and config.num_classes + 1)
        with checkpoint.finding():
            if config.vocab_size != tokens:
                raise checkpoint.error(
                    f"{CONFIG}: vocab_size is {config.vocab_size}, codes and classes are {tokens}",
                    CONVERT_AGAIN,
                )
            body = checkpoint.build(LlamaModel, config)
            shapes = {f"model.{name}": tensor.shape for name, tensor in body.state_dict().items()}
            head = torch.Size([config.num_codes, config.hidden_size])
            checkpoint.check({**shapes, "lm_head.weight": head})
        pixels = checkpoint.part(PIXELS)
        self._decoder = pixels.build(JanusVQDecoder, pixels.parse_config(JanusVQVAEConfig))
        pixels.load(self._decoder, "", device)
        self._device = device

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Render pictures: int64 ``[B, rows, columns]`` to uint8 ``[B, H, W, 3]``."""
        return render(self._decoder, codes.to(self._device))


class LlamaGenModel(LlamaGenPictures):
    """A class is a prompt of one token."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        super().__init__(checkpoint, device)
        self.spec = self.read_spec(checkpoint)
        self._classes = _class_names(checkpoint)
        self._first_class = self.spec.vocabulary.num_codes

    @staticmethod
    def read_spec(checkpoint: Checkpoint) -> ImageModelSpec:
        """The facts of its ``config.json``.

        The window is 16, ZipAR's for LlamaGen (arXiv 2412.04062), where that is less than a row;
        of 16 x 16 tokens, for which nobody has published one, it is two thirds of a row, as it is
        of 24 x 24.
        """
        config = read_config(checkpoint)
        pixels = checkpoint.part(PIXELS).parse_config(JanusVQVAEConfig)
        side = config.grid_side
        width = side * 2 ** (len(pixels.channel_multiplier) - 1)
        return ImageModelSpec(
            family="llamagen",
            vocabulary=Vocabulary(first_id=0, num_codes=config.num_codes),
            sizes=FixedSizes({f"{width}x{width}": Grid(side, side)}),
            defaults=ImageOptions(
                window=min(16, -(-2 * side // 3)),
                guidance_scale=4.0,
                temperature=1.0,
                top_k=2000,
                top_p=1.0,
            ),
            max_prompt_tokens=config.condition_length,
            details={"concepts": _class_names(checkpoint).listed()},
        )

    def prompts(self, text: str, negative: str | None, grid: Grid, guided: bool) -> Prompts:
        """A class per lane; without a negative prompt, the second is the class of no class.

        Raises:
            InvalidOptionError: a text is no class.
        """
        conditional = [self._first_class + self._classes.find("prompt", text)]
        if not guided:
            return Prompts(conditional, [])
        none = len(self._classes)
        steered = none if negative is None else self._classes.find("negative_prompt", negative)
        return Prompts(conditional, [self._first_class + steered])


def read_config(checkpoint: Checkpoint) -> Any:
    """Its ``config.json``, once all of :data:`FIELDS` are known to be there."""
    config = checkpoint.parse_config(LlamaConfig)
    for name in FIELDS:
        if not isinstance(getattr(config, name, None), int):
            raise checkpoint.error(
                f"{CONFIG}: {name} is missing, or no whole number", CONVERT_AGAIN
            )
    return config


def _class_names(checkpoint: Checkpoint) -> ClassNames:
    config = checkpoint.config
    return ClassNames(config.get("id2label", {}), config["num_classes"])


class ClassNames:
    """Numbers of classes by their names.

    Args:
        labels: Names by number, those of one class separated by commas; some may be missing.
        count: Number of classes.
    """

    def __init__(self, labels: Mapping[str, str], count: int) -> None:
        self._count = count
        self._labels = {int(number): label for number, label in labels.items()}
        # A class is told by its first name or by all together; by another if no class has it so.
        self._first: dict[str, list[int]] = {}
        self._other: dict[str, list[int]] = {}
        for number, label in self._labels.items():
            names = [name.strip().lower() for name in label.split(",")]
            for name in dict.fromkeys([", ".join(names), names[0]]):
                self._first.setdefault(name, []).append(number)
            for name in dict.fromkeys(names[1:]):
                self._other.setdefault(name, []).append(number)

    def __len__(self) -> int:
        return self._count

    def find(self, field: str, text: str) -> int:
        """The number of a class that is told by its number or a name.

        Raises:
            InvalidOptionError: there is no such class, or several are called so.
        """
        name = " ".join(text.lower().split())
        if name.isdecimal() and int(name) < self._count:
            return int(name)
        found = self._called(name)
        if len(found) == 1:
            return found[0]
        if found:
            numbers = " or ".join(map(str, found))
            raise InvalidOptionError.of(field, text, f"{numbers}: several classes are called so")
        allowed = f"a class: 0 to {self._count - 1}"
        if self._first:
            known = [*self._first, *self._other]
            like = get_close_matches(name, known, 1, 0.0)
            allowed += f", or its name, such as {like[0]}"
        raise InvalidOptionError.of(field, text, allowed)

    def listed(self) -> list[str]:
        """A text that tells each class that has names, by number: a name if one does."""
        return [
            next((text for text in texts if self._called(text.lower()) == [number]), str(number))
            for number, label in self._labels.items()
            for texts in [(label.split(",")[0].strip(), label)]
        ]

    def _called(self, name: str) -> list[int]:
        return self._first.get(name) or self._other.get(name) or []
