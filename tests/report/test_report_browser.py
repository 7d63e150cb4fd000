"""The page in a real browser: Debian's chromium, headless, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from optimc.report.html import to_html
from optimc.report.schema import Report
from optimc.testing.browser import VARIABLE, chromium, open_browser
from optimc.testing.example_report import (
    HOSTILE_NAMES,
    example_report,
    failed_report,
    hostile_report,
    undecided_report,
)
from optimc.testing.large_report import large_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

REPORTS = {
    "passed": example_report(),
    "undecided": undecided_report(),
    "failed": failed_report(),
    "hostile": hostile_report(" ".join(HOSTILE_NAMES)),
}
every_report = pytest.mark.parametrize("name", REPORTS)
FOCUSABLE = "a[href], summary, button:not([hidden]), [tabindex='0']"  # in the order of the document
# Not in something folded, unless it is the line that unfolds it.
_IN_VIEW = """(e => {
  for (let d = e.closest("details"); d; d = d.parentElement.closest("details"))
    if (!d.open && !(e.tagName === "SUMMARY" && e.parentElement === d)) return false;
  return true;
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    pytest.importorskip("playwright", reason="playwright is not installed: pip install '.[dev]'")
    program = chromium()
    if program is None:
        pytest.skip(f"no chromium here: install it (apt install chromium) or set {VARIABLE}")
    with open_browser(program) as found:
        yield found


def _written(report: Report, folder: Path) -> str:
    path = folder / "report.html"
    path.write_text(to_html(report), encoding="utf-8")
    return path.as_uri()


def _opened(browser: Browser, url: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.goto(url)
    return page


@pytest.mark.long
def test_a_page_of_minilms_size_is_small_silent_and_accessible(
    browser: Browser, tmp_path: Path
) -> None:
    """Three variants on two targets; `bench/report_page.py` measures how fast it is painted."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    url = _written(large_report(), tmp_path)
    assert (tmp_path / "report.html").stat().st_size <= 3_000_000
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.locator("#layers tbody tr").count() > 200
    assert page.locator("#accuracy img").count() > 1
    assert _serious(axe.Axe().run(page).response) == []
    assert said == []


@every_report
def test_no_console_error_and_no_request(browser: Browser, tmp_path: Path, name: str) -> None:
    url = _written(REPORTS[name], tmp_path)
    page = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(url)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.title").endswith("optimc")
    assert said == []
    assert [one for one in asked if not one.startswith("data:")] == [url]


def _serious(found: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    return [
        (one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]


@every_report
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_accessibility_checker_finds_nothing_serious(
    browser: Browser, tmp_path: Path, name: str, scheme: Literal["light", "dark"]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = _opened(browser, _written(REPORTS[name], tmp_path), color_scheme=scheme)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = axe.Axe().run(page).response
    assert len(found["passes"]) > 20
    assert _serious(found) == []


def test_the_keyboard_goes_through_the_page_in_its_order(browser: Browser, tmp_path: Path) -> None:
    page = _opened(browser, _written(REPORTS["passed"], tmp_path))
    wanted = page.evaluate(
        f"[...document.querySelectorAll(`{FOCUSABLE}`)].filter({_IN_VIEW})"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    met = []
    for _ in wanted:
        page.keyboard.press("Tab")
        met.append(page.evaluate("document.activeElement.outerHTML.slice(0, 80)"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", met[-1]
    assert met == wanted
    assert 'class="skip"' in met[0]


def test_the_keyboard_opens_what_is_folded_and_skips_to_the_verdict(
    browser: Browser, tmp_path: Path
) -> None:
    page = _opened(browser, _written(REPORTS["passed"], tmp_path))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.url.endswith("#verdict")
    folded = page.locator("#verdict details").first
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    assert folded.get_attribute("open") is not None


def test_the_command_can_be_copied(browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(_written(REPORTS["passed"], tmp_path))
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == REPORTS["passed"].command
    assert page.get_by_role("status").inner_text() == "The command was copied."


def _colours(page: Page) -> tuple[str, str, str]:
    found = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " getComputedStyle(document.querySelector('.chart .ships circle')).fill]"
    )
    return found[0], found[1], found[2]


def _brightness(colour: str) -> float:
    red, green, blue = (int(part) for part in colour[4:-1].split(","))
    return (red + green + blue) / 3


def test_dark_and_light_and_paper_each_have_their_colours(browser: Browser, tmp_path: Path) -> None:
    url = _written(REPORTS["passed"], tmp_path)
    light = _colours(_opened(browser, url, color_scheme="light"))
    page = _opened(browser, url, color_scheme="dark")
    dark = _colours(page)
    assert _brightness(light[0]) > 200 > 80 > _brightness(light[1])
    assert _brightness(dark[0]) < 80 < 200 < _brightness(dark[1])
    assert light[2] != dark[2]
    page.emulate_media(media="print")
    assert _colours(page)[:2] == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert not page.get_by_role("navigation").is_visible()


def test_on_paper_everything_is_unfolded_without_a_script(browser: Browser, tmp_path: Path) -> None:
    url = _written(REPORTS["passed"], tmp_path)
    page = _opened(browser, url, java_script_enabled=False)
    shown = (
        "[...document.querySelectorAll('details:not([open])')]"
        ".map(one => getComputedStyle(one, '::details-content').contentVisibility)"
    )
    assert set(page.evaluate(shown)) == {"hidden"}
    page.emulate_media(media="print")
    assert set(page.evaluate(shown)) == {"visible"}


@pytest.mark.parametrize("name", ["passed", "hostile"])
def test_a_narrow_window_scrolls_tables_and_not_the_page(
    browser: Browser, tmp_path: Path, name: str
) -> None:
    page = _opened(
        browser, _written(REPORTS[name], tmp_path), viewport={"width": 360, "height": 800}
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_picture_is_drawn_within_its_frame(browser: Browser, tmp_path: Path) -> None:
    page = _opened(browser, _written(REPORTS["passed"], tmp_path))
    boxes = [picture.bounding_box() for picture in page.locator("svg.chart").all()]
    assert len(boxes) >= 6
    assert all(box and box["width"] > 250 and box["height"] > 80 for box in boxes)
    outside = page.evaluate(
        "[...document.querySelectorAll('svg.chart')].flatMap(svg => {"
        " const frame = svg.getBoundingClientRect();"
        " return [...svg.querySelectorAll('text')].filter(text => {"
        "  const box = text.getBoundingClientRect();"
        "  return box.left < frame.left - 2 || box.right > frame.right + 2; })"
        " .map(text => text.textContent); })"
    )
    assert outside == []
