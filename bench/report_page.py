"""How large report.html is, how fast a browser paints it, and what it complains about.

    bench/report_page.py [REPORT...]

Each REPORT is a report.html, a report.json, whose page is made anew, or the folder of a build.
Without one it is a made-up report of the size of MiniLM's, three variants on two targets.
Needs chromium and the extra `dev`.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.testing.browser import chromium, open_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RUNS = 7
_PAINT = """() => new Promise(told => new PerformanceObserver(entries => {
  for (const entry of entries.getEntries())
    if (entry.name === "first-contentful-paint") told(entry.startTime);
}).observe({type: "paint", buffered: true}))"""
_UNFOLD = "for (const one of document.querySelectorAll('details')) one.open = true"


def main(arguments: list[str]) -> int:
    """Prints a line for each page; 1 where one has a console error or a serious finding."""
    program = chromium()
    if program is None:
        print("no chromium here", file=sys.stderr)
        return 2
    bad = 0
    with tempfile.TemporaryDirectory() as folder, open_browser(program) as browser:
        for number, argument in enumerate(arguments or [""]):
            page = _page(argument, Path(folder) / f"{number}.html")
            name = argument or "made up, of MiniLM's size"
            said, findings = _complaints(browser, page)
            bad += bool(said or findings)
            print(
                f"{name}: {page.stat().st_size / 1e6:.3f} MB, {_paints(browser, page)}; "
                f"console errors: {said or 'none'}; serious or critical findings of axe, light "
                f"and dark: {findings or 'none'}"
            )
    return 1 if bad else 0


def _page(argument: str, made: Path) -> Path:
    """The page to look at; one that is made here goes to `made`."""
    from optimc.report.canonical import load_report
    from optimc.report.html import to_html
    from optimc.testing.large_report import large_report

    path = Path(argument).resolve()
    if argument and path.is_dir():
        path /= "report.html"
    if argument and path.suffix != ".json":
        return path
    report = load_report(path) if argument else large_report()
    made.write_text(to_html(report), encoding="utf-8")
    return made


def _paints(browser: Browser, page: Path) -> str:
    found = []
    for _ in range(RUNS):
        context = browser.new_context()
        tab = context.new_page()
        tab.goto(page.as_uri(), wait_until="load")
        found.append(tab.evaluate(_PAINT))
        context.close()
    median = statistics.median(found)
    return f"first contentful paint {median:.0f} ms (median of {RUNS}, at most {max(found):.0f} ms)"


def _complaints(browser: Browser, page: Path) -> tuple[list[str], list[str]]:
    from axe_playwright_python.sync_playwright import Axe

    said: list[str] = []
    findings: list[str] = []
    for scheme in ("light", "dark"):
        tab: Page = browser.new_context(color_scheme=scheme).new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(page.as_uri())
        tab.evaluate(_UNFOLD)
        told: dict[str, Any] = Axe().run(tab).response
        findings += [
            one["id"] for one in told["violations"] if one["impact"] in ("serious", "critical")
        ]
    return said, findings


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
