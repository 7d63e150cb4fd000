"""Planted bugs of `fuse` and `fold_preprocess`: see `optimc.testing.mutants_simplify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from optimc.core.model import OnnxModel
from optimc.testing.graphs import GraphBuilder
from optimc.testing.spellings import gelu, layer_norm, shortcut


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Plants the mutant of this name while the block runs."""
    with {**FUSE_MUTANTS, **PREPROCESS_MUTANTS}[name]():
        yield


def bouquet() -> OnnxModel:
    """One of everything that `fuse` and `fold_preprocess` look for, with square weights, so that a
    wrong axis or swapped operands keep every shape."""
    b = GraphBuilder(20)
    x = b.input("image", ["batch", 4, 8, 8])
    mean, deviation = (b.constant(b.rng.uniform(0.5, 2.0, (4, 1, 1))) for _ in range(2))
    h = b.node("Div", b.node("Sub", x, mean), deviation)
    h = b.node("Conv", h, b.weight(4, 4, 3, 3), b.weight(4))
    scale, variance = (b.constant(b.rng.uniform(0.5, 2.0, 4)) for _ in range(2))
    moments = [scale, b.weight(4), b.weight(4), variance]
    h = b.node("BatchNormalization", h, *moments, epsilon=1e-2)
    h = b.node("Relu", h)
    side = shortcut(b, h, strides={2: 2, 3: 1}, pads=(1, 2))
    b.node("ReduceMean", side, b.constant([3]), keepdims=0, to="side")
    h = b.node("Transpose", h, perm=[0, 2, 3, 1])
    h = layer_norm(b, h, 4, epsilon=1e-1)
    h = gelu(b, h, "erf, PyTorch")
    h = b.node("ReduceMean", h, b.constant([1, 2]), keepdims=0)
    h = b.node("Add", b.node("MatMul", h, b.weight(4, 4)), b.weight(4))
    h = b.node("MatMul", b.node("Tanh", h), b.node("Transpose", b.weight(4, 4), perm=[1, 0]))
    b.node("Identity", h, to="logits")
    b.output("logits", ["batch", 4])
    b.output("side", ["batch", 7, 3])
    return b.model()


def _scaled_by_input_channel() -> Any:
    """BatchNormalization's factor goes along the wrong axis of the weight."""
    from optimc.passes._fuse_layer import Layer

    def wrong(self: Any, factor: Any) -> Any:
        return self.weight * factor.reshape(1, -1, *[1] * (self.weight.ndim - 2))

    return patch.object(Layer, "scaled", wrong)


