"""The worker's side of `quantize_nncf`: NNCF runs here, and asks for what it has not.

NNCF pulls its samples and calls a function for the metric. Both are on the other side of a pipe
that only answers, so NNCF runs in a thread: what it wants becomes the answer of the call that is
waiting, and the next call brings it. One sample is in memory at a time, and `RANKED` of them with
their outputs while operations are ranked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from queue import Queue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from optimc.core import telemetry
from optimc.core.errors import CellError

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

RANKED = 32
"""Samples whose outputs rank the operations: all of them are in memory at once."""


class NncfService:
    """One model and how NNCF is to quantize it; served by `optimc.core.worker.Worker`.

    `begin` and `answer` give what is wanted next as `ask`: ``sample`` with its number (`answer`
    with the feeds, or without arrays where there are no more), ``drop`` of the model at `path`
    (`answer` with `drop` and `stop`), and ``done``.
    """

    def __init__(self, path: str, options: Mapping[str, Any]) -> None:
        telemetry.switch_off()
        import nncf
        import onnx
        from nncf.onnx.graph.metatypes.groups import INPUTS_QUANTIZABLE_OPERATIONS

        _steady_sessions()
        _rank_by_outputs()
        nncf.set_log_level(30)
        self._model = onnx.load(path)
        _default_domain_first(self._model)
        self._options = options
        self._types = {name for kind in INPUTS_QUANTIZABLE_OPERATIONS for name in kind.op_names}
        self._names = [n.name for n in self._model.graph.node if n.op_type in self._types]
        self._asked: Queue[dict[str, Any]] = Queue()
        self._answers: Queue[tuple[Arrays, dict[str, Any]]] = Queue()

    def operations(self, arrays: Arrays) -> tuple[Any, Any]:
        """The names of the nodes that NNCF has integer kernels in mind for."""
        return self._names, {}

    def begin(
        self, arrays: Arrays, target: str, ignored: Sequence[str], max_drop: float | None = None
    ) -> tuple[Any, Any]:
        """Starts to quantize all but the `ignored` nodes; the result goes to the file `target`.

        With `max_drop` NNCF's accuracy control tries models until one's drop is no larger.
        """
        work = self._quantize if max_drop is None else self._control
        arguments = (work, target, list(ignored), max_drop)
        threading.Thread(target=self._run, args=arguments, daemon=True).start()
        return self._next()

    def answer(self, arrays: Arrays, **data: Any) -> tuple[Any, Any]:
        """Goes on with what was asked for."""
        # The arrays are views of a message that is gone with the next one.
        self._answers.put(({name: array.copy() for name, array in arrays.items()}, data))
        return self._next()

    def _next(self) -> tuple[Any, Any]:
        asked = self._asked.get()
        if "error" in asked:
            raise asked["error"]
        return asked, {}

    def _ask(self, **asked: Any) -> tuple[Arrays, dict[str, Any]]:
        self._asked.put(asked)
        return self._answers.get()

    def _run(self, work: Callable[..., Any], target: str, *arguments: Any) -> None:
        """The thread's main function."""
        try:
            nodes = work(target, *arguments)
        except _EnoughError:
            self._asked.put({"ask": "done", "nodes": []})
        except MemoryError as error:
            self._asked.put({"error": error})
        except Exception as error:  # noqa: BLE001 (NNCF raises what its own parts raise)
            text = " ".join(str(error).split())[:500]
            failure = CellError(
                f"NNCF cannot quantize this model: {type(error).__name__}: {text}",
                fix="take quantize_int8, or name what it stumbles over under `keep_float`",
            )
            self._asked.put({"error": failure})
        else:
            self._asked.put({"ask": "done", "nodes": nodes})

    def _quantize(self, target: str, ignored: list[str], max_drop: None) -> list[str]:
        import nncf

        found = nncf.quantize(self._copy(), self._samples(), **self._arguments(ignored))
        return self._written(found, target)

    def _control(self, target: str, ignored: list[str], max_drop: float) -> list[str]:
        import nncf

        ranked = list(_Feeds(self._ask, RANKED))
        arguments = self._arguments(ignored)
        advanced = arguments.pop("advanced_parameters")
        found = nncf.quantize_with_accuracy_control(
            self._copy(),
            self._samples(),
            nncf.Dataset(ranked),
            _Judge(self, target),
            max_drop=max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            advanced_quantization_parameters=advanced,
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=len(ranked), num_ranking_workers=1
            ),
            **arguments,
        )
        return self._written(found, target)

    def _copy(self) -> onnx.ModelProto:
        """The model: NNCF may write into what it is given."""
        import onnx

        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        return copy

    def _samples(self) -> Any:
        import nncf

        return nncf.Dataset(_Feeds(self._ask, self._options["samples"]))

    def _arguments(self, ignored: list[str]) -> dict[str, Any]:
        """What both of NNCF's entries take, in its own words."""
        import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        given = self._options
        preset, off = given["preset"], nncf.AdvancedSmoothQuantParameters(-1, -1)
        smooth = nncf.AdvancedSmoothQuantParameters() if given["smooth_quant"] else off
        fix = nncf.OverflowFix.ENABLE if given["reduce_range"] else nncf.OverflowFix.DISABLE
        advanced = nncf.AdvancedQuantizationParameters(overflow_fix=fix, smooth_quant_alphas=smooth)
        if given["ranges"] == "minmax":
            advanced.activations_range_estimator_params = RangeEstimatorParametersSet.MINMAX
        return {
            "preset": None if preset is None else nncf.QuantizationPreset(preset),
            "target_device": nncf.TargetDevice(given["device"]),
            "subset_size": given["samples"],
            "fast_bias_correction": given["fast_bias_correction"],
            "model_type": nncf.ModelType.TRANSFORMER if given["transformer"] else None,
            "ignored_scope": nncf.IgnoredScope(names=ignored, validate=False),
            "advanced_parameters": advanced,
        }

    def _written(self, model: onnx.ModelProto, target: str) -> list[str]:
        """Saves a model; the names of its operations that read a DequantizeLinear."""
        import onnx

        onnx.save(model, target)
        return self._quantized(model)

    def _quantized(self, model: onnx.ModelProto) -> list[str]:
        nodes = model.graph.node
        made = {name for n in nodes if n.op_type == "DequantizeLinear" for name in n.output}
        known = set(self._names)
        return [n.name for n in nodes if n.name in known and not made.isdisjoint(n.input)]


