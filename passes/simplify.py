"""Simplifies a graph without changing what it computes.

Rewrites keep the numbers but for the rounding of constants that are computed at build time. What
puts one layer into another (BatchNormalization into a convolution) is the pass `fuse`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optimc.core.errors import missing_extra
from optimc.core.model import Level, OnnxModel
from optimc.core.passes import Effect, Pass, PassContext, PassResult, tolerance

if TYPE_CHECKING:
    from optimc.passes._simplify_work import Work

_MAX_ROUNDS = 100
"""Real models take two to six rounds; this ends rewrites that undo each other."""


class Simplify(Pass):
    """Removes what a graph does not need; computes at build time what does not depend on inputs.

    Rewrites: shapes are inferred; constants are folded, known branches of If taken; identities,
        dead nodes, equal nodes and equal constants go; reshapes, transposes, casts, clips and
        slices that do nothing or follow one another are fused. All of it is repeated until nothing
        changes.
    Refuses: to fold what would be larger than `fold_limit`, of unknown size, long to compute,
        random, or quantized; to rewrite float arithmetic in a graph that has Q/DQ nodes; to rewrite
        what would not be valid in the model's opset.
    Accuracy: within 1e-5 of each output's scale; only folded constants round differently.
    Options: `engine: onnxsim` uses that tool (extra `onnxsim`), as one rewrite; `fold_limit` in
        bytes.
    """

    level: ClassVar[Level] = Level.ONNX
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnx-ir", "onnxscript", "onnxsim")

    engine: Literal["onnxscript", "onnxsim"] = "onnxscript"
    """What rewrites: onnxscript's optimizer and rules, or onnxsim in a process of its own."""
    fold_limit: Annotated[int, Field(ge=0)] = 1024 * 1024
    """Bytes that a folded result may have; more only where it replaces constants as large."""

    @property
    def effect(self) -> Effect:
        """Folding and fusing round differently."""
        return tolerance()

    def check_extras(self) -> None:
        """Raises UnavailableError where onnxsim is asked for and not installed."""
        from importlib.util import find_spec

        if self.engine == "onnxsim" and find_spec("onnxsim") is None:
            raise missing_extra("onnxsim", "the engine onnxsim of the pass simplify")

    def run(self, model: OnnxModel, context: PassContext) -> PassResult:
        """See the class. Raises UnavailableError where onnxsim is asked for and not installed."""
        self.check_extras()
        before = model.digest
        with _quiet("onnxscript", "onnx_ir"):
            if self.engine == "onnxsim":
                from optimc.passes._simplify_onnxsim import run_onnxsim

                result = run_onnxsim(model, context, self.fold_limit)
            else:
                self._run(model, context)
                result = model.sealed()
        modified = result.digest != before
        return PassResult(result, modified, {}, context.log.rewrites, context.log.refusals)

    def _run(self, model: OnnxModel, context: PassContext) -> None:
        from optimc.passes._simplify_fold import fold_constants
        from optimc.passes._simplify_graph import (
            lift_constants,
            merge_common_subexpressions,
            merge_initializers,
            remove_dead_code,
            remove_identities,
        )
        from optimc.passes._simplify_rules import apply_rules
        from optimc.passes._simplify_shapes import infer_shapes
        from optimc.passes._simplify_work import Work

        work = Work.of(model, context, self.fold_limit)
        infer_shapes(model.ir)
        steps = (
            lift_constants,
            fold_constants,
            remove_identities,
            apply_rules,
            remove_identities,
            merge_common_subexpressions,
            remove_dead_code,
        )
        # Merging constants comes after the fixpoint of the others: most constants are gone by then.
        while True:
            before = work.count
            work.anchor()
            _until_nothing_changes(work, steps)
            _until_nothing_changes(work, (merge_initializers, *steps))
            work.release()
            # Inference over the simpler graph may know more than the folder found on its way.
            if work.stopped or work.count == before or not infer_shapes(model.ir):
                return


def _until_nothing_changes(work: Work, steps: Sequence[Callable[[Work], None]]) -> None:
    """Runs the steps in turn until as many in a row as there are have done nothing."""
    idle = 0
    for turn in range(_MAX_ROUNDS * len(steps)):
        before = work.count
        steps[turn % len(steps)](work)
        idle = idle + 1 if work.count == before else 0
        if idle == len(steps) or work.stopped:
            return


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keeps libraries from logging what is a refusal here."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
