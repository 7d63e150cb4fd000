"""Runs optimc's TensorRT code against one version of the real bindings, in a process of its own.

    python -m optimc.testing.tensorrt_contract BINDINGS STUBS MAJOR SCENARIO [MODULE OLD NEW]

Prints what was used, as JSON; ends with a message where a use is not in that version. With MODULE,
that module of `optimc.targets` is first loaded with OLD replaced by NEW in its source: a fault in
our own code, which has to be found.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimc.testing.cuda_doubles import HostCuda
from optimc.testing.tensorrt_bindings import load
from optimc.testing.tensorrt_doubles import Api, ApiError, HostMemory
from optimc.testing.tensorrt_sessions import SCENARIOS as OF_SESSIONS
from optimc.testing.tensorrt_sessions import EngineOnPaper, signature


def build(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """The builder, with every option set."""
    from optimc.targets.tensorrt_build import Console, build_plan

    lines: list[str] = []
    steps: list[str] = []

    def progress(phase: str, step: int, total: int) -> bool:
        steps.append(f"{phase} {step}/{total}")
        return True

    kept: dict[str, Any] = {}

    def serialize(network: Any, config: Any) -> HostMemory:
        kept["logger"].log(api.real.ILogger.Severity.WARNING, "slow tactic")
        monitor = api.values["IBuilderConfig.progress_monitor"]
        monitor.phase_start("tactics", None, 2)
        monitor.step_complete("tactics", 0)
        monitor.phase_finish("tactics")
        return HostMemory(b"plan")

    api.answers = {
        "Builder.__init__": lambda logger: kept.update(logger=logger),
        "Builder.build_serialized_network": serialize,
        "IPluginRegistry.load_library": "handle",
    }
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(b"")
        console = Console(lambda severity, text: lines.append(f"{severity}: {text}"), progress)
        plan = build_plan(model, every_option(Path(folder)), console)
    from optimc.targets.tensorrt_cuda import describe_device

    told = {"engine": plan.engine.decode(), "steps": steps, "log": lines, "told": _told(api)}
    return {**told, "device": describe_device(0)}


def _told(api: Api) -> dict[str, Any]:
    """What the builder was told: flags by name, profiles, sizes."""
    strong = 1 << int(api.real.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return {
        "strongly_typed": api.arguments("Builder.create_network") == [(strong,)],
        "set": sorted(_flag_name(f) for (f,) in api.arguments("IBuilderConfig.set_flag")),
        "cleared": [flag.name for (flag,) in api.arguments("IBuilderConfig.clear_flag")],
        "pools": [
            [pool.name, size]
            for pool, size in api.arguments("IBuilderConfig.set_memory_pool_limit")
        ],
        "profiles": api.arguments("IOptimizationProfile.set_shape"),
        "added": len(api.arguments("IBuilderConfig.add_optimization_profile")),
        "level": api.values["IBuilderConfig.builder_optimization_level"],
        "verbosity": api.values["IBuilderConfig.profiling_verbosity"].name,
        "hardware": api.values["IBuilderConfig.hardware_compatibility_level"].name,
        "plugins": [Path(p).name for (p,) in api.arguments("IPluginRegistry.load_library")],
    }


def every_option(folder: Path) -> Any:
    """Options of which each is set to something else than its default."""
    from optimc.core.targets import DimSizes
    from optimc.targets.tensorrt import TensorRT

    target = TensorRT(
        profiles=[{"batch": (1, 1, 2)}, {"batch": (3, 4, 8)}],
        optimization_level=4,
        workspace_mb=512,
        shared_memory_kb=96,
        tf32=True,
        sparse_weights=True,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        refit=True,
        strip_plan=True,
        plugins=[folder / "plugins.so"],
        weight_streaming_mb=64,
    )
    return target.plan_options(signature(), {"batch": DimSizes(1, 2, 8)})


def refuse(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """The parser's refusal: its message names the node."""
    from optimc.core.errors import CellError
    from optimc.targets.tensorrt_build import PlanOptions, build_plan

    api.answers = {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 1,
        "ParserError.node_name": "/head/unique",
        "ParserError.node_operator": "Unique",
        "ParserError.desc": "no importer",
    }
    try:
        build_plan(Path("model.onnx"), PlanOptions())
    except CellError as error:
        return {"error": str(error)}
    raise AssertionError("the refusal was lost")


