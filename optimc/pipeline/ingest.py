"""Reading the source: the front end's work, remembered by the contents of all files it read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.digest import digest_of
from optimc.core.errors import InputError
from optimc.core.files import file_sha256
from optimc.core.model import OnnxModel, load_model
from optimc.core.worker import Limits
from optimc.pipeline.cache import Cache
from optimc.pipeline.outputs import outputs_meaning, with_outputs
from optimc.pipeline.recipe.model_sources import OnnxSource
from optimc.pipeline.versions import compiler_digest, tool_versions

if TYPE_CHECKING:
    from optimc.pipeline.recipe.schema import Recipe


@dataclass(frozen=True)
class Source:
    """The model that came in. `files` gives the SHA-256 of every file it was read from."""

    model: OnnxModel
    notes: tuple[str, ...]
    files: Mapping[str, str]
    bytes: int
    known: Mapping[str, Any] = field(default_factory=dict)
    """What the model itself says of values and dims; see `ingest_torch.with_known`."""
    origin: str | None = None
    """Of a PyTorch model: names everything that opening it reads."""
    key: str = ""
    """Of a PyTorch model: names all that its export depends on, versions too."""

    @property
    def path(self) -> Path:
        """The ONNX file of the stored form."""
        assert self.model.path is not None
        return self.model.path

    @property
    def sha256(self) -> str:
        """Names the files: that of the one file, or a digest over all."""
        return next(iter(self.files.values())) if len(self.files) == 1 else digest_of(self.files)


def read_source(recipe: Recipe, cache: Cache, limits: Limits, workspace: Path) -> Source:
    """The recipe's model, checked and normalised by the front end, or from the cache.

    Raises InputError for whatever is wrong with the files.
    """
    if not isinstance(recipe.model, OnnxSource):
        from optimc.pipeline.ingest_torch import read_torch_source

        return read_torch_source(recipe, recipe.model, cache, limits, workspace)
    path = recipe.model.onnx
    files = _source_files(path, cache)
    libraries = _library_files(recipe.model.custom_ops)
    key = digest_of(
        ["ingest", {name: sha for name, (sha, _) in (files | libraries).items()}],
        [spec.model_dump(mode="json") for spec in recipe.inputs.values()],
        outputs_meaning(recipe),
        [compiler_digest(), tool_versions(["onnx", "onnx-ir", "onnxruntime"])],
    )
    entry = cache.get("ingest", key)
    if entry is None:

        def write(folder: Path) -> None:
            from optimc.frontends.onnx import load_onnx

            with tempfile.TemporaryDirectory(prefix="ingest-", dir=workspace) as own:
                shapes = {n: spec.shape for n, spec in recipe.inputs.items() if spec.shape}
                loaded = load_onnx(path, limits=limits, declared_inputs=shapes, workspace=Path(own))
                model = with_outputs(loaded.model, recipe)
                model.save(folder / "model")
            (folder / "notes.json").write_text(json.dumps(loaded.notes), encoding="utf-8")

        entry = cache.put("ingest", key, write)
    model = load_model(entry / "model")
    assert isinstance(model, OnnxModel)
    notes = json.loads((entry / "notes.json").read_text(encoding="utf-8"))
    total = sum(size for _, size in files.values())
    files |= libraries
    return Source(model, tuple(notes), {name: sha for name, (sha, _) in files.items()}, total)


def _source_files(path: Path, cache: Cache) -> dict[str, tuple[str, int]]:
    """SHA-256 and bytes of the model's file and of its external data, by name in the folder."""
    try:
        main = file_sha256(path)
    except OSError as error:
        raise InputError(
            f"cannot read the model: {error.strerror}", where=str(path), fix="check `model.onnx`"
        ) from error
    key = digest_of("source-files", main, compiler_digest())
    entry = cache.get("source-files", key)
    if entry is None:

        def write(folder: Path) -> None:
            (folder / "files.json").write_text(json.dumps(_data_files(path)), encoding="utf-8")

        entry = cache.put("source-files", key, write)
    names = json.loads((entry / "files.json").read_text(encoding="utf-8"))
    files = {path.name: (main, path.stat().st_size)}
    for name in names:
        file = path.parent / name
        try:
            files[name] = (file_sha256(file), file.stat().st_size)
        except OSError as error:
            raise InputError(
                f"the model's data file cannot be read: {error.strerror}",
                where=str(file),
                fix="copy the data file beside the model, under this name",
            ) from error
    return files


def _library_files(paths: Sequence[Path]) -> dict[str, tuple[str, int]]:
    """SHA-256 and bytes of libraries of custom operators, by name."""
    try:
        return {path.name: (file_sha256(path), path.stat().st_size) for path in paths}
    except OSError as error:
        raise InputError(
            f"a library of custom operators cannot be read: {error.strerror}",
            where=str(error.filename),
            fix="check `model.custom_ops`",
        ) from error


def _data_files(path: Path) -> list[str]:
    """The names, in the model's folder, of the files that hold external data."""
    from onnx import TensorProto

    from optimc.frontends.onnx_files import all_tensors, data_file, parse

    locations = {
        entry.value: place
        for place, tensor in all_tensors(parse(path))
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(
        data_file(location, place, path).relative_to(path.parent).as_posix()
        for location, place in locations.items()
    )
