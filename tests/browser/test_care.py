"""Everybody can use it: keyboard, screen readers, both languages, both colours, a phone."""

import pytest
from playwright.async_api import Page, expect

from serve.errors import ZImageError
from tests.browser.conftest import AXE, draw


async def violations(page: Page) -> list[str]:
    if not AXE.exists():
        pytest.skip("there is no axe-core here: make test-deps")
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})")
    return [f"{one['impact']} {one['id']}: {one['nodes'][0]['html']}" for one in found["violations"]]


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_axe_finds_nothing(visit, base_url, colours, width):
    size = {"width": width, "height": 800}
    async with visit(base_url, color_scheme=colours, viewport=size, reduced_motion="reduce") as page:
        await draw(page, f"a red fox on a {colours} background, {width} wide")
        card = page.locator(".card", has_text=f"{colours} background, {width} wide")
        await expect(card.locator(".state.succeeded")).to_be_visible()
        await page.get_by_label("Width").fill("1000")
        await draw(page, "a red fox")
        await expect(page.locator(".make .error")).to_be_visible()
        found = await violations(page)
        await page.get_by_role("button", name="Gallery").click()
        await expect(page.locator(".tile").first).to_be_visible()
        found += await violations(page)
        await page.locator(".tile button").first.click()
        await expect(page.get_by_role("dialog")).to_contain_text("SHA-256")
        found += await violations(page)
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Admin").click()
        await expect(page.get_by_role("button", name="Pause")).to_be_visible()
        found += await violations(page)
        wide = await page.evaluate("document.documentElement.scrollWidth")
    assert found == []
    assert wide <= width


async def test_a_picture_is_made_and_opened_with_the_keyboard_alone(page):
    for _ in range(30):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.id") == "prompt":
            break
    await page.keyboard.type("a penguin in the snow")
    await page.keyboard.press("Control+Enter")
    card = page.locator(".card", has_text="a penguin in the snow")
    await expect(card.locator(".state.succeeded")).to_be_visible()
    await card.locator("button.cell").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name="Details")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_chinese_is_whole_and_remembered(page):
    await page.get_by_role("button", name="中文").click()
    await expect(page.get_by_role("button", name="开始生成")).to_be_visible()
    await page.reload()
    await expect(page.get_by_role("button", name="图库")).to_be_visible()
    assert await page.evaluate("document.documentElement.lang") == "zh-CN"
    english = await page.evaluate("document.body.innerText.replace(/[^A-Za-z ]/g, ' ').split(/ +/)")
    assert {"Prompt", "Preset", "Style", "Size", "Seed", "Pictures", "Waiting", "Connected"} & set(english) == set()


async def test_every_text_has_two_languages(page):
    script = """async () => Object.entries((await import('/ui/texts.js')).TEXTS)
        .filter(([_, text]) => text.length !== 2 || !text[0] || !text[1]).map(([key]) => key)"""
    assert await page.evaluate(script) == []


async def test_every_error_of_the_service_has_a_text(page):
    """Of those that a browser can be told; the server's own English is the detail."""

    def codes(cls: type[ZImageError]) -> set[str]:
        return {cls.code}.union(*map(codes, cls.__subclasses__()))

    texts = await page.evaluate("async () => Object.keys((await import('/ui/texts.js')).TEXTS)")
    told = codes(ZImageError) - {"config_error", "weights_error"}
    assert {code for code in told if f"e_{code}" not in texts} == set()


async def test_an_error_is_told_in_chinese(page):
    await page.get_by_role("button", name="中文").click()
    await page.get_by_label("宽").fill("1000")
    await page.get_by_label("提示词", exact=True).fill("a fox")
    await page.keyboard.press("Control+Enter")
    error = page.locator(".make .error")
    await expect(error.locator("strong")).to_have_text("这个值不被接受，请修改后重试（尺寸）")
    await expect(error.locator("[lang=en]").first).to_contain_text("1000 is over this model's 256 pixels")


async def test_the_script_is_small(page):
    script = """() => performance.getEntriesByType('resource').filter((one) => one.name.endsWith('.js'))
        .map((one) => one.encodedBodySize)"""
    sizes = await page.evaluate(script)
    assert len(sizes) >= 10
    assert sum(sizes) <= 60_000


async def test_a_second_visit_asks_for_the_page_alone(page):
    """All else is kept for ever under the name of its version."""
    await page.reload()
    script = """() => performance.getEntriesByType('resource').filter((one) => one.name.includes('/ui/'))
        .map((one) => one.transferSize)"""
    sizes = await page.evaluate(script)
    assert len(sizes) >= 10
    assert sum(sizes) == 0
