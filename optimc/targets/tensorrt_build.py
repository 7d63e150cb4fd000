"""Builds TensorRT plans (10.12 and newer, 11) from ONNX: strongly typed, the graph says the types.

TensorRT 11 has no calibrators, precision flags or weak typing any more, so none is used on 10
either. Enumerations were renumbered between the two: every flag is looked up by its name, and no
integer of one is ever stored. API: NVIDIA TensorRT, Python API reference, `tensorrt.Builder`,
`IBuilderConfig`, `OnnxParser`, `IProgressMonitor`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core import progress
from optimc.core.errors import CellError

if TYPE_CHECKING:
    from types import ModuleType

_KEPT = 20
"""Warnings of one build that are kept."""

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Of each dynamic input: the least, the usual and the greatest shape."""


@dataclass(frozen=True)
class PlanOptions:
    """What the builder is told; every name is TensorRT's own."""

    profiles: Sequence[Shapes] = ()
    """Optimization profiles; none where all shapes are fixed."""
    optimization_level: int = 3
    workspace_mb: int | None = None
    """Memory pool for scratch space; None is all of the GPU's."""
    shared_memory_kb: int | None = None
    """Memory pool of one kernel's shared memory; None is the GPU's limit."""
    flags: frozenset[str] = frozenset()
    """Names of `BuilderFlag` that are set."""
    hardware_compatibility: str = "NONE"
    """The name of a `HardwareCompatibilityLevel`."""
    plugins: Sequence[Path] = ()
    """Plugin libraries that are loaded before the model is parsed."""
    weight_streaming_mb: int | None = None
    """Memory on the GPU for weights that a run may stream in; None keeps all of them there."""
    timing_cache: bytes = b""
    """A cache of an earlier build; empty starts a new one."""


@dataclass(frozen=True)
class Plan:
    """A serialized engine and what its build left."""

    engine: bytes
    timing_cache: bytes


@dataclass
class Console:
    """Where TensorRT's log and progress go."""

    log: Callable[[str, str], None] = field(default=lambda severity, message: None)
    """Takes the severity's name and the message."""
    progress: Callable[[str, int, int], bool] = field(default=lambda phase, step, steps: True)
    """Takes a phase's name, the step that is done and the number of steps; False cancels."""


@dataclass
class Log:
    """TensorRT's warnings, each once, and its progress as the build's own."""

    warnings: list[str] = field(default_factory=list)

    def take(self, severity: str, message: str) -> None:
        """Keeps a warning; the errors are in the message where the build fails."""
        line = f"TensorRT: {message.strip()}"
        if severity == "WARNING" and line not in self.warnings and len(self.warnings) < _KEPT:
            self.warnings.append(line)

    def show(self, phase: str, step: int, steps: int) -> bool:
        """Tells whoever waits for this worker; never cancels."""
        progress.tell(step / steps if steps else 0.0, f"TensorRT: {phase}")
        return True


def build_plan(model: Path, options: PlanOptions, console: Console | None = None) -> Plan:
    """The plan of the ONNX file `model` for the current GPU.

    Raises CellError where TensorRT refuses: with the node where its parser does, with its last
    errors where its builder does.
    """
    import tensorrt as trt

    console = console or Console()
    errors: list[str] = []
    logger = new_logger(trt, console, errors)
    builder = trt.Builder(logger)
    for library in options.plugins:
        _load_plugins(builder.get_plugin_registry(), library)
    network = builder.create_network(_strongly_typed(trt))
    # The parser owns the weights: it has to outlive the build.
    parser = _parse(trt, network, logger, errors, model)
    config = builder.create_builder_config()
    _configure(trt, builder, config, options)
    monitor = _new_monitor(trt, console)  # by a name: TensorRT does not own it
    config.progress_monitor = monitor
    cache = config.create_timing_cache(options.timing_cache)
    # A cache of another TensorRT or GPU is not used, and not an error.
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    serialized = builder.build_serialized_network(network, config)
    del parser
    if serialized is None:
        raise CellError(
            f"TensorRT could not build the engine{last_words(errors)}",
            fix="run `optimc check` on the recipe: it names what TensorRT is known to refuse",
        )
    return Plan(bytes(serialized), bytes(cache.serialize()))


