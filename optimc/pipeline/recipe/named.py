"""The sections whose entries are looked up by name: metrics, variants with their passes, targets.

They are dispatched by name here, so that errors speak of what the user wrote and not of the
alternatives of a union.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from optimc.core.errors import OptimcError, did_you_mean
from optimc.core.passes import Pass
from optimc.core.registry import pass_class, target_class
from optimc.core.targets import Target
from optimc.measure.metrics import METRICS
from optimc.measure.user_metric import UserMetric, UserMetricOptions
from optimc.pipeline.recipe.locate import Location, Node, Place, quoted
from optimc.pipeline.recipe.reading import Reading
from optimc.pipeline.recipe.schema import PassEntry, RecipeMetric, Variant, is_name
from optimc.pipeline.recipe.validation import dotted, known_names, validate

T = TypeVar("T")

DEFAULT_TARGETS: Mapping[str, Mapping[str, str]] = {"ort": {"runtime": "onnxruntime"}}
"""What a recipe without `targets` builds for."""


def default_targets(place: Place) -> Node:
    """`DEFAULT_TARGETS` as a node that stands at `place`."""
    targets = {
        name: Node({key: Node(text, place) for key, text in options.items()}, place)
        for name, options in DEFAULT_TARGETS.items()
    }
    return Node(targets, place)


class NamedReader:
    """Reads the named sections of one document."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def variants(self, root: Node) -> dict[str, Variant]:
        """By name."""
        return self._named(root, "variants", self._variant)

    def metrics(self, root: Node) -> dict[str, RecipeMetric]:
        """By name."""
        return self._named(root, "metrics", self._metric)

    def targets(self, root: Node) -> dict[str, Target]:
        """By name; `DEFAULT_TARGETS` where the recipe has none."""
        if root.get("targets") is None:
            root = Node({"targets": default_targets(root.place)}, root.place)
        return self._named(root, "targets", self._target)

    def _target(self, name: str, node: Node, location: Location) -> Target | None:
        self._check_name("target", name, node)
        if not isinstance(node.value, dict):
            self._reading.wrong(node, location, "a mapping", "write {runtime: onnxruntime}")
            return None
        runtime = node.value.get("runtime")
        if runtime is None:
            what = f"missing key `runtime` in {dotted(location)}"
            self._reading.note(node, what, "for example `runtime: onnxruntime`")
            return None
        if not isinstance(runtime.value, str):
            self._reading.wrong(runtime, (*location, "runtime"), "text")
            return None
        cls: type[Target] | None = self._look_up(target_class, runtime.value, runtime, location)
        made = None if cls is None else validate(cls, node, location, self._reading.problems)
        return None if made is None else self._reading.resolved(made, node)

    def _named(
        self, root: Node, section: str, read: Callable[[str, Node, Location], T | None]
    ) -> dict[str, T]:
        """The entries of a section whose keys are names."""
        node = root.get(section)
        if node is None or not self._is_mapping(node, section):
            return {}
        assert isinstance(node.value, dict)
        found = {}
        for name, entry in node.value.items():
            value = read(name, entry, (section, name))
            if value is not None:
                found[name] = value
        return found

    def _is_mapping(self, node: Node, section: str) -> bool:
        if not isinstance(node.value, dict):
            self._reading.wrong(node, (section,), "a mapping from names")
            return False
        return True

    def _check_name(self, kind: str, name: str, node: Node) -> None:
        if not is_name(name):
            what = f"the {kind} name {quoted(name)} cannot be a folder's name"
            fix = "use up to 64 of A-Z a-z 0-9 . _ - and begin with a letter or a digit"
            self._reading.note(node, what, fix)

    def _variant(self, name: str, node: Node, location: Location) -> Variant | None:
        self._check_name("variant", name, node)
        value = node.value
        if value is None and not node.bad:
            self._reading.note(node, f"{dotted(location)} is empty", "write [] for no passes")
            return None
        if isinstance(value, dict):
            return self._long_variant(node, value, location)
        return Variant(passes=self._passes(node, location))

    def _long_variant(
        self, node: Node, value: dict[str, Node], location: Location
    ) -> Variant | None:
        known = list(Variant.model_fields)
        unknown = [key for key in value if key not in known]
        for key, child in value.items():
            if key in unknown:
                what = f"unknown key {quoted(key)} in {dotted(location)}"
                self._reading.note(child, what, known_names(key, known))
        passes = value.get("passes")
        if passes is None:
            if not did_you_mean("passes", unknown):
                what = f"missing key `passes` in {dotted(location)}"
                self._reading.note(node, what, "passes: [] for none")
            return None
        entries = self._passes(passes, (*location, "passes"))
        targets = value.get("targets")
        if targets is None:
            return Variant(passes=entries)
        names = [entry.value for entry in _items(targets) if isinstance(entry.value, str)]
        if not names or len(names) != len(_items(targets)):
            self._reading.wrong(targets, (*location, "targets"), "a list of names of targets")
        return Variant(passes=entries, targets=tuple(names))

    def _passes(self, node: Node, location: Location) -> tuple[PassEntry, ...]:
        if not isinstance(node.value, list):
            self._reading.wrong(
                node, location, "a list of passes", "write `[name, {name: {options}}]`"
            )
            return ()
        entries = (self._pass(n, (*location, i)) for i, n in enumerate(node.value))
        return tuple(entry for entry in entries if entry is not None)

    def _pass(self, node: Node, location: Location) -> PassEntry | None:
        """A pass from `name` or `{name: {options}}`."""
        if isinstance(node.value, dict) and len(node.value) == 1:
            name, options = next(iter(node.value.items()))
        elif isinstance(node.value, str):
            name, options = node.value, Node({}, node.place)
        else:
            self._reading.wrong(node, location, "a pass", "write `name`, or `{name: {options}}`")
            return None
        cls: type[Pass] | None = self._look_up(pass_class, name, options, location)
        if cls is None:
            return None
        options = _options(options)
        required = None
        if isinstance(options.value, dict) and "required" not in cls.model_fields:
            required = options.value.pop("required", None)
        made = validate(cls, options, (*location, name), self._reading.problems)
        if required is not None and not isinstance(required.value, bool):
            self._reading.wrong(required, (*location, name, "required"), "true or false")
            return None
        if made is None:
            return None
        demanded = cls.required_by_default if required is None else bool(required.value)
        return PassEntry(name=name, pass_=self._reading.resolved(made, options), required=demanded)

    def _metric(self, name: str, node: Node, location: Location) -> RecipeMetric | None:
        options = _options(node)
        if options.get("call") is not None:
            own = validate(UserMetricOptions, options, location, self._reading.problems)
            return None if own is None else UserMetric(name, own)
        kind = METRICS.get(name)
        if kind is None:
            known = known_names(name, list(METRICS))
            fix = f"{known}; your own: {{call: module:Class}}"
            self._reading.note(node, f"unknown metric {quoted(name)}", fix)
            return None
        return validate(kind, options, location, self._reading.problems)

    def _look_up(
        self, find: Callable[[str], T], name: str, node: Node, location: Location
    ) -> T | None:
        try:
            return find(name)
        except OptimcError as error:
            place = node.key if node.key is not None and node.value != name else node.place
            self._reading.problems.add(place, f"{error.what} in {dotted(location)}", error.fix)
            return None


def _options(node: Node) -> Node:
    """The options of an entry; nothing behind the colon means none."""
    return Node({}, node.place, node.key) if node.value is None and not node.bad else node


def _items(node: Node) -> list[Node]:
    return node.value if isinstance(node.value, list) else []
