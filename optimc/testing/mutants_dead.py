"""Planted bugs of `remove_dead_channels`: see `optimc.testing.mutants_simplify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Plants the mutant of this name, one of `MUTANTS`, while the block runs."""
    with MUTANTS[name]():
        yield


def _padding_forgotten() -> Any:
    """A constant goes into the bias of a Conv that pads with zeros."""
    from optimc.passes import _dead_remove

    return patch.object(_dead_remove, "_pads", lambda node: False)


def _constants_dropped() -> Any:
    """What constant channels add is not added."""
    from optimc.passes import _dead_remove

    return patch.object(_dead_remove, "_folded_bias", lambda end, dead: end.layer.bias)


def _shift_of_batchnorm_forgotten() -> Any:
    """A factor of zero leaves zero."""
    from optimc.passes import _dead_remove
    from optimc.passes._dead_values import normalized as right

    def wrong(values: Any, rows: Any, epsilon: float) -> Any:
        scale, shift, mean, variance = rows
        return right(values, (scale, shift * (scale != 0), mean, variance), epsilon)

    return patch.object(_dead_remove, "normalized", wrong)


def _activation_forgotten() -> Any:
    """Constants pass activations as they are."""
    from optimc.passes import _dead_remove

    return patch.object(_dead_remove, "unary", lambda op_type, values, attributes: values)


def _only_the_first_weight_looked_at() -> Any:
    """A channel counts as unread when the first output alone does not read it."""
    from optimc.passes import _dead_remove

    right = _dead_remove._columns
    return patch.object(
        _dead_remove, "_columns", lambda end, channels: right(end, channels)[:, :, :1]
    )


def _only_the_first_row_looked_at() -> Any:
    """A channel counts as constant when its weights for the first input are zero."""
    from optimc.passes import _dead_remove

    right = _dead_remove._constants

    def wrong(way: Any) -> Any:
        weight = way.layer.weight
        first = weight[:, :1] * 0 if weight.ndim == 4 else weight
        return right(replace(way, layer=replace(way.layer, weight=first)))

    return patch.object(_dead_remove, "_constants", wrong)


def _neighbour_removed() -> Any:
    """Another row than the dead one goes."""
    from optimc.passes import _dead_remove

    right = _dead_remove.find_dead

    def wrong(way: Any) -> Any:
        dead, reason = right(way)
        if dead is not None:
            dead = replace(dead, channels=(dead.channels + 1) % way.channels)
        return dead, reason

    return patch.object(_dead_remove, "find_dead", wrong)


def _place_in_the_concat_forgotten() -> Any:
    """Channels of a Concat's second part are taken for those of its first."""
    from optimc.passes import _dead_follow

    right = _dead_follow._concat

    def wrong(node: Any, carried: Any) -> Any:
        found = right(node, carried)
        return found if isinstance(found, str) else replace(found, place=carried[max(carried)])

    return patch.object(_dead_follow, "_concat", wrong)


MUTANTS: dict[str, Callable[[], Any]] = {
    "activation_forgotten": _activation_forgotten,
    "constants_dropped": _constants_dropped,
    "neighbour_removed": _neighbour_removed,
    "only_the_first_row_looked_at": _only_the_first_row_looked_at,
    "only_the_first_weight_looked_at": _only_the_first_weight_looked_at,
    "padding_forgotten": _padding_forgotten,
    "place_in_the_concat_forgotten": _place_in_the_concat_forgotten,
    "shift_of_batchnorm_forgotten": _shift_of_batchnorm_forgotten,
}
