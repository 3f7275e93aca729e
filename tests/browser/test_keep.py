"""The gallery: found, looked at, drawn again, deleted."""

import asyncio
import json

import pytest_asyncio
from playwright.async_api import Page, expect


@pytest_asyncio.fixture(loop_scope="session")
async def gallery(page, base_url) -> Page:
    """Three pictures, and nothing else."""
    request = page.context.request
    while (await (await request.get(f"{base_url}/v1/queue")).json())["my_jobs"]:  # of a test before this one
        await asyncio.sleep(0.1)
    listed = await (await request.get(f"{base_url}/v1/assets?limit=200")).json()
    if listed["data"]:
        assert (await request.delete(f"{base_url}/v1/assets?all=true&confirm={len(listed['data'])}")).ok
    for seed, thing in enumerate(("fox", "cat", "bee")):
        body = {"prompt": f"a {thing}", "seed": seed, "size": "64x64", "num_inference_steps": 2}
        assert (await request.post(f"{base_url}/v1/images/generations", data=body)).ok
    await page.get_by_role("button", name="Gallery").click()
    await page.wait_for_url("**/#keep")
    await page.reload()
    await expect(page.locator(".tile")).to_have_count(3)
    return page


async def test_search_finds_by_prompt(gallery):
    await gallery.get_by_role("searchbox").fill("CAT")
    await expect(gallery.locator(".tile")).to_have_count(1)
    await gallery.get_by_role("searchbox").fill("zebra")
    await expect(gallery.get_by_text("No picture has that in its prompt")).to_be_visible()


async def test_details_do_not_touch_the_form_until_they_are_used(gallery):
    await gallery.get_by_role("button", name="a fox", exact=True).click()
    details = gallery.get_by_role("dialog", name="Details")
    await expect(details).to_contain_text("SHA-256")
    await expect(details).to_contain_text("64 × 64")
    await details.get_by_role("button", name="Close").click()
    await gallery.get_by_role("button", name="Make").click()
    await expect(gallery.get_by_label("Prompt", exact=True)).to_have_value("")
    await gallery.get_by_role("button", name="Gallery").click()
    await gallery.get_by_role("button", name="a fox", exact=True).click()
    await details.get_by_role("button", name="Use these settings").click()
    await expect(gallery.get_by_label("Prompt", exact=True)).to_have_value("a fox")
    await expect(gallery.get_by_label("Seed", exact=True)).to_have_value("0")
    await expect(gallery.get_by_label("Steps", exact=True)).to_have_value("2")


async def test_what_is_copied_as_curl_draws_the_same_picture(gallery, base_url):
    await gallery.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await gallery.get_by_role("button", name="a bee", exact=True).click()
    details = gallery.get_by_role("dialog", name="Details")
    await details.get_by_role("button", name="Copy as curl").click()
    await expect(gallery.locator(".toast")).to_contain_text("Copied")
    command = await gallery.evaluate("navigator.clipboard.readText()")
    assert command.startswith(f"curl {base_url}/v1/images/generations -H 'Accept: image/png'")
    body = json.loads(command.split("-d '")[1].split("' -o")[0])
    url = f"{base_url}/v1/images/generations"
    again = await gallery.context.request.post(url, data=body, headers={"Accept": "image/png"})
    kept = await gallery.context.request.get(await details.get_by_role("link", name="Download").evaluate("a => a.href"))
    assert await again.body() == await kept.body()
    await details.get_by_role("button", name="Copy as Python").click()
    python = await gallery.evaluate("navigator.clipboard.readText()")
    compile(python, "copied.py", "exec")
    assert f'base_url="{base_url}/v1"' in python


async def test_variations_are_a_new_job(gallery):
    await gallery.get_by_role("button", name="a bee", exact=True).click()
    await gallery.get_by_role("button", name="Variations").click()
    card = gallery.locator(".card").first
    await expect(card).to_contain_text("a bee")
    await expect(card.locator(".cell img:not(.preview)")).to_have_count(4)


async def test_a_picture_is_downloaded_under_its_id(gallery):
    await gallery.get_by_role("button", name="a bee", exact=True).click()
    async with gallery.expect_download() as downloading:
        await gallery.get_by_role("link", name="Download").click()
    assert (await downloading.value).suggested_filename.endswith("-0.png")


async def test_one_some_and_all_are_deleted(gallery):
    await gallery.get_by_role("button", name="a fox", exact=True).click()
    await gallery.get_by_role("button", name="Delete", exact=True).click()
    await gallery.get_by_role("dialog", name="Delete", exact=True).get_by_role("button", name="Delete").click()
    await expect(gallery.locator(".tile")).to_have_count(2)
    await gallery.get_by_role("checkbox", name="a cat").check()
    await gallery.get_by_role("button", name="Delete selected").click()
    await gallery.get_by_role("dialog").get_by_role("button", name="Delete selected").click()
    await expect(gallery.locator(".tile")).to_have_count(1)
    await gallery.get_by_role("button", name="Delete all…").click()
    dialog = gallery.get_by_role("dialog")
    await expect(dialog).to_contain_text("Type 1 to confirm")
    yes = dialog.get_by_role("button", name="Delete all")
    await dialog.get_by_role("textbox").fill("2")
    await expect(yes).to_be_disabled()
    await dialog.get_by_role("textbox").fill("1")
    await yes.click()
    await expect(gallery.locator(".tile")).to_have_count(0)
    await gallery.reload()
    await expect(gallery.get_by_text("Nothing drawn yet")).to_be_visible()


async def test_older_pictures_come_while_one_scrolls(gallery, base_url):
    for _ in range(5):
        body = {"prompt": "a dot", "n": 10, "size": "64x64", "num_inference_steps": 1}
        assert (await gallery.context.request.post(f"{base_url}/v1/images/generations", data=body)).ok
    await gallery.set_viewport_size({"width": 500, "height": 400})
    await gallery.reload()
    await expect(gallery.locator(".tile")).to_have_count(40)
    await gallery.mouse.wheel(0, 20000)
    await expect(gallery.locator(".tile")).to_have_count(53)


async def test_a_refresh_while_older_pictures_are_fetched_loses_none(gallery, base_url):
    """As after a short interruption: the page comes back, and looks at everything again."""
    for _ in range(4):
        body = {"prompt": "a dot", "n": 10, "size": "64x64", "num_inference_steps": 1}
        assert (await gallery.context.request.post(f"{base_url}/v1/images/generations", data=body)).ok
    may_come, asked = asyncio.Event(), asyncio.Event()

    async def when_it_may(route):
        asked.set()
        await may_come.wait()
        await route.continue_()

    await gallery.route("**/v1/assets?*cursor=*", when_it_may)
    await gallery.set_viewport_size({"width": 500, "height": 400})
    await gallery.reload()
    await expect(gallery.locator(".tile")).to_have_count(40)
    await gallery.mouse.wheel(0, 20000)
    await asyncio.wait_for(asked.wait(), 20)
    async with gallery.expect_response("**/v1/queue"):
        await gallery.evaluate("dispatchEvent(new Event('offline'))")
    await expect(gallery.locator("footer")).to_contain_text("Connected")
    may_come.set()
    await expect(gallery.locator(".tile")).to_have_count(43)
