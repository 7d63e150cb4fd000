"""Recording objects in place of TensorRT's, each use checked against the real bindings' classes.

The bindings (pybind11) write each signature into the docstring: names, types and the result. A
double of a class takes an attribute only where the class has it, a call only where one of its
signatures fits, and gives back doubles of what the signature promises. So code that names what
TensorRT does not have, or calls it in another way, fails without a GPU.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

ABSENT = object()
CONSTRUCTED = ("Builder", "OnnxParser", "OnnxParserRefitter", "Refitter", "Runtime")
"""Classes whose constructors need the libraries: doubles stand for them."""
OVERRIDDEN = ("ILogger", "IOutputAllocator", "IProfiler", "IProgressMonitor")
"""Classes that Python code derives from: real ones, whose overrides are checked."""
_SIGNATURE = re.compile(r"^(?:\d+\. )?(\w*)\((.*)\)(?: -> (.*))?$")
_PLAIN: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "SupportsInt": (int,),
    "float": (float, int),
    "SupportsFloat": (float, int),
    "bool": (bool,),
    "str": (str,),
    "Buffer": (bytes, bytearray, memoryview),
    "buffer": (bytes, bytearray, memoryview),
    "bytes": (bytes,),
    "tuple": (tuple,),
    "list": (list,),
    "Sequence": (list, tuple),
    "List": (list, tuple),
}


class ApiError(AssertionError):
    """A use that the real TensorRT does not have."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a signature, `self` left out."""

    name: str
    type: str
    optional: bool


@dataclass(frozen=True)
class Signature:
    """One overload."""

    parameters: tuple[Parameter, ...]
    result: str


def signatures(docstring: str | None) -> tuple[Signature, ...]:
    """All overloads that a pybind11 docstring names."""
    found = []
    for line in (docstring or "").splitlines():
        match = _SIGNATURE.match(line.strip())
        if match is None or match[2].startswith("*args"):
            continue
        parameters = [_parameter(text) for text in _split(match[2])]
        first = parameters[0].name if parameters else ""
        found.append(Signature(tuple(parameters[first in ("self", "arg0") :]), match[3] or "None"))
    return tuple(found)


def _split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "[(<{") - (char in "])>}")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [part.strip() for part in [*parts, current] if part.strip()]


def _parameter(text: str) -> Parameter:
    name, _, rest = text.partition(":")
    kind, _, default = rest.partition(" = ")
    return Parameter(name.strip(), kind.strip(), bool(default))


@dataclass
class Api:
    """One version of TensorRT: its real module, what doubles answer, and what was used."""

    real: ModuleType
    answers: Mapping[str, Any] = field(default_factory=dict)
    """From `Class.attribute` to the value, or to a function of the call's arguments; with a `=`
    behind it, to what is called when it is set."""
    used: list[str] = field(default_factory=list)
    """`Class.attribute` and `Enumeration.member`, in the order of use."""
    values: dict[str, Any] = field(default_factory=dict)
    """From `Class.attribute` to the value that was set last."""
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    """Each call with its arguments by place, in order."""

    def arguments(self, key: str) -> list[tuple[Any, ...]]:
        """Of each call of `Class.method`."""
        return [arguments for name, arguments in self.calls if name == key]

    def module(self) -> ModuleType:
        """What stands for ``import tensorrt``."""
        return _DoubleModule(self)

    def resolve(self, name: str) -> Any:
        """The class or enumeration that a signature names, ABSENT where there is none."""
        short = name.split("tensorrt_bindings.tensorrt.")[-1].split("::")[-1]
        found: Any = self.real
        for part in short.split("."):
            found = getattr(found, part, ABSENT)
        # The parser's error has its C++ name in signatures.
        return self.real.ParserError if short == "IParserError" else found

    def call(self, owner: type, name: str, doc: str | None, args: Any, kwargs: Any) -> Any:
        """Checks the arguments against the overloads, records, and answers."""
        key = f"{owner.__name__}.{name}"
        overloads = signatures(doc)
        if not overloads:
            raise ApiError(f"{key} has no signature to check against")
        problems = [_misfit(self, overload, args, kwargs) for overload in overloads]
        if all(problems):
            raise ApiError(f"{key}{args}{kwargs or ''}: {'; '.join(filter(None, problems))}")
        self.used.append(key)
        self.calls.append((key, tuple(args)))
        if key in self.answers:
            answer = self.answers[key]
            return answer(*args, **kwargs) if callable(answer) else answer
        return self.of_type(overloads[problems.index(None)].result)

    def of_type(self, name: str) -> Any:
        """A value of the type that a signature promises."""
        plain: dict[str, Any] = {"int": 0, "bool": True, "str": "", "float": 0.0, "None": None}
        if name in plain:
            return plain[name]
        if name.lower().startswith("list["):
            return []
        kind = self.resolve(name)
        if kind is ABSENT:
            return None
        if hasattr(kind, "__members__"):
            return next(iter(kind.__members__.values()))
        if kind.__name__ == "IHostMemory":
            return HostMemory(b"serialized")
        return Double(self, kind)


class HostMemory(bytes):
    """An `IHostMemory`: a buffer with its size."""

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return len(self)


