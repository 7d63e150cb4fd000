"""Constant folding for `simplify`, on onnxscript's folder. Imports onnxscript at the top.

onnxscript decides what can be computed and computes it with onnx's reference implementation. Here
each fold gets its number, what must not or cannot be folded is refused with the reason *before* it
is computed (a fold can ask for gigabytes or minutes), and a result is taken only where its dtype
and shape are those that shape inference gives.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnxscript.optimizer._constant_folding import (
    FoldConstantsPass,
    FoldConstantsResult,
    Replacement,
)

from optimc.core.onnx_names import NameTable, make_names_unique
from optimc.passes._simplify_check import contradiction, fits
from optimc.passes._simplify_graph import RANDOM
from optimc.passes._simplify_shapes import filled
from optimc.passes._simplify_work import (
    ANCHOR_DOMAIN,
    BREAKS_RANGE,
    Work,
    breaks_range,
    detach_subgraphs,
    is_identity,
    keep_source,
    where,
)

MOVES_DATA = frozenset(
    {
        "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather",
        "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Reverse", "ScatterElements",
        "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu",
        "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators that copy elements and compute none."""

BOUNDED_BY_INPUT = frozenset({"Compress", "NonZero", "Unique"})
"""Operators whose result depends on the data in size, but is never beyond the input's."""

HEAVY = frozenset(
    {
        "AffineGrid", "Attention", "AveragePool", "Conv", "ConvTranspose", "DFT", "DeformConv",
        "Det", "Einsum", "GRU", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample",
        "LRN", "LSTM", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "MelWeightMatrix",
        "NonMaxSuppression", "RNN", "Resize", "RoiAlign", "STFT", "TfIdfVectorizer", "TopK",
        "Upsample",
    }
)  # fmt: skip
"""Operators whose reference implementation takes long for its size."""

_QUANTIZERS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})

DISPUTED = frozenset({"MaxUnpool", "Resize", "Upsample"})
"""Operators for which onnx's reference implementation and ONNX Runtime do not always agree."""

_IS_RANDOM = "a random operator gives another result at each run"
_LONGEST_SHAPE = 1024
_HEAVY_ELEMENTS = 2**16
_MATRIX_PRODUCTS = frozenset({"Gemm", "MatMul"})
_PRODUCT_OPERATIONS = 2**31

LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What onnxscript's evaluators raise on graphs that they did not expect."""


