"""A model on its way through the compiler: what it is named by, and how it is kept.

A `Model` is immutable by convention: a pass gets a clone (weights shared, read-only) that it may
change, and the pass manager seals the result into a new `Model`. What stands on disk is loaded
only when somebody asks for the graph, so that a build made of cache hits never pays for it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from optimc.core.files import atomic_folder

if TYPE_CHECKING:
    import onnx_ir as ir

SOURCE_KEY = "optimc.source"
"""Where a value's source name is kept: `onnx_ir.Value.meta`, which clones and rewrites carry."""

EXTERNAL_DATA_THRESHOLD = 32 * 1024 * 1024
"""Bytes of initializers above which a stored model keeps them in a file that can be mapped."""


class Level(StrEnum):
    """The dialects a model lives at, in the order of lowering."""

    TORCH = "torch"
    ONNX = "onnx"
    OPENVINO = "openvino"
    ENGINE = "engine"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: name, numpy dtype name, and dims (int, or the name of a symbolic dim).

    `shape` is None where the rank is unknown.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join(str(dim) for dim in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """A model's interface, in the order of the model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names of the inputs' symbolic dims, in order of appearance."""
        dims = [dim for spec in self.inputs for dim in spec.shape or () if isinstance(dim, str)]
        return tuple(dict.fromkeys(dims))

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes back."""
        return {
            side: [[spec.name, spec.dtype, spec.shape] for spec in getattr(self, side)]
            for side in ("inputs", "outputs")
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The signature that `to_json` wrote."""

        def side(name: str) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(n, dtype, None if shape is None else tuple(shape))
                for n, dtype, shape in data[name]
            )

        return cls(inputs=side("inputs"), outputs=side("outputs"))


class Model(ABC):
    """What passes read and write; the digests name it, see `OnnxModel` for the ONNX level."""

    level: ClassVar[Level]

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the semantic content: generated names and metadata do not count."""

    @property
    @abstractmethod
    def names_digest(self) -> str:
        """SHA-256 over all names and provenance, for the cache keys of passes that read names."""

    @property
    @abstractmethod
    def signature(self) -> Signature:
        """Inputs and outputs."""

    @property
    @abstractmethod
    def provenance(self) -> Mapping[str, str]:
        """From a value's name in this model to its name in the source model."""

    @abstractmethod
    def clone(self) -> Self:
        """A copy whose structure may be changed; weights are shared and must not be."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the stored form (atomic): a folder that `load_model` takes back."""


@dataclass(frozen=True, slots=True)
class ModelStats:
    """What a table shows of a model: nodes (subgraphs' too), bytes and elements of weights."""

    nodes: int
    bytes: int
    parameters: int


class OnnxModel(Model):
    """A model at the ONNX level, around an `onnx_ir.Model`."""

    level = Level.ONNX

    def __init__(
        self,
        ir_model: ir.Model | None = None,
        *,
        folder: Path | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> None:
        if (ir_model is None) == (folder is None):
            raise TypeError("an OnnxModel is made of an onnx_ir.Model or of a stored folder")
        self._ir = ir_model
        self._folder = folder
        if header is None and folder is not None:
            header = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self._header = header

    @property
    def ir(self) -> ir.Model:
        """The graph; loaded and memory-mapped at the first use."""
        if self._ir is None:
            import onnx_ir

            assert self._folder is not None
            self._ir = onnx_ir.load(self._folder / "model.onnx")
            restore_provenance(self._ir, self.provenance)
        return self._ir

    @property
    def path(self) -> Path | None:
        """The ONNX file of the stored form, or None while it is only in memory."""
        return self._folder / "model.onnx" if self._folder else None

    @cached_property
    def digest(self) -> str:
        if self._header is not None:
            return str(self._header["digest"])
        from optimc.core.onnx_digest import semantic_digest

        return semantic_digest(self.ir)

    @cached_property
    def names_digest(self) -> str:
        if self._header is not None:
            return str(self._header["names_digest"])
        from optimc.core.onnx_digest import names_digest

        return names_digest(self.ir)

    @cached_property
    def signature(self) -> Signature:
        if self._header is not None:
            return Signature.from_json(self._header["signature"])
        from optimc.core.onnx_signature import signature_of

        return signature_of(self.ir)

    @cached_property
    def stats(self) -> ModelStats:
        """Counts of the graph."""
        if self._header is not None:
            return ModelStats(**self._header["stats"])
        from optimc.core.onnx_signature import stats_of

        return stats_of(self.ir)

    @cached_property
    def provenance(self) -> Mapping[str, str]:
        if self._header is not None:
            return dict(self._header["provenance"])
        from optimc.core.onnx_signature import all_values

        return {
            value.name: value.meta[SOURCE_KEY]
            for value in all_values(self.ir)
            if value.name and SOURCE_KEY in value.meta
        }

    def clone(self) -> OnnxModel:
        return OnnxModel(self.ir.clone())

    def sealed(self) -> OnnxModel:
        """A handle on the same graph with nothing remembered of it: for a clone after changes."""
        return OnnxModel(self.ir)

    def save(self, folder: Path) -> None:
        with atomic_folder(folder) as temporary:
            self.write_onnx(temporary / "model.onnx")
            header = {
                "level": self.level,
                "digest": self.digest,
                "names_digest": self.names_digest,
                "signature": self.signature.to_json(),
                "stats": {
                    "nodes": self.stats.nodes,
                    "bytes": self.stats.bytes,
                    "parameters": self.stats.parameters,
                },
                "provenance": dict(self.provenance),
            }
            text = json.dumps(header, indent=1, sort_keys=True)
            (temporary / "model.json").write_text(text, encoding="utf-8")

    def write_onnx(self, path: Path) -> None:
        """Writes the ONNX file; big weights go into ``<name>.data`` beside it (not atomic)."""
        import onnx_ir

        # Both ways point initializers at other tensors, so they get a clone.
        clone = self.ir.clone()
        if self.stats.bytes > EXTERNAL_DATA_THRESHOLD:
            onnx_ir.save(clone, path, external_data=f"{path.name}.data")
        else:
            # What is left of a larger model still lies in that model's data file.
            onnx_ir.save(onnx_ir.external_data.load_to_model(clone), path)


def load_model(folder: Path) -> Model:
    """The model that `Model.save` wrote into `folder`; the graph itself is read later."""
    header = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if header["level"] == Level.TORCH:
        from optimc.core.torch_model import TorchModel

        return TorchModel.load(folder)
    if header["level"] != Level.ONNX:
        raise ValueError(f"no stored form for the level {header['level']}")
    return OnnxModel(folder=folder, header=header)


def restore_provenance(model: ir.Model, provenance: Mapping[str, str]) -> None:
    """Puts source names back into `Value.meta` after a model was read from disk."""
    from optimc.core.onnx_signature import all_values

    for value in all_values(model):
        if value.name is not None and value.name in provenance:
            value.meta[SOURCE_KEY] = provenance[value.name]
