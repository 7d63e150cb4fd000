from __future__ import annotations

import html
import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from optimc.report.escape import log_line, log_text, markdown_code, markdown_text, one_line
from optimc.testing.example_report import HOSTILE_NAMES

TEXTS = st.text(st.one_of(st.characters(), st.sampled_from("`|\\*_[]()<>&#!~:$@ -+=1.")))
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def rendered(markdown: str) -> str:
    """The text that a reader of the rendered Markdown sees, spaces as a browser shows them."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", PARSER.render(markdown))).split())


@given(TEXTS)
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_one_line_shows_every_character_and_is_valid_in_xml(name: str, text: str) -> None:
    shown = one_line(name + text)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]", shown)
    parsed = ET.fromstring(ET.tostring(ET.Element("a", name=shown), encoding="unicode"))
    assert parsed.get("name") == shown


def test_one_line_leaves_other_scripts_alone() -> None:
    assert one_line("模型 é ß № → ±") == "模型 é ß № → ±"


@given(TEXTS)
@example("- | `a` \\| **b** _c_ <i> &amp; http://x.invalid @who 1. x")
@example("1) x")
@example("# x")
@example(":x:")
@example("  - x")
@example("    + x")
def test_markdown_renders_as_the_text_itself(text: str) -> None:
    shown = " ".join(one_line(text).split())
    for markdown in (markdown_text(text), markdown_code(text)):
        assert rendered(f"- **label**: {markdown}") == f"label: {shown}".strip()
        assert rendered(markdown) == shown


@given(TEXTS)
def test_markdown_stays_in_its_cell(text: str) -> None:
    for markdown in (markdown_text(text), markdown_code(text)):
        table = f"| a | b |\n| --- | --- |\n| {markdown} | end |"
        cells = re.findall(r"<td>(.*?)</td>", PARSER.render(table))
        assert len(cells) == 2
        assert cells[1] == "end"
        assert rendered(table).startswith(f"a b {' '.join(one_line(text).split())}".rstrip())


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_markdown_makes_no_element_of_its_own(name: str) -> None:
    for markdown in (markdown_text(name), markdown_code(name)):
        tags = set(re.findall(r"<(\w+)", PARSER.render(f"- x {markdown}")))
        assert tags <= {"ul", "li", "p", "code"}


@given(TEXTS)
def test_no_build_server_obeys_a_line_of_a_log(text: str) -> None:
    for name in (*HOSTILE_NAMES, text):
        line = log_line("   " + log_text(name))
        assert not line.lstrip().startswith("::")
        assert not re.search(r"##\w*\[", line)


def test_a_command_in_a_log_stays_readable() -> None:
    assert log_line("    ::error::planted") == "   \\::error::planted"
    assert log_line("::error::planted") == "\\::error::planted"
    assert log_line("a::b") == "a::b"
    assert log_text("##vso[task.complete]") == r"#\#vso[task.complete]"
