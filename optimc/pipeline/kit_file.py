"""``kit.json``: what a kit says of itself, written by `kits` and read by `finish_kit`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_serializer

from optimc.core.errors import InputError, OptimcError
from optimc.core.model import OnnxModel, Signature, load_model
from optimc.core.registry import target_class
from optimc.core.targets import Target
from optimc.pipeline.recipe.schema import (
    NAME_PATTERN,
    Benchmark,
    DimRange,
    Gate,
    InputSpec,
    WorkerLimits,
)

KIT = "kit.json"
PROBES = "probes.npz"
EVALUATION = "evaluation.npz"
TABLE = "calibration"
REPORT = "build.json"
"""The report of the build that left the kit, of this cell alone."""
_FIX = "name a folder that `optimc build` left for a deferred cell, such as out/artifacts/int8/trt"
_Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Stored(_Part):
    """One of the kit's models."""

    file: Literal["model/model.onnx", "source/model.onnx"]
    digest: str


class KitProbe(_Part):
    """One probe of ``probes.npz``, by its place in the list."""

    label: str
    real: bool
    """Whether it is a sample of the user's data."""


class KitFile(_Part):
    """The content of ``kit.json``."""

    format: Literal[2] = Field(default=2, alias="schema")
    optimc: str
    """The version that made it."""
    variant: _Name
    target: _Name
    options: dict[str, JsonValue]
    """The target's."""
    dims: dict[str, DimRange]
    seed: int
    lossy: bool
    signature: dict[str, JsonValue]
    model: Stored
    source: Stored
    probes: tuple[KitProbe, ...]
    compared: tuple[str, ...]
    """The outputs that may be compared: those that repeat, and that no inner value stands for."""
    uncompared: dict[str, str]
    """The others, with the reason."""
    inputs: dict[str, InputSpec]
    benchmark: Benchmark
    limits: WorkerLimits
    gate: Gate | None
    metrics: dict[str, dict[str, JsonValue]]
    """Those by name, with their options."""
    metrics_left_out: dict[str, str]
    evaluation: str | None
    """Why the kit holds no evaluation data; None where it does."""
    evaluation_labels: bool = False

    @field_serializer("benchmark")
    def _as_written(self, benchmark: Benchmark) -> dict[str, Any]:
        """As recipes have it: durations with their unit."""
        return {**benchmark.model_dump(mode="json"), "at_most": f"{benchmark.at_most!r} s"}

    @property
    def cell(self) -> str:
        """`variant/target`."""
        return f"{self.variant}/{self.target}"


def kit_text(kit: KitFile) -> str:
    """The file's text."""
    data = kit.model_dump(mode="json", by_alias=True)
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def read_kit(folder: Path) -> KitFile:
    """The kit in `folder`. Raises InputError where it is none."""
    path = folder / KIT
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"this is no kit: {what}", where=str(path), fix=_FIX) from error
    try:
        return KitFile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        what = f"this is no kit of this version of optimc: {place}: {first['msg']}"
        raise InputError(what.replace(": : ", ": "), where=str(path), fix=_FIX) from error


def kit_target(kit: KitFile, folder: Path) -> Target:
    """The target that the kit is for. Raises InputError where there is no such, with `options`."""
    try:
        runtime = kit.options.get("runtime")
        target = target_class(str(runtime)).model_validate_json(json.dumps(kit.options))
    except ValidationError as error:
        first = error.errors()[0]
        what = f"options.{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(what, where=str(folder / KIT), fix=_FIX) from error
    except OptimcError as error:
        raise InputError(error.what, where=str(folder / KIT), fix=error.fix) from error
    return with_libraries(target, [folder / path for path in target.libraries()])


def with_libraries(target: Target, places: Sequence[Path]) -> Target:
    """The target with its libraries at other places."""
    return target.model_copy(update={"plugins": list(places)}) if places else target


def kit_model(kit: KitFile, folder: Path, which: Literal["model", "source"]) -> OnnxModel:
    """The placed model or the source. Raises InputError where it is not the one that was stored."""
    stored: Stored = getattr(kit, which)
    place = folder / which
    fix = "copy the whole kit again: the file changed or is not whole"
    try:
        loaded = load_model(place)
        if not isinstance(loaded, OnnxModel):
            raise ValueError("not a model at the ONNX level")
        digest = loaded.sealed().digest
    except Exception as error:  # damaged files fail in as many ways as there are parsers
        what = f"cannot read the model: {_short(error)}"
        raise InputError(what, where=str(place / "model.onnx"), fix=fix) from error
    if digest != stored.digest:
        what = "this is not the model that the kit was made with"
        raise InputError(what, where=str(place / "model.onnx"), fix=fix)
    return loaded


def kit_probes(
    kit: KitFile, folder: Path, signature: Signature
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Feeds, the model's outputs and the source's, by name, of every probe."""
    from optimc.calibration.npy_format import npz_arrays

    path = folder / PROBES
    stored = npz_arrays(path, None)
    sides: tuple[list[Mapping[str, Any]], ...] = ([], [], [])
    for number in range(len(kit.probes)):
        for found, key, specs in zip(
            sides,
            ("in", "out", "ref"),
            (signature.inputs, signature.outputs, signature.outputs),
            strict=True,
        ):
            names = {s.name: f"{number}.{key}.{i}" for i, s in enumerate(specs)}
            missing = [array for array in names.values() if array not in stored and key != "ref"]
            if missing:
                what = f"the array {missing[0]} is not there"
                raise InputError(what, where=str(path), fix="copy the whole kit again")
            found.append({n: stored[a].read() for n, a in names.items() if a in stored})
    return sides[0], sides[1], sides[2]


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
