"""The JSON Schema (2020-12) of recipes, made from the types that recipes are read into.

It holds the options of every built-in pass, target, metric and data source, so that an editor
completes and checks them. Plug-ins are told by their name only: their options are left open.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from optimc.core.passes import Pass
from optimc.core.registry import pass_class, pass_names, target_class, target_names
from optimc.core.targets import Target
from optimc.measure.metrics import METRICS
from optimc.measure.user_metric import UserMetricOptions
from optimc.pipeline.recipe.schema import NAME_PATTERN, Recipe, Sections

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Json = dict[str, Any]

_NAMED: Json = {"type": "object", "propertyNames": {"pattern": NAME_PATTERN}, "minProperties": 1}


def recipe_schema() -> Json:
    """The schema of a recipe."""
    passes = {name: pass_class(name) for name in pass_names()}
    targets = {name: target_class(name) for name in target_names()}
    options: list[type[BaseModel]] = [*METRICS.values(), UserMetricOptions]
    refs, definitions = _definitions([Sections, *passes.values(), *targets.values(), *options])
    sections = definitions.pop(_name(refs[Sections]))
    entries = [_pass_schema(name, cls, refs[cls], definitions) for name, cls in passes.items()]
    definitions["Pass"] = {"anyOf": entries} if entries else False
    definitions["Passes"] = {"type": "array", "items": _ref("Pass")}
    definitions["Variant"] = _variant_schema()
    runtimes = [_target_schema(name, refs[cls], definitions) for name, cls in targets.items()]
    properties = {
        **sections["properties"],
        "metrics": _section("metrics", _metrics_schema(refs)),
        "variants": _section("variants", {**_NAMED, "additionalProperties": _ref("Variant")}),
        "targets": _section("targets", {**_NAMED, "additionalProperties": {"anyOf": runtimes}}),
    }
    order = [name for name in Recipe.model_fields if name in properties]
    schema: Json = _tidy(
        {
            "$schema": DIALECT,
            "title": "optimc recipe",
            "description": "How a trained model is compiled, measured and judged.",
            "type": "object",
            "properties": {name: properties[name] for name in order},
            "required": ["model", "variants"],
            "additionalProperties": False,
            "$defs": definitions,
        }
    )
    return schema


def _definitions(classes: Iterable[type[BaseModel]]) -> tuple[dict[type, Json], Json]:
    """For each class a reference, and all definitions; equal names are told apart by pydantic."""
    keyed, schema = models_json_schema([(cls, "validation") for cls in classes])
    return {cls: ref for (cls, _), ref in keyed.items()}, schema["$defs"]


def _name(ref: Json) -> str:
    return str(ref["$ref"]).removeprefix("#/$defs/")


def _ref(name: str) -> Json:
    return {"$ref": f"#/$defs/{name}"}


def _section(name: str, schema: Json) -> Json:
    return {"description": Recipe.model_fields[name].description, **schema}


def _pass_schema(name: str, cls: type[Pass], ref: Json, definitions: Json) -> Json:
    """`name`, or `{name: {options}}` with `required` beside the options."""
    options = definitions[_name(ref)]
    summary = _first_line(cls)
    options["description"] = summary
    options.setdefault("properties", {}).setdefault(
        "required",
        {
            "type": "boolean",
            "default": cls.required_by_default,
            "description": "Whether the cell fails where the pass is rolled back.",
        },
    )
    spelled: list[Json] = [ref] if options.get("required") else [ref, {"type": "null"}]
    entry = {
        "type": "object",
        "properties": {name: {"anyOf": spelled}},
        "required": [name],
        "additionalProperties": False,
        "description": summary,
    }
    if options.get("required"):
        return entry
    return {"anyOf": [{"const": name, "description": summary}, entry]}


def _metrics_schema(refs: dict[type, Json]) -> Json:
    own = refs[UserMetricOptions]
    named = {name: {"anyOf": [refs[cls], {"type": "null"}, own]} for name, cls in METRICS.items()}
    return {"type": "object", "properties": named, "additionalProperties": own}


def _variant_schema() -> Json:
    targets = {"type": "array", "items": {"type": "string"}, "minItems": 1}
    long = {
        "type": "object",
        "properties": {
            "passes": {**_ref("Passes"), "description": "In the order in which they run."},
            "targets": {**targets, "description": "The targets it is built for."},
        },
        "required": ["passes"],
        "additionalProperties": False,
    }
    return {
        "description": "A list of passes, built for every target, or passes and targets.",
        "anyOf": [_ref("Passes"), long],
    }


def _target_schema(name: str, ref: Json, definitions: Json) -> Json:
    options = definitions[_name(ref)]
    runtime = options["properties"].setdefault("runtime", {})
    runtime["const"] = name
    runtime.pop("default", None)
    options["required"] = sorted({*options.get("required", ()), "runtime"})
    return ref


def _first_line(cls: type[Pass] | type[Target]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _tidy(schema: Any) -> Any:
    """Without the titles that pydantic derives from field names."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    derived = isinstance(schema.get("title"), str) and "$schema" not in schema
    return {key: _tidy(item) for key, item in schema.items() if not (key == "title" and derived)}