def new_logger(trt: ModuleType, console: Console, errors: list[str]) -> Any:
    """A `tensorrt.ILogger` that hands every message on and adds the errors to `errors`."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            name = severity.name
            if name in ("ERROR", "INTERNAL_ERROR"):
                errors.append(msg)
            console.log(name, msg)

    return Logger()


def last_words(errors: Sequence[str]) -> str:
    """The last three errors, to stand behind a message."""
    return "".join(f"; {error.strip()}" for error in errors[-3:])


def _new_monitor(trt: ModuleType, console: Console) -> Any:
    """A `tensorrt.IProgressMonitor` that tells each phase's steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            console.progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return console.progress(phase_name, step + 1, self._steps.get(phase_name, step + 1))

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.pop(phase_name, 0)
            console.progress(phase_name, steps, steps)

    return Monitor()


def _strongly_typed(trt: ModuleType) -> int:
    """The flags of a strongly typed network: asked for on 10, the only kind on 11."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _load_plugins(registry: Any, library: Path) -> None:
    if registry.load_library(str(library)) is None:
        raise CellError(
            f"TensorRT took no plugins from {library.name}",
            fix="build the library for this TensorRT version, and name each plugin once",
        )


def _parse(trt: ModuleType, network: Any, logger: Any, errors: list[str], model: Path) -> Any:
    """The parser that filled `network`."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(model)):
        return parser
    if not parser.num_errors:
        raise CellError(f"TensorRT's parser refused the model{last_words(errors)}")
    error = parser.get_error(0)
    node = error.node_name() or f"number {error.node()}"
    more = f" [and {parser.num_errors - 1} more]" if parser.num_errors > 1 else ""
    raise CellError(
        f"TensorRT's parser refused the node {node} ({error.node_operator()}): "
        f"{error.desc()}{more}",
        fix=_remedy(node, error.node_operator(), error.desc()),
    )


def _remedy(node: str, operator: str, reason: str) -> str:
    """Which pass or option helps where the parser stops at a node."""
    if operator in ("QuantizeLinear", "DequantizeLinear"):
        return "leave the placing to `quantize_int8`, or keep this layer out: `keep_float: [...]`"
    if re.search(r"\btypes?\b", reason, re.IGNORECASE):
        return (
            f"the network is strongly typed: keep the node in float32, `float16: {{keep_float: "
            f"[{node!r}]}}`, or cast its inputs to one type in the model"
        )
    if re.search(r"\b(shapes?|dims?|dimensions?|ranks?|dynamic)\b", reason, re.IGNORECASE):
        return (
            "put `simplify` first, which computes shapes ahead, or make the shape a constant of "
            "the model"
        )
    return (
        f"put `simplify` first, which may fold the {operator} away, name its library in `plugins`, "
        "or drop the output that needs it"
    )


def _configure(trt: ModuleType, builder: Any, config: Any, options: PlanOptions) -> None:
    config.builder_optimization_level = options.optimization_level
    # Without it the inspector knows names alone.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.hardware_compatibility_level = getattr(
        trt.HardwareCompatibilityLevel, options.hardware_compatibility
    )
    if options.workspace_mb is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, options.workspace_mb * 10**6)
    if options.shared_memory_kb is not None:
        pool = trt.MemoryPoolType.TACTIC_SHARED_MEMORY
        config.set_memory_pool_limit(pool, options.shared_memory_kb * 1000)
    # It is on by default, and computes float32 with 10 bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    for name in sorted(options.flags):
        config.set_flag(getattr(trt.BuilderFlag, name))
    for shapes in options.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, greatest) in shapes.items():
            profile.set_shape(name, least, usual, greatest)
        if config.add_optimization_profile(profile) < 0:
            raise CellError(f"TensorRT refused the optimization profile {dict(shapes)}")
