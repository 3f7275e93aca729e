"""examples/browser.html, served under the origin of the service."""

from pathlib import Path

from playwright.async_api import expect

EXAMPLE = Path(__file__).parents[2] / "examples" / "browser.html"


async def test_a_picture_by_event_source(browser, base_url):
    context = await browser.new_context()
    page = await context.new_page()
    await page.route(f"{base_url}/example", lambda route: route.fulfill(path=EXAMPLE, content_type="text/html"))
    await page.goto(f"{base_url}/example")
    await page.get_by_role("button", name="Draw").click()
    await expect(page.locator("img")).to_have_js_property("naturalWidth", 128)
    await expect(page.get_by_role("progressbar")).to_be_hidden()
    await context.close()
