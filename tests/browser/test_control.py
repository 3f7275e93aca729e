"""ControlNets on the page of a service that has one, and the picture that it follows."""

import base64
import io
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from PIL import Image, ImageDraw
from playwright.async_api import Page, expect

from serve.settings import EMBEDDED_FOLDER
from tests.browser.conftest import draw, held, served_with
from tests.browser.test_care import violations
from tests.browser.test_make import made, sent_by

PRESETS = """
presets:
  - name: sketch
    title: {en: Sketch, zh: 草图}
    controlnet: lines
    controlnet_conditioning_scale: 0.4
    locked: [controlnet, controlnet_conditioning_scale]
"""
WEIGHTS = str(EMBEDDED_FOLDER / "controlnets" / "lines")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(settings, tmp_path_factory) -> AsyncIterator[str]:
    controlnets = {"lines": {"weights": WEIGHTS, "scale": 0.85}}
    folder = tmp_path_factory.mktemp("controlnets")
    async with served_with(settings, folder, PRESETS, controlnets=controlnets) as url:
        yield url


@pytest.fixture(scope="module")
def circle() -> dict[str, object]:
    lines, file = Image.new("RGB", (96, 64)), io.BytesIO()
    ImageDraw.Draw(lines).ellipse((20, 4, 76, 60), outline="white", width=2)
    lines.save(file, "PNG")
    return {"name": "circle.png", "mimeType": "image/png", "buffer": file.getvalue()}


def data_url(file: dict[str, object]) -> str:
    return "data:image/png;base64," + base64.b64encode(file["buffer"]).decode()


def lines(page: Page):
    return page.get_by_role("group", name="ControlNet").get_by_role("button", name="lines")


def strength(page: Page):
    return page.get_by_role("slider", name="How closely it is followed")


def followed(page: Page):
    return page.get_by_role("img", name="The picture to follow")


async def open_picture(page: Page, file: dict[str, object]) -> None:
    await expect(lines(page)).to_be_visible()  # the model is known
    await page.locator("form > input[type=file]").set_input_files(file)


async def test_one_is_chosen_with_its_picture_and_strength_and_comes_back(visit, url, circle):
    async with visit(url) as page:
        await lines(page).click()
        await expect(strength(page)).to_have_value("0.85")
        await page.get_by_label("The picture to follow").set_input_files(circle)
        await expect(followed(page)).to_be_visible()
        sent = await sent_by(page, lambda: draw(page, "an orange as it comes"))
        assert (sent["controlnet"], sent["control_image"]) == ("lines", data_url(circle))
        assert "controlnet_conditioning_scale" not in sent, "the service's own, which may change"
        await strength(page).fill("0.6")
        sent = await sent_by(page, lambda: draw(page, "an orange in a circle"))
        assert (sent["controlnet_conditioning_scale"], "size" in sent) == (0.6, False)
        card = page.locator(".card", has_text="an orange in a circle")
        await expect(card.locator(".state.succeeded")).to_be_visible()
        await page.get_by_role("group", name="ControlNet").get_by_role("button", name="None").click()
        await expect(strength(page)).to_have_count(0)
        await card.locator("button.cell").click()
        details = page.get_by_role("dialog", name="Details")
        await expect(details).to_contain_text("lines × 0.6")
        await expect(details.locator("dd .begun img")).to_be_visible()
        await details.get_by_role("button", name="Use these settings").click()
        await expect(strength(page)).to_have_value("0.6")
        await expect(followed(page)).to_be_visible()
        await expect(lines(page).locator("img")).to_have_count(1)  # what was drawn with it, for the next one to see
        again = await sent_by(page, lambda: page.get_by_role("button", name="Draw").click())
        assert again["control_image"].startswith("input:")
        assert (again["controlnet"], again["controlnet_conditioning_scale"]) == ("lines", 0.6)


async def test_without_its_picture_the_page_says_what_is_missing(visit, url):
    async with visit(url) as page:
        await lines(page).click()
        await draw(page, "an orange along nothing")
        error = page.locator(".make .error")
        await expect(error).to_contain_text("This value is not accepted (The picture to follow)")
        await expect(error).to_contain_text("controlnet 'lines' is sent without control_image")
        assert await violations(page) == []


