"""From pydantic's errors to problems that speak of what the user wrote."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optimc.core.errors import OptimcError, did_you_mean
from optimc.pipeline.recipe.locate import Location, Node, Problems, quoted

M = TypeVar("M", bound=BaseModel)

_WANTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "nothing",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than {}"),
    "greater_than_equal": ("ge", "must be at least {}"),
    "less_than": ("lt", "must be less than {}"),
    "less_than_equal": ("le", "must be at most {}"),
    "multiple_of": ("multiple_of", "must be a multiple of {}"),
}
_FIX = "\n"
"""Parts what is wrong from what to do."""

_Error = Mapping[str, Any]


def dotted(location: Location) -> str:
    """The location as text: ``variants.int8.passes[1]``."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if re.fullmatch(r"[\w/*-]{1,60}", part) else quoted(part).replace("`", '"')
            text += f".{shown}" if text else shown
    return text


def validate(kind: type[M], node: Node, location: Location, problems: Problems) -> M | None:
    """The typed form of `node`, or None with what is wrong noted in `problems`.

    `location` is where the node stands in the document. The data are taken as JSON, which is
    strict about types but lets a list be a tuple and a text be a path.
    """
    try:
        return kind.model_validate_json(json.dumps(node.data()), strict=True)
    except ValidationError as error:
        _Translator(node, location, problems, kind).note(error)
    except OptimcError as error:
        problems.add(node.key or node.place, error.what, error.fix)
    return None


class _Translator:
    """Notes the errors of one validation."""

    def __init__(self, root: Node, location: Location, problems: Problems, shape: Any) -> None:
        self._root = root
        self._location = location
        self._problems = problems
        self._shape = shape

    def note(self, error: ValidationError) -> None:
        """One problem for each place: the alternatives of a union are one problem."""
        groups: dict[Location, list[_Error]] = {}
        errors: Sequence[_Error] = error.errors(include_url=False, include_context=True)
        unknown = [item["loc"] for item in errors if item["type"] == "extra_forbidden"]
        for item in errors:
            if item["type"] != "missing" or not _misspelt(item["loc"], unknown):
                groups.setdefault(_below(self._root, item), []).append(item)
        above = {location[:length] for location in groups for length in range(len(location))}
        for location, alternatives in groups.items():
            # Of a union's alternatives, the one that went deeper is what was meant.
            if location not in above:
                self._note_one(location, alternatives)

    def _note_one(self, location: Location, errors: Sequence[_Error]) -> None:
        nodes = [self._root, *_descend(self._root, location)]
        if any(node.bad for node in nodes):
            return
        node, last = nodes[-1], errors[0]["loc"][-1:]
        where = (*self._location, *location)
        if errors[0]["type"] == "extra_forbidden":
            self._unknown_key(node, location)
        elif errors[0]["type"] == "missing" and isinstance(last[0], str):
            name = dotted(where)
            what = f"missing key `{last[0]}`" + (f" in {name}" if name else "")
            self._problems.add(node.key or node.place, what, self._needed(node, location))
        elif last == ("[key]",):
            what, fix = _value_text(where, location[-1], errors)
            self._problems.add(node.key or node.place, what, fix)
        else:
            what, fix = _value_text(where, node.data(), errors)
            self._problems.add(_telling(node, errors).place, what, fix)

    def _unknown_key(self, node: Node, location: Location) -> None:
        key, parent = str(location[-1]), location[:-1]
        models = _meant(self._at(parent), [k for k in _node_at(self._root, parent) if k != key])
        known = list(dict.fromkeys(name for model in models for name in model.model_fields))
        where = dotted((*self._location, *parent))
        what = f"unknown key {quoted(key)}" + (f" in {where}" if where else "")
        self._problems.add(node.key or node.place, what, known_names(key, known))

    def _needed(self, node: Node, location: Location) -> str | None:
        models = _meant(self._at(location), node.value if isinstance(node.value, dict) else ())
        if len(models) != 1:
            return None
        fields = models[0].model_fields.items()
        return "needed: " + ", ".join(name for name, field in fields if field.is_required())

    def _at(self, location: Location) -> Any:
        return _shape_at(self._shape, location)


def _misspelt(missing: Location, unknown: Sequence[Location]) -> bool:
    """Whether the missing key is there under a name that is near: then that is said alone."""
    beside = [str(location[-1]) for location in unknown if location[:-1] == missing[:-1]]
    return did_you_mean(str(missing[-1]), beside) is not None


def _telling(node: Node, errors: Sequence[_Error]) -> Node:
    """The node to point at: where a key tells the kind of an entry, its first key."""
    if errors[0]["type"] == "unknown_choice" and isinstance(node.value, dict):
        first = next(iter(node.value.values()), None)
        if first is not None and first.key is not None:
            return Node(None, first.key)
    return node


def known_names(word: str, known: Sequence[str]) -> str | None:
    """`did you mean ...? known: ...`, None where nothing is known."""
    if not known:
        return None
    hint = did_you_mean(word, known)
    listed = f"known: {', '.join(known)}"
    return f"{hint} {listed}" if hint else listed


def _descend(root: Node, location: Location) -> Iterator[Node]:
    node: Node | None = root
    for part in location:
        node = node.get(part) if node is not None else None
        if node is None:
            return
        yield node


def _below(root: Node, error: _Error) -> Location:
    """The location of an error in the document: pydantic's, without the names of alternatives."""
    return max(_readings(root, error["loc"]), key=lambda reading: reading[0])[1]


def _readings(node: Node, parts: Location) -> Iterator[tuple[tuple[bool, int], Location]]:
    """Every way to read `parts` in the document, with how well it fits."""
    if not parts:
        yield (True, 0), ()
        return
    head, rest = parts[0], parts[1:]
    child = node.get(head)
    if child is not None:
        for (last, length), location in _readings(child, rest):
            yield (last, length + 1), (head, *location)
    # The part names an alternative of a union, or a key that is missing.
    for (last, length), location in _readings(node, rest):
        yield (last and bool(rest), length), location


def _value_text(where: Location, value: Any, errors: Sequence[_Error]) -> tuple[str, str | None]:
    """What is wrong with a value. Where some alternative took its type, only that one counts."""
    name = dotted(where) or "the recipe"
    typed = [error for error in errors if error["type"] not in _WANTED]
    stated = [error for error in typed if error["type"] not in ("literal_error", "enum")]
    if stated:
        statements = dict.fromkeys(_statement(error, value) for error in stated)
        what, _, remedy = "; ".join(statements).partition(_FIX)
        return f"{name}: {what}", remedy or None
    wanted = [_WANTED[error["type"]] for error in errors if error["type"] in _WANTED]
    choices = [word for error in typed for word in _choices(error)]
    listed = [*dict.fromkeys(wanted), *(f"`{word}`" for word in dict.fromkeys(choices))]
    fix = did_you_mean(value, choices) if isinstance(value, str) else None
    return f"{name}: expected {_one_of(listed)}, got {quoted(value)}", fix


def _one_of(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _choices(error: _Error) -> list[str]:
    """The values that are known: texts without their quotes, numbers as they are."""
    expected = str(error["ctx"]["expected"])
    return re.findall(r"'([^']*)'", expected) or re.split(r", | or ", expected)


def _statement(error: _Error, value: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        key, text = _BOUNDS[kind]
        return f"{quoted(value)} {text.format(_number(context[key]))}"
    if kind in ("too_short", "too_long"):
        least = kind == "too_short"
        count = context["min_length" if least else "max_length"]
        wanted = f"at {'least' if least else 'most'} {count}"
        return f"needs {wanted} {'entry' if count == 1 else 'entries'}, got {len(value)}"
    if kind == "missing":
        return "too few entries"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_pattern_mismatch":
        return f"{quoted(value)} is not of the form {context['pattern']}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "unknown_choice":  # entries of `data` that are told by their key
        return str(error["msg"]).replace("; ", _FIX, 1)
    return _plain_message(error, value)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain_message(error: _Error, value: Any) -> str:
    message = str(error["msg"])
    return f"{message[:1].lower()}{message[1:]}, got {quoted(value)}"


def _shape_at(shape: Any, location: Location) -> Any:
    """The type that stands at a location, as far as annotations tell; None where they do not."""
    for part in location:
        shape = next((found for found in _children(shape, part) if found is not None), None)
    return shape


def _children(shape: Any, part: str | int) -> Iterator[Any]:
    for option in _alternatives(shape):
        if isinstance(option, type) and issubclass(option, BaseModel):
            field = option.model_fields.get(str(part))
            yield field.annotation if field is not None else None
            continue
        arguments = typing.get_args(option)
        origin = typing.get_origin(option)
        if isinstance(origin, type) and arguments:
            yield arguments[-1] if issubclass(origin, Mapping) else arguments[0]


def _alternatives(shape: Any) -> Iterator[Any]:
    origin = typing.get_origin(shape)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(shape)[0])
    elif origin in (typing.Union, types.UnionType):
        for option in typing.get_args(shape):
            yield from _alternatives(option)
    elif shape is not None:
        yield shape


def _meant(shape: Any, keys: Collection[str]) -> list[type[BaseModel]]:
    """Of the models that may stand here, those with the most of the `keys`."""
    models = [m for m in _alternatives(shape) if isinstance(m, type) and issubclass(m, BaseModel)]
    fits = [sum(key in model.model_fields for key in keys) for model in models]
    return [model for model, fit in zip(models, fits, strict=True) if fit == max(fits)]


def _node_at(root: Node, location: Location) -> Collection[str]:
    *_, node = root, *_descend(root, location)
    return node.value if isinstance(node.value, dict) else ()