def _wrong_affine(change: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    from optimc.passes import _fuse_rules

    right = _fuse_rules._affine

    def wrong(node: Any, channels: int) -> Any:
        found = right(node, channels)
        return found if isinstance(found, str) else change(*found)

    return patch.object(_fuse_rules, "_affine", wrong)


def _shift_dropped() -> Any:
    """BatchNormalization's shift is forgotten."""
    return _wrong_affine(lambda factor, shift: (factor, shift * 0))


def _default_epsilon() -> Any:
    """BatchNormalization's epsilon is taken for the default one."""
    from optimc.passes import _fuse_rules

    right = _fuse_rules._affine

    def wrong(node: Any, channels: int) -> Any:
        node.attributes.pop("epsilon", None)
        return right(node, channels)

    return patch.object(_fuse_rules, "_affine", wrong)


def _channels_off_by_one() -> Any:
    """The factors are taken from the channel beside."""
    return _wrong_affine(lambda factor, shift: (_rolled(factor), shift))


def _rolled(array: Any) -> Any:
    import numpy as np

    return np.roll(array, 1)


def _wrong_norm(change: Callable[[Any], Any]) -> Any:
    from optimc.passes import _fuse_norm

    right = _fuse_norm._put
    return patch.object(_fuse_norm, "_put", lambda norm, job: right(change(norm), job))


def _norm_epsilon() -> Any:
    """LayerNormalization gets an epsilon ten times too small."""
    return _wrong_norm(lambda norm: replace(norm, epsilon=norm.epsilon / 10))


def _norm_swapped() -> Any:
    """LayerNormalization's scale and bias are swapped."""
    return _wrong_norm(lambda norm: replace(norm, scale=norm.bias, bias=norm.scale))


def _norm_bias_dropped() -> Any:
    """LayerNormalization's bias is forgotten."""
    return _wrong_norm(lambda norm: replace(norm, bias=None))


def _gelu_of_the_other_form() -> Any:
    """The GELU by erf becomes the approximation by tanh."""
    from optimc.passes import _fuse_gelu

    right = _fuse_gelu._gelu

    def wrong(node: Any) -> Any:
        found = right(node)
        return found if found is None else (found[0], "tanh", found[2])

    return patch.object(_fuse_gelu, "_gelu", wrong)


def _transpose_forgotten() -> Any:
    """A Transpose goes, and Gemm's flag does not come."""
    from optimc.passes import _fuse_rules

    right = vars(_fuse_rules)["fuse_transpose"]

    def wrong(node: Any, job: Any) -> None:
        right(node, job)
        node.attributes.pop("transB", None)

    return _rule_replaced(right, wrong)


def _rule_replaced(right: Any, wrong: Any) -> Any:
    """The rules are listed by operator in one table: `wrong` in the place of `right` there."""
    from optimc.passes import _fuse_rules

    tables = {name: table for name, table in vars(_fuse_rules).items() if _lists(table, right)}
    assert tables, "the table of rules has moved"
    name, table = next(iter(tables.items()))
    changed = {
        key: tuple(wrong if rule is right else rule for rule in rules)
        if isinstance(rules, tuple | list)
        else (wrong if rules is right else rules)
        for key, rules in table.items()
    }
    return patch.dict(getattr(_fuse_rules, name), changed)


def _lists(table: Any, rule: Any) -> bool:
    return isinstance(table, dict) and any(
        rule is found or (isinstance(found, tuple | list) and rule in found)
        for found in table.values()
    )


def _wrong_shortcut(change: Callable[[Any], Any]) -> Any:
    from optimc.passes import _fuse_shortcut

    right = _fuse_shortcut._shortcut

    def wrong(pad: Any) -> Any:
        found = right(pad)
        return found if isinstance(found, str) else change(found)

    return patch.object(_fuse_shortcut, "_shortcut", wrong)


def _shortcut_moved() -> Any:
    """The shortcut's channels stand one too far behind."""
    return _wrong_shortcut(
        lambda found: replace(found, before=found.before + 1, after=found.after - 1)
    )


def _strides_swapped() -> Any:
    """The shortcut's strides belong to the other axes."""
    return _wrong_shortcut(lambda found: replace(found, strides=found.strides[::-1]))


FUSE_MUTANTS: dict[str, Callable[[], Any]] = {
    "batchnorm_along_the_wrong_axis": _scaled_by_input_channel,
    "batchnorm_shift_dropped": _shift_dropped,
    "batchnorm_default_epsilon": _default_epsilon,
    "batchnorm_channels_off_by_one": _channels_off_by_one,
    "layer_norm_epsilon": _norm_epsilon,
    "layer_norm_scale_and_bias_swapped": _norm_swapped,
    "layer_norm_bias_dropped": _norm_bias_dropped,
    "gelu_of_the_other_form": _gelu_of_the_other_form,
    "transpose_forgotten": _transpose_forgotten,
    "shortcut_off_by_one": _shortcut_moved,
    "shortcut_strides_swapped": _strides_swapped,
}


def _wrong_chain(change: Callable[[Any], Any]) -> Any:
    from optimc.passes import _fold_affine

    right = _fold_affine._composed

    def wrong(*arguments: Any) -> Any:
        found = right(*arguments)
        return found if isinstance(found, str) else change(found)

    return patch.object(_fold_affine, "_composed", wrong)


def _mean_added() -> Any:
    """The mean is added instead of subtracted."""
    return _wrong_chain(lambda chain: replace(chain, shift=-chain.shift))


def _deviation_multiplied() -> Any:
    """The deviation is multiplied with instead of divided by."""
    return _wrong_chain(lambda chain: replace(chain, factor=1.0 / chain.factor))


def _mean_before_division() -> Any:
    """The shift is that of the image before the division."""
    return _wrong_chain(lambda chain: replace(chain, shift=chain.shift / chain.factor))


PREPROCESS_MUTANTS: dict[str, Callable[[], Any]] = {
    "mean_added": _mean_added,
    "deviation_multiplied": _deviation_multiplied,
    "mean_before_division": _mean_before_division,
}
