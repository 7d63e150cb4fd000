"""What build servers take as JUnit XML, for tests."""

from __future__ import annotations

from xml.etree import ElementTree as ET

_SUITE = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id"}
_FINDING = {"type", "message"}
_ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "disabled", "errors"},
    "testsuite": _SUITE,
    "testcase": {"name", "classname", "time", "assertions", "status"},
    "failure": _FINDING,
    "error": _FINDING,
    "skipped": _FINDING,
}
_NEEDED = {"testsuite": {"name", "tests"}, "testcase": {"name", "classname"}}
_CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "error", "skipped"},
}


def check_junit(text: str) -> ET.Element:
    """The root of `text`, which has to keep to the schema.

    Elements and attributes are those of junit-10.xsd, the schema of Jenkins' xUnit plug-in, the
    strictest of those in use; what we do not write of it is left out here. Raises AssertionError.
    """
    root = ET.fromstring(text.encode())
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) <= _ATTRIBUTES[element.tag], element.attrib
        assert set(element.attrib) >= _NEEDED.get(element.tag, set()), element.attrib
        assert {child.tag for child in element} <= _CHILDREN.get(element.tag, set())
    return root
