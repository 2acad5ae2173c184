"""vLLM's own models in captured steps: the tokens of engines whose steps are launched one by one.

Captures are recorded on a CPU and replayed operation by operation (``tests/recorded.py``): the
models' vLLM layers, our kernels under Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.cases import NEGATIVE, assert_diverse, make_image
from tests.interpreted import has_gpu
from zipar_vllm.models.registry import load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import ADAPTIVE, PreparedImage, prepare_images

from .conftest import Engine
from .gpu_worker import start_captured

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(has_gpu(), reason="with a GPU, Triton's kernels are not interpreted"),
]

BUDGET = 20
"""Inputs of a step; a prompt's last token may be fed twice, and still fits a captured one of 24."""


def assert_captured_is_uncaptured(
    uncaptured: Engine, images: dict[str, PreparedImage], **arguments: Any
) -> int:
    """Draw images together, each step a replay; the uncaptured engine draws them one at a time.

    Returns:
        How many captured steps were replayed.
    """
    captured, replayed = start_captured(
        uncaptured.path, max_num_batched_tokens=BUDGET, max_num_seqs=4, **arguments
    )

    def launch(step: object) -> None:
        raise AssertionError("a step was launched operation by operation")

    captured.runner.forward = launch
    for name, image in images.items():
        captured.add(name, image)
    captured.run()
    for name, image in images.items():
        drawn = captured.outputs[name]
        assert drawn == uncaptured.generate(image), name
        assert_diverse(drawn.tokens)
    return len({id(graph) for graph in replayed})


@pytest.mark.parametrize("embedded", [False, True], ids=["ids", "embeddings"])
def test_any_batch(engines: Callable[[bool], Engine], embedded: bool) -> None:
    """Of vLLM's Llama: windows, guidance, options, adaptive, with drafts; fed ids or embeddings."""
    uncaptured = engines(True)
    guided: dict[str, Any] = {"unconditional": NEGATIVE, "guidance_scale": 3.0}
    sampled = {"temperature": 0.9}
    images = {
        "greedy": make_image(True, 2, 4, window=1, **guided),
        "sampled": make_image(True, 3, 4, window=4, seed=1, **sampled),
        "guided": make_image(True, 1, 4, window=4, seed=2, top_k=20, **guided, **sampled),
        "adaptive": make_image(True, 3, 3, window=1, policy=ADAPTIVE, **guided, **sampled),
        "drafted": make_image(True, 3, 3, window=2, drafts=1, seed=4, **sampled),
    }
    arguments = {"max_model_len": 128, "enable_prompt_embeds": embedded}
    assert assert_captured_is_uncaptured(uncaptured, images, **arguments) > 1


@pytest.mark.parametrize("family", ["janus", "emu3.5", "lumina", "llamagen"])
def test_a_family_s_model(family_engines: Callable[[str], Engine], family: str) -> None:
    """Guided and sampled beside unguided and greedy."""
    uncaptured = family_engines(family)
    model = load_image_model(uncaptured.path)
    prompt = "goldfish" if family == "llamagen" else "a"

    def image_of(**options: Any) -> PreparedImage:
        options |= {"negative_prompt": prompt, "top_k": 0, "top_p": 1.0}
        image = prepare_images(model, prompt, ImageOptions(**options), [7])[0]
        lanes = image.prompts
        prompts = replace(
            lanes, conditional=lanes.conditional[:8], unconditional=lanes.unconditional[:6]
        )
        return replace(image, grid=replace(image.grid, rows=2, columns=3), prompts=prompts)

    images = {
        "sampled": image_of(window=2, temperature=1.0, guidance_scale=3.0),
        "greedy": image_of(window=1, temperature=0.0, guidance_scale=1.0),
    }
    longest = None if family == "llamagen" else 512
    assert_captured_is_uncaptured(uncaptured, images, max_model_len=longest)
