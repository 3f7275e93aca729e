"""Signing in on the page at a real OpenID provider, by clicks, and what is said when it comes to nothing."""

from contextlib import asynccontextmanager

import pytest
from playwright.async_api import expect

from tests.browser.conftest import draw
from tests.oidc.provider import page_settings, provider
from tests.ports import free_port


@pytest.fixture
def studio(guarded, serving, browser, tmp_path):
    """A closed service with a provider, and a browser that knows neither."""

    @asynccontextmanager
    async def opened(**how):
        port = free_port()
        issuer = f"http://127.0.0.1:{port}"
        async with guarded(oidc=page_settings(issuer)) as service, serving(service.app) as url:
            with provider(tmp_path, port, url):
                context = await browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 800}, **how)
                page = await context.new_page()
                await page.goto(url)
                yield service, page, url, issuer
                await context.close()

    return opened


async def enter(page, name: str) -> None:
    """The pages of the provider: who one is, and that the studio may know it."""
    await page.get_by_placeholder("Enter any login").fill(name)
    await page.get_by_placeholder("and password").fill("x")
    await page.get_by_role("button", name="Sign-in").click()
    await page.get_by_role("button", name="Continue").click()


async def test_somebody_clicks_through_draws_and_signs_out(studio):
    async with studio() as (_, page, url, issuer):
        await page.get_by_role("link", name="Sign in with the studio").click()
        await page.wait_for_url(f"{issuer}/**")
        await enter(page, "eve")
        await page.wait_for_url(f"{url}/")
        await expect(page.locator(".me")).to_have_text("oidc:eve")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await draw(page, "a fox")
        await expect(page.locator(".card.running")).to_contain_text("a fox")
        await page.reload()
        await expect(page.locator(".card.running")).to_contain_text("a fox")
        kept = {cookie["name"]: cookie for cookie in await page.context.cookies(url)}  # the provider's too: one host
        assert (kept["zimage_session"]["sameSite"], kept["zimage_session"]["httpOnly"]) == ("Strict", True)
        assert "zimage_sign_in" not in kept
        await page.get_by_role("button", name="Sign out").click()
        await page.get_by_role("button", name="Yes, sign me out").click()
        await page.wait_for_url(f"{url}/")
        await expect(page.get_by_role("link", name="Sign in with the studio")).to_be_visible()
        assert "zimage_session" not in {cookie["name"] for cookie in await page.context.cookies(url)}


async def test_whoever_says_no_there_is_told_so_here(studio):
    async with studio() as (_, page, _, issuer):
        await page.get_by_role("link", name="Sign in with the studio").click()
        await page.wait_for_url(f"{issuer}/**")
        await page.get_by_role("link", name="Cancel").click()
        error = page.locator("dialog .error")
        await expect(error).to_contain_text("The provider did not let you in")
        await expect(error).to_contain_text("Request ")
        await expect(page.get_by_role("link", name="Sign in with the studio")).to_be_focused()
        await page.reload()
        await expect(page.get_by_role("link", name="Sign in with the studio")).to_be_visible()
        await expect(error).to_have_count(0)


async def test_somebody_without_a_role_is_told_in_chinese_too(studio):
    async with studio() as (_, page, url, issuer):
        await page.get_by_role("link", name="Sign in with the studio").click()
        await page.wait_for_url(f"{issuer}/**")
        await enter(page, "mallory")
        await expect(page.locator("dialog .error")).to_contain_text("Your role may not do this")
        await page.evaluate("localStorage.setItem('zimage.lang', '\"zh\"')")
        await page.goto(f"{url}/auth/oidc/callback?state=stale")
        await expect(page.locator("dialog .error")).to_contain_text("登录已过期")


async def test_a_key_still_opens_and_wrong_ones_are_slowed_down(guarded, serving, visit):
    async with (
        guarded(oidc=page_settings("http://127.0.0.1:9"), failed_sign_ins_per_minute=2) as service,
        serving(service.app) as url,
        visit(url) as page,
    ):
        await page.get_by_text("Sign in with an API key").click()
        for _ in range(3):
            await page.get_by_label("API key").fill("zk_wrong")
            await page.get_by_role("button", name="Sign in", exact=True).click()
            await expect(page.locator("dialog .error")).to_be_visible()
            await page.wait_for_timeout(200)
        await expect(page.locator("dialog .error")).to_contain_text("Too many failed sign-ins")
        await expect(page.locator("dialog .error")).to_contain_text("Possible again in")
        await page.get_by_label("API key").fill(service.keys["ada"])
        await page.get_by_role("button", name="Sign in", exact=True).click()
        await expect(page.locator(".me")).to_have_text("ada")
