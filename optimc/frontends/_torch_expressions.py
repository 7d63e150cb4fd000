"""What a `.pt2` file may let torch evaluate: sizes, guards, operators. See `_torch_archives`.

Expressions of sizes go to `sympy.sympify` and guards to `exec`; both evaluate Python. Here they
are parsed, never evaluated, and held against the little that torch itself writes. Every check
returns what is wrong with the text, or None.
"""

from __future__ import annotations

import ast
import re

_MOST_LETTERS = 20_000
_MOST_EXPONENT = 16
_MOST_NUMBER = 2**64


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTIONS = _words(
    "Symbol Integer Rational Float Add Mul Pow Max Min Abs Mod floor ceiling sqrt And Or Not Eq Ne "
    "Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan "
    "Piecewise ExprCondPair Tuple FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt "
    "FloorToInt CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv "
    "IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat "
    "Identity"
)
"""What expressions of sizes call: classes of sympy, and those that torch adds."""
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Constant, ast.Name),
    *(ast.Call, ast.keyword, ast.Tuple, ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_OF_TENSORS = frozenset({"size", "shape", "stride", "storage_offset", "dim", "ndim"})
_OF_MATH = _words(
    "trunc ceil floor sqrt inf nan cos cosh acos sin sinh asin tan tanh atan exp log log2"
)
_IN_GUARDS = _words("max min abs round int float cast_symbool_to_symint_guardless")
"""What guards call beside the functions of sizes: they are printed as Python."""

_TARGET = re.compile(
    r"torch\.ops\.(?P<space>\w+)\.(?P<name>\w+)(\.(?!__)\w+)?"
    r"|_operator\.(eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|getitem"
    r"|lshift|rshift)|math\.(trunc|ceil|floor)|torch\._?sym_\w+",
    re.ASCII,
)
_SPACES = _words(
    "aten prims prim quantized quantized_decomposed onnx torchvision torchaudio torchao"
)
_HIGHER_ORDER = _words(
    "cond while_loop scan map_impl associative_scan invoke_subgraph wrap_with_set_grad_enabled "
    "wrap_with_autocast hints_wrapper auto_functionalized auto_functionalized_v2"
)
"""Operators that take graphs. Others load compiled code or call what the file names."""
_SPECIAL = _words("__and__ __or__ __xor__ __lshift__ __rshift__ __contains__")
_FILES = frozenset({"from_file"})


def wrong_with_operator(target: str) -> str | None:
    """Why this name of an operator is refused: torch takes any attribute below `torch` for one."""
    match = _TARGET.fullmatch(target)
    if match is None:
        return "is no operator"
    space, name = match["space"], match["name"]
    if space is None:
        return None
    if space == "higher_order":
        return None if name in _HIGHER_ORDER else "may load or call other code"
    if space not in _SPACES:
        return f"is of the library `{space}`, which is not known to compute alone"
    if name in _FILES:
        return "opens files"
    return "is no operator" if name.startswith("__") and name not in _SPECIAL else None


def wrong_with_size(text: str) -> str | None:
    """Why this expression of a size is refused."""
    return _wrong(text, guard=False)


def wrong_with_guard(text: str) -> str | None:
    """Why this condition on the inputs is refused."""
    return _wrong(text, guard=True)


def _wrong(text: str, *, guard: bool) -> str | None:
    if len(text) > _MOST_LETTERS:
        return f"it has {len(text):,} letters"
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it is no expression"
    for node in ast.walk(tree):
        reason = _wrong_node(node, guard=guard)
        if reason is not None:
            return reason
    return None


def _wrong_node(node: ast.AST, *, guard: bool) -> str | None:
    if isinstance(node, ast.Constant):
        return _wrong_constant(node.value)
    if isinstance(node, ast.Call):
        return _wrong_call(node, guard=guard)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _wrong_power(node.left, node.right)
    if isinstance(node, ast.Attribute | ast.Subscript):
        return None if guard and _of_inputs(node) else "it takes parts of things"
    if isinstance(node, ast.IfExp) and guard:
        return None
    if isinstance(node, ast.Name):
        return "it uses a hidden name" if node.id.startswith("__") else None
    return None if isinstance(node, _NODES) else f"it holds a {type(node).__name__}"


def _wrong_constant(value: object) -> str | None:
    if isinstance(value, str):  # the names of symbols and inputs; they end up in source code
        return None if re.fullmatch(r"[\w.]*", value) else "it holds a text that is no name"
    if not isinstance(value, int | float):
        return f"it holds a {type(value).__name__}"
    return "its numbers are too great" if abs(value) > _MOST_NUMBER and value != _INFINITE else None


_INFINITE = float("inf")


def _wrong_call(node: ast.Call, *, guard: bool) -> str | None:
    if isinstance(node.func, ast.Name):
        if node.func.id not in _FUNCTIONS and not (guard and node.func.id in _IN_GUARDS):
            return f"it calls `{node.func.id}`"
        if node.func.id in _POWERS:
            return "it is no power" if len(node.args) != 2 else _wrong_power(*node.args)
        return None
    return None if guard and _of_inputs(node.func) else "it calls something"


def _wrong_power(base: ast.expr, exponent: ast.expr) -> str | None:
    """Powers of powers and great exponents would take all memory."""
    number = exponent.operand if isinstance(exponent, ast.UnaryOp) else exponent
    if isinstance(number, ast.Call) and len(number.args) == 1:
        number = number.args[0]  # Integer(2)
    if not isinstance(number, ast.Constant) or not isinstance(number.value, int | float):
        return "its exponent is no number"
    nested = any(
        (isinstance(part, ast.BinOp) and isinstance(part.op, ast.Pow | ast.LShift))
        or (isinstance(part, ast.Name) and part.id in _POWERS)
        for part in ast.walk(base)
    )
    return "it is a power too great" if nested or abs(number.value) > _MOST_EXPONENT else None


def _of_inputs(node: ast.expr) -> bool:
    """Whether it is the size or the like of an input, ``L['x'].size()[0]``, or a plain function."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id == "math":
            return node.attr in _OF_MATH
        if node.value.id == "torch":
            return node.attr.removeprefix("_").startswith("sym_")
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        if isinstance(node, ast.Attribute) and node.attr not in _OF_TENSORS:
            return False
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Name) and node.id == "L"
