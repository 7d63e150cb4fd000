"""TensorRT on NVIDIA GPUs: the data that passes place for is here, building is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from optimc.core.errors import UnavailableError
from optimc.core.model import Model
from optimc.core.targets import BuildContext, Engine, Session, Target, TargetSpec, Unavailability


class TensorRT(Target):
    """TensorRT 10.12 and newer, with strongly typed networks: the precision is the graph's."""

    runtime: Literal["tensorrt"] = "tensorrt"
    """The runtime's name in recipes."""

    tools: ClassVar[tuple[str, ...]] = ("tensorrt",)
    extra: ClassVar[str | None] = "tensorrt"

    @classmethod
    def unavailable(cls) -> Unavailability | None:
        return Unavailability(
            "this version of optimc does not build TensorRT engines: they need an NVIDIA GPU and "
            "the extra `tensorrt`, whose libraries come from NVIDIA's own package index, and "
            "a kit to finish elsewhere is not written either",
            "set `optional: true` on this target, or leave it out of the recipe",
        )

    def spec(self) -> TargetSpec:
        from optimc.targets.quantization_specs import tensorrt

        return TargetSpec(
            runtime=self.runtime,
            # float16 scales need opset 19; the parser of 10.12 reads up to 22.
            max_opset=22,
            max_ir_version=10,
            dtypes=frozenset(
                {"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"}
            ),
            quantization=tensorrt(),
        )

    def build(self, model: Model, folder: Path, context: BuildContext) -> Engine:
        raise self._unavailable()

    @classmethod
    def open(cls, engine: Engine, **overrides: Any) -> Session:
        raise cls._unavailable()

    @classmethod
    def _unavailable(cls) -> UnavailableError:
        why = cls.unavailable()
        assert why is not None
        return UnavailableError(why.reason, fix=why.remedy)


TARGET = TensorRT