async def test_a_choice_whose_picture_comes_while_the_mouse_is_down_is_made(visit, url, circle):
    async with visit(url) as page:
        await made(page, url, controlnet="lines", control_image=data_url(circle))
        known = await held(page, "**/v1/jobs?*")
        await page.reload()
        await lines(page).hover()
        await page.mouse.down()
        await expect(lines(page).locator("img")).to_have_count(0)
        known.set()
        await expect(lines(page).locator("img")).to_have_count(1)
        await page.mouse.up()
        await expect(lines(page)).to_have_attribute("aria-pressed", "true")


async def test_a_picture_that_is_opened_may_be_followed_or_begun_with(visit, url, circle):
    async with visit(url) as page:
        await open_picture(page, circle)
        dialog = page.get_by_role("dialog", name="What about this picture?")
        await expect(dialog.get_by_role("button", name="Load its settings")).to_have_count(0)
        await dialog.get_by_role("button", name="Follow it").click()
        await expect(lines(page)).to_have_attribute("aria-pressed", "true")
        await expect(followed(page)).to_be_visible()
        await open_picture(page, circle)
        await dialog.get_by_role("button", name="Begin with it").click()
        await expect(page.get_by_role("img", name="The picture to begin with")).to_be_visible()
        assert await violations(page) == []
        sent = await sent_by(page, lambda: draw(page, "an orange twice"))
        assert sent["image"] == sent["control_image"] == data_url(circle)
        card = page.locator(".card", has_text="an orange twice")
        await expect(card.locator(".state.succeeded")).to_be_visible()


async def test_the_gallery_the_file_and_variations_know_it(visit, url, circle):
    async with visit(url) as page:
        how = {"controlnet": "lines", "controlnet_conditioning_scale": 0.7, "control_image": data_url(circle)}
        job = await made(page, url, prompt="a lemon in a circle", **how)
        await page.reload()
        await page.get_by_role("button", name="Gallery").click()
        await page.get_by_role("button", name="a lemon in a circle", exact=True).first.click()
        details = page.get_by_role("dialog", name="Details")
        await expect(details).to_contain_text("lines × 0.7")
        async with page.expect_response(lambda one: one.url.endswith(f"/v1/jobs/{job['id']}/rerun")) as answered:
            await details.get_by_role("button", name="Variations").click()
        varied = (await (await answered.value).json())["request"]
        assert varied["control_image"].startswith("input:")
        assert (varied["controlnet"], varied["controlnet_conditioning_scale"]) == ("lines", 0.7)
        picture = await page.context.request.get(f"{url}/v1/assets/{job['result']['images'][0]['asset_id']}")
        await open_picture(page, circle | {"buffer": await picture.body()})
        await page.get_by_role("button", name="Load its settings").click()
        await expect(strength(page)).to_have_value("0.7")
        await expect(lines(page)).to_have_attribute("aria-pressed", "true")
        await expect(followed(page)).to_have_count(0)  # the file does not hold it
        await expect(page.get_by_role("button", name="Choose the picture to follow")).to_be_visible()


async def test_a_preset_that_insists_on_its_own_asks_for_the_picture_alone(visit, url, circle):
    async with visit(url) as page:
        await page.get_by_role("button", name="Sketch").click()
        await expect(page.get_by_role("group", name="ControlNet")).to_have_count(0)
        await expect(strength(page)).to_have_count(0)
        sent = await sent_by(page, lambda: draw(page, "a sketch of nothing"))
        assert "controlnet" not in sent
        await page.get_by_label("The picture to follow").set_input_files(circle)
        await expect(followed(page)).to_be_visible()
        sent = await sent_by(page, lambda: draw(page, "a sketch of an orange"))
        assert (sent["controlnet"], "controlnet_conditioning_scale" in sent) == ("lines", False)
        card = page.locator(".card", has_text="a sketch of an orange")
        await expect(card.locator(".state.succeeded")).to_be_visible()


async def test_where_there_are_none_nothing_is_said_of_them(page):
    await expect(page.get_by_role("group", name="Size")).to_be_visible()
    await expect(page.get_by_label("Width")).to_have_attribute("max", "256")  # the model is known
    await expect(page.get_by_role("group", name="ControlNet")).to_have_count(0)
