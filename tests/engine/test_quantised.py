"""Quantised weights in the real engine, as a CPU runs them: GPTQ, AWQ, eight-bit integers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.janus import VOCABULARY, JanusAsCausalModel
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import prepare_images

from .conftest import Engine, start_engine

pytestmark = pytest.mark.engine

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs each digit of a word is, from the lowest on."""

Quantised = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""A weight ``[out, in]`` in four bits: what it then is, and its tensors as a format has them."""


def pack(digits: torch.Tensor) -> torch.Tensor:
    """Eight digits of the last side as a word, the first one lowest."""
    words = sum(digits[..., place::8].long() << 4 * place for place in range(8))
    assert isinstance(words, torch.Tensor)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def gptq(weight: torch.Tensor) -> Quantised:
    """Symmetric, by groups of inputs."""
    outputs, inputs = weight.shape
    groups = weight.view(outputs, -1, GROUP)
    scales = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
    rounded = (groups / scales).round().clamp(-8, 7)
    tensors = {
        "qweight": pack((rounded + 8).view(outputs, inputs)).T,
        "scales": scales[..., 0].T.half(),
        "qzeros": torch.full((inputs // GROUP, outputs // 8), 0x77777777, dtype=torch.int32),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }
    return (rounded * scales).view(outputs, inputs), tensors


def awq(weight: torch.Tensor) -> Quantised:
    """With a zero of each group's own."""
    outputs, inputs = weight.shape
    groups = weight.view(outputs, -1, GROUP)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    digits = (groups / scales + zeros).round().clamp(0, 15)

    def pack_outputs(numbers: torch.Tensor) -> torch.Tensor:
        """``[out, n]`` to words ``[n, out / 8]``."""
        return pack(numbers.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1))

    tensors = {
        "qweight": pack_outputs(digits.view(outputs, inputs)),
        "qzeros": pack_outputs(zeros[..., 0]),
        "scales": scales[..., 0].T.half(),
    }
    return ((digits - zeros) * scales).view(outputs, inputs), tensors


def integers(weight: torch.Tensor) -> Quantised:
    """Eight bits by outputs; of four bits' coarseness, so that it can be told from none."""
    scales = weight.abs().amax(-1, keepdim=True) / 7
    rounded = (weight / scales).round()
    return rounded * scales, {"weight": rounded.to(torch.int8), "weight_scale": scales}


EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True}
FORMATS: dict[str, tuple[Callable[[torch.Tensor], Quantised], dict[str, object]]] = {
    "gptq": (gptq, {"bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}),
    "awq": (awq, {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "compressed-tensors": (
        integers,
        {
            "format": "int-quantized",
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {**EIGHT_BITS, "strategy": "channel"},
                    "input_activations": {**EIGHT_BITS, "strategy": "token", "dynamic": True},
                }
            },
        },
    ),
}


def make_quantised(source: Path, packed: Path, unpacked: Path, method: str) -> None:
    """Copies of a checkpoint whose layers are quantised: as a format packs them, and as numbers."""
    quantise, options = FORMATS[method]
    tensors = load_file(source / "model.safetensors")
    few, many = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if name.startswith("model.language_model.layers") and name.endswith("proj.weight"):
            few[name], parts = quantise(tensor)
            del many[name]
            many |= {name.removesuffix("weight") + part: parts[part] for part in parts}
    for folder, contents in ((unpacked, few), (packed, many)):
        shutil.copytree(source, folder)
        contiguous = {name: tensor.contiguous() for name, tensor in contents.items()}
        save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **options}
    (packed / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def scores(path: Path, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Transformers' log-probabilities of a picture's tokens, in float32."""
    model = JanusAsCausalModel(path)
    hidden = model.get_decoder()(torch.tensor([prompt + tokens])).last_hidden_state
    logprobs = model.lm_head(hidden[0, len(prompt) - 1 : -1]).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None] - VOCABULARY)[:, 0]


@pytest.mark.parametrize("method", FORMATS)
def test_pictures_are_the_quantised_weights(
    family_engines: Callable[[str], Engine], tmp_path: Path, method: str
) -> None:
    source = family_engines("janus").path
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    make_quantised(source, packed, unpacked, method)
    engine = start_engine(packed, dtype="bfloat16")
    options = ImageOptions(window=8, temperature=1.0, guidance_scale=1.0)
    (image,) = prepare_images(load_image_model(packed), "a red apple", options, [7])
    tokens = engine.generate(image).tokens
    codes = engine.vocabulary.codes_of_picture(tokens)
    engine.add("given", replace(image, picture=tuple(codes)), logprobs=True)
    engine.run()
    got = torch.tensor(
        [own.logprob for place in engine.logprobs["given"] for own in place.values()]
    )
    rounded, exact = (
        (scores(path, image.prompts.conditional, tokens) - got).abs().mean()
        for path in (unpacked, source)
    )
    assert rounded < 0.2  # bfloat16's rounding
    assert exact > 5 * rounded
