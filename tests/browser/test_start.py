async def test_something_is_seen_before_the_script_has_run(visit, base_url, browser):
    context = await browser.new_context(java_script_enabled=False)
    page = await context.new_page()
    await page.goto(base_url)
    assert await page.get_by_role("heading", name="Z-Image").is_visible()
    await context.close()


async def test_the_first_paint_asks_for_nothing_but_the_page(page):
    """The style stands in it, let in by its hash."""
    names = await page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    assert not any(name.endswith(".css") for name in names)
    assert await page.evaluate("getComputedStyle(document.querySelector('.top')).position") == "sticky"


async def test_the_first_paint_waits_for_nothing_slow(page):
    painted = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    await page.wait_for_function(painted)
    assert await page.evaluate(painted) < 3000
