"""The losses of `train`, in the worker: what labels say, what a teacher says, what the user says.

Each takes a `Step` and gives a tensor with one number. The papers are named at the options.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from optimc.core.errors import CellError, InputError, OptimcError
from optimc.core.user_code import importable
from optimc.passes._patterns import near
from optimc.passes._train_labels import against_labels, one_output
from optimc.passes._train_options import weight_at
from optimc.passes._train_precision import widened

if TYPE_CHECKING:
    import torch

    from optimc.passes._train_options import (
        DistillLoss,
        Embedding,
        Logits,
        UserLoss,
        Weight,
    )
    from optimc.passes._train_step import Step, Tensors
    from optimc.passes.train import Train

    Loss: TypeAlias = Callable[[Step], torch.Tensor]


class Objective:
    """The sum of all losses of a recipe, each by its weight.

    `hints` are trained along with the student (linear maps between features of different widths).
    Raises InputError and CellError for what does not fit.
    """

    def __init__(self, options: Train, folder: Path, *, labelled: bool) -> None:
        self.hints: dict[str, torch.nn.Module] = {}
        self._terms: list[tuple[Weight, Loss]] = []
        factor = label_weight(options, labelled=labelled)
        if factor:
            self._terms.append((factor, _of_labels(options, folder)))
        for entry in options.distill.losses if options.distill is not None else ():
            self._terms.append(self._distilled(entry, folder))
        if not self._terms:
            raise InputError(
                "there is nothing to train on: the data have no labels, and there is no teacher",
                where="train",
                fix="name labels under data.training, or write `distill: {}`",
            )

    def __call__(self, step: Step) -> torch.Tensor:
        """The sum for one batch."""
        parts = [weight_at(weight, step.share) * term(step) for weight, term in self._terms]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def parameters(self) -> list[torch.nn.Parameter]:
        """Of the hints, in the order in which they were made."""
        return [p for hint in self.hints.values() for p in hint.parameters()]

    def _distilled(self, entry: DistillLoss, folder: Path) -> tuple[Weight, Loss]:
        if entry.logits is not None:
            return entry.logits.weight, partial(_soft_classes, entry.logits)
        if entry.embedding is not None:
            return entry.embedding.weight, partial(_same_output, entry.embedding)
        if entry.call is not None:
            function = user_function(entry.call, folder)
            weight = entry.weight if entry.weight is not None else 1.0
            return weight, partial(_users, function, entry.call, entry.arguments)
        if entry.features is not None:
            return entry.features.weight, partial(self._pairs, entry.features.pairs, self._hinted)
        if entry.attention_transfer is not None:
            maps = entry.attention_transfer
            return maps.weight, partial(self._pairs, maps.pairs, _attention)
        assert entry.similarity_preserving is not None
        alike = entry.similarity_preserving
        return alike.weight, partial(self._pairs, alike.pairs, _similarity)

    def _pairs(self, pairs: Mapping[str, str], compare: Any, step: Step) -> torch.Tensor:
        """The mean over pairs of layers."""
        import torch

        # Outputs first: features are what their forward passes leave.
        step.student, step.teacher  # noqa: B018
        losses = []
        for student, teacher in pairs.items():
            own = _feature(step.student_features, student, "the model")
            others = _feature(step.teacher_features, teacher, "the teacher")
            losses.append(compare(own, others, student, step.feeds))
        return torch.stack(losses).mean()

    def _hinted(
        self, own: torch.Tensor, other: torch.Tensor, name: str, feeds: Tensors
    ) -> torch.Tensor:
        axis = 1 if own.ndim == 4 else -1
        if own.shape[axis] != other.shape[axis]:
            if name not in self.hints:
                self.hints[name] = _linear_map(own.shape[axis], other.shape[axis], own)
            own = self.hints[name](own)
        if own.shape != other.shape:
            raise CellError(
                f"features: `{name}` gives {list(own.shape)}, its teacher {list(other.shape)}",
                fix="pair layers that differ in their width alone",
            )
        squares = (own - other).square()
        mask = feeds.get("attention_mask")
        if mask is not None and squares.ndim == 3 and mask.shape == squares.shape[:2]:
            # What stands at padding means nothing.
            kept = mask.to(squares.dtype)
            return (squares.mean(dim=2) * kept).sum() / kept.sum()
        return squares.mean()


def tapped(options: Train) -> tuple[list[str], list[str]]:
    """The modules of the student and of the teacher whose outputs the losses need."""
    students: dict[str, None] = {}
    teachers: dict[str, None] = {}
    for entry in options.distill.losses if options.distill is not None else ():
        for part in (entry.features, entry.attention_transfer, entry.similarity_preserving):
            if part is not None:
                students |= dict.fromkeys(part.pairs)
                teachers |= dict.fromkeys(part.pairs.values())
    return list(students), list(teachers)


def label_weight(options: Train, *, labelled: bool) -> float:
    """The factor of the loss that labels give."""
    distill = options.distill
    if distill is None:
        return 1.0 if labelled or _is_users(options.loss) else 0.0
    if distill.labels is not None:
        return distill.labels
    return 0.1 if labelled and any(entry.logits for entry in distill.losses) else 0.0


def _is_users(loss: Any) -> bool:
    return loss is not None and not isinstance(loss, str)


def _of_labels(options: Train, folder: Path) -> Loss:
    """The loss that the recipe names, or the one that suits the labels' type."""
    loss = options.loss
    if loss is not None and not isinstance(loss, str):
        user: UserLoss = loss
        return partial(_users, user_function(user.call, folder), user.call, user.arguments)
    return partial(against_labels, loss, options.output, options.label_smoothing)


