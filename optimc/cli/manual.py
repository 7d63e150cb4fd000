"""`optimc passes`, `optimc targets` and `optimc schema`."""

from __future__ import annotations

import inspect
import json
from typing import Any

from optimc.core.passes import Pass
from optimc.core.registry import pass_class, pass_names, target_class, target_names


def run_passes(name: str | None) -> int:
    """Prints all passes with their first line, or one manual page."""
    if name is not None:
        print(manual_page(pass_class(name)))
        return 0
    for known in pass_names():
        print(f"{known:<20} {summary(pass_class(known))}")
    print("\n`optimc passes NAME` prints the manual page.")
    return 0


def summary(pass_: type[Pass]) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(pass_) or "").partition("\n")[0]


def manual_page(pass_: type[Pass]) -> str:
    """The docstring, with the options' types, defaults and meanings from the fields themselves."""
    lines = [pass_.pass_name(), "", inspect.getdoc(pass_) or "", "", "In a recipe:"]
    fields = pass_.model_fields
    for name, field in fields.items():
        default = _text(field.get_default(call_default_factory=True))
        lines.append(f"  {name}: {default}")
        lines += [f"      {line}" for line in (field.description or "").splitlines()]
    if not fields:
        lines.append("  no options")
    reads = ", ".join(sorted(pass_.reads)) or "nothing but the model"
    required = "yes" if pass_.required_by_default else "no"
    lines += ["", f"Reads: {reads}. Required by default: {required}."]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return json.dumps(value, default=lambda x: sorted(x) if isinstance(x, frozenset) else str(x))


def run_targets() -> int:
    """Prints every runtime and whether it builds here."""
    for runtime in target_names():
        target = target_class(runtime)
        missing = target.unavailable()
        if missing is None:
            print(f"{runtime:<12} available")
        else:
            print(f"{runtime:<12} not here: {missing.reason}")
            print(f"{'':<12}   fix: {missing.remedy}")
    return 0


def run_schema(of: str) -> int:
    """Prints a JSON Schema."""
    if of == "recipe":
        from optimc.pipeline.recipe.json_schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=2))
    else:
        from optimc.report.canonical import schema_text

        print(schema_text(), end="")
    return 0
