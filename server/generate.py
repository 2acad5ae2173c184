"""``zipar generate``: one prompt, one picture, no server."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

from tqdm import tqdm

from zipar_vllm.models.demo import DEMO_PATH

from .errors import APIError
from .jobs import ImageJob, parse_request, prepare_job
from .options import ServerOptions
from .schemas import ImageGenerationRequest
from .service import ImageService, Picture


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="zipar generate", description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.png"))
    parser.add_argument("--model", default=str(DEMO_PATH), help="folder of an image model")
    parser.add_argument("--size", help="WxH, one the model offers")
    parser.add_argument("--window", type=int, help="1 to the grid's columns (raster order)")
    parser.add_argument(
        "--adaptive", action="store_true", help="the window is the least that rows wait for"
    )
    parser.add_argument("--seed", type=int)
    parser.add_argument("--negative-prompt")
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    return parser


def main(arguments: list[str]) -> None:
    """Draw a picture and say how."""
    from .cli import set_environment

    parser = make_parser()
    options = parser.parse_args(arguments)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    set_environment()
    try:
        picture = asyncio.run(_draw(options))
    except APIError as error:
        parser.error(error.message)
    options.output.write_bytes(picture.file)
    params = picture.params
    print(
        f"{options.output}: seed {params.seed}, window {params.window}"
        f"{' or more' if params.adaptive else ''}, "
        f"{picture.steps} steps, {picture.seconds.decode:.2f} s"
    )


def make_request(options: argparse.Namespace) -> ImageGenerationRequest:
    """The options as a request to the endpoint, so that both mean the same.

    Raises:
        APIError: 400, naming the option, what came and what is allowed.
    """
    suffix = options.output.suffix.lstrip(".").lower()
    fields = {
        "prompt": options.prompt,
        "size": options.size,
        "seed": options.seed,
        "negative_prompt": options.negative_prompt,
        "guidance_scale": options.guidance_scale,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "output_format": {"jpg": "jpeg", "": "png"}.get(suffix, suffix),
        "zipar": {"window": options.window, "adaptive": options.adaptive},
    }
    return parse_request(fields)


async def _draw(options: argparse.Namespace) -> Picture:
    # vLLM is imported late: `--help` and bad options answer at once.
    from vllm import AsyncEngineArgs, AsyncLLMEngine

    from zipar_vllm.engine.arguments import engine_arguments
    from zipar_vllm.engine.client import ImageClient
    from zipar_vllm.models.registry import load_image_model

    model = load_image_model(options.model)
    job = prepare_job(make_request(options), model, has_storage=False)
    arguments = AsyncEngineArgs(
        **engine_arguments(options.model), kv_cache_memory_bytes=256 << 20, disable_log_stats=False
    )
    engine = AsyncLLMEngine.from_engine_args(arguments)
    service = ImageService(ImageClient(engine, model.spec), model, ServerOptions())
    try:
        return await _watch(service, job)
    finally:
        service.close()
        engine.shutdown()
        del service, engine  # vLLM's destructor fails at interpreter exit


async def _watch(service: ImageService, job: ImageJob) -> Picture:
    """Draw one image with a bar that moves as rows finish."""
    with tqdm(total=job.grid.rows, unit="row") as bar:

        def show(rows: int) -> bool:
            bar.update(rows - bar.n)
            return False

        async for picture in service.pictures(job, wants_partial=show):
            whole = picture
        bar.update(job.grid.rows - bar.n)
    return whole
