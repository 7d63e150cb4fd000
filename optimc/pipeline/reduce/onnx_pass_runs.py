"""One pass on one ONNX file, as the pass manager runs it. Imports onnx_ir at the top."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir

from optimc.core.analyses import Analyses
from optimc.core.errors import CellError, OptimcError
from optimc.core.model import OnnxModel
from optimc.core.passes import Pass, PassContext, RewriteLog
from optimc.frontends import onnx_normal
from optimc.frontends.onnx import name_dim

if TYPE_CHECKING:
    from optimc.core.targets import TargetSpec


def run_on_file(
    pass_: Pass, path: Path, result: Path, workspace: Path, spec: TargetSpec | None
) -> None:
    """Writes what `pass_` makes of the model at `path` to `result`.

    Raises PreconditionError and other OptimcErrors as the pass does, CellError where it breaks.
    """
    graph = onnx_normal.read(path)
    onnx_ir.external_data.load_to_model(graph)
    onnx_normal.strip_metadata(graph)
    onnx_normal.inline_functions(graph)
    onnx_normal.initializers_off_inputs(graph)
    onnx_normal.name_dims(graph, {}, name_dim)
    onnx_normal.finish(graph)
    model = OnnxModel(graph)
    with tempfile.TemporaryDirectory(dir=workspace) as folder:
        context = PassContext(
            reads=pass_.needs,
            log=RewriteLog(),
            seed=0,
            workspace=Path(folder),
            target_spec=spec,
            analyses=Analyses(model),
        )
        clone = model.clone()
        try:
            pass_.check(clone, context)
            after = pass_.run(clone, context).model
        except OptimcError:
            raise
        except Exception as error:
            raise CellError(f"the pass broke: {type(error).__name__}: {error}") from error
        assert isinstance(after, OnnxModel)
        after.sealed().write_onnx(result)