def build_refusals(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """What the builder and its parser may refuse; a timing cache that is of another GPU."""
    from optimc.core.errors import CellError
    from optimc.targets.tensorrt_build import PlanOptions, build_plan

    options = PlanOptions(
        profiles=({"x": ((1, 4), (2, 4), (8, 4))},),
        plugins=(Path("own.so"),),
        timing_cache=b"of another GPU",
    )
    said: dict[str, str] = {}
    for name, answers in BUILD_REFUSALS.items():
        api.answers = {"IPluginRegistry.load_library": "handle", **answers}
        try:
            build_plan(Path("model.onnx"), options)
        except CellError as error:
            said[name] = str(error)
    return {"said": said, "caches": len(api.arguments("IBuilderConfig.create_timing_cache"))}


def levels(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """Each way in which other GPUs may run a plan, and the options of a plain build."""
    from typing import get_args

    from optimc.core.targets import DimSizes
    from optimc.targets.tensorrt import TensorRT
    from optimc.targets.tensorrt_build import build_plan

    found = []
    for level in get_args(TensorRT.model_fields["hardware_compatibility"].annotation):
        target = TensorRT(hardware_compatibility=level)
        options = target.plan_options(signature(), {"batch": DimSizes(1, 2, 8)})
        build_plan(Path("model.onnx"), options)
        found.append(api.values["IBuilderConfig.hardware_compatibility_level"].name)
    return {"levels": found, "set": api.arguments("IBuilderConfig.set_flag")}


def _refused(operator: str, reason: str) -> dict[str, Any]:
    return {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 2,
        "ParserError.node_name": "/n",
        "ParserError.node_operator": operator,
        "ParserError.desc": reason,
    }


BUILD_REFUSALS: dict[str, dict[str, Any]] = {
    "cache": {"IBuilderConfig.set_timing_cache": False},
    "plugin": {"IPluginRegistry.load_library": None},
    "parser": {"OnnxParser.parse_from_file": False},
    "profile": {"IBuilderConfig.add_optimization_profile": -1},
    "builder": {"Builder.build_serialized_network": None},
    "types": _refused("Add", "the inputs have types Half and Float"),
    "shapes": _refused("Reshape", "the shape is not known"),
    "quantized": _refused("QuantizeLinear", "no"),
    "unnamed": {**_refused("Add", "no"), "ParserError.node_name": "", "ParserError.node": 7},
}


def script(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A kit's own script, as far as the plan: against the same classes."""
    import tensorrt

    from optimc.targets import tensorrt_kit_script

    api.answers = {"IPluginRegistry.load_library": "handle"}
    with tempfile.TemporaryDirectory() as folder:
        chosen = every_option(Path(folder))
    options = {
        "profiles": [{name: list(s) for name, s in one.items()} for one in chosen.profiles],
        "optimization_level": chosen.optimization_level,
        "workspace_mb": chosen.workspace_mb,
        "shared_memory_kb": chosen.shared_memory_kb,
        "flags": sorted(chosen.flags),
        "hardware_compatibility": chosen.hardware_compatibility,
        "plugins": [str(path) for path in chosen.plugins],
        "weight_streaming_mb": chosen.weight_streaming_mb,
    }
    logger = tensorrt.Logger()
    plan = tensorrt_kit_script.build(tensorrt, logger, options)
    told = _told(api)
    more = {"ICudaEngine.streamable_weights_size": 10**9, **api.answers}
    api.answers = more
    tensorrt_kit_script.load(tensorrt, logger, plan, options)
    loaded = {
        "weights": len(api.arguments("OnnxParserRefitter.refit_from_file")),
        "budget": api.values["ICudaEngine.weight_streaming_budget_v2"],
        "host_code": api.values["Runtime.engine_host_code_allowed"],
        "libraries": len(api.arguments("IPluginRegistry.load_library")),
    }
    ran = _script_run(api, cuda)
    return {"engine": bytes(plan).decode(), "told": told, "loaded": loaded, "run": ran}


def _script_run(api: Api, cuda: HostCuda) -> bool:
    """Whether the script's run gives the engine's outputs, and all memory back."""
    import numpy as np
    import tensorrt

    from optimc.targets import tensorrt_kit_script

    paper = EngineOnPaper(api.real)
    paper.known_size = True
    api.answers = paper.answers
    gpu = tensorrt_kit_script.Gpu()
    engine = tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine(b"plan")
    x = np.arange(20, dtype=np.float32).reshape(5, 4) - 3
    found = {"y": np.zeros_like(x), "z": np.zeros_like(x[x[:, 0] > 0])}
    tensorrt_kit_script.run(tensorrt, engine, gpu, {"x": x}, found)
    same = np.array_equal(found["y"], x) and np.array_equal(found["z"], x[x[:, 0] > 0])
    return bool(same) and cuda.leaked == 0


def missing_name(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A planted wrong name: has to fail."""
    import tensorrt

    builder = tensorrt.Builder(tensorrt.Logger())
    builder.create_builder_configuration()
    return {}


def removed_flag(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A planted flag that 11 took out: has to fail there."""
    import tensorrt

    config = tensorrt.Builder(tensorrt.Logger()).create_builder_config()
    config.set_flag(tensorrt.BuilderFlag.FP16)
    return {}


def _flag_name(flag: Any) -> str:
    """As 11 calls it: 10 has an older name for one flag beside it."""
    return {"WEIGHTLESS": "STRIP_PLAN"}.get(flag.name, str(flag.name))


def wrong_hook(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A planted override that TensorRT would never call: has to fail."""
    import tensorrt

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        def step_done(self, phase_name: str, step: int) -> bool:
            return True

    return {}


def wrong_property(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A planted attribute that would be set on a Python object only: has to fail."""
    import tensorrt

    config = tensorrt.Builder(tensorrt.Logger()).create_builder_config()
    config.max_workspace_size = 1
    return {}


def wrong_keyword(api: Api, cuda: HostCuda) -> dict[str, Any]:
    """A planted keyword that the method does not have: has to fail."""
    import tensorrt

    config = tensorrt.Builder(tensorrt.Logger()).create_builder_config()
    config.set_memory_pool_limit(pool=tensorrt.MemoryPoolType.WORKSPACE, size=1)
    return {}


SCENARIOS: dict[str, Callable[[Api, HostCuda], dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (
        build,
        build_refusals,
        levels,
        missing_name,
        refuse,
        removed_flag,
        script,
        wrong_hook,
        wrong_keyword,
        wrong_property,
    )
} | OF_SESSIONS


def real_script(kit: Path) -> None:
    """Runs a kit's own script with the real module: it ends at the call that needs a GPU."""
    import runpy

    runpy.run_path(str(kit / "build_engine.py"), run_name="__main__")


def plant(module: str, old: str, new: str) -> None:
    """Loads `optimc.targets.<module>` with a fault in it. Raises ValueError where `old` is not."""
    spec = importlib.util.find_spec(f"optimc.targets.{module}")
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    if old not in source:
        raise ValueError(f"{module} does not hold {old!r}")
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    setattr(importlib.import_module("optimc.targets"), module, made)
    exec(compile(source.replace(old, new), spec.origin, "exec"), made.__dict__)


def main(bindings: str, stubs: str, major: str, scenario: str, *fault: str) -> int:
    """Runs one scenario."""
    import cuda.bindings.runtime as real_cuda

    if fault:
        plant(*fault)

    real = load(Path(bindings), Path(stubs), major)
    if scenario.endswith("build_engine.py"):
        sys.modules["tensorrt"] = real
        real_script(Path(scenario).parent)
    api, cuda = Api(real), HostCuda(real_cuda)
    sys.modules["tensorrt"] = api.module()
    sys.modules["cuda.bindings.runtime"] = cuda
    sys.modules["cuda.bindings"].runtime = cuda  # type: ignore[attr-defined]
    try:
        result = SCENARIOS[scenario](api, cuda)
    except ApiError as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    answer = {"version": real.__version__, "used": sorted(set(api.used)), **result}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
