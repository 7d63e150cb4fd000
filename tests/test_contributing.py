"""The example pass in CONTRIBUTING.md does what the page says."""

from __future__ import annotations

import importlib.util
import re
import sys
from typing import TYPE_CHECKING

import onnx
import onnx.parser
import onnx_ir
import pytest

from optimc.core.model import OnnxModel
from optimc.core.passes import Pass, PassContext, RewriteLog

if TYPE_CHECKING:
    from pathlib import Path

MODEL = """
<ir_version: 10, opset_import: ["" : 18]>
g (float[2] x) => (float[2] y, float[2] z) {
    a = Relu (x)
    b = Dropout (a)
    y = Neg (b)
    z = Dropout (a)
}
"""


@pytest.fixture
def example(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Pass]:
    page = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "remove_dropout.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("remove_dropout", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "remove_dropout", module)
    spec.loader.exec_module(module)
    found: type[Pass] = module.RemoveDropout
    return found


def test_example_pass_rewrites_and_refuses(example: type[Pass], tmp_path: Path) -> None:
    model = OnnxModel(onnx_ir.from_proto(onnx.parser.parse_model(MODEL)))
    context = PassContext(example.reads, RewriteLog(), 0, tmp_path)
    result = example().run(model.clone(), context)
    assert isinstance(result.model, OnnxModel)
    assert [node.op_type for node in result.model.ir.graph] == ["Relu", "Neg", "Dropout"]
    assert result.modified
    assert [rewrite.where for rewrite in result.rewrites] == ["b"]
    assert [(refusal.where, refusal.reason) for refusal in result.refusals] == [
        ("z", "it gives an output of the model")
    ]
    onnx.checker.check_model(onnx_ir.to_proto(result.model.ir), full_check=True)
    assert example.pass_name() == "remove_dropout"


def test_example_pass_keeps_to_the_limit(example: type[Pass], tmp_path: Path) -> None:
    model = OnnxModel(onnx_ir.from_proto(onnx.parser.parse_model(MODEL)))
    result = example().run(model, PassContext(example.reads, RewriteLog(limit=0), 0, tmp_path))
    assert not result.modified
    assert len(model.ir.graph) == 4
