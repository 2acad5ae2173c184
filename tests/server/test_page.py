"""The web page, in Chromium, on the routes over a fake engine."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import uvicorn
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from server.errors import APIError
from tests.fakes import FakeEngine
from zipar_vllm.errors import EngineUnavailableError

CHROMIUM = shutil.which("chromium")
# What Chromium itself says of every answer that is an error: the page shows those in words.
REFUSED = "Failed to load resource"

# One browser for all tests, hence one event loop.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the page is not driven"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as driver:
        # Containers seldom grant the namespaces that Chromium's sandbox asks for.
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def url(http: httpx.AsyncClient) -> AsyncIterator[str]:
    """Where the application of ``http`` listens."""
    app = http.app  # type: ignore[attr-defined]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console says is wrong; empty at the end of every test."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser, url: str, complaints: list[str]) -> AsyncIterator[Page]:
    """The page, filled in with what the model offers."""
    page = await open_page(browser, url, complaints)
    await expect(page.locator("#model")).to_contain_text("fake")
    yield page
    await page.close()
    assert complaints == []


async def open_page(browser: Browser, url: str, complaints: list[str]) -> Page:
    page = await browser.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type in ("error", "warning") and not message.text.startswith(REFUSED)
            else None
        ),
    )
    await page.goto(url)
    return page


async def draw(page: Page, prompt: str = "red apple") -> None:
    await page.get_by_role("combobox", name="Prompt").fill(prompt)
    await page.get_by_role("button", name="Draw", exact=True).click()


async def expect_done(page: Page) -> None:
    await expect(page.get_by_role("status")).to_contain_text("Done")


async def widths(page: Page) -> list[int]:
    return await page.locator("figure img").evaluate_all("all => all.map(i => i.naturalWidth)")


async def test_draws_raster_order_zipar_and_drafts_on_the_same_seed(
    page: Page, engine: FakeEngine
) -> None:
    await draw(page)
    await expect_done(page)
    captions = page.locator("figcaption")
    names = ["Raster order", "ZipAR, window 4", "Raster + drafts: the same picture"]
    await expect(captions).to_contain_text(names)
    await expect(captions).to_contain_text([re.compile(r"99 steps, \d+\.\d\d s")] * 3)
    gain = r"1\.0 times the steps and \d+\.\d times the seconds of "
    text = re.compile(f"{gain}ZipAR, window 4; {gain}Raster \\+ drafts")
    await expect(page.locator("#ratio")).to_contain_text(text)
    assert await widths(page) == [64, 64, 64]
    assert len(engine.images[0].prompts.conditional) == 4
    asked = {(image.params.window, image.params.drafts) for image in engine.images}
    assert asked == {(8, 0), (4, 0), (8, 16)}
    (seed,) = {image.params.seed for image in engine.images}
    assert engine.images[0].params.guidance_scale == 2.0
    await expect(page.get_by_role("status")).to_contain_text(str(seed))


@pytest.mark.parametrize("differs", [False, True])
async def test_the_page_says_whether_drafts_gave_the_same_bytes(
    page: Page, engine: FakeEngine, differs: bool
) -> None:
    engine.drafts_differ = differs
    await draw(page)
    await expect_done(page)
    verdict = "Other bytes than raster order" if differs else "Same bytes as raster order"
    await expect(page.locator(".verdict:visible")).to_contain_text([verdict])
    await expect(page.locator("figure").last.locator(".verdict")).to_be_visible()


async def test_drafts_can_be_left_out(page: Page, engine: FakeEngine) -> None:
    await expect(page.locator("figcaption")).to_have_count(3)
    await page.get_by_label("with drafts").uncheck()
    await expect(page.locator("figcaption")).to_contain_text(["Raster order", "ZipAR"])
    await draw(page)
    await expect_done(page)
    assert [image.params.drafts for image in engine.images] == [0, 0]
    await page.get_by_label("side by side").uncheck()
    await expect(page.get_by_label("with drafts")).to_be_disabled()


async def test_a_picture_downloads(page: Page) -> None:
    await page.get_by_label("Seed").fill("5")
    await draw(page, "Red apple!")
    await expect_done(page)
    async with page.expect_download() as download:
        await page.get_by_role("link", name="Download ZipAR, window 4").click()
    file = await download.value
    assert file.suggested_filename == "red-apple-seed-5-window-4.png"
    assert Path(await file.path()).read_bytes().startswith(b"\x89PNG")


async def test_what_waits_says_how_many_are_ahead(page: Page, engine: FakeEngine) -> None:
    engine.hold_at = 0
    await draw(page)
    facts = page.locator(".facts")
    await expect(facts.get_by_text("Waiting", exact=True)).to_have_count(1)
    await expect(facts.get_by_text("Waiting, 1 ahead")).to_have_count(1)
    engine.gate.set()
    await expect_done(page)


async def test_partial_pictures_come_while_the_engine_still_decodes(
    page: Page, engine: FakeEngine
) -> None:
    engine.hold_at = 4
    await draw(page)
    await expect(page.locator("figcaption")).to_contain_text(["3 of 6 rows"] * 3)
    await expect(page.locator("figure")).to_have_count(3)
    assert await widths(page) == [64, 64, 64]
    await expect(page.get_by_role("status")).to_contain_text("Drawing")
    engine.gate.set()
    await expect_done(page)


async def test_stop_ends_the_requests(page: Page, engine: FakeEngine) -> None:
    engine.hold_at = 4
    await draw(page)
    await expect(page.locator("figcaption")).to_contain_text(["3 of 6 rows"] * 3)
    await page.get_by_role("button", name="Stop").click()
    await expect(page.get_by_role("status")).to_have_text("Stopped.")
    await expect(page.get_by_role("button", name="Draw", exact=True)).to_be_focused()
    async with asyncio.timeout(30):
        while len(engine.closed) < 3:
            await asyncio.sleep(0.01)
    await expect(page.get_by_role("alert")).to_be_hidden()
    engine.hold_at = None
    await page.keyboard.press("Enter")
    await expect_done(page)


async def test_every_setting_is_sent(page: Page, engine: FakeEngine) -> None:
    await page.get_by_label("Size").select_option("32x32")
    await page.get_by_label("Window").fill("3")
    await page.get_by_role("button", name="New seed").click()
    seed = int(await page.get_by_label("Seed").input_value())
    await page.get_by_label("side by side").uncheck()
    await page.get_by_text("Advanced").click()
    await page.get_by_label("Guidance").fill("1.5")
    await page.get_by_label("Temperature").fill("0")
    await page.get_by_text("What the model can draw (1)").click()
    await page.get_by_role("button", name="apple").click()
    await page.get_by_role("combobox", name="Prompt").press("Enter")
    await expect_done(page)
    (image,) = engine.images
    params = image.params
    assert len(image.prompts.conditional) == 3
    assert (image.grid.rows, image.grid.columns) == (4, 4)
    assert (params.window, params.seed) == (3, seed)
    assert (params.guidance_scale, params.temperature) == (1.5, 0.0)
    assert await widths(page) == [32]


async def test_the_adaptive_window(page: Page, engine: FakeEngine, tmp_path: Path) -> None:
    await page.get_by_label("Adaptive").check()
    await draw(page)
    await expect_done(page)
    captions = page.locator("figcaption")
    await expect(captions).to_contain_text(["Raster order", "ZipAR, window 4 or more", "drafts"])
    asked = {(image.params.window, image.params.policy) for image in engine.images}
    assert asked == {(8, "fixed_window"), (4, "adaptive_window")}
    link = page.get_by_role("link", name="Download ZipAR")
    assert (await link.get_attribute("download")).endswith("-window-4-adaptive.png")


async def test_the_widest_window_is_drawn_once(page: Page, engine: FakeEngine) -> None:
    await page.get_by_label("Window").fill("8")
    await expect(page.locator("figcaption")).to_contain_text(["Raster order", "drafts"])
    await page.get_by_label("side by side").uncheck()
    await draw(page)
    await expect_done(page)
    await expect(page.locator("figcaption")).to_contain_text(["Raster order"])
    await expect(page.locator("#ratio")).to_be_hidden()
    assert len(engine.images) == 1


async def test_a_refusal_is_told_in_words_and_shown_at_its_field(page: Page) -> None:
    await draw(page, "x " * 60)
    await expect(page.get_by_role("alert")).to_contain_text("allowed is up to 50 tokens")
    prompt = page.get_by_role("combobox", name="Prompt")
    await expect(prompt).to_be_focused()
    await expect(prompt).to_have_attribute("aria-invalid", "true")
    await draw(page)
    await expect_done(page)
    await expect(page.get_by_role("alert")).to_be_hidden()
    assert await prompt.get_attribute("aria-invalid") is None


async def test_a_failure_amid_the_picture_is_told_in_words(page: Page, engine: FakeEngine) -> None:
    engine.hold_at, engine.error = 4, EngineUnavailableError("draining")
    await draw(page)
    await expect(page.get_by_role("alert")).to_have_text("the server is shutting down")
    await expect(page.locator("figcaption")).to_contain_text(["Failed"] * 3)


async def test_a_lost_server_is_told_in_words(page: Page, complaints: list[str]) -> None:
    await page.route("**/v1/**", lambda route: route.abort())
    await draw(page)
    await expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    assert all("Failed to fetch" in complaint for complaint in complaints)
    complaints.clear()


async def test_an_api_key_is_asked_for_where_one_is_needed(
    browser: Browser, url: str, complaints: list[str]
) -> None:
    async def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            await route.continue_()
        else:
            await route.fulfill(status=401, json=APIError(401, "the key is missing").body())

    context = await browser.new_context()
    await context.route("**/v1/**", guard)
    page = await context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(url)
    await expect(page.get_by_role("alert")).to_have_text("the key is missing")
    await page.get_by_label("API key").fill("secret")
    await draw(page)
    await expect_done(page)
    await page.reload()
    await expect(page.locator("#model")).to_contain_text("fake")
    await expect(page.get_by_label("API key")).to_be_hidden()
    await context.close()
    assert complaints == []


async def test_no_key_is_asked_for_elsewhere(page: Page) -> None:
    await expect(page.get_by_label("API key")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_a_phone_needs_no_sideways_scrolling(page: Page, scheme: str) -> None:
    await page.emulate_media(color_scheme=scheme)
    await page.set_viewport_size({"width": 375, "height": 700})
    await page.get_by_text("Advanced").click()
    await page.get_by_text("What the model can draw").click()
    await draw(page)
    await expect_done(page)
    assert await page.evaluate("document.documentElement.scrollWidth") == 375
    boxes = [await figure.bounding_box() for figure in await page.locator("figure").all()]
    left, right, below = (box["y"] for box in boxes if box)
    assert left == right < below  # two side by side here too


async def test_every_control_has_a_name(page: Page) -> None:
    controls = page.locator("input, select, button")
    names = await controls.evaluate_all(
        "all => all.map(c => (c.labels[0] ?? c).textContent.trim())"
    )
    assert names
    assert all(names)


async def test_foreign_scripts_do_not_run(page: Page, url: str, complaints: list[str]) -> None:
    await page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken over'";
            document.body.append(script);
        }"""
    )
    assert await page.title() == "ZipAR"
    assert all("Content Security Policy" in complaint for complaint in complaints)
    assert complaints
    complaints.clear()
    async with httpx.AsyncClient() as client:
        policy = (await client.get(url)).headers["content-security-policy"]
    assert "unsafe" not in policy
