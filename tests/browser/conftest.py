"""Debian's Chromium on the page of the real service, which runs in this process with the embedded model."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, async_playwright, expect

from serve.api.app import create_app
from serve.local import open_service
from serve.presets.hot import hot_presets
from serve.settings import Settings
from tests.api.conftest import (  # noqa: F401
    app,
    base_url,
    guarded,
    served,
    service,
    serving,
    session_fixture,
    settings,
    stuck,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parents[2] / ".npm/node_modules/axe-core/axe.min.js"

expect.set_options(timeout=20_000)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser/" in item.path.as_posix() and pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@session_fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: make test-deps")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest.fixture
def visit(browser) -> Callable[..., AbstractAsyncContextManager[Page]]:
    """A browser that knows nothing yet. Fails where a script failed, the CSP refused, or another host was asked."""

    @asynccontextmanager
    async def open_page(url: str, **how) -> AsyncIterator[Page]:
        context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, "locale": "en-GB"} | how)
        page = await context.new_page()
        wrong: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(url)
        try:
            yield page
        finally:
            await context.close()
        assert wrong == []
        elsewhere = [one for one in asked if not one.startswith((url, url.replace("http", "ws"), "data:", "blob:"))]
        assert elsewhere == []

    return open_page


@pytest_asyncio.fixture(loop_scope="session")
async def page(visit, base_url) -> AsyncIterator[Page]:  # noqa: F811
    async with visit(base_url) as page:
        yield page


@asynccontextmanager
async def served_with(settings: Settings, folder: Path, presets: str, **changes: object) -> AsyncIterator[str]:  # noqa: F811
    """The URL of a service of its own, with this presets file."""
    (folder / "presets.yaml").write_text(presets, encoding="utf-8")
    changes |= {"data": folder / "data", "presets": folder / "presets.yaml"}
    own = Settings.model_validate(settings.model_dump() | changes)
    async with open_service(own) as local:
        hot = hot_presets(own)
        await hot.open()
        async with served(create_app(local, local.assets, local.prompts, own, presets=hot)) as url:
            yield url


async def held(page: Page, pattern: str) -> asyncio.Event:
    """What the page asks for there waits until the event is set."""
    released = asyncio.Event()

    async def when_released(route: Route) -> None:
        await released.wait()
        await route.continue_()

    await page.route(pattern, when_released)
    return released


async def draw(page: Page, prompt: str) -> None:
    await page.get_by_label("Prompt", exact=True).fill(prompt)
    await page.keyboard.press("Control+Enter")
