"""Published families over HTTP, by hub ids from an offline cache, as if they were downloaded."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoints import emu3, emu35, janus, llamagen, lumina
from tests.hub import put_into_cache
from zipar_vllm.models.base import Prompts
from zipar_vllm.models.registry import load_image_model

from .conftest import Server, start_server

pytestmark = pytest.mark.live

TEXT_ENCODER = "somebody/t5"
OPTIONS = [
    *("--dtype", "float32"),
    *("--kv-cache-memory-bytes", str(32 << 20)),
    "--enforce-eager",
    "--nearest-size",
]


def draw_janus(path: Path, prompts: Prompts) -> torch.Tensor:
    oracle, ids = janus.load_oracle(path), torch.tensor([prompts.conditional])
    options: dict[str, Any] = {"do_sample": False, "guidance_scale": 5.0}
    mask = torch.ones_like(ids)
    codes = oracle.generate(ids, attention_mask=mask, generation_mode="image", **options)
    pixels: torch.Tensor = oracle.decode_image_tokens(codes)[0]
    return pixels


def draw_emu3(path: Path, prompts: Prompts) -> torch.Tensor:
    oracle = emu3.load_oracle(path)
    tokens = emu3.generate(oracle, prompts, rows=8, columns=8, guidance=3.0)
    codes = torch.tensor(tokens).view(1, 8, 9)[:, :, :8] - emu3.FIRST_ID
    pixels: torch.Tensor = oracle.model.vqmodel.decode(codes)[0].permute(1, 2, 0)
    return pixels


def draw_emu35(path: Path, prompts: Prompts) -> torch.Tensor:
    oracle = emu35.load_oracle(path)
    tokens = emu35.generate(oracle, prompts, rows=8, columns=8, guidance=5.0)
    codes = torch.tensor(tokens).view(1, 8, 9)[:, :, :8] - emu35.FIRST_ID
    pixels: torch.Tensor = emu35.load_decoder(path)(codes)[0].permute(1, 2, 0)
    return pixels


def draw_llamagen(path: Path, prompts: Prompts) -> torch.Tensor:
    transformer, decoder = llamagen.load_oracles(path)
    (label,) = prompts.conditional
    codes = transformer.generate(label - llamagen.CODES, guidance=4.0)
    return decoder.decode(torch.tensor(codes).view(1, 8, 8))[0].permute(1, 2, 0)


def make_text(path: Path) -> None:
    llamagen.make_llamagen(path, features=llamagen.FEATURES)


def draw_text(path: Path, prompts: Prompts) -> torch.Tensor:
    transformer, decoder = llamagen.load_oracles(path, features=llamagen.FEATURES)
    features, kept = llamagen.encode_padded(path.parent / "t5", "a red apple")
    codes = transformer.generate_text(features, kept, guidance=7.5, count=64)
    return decoder.decode(torch.tensor(codes).view(1, 8, 8))[0].permute(1, 2, 0)


def draw_lumina(path: Path, prompts: Prompts) -> torch.Tensor:
    oracle = lumina.LuminaAsCausalModel(path)
    tokens = lumina.generate(oracle, prompts, rows=8, columns=8, guidance=4.0)
    codes = torch.tensor(tokens).view(1, 8, 9)[:, :, :8] - lumina.FIRST_ID
    pixels: torch.Tensor = lumina.load_vqgan(path)(codes)[0].permute(1, 2, 0)
    return pixels


@dataclass(frozen=True)
class Family:
    """What the tests know of one; its default grid has 8 x 8 tokens.

    Attributes:
        make: Saves a small checkpoint.
        draw: The oracle's greedy picture of prompts, in [-1, 1].
        size, window: Its defaults.
        wanted, other: A size to ask for, and the one that is drawn then.
        prompt, negative: What it is asked for.
        max_model_len: The engine's.
    """

    name: str
    make: Callable[[Path], None]
    draw: Callable[[Path, Prompts], torch.Tensor]
    size: str
    window: int
    wanted: str
    other: str
    prompt: str = "a red apple"
    negative: str = "dogs"
    max_model_len: int = 1024


FAMILIES = [
    Family("janus-pro", janus.make_janus, draw_janus, "128x128", 2, "1024x1024", "128x128"),
    Family("emu3", emu3.make_emu3, draw_emu3, "64x64", 7, "97x50", "96x48"),
    Family("emu3.5", emu35.make_emu35, draw_emu35, "128x128", 1, "200x100", "192x96"),
    Family(
        *("llamagen", llamagen.make_llamagen, draw_llamagen, "128x128", 6, "512x1024", "128x128"),
        prompt="golden retriever",
        negative="tench",
        max_model_len=66,
    ),
    Family(
        *("llamagen-t2i", make_text, draw_text, "128x128", 6, "512x1024", "128x128"),
        max_model_len=304,
    ),
    Family("lumina-mgpt", lumina.make_lumina, draw_lumina, "128x128", 2, "100x50", "160x96"),
]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(scope="module")
def path(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(family.name) / "checkpoint"
    family.make(path)
    return path


def published(path: Path) -> Path:
    """A copy that names its text encoder, if it has one, by a hub id."""
    copy = Path(shutil.copytree(path, path.with_name("published")))
    config = json.loads((copy / "config.json").read_text())
    if "caption_encoder" in config:
        config["caption_encoder"] = TEXT_ENCODER
        (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module")
def server(family: Family, path: Path) -> Iterator[Server]:
    cache, model = path.parent / "hub", f"somebody/{family.name}"
    put_into_cache(published(path), model, cache)
    if (text_encoder := path.parent / "t5").is_dir():
        put_into_cache(text_encoder, TEXT_ENCODER, cache)
    if (vision := path.parent / emu35.VISION_TOKENIZER).is_dir():
        put_into_cache(vision, f"BAAI/{emu35.VISION_TOKENIZER}", cache)
    server = start_server(
        path.parent / "server.log",
        *OPTIONS,
        *("--max-model-len", str(family.max_model_len)),
        model=model,
        environment={"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
    )
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(90) == 0, server.log.read_text()[-2000:]


def post(server: Server, family: Family, **fields: Any) -> httpx.Response:
    url = f"{server.url}/v1/images/generations"
    return httpx.post(url, json={"prompt": family.prompt, **fields}, timeout=60)


def pixels(answer: httpx.Response) -> np.ndarray[Any, Any]:
    file = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(file)))


def test_it_says_what_it_offers(server: Server, family: Family) -> None:
    (model, _) = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert model["id"] == f"somebody/{family.name}"
    assert (model["zipar"]["family"], model["zipar"]["sizes"][0]) == (family.name, family.size)
    assert model["zipar"]["defaults"]["window"] == family.window


def test_a_default_request_and_its_seed_again(server: Server, family: Family) -> None:
    first, again, other = (post(server, family, seed=seed) for seed in (1, 1, 2))
    answer = first.json()
    assert (answer["size"], answer["zipar"]["window"]) == (family.size, family.window)
    assert answer["zipar"]["steps"] == 8 + 7 * family.window
    assert answer["usage"]["output_tokens"] == 64
    assert np.array_equal(pixels(first), pixels(again))
    assert not np.array_equal(pixels(first), pixels(other))


def test_a_greedy_picture_is_the_oracles(server: Server, family: Family, path: Path) -> None:
    model = load_image_model(path)
    prompts = model.prompts(family.prompt, None, model.spec.grids[family.size], guided=True)
    with torch.no_grad():
        expected = (family.draw(path, prompts).clamp(-1, 1) + 1) * 127.5
    got = pixels(post(server, family, temperature=0.0, zipar={"window": 8}))
    assert np.abs(got - expected.numpy()).max() < 0.5 + 127.5 * 1e-4


def test_a_negative_prompt_and_another_guidance_change_it(server: Server, family: Family) -> None:
    plain, negative, unguided = (
        pixels(post(server, family, seed=1, **fields))
        for fields in ({}, {"negative_prompt": family.negative}, {"guidance_scale": 1.0})
    )
    assert not np.array_equal(plain, negative)
    assert not np.array_equal(plain, unguided)


def test_streaming_with_partial_images(server: Server, family: Family) -> None:
    answer = post(server, family, seed=1, stream=True, partial_images=2)
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:5] == "data:"]
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert events[-1]["b64_json"] == post(server, family, seed=1).json()["data"][0]["b64_json"]


def test_another_size_is_the_nearest_that_it_draws(server: Server, family: Family) -> None:
    answer = post(server, family, size=family.wanted)
    assert answer.json()["size"] == family.other
    height, width, _ = pixels(answer).shape
    assert f"{width}x{height}" == family.other


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_what_is_no_class_is_refused(server: Server, family: Family, field: str) -> None:
    if family.name != "llamagen":
        pytest.skip("takes any text")
    answer = post(server, family, **{field: "a red apple"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["message"].startswith(f"{field}: got 'a red apple', allowed is a class: 0 to 999")


def test_a_size_that_can_never_fit_is_refused(server: Server, family: Family) -> None:
    if family.name != "emu3":
        pytest.skip("has no size that large")
    answer = post(server, family, size="512x512")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "size"
    assert "max_model_len is 1024" in answer.json()["error"]["message"]
