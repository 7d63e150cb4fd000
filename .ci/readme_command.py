"""Prints a set-up command of README.md: `python3 .ci/readme_command.py quickstart`.

The command is the one line of the fenced block that follows `<!-- setup: NAME -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def command(name: str, text: str) -> str:
    """The command's line. Raises SystemExit where it does not stand there exactly once."""
    block = rf"^<!-- setup: {re.escape(name)} -->\n+```\w*\n([^\n]+)\n```$"
    found: list[str] = re.findall(block, text, flags=re.MULTILINE)
    if len(found) != 1:
        raise SystemExit(
            f"README.md has {len(found)} one-line blocks after <!-- setup: {name} -->, expected one"
        )
    return found[0]


if __name__ == "__main__":
    print(command(sys.argv[1], README.read_text(encoding="utf-8")))
