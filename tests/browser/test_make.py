"""From a prompt to the picture, and what is said on the way."""

import asyncio
import base64
import io
import re

import pytest
from PIL import Image
from playwright.async_api import expect

from serve.api.app import create_app
from serve.presets.hot import hot_presets
from tests.browser.conftest import draw

PRESETS = """
presets:
  - {name: kids, title: {en: Kids, zh: 儿童}, prompt: "{prompt} on a yellow background", banned: [gun]}
"""


async def test_a_picture_is_made_and_watched(page):
    await draw(page, "a red fox on a yellow background")
    card = page.locator(".card").first
    await expect(card).to_contain_text("a red fox on a yellow background")
    await expect(card.locator(".cell img[alt='a red fox on a yellow background']")).to_be_visible()
    await expect(card.locator(".state")).to_have_text(re.compile(r"Done · \d+\.\d{3} s"))
    assert await card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 128


async def test_previews_and_steps_are_seen_before_the_picture(page):
    await page.get_by_role("group", name="Size").get_by_text("16:9").click()
    await page.get_by_text("Steps and guidance").click()
    await page.get_by_label("Steps", exact=True).fill("50")
    await page.get_by_label("Pictures").select_option("4")  # the last is long under way when the first has a preview
    await draw(page, "a whale on a blue background")
    card = page.locator(".card").first
    await expect(card.locator(".preview").first).to_be_visible()
    await expect(card.locator(".state")).to_have_text(re.compile(r"Drawing · step \d+/200 · ~\d+ s"))
    await expect(card.locator(".state.succeeded")).to_be_visible(timeout=120_000)
    assert await card.locator("img").first.evaluate("image => image.naturalWidth / image.naturalHeight") > 1.5


async def test_every_choice_of_the_form_reaches_the_job(page, base_url):
    await page.get_by_role("button", name="Wallpaper").click()
    await page.get_by_role("button", name="In the snow", exact=True).click()
    await page.get_by_label("Width").fill("128")
    await page.get_by_label("Height").fill("64")
    await page.get_by_label("Seed", exact=True).fill("7")
    await page.get_by_label("Pictures").select_option("2")
    await page.get_by_label("Format").select_option("webp")
    await page.get_by_text("Steps and guidance").click()
    await page.get_by_label("Steps", exact=True).fill("2")
    await page.get_by_label("Guidance").fill("1.5")
    await page.get_by_label("Negative prompt").fill("rain")
    async with page.expect_response("**/v1/jobs") as answered:
        await draw(page, "a fox")
    job = await (await answered.value).json()
    expected = {
        "size": "128x64",
        "seed": 7,
        "n": 2,
        "output_format": "webp",
        "num_inference_steps": 2,
        "guidance_scale": 1.5,
        "negative_prompt": "rain",
    }
    assert job["request"] | expected == job["request"]
    preset = job["preset"]
    assert (preset["name"], preset["style_preset"], preset["prompt"]) == ("wallpaper", "snow", "a fox")
    await expect(page.locator(".card").first.locator(".cell img:not(.preview)")).to_have_count(2)


async def test_presets_and_styles_are_chosen_by_their_pictures(page):
    presets, styles = page.get_by_role("group", name="Preset"), page.get_by_role("group", name="Style")
    await expect(presets.locator("img")).to_have_count(4)
    await expect(styles.locator("img")).to_have_count(3)
    loaded = "images => Promise.all(images.map((one) => one.decode().then(() => one.naturalWidth)))"
    for group in (presets, styles):
        assert set(await group.locator("img").evaluate_all(loaded)) == {96}
    await presets.get_by_role("button", name="App icon").click()
    await expect(presets.get_by_role("button", name="App icon")).to_have_attribute("aria-pressed", "true")


async def test_limits_are_the_services_own_until_a_preset_has_narrower_ones(page):
    await expect(page.get_by_label("Width")).to_have_attribute("max", "256")
    await page.get_by_role("button", name="Draft").click()
    await expect(page.get_by_label("Width")).to_have_attribute("max", "128")
    await page.get_by_role("button", name="Wallpaper").click()
    await expect(page.get_by_label("Pictures").locator("option")).to_have_count(4)
    await page.get_by_role("group", name="Size").get_by_text("16:9").click()
    await expect(page.get_by_label("Width")).to_have_value("176")
    await expect(page.get_by_label("Height")).to_have_value("96")


async def test_a_wrong_word_is_shown_where_it_stands(service, settings, tmp_path, serving, visit):
    file = tmp_path / "presets.yaml"
    file.write_text(PRESETS)
    presets = hot_presets(settings.model_copy(update={"presets": file}))
    await presets.open()
    app = create_app(service, service.assets, service.prompts, settings, presets=presets)
    async with serving(app) as url, visit(url) as page:
        await page.get_by_role("button", name="Kids").click()
        await draw(page, "🦊 with a gun")
        error = page.locator(".make .error")
        await expect(error.locator("mark")).to_have_text("gun")
        await expect(error).to_contain_text("say it in other words")
        await expect(error).to_contain_text(re.compile(r"Request \w{26}"))
        selected = "() => { const f = document.activeElement; return f.value.slice(f.selectionStart, f.selectionEnd); }"
        assert await page.evaluate(selected) == "gun"
        await page.keyboard.type("flower")
        await expect(error).to_have_count(0)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
