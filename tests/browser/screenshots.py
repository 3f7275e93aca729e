"""The pictures of the page in docs/: `python -m tests.browser.screenshots`. Debian's Chromium, the embedded model."""

import asyncio
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.async_api import Page, async_playwright, expect

from serve.api.app import create_app
from serve.local import open_service
from serve.presets.hot import hot_presets
from serve.settings import EMBEDDED_FOLDER, Settings
from tests.api.conftest import served
from tests.browser.conftest import CHROMIUM, draw

PROMPTS = """a red fox on a yellow background
a penguin in the snow
a rocket on a dark blue background
a cat on a pink background
an apple on a white background
a green frog on a purple background
a bee on a light blue background
a pizza on an orange background
a whale on a blue background
a cactus on a yellow background
an owl on a black background
a rose on a white background""".splitlines()
DOCS = Path(__file__).parents[2] / "docs"


async def main(folder: Path) -> None:
    adapters = {"blueprint": str(EMBEDDED_FOLDER / "adapters" / "blueprint.safetensors")}
    lines = {"lines": {"weights": str(EMBEDDED_FOLDER / "controlnets" / "lines"), "scale": 1.0}}
    settings = Settings(data=tempfile.mkdtemp(), warmup_sizes_px=(128,), adapters=adapters, controlnets=lines)
    presets = hot_presets(settings)
    await presets.open()
    async with open_service(settings) as service, async_playwright() as playwright:
        app = create_app(service, service.assets, service.prompts, settings, presets=presets)
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        async with served(app) as url:
            page = await browser.new_page(viewport={"width": 1360, "height": 860}, locale="en-GB")
            await page.goto(url)
            await shoot(page, folder / "page-empty.webp")
            for prompt in reversed(PROMPTS):
                await draw(page, prompt)
                await expect(page.locator(".card").first).to_contain_text(prompt)
            await expect(page.locator(".card.succeeded")).to_have_count(len(PROMPTS), timeout=300_000)
            await page.get_by_role("button", name="Emoji").click()
            await page.get_by_label("Pictures").select_option("4")
            await page.get_by_role("group", name="Size").get_by_text("1:1").click()
            await draw(page, "a lion")
            await draw(page, "a tiger")
            await expect(page.locator(".card.running .preview").first).to_be_visible()
            await shoot(page, folder / "page.webp")
            await expect(page.locator(".card.succeeded")).to_have_count(len(PROMPTS) + 2, timeout=300_000)
            await shoot_others(page, folder)
            await page.get_by_role("button", name="Gallery").click()
            await page.wait_for_timeout(1500)
            await shoot(page, folder / "page-gallery.webp")
            await page.locator(".tile button").nth(5).click()
            await page.wait_for_timeout(500)
            await shoot(page, folder / "page-details.webp")
            await page.keyboard.press("Escape")
            await page.get_by_role("button", name="Make").click()
            await page.get_by_label("Colours").click()
            await page.get_by_label("Colours").click()
            await page.get_by_role("button", name="中文").click()
            await page.set_viewport_size({"width": 390, "height": 844})
            await page.wait_for_timeout(500)
            await shoot(page, folder / "page-phone.webp")
        await browser.close()


async def shoot_others(page: Page, folder: Path) -> None:
    """What an operator sees, an error, and a picture to begin with."""
    await page.get_by_role("button", name="Admin").click()
    await page.get_by_role("button", name="Pause").click()
    await page.get_by_role("button", name="Make").click()
    await draw(page, "a lighthouse")
    await page.get_by_role("button", name="Admin").click()
    await expect(page.locator("tbody").first).to_contain_text("a lighthouse")
    await shoot(page, folder / "page-admin.webp")
    await page.get_by_role("button", name="Resume").click()
    await page.get_by_role("button", name="Make").click()
    await page.locator(".card").nth(3).locator("button.cell").click()
    await page.get_by_role("button", name="Begin with it").click()
    await page.get_by_label("Width").fill("1000")
    await draw(page, "a red fox in the snow")
    await expect(page.locator(".make .error")).to_be_visible()
    await shoot(page, folder / "page-error.webp")
    await page.get_by_label("Width").fill("")
    await paint(page, folder)
    await page.get_by_role("button", name="Begin with nothing").click()
    await page.get_by_role("group", name="Size").get_by_text("1:1").click()


async def paint(page: Page, folder: Path) -> None:
    await page.get_by_role("button", name="Paint what may change").click()
    box = await page.locator(".easel canvas").bounding_box()
    assert box is not None
    await page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.2 * box["height"])
    await page.mouse.down()
    for at in range(30):
        across, down = 0.3 + 0.014 * at, 0.2 + 0.12 * (at % 5) / 4
        await page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
    await page.mouse.up()
    await shoot(page, folder / "page-paint.webp")
    await page.get_by_role("dialog").get_by_role("button", name="Use this").click()


async def shoot(page: Page, path: Path) -> None:
    Image.open(io.BytesIO(await page.screenshot())).save(path, quality=80, method=6)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS))
