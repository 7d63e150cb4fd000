"""What bench/quantization.py compares: the peers' tools with good settings, and ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from quantization_models import Array, Feeds, Subject

from optimc.calibration.grouped import GroupedDataset, Sample
from optimc.core.digest import digest_of
from optimc.core.model import OnnxModel

Make = Callable[[Path], None]


@contextmanager
def quiet() -> Iterator[None]:
    """Sends what tools print to nowhere, and keeps them off the network."""
    os.environ |= {"NNCF_TELEMETRY": "0", "OPENVINO_TELEMETRY": "0", "DO_NOT_TRACK": "1"}
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


class Reader:
    """Feeds ONNX Runtime's tool."""

    def __init__(self, samples: list[Feeds]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> Mapping[str, Array] | None:
        """The next sample, None at the end."""
        found = next(self._samples, None)
        return None if found is None else dict(found)


def _prepared(subject: Subject, target: Path) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared")
    try:
        quant_pre_process(str(subject.path), str(prepared))
    except Exception:  # noqa: BLE001 its shape inference gives up on today's encoders
        quant_pre_process(str(subject.path), str(prepared), skip_symbolic_shape=True)
    return prepared


def onnxruntime_static(subject: Subject, activations: str, target: Path) -> None:
    """ONNX Runtime's quantize_static with Q and DQ, a scale for each channel, min-max ranges."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    prepared = _prepared(subject, target)
    quantize_static(
        str(prepared),
        str(target),
        Reader(subject.calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=getattr(QuantType, activations),
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def onnxruntime_dynamic(subject: Subject, target: Path) -> None:
    """ONNX Runtime's quantize_dynamic with int8 weights, a scale for each channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared = _prepared(subject, target)
    quantize_dynamic(str(prepared), str(target), per_channel=True, weight_type=QuantType.QInt8)
    prepared.unlink()


def nncf_static(subject: Subject, target: Path) -> None:
    """NNCF's post-training quantization of OpenVINO's form, for transformers as such."""
    import nncf
    import openvino

    data = nncf.Dataset([dict(feeds) for feeds in subject.calibration], lambda feeds: feeds)
    found = nncf.quantize(
        openvino.Core().read_model(subject.path),
        data,
        subset_size=len(subject.calibration),
        model_type=nncf.ModelType.TRANSFORMER if subject.transformer else None,
    )
    openvino.save_model(found, target, compress_to_fp16=False)


class Samples(GroupedDataset):
    """A list of feeds of one sample each, as what calibration reads."""

    where = "bench"

    def __init__(self, feeds: list[Feeds]) -> None:
        self._feeds = feeds

    def __len__(self) -> int:
        return len(self._feeds)

    @property
    def digest(self) -> str:
        """Of all samples."""
        return digest_of(*(digest.hex() for digest in self.sample_digests()))

    def samples(self) -> Iterator[Sample]:
        """All samples in order."""
        for feeds in self._feeds:
            yield Sample({name: array[0] for name, array in feeds.items()})


class Ours:
    """simplify, fuse and a quantizing pass; calibration is observed once for all of them."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self._subject = subject
        self._folder = folder

    @cached_property
    def _source(self) -> OnnxModel:
        import onnx_ir

        from optimc.testing import as_model

        return as_model(onnx_ir.load(self._subject.path))

    @cached_property
    def _calibration(self) -> Any:
        from optimc.calibration.observe import ActivationCalibration
        from optimc.testing.calibrated import FolderStore

        data, store = Samples(self._subject.calibration), FolderStore(self._folder / "store")
        return ActivationCalibration(self._source, data, 0, store)

    def quantize(self, runtime: str, steps: list[Any], target: Path, own: bool = False) -> None:
        """Writes the model that the passes place for a runtime.

        With `own`, in the form that the runtime runs fastest, as a build tries it.
        """
        from optimc.core.registry import target_class
        from optimc.passes.fuse import Fuse
        from optimc.passes.simplify import Simplify
        from optimc.testing import run_pass

        spec = target_class(runtime)(runtime=runtime).spec()
        model: Any = self._source
        for step in (Simplify(), Fuse(), *steps):
            model = run_pass(step, model, spec=spec, calibration=self._calibration).model
        assert isinstance(model, OnnxModel)
        if own:
            from optimc.targets.onnxruntime_fusions import fused

            found = fused(model)
            if found is None:
                raise ValueError("the runtime has no form of its own for this model")
            model = found[0]
        model.write_onnx(target)


@dataclass(frozen=True)
class Tool:
    """One way to an engine."""

    name: str
    runtime: str
    file: str
    make: Make | None
    """Writes the file; None for the float model as it is."""
    ours: bool = False
    precision: str = "f32"


def tools(subject: Subject, folder: Path) -> list[Tool]:
    """All ways that make sense for a subject; the first is what speed is against."""
    from optimc.passes.quantize_dynamic import QuantizeDynamic
    from optimc.passes.quantize_int8 import QuantizeInt8

    ours = Ours(subject, folder)
    found = [
        Tool("float, ORT", "onnxruntime", "", None),
        Tool("float, OV", "openvino", "", None),
    ]
    for name, kind in (("U8S8", "QUInt8"), ("S8S8", "QInt8")):
        make = partial(onnxruntime_static, subject, kind)
        found.append(Tool(f"ORT static {name}", "onnxruntime", f"ort_{name}.onnx", make))
    make = partial(onnxruntime_dynamic, subject)
    found.append(Tool("ORT dynamic", "onnxruntime", "ort_dynamic.onnx", make))
    make = partial(nncf_static, subject)
    found.append(Tool("NNCF, OV", "openvino", "nncf.xml", make))
    found.append(Tool("NNCF, OV, BF16 hint", "openvino", "nncf.xml", make, precision="bf16"))
    for short, runtime in (("ORT", "onnxruntime"), ("OV", "openvino")):
        ways: dict[str, list[Any]] = {"static": [QuantizeInt8()]}
        if subject.transformer:
            ways["dynamic"] = [QuantizeDynamic()]
        for way, steps in ways.items():
            made = partial(ours.quantize, runtime, steps)
            file = f"ours_{way}_{short}.onnx"
            found.append(Tool(f"optimc {way}, {short}", runtime, file, made, ours=True))
            if subject.transformer and short == "ORT":
                made = partial(ours.quantize, runtime, steps, own=True)
                name, file = f"optimc {way} fused, {short}", f"ours_{way}_fused_{short}.onnx"
                found.append(Tool(name, runtime, file, made, ours=True))
    return found