async def test_the_settings_inside_a_picture_come_back(page, base_url, format):
    body = {"prompt": "一只 fox", "negative_prompt": "rain, snow", "guidance_scale": 2, "seed": 9, "size": "64x80"}
    body |= {"num_inference_steps": 2, "output_format": format}
    url = f"{base_url}/v1/images/generations"
    made = await page.context.request.post(url, data=body, headers={"Accept": f"image/{format}"})
    file = {"name": f"fox.{format}", "mimeType": f"image/{format}", "buffer": await made.body()}
    await page.locator("input[type=file]").set_input_files(file)
    await page.get_by_role("button", name="Load its settings").click()
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value("一只 fox")
    await expect(page.get_by_label("Negative prompt")).to_have_value("rain, snow")
    await expect(page.get_by_label("Seed", exact=True)).to_have_value("9")
    await expect(page.get_by_label("Width")).to_have_value("64")
    await expect(page.get_by_label("Guidance")).to_have_value("2")


async def test_a_dropped_picture_brings_its_settings(page, base_url):
    body = {"prompt": "a bee", "seed": 4, "size": "64x64", "num_inference_steps": 2}
    url = f"{base_url}/v1/images/generations"
    made = await page.context.request.post(url, data=body, headers={"Accept": "image/png"})
    drop = """(bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "bee.png", {type: "image/png"}));
        dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    await page.evaluate(drop, list(await made.body()))
    await page.get_by_role("button", name="Load its settings").click()
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value("a bee")


# --- pictures to begin with


async def made(page, base_url, **fields) -> dict:
    body = {"prompt": "a bee", "seed": 4, "size": "64x64", "num_inference_steps": 2, "n": 1} | fields
    answer = await page.context.request.post(f"{base_url}/v1/jobs", data=body, headers={"Prefer": "wait=60"})
    return await answer.json()


async def sent_by(page, act) -> dict:
    """The body of the job that `act` sends."""
    async with page.expect_request(lambda one: one.url.endswith("/v1/jobs") and one.method == "POST") as sending:
        await act()
    return (await sending.value).post_data_json


async def test_a_picture_without_settings_becomes_the_one_to_begin_with(page):
    picture = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(picture, "PNG")
    file = {"name": "red.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    await page.locator("input[type=file]").set_input_files(file)
    await expect(page.get_by_role("img", name="The picture to begin with")).to_be_visible()
    await page.get_by_role("slider", name="How much may change").fill("0.35")
    sent = await sent_by(page, lambda: draw(page, "a fox and its picture"))
    assert sent["image"] == "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    assert (sent["strength"], "size" in sent) == (0.35, False)
    card = page.locator(".card").first
    await expect(card).to_contain_text("a fox and its picture")
    await expect(card.locator(".state.succeeded")).to_be_visible()
    shape = "image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    assert await card.locator("img").evaluate(shape) == [96, 64]
    await page.get_by_role("button", name="Begin with nothing").click()
    assert "image" not in await sent_by(page, lambda: draw(page, "a fox and its picture"))
    foxes = page.locator(".card:has(.state.succeeded)", has_text="a fox and its picture")
    await expect(foxes).to_have_count(2)
    await foxes.last.get_by_role("button", name="Use these settings").click()
    await expect(page.get_by_role("img", name="The picture to begin with")).to_be_visible()
    again = await sent_by(page, lambda: page.get_by_role("button", name="Draw").click())
    assert again["image"].startswith("input:")
    assert again["strength"] == 0.35


async def test_a_picture_brought_before_the_page_knows_the_model_is_taken(page):
    met = []

    async def slow_once(route):
        met.append(route)
        await asyncio.sleep(1 if len(met) == 1 else 0)
        await route.continue_()

    await page.route("**/v1/models", slow_once)
    await page.reload()
    picture = io.BytesIO()
    Image.new("RGB", (96, 64), "red").save(picture, "PNG")
    file = {"name": "red.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    await page.locator("input[type=file]").set_input_files(file)
    await expect(page.get_by_role("img", name="The picture to begin with")).to_be_visible()


async def test_a_picture_with_settings_may_be_either(page, base_url):
    job = await made(page, base_url)
    answer = await page.context.request.get(f"{base_url}/v1/assets/{job['result']['images'][0]['asset_id']}")
    file = {"name": "bee.png", "mimeType": "image/png", "buffer": await answer.body()}
    await page.locator("input[type=file]").set_input_files(file)
    await page.get_by_role("dialog").get_by_role("button", name="Begin with it").click()
    await expect(page.get_by_role("img", name="The picture to begin with")).to_be_visible()
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value("")
    await page.locator("input[type=file]").set_input_files(file)
    await page.get_by_role("dialog").get_by_role("button", name="Load its settings").click()
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value("a bee")


async def test_a_picture_of_the_gallery_is_begun_with_by_its_id(page, base_url):
    job = await made(page, base_url, prompt="a whale of its own")
    await page.reload()
    await page.get_by_role("button", name="Gallery").click()
    await page.get_by_role("button", name="a whale of its own", exact=True).first.click()
    await page.get_by_role("button", name="Begin with it").click()
    sent = await sent_by(page, lambda: draw(page, "a fox"))
    assert sent["image"] == f"asset:{job['result']['images'][0]['asset_id']}"
    card = page.locator(".card").first
    await expect(card).to_contain_text("a fox")
    await expect(card.locator(".state.succeeded")).to_be_visible()
    await card.locator("button.cell").click()
    details = page.get_by_role("dialog", name="Details")
    await expect(details).to_contain_text("Began with")
    loaded = "image => image.decode().then(() => image.naturalWidth)"
    assert await details.locator("dd .begun img").evaluate(loaded) == 64


async def test_a_file_that_is_no_picture_is_refused_with_a_reason(page):
    file = {"name": "x.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n"}
    await page.locator("input[type=file]").set_input_files(file)
    await expect(page.locator(".reference")).to_be_visible()
    await draw(page, "a fox")
    await expect(page.locator(".make .error")).to_contain_text("This value is not accepted (The picture to begin with)")
