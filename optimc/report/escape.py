"""Makes text that we did not write safe to show.

Names come from models and recipes, reasons from runtimes: either may hold control characters,
markup, or a line that a build server would take for a command. JSON keeps them as they are; the
views show them through these functions.
"""

from __future__ import annotations

import re
import unicodedata

# Control, format (bidirectional overrides, zero width), line and paragraph separators,
# surrogates, private and unassigned: what is shown in its escaped form.
_HIDDEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"})
_MARKDOWN = re.compile(r"([\\`*_\[\]~#{}!])")
_BLOCK_START = re.compile(r"^(?:[-+=:]|\d+[.)](?=\s|$))")
# GitHub makes links, mentions, references and formulas of these wherever they stand in text.
_LIVE = re.compile(r"@\w|://|www\.|\$|#\d|:\w+:", re.IGNORECASE)
_SERVER_COMMAND = re.compile(r"##(?=\w*\[)")


def one_line(text: str) -> str:
    r"""`text` on one line: every character that cannot be seen in its escaped form (``\x1b``)."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _HIDDEN else char
        for char in text
    )


def markdown_text(text: str) -> str:
    """`text` as Markdown (GitHub's) that renders as the very same text, on one line.

    Words that would become links or mentions are shown as code.
    """
    words = one_line(text).strip(" ").split(" ")
    shown = " ".join(markdown_code(w) if _LIVE.search(w) else _escaped(w) for w in words)
    return _BLOCK_START.sub(lambda m: f"{m[0][:-1]}\\{m[0][-1]}", shown)


def markdown_code(text: str) -> str:
    """`text` as code in Markdown, on one line, also in a cell of a table.

    Back ticks, bars and back slashes mean different things in different parsers' code spans:
    texts with such are written as HTML, all punctuation as character references.
    """
    shown = one_line(text)
    if not shown.strip() or set(shown) & set("`|\\"):
        referenced = (c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in shown)
        return f"<code>{''.join(referenced)}</code>"
    return f"`{shown}`"


def log_text(text: str) -> str:
    """`one_line`, without what Azure Pipelines or TeamCity would obey anywhere in a log's line."""
    return _SERVER_COMMAND.sub(r"#\\#", one_line(text))


def log_line(line: str) -> str:
    """`line`, changed where GitHub Actions would obey it: such a line starts with two colons.

    The line loses one of the spaces before it, or grows by one character where there are none.
    """
    bare = line.lstrip()
    if not bare.startswith("::"):
        return line
    return line[: max(0, len(line) - len(bare) - 1)] + "\\" + bare


def _escaped(word: str) -> str:
    word = word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", word).replace("|", "&#124;")
