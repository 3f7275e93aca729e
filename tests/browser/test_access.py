"""Who may use the page: keys, sessions, quotas, and what operators see."""

from playwright.async_api import Page, expect

from tests.browser.conftest import draw


async def sign_in(page: Page, key: str) -> None:
    await page.get_by_label("API key").fill(key)
    await page.get_by_role("dialog").get_by_role("button", name="Sign in").click()


async def test_a_key_opens_the_page_and_no_script_can_read_what_is_kept(guarded, serving, visit):
    async with guarded() as service, serving(service.app) as url, visit(url) as page:
        await sign_in(page, "zk_wrong")
        await expect(page.locator("dialog .error")).to_contain_text("This key is not valid")
        await sign_in(page, service.keys["ada"])
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(page.locator(".me")).to_have_text("ada")
        await draw(page, "a fox")
        await expect(page.locator(".card.running")).to_be_visible()
        await page.reload()
        await expect(page.locator(".card.running")).to_contain_text("a fox")
        kept = await page.evaluate("document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage)")
        assert service.keys["ada"] not in kept
        assert await page.evaluate("document.cookie") == ""
        [cookie] = await page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        await expect(page.get_by_role("button", name="Admin")).to_have_count(0)
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("dialog", name="Sign in")).to_be_visible()
        await expect(page.locator(".card")).to_have_count(0)
        await page.reload()
        await expect(page.get_by_role("dialog", name="Sign in")).to_be_visible()


async def test_a_quota_is_shown_and_its_end_explained(guarded, serving, visit):
    roles = {"user": {"images_per_day": 1}}
    async with guarded(roles=roles) as service, serving(service.app) as url, visit(url) as page:
        await sign_in(page, service.keys["ada"])
        await expect(page.locator("footer")).to_contain_text("Pictures today: 1 of 1 left")
        await draw(page, "a fox")
        await expect(page.locator("footer")).to_contain_text("Pictures today: 0 of 1 left")
        await draw(page, "a cat")
        await expect(page.locator(".make .error")).to_contain_text("Your quota is used up")
        await expect(page.locator(".make .error")).to_contain_text("Possible again in")


async def test_an_operator_holds_the_queue_and_hands_out_keys(guarded, serving, visit):
    async with guarded() as service, serving(service.app) as url, visit(url) as page:
        await sign_in(page, service.keys["admin"])
        await service.job("ada")
        await page.get_by_role("button", name="Admin").click()
        await expect(page.locator("tbody").first).to_contain_text("a secret fox")
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("footer")).to_contain_text("The queue is paused")
        assert (await service.dispatcher.status()).paused
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator("footer")).not_to_contain_text("The queue is paused")
        await page.get_by_role("button", name="Reload config").click()
        await expect(page.locator(".toast")).to_contain_text("Reloaded")
        await page.get_by_label("Name").fill("studio")
        await page.get_by_role("button", name="New key").click()
        key = await page.locator(".made code").inner_text()
        me = await page.context.request.get(f"{url}/v1/me", headers={"Authorization": f"Bearer {key}"})
        assert (await me.json())["role"] == "user"


async def test_a_viewer_cannot_draw(guarded, serving, visit):
    async with guarded() as service, serving(service.app) as url, visit(url) as page:
        await sign_in(page, service.keys["viewer"])
        await page.get_by_label("Prompt", exact=True).fill("a fox")
        await expect(page.get_by_role("button", name="Draw")).to_be_disabled()
