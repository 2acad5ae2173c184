"""Take the README's picture of the web page: a prompt in raster order, with ZipAR, with drafts.

python -m benchmarks.screenshot --url http://127.0.0.1:8000 --output docs/page.png
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

WIDTH, HEIGHT = 1100, 760
DRAW_SECONDS = 600


def screenshot(
    url: str, prompt: str, seed: int, scheme: Literal["light", "dark"], browser: str
) -> bytes:
    """The page as a PNG file, once all its pictures are whole."""
    with sync_playwright() as driver:
        # Containers seldom grant the namespaces that Chromium's sandbox asks for.
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme, device_scale_factor=2
        )
        page.goto(url)
        page.locator("#prompt").fill(prompt)
        page.locator("#seed").fill(str(seed))
        page.get_by_role("button", name="Draw", exact=True).click()
        ended = page.locator("#status:text('Done'), #error:visible")
        ended.wait_for(timeout=DRAW_SECONDS * 1000)
        if page.locator("#error").is_visible():
            raise SystemExit(page.locator("#error").inner_text())
        file = page.screenshot()
        chromium.close()
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--output", type=Path, default=Path("docs/page.png"))
    parser.add_argument("--prompt", default="red apple")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="path of Chromium")
    options = parser.parse_args()
    if not options.browser:
        parser.error("needed: Chromium, or --browser /path/to/it")
    file = screenshot(options.url, options.prompt, options.seed, options.scheme, options.browser)
    options.output.write_bytes(file)
    print(f"{options.output}: {len(file)} bytes")


if __name__ == "__main__":
    main()
