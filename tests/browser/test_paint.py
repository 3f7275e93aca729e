"""Painting over a picture what of it may change."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Page, expect

from tests.browser.conftest import draw
from tests.browser.test_care import violations
from tests.browser.test_make import made, sent_by

WIDTH, HEIGHT = 192, 128
LEFT = (0.25, 0.5)  # of its width and height


@pytest.fixture
def file() -> dict[str, object]:
    picture = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), "white").save(picture, "PNG")
    return {"name": "white.png", "mimeType": "image/png", "buffer": picture.getvalue()}


async def begun(page: Page, file: dict[str, object]) -> None:
    await page.locator("input[type=file]").set_input_files(file)
    await page.get_by_role("button", name="Paint what may change").click()
    await expect(page.locator(".easel canvas")).to_be_visible()


async def stroke(page: Page, *points: tuple[float, float]) -> None:
    """Through points that are parts of the picture's width and height."""
    box = await page.locator(".easel canvas").bounding_box()
    assert box is not None
    for at, (x, y) in enumerate(points):
        await page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if at == 0:
            await page.mouse.down()
    await page.mouse.up()


async def use(page: Page) -> None:
    await page.get_by_role("dialog").get_by_role("button", name="Use this").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def mask_sent(page: Page, prompt: str) -> np.ndarray | None:
    """True where it may change; None where no mask is sent."""
    sent = await sent_by(page, lambda: draw(page, prompt))
    if "mask" not in sent:
        return None
    head, data = sent["mask"].split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("L")) > 127


async def test_what_is_painted_is_drawn_anew(page, file):
    await begun(page, file)
    await stroke(page, LEFT, (0.26, 0.5))
    await use(page)
    await expect(page.locator(".reference .painted")).to_be_visible()
    await expect(page.get_by_role("slider", name="How much may change")).to_have_value("1")
    mask = await mask_sent(page, "a red fox that was painted in")
    assert mask is not None
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask[64, 48]
    assert not mask[:, 96:].any()
    card = page.locator(".card").first
    await expect(card).to_contain_text("a red fox that was painted in")
    await expect(card.locator(".state.succeeded")).to_be_visible()
    await card.locator("button.cell").click()
    details = page.get_by_role("dialog", name="Details")
    await expect(details.locator(".begun .painted")).to_be_visible()


async def test_a_job_with_a_mask_comes_back_whole(page, base_url, file):
    image = "data:image/png;base64," + base64.b64encode(file["buffer"]).decode()
    left = np.zeros((HEIGHT, WIDTH), np.uint8)
    left[:, :96] = 255
    mask = io.BytesIO()
    Image.fromarray(left).save(mask, "PNG")
    fields = {"image": image, "mask": base64.b64encode(mask.getvalue()).decode(), "strength": 0.8, "size": "auto"}
    job = await made(page, base_url, prompt="a cat on the left half", **fields)
    assert job["status"] == "succeeded", job
    await page.reload()
    card = page.locator(".card", has_text="a cat on the left half").first
    await card.get_by_role("button", name="Use these settings").click()
    again = await sent_by(page, lambda: page.get_by_role("button", name="Draw").click())
    assert {name: again[name] for name in ("image", "mask", "strength")} == {
        name: job["request"][name] for name in ("image", "mask", "strength")
    }
    await page.get_by_role("button", name="Only what is painted changes").click()
    await page.get_by_role("button", name="Erase").click()
    await page.get_by_role("slider", name="Size").fill("6")
    await stroke(page, LEFT, (0.26, 0.5))
    await use(page)
    drawn = await mask_sent(page, "a cat on the left half")
    assert drawn is not None
    assert not drawn[64, 48], "erased"
    assert drawn[5:20, 5:90].all(), "as it was"
    assert not drawn[:, 100:].any()


async def test_strokes_are_taken_back_one_by_one_and_all_at_once(page, file):
    await begun(page, file)
    undo = page.get_by_role("button", name="Undo")
    await expect(undo).to_be_disabled()
    await stroke(page, LEFT, (0.26, 0.5))
    await stroke(page, (0.75, 0.5), (0.76, 0.5))
    await undo.click()
    await page.get_by_role("button", name="Swap").click()
    await use(page)
    swapped = await mask_sent(page, "a fox around")
    assert swapped is not None
    assert swapped[64, 144]
    assert not swapped[64, 48]
    await page.get_by_role("button", name="Only what is painted changes").click()
    await page.get_by_role("button", name="Clear").click()
    await page.keyboard.press("Control+z")
    await page.get_by_role("button", name="Clear").click()
    await use(page)
    await expect(page.locator(".reference .painted")).to_have_count(0)
    await expect(page.get_by_role("slider", name="How much may change")).to_have_value("0.6")
    assert await mask_sent(page, "a fox around") is None


async def test_escape_leaves_everything_as_it_was(page, file):
    await begun(page, file)
    await stroke(page, LEFT, (0.5, 0.5))
    await page.mouse.click(2, 2)  # beside the dialog: nothing is lost by that
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert await mask_sent(page, "a fox") is None


async def test_the_keyboard_alone_can_choose_everything(page, file):
    await page.locator("input[type=file]").set_input_files(file)
    await page.get_by_role("button", name="Paint what may change").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator(".easel canvas")).to_be_visible()
    for name in ("Swap", "Use this"):
        for _ in range(20):
            if await page.evaluate("document.activeElement.textContent.trim()") == name:
                break
            await page.keyboard.press("Tab")
        await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    mask = await mask_sent(page, "a fox everywhere")
    assert mask is not None
    assert mask.all()


async def test_a_finger_paints_and_does_not_scroll(visit, base_url, file):
    async with visit(base_url, viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True) as page:
        await begun(page, file)
        box = await page.locator(".easel canvas").bounding_box()
        x, y = box["x"] + box["width"] / 4, box["y"] + box["height"] / 2
        devtools = await page.context.new_cdp_session(page)
        touch = lambda kind, *points: devtools.send(  # noqa: E731
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]}
        )
        await touch("touchStart", (x, y))
        for step in range(1, 6):
            await touch("touchMove", (x, y + step * 4))
        await touch("touchEnd")
        assert await page.evaluate("scrollY") == 0
        await use(page)
        mask = await mask_sent(page, "a fox by hand")
        assert mask is not None
        assert mask[64, 48]


@pytest.mark.parametrize(("colours", "width"), [("light", 1280), ("dark", 390)])
async def test_axe_finds_nothing_while_painting(visit, base_url, file, colours, width):
    size = {"width": width, "height": 800}
    async with visit(base_url, color_scheme=colours, viewport=size, reduced_motion="reduce") as page:
        await begun(page, file)
        found = await violations(page)
        assert await page.evaluate("document.querySelector('dialog').scrollWidth") <= width
        await use(page)
        found += await violations(page)
    assert found == []


async def test_a_picture_that_is_gone_is_said_to_be(page, base_url, file):
    image = "data:image/png;base64," + base64.b64encode(file["buffer"]).decode()
    job = await made(page, base_url, prompt="a fox whose beginning is lost", image=image, size="auto")
    await page.reload()
    await page.route(f"**/v1/inputs/{job['request']['image'].split(':')[1]}", lambda route: route.fulfill(status=404))
    card = page.locator(".card", has_text="a fox whose beginning is lost").first
    await card.get_by_role("button", name="Use these settings").click()
    await expect(page.locator(".toast")).to_contain_text("is no longer there")
    await expect(page.locator(".reference")).to_have_count(0)
