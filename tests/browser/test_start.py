"""How the page begins, and what it does where something is missing then."""

import pytest
from playwright.async_api import expect


async def test_something_is_seen_before_the_script_has_run(visit, base_url, browser):
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(base_url)
    assert await page.get_by_role("heading", name="Z-Image").is_visible()
    await context.close()


@pytest.mark.parametrize("path", ["models", "presets"])
async def test_what_could_not_be_asked_at_first_is_asked_again(page, path):
    """While the socket is open all the time: nothing else tells the page that something is missing."""
    refused = 0

    async def refuse_twice(route):
        nonlocal refused
        refused += 1
        await (route.fulfill(status=503) if refused <= 2 else route.continue_())

    await page.route(f"**/v1/{path}", refuse_twice)
    await page.reload()
    await expect(page.get_by_role("status").get_by_text("Connected")).to_be_visible()
    await expect(page.get_by_role("button", name="Wallpaper")).to_be_visible()
    await expect(page.get_by_label("Width")).to_have_attribute("max", "256")
    assert refused > 2


async def test_the_first_paint_asks_for_nothing_but_the_page(page):
    """The style stands in it, let in by its hash."""
    names = await page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    assert not any(name.endswith(".css") for name in names)
    assert await page.evaluate("getComputedStyle(document.querySelector('.top')).position") == "sticky"


async def test_the_first_paint_waits_for_nothing_slow(page):
    painted = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    await page.wait_for_function(painted)
    assert await page.evaluate(painted) < 3000