def _of_both(step: Step, name: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same output of student and teacher; of a teacher with other names, its first one."""
    own = one_output(step.student, name)
    used = name or next(key for key, tensor in step.student.items() if tensor is own)
    other = step.teacher[used] if used in step.teacher else one_output(step.teacher, None)
    if own.shape != other.shape:
        raise CellError(
            f"the output `{used}` is {list(own.shape)}, the teacher's is {list(other.shape)}",
            fix="name the output that both have: `output`",
        )
    return own, other


def _soft_classes(options: Logits, step: Step) -> torch.Tensor:
    from torch.nn import functional

    own, other = _of_both(step, options.output)
    if own.ndim < 2 or own.shape[1] < 2:
        raise CellError(
            f"logits: the output is {list(own.shape)}, which are no classes in the second axis",
            fix="write {embedding: {kind: mse}}, or name another `output`",
        )
    heat = options.temperature
    student = functional.log_softmax(own / heat, dim=1)
    teacher = functional.log_softmax(other / heat, dim=1)
    divergence = functional.kl_div(student, teacher, reduction="none", log_target=True)
    return heat**2 * divergence.sum(dim=1).mean()


def _same_output(options: Embedding, step: Step) -> torch.Tensor:
    from torch.nn import functional

    own, other = _of_both(step, options.output)
    if options.kind == "mse":
        return functional.mse_loss(own, other)
    return (1 - functional.cosine_similarity(own, other, dim=-1)).mean()


def _attention(own: torch.Tensor, other: torch.Tensor, name: str, feeds: Tensors) -> torch.Tensor:
    """Over maps [n, places] of length 1; the channels are axis 1 of images, else the last."""
    from torch.nn import functional

    maps = [
        functional.normalize(t.square().sum(dim=1 if t.ndim == 4 else -1).flatten(1), dim=1)
        for t in (own, other)
    ]
    if own.ndim < 3 or maps[0].shape != maps[1].shape:
        raise CellError(
            f"attention_transfer: `{name}` gives {list(own.shape)}, its teacher "
            f"{list(other.shape)}",
            fix="pair layers of equal height and width (or tokens)",
        )
    return (maps[0] - maps[1]).square().mean()


def _similarity(own: torch.Tensor, other: torch.Tensor, name: str, feeds: Tensors) -> torch.Tensor:
    """Over matrices [n, n] whose rows have length 1."""
    from torch.nn import functional

    alike = [
        functional.normalize(flat @ flat.T, dim=1) for flat in (own.flatten(1), other.flatten(1))
    ]
    return (alike[0] - alike[1]).square().mean()


def _feature(features: Mapping[str, torch.Tensor], name: str, whose: str) -> torch.Tensor:
    if name not in features:
        raise CellError(
            f"`{name}` of {whose} gave no tensor: it does not run, or returns none first",
            fix="name another module",
        )
    return features[name]


def _linear_map(inputs: int, outputs: int, like: torch.Tensor) -> torch.nn.Module:
    import torch

    made: torch.nn.Module = (
        torch.nn.Conv2d(inputs, outputs, 1) if like.ndim == 4 else torch.nn.Linear(inputs, outputs)
    )
    return made.to(like.device)


def user_function(call: str, folder: Path) -> Callable[..., Any]:
    """The user's function. Raises InputError where it cannot be imported."""
    module, _, attribute = call.partition(":")
    try:
        with importable(folder):
            found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise InputError(
            f"cannot import `{call}`: {type(error).__name__}: {error}",
            where="train",
            fix="put it beside the recipe or on PYTHONPATH, or install its package",
        ) from error
    if not callable(found):
        raise InputError(f"`{call}` is no function", where="train")
    return found  # type: ignore[no-any-return]


def _users(
    function: Callable[..., Any], call: str, arguments: Mapping[str, Any], step: Step
) -> torch.Tensor:
    import torch

    try:
        loss = function(step, **arguments)
    except OptimcError:
        raise
    except Exception as error:
        raise CellError(
            f"`{call}` raised {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            fix="it gets one optimc.passes._train_step.Step, and `arguments` as keywords",
        ) from error
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        shape = f" {list(loss.shape)}" if isinstance(loss, torch.Tensor) else ""
        raise CellError(
            f"`{call}` gave {type(loss).__name__}{shape}, not one number that depends on the model",
            fix="return a tensor with one number, made from step.student or step.forward(...)",
        )
    return loss.reshape(())


class Taps:
    """Keeps what modules give, by name, until their next forward pass; bfloat16 as float32."""

    def __init__(self, module: torch.nn.Module, names: Sequence[str], whose: str) -> None:
        self.seen: dict[str, torch.Tensor] = {}
        known = dict(module.named_modules())
        self._handles = []
        for name in names:
            if name not in known:
                raise InputError(
                    f"`{name}` is no module of {whose}",
                    where="train: distill.losses",
                    fix=near(name, known),
                )
            self._handles.append(known[name].register_forward_hook(partial(self._keep, name)))

    def _keep(self, name: str, module: Any, arguments: Any, output: Any) -> None:
        import torch

        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, torch.Tensor):
            self.seen[name] = widened(first)

    def close(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