class _EnoughError(Exception):
    """No further trial is wanted."""


class _Judge:
    """NNCF's validation function: the metric is 1 less the drop, and 1 for the model that came in
    (NNCF divides by it). NNCF ranks by outputs, as no values for each sample are given."""

    def __init__(self, service: NncfService, target: str) -> None:
        self._service = service
        self._target = target
        self._calls = 0

    def __call__(self, model: onnx.ModelProto, samples: Iterable[Any]) -> tuple[float, Any]:
        self._calls += 1
        if self._calls == 1:
            return 1.0, [[0.0]]  # its look at what the function gives: lists mean outputs
        if self._calls == 2:
            return 1.0, None  # the model that came in
        nodes = self._service._written(model, self._target)
        _, told = self._service._ask(ask="drop", path=self._target, nodes=nodes)
        if told["stop"]:
            raise _EnoughError
        return 1.0 - float(told["drop"]), None


class _Feeds:
    """Samples from the other side, from the first one at each look."""

    def __init__(self, ask: Callable[..., tuple[Arrays, Any]], count: int) -> None:
        self._ask = ask
        self._count = count

    def __iter__(self) -> Iterator[Arrays]:
        for number in range(self._count):
            feeds, _ = self._ask(ask="sample", number=number, count=self._count)
            if not feeds:
                return
            yield feeds


def _steady_sessions() -> None:
    """NNCF's sessions compute what the graph says, on one thread, the same on every run.

    NNCF has no option for it: its engine makes the options itself.
    """
    import onnxruntime
    from nncf.onnx import engine

    from optimc.core import custom_ops

    def options() -> Any:
        made = onnxruntime.SessionOptions()
        made.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        made.intra_op_num_threads = 1
        made.inter_op_num_threads = 1
        made.log_severity_level = 4
        custom_ops.register(made)
        return made

    engine.rt = SimpleNamespace(
        SessionOptions=options, InferenceSession=onnxruntime.InferenceSession
    )


def _rank_by_outputs() -> None:
    """Operations go back to float first whose return leaves the least error of the outputs.

    NNCF 3.4 has this ranking for OpenVINO only, although it is plain numpy, and takes the greatest
    score first, as is right for a metric: those whose return helps least. Hence the sign.
    """
    from nncf.quantization.algorithms.accuracy_control import rank_functions, ranker

    def score(wanted: list[Any], got: list[Any]) -> float:
        return -float(rank_functions.normalized_mse(wanted, got))

    ranker.create_normalized_mse_func = lambda backend: score


def _default_domain_first(model: onnx.ModelProto) -> None:
    """NNCF takes the first opset in the list for that of ONNX."""
    imports = sorted(model.opset_import, key=lambda one: one.domain not in ("", "ai.onnx"))
    kept = [(one.domain, one.version) for one in imports]
    del model.opset_import[:]
    for domain, version in kept:
        model.opset_import.add(domain=domain, version=version)