def fold_constants(work: Work) -> None:
    """Computes what depends on constants and known dims alone."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        _Folder(work).call(work.model)


class _Folder(FoldConstantsPass):
    def __init__(self, work: Work) -> None:
        super().__init__(
            shape_inference=True,
            input_size_limit=sys.maxsize,
            output_size_limit=sys.maxsize,
            should_fold=self._should_fold,
        )
        self._work = work

    def call(self, model: ir.Model) -> FoldConstantsResult:
        before = self._work.count
        self._reset()
        self._opset_imports = model.opset_imports
        self.visit_graph(model.graph)
        return FoldConstantsResult(model, self._work.count > before, {})

    def visit_graph(self, graph: ir.Graph) -> None:
        # The inherited method also renames values to the names of outputs: anchors do that.
        for node in graph:
            if self._work.stopped:
                return
            self.visit_node(node, graph)

    def process_node(self, node: ir.Node, is_function: bool) -> Replacement | None:
        if node.domain == ANCHOR_DOMAIN:
            return None
        # Per-node inference is the folder's greatest cost, and whole-model inference came before.
        self.shape_inference = not _is_inferred(node)
        if is_identity(node) or self._is_blocked(node):
            self._do_inference(node)
            return None
        if node.op_type == "If" and not self._may_inline(node):
            return None
        if self._shape_is_long(node):
            self._do_inference(node)
            return None
        self._reshape_to_known(node)
        try:
            replacement = super().process_node(node, is_function)
        except LIBRARY_ERRORS as error:
            self._refuse(node, f"onnxscript cannot evaluate it: {text_of(error)}")
            return None
        if replacement is None or node.op_type == "If":
            return replacement
        reason = self._wrong(node, replacement)
        if reason is not None:
            self._refuse(node, reason)
        elif self._work.allow("fold_constant", where(node)):
            return replacement
        self._take_back(node, replacement)
        return None

    def replace_node(
        self, node: ir.Node, replacement: Replacement, root: ir.Graph | ir.Function
    ) -> None:
        for old, new in zip(node.outputs, replacement.new_outputs, strict=True):
            keep_source(new, old)
        inlined = node.op_type == "If"
        if inlined:
            for moved in replacement.new_nodes:
                moved.domain = "" if moved.domain == ANCHOR_DOMAIN else moved.domain
            detach_subgraphs(node)
        ir.convenience.replace_nodes_and_values(
            root, node, [node], replacement.new_nodes, node.outputs, replacement.new_outputs
        )
        if inlined:
            # Names that were apart in two branches may now be in one graph.
            make_names_unique(self._work.model)
            self._work.names = NameTable.of_values(self._work.model)

    def _name_nodes(self, node: ir.Node, replacement: Replacement) -> None:
        for new in replacement.new_nodes:
            new.name = node.name if len(replacement.new_nodes) == 1 else None
            for value in new.outputs:
                value.name = self._work.names.unique(f"{where(node)}_{new.op_type}")

    def _is_blocked(self, node: ir.Node) -> bool:
        """Whether the node is left alone; told where it could have been folded."""
        constant = all(v is None or v.const_value is not None for v in node.inputs)
        if node.domain != "":
            return True
        if node.op_type in _QUANTIZERS:
            if constant:
                self._refuse(node, "quantized values stay, to keep where they are quantized")
            return True
        if node.op_type in RANDOM - {"Dropout"}:
            self._refuse(node, _IS_RANDOM)
            return True
        # Two evaluators of onnxscript forget an attribute.
        if node.op_type == "SplitToSequence":
            return node.attributes.get_int("keepdims", 1) == 0
        return node.op_type == "CastLike" and node.attributes.get_int("saturate", 1) == 0

    def _shape_is_long(self, node: ir.Node) -> bool:
        """Whether the evaluators would follow a shape value of absurd length, as doubling Concats
        give."""
        if node.op_type == "Gather" and node.inputs[1] is not None:
            indices = node.inputs[1].const_value
            return indices is not None and indices.size > _LONGEST_SHAPE
        if node.op_type != "Concat":
            return False
        known = (self._state.get_sym_value(value) for value in node.inputs)
        return sum(len(s) for s in known if isinstance(s, ir.Shape)) > _LONGEST_SHAPE

    def _reshape_to_known(self, node: ir.Node) -> None:
        """Gives a Reshape the shape that its second input is known to hold."""
        if node.op_type != "Reshape":
            return
        target = self._state.get_sym_value(node.inputs[1])
        if isinstance(target, ir.Shape) and all(
            dim > 0 if isinstance(dim, int) else dim.value is not None for dim in target
        ):
            node.outputs[0].shape = filled(node.outputs[0].shape, ir.Shape(target))

    def _may_inline(self, node: ir.Node) -> bool:
        """Whether the branch of an If is known and may be taken; onnxscript then takes it."""
        condition = node.inputs[0]
        tensor = condition.const_value if condition is not None else None
        if tensor is None or tensor.dtype != ir.DataType.BOOL or tensor.size != 1:
            return False
        return self._work.allow("take_known_branch", where(node))

    def _should_fold(self, node: ir.Node) -> bool:
        reason = _why_not(node, self._work)
        if reason is not None:
            self._refuse(node, reason)
        return reason is None

    def _refuse(self, node: ir.Node, reason: str) -> None:
        self._work.log.refuse("fold_constant", where(node), reason)

    def _wrong(self, node: ir.Node, replacement: Replacement) -> str | None:
        """Why the replacement contradicts what is known of the node's outputs."""
        for old, new in zip(node.outputs, replacement.new_outputs, strict=True):
            if new.is_initializer() and new.const_value is not None:
                tensor = new.const_value
                if old.dtype is not None and tensor.dtype != old.dtype:
                    return f"the result is {tensor.dtype.name}, {old.dtype.name} was inferred"
                if not fits(ir.Shape(tensor.shape.numpy()), old.shape):
                    return f"the result has the shape {tensor.shape}, {old.shape} was inferred"
        self._name_nodes(node, replacement)
        return contradiction(
            self._work.model, replacement.new_nodes, node.outputs, replacement.new_outputs
        )

    def _take_back(self, node: ir.Node, replacement: Replacement) -> None:
        """Undoes what the evaluation left in the graph: the initializer, and uses by new nodes."""
        for new in replacement.new_outputs:
            if new.is_initializer() and not new.uses() and new.graph is node.graph:
                assert node.graph is not None
                node.graph.initializers.pop(new.name or "", None)
        for new_node in replacement.new_nodes:
            for index in range(len(new_node.inputs)):
                new_node.replace_input_with(index, None)


