"""Jobs that wait: what the page says of them, and that it keeps nothing itself."""

from playwright.async_api import expect

from tests.browser.conftest import draw


async def test_two_jobs_at_once_and_a_cancel(stuck, serving, visit):
    async with stuck() as service, serving(service.app) as url, visit(url) as page:
        for prompt in ("a fox", "a cat", "a dog"):
            await draw(page, prompt)
            await expect(page.locator(".card").first).to_contain_text(prompt)
        await service.until(running=1, queued=2)
        await expect(page.locator(".card").nth(0).locator(".state")).to_contain_text("Waiting · 2nd of 2")
        await expect(page.locator(".card").nth(2).locator(".state")).to_contain_text("Drawing · step")
        await expect(page.locator("footer")).to_contain_text("2 waiting, 1 drawing")
        await page.locator(".card").nth(1).get_by_role("button", name="Cancel").click()
        await expect(page.locator(".card").nth(1).locator(".state")).to_contain_text("Canceled")
        await expect(page.locator(".card").nth(0).locator(".state")).to_contain_text("Waiting · 1st of 1")


async def test_a_reload_in_mid_job_and_a_second_browser_find_everything(stuck, serving, visit):
    async with stuck() as service, serving(service.app) as url, visit(url) as page:
        for prompt in ("a fox", "a cat"):
            await draw(page, prompt)
            await expect(page.locator(".card").first).to_contain_text(prompt)
        await service.until(running=1, queued=1)
        await page.reload()
        async with visit(url) as other:
            for one in (page, other):
                await expect(one.locator(".card")).to_have_count(2)
                await expect(one.locator(".card.running")).to_contain_text("a fox")
                await expect(one.locator(".card.queued")).to_contain_text("1st of 1")
            await other.locator(".card.queued").get_by_role("button", name="Cancel").click()
            await expect(page.locator(".card.canceled")).to_contain_text("a cat")


async def test_a_job_that_fails_says_why(stuck, serving, visit):
    async with stuck(RuntimeError("boom")) as service, serving(service.app) as url, visit(url) as page:
        await draw(page, "a fox")
        error = page.locator(".card .error")
        await expect(error).to_be_visible()
        await expect(error).to_contain_text("Job ")
        await expect(page.get_by_role("button", name="Try again")).to_be_visible()


async def test_offline_and_back(page):
    await expect(page.locator("footer")).to_contain_text("Connected")
    await page.context.set_offline(True)
    await expect(page.locator("footer")).to_contain_text("Offline")
    await draw(page, "an owl on a black background")
    await expect(page.locator(".make .error")).to_contain_text("cannot be reached")
    await page.context.set_offline(False)
    await expect(page.locator("footer")).to_contain_text("Connected")
    await page.get_by_role("button", name="Draw").click()
    await expect(page.locator(".make .error")).to_have_count(0)
    owl = page.locator(".card", has_text="an owl on a black background")
    await expect(owl.locator(".state.succeeded")).to_be_visible()
