"""`optimc passes`, `optimc metrics`, `optimc targets` and `optimc schema`."""

from __future__ import annotations

import inspect
import json
from typing import Any

from pydantic import BaseModel

from optimc.core.model import Level
from optimc.core.passes import Pass
from optimc.core.registry import pass_class, pass_names, target_class, target_names
from optimc.core.targets import Target


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
    lines += _options(pass_)
    reads = ", ".join(sorted(pass_.reads)) or "nothing but the model"
    torch = " (of a factory or hf, before any pass on ONNX models)"
    levels = " or ".join(
        f"{level} models{torch if level is Level.TORCH else ''}" for level in sorted(pass_.levels())
    )
    required = "yes" if pass_.required_by_default else "no"
    lines += [
        "",
        f"Works on {levels}.",
        f"Reads: {reads}, and what options ask for.",
        f"Required by default: {required}; a cell fails where a required pass is rolled back.",
    ]
    return "\n".join(lines)


def _options(kind: type[BaseModel]) -> list[str]:
    """The options with their defaults and meanings, from the fields themselves."""
    lines = []
    for name, field in kind.model_fields.items():
        default = _text(field.get_default(call_default_factory=True))
        lines.append(f"  {name}: {'needed' if field.is_required() else default}")
        lines += [f"      {line}" for line in (field.description or "").splitlines()]
    return lines or ["  no options"]


def _text(value: Any) -> str:
    return json.dumps(value, default=lambda x: sorted(x) if isinstance(x, frozenset) else str(x))


def run_metrics(name: str | None) -> int:
    """Prints all metrics with their first line, or one manual page; `call` is the user's own."""
    from optimc.core.errors import unknown_name
    from optimc.measure import user_metric
    from optimc.measure.metrics import METRICS

    own = inspect.cleandoc(user_metric.__doc__ or "")
    if name is None:
        pages = {known: inspect.getdoc(kind) or "" for known, kind in METRICS.items()}
        for known, page in {**pages, "call": own}.items():
            print(f"{known:<12} {page.partition(chr(10))[0]}")
        print("\n`optimc metrics NAME` prints the manual page.")
        return 0
    if name == "call":
        lines = [name, "", own, "", "In a recipe:", *_options(user_metric.UserMetricOptions)]
    elif name in METRICS:
        kind = METRICS[name]
        unit = f" Unit: {kind.unit}." if kind.unit else ""
        lines = [name, "", inspect.getdoc(kind) or "", "", "In a recipe:", *_options(kind)]
        lines += ["", f"Better: {kind.better}.{unit}"]
    else:
        raise unknown_name("metric", name, [*METRICS, "call"])
    print("\n".join(lines))
    return 0


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
        options = _left_to_measuring(target)
        if options:
            print(f"{'':<12}   measured where it is `auto`: {', '.join(options)}")
    return 0


def _left_to_measuring(target: type[Target]) -> list[str]:
    """Options that take `auto`."""
    described = target.model_json_schema()["properties"]
    return [name for name, option in described.items() if '"auto"' in json.dumps(option)]


def run_schema(of: str) -> int:
    """Prints a JSON Schema."""
    if of == "recipe":
        from optimc.pipeline.recipe.json_schema import recipe_schema

        print(json.dumps(recipe_schema(), indent=2))
    elif of == "policy":
        from optimc.pipeline.regression.policy import policy_schema

        print(policy_schema(), end="")
    else:
        from optimc.report.canonical import schema_text

        print(schema_text(), end="")
    return 0
