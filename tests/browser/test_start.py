"""How the page begins, and what it does where something is missing then."""

import asyncio

import pytest
from playwright.async_api import expect

from tests.browser.conftest import held


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


async def test_a_size_is_chosen_only_once_the_model_is_known(page):
    """By the model's own limits."""
    known = await held(page, "**/v1/models")
    await page.reload()
    wide = page.get_by_role("group", name="Size").get_by_text("16:9")
    await expect(wide).to_be_disabled()
    known.set()
    await wide.click()
    await expect(page.get_by_label("Width")).to_have_value("176")


async def test_a_job_that_ends_before_the_page_listens_is_shown_ended(page, base_url):
    """Its first look finds the job running; the socket comes later than the job's end."""
    listening = asyncio.Event()

    async def late(ws):
        server = ws.connect_to_server()
        unsent = []
        ws.on_message(lambda message: server.send(message) if listening.is_set() else unsent.append(message))
        await listening.wait()
        for message in unsent:
            server.send(message)

    await page.route_web_socket("**/v1/ws", late)
    url = f"{base_url}/v1/jobs"
    body = {"prompt": "a late owl on a red background", "num_inference_steps": 50, "size": "256x256", "n": 4}
    job = await (await page.context.request.post(url, data=body)).json()
    await page.reload()
    card = page.locator(".card", has_text="a late owl")
    await expect(card).to_be_visible()
    await expect(card.locator(".state.succeeded")).to_have_count(0)
    async with asyncio.timeout(120):
        while (await (await page.context.request.get(job["urls"]["self"])).json())["status"] != "succeeded":
            await asyncio.sleep(0.2)
    await expect(card.locator(".state.succeeded")).to_have_count(0)
    listening.set()
    await expect(card.locator(".state.succeeded")).to_be_visible()


async def test_the_first_paint_asks_for_nothing_but_the_page(page):
    """The style stands in it, let in by its hash."""
    names = await page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    assert not any(name.endswith(".css") for name in names)
    assert await page.evaluate("getComputedStyle(document.querySelector('.top')).position") == "sticky"


async def test_the_first_paint_waits_for_nothing_slow(page):
    painted = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    await page.wait_for_function(painted)
    assert await page.evaluate(painted) < 3000
