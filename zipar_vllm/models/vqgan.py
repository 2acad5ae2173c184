"""The VQGAN of Chameleon (arXiv 2405.09818), as Meta published it: ``vqgan.yaml``, ``vqgan.ckpt``.

It is taming-transformers' (github.com/CompVis/taming-transformers, ``taming/models/vqgan.py``),
whose decoder transformers has under Janus' name; its own class for Chameleon only encodes.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional
from transformers import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from .tiles import Tail

LEVEL = "decoder.up."


class VQGANDecoder(nn.Module):
    """From codes to pixels, of any height and width.

    Args:
        options: ``model.params`` of ``vqgan.yaml``.

    Attributes:
        num_codes: Size of the codebook.
        factor: Pixels per token, each way.

    Raises:
        ValueError: it attends at other places than the published one.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        layers = options["ddconfig"]
        if layers["attn_resolutions"]:
            raise ValueError(f"attn_resolutions is {layers['attn_resolutions']}, supported is []")
        config = JanusVQVAEConfig(
            latent_channels=layers["z_channels"],
            base_channels=layers["ch"],
            channel_multiplier=layers["ch_mult"],
            num_res_blocks=layers["num_res_blocks"],
            out_channels=layers["out_ch"],
        )
        self.quantize = nn.ModuleDict(
            {"embedding": nn.Embedding(options["n_embed"], options["embed_dim"])}
        )
        self.post_quant_conv = nn.Conv2d(options["embed_dim"], layers["z_channels"], 1)
        self.decoder = JanusVQVAEDecoder(config)
        for level in self.decoder.up:  # Janus attends at the lowest resolution
            del level.attn
        self.num_codes: int = options["n_embed"]
        self.factor: int = 2 ** (len(layers["ch_mult"]) - 1)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels float32 ``[B, 3, H, W]`` in about [-1, 1] of int64 ``[B, rows, columns]``."""
        rows, columns = codes.shape[-2:]
        return self.tail(self._head(codes), rows=rows, columns=columns)

    @property
    def tail(self) -> Tail:
        """What comes behind the lowest resolution; it may be run in tiles."""
        modules = [*self.decoder.up[1:], self.decoder.norm_out]
        return Tail.of(self._tail, modules, self.decoder.num_res_blocks + 1)

    def _head(self, codes: torch.Tensor) -> torch.Tensor:
        """As ``JanusVQVAEDecoder`` begins: the middle, which attends, and the first level."""
        latents = self.quantize["embedding"](codes).permute(0, 3, 1, 2)
        states = self.decoder.mid(self.decoder.conv_in(self.post_quant_conv(latents)))
        return self._level(0, states)

    def _tail(self, states: torch.Tensor) -> torch.Tensor:
        """As it ends: the other levels."""
        for level in range(1, len(self.decoder.up)):
            states = self._level(level, states)
        pixels: torch.Tensor = self.decoder.conv_out(functional.silu(self.decoder.norm_out(states)))
        return pixels

    def _level(self, number: int, states: torch.Tensor) -> torch.Tensor:
        level = self.decoder.up[number]
        for block in level.block:
            states = block(states)
        return level.upsample(states) if hasattr(level, "upsample") else states


def load_vqgan(options: Path, weights: Path, device: torch.device) -> VQGANDecoder:
    """The decoder of ``vqgan.yaml`` with the weights of ``vqgan.ckpt``, in float32, for inference.

    Args:
        options: The YAML file.
        weights: The checkpoint.
        device: Where its weights go; on the meta device they are checked only.

    Raises:
        ValueError: a file is not what it should be; the text names it.
    """
    try:
        with torch.device("meta"):
            decoder = VQGANDecoder(yaml.safe_load(options.read_text())["model"]["params"])
    except KeyError as error:
        raise ValueError(f"{options.name} lacks {error.args[0]}") from None
    except (yaml.YAMLError, StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"{options.name}: {' '.join(str(error).split())}") from None
    try:
        found = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as error:
        raise ValueError(f"{weights.name} is damaged ({' '.join(str(error).split())})") from None
    kept = {}
    for name, needed in decoder.state_dict().items():
        written = _on_disk(name, len(decoder.decoder.up))
        if written not in found:
            raise ValueError(f"{weights.name}: tensor {written} is missing")
        if found[written].shape != needed.shape:
            raise ValueError(
                f"{weights.name}: tensor {written} has shape {list(found[written].shape)}, "
                f"needed is {list(needed.shape)}"
            )
        kept[name] = found[written].to(device, torch.float32)
    decoder.load_state_dict(kept, assign=True)
    return decoder.eval().requires_grad_(False)


def _on_disk(name: str, levels: int) -> str:
    """A tensor's name in the file: taming's level 0 is the finest, Janus' the coarsest."""
    if not name.startswith(LEVEL):
        return name
    level, _, rest = name.removeprefix(LEVEL).partition(".")
    return f"{LEVEL}{levels - 1 - int(level)}.{rest}"
