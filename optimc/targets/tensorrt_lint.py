"""Finds what TensorRT would refuse or get wrong in an ONNX graph, without TensorRT or a GPU.

Each rule is a function of one node that says what is wrong, or None; `RULES` and those of
`tensorrt_lint_quantized` hold them with what helps. Sources: `tensorrt_support`, and NVIDIA
TensorRT, "Working with quantized types" and "Working with dynamic shapes".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimc.core.lint import Finding, Severity
from optimc.targets import tensorrt_support as support
from optimc.targets.tensorrt_support import PARSERS, Parser

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimc.core.model import OnnxModel


@dataclass(frozen=True)
class Setting:
    """What rules may look at beside the node."""

    model: ir.Model
    parser: Parser
    plugins: bool = False
    """Whether libraries are loaded that may bring operators of their own."""

    @property
    def opset(self) -> int:
        """Of the default domain."""
        return int(self.model.opset_imports.get("", 0))

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether the value is known when the engine is built."""
        if value is None:
            return True
        producer = value.producer()
        return value.const_value is not None or (
            producer is not None and producer.op_type == "Constant"
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is looked for."""

    name: str
    severity: Severity
    check: Callable[[ir.Node, Setting], str | None]
    fix: str


def lint(
    model: OnnxModel, parser: Parser | None = None, *, plugins: bool = False
) -> tuple[Finding, ...]:
    """All findings of `model` for a release, the oldest of `PARSERS` by default, in graph order.

    With `plugins`, operators that the parser does not have are left to them."""
    from optimc.targets.tensorrt_lint_quantized import QUANTIZED_RULES

    setting = Setting(model.ir, parser or PARSERS[0], plugins)
    findings = list(_of_model(setting))
    for node in model.ir.graph.all_nodes():
        findings += _of_node(node, setting, (*RULES, *QUANTIZED_RULES))
    return tuple(findings)


def _of_node(node: ir.Node, setting: Setting, rules: Iterable[Rule]) -> Iterator[Finding]:
    for rule in rules:
        reason = rule.check(node, setting)
        if reason is not None:
            label = node.name or node.outputs[0].name or "unnamed"
            yield Finding(label, node.op_type, rule.name, rule.severity, reason, rule.fix)


def _of_model(setting: Setting) -> Iterator[Finding]:
    parser = setting.parser
    if setting.opset > parser.max_opset:
        reason = f"TensorRT {parser}'s parser reads up to opset {parser.max_opset}"
        fix = "export with a lower opset"
        yield Finding("the model", f"opset {setting.opset}", "opset", "error", reason, fix)
    for value in setting.model.graph.inputs:
        if value.shape is None:
            reason = "its rank is not known, and an optimization profile needs it"
            fix = "say the input's shape under `inputs` in the recipe"
            yield Finding(value.name or "", "input", "rank", "error", reason, fix)
        user = _shape_from(value)
        if user is not None:
            reason = (
                f"its values decide a shape (at {user.name or user.op_type}), "
                "and an optimization profile would need their range"
            )
            fix = "make it a constant of the model: an engine for each value"
            yield Finding(value.name or "", "input", "shape_input", "error", reason, fix)


def _shape_from(value: ir.Value) -> ir.Node | None:
    """The first node that takes a shape from the integers of `value`; None where none does."""
    if dtype_of(value) not in ("int32", "int64"):
        return None
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        for node, index in ((use.node, use.idx) for use in current.uses()):
            if node.domain not in ("", "ai.onnx"):
                continue
            if index in support.SHAPE_INPUTS.get(node.op_type, ()):
                return node
            carried = index == 0 or node.op_type in ("Add", "Concat", "Max", "Min", "Mul")
            if node.op_type in support.SHAPE_ARITHMETIC and carried and id(node) not in seen:
                seen.add(id(node))
                waiting += [v for v in node.outputs if (rank_of(v) or 0) <= 1]
    return None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def dtype_of(value: ir.Value | None) -> str | None:
    """The type's name as numpy writes it, None where it is not known."""
    return None if value is None or value.dtype is None else ir_name(value.dtype)


def ir_name(dtype: int) -> str:
    """numpy's name of an ONNX element type."""
    import onnx_ir as ir

    name = ir.DataType(dtype).name.lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def rank_of(value: ir.Value | None) -> int | None:
    """The number of dims, None where it is not known."""
    return None if value is None or value.shape is None else len(value.shape)


def is_used(value: ir.Value) -> bool:
    """Whether a node or the model's outputs read the value."""
    return bool(value.uses()) or value.is_graph_output()


def _domain(node: ir.Node, setting: Setting) -> str | None:
    if node.domain in ("", "ai.onnx") or setting.plugins:
        return None
    key = (node.domain, node.op_type, node.overload)
    if key in setting.model.functions:
        return None  # the parser unfolds a model's own functions
    return f"operators of the domain {node.domain} need a plugin"


def _operator(node: ir.Node, setting: Setting) -> str | None:
    if node.domain not in ("", "ai.onnx") or setting.plugins:
        return None
    if node.op_type in support.UNSUPPORTED:
        return "the parser has no importer for it"
    first = support.FIRST_LISTED.get(node.op_type)
    if first is not None and first > setting.parser.release:
        return f"TensorRT {setting.parser} does not list it, {first[0]}.{first[1]} does"
    return None


def _types(node: ir.Node, setting: Setting) -> str | None:
    known = ((value.name, dtype_of(value)) for value in (*node.inputs, *node.outputs) if value)
    for name, dtype in known:
        if dtype is not None and dtype not in support.TYPES and dtype != "float64":
            return f"`{name}` is {dtype}, which TensorRT does not have"
    if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):
        dtype = ir_name(attribute(node, "to", 1))
        if dtype not in support.TYPES and dtype != "float64":
            return f"it casts to {dtype}, which TensorRT does not have"
    return None


