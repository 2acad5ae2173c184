"""See whether an installation can draw, without a GPU: ``check_models.py PICTURE.png``.

Imports every family's module and every converter, then draws a picture with the embedded model,
by the reference decoder on the CPU; the engine is another matter. A step of the image's build, and
of ``check_install.sh``.
"""

from __future__ import annotations

import sys
from importlib import import_module

import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from zipar_vllm.core.reference import decode_image
from zipar_vllm.models import DEMO_PATH
from zipar_vllm.models.registry import CONVERTERS, FAMILIES, load_image_model
from zipar_vllm.params import ImageOptions
from zipar_vllm.prepare import prepare_images


def main(path: str) -> None:
    """Import, draw, and write the picture; ends with 1 and a line if it is none."""
    for target in (*FAMILIES.values(), *CONVERTERS.values()):
        module, _, name = target.partition(":")
        getattr(import_module(module), name)
        print(f"imported {module}")
    model = load_image_model(DEMO_PATH)
    (image,) = prepare_images(model, "red apple", ImageOptions(), [7])
    body = AutoModelForCausalLM.from_pretrained(DEMO_PATH, dtype=torch.float32).eval()
    vocabulary, params = model.spec.vocabulary, image.params
    result = decode_image(
        body,
        image.prompts.conditional,
        image.grid,
        params.window,
        image_tokens=(vocabulary.first_id, vocabulary.num_codes),
        row_terminator_id=vocabulary.row_terminator,
        unconditional_ids=image.prompts.unconditional,
        guidance_scale=params.guidance_scale,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
    )
    codes = torch.tensor(vocabulary.codes_of_picture(result.tokens))
    (pixels,) = model.decode(codes.view(1, image.grid.rows, image.grid.columns))
    picture = Image.fromarray(pixels.cpu().numpy())
    if len(picture.getcolors(1 << 24) or ()) <= 16:
        sys.exit("one flat colour is no picture")
    picture.save(path)
    print(f"drew {picture.width}x{picture.height} in {result.num_forward_passes} steps: {path}")


if __name__ == "__main__":
    main(sys.argv[1])
