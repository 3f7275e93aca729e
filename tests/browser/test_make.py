import re

from playwright.async_api import expect

from tests.browser.conftest import draw


async def test_a_picture_is_made_and_watched(page):
    await draw(page, "a red fox on a yellow background")
    card = page.locator(".card").first
    await expect(card).to_contain_text("a red fox on a yellow background")
    await expect(card.locator(".cell img[alt='a red fox on a yellow background']")).to_be_visible()
    await expect(card.locator(".state")).to_have_text(re.compile(r"Done · \d+\.\d{3} s"))
    assert await card.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 128
