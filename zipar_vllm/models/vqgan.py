"""The decoder of taming-transformers' VQGAN (arXiv 2012.09841), which several models share.

Source: github.com/CompVis/taming-transformers, ``taming/models/vqgan.py``. Transformers has it
under Janus' name, where it attends at the lowest resolution; LlamaGen's is the same. Chameleon's
(arXiv 2405.09818), which Meta published as ``vqgan.yaml`` and ``vqgan.ckpt``, does not.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
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


class JanusVQDecoder(nn.Module):
    """From codes to pixels, of any height and width; its tensors are named as in ``JanusVQVAE``.

    Args:
        config: Its shape.

    Attributes:
        num_codes: Size of the codebook.
        factor: Pixels per token, each way.
    """

    def __init__(self, config: JanusVQVAEConfig) -> None:
        super().__init__()
        self.num_codes = config.num_embeddings
        self.factor: int = 2 ** (len(config.channel_multiplier) - 1)
        embedding = nn.Embedding(config.num_embeddings, config.embed_dim)
        self.quantize = nn.ModuleDict({"embedding": embedding})
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = JanusVQVAEDecoder(config)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """Pixels float32 ``[B, 3, H, W]`` in about [-1, 1] of int64 ``[B, rows, columns]``."""
        rows, columns = codes.shape[-2:]
        return self.tail(*self._head(codes), rows=rows, columns=columns)

    @property
    def tail(self) -> Tail:
        """What comes behind the lowest resolution; it may be run in tiles."""
        modules = [*self._levels()[1:], self.decoder.norm_out]
        return Tail.of(self._tail, modules, self.decoder.num_res_blocks + 1, self.factor)

    def _head(self, codes: torch.Tensor) -> tuple[torch.Tensor]:
        """As ``JanusVQVAEDecoder`` begins: the middle, which attends, and the first level."""
        # Contiguous, which all behind it then is: of channels that lie last, torch's group norm on
        # a CPU is twenty times less exact at 768 x 768 pixels.
        latents = self._vectors(codes).permute(0, 3, 1, 2).contiguous()
        states = self.decoder.mid(self.decoder.conv_in(self.post_quant_conv(latents)))
        return (_run_level(self._levels()[0], states),)

    def _tail(self, states: torch.Tensor) -> torch.Tensor:
        """As it ends: the other levels."""
        for level in self._levels()[1:]:
            states = _run_level(level, states)
        pixels: torch.Tensor = self.decoder.conv_out(functional.silu(self.decoder.norm_out(states)))
        return pixels

    def _vectors(self, codes: torch.Tensor) -> torch.Tensor:
        """What codes stand for, ``[B, rows, columns, width]``: here vectors of length 1."""
        return functional.normalize(self.quantize["embedding"](codes), dim=-1)

    def _levels(self) -> list[nn.Module]:
        """From the coarsest to the finest."""
        return list(self.decoder.up)


class VQGANDecoder(JanusVQDecoder):
    """The same with its tensors named as taming's.

    Args:
        layers: taming's ``ddconfig``.
        num_codes: Size of the codebook.
        embed_dim: Width of its entries.

    Raises:
        KeyError: ``layers`` lacks a field.
        ValueError: it attends at other places than the lowest resolution.
    """

    def __init__(self, layers: Mapping[str, Any], num_codes: int, embed_dim: int) -> None:
        config = JanusVQVAEConfig(
            num_embeddings=num_codes,
            embed_dim=embed_dim,
            latent_channels=layers["z_channels"],
            base_channels=layers["ch"],
            channel_multiplier=layers["ch_mult"],
            num_res_blocks=layers["num_res_blocks"],
            out_channels=layers["out_ch"],
        )
        super().__init__(config)
        lowest, attended = layers["resolution"] // self.factor, list(layers["attn_resolutions"])
        if attended not in ([], [lowest]):
            raise ValueError(f"attn_resolutions is {attended}, supported is [] or [{lowest}]")
        self.decoder.up = self.decoder.up[::-1]  # Janus' first level is the coarsest
        if not attended:
            self.decoder.up[-1].attn = nn.ModuleList()

    def _vectors(self, codes: torch.Tensor) -> torch.Tensor:
        vectors: torch.Tensor = self.quantize["embedding"](codes)
        return vectors

    def _levels(self) -> list[nn.Module]:
        """The finest is its first one."""
        return list(self.decoder.up)[::-1]


def _run_level(level: Any, states: torch.Tensor) -> torch.Tensor:
    for place, block in enumerate(level.block):
        states = block(states)
        if level.attn:
            states = level.attn[place](states)
    return level.upsample(states) if hasattr(level, "upsample") else states


def load_vqgan(options: Path, weights: Path, device: torch.device) -> VQGANDecoder:
    """Chameleon's decoder, in float32 and for inference: ``vqgan.yaml`` with ``vqgan.ckpt``.

    Args:
        options: The YAML file.
        weights: The checkpoint.
        device: Where its weights go; on the meta device they are checked only.

    Raises:
        ValueError: a file is not what it should be; the text names it.
    """
    try:
        with torch.device("meta"):
            params = yaml.safe_load(options.read_text())["model"]["params"]
            decoder = VQGANDecoder(params["ddconfig"], params["n_embed"], params["embed_dim"])
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
        if name not in found:
            raise ValueError(f"{weights.name}: tensor {name} is missing")
        if found[name].shape != needed.shape:
            raise ValueError(
                f"{weights.name}: tensor {name} has shape {list(found[name].shape)}, "
                f"needed is {list(needed.shape)}"
            )
        kept[name] = found[name].to(device, torch.float32)
    decoder.load_state_dict(kept, assign=True)
    return decoder.eval().requires_grad_(False)
