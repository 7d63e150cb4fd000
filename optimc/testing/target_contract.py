"""What holds for every target, as a pytest class to subclass.

    class TestOnnxRuntime(TargetContract):
        targets = (OnnxRuntime(), OnnxRuntime(optimized=True))

Every test runs each of `targets` and, where it takes `name`, each of `models()`; those that start
processes take `few` of them. An engine is built once for all tests that only read it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optimc.core.errors import InputError
from optimc.core.files import file_sha256
from optimc.core.model import OnnxModel
from optimc.core.targets import BuildContext, Engine, Target
from optimc.testing.runs import run_model, seeded_feeds

if TYPE_CHECKING:
    import pytest
    from numpy.typing import NDArray

    from optimc.testing.runs import Feeds

_MODELS: dict[type, Mapping[str, OnnxModel]] = {}
_BUILT: dict[tuple[str, str, str], Engine] = {}
_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []

_LOADER = """\
import sys
import numpy
with numpy.load(sys.argv[1], allow_pickle=False) as archive:
    feeds = dict(archive)
exec(compile(open(sys.argv[3]).read(), "load", "exec"))
assert "optimc" not in sys.modules
numpy.savez(sys.argv[2], **{str(i): value for i, value in enumerate(outputs.values())})
print(list(outputs))
"""
_SPEC = """\
import sys
from optimc.core.registry import target_class
kind = target_class(sys.argv[1])
target = kind.model_validate_json(sys.argv[2])
kind.unavailable()
print(target.spec().digest)
heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "openvino", "tensorrt"} & set(sys.modules)
assert not heavy, heavy
"""


class TargetContract:
    """The suite; see the module docstring."""

    targets: ClassVar[Sequence[Target]] = ()
    """The target with each set of options that is worth testing."""
    tolerance: ClassVar[float] = 1e-4
    """How far float outputs may be from the ONNX model's, as a share of the output's scale."""
    few: ClassVar[Sequence[str]] = ("fixed shape", "many types", "quantized", "unused input")
    """The models for tests that start processes."""
    quantized_tolerance: ClassVar[float] = 0.05
    """The same for models with QuantizeLinear: engines round other intermediate results."""

    def models(self) -> Mapping[str, OnnxModel]:
        """The models by name; they must be as the ONNX front end leaves them."""
        from optimc.testing.graphs import small_models
        from optimc.testing.target_models import target_models

        return {**small_models(), **target_models()}

    def feeds(self, model: OnnxModel) -> Sequence[Feeds]:
        """The inputs on which outputs are compared."""
        return seeded_feeds(model)

    # The tests. Each runs over `targets` and, where it takes `name`, over `models()`.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Makes one test of each target and model."""
        if "target" in metafunc.fixturenames:
            metafunc.parametrize("target", self.targets, ids=[_id(t) for t in self.targets])
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", sorted(self.models()))
        if "few" in metafunc.fixturenames:
            metafunc.parametrize("few", self.few)

    def test_options_survive_a_round_trip(self, target: Target) -> None:
        """Recipes, cache keys and locks keep the options as JSON."""
        again = type(target).model_validate_json(target.model_dump_json())
        assert again == target
        undocumented = [n for n, f in type(target).model_fields.items() if not f.description]
        assert not undocumented, f"options without a docstring: {undocumented}"

    def test_is_available(self, target: Target) -> None:
        """None means that all that follows works."""
        assert type(target).unavailable() is None

    def test_spec_is_data_with_a_stable_digest(self, target: Target) -> None:
        """The digest is the same in every process, and none needs the runtime for it."""
        spec = target.spec()
        assert type(spec).model_validate_json(spec.model_dump_json()) == spec
        arguments = [sys.executable, "-c", _SPEC, target.runtime, target.model_dump_json()]
        for seed in ("1", "2"):
            environment = {**os.environ, "PYTHONHASHSEED": seed}
            done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip() == spec.digest

    def test_build_leaves_what_the_manifest_says(
        self, target: Target, name: str, tmp_path: Path
    ) -> None:
        """The files with their digests and sizes, the interface, and nothing else anywhere."""
        model = self._model(name)
        engine = _build(target, model, tmp_path / "engine", tmp_path / "workspace")
        files = {p.relative_to(engine.folder).as_posix() for p in engine.folder.rglob("*")}
        assert files == {Engine.MANIFEST, *engine.manifest["files"]}
        for file, facts in engine.manifest["files"].items():
            path = engine.folder / file
            assert facts == {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        assert sorted(p.name for p in tmp_path.iterdir()) == ["engine", "workspace"]
        assert engine.main.is_file()
        assert engine.signature == model.signature
        assert engine.manifest["model_sha256"] == model.digest
        assert Engine.read(engine.folder) == engine
        text = (engine.folder / Engine.MANIFEST).read_text(encoding="utf-8")
        assert str(tmp_path) not in text, "a manifest must not depend on where it was built"

    def test_same_build_has_the_same_identity(
        self, target: Target, name: str, tmp_path: Path
    ) -> None:
        """Whatever was built before in the process; files too where the manifest says so."""
        model = self._model(name)
        first = self._engine(target, name)
        again = _build(target, model, tmp_path / "again", tmp_path / "workspace")
        assert again.digest == first.digest
        if again.manifest["identity"]["of"] == "files":
            assert again.manifest["files"] == first.manifest["files"]

    def test_outputs_agree_with_the_model(self, target: Target, name: str) -> None:
        """Names, order, dtypes and shapes as in the signature, values within the tolerance."""
        import numpy as np

        model = self._model(name)
        feeds = self.feeds(model)
        engine = self._engine(target, name)
        limit = self.tolerance
        if any(node.op_type == "QuantizeLinear" for node in model.ir.graph):
            limit = self.quantized_tolerance
        with target.open(engine) as session:
            for fed, wanted in zip(feeds, run_model(model, feeds), strict=True):
                bound = session.bind(fed)
                bound.run()
                given = bound.outputs()
                assert list(given) == [spec.name for spec in engine.signature.outputs]
                for spec in engine.signature.outputs:
                    reference, output = np.asarray(wanted[spec.name]), given[spec.name]
                    assert output.dtype.name == spec.dtype
                    assert output.shape == reference.shape
                    assert _distance(reference, output) <= limit, spec.name

    def test_manifest_loads_without_optimc(self, target: Target, few: str, tmp_path: Path) -> None:
        """The manifest's `load`, in a plain Python, gives what the session gives."""
        import numpy as np

        engine = self._engine(target, few)
        fed = self.feeds(self._model(few))[-1]
        wanted = _run(target, engine, fed)
        assert _documented_feeds(engine) == set(fed)
        arrays: dict[str, Any] = dict(fed)
        np.savez(tmp_path / "feeds.npz", **arrays)
        (tmp_path / "load.py").write_text(engine.manifest["load"], encoding="utf-8")
        arguments = [tmp_path / "feeds.npz", tmp_path / "outputs.npz", tmp_path / "load.py"]
        done = subprocess.run(
            [sys.executable, "-I", "-c", _LOADER, *map(str, arguments)],
            cwd=engine.folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(list(wanted))
        with np.load(tmp_path / "outputs.npz", allow_pickle=False) as archive:
            for index, value in enumerate(wanted.values()):
                np.testing.assert_array_equal(archive[str(index)], value)

    def test_wrong_feeds_are_refused(self, target: Target, name: str) -> None:
        """A message that names the input, before the runtime sees anything."""
        engine = self._engine(target, name)
        right = dict(self.feeds(self._model(name))[-1])
        with target.open(engine) as session:
            for wrong, named in _wrong_feeds(right):
                try:
                    session.bind(wrong)
                except InputError as error:
                    assert named in error.what
                else:
                    raise AssertionError(f"the feeds {wrong} were taken")

    def test_sessions_and_bounds_stand_side_by_side(self, target: Target, name: str) -> None:
        """Two sessions, and two bounds of one, do not see each other; runs repeat to the bit."""
        engine = self._engine(target, name)
        feeds = self.feeds(self._model(name))
        alone = [_run(target, engine, fed) for fed in feeds]
        with target.open(engine) as first, target.open(engine) as second:
            bounds = [first.bind(feeds[0]), first.bind(feeds[1]), second.bind(feeds[1])]
            outputs = []
            for _ in range(2):
                for bound in bounds:
                    bound.run()
                outputs = [bound.outputs() for bound in bounds]
            bounds[0].run()
        _assert_same(outputs[0], alone[0])
        _assert_same(outputs[1], alone[1])
        _assert_same(outputs[2], alone[1])

    def test_feeds_are_copied(self, target: Target, name: str) -> None:
        """What the caller does with its arrays afterwards changes nothing."""
        engine = self._engine(target, name)
        fed = self.feeds(self._model(name))[0]
        mine = {name: array.copy() for name, array in fed.items()}
        with target.open(engine) as session:
            bound = session.bind(mine)
            for array in mine.values():
                array[...] = 0
            bound.run()
            _assert_same(bound.outputs(), _run(target, engine, fed))

    def test_closed_session_refuses(self, target: Target, name: str) -> None:
        """And outputs that were taken before stay."""
        engine = self._engine(target, name)
        session = target.open(engine)
        bound = session.bind(self.feeds(self._model(name))[0])
        bound.run()
        outputs = bound.outputs()
        copies = {name: array.copy() for name, array in outputs.items()}
        session.close()
        session.close()
        try:
            bound.run()
        except ValueError as error:
            assert "closed" in str(error)
        else:
            raise AssertionError("a closed session ran")
        _assert_same(outputs, copies)

    def test_layers_are_read_back(self, target: Target, name: str) -> None:
        """Each with a type; a reason only where something heavy of a quantized model is float."""
        with target.open(self._engine(target, name)) as session:
            layers = session.layers()
        assert all(layer.name and layer.operator and layer.dtype for layer in layers)
        for layer in layers:
            if layer.reason:
                assert layer.heavy
                assert layer.dtype != "int8"

    def test_layers_are_timed(self, target: Target, name: str) -> None:
        """Each layer that ran once, with what it stands for; None where there is no profiler."""
        engine = self._engine(target, name)
        with target.open(engine) as session:
            layers = session.profile(self.feeds(self._model(name))[0], 1, 2)
        if layers is None:
            return
        assert layers
        assert all(layer.name and layer.operator and layer.dtype for layer in layers)
        assert all(layer.ms >= 0 and all(layer.parts) for layer in layers)

    def test_engine_runs_in_a_worker(self, target: Target, few: str, tmp_path: Path) -> None:
        """Built and run in processes of their own, the engine is the same."""
        from optimc.targets.client import EngineWorker, build_engine

        model = self._model(few)
        model.save(tmp_path / "model")
        folder = tmp_path / "engine"
        folder.mkdir()
        engine = build_engine(target, tmp_path / "model", folder, name=f"building {few}")
        mine = self._engine(target, few)
        assert engine.digest == mine.digest
        fed = self.feeds(model)[-1]
        with EngineWorker(engine, name=f"the engine {few}") as worker:
            assert worker.reopen() > 0
            _assert_same(worker.run(fed), _run(target, mine, fed))
            worker.bind(fed)
            assert worker.reopen() > 0
            times = worker.time_block(3)
            assert times.shape == (3,)
            assert times.dtype.name == "int64"
            assert (times > 0).all()
            assert worker.first_result_ms(fed) > 0
            assert worker.precisions()["layers"]
            memory = worker.memory()
            # Linux counts by processor and adds up now and then: exact to some pages each.
            baseline, current, peak = (
                memory[f"{n}_mb"] or 0 for n in ("baseline", "current", "peak")
            )
            assert 0 < baseline < current + 2 < peak + 4

    def _model(self, name: str) -> OnnxModel:
        if type(self) not in _MODELS:
            _MODELS[type(self)] = self.models()
        return _MODELS[type(self)][name]

    def _engine(self, target: Target, name: str) -> Engine:
        key = (type(self).__name__, target.model_dump_json(), name)
        if key not in _BUILT:
            folder = tempfile.TemporaryDirectory(prefix="optimc-contract-")
            _FOLDERS.append(folder)
            place = Path(folder.name)
            _BUILT[key] = _build(target, self._model(name), place / "engine", place / "work")
        return _BUILT[key]


def _id(target: Target) -> str:
    options = target.model_dump(mode="json", exclude_defaults=True)
    return "-".join([target.runtime, *(f"{name}={value}" for name, value in options.items())])


def _build(target: Target, model: OnnxModel, folder: Path, workspace: Path) -> Engine:
    folder.mkdir(parents=True)
    workspace.mkdir(parents=True, exist_ok=True)
    return target.build(model, folder, BuildContext(workspace=workspace))


def _run(target: Target, engine: Engine, feeds: Feeds) -> dict[str, NDArray[Any]]:
    with target.open(engine) as session:
        bound = session.bind(feeds)
        bound.run()
        return dict(bound.outputs())


def _documented_feeds(engine: Engine) -> set[str]:
    """The names in the comment that tells what the manifest's `load` takes."""
    mark = "# feeds = "
    line = next(t for t in engine.manifest["load"].splitlines() if t.startswith(mark))
    return set(ast.literal_eval(line.removeprefix(mark)))


def _distance(reference: NDArray[Any], output: NDArray[Any]) -> float:
    """The largest difference as a share of the reference's largest magnitude."""
    import numpy as np

    if reference.dtype.kind not in "fc":
        return 0.0 if np.array_equal(reference, output) else np.inf
    if not reference.size:
        return 0.0
    scale = float(np.abs(reference).max()) or 1.0
    return float(np.abs(reference.astype(np.float64) - output).max()) / scale


def _assert_same(given: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]]) -> None:
    import numpy as np

    assert list(given) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(given[name], value)


def _wrong_feeds(right: dict[str, NDArray[Any]]) -> list[tuple[dict[str, NDArray[Any]], str]]:
    """Feeds that are each wrong in one way, and what the message has to name."""
    import numpy as np

    name, array = next(iter(right.items()))
    other = np.float64 if array.dtype != np.float64 else np.float32
    wrong = [
        ({n: a for n, a in right.items() if n != name}, name),
        ({**right, "no_such_input": array}, "no_such_input"),
        ({**right, name: array.astype(other)}, name),
        ({**right, name: array[None]}, name),
    ]
    if array.ndim > 1:
        longer = np.concatenate([array, array], axis=-1)
        wrong.append(({**right, name: longer}, name))
    return wrong
