"""The losses that labels give in `train`, and whether the labels are what they take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from optimc.core.errors import CellError, InputError, unknown_name

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from optimc.calibration.sample_store import StoredSamples
    from optimc.passes._train_step import Step, Tensors

LABEL_LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "l1")
IGNORED = -100
"""A class that `cross_entropy` leaves out, as torch does: padding of words or of pixels."""
_WHERE = "data.training"
_AT_ONCE = 1 << 22
"""Numbers that are looked at together."""


def against_labels(
    name: str | None, output: str | None, smoothing: float, step: Step
) -> torch.Tensor:
    """The loss `name` of one batch; without a name the one that suits the labels' type.

    Raises CellError where output and labels do not fit.
    """
    from torch.nn import functional

    assert step.labels is not None
    labels, answer = step.labels, one_output(step.student, output)
    name = name or suited(labels.is_floating_point())
    try:
        if name == "cross_entropy":
            # Floats of the output's shape are shares of the classes.
            soft = labels.is_floating_point() and labels.shape == answer.shape
            wanted = labels.to(answer.dtype) if soft else labels.long()
            return functional.cross_entropy(answer, wanted, label_smoothing=smoothing)
        wanted = labels.to(answer.dtype).reshape(answer.shape)
        if name == "binary_cross_entropy":
            return functional.binary_cross_entropy_with_logits(answer, wanted)
        return {"mse": functional.mse_loss, "l1": functional.l1_loss}[name](answer, wanted)
    except (RuntimeError, ValueError, IndexError) as error:
        kind = str(labels.dtype).removeprefix("torch.")
        raise CellError(
            f"the loss `{name}` does not fit an output {list(answer.shape)} and labels "
            f"{kind} {list(labels.shape)}: {' '.join(str(error).split())[:200]}",
            fix=f"choose another `loss` ({', '.join(LABEL_LOSSES)}, call) or `output`",
        ) from error


def suited(floats: bool) -> str:
    """The loss that suits labels of a type."""
    return "mse" if floats else "cross_entropy"


def one_output(outputs: Tensors, name: str | None) -> torch.Tensor:
    """The named output, or the first floating-point one. Raises InputError."""
    if name is not None:
        if name not in outputs:
            raise unknown_name("output", name, outputs, where="train")
        return outputs[name]
    for tensor in outputs.values():
        if tensor.is_floating_point():
            return tensor
    raise InputError("no output is floating-point", where="train")


def check_labels(name: str | None, answer: torch.Tensor, samples: StoredSamples) -> None:
    """Raises InputError where labels, which are all looked at, are not what the loss takes.

    `answer` is the output for a few samples.
    """
    for group in samples.groups:
        labels = group.labels
        if labels is None:
            continue
        rows = max(1, _AT_ONCE // max(1, labels[:1].size))
        for first in range(0, len(labels), rows):  # they are mapped, and may be large
            _check(name, tuple(answer.shape[1:]), labels[first : first + rows])


def _check(name: str | None, sizes: tuple[int, ...], labels: NDArray[Any]) -> None:
    import numpy as np

    floats = labels.dtype.kind == "f"
    shown = f"{labels.dtype} {['n', *labels.shape[1:]]}".replace("'", "")
    if floats and not np.isfinite(labels).all():
        raise InputError("labels hold infinities or NaNs", where=_WHERE, fix="leave them out")
    named, name = name, name or suited(floats)
    classes = sizes[0] if sizes else 1
    if name == "cross_entropy":
        if floats and tuple(labels.shape[1:]) == sizes:
            _check_range(name, labels, 0.0, 1.0, "shares of the classes")
            return
        _check_whole(labels, shown)
        if classes < 2:
            raise InputError(
                f"cross_entropy takes classes, and the output has one number for a sample (labels "
                f"are {shown})",
                where=_WHERE,
                fix="write `loss: binary_cross_entropy` for yes and no, `loss: mse` for amounts",
            )
        _check_range(name, labels[labels != IGNORED], 0, classes - 1, "the output's classes")
    elif name == "binary_cross_entropy":
        _check_range(name, labels, 0.0, 1.0, "no and yes")
    elif named is None and not _fits(sizes, labels):
        raise InputError(
            f"labels are {shown}, and the output is {list(sizes)} for a sample: floats are amounts,"
            " for which the loss is mse, and their number differs",
            where=_WHERE,
            fix="store classes as integers, or write `loss: cross_entropy`",
        )


def _check_whole(labels: NDArray[Any], shown: str) -> None:
    import numpy as np

    if labels.dtype.kind != "f":
        return
    broken = labels[labels != np.round(labels)]
    if broken.size:
        raise InputError(
            f"cross_entropy takes the numbers of classes, and labels are {shown}, such as "
            f"{broken.flat[0]:.4g}",
            where=_WHERE,
            fix="store classes as integers, or write `loss: mse` for amounts; shares of classes "
            "have the output's shape",
        )


def _check_range(name: str, labels: NDArray[Any], least: float, most: float, what: str) -> None:
    outside = labels[(labels < least) | (labels > most)]
    if outside.size:
        raise InputError(
            f"{name} takes labels from {least:g} to {most:g} ({what}), and there are such as "
            f"{outside.flat[0]:.6g}",
            where=_WHERE,
            fix="correct the labels, or choose another `loss` or `output`",
        )


def _fits(sizes: Iterable[int], labels: NDArray[Any]) -> bool:
    from math import prod

    return prod(sizes) == prod(labels.shape[1:])