def _double(node: ir.Node, setting: Setting) -> str | None:
    values = [v for v in (*node.inputs, *node.outputs) if v is not None]
    found = [v.name for v in values if dtype_of(v) == "float64"]
    return f"`{found[0]}` is float64, which is cast down to float32" if found else None


def _floats_only(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type not in support.FLOATS_ONLY or not node.inputs:
        return None
    dtype = dtype_of(node.inputs[0])
    if dtype in ("int64", "int32", "int8", "uint8", "bool"):
        return f"it works on floats, here on {dtype}"
    return None


def _uint8_inside(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return None  # see the rules of quantized graphs
    inputs, outputs = setting.model.graph.inputs, setting.model.graph.outputs
    if node.op_type == "Cast":
        inside = [v for v in node.inputs if v not in inputs]
        inside += [v for v in node.outputs if v not in outputs]
    else:
        inside = [v for v in (*node.inputs, *node.outputs) if v is not None]
    found = next((v for v in inside if dtype_of(v) == "uint8"), None)
    return f"`{found.name}` is uint8 inside the graph" if found is not None else None


def _constant_inputs(node: ir.Node, setting: Setting) -> str | None:
    for index in support.CONSTANT_INPUTS.get(node.op_type, ()):
        if index < len(node.inputs) and not setting.is_constant(node.inputs[index]):
            return f"its input {index} must be known when the engine is built"
    return None


def _data_dependent(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type in support.DATA_DEPENDENT:
        return "the size of its output is known only after the run"
    return None


def _loop(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type != "Loop":
        return None
    carried = len(node.inputs) - 2
    scans = node.outputs[carried:]
    if scans and not setting.is_constant(node.inputs[0]):
        return "its scan outputs have a length that the data decide"
    return None


def _branches(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type != "If":
        return None
    pair = [node.attributes[name].as_graph().outputs for name in ("then_branch", "else_branch")]
    for one, other in zip(*pair, strict=True):
        ranks = (rank_of(one), rank_of(other))
        if None not in ranks and ranks[0] != ranks[1]:
            return f"its branches give ranks {ranks[0]} and {ranks[1]} for one output"
    return None


def _pooling(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type not in ("AveragePool", "LpPool", "MaxPool"):
        return None
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and is_used(node.outputs[1]):
        return "its output `Indices` is not there"
    if any(step != 1 for step in attribute(node, "dilations", ())):
        return "its dilations must be 1"
    rank = rank_of(node.inputs[0])
    if rank is not None and rank not in (3, 4, 5):
        return f"it pools over two or three dims, here over {rank - 2}"
    return None


def _normalization(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type == "LayerNormalization" and any(is_used(v) for v in node.outputs[1:]):
        return "only its first output is there"
    return None


def _resize(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type != "Resize":
        return None
    if attribute(node, "mode", "nearest") == "cubic":
        return "the mode cubic is not there"
    if attribute(node, "antialias", 0):
        return "antialiasing is not there"
    mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if mode in ("tf_crop_and_resize", "half_pixel_symmetric"):
        return f"the coordinate transformation {mode} is not there"
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return "only the aspect ratio policy stretch is there"
    return None


def _topk(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type != "TopK":
        return None
    if not attribute(node, "sorted", 1):
        return "`sorted` must be 1"
    count = node.inputs[1].const_value if node.inputs[1] is not None else None
    if count is not None and int(count.numpy().max()) >= support.GREATEST_TOPK:
        return f"K must be less than {support.GREATEST_TOPK}"
    return None


def _scatter(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type == "ScatterND" and attribute(node, "reduction", "none") != "none":
        return "only the reduction none is there"
    return None


def _recurrent(node: ir.Node, setting: Setting) -> str | None:
    if node.op_type == "LSTM" and attribute(node, "input_forget", 0):
        return "`input_forget` must be 0"
    if node.op_type in ("GRU", "LSTM", "RNN") and attribute(node, "layout", 0):
        return "`layout` must be 0"
    return None


def _random(node: ir.Node, setting: Setting) -> str | None:
    return "its seed is ignored" if node.op_type.startswith("Random") else None


def _training(node: ir.Node, setting: Setting) -> str | None:
    mode = node.inputs[2] if node.op_type == "Dropout" and len(node.inputs) > 2 else None
    if mode is None:
        return None
    constant = mode.const_value
    if constant is None or bool(constant.numpy().any()):
        return "`training_mode` must be the constant false"
    return None


def _grid(node: ir.Node, setting: Setting) -> str | None:
    rank = rank_of(node.inputs[0]) if node.op_type == "GridSample" else None
    return f"its input must have 4 dims, not {rank}" if rank not in (None, 4) else None


_DROP = "drop the output that needs it, or do this step after the engine"
RULES = (
    Rule("domain", "error", _domain, "name the plugin's library in `plugins`"),
    Rule("operator", "error", _operator, f"put `simplify` first, which may fold it away; {_DROP}"),
    Rule("dtype", "error", _types, "cast it to float32, int32 or int64"),
    Rule("double", "warning", _double, "cast it to float32 in the model, where you can check it"),
    Rule("floats_only", "error", _floats_only, "put a Cast to float32 before it and one behind"),
    Rule("uint8_inside", "error", _uint8_inside, "cast the input from uint8 at once"),
    Rule("constant_input", "error", _constant_inputs, "put `simplify` first, which folds shapes"),
    Rule("data_dependent", "warning", _data_dependent, "expect a copy through the allocator"),
    Rule("loop", "error", _loop, "give the Loop a constant trip count"),
    Rule("branches", "error", _branches, "give both branches outputs of one rank"),
    Rule("pooling", "error", _pooling, _DROP),
    Rule("normalization", "error", _normalization, _DROP),
    Rule("resize", "error", _resize, "use linear or nearest without antialiasing"),
    Rule("topk", "error", _topk, "ask for fewer, sorted"),
    Rule("scatter", "error", _scatter, "use ScatterElements, or add in an operator of its own"),
    Rule("recurrent", "error", _recurrent, "export with the default layout"),
    Rule("random", "warning", _random, "make the noise an input of the model"),
    Rule("training", "error", _training, "export the model in evaluation mode"),
    Rule("grid", "error", _grid, "sample one image at a time"),
)