class Double:
    """An object of a real class that does nothing but check, record and answer."""

    def __init__(self, api: Api, kind: type) -> None:
        object.__setattr__(self, "_api", api)
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        api, kind = self._api, self._kind
        attribute = inspect.getattr_static(kind, name, ABSENT)
        key = f"{kind.__name__}.{name}"
        if attribute is ABSENT:
            raise ApiError(f"tensorrt {api.real.__version__} has no {key}")
        if isinstance(attribute, property):
            api.used.append(key)
            return api.answers[key] if key in api.answers else api.of_type(_result(attribute))
        return lambda *args, **kwargs: api.call(kind, name, attribute.__doc__, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        api, kind = self._api, self._kind
        attribute = inspect.getattr_static(kind, name, ABSENT)
        key = f"{kind.__name__}.{name}"
        if not isinstance(attribute, property) or attribute.fset is None:
            raise ApiError(f"tensorrt {api.real.__version__} has no {key} that can be set")
        for overload in signatures(attribute.fset.__doc__):
            wanted = overload.parameters[0].type
            if not _accepts(api, wanted, value):
                raise ApiError(f"{key} takes {wanted}, not {value!r}")
        api.used.append(key)
        api.values[key] = value
        if f"{key}=" in api.answers:
            api.answers[f"{key}="](value)


def _result(attribute: property) -> str:
    found = signatures(attribute.fget.__doc__ if attribute.fget else None)
    return found[0].result if found else "None"


class _DoubleModule(ModuleType):
    """The real module, with doubles where objects need the libraries."""

    def __init__(self, api: Api) -> None:
        super().__init__("tensorrt")
        self._api = api

    def __getattr__(self, name: str) -> Any:
        api = self._api
        real: Any = getattr(api.real, name, ABSENT)
        if real is ABSENT:
            raise ApiError(f"tensorrt {api.real.__version__} has no {name}")
        if name in CONSTRUCTED:
            return self._constructor(name, real)
        return _checked_base(api, real) if name in OVERRIDDEN else _checked_enum(api, real)

    def _constructor(self, name: str, real: type) -> Callable[..., Double]:
        def construct(*args: Any, **kwargs: Any) -> Double:
            doc = inspect.getattr_static(real, "__init__").__doc__
            self._api.call(real, "__init__", doc, args, kwargs)
            return Double(self._api, real)

        return construct


def _checked_enum(api: Api, real: Any) -> Any:
    """An enumeration that says which version lacks a member; anything else as it is."""
    if not hasattr(real, "__members__"):
        return real

    class Members:
        def __getattr__(self, name: str) -> Any:
            if name not in real.__members__:
                raise ApiError(f"tensorrt {api.real.__version__} has no {real.__name__}.{name}")
            api.used.append(f"{real.__name__}.{name}")
            return real.__members__[name]

    return Members()


def _checked_base(api: Api, real: type) -> type:
    """A class derived from `real` whose own derived classes may define TensorRT's hooks alone."""

    class Base(real):  # type: ignore[misc]
        def __init_subclass__(cls) -> None:
            for name, function in vars(cls).items():
                if not name.startswith("_") and callable(function):
                    _check_hook(api, real, name, function)

    return Base


def _check_hook(api: Api, real: type, name: str, function: Callable[..., Any]) -> None:
    given = [p for p in inspect.signature(function).parameters if p != "self"]
    attribute = inspect.getattr_static(real, name, ABSENT)
    if attribute is not ABSENT:
        known = [[p.name for p in found.parameters] for found in signatures(attribute.__doc__)]
    else:  # called from C++ only: the class's docstring shows how to define it
        shown = re.findall(rf"def {name}\(self,? ?([^)]*)\)", real.__doc__ or "")
        known = [[part.strip() for part in text.split(",") if part.strip()] for text in shown]
    if given not in known:
        version = api.real.__version__
        raise ApiError(f"tensorrt {version}: {real.__name__}.{name}{tuple(given)} is not {known}")
    api.used.append(f"{real.__name__}.{name}")


def _misfit(api: Api, signature: Signature, args: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Why a call does not fit `signature`; None where it does."""
    parameters = signature.parameters
    if len(args) > len(parameters):
        return f"takes {len(parameters)} arguments, not {len(args)}"
    bound = {p.name: value for p, value in zip(parameters, args, strict=False)}
    for name, value in kwargs.items():
        if name not in {p.name for p in parameters} or name in bound:
            return f"has no argument {name}"
        bound[name] = value
    for parameter in parameters:
        if parameter.name not in bound:
            if not parameter.optional:
                return f"needs {parameter.name}"
        elif not _accepts(api, parameter.type, bound[parameter.name]):
            return f"{parameter.name} is {parameter.type}, not {bound[parameter.name]!r}"
    return None


def _accepts(api: Api, kind: str, value: Any) -> bool:
    """Whether pybind11 converts `value` to the type that a signature names."""
    if " | " in kind:
        return any(_accepts(api, part, value) for part in kind.split(" | "))
    bare = kind.split("[", maxsplit=1)[0].split(".")[-1].split("::")[-1]
    if bare in _PLAIN:
        flag = isinstance(value, bool) and bare != "bool"
        return isinstance(value, _PLAIN[bare]) and not flag
    if bare == "Dims":
        return isinstance(value, (tuple, list, api.real.Dims))
    wanted = api.resolve(kind)
    if wanted is ABSENT or not isinstance(wanted, type):
        raise ApiError(f"cannot tell what {kind} is")
    if isinstance(value, Double):
        return issubclass(value._kind, wanted)
    return isinstance(value, wanted)
