"""How soon something is seen at `/`, how soon the form can be used, and what crosses the wire for it.

    python -m benchmarks.first_paint [--visits 20] [--url http://127.0.0.1:8000]

Starts the product, unless a URL is given, and visits its page in Debian's headless Chromium: each time as somebody who
was never there, and then again with what the browser has kept. Milliseconds from the click on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import statistics
from dataclasses import dataclass

from playwright.async_api import Browser, Page, async_playwright

from benchmarks.machine import facts
from benchmarks.overhead import server

LOOK = """() => {
  const entries = performance.getEntriesByType("resource").filter((one) => one.name.includes("/ui/"));
  const [page] = performance.getEntriesByType("navigation");
  return {
    html_ms: page.responseEnd,
    css_ms: Math.max(0, ...entries.filter((one) => one.name.endsWith(".css")).map((one) => one.responseEnd)),
    script_ms: Math.max(0, ...entries.filter((one) => one.name.endsWith(".js")).map((one) => one.responseEnd)),
    paint_ms: performance.getEntriesByName("first-contentful-paint")[0].startTime,
    usable_ms: performance.now(),
    requests: 1 + entries.filter((one) => one.transferSize > 0).length,
    kilobytes: (page.transferSize + entries.reduce((sum, one) => sum + one.transferSize, 0)) / 1000,
  };
}"""


@dataclass(frozen=True, slots=True)
class Visit:
    """Milliseconds since the navigation began; requests and bytes of the page's own files."""

    html_ms: float
    css_ms: float
    script_ms: float
    paint_ms: float
    usable_ms: float
    requests: float
    kilobytes: float


async def seen(page: Page, url: str | None) -> Visit:
    await (page.reload() if url is None else page.goto(url))
    await page.wait_for_function("document.querySelector('#prompt')", polling=5)
    await page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length", polling=5)
    return Visit(**await page.evaluate(LOOK))


async def visits(browser: Browser, url: str, number: int) -> tuple[list[Visit], list[Visit]]:
    first, again = [], []
    for _ in range(number):
        context = await browser.new_context(viewport={"width": 1280, "height": 800})
        page = await context.new_page()
        first.append(await seen(page, url))
        again.append(await seen(page, None))
        await context.close()
    return first, again


async def measure(url: str, number: int) -> tuple[list[Visit], list[Visit]]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        await visits(browser, url, 2)  # Chromium itself, and the Gateway's files, which are packed once
        found = await visits(browser, url, number)
        await browser.close()
    return found


def report(first: list[Visit], again: list[Visit]) -> str:
    lines = ["| | first visit: median | p95 | again: median | p95 |", "|---|---|---|---|---|"]
    for name in Visit.__slots__:
        cells = []
        for some in (first, again):
            values = sorted(float(getattr(one, name)) for one in some)
            cells += [f"{statistics.median(values):.0f}", f"{values[round(0.95 * (len(values) - 1))]:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, default=20)
    parser.add_argument("--url", help="of a service that runs; default: one is started")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        url = args.url or f"http://127.0.0.1:{stack.enter_context(server())}/"
        first, again = asyncio.run(measure(url, args.visits))
    print(f"{facts()}\n\n{args.visits} visits, milliseconds:\n\n{report(first, again)}")


if __name__ == "__main__":
    main()
