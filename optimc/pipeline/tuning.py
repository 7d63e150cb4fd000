"""What passes are given to choose by: the metric on the tuning split, and latencies here.

The evaluation split is never seen here. Quality is that of the graph, by ONNX Runtime on one thread
with graph optimizations off: the same on every machine, whatever a target's runtime makes of it.
Memory is bounded by one batch; models that are tried are files of the workspace that go at once.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.cpu import cpu_features
from optimc.core.digest import digest_of
from optimc.core.errors import InputError, OptimcError
from optimc.core.files import file_sha256
from optimc.core.model import Model, OnnxModel
from optimc.core.passes import Cost, Drop, Input, Ratio, Runner
from optimc.core.torch_model import TorchModel
from optimc.core.user_code import code_files
from optimc.core.worker import Worker
from optimc.measure.metric import SampleMetric
from optimc.measure.metrics import compare
from optimc.measure.user_function import FunctionMetric
from optimc.measure.user_metric import LoadedMetric
from optimc.pipeline.choosing import choosing_passes
from optimc.pipeline.evaluation import Evaluator, loaded_metrics
from optimc.pipeline.versions import compiler_digest, tool_versions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optimc.calibration.dataset import Dataset
    from optimc.core.targets import Engine
    from optimc.measure.latency import Timings
    from optimc.measure.metric import Metric, Records
    from optimc.pipeline.build import Build
    from optimc.pipeline.cache import Cache
    from optimc.pipeline.data import BuildData
    from optimc.pipeline.plan import Cell, Step
    from optimc.pipeline.recipe.schema import Recipe

    Arrays = Mapping[str, NDArray[Any]]

SENSITIVITY_SAMPLES = 32
"""Samples that an output SQNR is taken on: it varies little from sample to sample."""
TIMED_SECONDS = 20.0
"""The most that latencies for one choice may take."""


def check_tuning(recipe: Recipe, data: BuildData) -> None:
    """Raises InputError where passes choose by a metric that the tuning data have no labels for."""
    reads = choosing_passes(recipe) or any(
        Input.TUNING in entry.pass_.wants
        for variant in recipe.variants.values()
        for entry in variant.passes
    )
    if "tuning" not in data.splits or not recipe.metrics or not reads:
        return
    name, metric = next(iter(loaded_metrics(recipe).items()))
    if metric.needs_labels and not data.splits["tuning"].has_labels:
        raise InputError(
            f"the metric `{name}` needs labels, and the tuning data have none",
            where=recipe.where("data", "tuning"),
            fix="name them: data.tuning.labels",
        )


class TuningMetric:
    """The first metric of a build on its tuning split; a `core.passes.Tuning`.

    Its worker is started at the first question. Raises CellError as the runtime refuses a model,
    and WorkerError as it dies.
    """

    def __init__(self, build: Build) -> None:
        name, metric = next(iter(loaded_metrics(build.recipe).items()))
        self.metric = name
        self._metric: Metric = metric
        self._source = (build.source.model, build.source.path)
        self._seed = build.recipe.seed
        self._limits = build.limits
        self._workspace = build.workspace
        self._warn = build.warnings.append
        self._renamed = {
            old: option.rename
            for old, option in build.recipe.outputs.items()
            if option != "drop" and option.rename
        }
        self._worker: Worker | None = None
        self._of_source: Records | None = None
        self._reference: tuple[str, list[Arrays]] | None = None
        self._evaluator = Evaluator(
            metrics={name: metric},
            dataset=build.data.splits["tuning"],
            raw=build.start.data.splits["tuning"],
            dims=build.data.dims,
            signature=build.source.model.signature,
            cache=build.cache,
            limits=build.limits,
            seed=build.recipe.seed,
            progress=lambda share, text: None,
        )

    @property
    def digest(self) -> str:
        """Names the data, the metric with its options, and the source."""
        return digest_of(
            ["tuning", self.metric, self._about_metric, self._source[0].digest],
            [self._evaluator.dataset.digest, self._evaluator.raw.digest],
            [compiler_digest(), tool_versions(["onnxruntime", "numpy"])],
        )

    @cached_property
    def _about_metric(self) -> Any:
        """Its options, or its code; where the code has no file, something new in every build."""
        metric = self._metric
        if isinstance(metric, SampleMetric):
            return metric.model_dump(mode="json")
        assert isinstance(metric, FunctionMetric | LoadedMetric)
        module = metric.call.partition(":")[0]
        files = code_files(module)
        if files is None:
            self._warn(
                f"metric {self.metric}: `{module}` has no file, so what passes choose by it is not "
                "kept, and a training that is killed begins anew: write it into a file"
            )
            return time.time_ns()
        code = [[file.name, file_sha256(file)] for file in files]
        return [metric.call, metric.better, code, tool_versions([module.partition(".")[0]])]

    def drop(self, model: Model) -> Drop:
        """See `core.passes.Tuning`."""
        with self._file(model) as path:
            records = self._records(path, self._evaluator.raw)
        return self._compared(records)

    def drop_of(self, run: Runner) -> Drop:
        """See `core.passes.Tuning`; `run` takes what the source takes."""
        found = _Called(run, self._renamed)
        dataset = self._evaluator.dataset
        worker = _Runs(self._started(), self._source[1]) if self._metric.needs_source else None
        records = self._evaluator.records("tuning", dataset, found, worker, [self.metric])
        return self._compared(records[self.metric])

    def drop_of_engine(self, engine: Engine) -> Drop:
        """The drop from the source to an engine, which takes what the passes' models take."""
        from optimc.targets.client import EngineWorker

        source = _Runs(self._started(), self._source[1]) if self._metric.needs_source else None
        with EngineWorker(engine, name="a trial's engine", limits=self._limits) as worker:
            worker.reopen()
            records = self._evaluator.records(
                "tuning", self._evaluator.raw, worker, source, [self.metric]
            )
        return self._compared(records[self.metric])

    def _compared(self, records: Records) -> Drop:
        """The drop from the source's records."""
        if self._of_source is None:
            self._of_source = self._records(self._source[1], self._evaluator.dataset)
        drop = compare(self._metric, self._of_source, records, seed=self._seed)
        return Drop(drop.point, drop.lower, drop.upper, drop.n)

    def sqnr_db(self, model: Model, reference: Model) -> float:
        """See `core.passes.Tuning`; infinite where no output is floating-point."""
        from optimc.pipeline.compare import compare_outputs

        if self._reference is None or self._reference[0] != reference.digest:
            with self._file(reference) as path:
                self._reference = (reference.digest, self._outputs(path))
        with self._file(model) as path:
            found = self._outputs(path)
        names = [s.name for s in model.signature.outputs if "float" in s.dtype]
        difference = compare_outputs(self._reference[1], found, names)
        return -math.inf if difference.broken else difference.sqnr_db

    def _outputs(self, path: Path) -> list[Arrays]:
        """The outputs on the first samples."""
        runs, answers, done = _Runs(self._started(), path), [], 0
        for count, feeds, _ in self._evaluator.batches(self._evaluator.raw):
            answers.append(runs.run(feeds))
            done += count
            if done >= SENSITIVITY_SAMPLES:
                break
        runs.forget()
        return answers

    def _records(self, path: Path, dataset: Any) -> Records:
        worker = self._started()
        runs = _Runs(worker, path)
        source = _Runs(worker, self._source[1]) if self._metric.needs_source else None
        records = self._evaluator.records("tuning", dataset, runs, source, [self.metric])
        runs.forget()
        return records[self.metric]

    @contextmanager
    def _file(self, model: Model) -> Iterator[Path]:
        assert isinstance(model, OnnxModel)
        with tempfile.TemporaryDirectory(prefix="trial-", dir=self._workspace) as folder:
            path = Path(folder) / "model.onnx"
            model.write_onnx(path)
            yield path

    def _started(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(
                "optimc.pipeline.oracle_service:OracleService",
                {"threads": 1},
                name="the search's ONNX Runtime",
                limits=self._limits,
            )
        return self._worker

    def close(self) -> None:
        """Ends the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Called:
    """What `run` computes, with outputs called as the recipe calls them."""

    def __init__(self, run: Runner, renamed: Mapping[str, str]) -> None:
        self._run = run
        self._renamed = renamed

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs for `feeds`, by name."""
        return {self._renamed.get(name, name): array for name, array in self._run(feeds).items()}


class _Runs:
    """One model in the worker."""

    def __init__(self, worker: Worker, path: Path) -> None:
        self._worker = worker
        self._path = str(path)

    def run(self, feeds: Arrays) -> Arrays:
        """The outputs for `feeds`, by name."""
        return self._worker.call("run", feeds, path=self._path).arrays

    def forget(self) -> None:
        """Closes the session: its file goes away."""
        self._worker.call("forget", path=self._path)


class TimedDevice:
    """Latencies of engines for one cell's target; a `core.passes.Device`."""

    def __init__(self, build: Build, cell: Cell) -> None:
        self._build = build
        self._cell = cell
        self.target = cell.target_name

    @property
    def digest(self) -> str:
        """Names the machine's features, the target, and what is timed."""
        cases = self._build.recipe.benchmark.cases
        timed = cases if isinstance(cases, str) else [dict(case) for case in cases[:1]]
        return digest_of(
            ["device", sorted(cpu_features()), self._why_not()],
            [self._cell.target.model_dump(mode="json"), tool_versions(self._cell.target.tools)],
            [timed, self.target],
        )

    def costs(self, model: Model, others: Mapping[str, Model]) -> Mapping[str, Cost] | str:
        """See `core.passes.Device`: on the recipe's first benchmark case."""
        timed = self._timings(model, others)
        if isinstance(timed, str):
            return timed
        typical = timed.latency(_MODEL).p50
        if isinstance(typical, str):
            return typical
        costs = {}
        for name in others:
            ratio = timed.ratio(f"{_OTHER}{name}", _MODEL)
            if isinstance(ratio, str):
                return ratio
            # How many times as fast the other is: 1 - 1/ratio of our time is what it saves.
            saved = [typical.ms * (1.0 - 1.0 / r) for r in (ratio.point, *ratio.ci95)]
            costs[name] = Cost(*saved)
        return costs

    def speedups(self, model: Model, others: Mapping[str, Model]) -> Mapping[str, Ratio] | str:
        """See `core.passes.Device`: on the recipe's first benchmark case."""
        timed = self._timings(model, others)
        if isinstance(timed, str):
            return timed
        found = {}
        for name in others:
            ratio = timed.ratio(f"{_OTHER}{name}", _MODEL)
            if isinstance(ratio, str):
                return ratio
            found[name] = Ratio(ratio.point, *ratio.ci95)
        return found

    def _timings(self, model: Model, others: Mapping[str, Model]) -> Timings | str:
        """Both and all others timed in turns, or why they are not."""
        why = self._why_not()
        if why is not None:
            return why
        try:
            return self._timed({_MODEL: model, **{f"{_OTHER}{n}": m for n, m in others.items()}})
        except OptimcError as error:
            return error.what

    def _why_not(self) -> str | None:
        if self._build.locked is not None:
            return "the choice is the lock's"
        return None if self._build.options.measure else "measuring is off (--no-measure)"

    def _timed(self, models: Mapping[str, Model]) -> Timings:
        from optimc.measure.latency import SamplingPlan
        from optimc.pipeline.cases import benchmark_cases
        from optimc.pipeline.timing import exclusive
        from optimc.pipeline.turns import time_in_turns
        from optimc.targets.client import EngineWorker

        build, name = self._build, self._cell.name
        engines = {}
        for key, model in models.items():
            if isinstance(model, TorchModel):
                model = build.torch.lowered(model).model
            assert isinstance(model, OnnxModel)
            engines[key] = build.engines.build(name, self._cell.target, model)
        feeds = benchmark_cases(build)[0].feeds
        seconds = min(build.recipe.benchmark.at_most * len(engines), TIMED_SECONDS)
        build.torch.close()  # nothing of ours may run beside it
        lock = build.cache.folder / "measuring.lock"
        with exclusive(lock, build.observer.on_share), ExitStack() as stack:
            workers = {
                key: stack.enter_context(
                    EngineWorker(engine, name=f"the engine {name}", limits=build.limits)
                )
                for key, engine in engines.items()
            }
            for worker in workers.values():
                worker.bind_all(feeds)
            timings = time_in_turns(
                workers,
                SamplingPlan(at_most_s=seconds),
                feeds=len(feeds),
                seed=build.recipe.seed,
            )
        return timings


class StoredTraining:
    """The training split as arrays in the cache; a `core.passes.Training`."""

    def __init__(self, dataset: Dataset, seed: int, cache: Cache) -> None:
        self._dataset = dataset
        self._cache = cache
        self.digest = digest_of("training", dataset.digest, seed)

    def stored(self) -> Path:
        """See `core.passes.Training`. Raises InputError where samples cannot be stored."""
        from optimc.calibration.sample_store import store_samples

        key = digest_of(self.digest, compiler_digest())
        entry = self._cache.get("training", key)
        if entry is None:
            entry = self._cache.put(
                "training", key, lambda folder: store_samples(self._dataset, folder / "samples")
            )
        return entry / "samples"


_MODEL, _OTHER = "the model", "without "


def pass_inputs(build: Build, step: Step, index: int, *, at_torch: bool) -> dict[str, Any]:
    """What a pass that chooses or trains is given besides: fields of `PassInputs`; `index` is its
    place, `at_torch` whether it works on a module."""
    assert step.entry is not None
    pass_ = step.entry.pass_
    reads = pass_.needs | pass_.wants
    given: dict[str, Any] = {}
    if Input.TUNING in pass_.needs or (Input.TUNING in reads and can_tune(build.recipe)):
        given["tuning"] = build.tuning
    if reads & {Input.DEVICE, Input.TUNING}:
        given["device"] = TimedDevice(build, next(step.all_cells()))
    if Input.TRAINING in reads and "training" in build.data.splits:
        # A module takes what the source takes; a graph may hold some of the preprocessing.
        data = build.data if at_torch else build.start.data
        given["training"] = StoredTraining(data.splits["training"], build.recipe.seed, build.cache)
    if reads & {Input.DEVICE, Input.TUNING, Input.TRAINING}:
        given["choice"] = _locked_choice(build, step, index)
    return given


def can_tune(recipe: Recipe) -> bool:
    """Whether the recipe has what a choice by quality needs."""
    return recipe.data is not None and recipe.data.tuning is not None and bool(recipe.metrics)


def _locked_choice(build: Build, step: Step, index: int) -> Any:
    """What the lock says that this pass chose; None without --locked."""
    if build.locked is None:
        return None
    for cell in step.all_cells():
        passes = build.locked["cells"].get(cell.name, {}).get("passes", [])
        if index < len(passes) and passes[index].get("choice") is not None:
            return passes[index]["choice"]
    assert step.entry is not None
    if Input.TUNING not in step.entry.pass_.needs:
        return None  # it may have had nothing to choose
    raise InputError(
        "the lock holds no choice of this pass",
        where=next(step.all_cells()).name,
        fix="build once without --locked, and commit the new lock",
    )
