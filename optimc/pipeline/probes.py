"""Probes: the inputs on which passes and engines have to prove themselves.

Seeded inputs that respect the declared value ranges at the corners of the dynamic dims, the
extremes of the ranges, and samples of the calibration data. The same recipe gives the same probes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimc.core.digest import digest_of
from optimc.core.errors import InputError
from optimc.core.model import Signature, TensorSpec

if TYPE_CHECKING:
    from optimc.pipeline.recipe.schema import DimRange, InputSpec

Effort = Literal["fast", "full", "off"]

_DATA_PROBES = {"fast": 8, "full": 32, "off": 0}
_ELEMENTS_PER_PROBE = 64 * 1024 * 1024
_MAX_CORNERS = 8


@dataclass(frozen=True, eq=False)
class Probe:
    """One set of feeds, by input name. `real` tells samples of the user's data from seeded ones."""

    label: str
    feeds: Mapping[str, NDArray[Any]]
    real: bool = False


@dataclass(frozen=True)
class ProbeSource:
    """What probes are made from."""

    signature: Signature
    dims: Mapping[str, DimRange]
    inputs: Mapping[str, InputSpec]
    seed: int
    samples: Sequence[Mapping[str, NDArray[Any]]] = ()
    """Feeds of one sample each, of the calibration data."""

    def for_passes(self, effort: Effort) -> tuple[Probe, ...]:
        """What every pass is compared on: with `fast`, two corners, zeros, and a few samples."""
        return self._probes(effort, corners=_MAX_CORNERS if effort == "full" else 2)

    def for_engines(self, effort: Effort) -> tuple[Probe, ...]:
        """What every engine is compared on: all corners of the dims.

        With `fast`, several dims are at their greatest one at a time: all of them together cost
        the product, and are for `full`.
        """
        return self._probes(effort, corners=_MAX_CORNERS)

    def steering(self) -> list[Probe]:
        """Candidates that may reach branches which the other probes do not."""
        from optimc.pipeline.steering import steering_probes

        sizes = self._corners()[0][1]
        declared = {name: spec.range or spec.values for name, spec in self.inputs.items()}
        return steering_probes(
            self.signature, lambda rng: self._feeds(sizes, rng, "random"), self.seed, declared
        )

    def _probes(self, effort: Effort, corners: int) -> tuple[Probe, ...]:
        if effort == "off":
            return ()
        rng = np.random.default_rng(self.seed)
        sizes = self._corners(together=effort == "full")[:corners]
        seeded = [Probe(f"seeded, {name}", self._feeds(s, rng, "random")) for name, s in sizes]
        name, typical = sizes[0]
        kinds = ("zero", "low", "high") if effort == "full" else ("zero",)
        seeded += [Probe(f"{kind}, {name}", self._feeds(typical, rng, kind)) for kind in kinds]
        return (*seeded, *self._real(effort))

    def _real(self, effort: Effort) -> Iterator[Probe]:
        for index, feeds in enumerate(self.samples[: _DATA_PROBES[effort]]):
            yield Probe(f"calibration sample {index}", feeds, real=True)

    def _corners(self, *, together: bool = False) -> list[tuple[str, dict[str, int]]]:
        """Typical, least, each dim at its greatest, and all `together`; those that are small."""
        symbols = self.signature.symbols
        if not symbols:
            return [("fixed shapes", {})]
        ranges = {name: self.dims[name] for name in symbols}
        least = {name: dim.min for name, dim in ranges.items()}
        corners = [
            {name: dim.typical for name, dim in ranges.items()},
            least,
            *({**least, name: dim.max} for name, dim in ranges.items()),
        ]
        if together:
            corners.insert(2, {name: dim.max for name, dim in ranges.items()})
        named = {", ".join(f"{n}={s}" for n, s in sizes.items()): sizes for sizes in corners}
        fitting = [(label, sizes) for label, sizes in named.items() if self._fits(sizes)]
        return fitting[:_MAX_CORNERS] or [(next(iter(named)), corners[0])]

    def _fits(self, sizes: Mapping[str, int]) -> bool:
        elements = sum(
            int(np.prod([sizes.get(d, 1) if isinstance(d, str) else d for d in spec.shape or ()]))
            for spec in self.signature.inputs
        )
        return elements <= _ELEMENTS_PER_PROBE

    def _feeds(
        self, sizes: Mapping[str, int], rng: np.random.Generator, kind: str
    ) -> dict[str, NDArray[Any]]:
        return {
            spec.name: seeded_array(spec, self.inputs.get(spec.name), sizes, rng, kind)
            for spec in self.signature.inputs
        }


def seeded_array(
    spec: TensorSpec,
    declared: InputSpec | None,
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    kind: str = "random",
) -> NDArray[Any]:
    """An array for one input: `random` in the declared range, or all `zero`, `low`, `high`.

    Floats without a declared range are standard normal (extremes: -4 and 4); integers without
    declared values are 0 or 1, the only ones that are valid as ids, masks and counts alike.
    """
    if spec.shape is None:
        raise InputError(
            f"the rank of input `{spec.name}` is not known",
            fix=f"declare its shape in the recipe: inputs: {{{spec.name}: {{shape: [...]}}}}",
        )
    shape = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape)
    dtype = _dtype(spec)
    if dtype.kind == "b":
        return (
            rng.integers(0, 2, shape).astype(bool)
            if kind == "random"
            else _full(shape, kind, 0, 1, dtype)
        )
    if dtype.kind in "iu":
        low, high = (int(v) for v in (declared.values if declared and declared.values else (0, 1)))
        if kind == "random":
            return rng.integers(low, high, shape, endpoint=True).astype(dtype)
        return _full(shape, kind, low, high, dtype)
    bounds = declared.range if declared else None
    if kind != "random":
        low_f, high_f = bounds or (-4.0, 4.0)
        return _full(shape, kind, low_f, high_f, dtype)
    if bounds is None:
        return np.asarray(rng.standard_normal(shape)).astype(dtype)
    return np.asarray(rng.uniform(bounds[0], bounds[1], shape)).astype(dtype)


def _full(
    shape: tuple[int, ...], kind: str, low: float, high: float, dtype: np.dtype[Any]
) -> NDArray[Any]:
    value = {"low": low, "high": high, "zero": min(max(0, low), high)}[kind]
    return np.full(shape, value).astype(dtype)


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        import ml_dtypes

        if hasattr(ml_dtypes, spec.dtype):
            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, spec.dtype))
            return found
        raise InputError(
            f"input `{spec.name}` has the dtype {spec.dtype}, which is not supported"
        ) from None


def probes_digest(probes: Sequence[Probe]) -> str:
    """Names the probes by their contents, for cache keys."""
    parts = []
    for probe in probes:
        for name in sorted(probe.feeds):
            array = np.ascontiguousarray(probe.feeds[name])
            content = hashlib.sha256(array.tobytes()).hexdigest()
            parts.append([name, str(array.dtype), list(array.shape), content, probe.real])
    return digest_of(parts)
