"""Real sessions in real processes for the tests and benches of measuring: matrix chains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from optimc.core.worker import Worker
from optimc.measure.latency import time_runs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def chain_model(layers: int, width: int = 128) -> bytes:
    """An ONNX model of `layers` alternating MatMul and Tanh pairs on float32 [16, width]."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(0, width**-0.5, (width, width)).astype(np.float32)
    nodes = []
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"x{layer}", "w"], [f"h{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"h{layer}"], [f"x{layer + 1}"]))
    shape = [16, width]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class ChainService:
    """Serves one ONNX Runtime session of `chain_model` on one thread, see `Worker`."""

    def __init__(self, layers: int) -> None:
        self._model = chain_model(layers)
        self._session: Any = None
        self._binding: Any = None

    def reopen(self, arrays: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Opens a fresh session; answers its load time as ``ms``."""
        import numpy as np
        import onnxruntime

        self._session = self._binding = None
        start = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            self._model, options, providers=["CPUExecutionProvider"]
        )
        milliseconds = (time.perf_counter() - start) * 1e3
        entry = session.get_inputs()[0]
        self._binding = session.io_binding()
        self._binding.bind_cpu_input(entry.name, np.ones(entry.shape, np.float32))
        self._binding.bind_output(session.get_outputs()[0].name)
        self._session = session
        return {"ms": milliseconds}, {}

    def time_block(
        self, arrays: object, runs: int
    ) -> tuple[dict[str, Any], dict[str, NDArray[np.int64]]]:
        """Times `runs` runs; answers the array ``ns`` [runs]."""
        session, binding = self._session, self._binding
        return {}, {"ns": time_runs(lambda: session.run_with_iobinding(binding), runs)}


class TimedChain:
    """A `ChainService` in a worker process, as a subject of `optimc.measure.latency.measure`."""

    def __init__(self, name: str, layers: int) -> None:
        self.worker = Worker("optimc.testing.timed:ChainService", {"layers": layers}, name=name)

    def reopen(self) -> float:
        """See `optimc.measure.latency.Timed`."""
        return float(self.worker.call("reopen").data["ms"])

    def time_block(self, runs: int) -> NDArray[np.int64]:
        """See `optimc.measure.latency.Timed`."""
        import numpy as np

        return self.worker.call("time_block", runs=runs).arrays["ns"].astype(np.int64)
