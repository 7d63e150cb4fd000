"""What every cell is held against: the source, untouched, as engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimc.core.targets import Engine, Target

if TYPE_CHECKING:
    from optimc.pipeline.build import Build

NOT_ASKED = "measuring is off (--no-measure)"


def source_engine(build: Build, target: Target) -> Engine:
    """The source, untouched, built for `target`."""
    return build.engines.build(f"the source for {target.runtime}", target, build.source.model)


def reference_target(target: Target) -> Target:
    """ONNX Runtime with the threads of `target`: what every speed-up is held against."""
    from optimc.targets.onnxruntime import OnnxRuntime

    return OnnxRuntime(runtime="onnxruntime", threads=getattr(target, "threads", 1))
