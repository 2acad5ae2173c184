"""Quantised weights in the real engine: GPTQ's four bits, as a CPU runs them."""

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


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A weight ``[out, in]`` in four bits: what it then is, and GPTQ's tensors."""
    outputs, inputs = weight.shape
    groups = weight.view(outputs, -1, GROUP)
    scales = groups.abs().amax(-1, keepdim=True) / 7
    scales = scales.half().float()
    rounded = (groups / scales).round().clamp(-8, 7)
    digits = (rounded + 8).long().view(outputs, inputs).T
    packed = sum(digits[place::8] << 4 * place for place in range(8))
    assert isinstance(packed, torch.Tensor)
    tensors = {
        "qweight": torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int(),
        "scales": scales[..., 0].T.half(),
        "qzeros": torch.full((inputs // GROUP, outputs // 8), 0x77777777, dtype=torch.int32),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP,
    }
    return (rounded * scales).view(outputs, inputs), tensors


def make_quantised(source: Path, packed: Path, unpacked: Path) -> None:
    """Copies of a checkpoint whose layers are of four bits: as GPTQ packs them, and as numbers."""
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
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "sym": True,
        "desc_act": False,
    }
    (packed / "config.json").write_text(json.dumps(config))


@torch.no_grad()
def scores(path: Path, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """Transformers' log-probabilities of a picture's tokens, in float32."""
    model = JanusAsCausalModel(path)
    hidden = model.get_decoder()(torch.tensor([prompt + tokens])).last_hidden_state
    logprobs = model.lm_head(hidden[0, len(prompt) - 1 : -1]).log_softmax(-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None] - VOCABULARY)[:, 0]


def test_gptq_gives_the_quantised_weights_pictures(
    family_engines: Callable[[str], Engine], tmp_path: Path
) -> None:
    source = family_engines("janus").path
    packed, unpacked = tmp_path / "packed", tmp_path / "unpacked"
    make_quantised(source, packed, unpacked)
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
