"""One step of a training run, as losses see it: ours and the user's.

A user's loss is a function with a step as its argument, and keyword arguments from the recipe:

    def loss(step, scale=1.0):
        return scale * (step.student["logits"] - step.teacher["logits"]).abs().mean()

It gives a tensor with one number that gradients can flow from. Going backward, stepping the
optimizer and keeping pruned weights at zero is the loop's part. The student's and the teacher's
outputs are computed when they are first asked for: a function that trains in its own way (mixed
samples, two views) leaves `student` alone and calls `forward` as often as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    Tensors: TypeAlias = Mapping[str, torch.Tensor]


@dataclass
class Step:
    """A batch, and what student and teacher make of it."""

    feeds: Tensors
    """The inputs by name, [n, ...]."""
    labels: torch.Tensor | None
    """[n, ...]; None where the data have none."""
    epoch: int
    """From 0."""
    share: float
    """Of the whole training that is done, 0 to 1."""
    module: torch.nn.Module
    """The student, in training mode."""
    forward: Callable[[Tensors], Tensors]
    """The student's outputs by name for any feeds, float32 whatever `precision` says; gradients
    flow. (What `module` is called with directly is computed in float32.)"""
    ask_teacher: Callable[[], Tensors] | None = None
    """What `teacher` is made by."""
    student_features: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the student's modules gave that losses name, filled by its last forward pass."""
    teacher_features: dict[str, torch.Tensor] = field(default_factory=dict)
    """The same of the teacher."""

    @cached_property
    def student(self) -> Tensors:
        """The student's outputs by name."""
        return self.forward(self.feeds)

    @cached_property
    def teacher(self) -> Tensors:
        """The teacher's outputs by name, without gradients; empty where there is no teacher."""
        return self.ask_teacher() if self.ask_teacher is not None else {}
