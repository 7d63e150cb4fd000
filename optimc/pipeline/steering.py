"""Inputs that may steer a model: into both branches of an If, through several rounds of a Loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from optimc.pipeline.probes import Probe

if TYPE_CHECKING:
    from optimc.core.model import Signature

ROUNDS = 4
"""So many different numbers of rounds of a loop are looked for."""


def steering_probes(
    signature: Signature,
    feeds: Callable[[np.random.Generator], dict[str, Any]],
    seed: int,
    declared: Mapping[str, Any],
) -> list[Probe]:
    """Inputs that may steer: every choice of the booleans, small integers, sizes and signs.

    `feeds` makes random feeds of typical sizes from a generator; `declared` says of each input what
    values the recipe allows, which all of them keep to.
    """
    rng = np.random.default_rng([seed, 1])
    found = []
    switches = [spec.name for spec in signature.inputs if spec.dtype == "bool"][:3]
    for number in range(2 ** len(switches) if switches else 0):
        made = feeds(rng)
        for bit, name in enumerate(switches):
            made[name] = np.full_like(made[name], bool(number >> bit & 1))
        found.append(Probe(f"steering, switches {number}", made))
    for name, value in _counts(signature, declared):
        made = feeds(rng)
        made[name] = np.full_like(made[name], value)
        found.append(Probe(f"steering, {name}={value}", made))
    for label, change in _SIZES.items():
        made = {n: _changed(a, change, declared.get(n)) for n, a in feeds(rng).items()}
        found.append(Probe(f"steering, {label}", made))
    found += [Probe(f"steering, draw {number}", feeds(rng)) for number in range(8)]
    return found


_SIZES: Mapping[str, Callable[[Any], Any]] = {
    "tiny": lambda array: array * 0.01,
    "large": lambda array: array * 100.0,
    "all positive": abs,
    "all negative": lambda array: -abs(array),
}


def _changed(array: Any, change: Callable[[Any], Any], declared: Any) -> Any:
    """Floats of another size or sign, in the declared range; others as they are drawn."""
    if array.dtype.kind != "f":
        return array
    made = change(array).astype(array.dtype)
    return made if declared is None else made.clip(*declared).astype(array.dtype)


def _counts(signature: Signature, declared: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Values for inputs that are one integer: the least ones declared (from 0), and the last."""
    for spec in signature.inputs:
        if spec.dtype.startswith(("int", "uint")) and all(dim == 1 for dim in spec.shape or ()):
            low, high = (int(bound) for bound in declared.get(spec.name) or (0, ROUNDS - 1))
            for value in sorted({*range(low, min(low + ROUNDS, high + 1)), high}):
                yield spec.name, value
