"""A folder with the model, golden data, a script that checks it, and how to load it in C++."""

from __future__ import annotations

import math
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.core.targets import Engine
from optimc.pipeline.bundle.golden import write_golden

if TYPE_CHECKING:
    from optimc.pipeline.bundle.delivery import Delivery
    from optimc.pipeline.bundle.golden import Golden

_CHECK = '''"""Loads the model in {model}/ and compares it with golden/.

    python check.py

Needs numpy and the runtime, nothing of optimc. Exit code 0 where every output agrees, 1 where
one does not. Golden outputs were made by the same engine on: {machine}.
"""

import os
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
QUANTIZED = {quantized}


def run(feeds):
{load}
    return outputs


def agreement(expected, found):
    """Whether two arrays agree, and in words how well."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False, f"{{expected.dtype}}{{expected.shape}} became {{found.dtype}}{{found.shape}}"
    if expected.dtype.kind in "biu":
        share = float((expected == found).mean()) if expected.size else 1.0
        return share > (0.95 if QUANTIZED else 0.999), f"{{share:.2%}} equal"
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return False, "NaN or infinity in other places"
    finite = np.isfinite(expected)
    noise = float(np.square(expected - found)[finite].sum())
    signal = float(np.square(expected)[finite].sum())
    if noise == 0:
        return True, "bit-equal"
    sqnr = 10 * np.log10(signal / noise) if signal else -np.inf
    return bool(sqnr >= (20 if QUANTIZED else 60)), f"SQNR {{sqnr:.1f}} dB"


def main():
    os.chdir(HERE / "{model}")
    good = True
    for path in sorted((HERE / "golden").glob("*.npz")):
        with np.load(path, allow_pickle=False) as data:
            feeds = {{n.partition(":")[2]: data[n] for n in data.files if n.startswith("input:")}}
            wanted = {{n.partition(":")[2]: data[n] for n in data.files if n.startswith("output:")}}
        outputs = run(feeds)
        for name, expected in wanted.items():
            fine, words = agreement(expected, np.asarray(outputs[name]))
            good &= fine
            print(f"{{path.name}} {{name}}: {{'ok' if fine else 'DIFFERS'}}, {{words}}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
'''

_CPP = """// Loads model/{main} with ONNX Runtime's C++ API and runs it once on zeros.
// g++ -std=c++17 load.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -o load
// LD_LIBRARY_PATH=$ORT/lib ./load        (in this folder)
//
// A starting point. optimc's tests compile and run such files, but this very file was not compiled:
// ONNX Runtime's Python package has no C++ headers. check.py beside it compares the outputs.
#include <onnxruntime_cxx_api.h>

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <vector>

int main() {{
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "{name}");
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads({threads});
  options.SetGraphOptimizationLevel(GraphOptimizationLevel::{level});
{libraries}  Ort::Session session(env, "model/{main}", options);
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

{inputs}
  const char* input_names[] = {{{input_names}}};
  const char* output_names[] = {{{output_names}}};
  std::vector<Ort::Value> inputs;
{pushes}
  auto outputs = session.Run(Ort::RunOptions{{nullptr}}, input_names, inputs.data(), inputs.size(),
                             output_names, {output_count});
  for (std::size_t i = 0; i < outputs.size(); ++i) {{
    std::cout << output_names[i] << ":";
    for (int64_t size : outputs[i].GetTensorTypeAndShapeInfo().GetShape()) std::cout << " " << size;
    std::cout << "\\n";
  }}
}}
"""

_CPP_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "Ort::Float16_t",
    "bfloat16": "Ort::BFloat16_t",
    "bool": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def write_plain(delivery: Delivery, golden: list[Golden], folder: Path) -> None:
    """Fills the empty `folder`."""
    copy_engine(delivery, folder / "model")
    shutil.copyfile(delivery.engine.folder / Engine.MANIFEST, folder / "model" / Engine.MANIFEST)
    write_proof(delivery, golden, folder)
    if delivery.engine.runtime == "onnxruntime":
        (folder / "load.cpp").write_text(_cpp(delivery), encoding="utf-8")


def write_proof(
    delivery: Delivery, golden: list[Golden], folder: Path, model: str = "model"
) -> None:
    """The golden data and the script that compares with them, for the model in `model`."""
    write_golden(golden, folder / "golden")
    load = textwrap.indent(str(delivery.engine.manifest["load"]).rstrip(), "    ")
    machine = delivery.report.machine
    script = _CHECK.format(
        model=model,
        machine=f"{machine.cpu}, {machine.os}",
        quantized=any(one.name.startswith("quantize") for one in delivery.cell.passes),
        load=load,
    )
    (folder / "check.py").write_text(script, encoding="utf-8")


def copy_engine(delivery: Delivery, folder: Path) -> None:
    """The engine's files, under the names by which they find each other."""
    for name in delivery.engine.manifest["files"]:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(delivery.engine.folder / name, place)


def _cpp(delivery: Delivery) -> str:
    from optimc.targets.onnxruntime import LEVELS

    sizes = delivery.sizes("typical")
    session = delivery.engine.manifest["session"]
    blocks, pushes = [], []
    signature = delivery.engine.signature
    for index, spec in enumerate(signature.inputs):
        kind = _CPP_TYPES[spec.dtype]
        shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape or ()]
        # std::vector<bool> has no data(): a vector of bytes stands in for it.
        held = "uint8_t" if kind == "bool" else kind
        blocks.append(
            f"  std::vector<int64_t> shape{index}{{{', '.join(map(str, shape))}}};\n"
            f"  std::vector<{held}> data{index}({math.prod(shape)});\n"
        )
        data = f"reinterpret_cast<bool*>(data{index}.data())"
        data = data if kind == "bool" else f"data{index}.data()"
        pushes.append(
            f"  inputs.push_back(Ort::Value::CreateTensor<{kind}>(\n"
            f"      memory, {data}, data{index}.size(), shape{index}.data(), shape{index}.size()));"
        )
    return _CPP.format(
        name=c_string(delivery.name),
        main=c_string(delivery.engine.main.name),
        libraries="".join(
            f'  options.RegisterCustomOpsLibrary("model/{c_string(name)}");\n'
            for name in session.get("custom_ops", ())
        ),
        threads=int(session.get("threads") or 0),
        level=LEVELS[str(session["graph_optimization"])],
        inputs="".join(blocks),
        pushes="\n".join(pushes),
        input_names=", ".join(f'"{c_string(spec.name)}"' for spec in signature.inputs),
        output_names=", ".join(f'"{c_string(spec.name)}"' for spec in signature.outputs),
        output_count=len(signature.outputs),
    )


def c_string(text: str) -> str:
    """The inside of a string literal of C and of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return "".join(
        char if char.isprintable() else "".join(f"\\{byte:03o}" for byte in char.encode())
        for char in escaped
    )
