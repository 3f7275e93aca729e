"""Who may use the page: keys, sessions, quotas, and what operators see."""

from playwright.async_api import Page, expect

from serve.api.app import create_app
from serve.hot import HotFiles
from serve.presets.hot import hot_presets
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
        await expect(page.locator(".toast")).to_contain_text("Changed: presets")
        await page.get_by_role("row", name="a secret fox").get_by_role("button", name="Cancel").click()
        await expect(page.get_by_text("Nobody waits")).to_be_visible()


async def test_an_operator_hands_out_keys_and_ends_them(guarded, serving, visit):
    async with guarded() as service, serving(service.app) as url, visit(url) as page:
        await sign_in(page, service.keys["admin"])
        await page.get_by_role("button", name="Admin").click()
        await page.get_by_label("Name", exact=True).fill("studio")
        await page.get_by_label("Role").select_option("viewer")
        await page.get_by_label("User (empty").fill("bob")
        await page.get_by_label("Days").fill("3")
        await page.get_by_role("button", name="New key").click()
        key = {"Authorization": f"Bearer {await page.locator('.made code').inner_text()}"}
        me = await (await page.context.request.get(f"{url}/v1/me", headers=key)).json()
        assert (me["role"], me["user"]) == ("viewer", "bob")
        row = page.get_by_role("row", name="studio")
        await row.get_by_role("button", name="Revoke").click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(row).to_contain_text("revoked")
        assert (await page.context.request.get(f"{url}/v1/me", headers=key)).status == 401


async def test_an_operator_sees_why_a_newer_file_is_refused(service, settings, tmp_path, serving, visit):
    file = tmp_path / "presets.yaml"
    file.write_text("presets: []\n")
    presets = hot_presets(settings.model_copy(update={"presets": file}))
    hot = HotFiles(presets)
    await hot.open()
    app = create_app(service, service.assets, service.prompts, settings, presets=presets, hot=hot)
    async with serving(app) as url, visit(url) as page:
        await page.get_by_role("button", name="Admin").click()
        await expect(page.get_by_role("row", name="presets.yaml")).to_be_visible()
        file.write_text("presets: [{name: a, sise: 1}]\n")
        await page.get_by_role("button", name="Reload config").click()
        await expect(page.locator(".toast .error")).to_contain_text("The file has mistakes")
        await expect(page.get_by_role("row", name="presets.yaml")).to_contain_text("sise")
        file.write_text('presets: [{name: a, title: {en: An a, zh: 一}, prompt: "{prompt}"}]\n')
        await page.get_by_role("button", name="Reload config").click()
        await expect(page.get_by_text("Reloaded. Changed: presets")).to_be_visible()
        await page.get_by_role("button", name="Make").click()
        await expect(page.get_by_role("button", name="An a")).to_be_visible()


async def test_a_viewer_cannot_draw(guarded, serving, visit):
    async with guarded() as service, serving(service.app) as url, visit(url) as page:
        await sign_in(page, service.keys["viewer"])
        await page.get_by_label("Prompt", exact=True).fill("a fox")
        await expect(page.get_by_role("button", name="Draw")).to_be_disabled()
