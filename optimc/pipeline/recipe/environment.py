"""``${NAME}`` in a recipe's texts: the value of an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from optimc.core.errors import did_you_mean
from optimc.pipeline.recipe.locate import Node, Problems

_REFERENCE = re.compile(r"\$(\$?)\{([^{}]*)\}")


def substitute(root: Node, problems: Problems, variables: Mapping[str, str] | None = None) -> None:
    """Replaces every ``${NAME}`` in the values (not the keys) below `root`; the result is text.

    ``$${NAME}`` stands for the text ``${NAME}``. A variable that is not set is a problem.
    """
    known = os.environ if variables is None else variables
    for node in root.walk():
        if isinstance(node.value, str) and "${" in node.value:
            node.value = _filled(node, node.value, problems, known)


def _filled(node: Node, text: str, problems: Problems, known: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        escaped, name = match[1], match[2]
        if escaped:
            return match[0][1:]
        if name in known:
            return known[name]
        if node.bad:  # one of them is enough
            return ""
        hint = did_you_mean(name, known)
        fix = f"export {name}=..., or write $${{{name}}} for the text itself"
        what = f"the environment variable `{name}` is not set"
        problems.add(node.place, what, f"{hint} {fix}" if hint else fix)
        node.bad = True
        return ""

    return _REFERENCE.sub(value, text)
