"""Making third-party packages for tests: real entry points in a folder, without an install."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

WRONG_PASS = '''
"""A pass that is wrong on purpose: it scales every output by a little."""

from __future__ import annotations

from optimc.core.model import Level
from optimc.core.passes import Effect, Pass, tolerance


class ScaleOutputs(Pass):
    """Scales outputs, wrongly.

    Rewrites: every output. Refuses: nothing. Accuracy: claims 1e-5, breaks it. Options: none.
    """

    level = Level.ONNX

    @property
    def effect(self) -> Effect:
        return tolerance(1e-5)

    def run(self, model, context):
        import numpy as np
        import onnx_ir as ir

        from optimc.core.passes import PassResult

        graph = model.ir.graph
        for index, output in enumerate(list(graph.outputs)):
            if not context.log.allow("scale", output.name):
                continue
            name, inner = output.name, output
            factor = ir.val(f"{name}_factor", const_value=ir.tensor(np.array(1.01, np.float32)))
            graph.register_initializer(factor)
            node = ir.node("Mul", [inner, factor])
            scaled = node.outputs[0]
            scaled.shape, scaled.dtype = inner.shape, inner.dtype
            inner.name = f"{name}_before"
            scaled.name = name
            graph.append(node)
            graph.outputs[index] = scaled
        return PassResult(model, True, rewrites=context.log.rewrites)
'''


def make_plugin(
    folder: Path, name: str, module: str, entry_points: Mapping[str, Mapping[str, str]]
) -> Path:
    """Writes a distribution `name` with one module into `folder`, to be put on PYTHONPATH.

    `entry_points` maps a group to names and objects (``{"optimc.passes": {"x": "mod:Class"}}``).
    """
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{name}.py").write_text(module, encoding="utf-8")
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    lines = []
    for group, entries in entry_points.items():
        lines.append(f"[{group}]")
        lines += [f"{key} = {value}" for key, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


WRONG_REWRITE = '''
"""A pass of many numbered rewrites, one of which is wrong on purpose."""

from __future__ import annotations

from optimc.core.model import Level
from optimc.core.passes import Effect, Pass, PassResult, tolerance


class CopyWeights(Pass):
    """Copies weights, wrongly.

    Rewrites: every matrix. Refuses: nothing. Accuracy: claims 1e-5, breaks it. Options: together.
    """

    level = Level.ONNX
    together: int = 1
    """How many copies in the middle have to be made for the fault to show."""

    @property
    def effect(self) -> Effect:
        return tolerance(1e-5)

    def run(self, model, context):
        import numpy as np
        import onnx_ir as ir

        graph = model.ir.graph
        matrices = [
            value
            for value in graph.initializers.values()
            if value.const_value is not None
            and len(value.const_value.shape) >= 2
            and value.const_value.numpy().dtype == np.float32
        ]
        middle = matrices[len(matrices) // 2 :][: self.together]
        done = []
        for value in matrices:
            if context.log.allow("copy_weight", value.name):
                value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
                done.append(value)
        if all(any(value is one for one in done) for value in middle):
            wrong = middle[-1]
            scaled = wrong.const_value.numpy() * np.float32(-3)
            wrong.const_value = ir.tensor(scaled, name=wrong.name)
        return PassResult(model, bool(done), rewrites=context.log.rewrites)
'''
