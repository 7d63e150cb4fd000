"""Imports run one way, and nothing heavy loads at start-up: read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "optimc": "optimc",
    "optimc.passes": "passes",
    "optimc.calibration": "calibration",
    "optimc.recipes": "recipes",
}

# What each part may import of ours, besides itself and the version in `optimc`.
CORE = {"core"}
MIDDLE = CORE | {"calibration"}
ALLOWED = {
    "": set(),
    "core": set(),
    "recipes": set(),
    "calibration": CORE,
    "passes": MIDDLE,
    "targets": MIDDLE,
    "measure": MIDDLE,
    "report": MIDDLE,
    "frontends": MIDDLE,
    "pipeline": MIDDLE | {"passes", "targets", "measure", "report", "frontends"},
    "cli": MIDDLE | {"passes", "targets", "measure", "report", "frontends", "pipeline", "recipes"},
    "__main__": {"cli"},
}
ALLOWED["testing"] = set(ALLOWED) - {"cli", "__main__"}

HEAVY = {
    "PIL",
    "jinja2",
    "nncf",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "openvino",
    "pyarrow",
    "scipy",
    "tokenizers",
    "torch",
}
# A module that works on graphs throughout may import them at its top if its name shows it: it is
# private (`_simplify_fold`), a worker's service (`oracle_service`) or of ONNX (`onnx_digest`), and
# the others import it inside functions. These are named otherwise:
HEAVY_BY_EXCEPTION = {"optimc.calibration.observable"}


@dataclass(frozen=True)
class Import:
    """`module` as written; `names` of a from-import; whether it runs when its file is imported."""

    module: str
    names: tuple[str, ...]
    line: int
    at_start: bool


def is_type_checking(test: ast.expr) -> bool:
    """Whether an if statement's condition is TYPE_CHECKING."""
    return "TYPE_CHECKING" in ast.unparse(test)


def imports_in(node: ast.AST, at_start: bool = True) -> Iterator[Import]:
    """Every import below the node, those in functions and for annotations included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), child.lineno, at_start)
        elif isinstance(child, ast.ImportFrom):
            names = tuple(alias.name for alias in child.names)
            yield Import("." * child.level + (child.module or ""), names, child.lineno, at_start)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports_in(child, at_start=False)
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            for statement in child.body:
                yield from imports_in(ast.Module([statement], []), at_start=False)
            for statement in child.orelse:
                yield from imports_in(ast.Module([statement], []), at_start)
        else:
            yield from imports_in(child, at_start)


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    """The imports of one file."""
    return tuple(imports_in(ast.parse(path.read_text(encoding="utf-8"), str(path))))


def find_modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, scripts beside recipes left out."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if (path.parent / "__init__.py").exists():
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                name = ".".join((package, *parts)).removesuffix(".__init__")
                found[name] = path
    return found


MODULES = find_modules()


def layer_of(module: str) -> str:
    """`optimc.passes.simplify` -> `passes`; the top module is ``."""
    return module.partition(".")[2].partition(".")[0]


def targets_of(entry: Import) -> list[str]:
    """The modules of ours that one import names: `from optimc import cli` names `optimc.cli`."""
    if entry.module.partition(".")[0] != "optimc":
        return []
    children = [f"{entry.module}.{name}" for name in entry.names]
    found = [child for child in children if child in MODULES]
    return found if len(found) == len(children) and found else [entry.module, *found]


def test_every_part_has_its_place() -> None:
    parts = {layer_of(module) for module in MODULES}
    assert parts <= set(ALLOWED), "a new part needs its line in ALLOWED"
    assert {"core", "passes", "calibration", "recipes", "targets", "measure"} <= parts


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_run_downwards(module: str) -> None:
    layer = layer_of(module)
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{entry.line} imports {target}"
        for entry in imports_of(MODULES[module])
        for target in targets_of(entry)
        if target != "optimc" and layer_of(target) not in ALLOWED[layer] | {layer}
    ]
    assert not wrong, f"{layer or 'optimc'} may import {sorted(ALLOWED[layer])} only"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_of_ours_exist(module: str) -> None:
    """A function-level import of a module that was renamed would fail at a user's first."""
    missing = [
        f"{MODULES[module].relative_to(ROOT)}:{entry.line} imports {target}"
        for entry in imports_of(MODULES[module])
        for target in targets_of(entry)
        if target not in MODULES
    ]
    assert not missing


def test_nobody_imports_the_folders_by_their_bare_names() -> None:
    """In a user's environment, `import calibration` is the user's own."""
    files = [
        path
        for folder in (*PACKAGES.values(), "tests", "bench", ".ci")
        for path in sorted((ROOT / folder).rglob("*.py"))
    ]
    wrong = [
        f"{path.relative_to(ROOT)}:{entry.line} imports {entry.module}"
        for path in files
        for entry in imports_of(path)
        if entry.module.partition(".")[0] in {"passes", "calibration", "recipes", "tests", ""}
    ]
    assert len(files) > len(MODULES)
    assert not wrong


def may_be_heavy(module: str) -> bool:
    """Whether the module's name says that importing it may load heavy libraries."""
    leaf = module.rpartition(".")[2]
    private = leaf.startswith("_") and not leaf.startswith("__")
    named = private or leaf.startswith("onnx_") or leaf.endswith("_service")
    return named or module in HEAVY_BY_EXCEPTION


def heavy_imports(module: str) -> list[str]:
    """The imports of heavy libraries that run when the module is imported."""
    return [
        f"{MODULES[module].relative_to(ROOT)}:{entry.line} imports {entry.module}"
        for entry in imports_of(MODULES[module])
        if entry.at_start and entry.module.partition(".")[0] in HEAVY
    ]


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not may_be_heavy(name)))
def test_heavy_imports_are_lazy(module: str) -> None:
    assert not heavy_imports(module), "import it inside the function that needs it"


def test_list_of_exceptions_is_current() -> None:
    assert all(module in MODULES and heavy_imports(module) for module in HEAVY_BY_EXCEPTION)


def with_parents(module: str) -> list[str]:
    """Importing `a.b.c` runs `a` and `a.b` too."""
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def loaded_by(start: str) -> dict[str, str]:
    """Modules of ours that importing one of them loads, each with the module that asked for it."""
    asked_by = dict.fromkeys(with_parents(start), start)
    waiting = list(asked_by)
    while waiting:
        module = waiting.pop()
        if module not in MODULES:
            continue
        for entry in imports_of(MODULES[module]):
            for target in targets_of(entry) if entry.at_start else []:
                new = [name for name in with_parents(target) if name not in asked_by]
                asked_by.update(dict.fromkeys(new, module))
                waiting += new
    return asked_by


@pytest.mark.parametrize("module", sorted(name for name in MODULES if not may_be_heavy(name)))
def test_start_up_loads_nothing_heavy(module: str) -> None:
    """`optimc --help` and `optimc check` must not pay 0.8 s for a graph library."""
    wrong = [
        f"{asker} imports {loaded}"
        for loaded, asker in loaded_by(module).items()
        if loaded in MODULES and heavy_imports(loaded)
    ]
    assert not wrong, "import it inside the function that needs it"
