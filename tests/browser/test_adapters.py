"""Adapters on the page of a service that has some."""

import re
from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Page, expect

from serve.settings import EMBEDDED_FOLDER
from tests.browser.conftest import draw, served_with
from tests.browser.test_make import made, sent_by

WEIGHTS = str(EMBEDDED_FOLDER / "adapters" / "blueprint.safetensors")
PRESETS = """
presets:
  - {name: plan, title: {en: Plan, zh: 蓝图}, adapter: blueprint, adapter_scale: 0.8, locked: [adapter]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(settings, tmp_path_factory) -> AsyncIterator[str]:
    adapters = {"blueprint": WEIGHTS, "soft": {"weights": WEIGHTS, "scale": 0.45}}
    async with served_with(settings, tmp_path_factory.mktemp("adapters"), PRESETS, adapters=adapters) as url:
        yield url


def adapters(page: Page):
    return page.get_by_role("group", name="Adapter")


async def test_one_is_chosen_with_its_strength_and_comes_back(visit, url):
    async with visit(url) as page:
        await adapters(page).get_by_role("button", name="soft").click()
        scale = page.get_by_role("slider", name="Strength of the adapter")
        await expect(scale).to_have_value("0.45")
        sent = await sent_by(page, lambda: draw(page, "a fox as it comes"))
        assert sent["adapter"] == "soft"
        assert "adapter_scale" not in sent, "the service's own, which may change"
        await scale.fill("0.7")
        sent = await sent_by(page, lambda: draw(page, "a fox in blue"))
        assert (sent["adapter"], sent["adapter_scale"]) == ("soft", 0.7)
        card = page.locator(".card").first
        await expect(card).to_contain_text("a fox in blue")
        await expect(card.locator(".state.succeeded")).to_be_visible()
        await adapters(page).get_by_role("button", name="None").click()
        await expect(scale).to_have_count(0)
        await card.locator("button.cell").click()
        details = page.get_by_role("dialog", name="Details")
        await expect(details).to_contain_text("soft × 0.7")
        await details.get_by_role("button", name="Use these settings").click()
        await expect(scale).to_have_value("0.7")
        await expect(adapters(page).locator("img")).to_have_count(1)  # what was drawn with it, for the next one to see


async def test_the_gallery_and_the_file_know_it_too(visit, url):
    async with visit(url) as page:
        job = await made(page, url, prompt="an owl in blue", adapter="blueprint", adapter_scale=0.6)
        await page.reload()
        await page.get_by_role("button", name="Gallery").click()
        await page.get_by_role("button", name="an owl in blue", exact=True).first.click()
        details = page.get_by_role("dialog", name="Details")
        await expect(details).to_contain_text("blueprint × 0.6")
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Make").click()
        picture = await page.context.request.get(f"{url}/v1/assets/{job['result']['images'][0]['asset_id']}")
        file = {"name": "owl.png", "mimeType": "image/png", "buffer": await picture.body()}
        await page.locator("input[type=file]").set_input_files(file)
        await page.get_by_role("button", name="Load its settings").click()
        await expect(page.get_by_role("slider", name="Strength of the adapter")).to_have_value("0.6")
        await expect(adapters(page).get_by_role("button", name="blueprint")).to_have_attribute("aria-pressed", "true")


async def test_a_preset_that_insists_on_its_own_leaves_no_choice(visit, url):
    async with visit(url) as page:
        await adapters(page).get_by_role("button", name="soft").click()
        await page.get_by_role("button", name="Plan").click()
        await expect(adapters(page)).to_have_count(0)
        async with page.expect_response(re.compile("/v1/jobs$")) as answered:
            await draw(page, "a plan of a fox")
        job = await (await answered.value).json()
        assert (job["request"]["adapter"], job["request"]["adapter_scale"]) == ("blueprint", 0.8)


async def test_where_there_are_none_nothing_is_said_of_them(page):
    await expect(page.get_by_role("group", name="Size")).to_be_visible()
    await expect(page.get_by_label("Width")).to_have_attribute("max", "256")  # the model is known
    await expect(adapters(page)).to_have_count(0)
