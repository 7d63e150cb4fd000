"""A model at the torch level: the module that the source opens, as passes changed it.

What is stored is data, never code: the tensors (safetensors), and how the source's module is to be
changed before they fit (`Structure`). The module itself is made by the recipe's factory, in a
worker, see `optimc.core.workbench`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import copyfile
from typing import Any, Self

from optimc.core.digest import digest_of
from optimc.core.files import atomic_folder, file_sha256
from optimc.core.model import Level, Model, Signature

WEIGHTS = "weights.safetensors"
MASKS = "masks.safetensors"
_STRUCTURE = "structure.json"


@dataclass(frozen=True, slots=True)
class TorchStats:
    """What a table shows of a module: leaf modules, bytes and elements of parameters, and the
    multiply-accumulates of one sample at the dims' typical sizes."""

    nodes: int
    bytes: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class Structure:
    """How a module differs from the one that the source makes, beside its tensors."""

    skipped: tuple[str, ...] = ()
    """Modules that were taken out: what they got first, they pass on."""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By module: attributes (sizes, counts of heads) that have other values."""

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes back."""
        return {"skipped": list(self.skipped), "attributes": self.attributes}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The structure that `to_json` wrote."""
        return cls(tuple(data["skipped"]), data["attributes"])


class TorchModel(Model):
    """A module's state in a folder; without one, the module as the source makes it.

    `origin` names the source: the digest of all that opening it reads.
    """

    level = Level.TORCH

    def __init__(
        self, origin: str, signature: Signature, stats: TorchStats, folder: Path | None = None
    ) -> None:
        self.origin = origin
        self.folder = folder
        self.stats = stats
        self._signature = signature

    @cached_property
    def digest(self) -> str:
        if self.folder is None:
            return digest_of("torch", self.origin)
        files = [WEIGHTS, _STRUCTURE, *([MASKS] if (self.folder / MASKS).exists() else [])]
        return digest_of("torch", self.origin, [file_sha256(self.folder / name) for name in files])

    @property
    def names_digest(self) -> str:
        """The names of modules and parameters are in the digest already."""
        return self.digest

    @property
    def signature(self) -> Signature:
        return self._signature

    @property
    def provenance(self) -> Mapping[str, str]:
        """Nothing: values get their names when the module is exported."""
        return {}

    @cached_property
    def structure(self) -> Structure:
        """How the module differs from the source's."""
        if self.folder is None:
            return Structure()
        text = (self.folder / _STRUCTURE).read_text(encoding="utf-8")
        return Structure.from_json(json.loads(text))

    def clone(self) -> TorchModel:
        """This very model: the folder is never written to again."""
        return self

    def sealed(self) -> TorchModel:
        """This model: see `clone`."""
        return self

    def save(self, folder: Path) -> None:
        """Raises ValueError for the source itself, which has no files of its own."""
        if self.folder is None:
            raise ValueError("the source's module is not stored: the recipe makes it")
        with atomic_folder(folder) as temporary:
            for file in self.folder.iterdir():
                copyfile(file, temporary / file.name)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The model that `save` or `write_header` left in `folder`."""
        header = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        stats = TorchStats(**header["stats"])
        return cls(header["origin"], Signature.from_json(header["signature"]), stats, folder)


def write_header(
    folder: Path, origin: str, signature: Signature, stats: TorchStats, structure: Structure
) -> None:
    """Completes a folder that the tensors were written to already (not atomic)."""
    header = {
        "level": Level.TORCH,
        "origin": origin,
        "signature": signature.to_json(),
        "stats": {
            "nodes": stats.nodes,
            "bytes": stats.bytes,
            "parameters": stats.parameters,
            "macs": stats.macs,
        },
    }
    for name, content in (("model.json", header), (_STRUCTURE, structure.to_json())):
        text = json.dumps(content, indent=1, sort_keys=True)
        (folder / name).write_text(text, encoding="utf-8")