def _is_inferred(node: ir.Node) -> bool:
    """Whether inference has no more to say: dims are numbers, or names where inputs are dynamic."""
    constant = all(value is None or value.const_value is not None for value in node.inputs)
    return all(
        value.dtype is not None
        and value.shape is not None
        and all(isinstance(d, int) or (d.value is not None and not constant) for d in value.shape)
        for value in node.outputs
    )


def text_of(error: BaseException) -> str:
    cause = error.__cause__ or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:200]


def _why_not(node: ir.Node, work: Work) -> str | None:
    """Why a node with constant inputs is not folded, or None."""
    if len(node.outputs) != 1:
        return "nodes with several outputs are not folded"
    checks: tuple[Callable[[ir.Node, Work], str | None], ...] = (
        _by_type,
        _by_reader,
        _by_size,
        _by_effort,
    )
    return next((reason for check in checks if (reason := check(node, work)) is not None), None)


def _by_type(node: ir.Node, work: Work) -> str | None:
    output = node.outputs[0]
    dtypes = [value.dtype for value in (*node.inputs, output) if value is not None]
    if ir.DataType.STRING in dtypes:
        return "strings are not folded"
    if node.op_type in RANDOM:
        return _IS_RANDOM
    if node.op_type in DISPUTED:
        return f"runtimes do not agree on every case of {node.op_type}"
    if output.dtype is None or not output.dtype.is_floating_point() or node.op_type in MOVES_DATA:
        return None
    if work.quantized:
        return "float arithmetic stays as it is in a quantized graph"
    if output.dtype.bitwidth < 32:
        return "runtimes round half-precision arithmetic in different places"
    return None


def _by_reader(node: ir.Node, work: Work) -> str | None:
    return BREAKS_RANGE if breaks_range(node.outputs[0], node.outputs[0]) else None


def _by_size(node: ir.Node, work: Work) -> str | None:
    output = node.outputs[0]
    inputs = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    if output.dtype is None or output.shape is None or not output.shape.is_static():
        if node.op_type in BOUNDED_BY_INPUT and sum(t.nbytes for t in inputs) <= work.fold_limit:
            return None
        return "the size of the result is not known before it is computed"
    size = math.prod(output.shape.numpy()) * output.dtype.bitwidth // 8
    replaced = sum(
        v.const_value.nbytes
        for v in node.inputs
        if v is not None and v.const_value is not None and len(v.uses()) == 1
    )
    if size > max(work.fold_limit, replaced):
        return f"the result would have {size:,} bytes, fold_limit is {work.fold_limit:,}"
    return None


def _by_effort(node: ir.Node, work: Work) -> str | None:
    inputs = [v.const_value for v in node.inputs if v is not None and v.const_value is not None]
    shape = node.outputs[0].shape
    elements = math.prod(shape.numpy()) if shape is not None and shape.is_static() else 0
    if node.op_type in _MATRIX_PRODUCTS:
        dims = inputs[0].shape.numpy() or (1,)
        depth = max(dims[-1], dims[0]) if node.op_type == "Gemm" else dims[-1]
        if elements * depth > _PRODUCT_OPERATIONS:
            return f"the product takes {elements * depth:,} operations"
    elif node.op_type in HEAVY and elements + sum(t.size for t in inputs) > _HEAVY_ELEMENTS:
        return f"computing {node.op_type} on this many elements takes too long"
    return None
