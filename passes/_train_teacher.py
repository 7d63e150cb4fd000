"""Teachers of `train`, in the worker: the source, another module, or an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.core.errors import InputError
from optimc.passes._train_losses import Taps

if TYPE_CHECKING:
    import torch

    from optimc.calibration.sample_store import StoredSamples
    from optimc.core.workbench import OpenedModule, Workbench
    from optimc.passes._train_options import Teacher
    from optimc.passes._train_precision import Compute
    from optimc.passes._train_step import Tensors

_SEGMENTS = "token_type_ids"
_REMEMBERED_BYTES = 1 << 30
"""The most that a teacher's answers to all samples may take in memory; else it is asked anew."""


class ModuleTeacher:
    """A module in eval mode; what the modules `names` give is in `features`."""

    def __init__(self, opened: OpenedModule, names: Sequence[str], compute: Compute) -> None:
        self._opened, self._compute = opened, compute
        import torch

        opened.module.eval().to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._taps = Taps(opened.module, names, "the teacher")
        self.features = self._taps.seen

    def outputs(self, feeds: Tensors) -> Mapping[str, torch.Tensor]:
        """The named outputs, without gradients. Raises InputError for an input that is missing."""
        import torch

        missing = [name for name in self._opened.names if name not in feeds]
        if missing == [_SEGMENTS] and "input_ids" in feeds:
            # What transformers takes where nobody gives them: all words are of the first sentence.
            feeds = {**feeds, _SEGMENTS: torch.zeros_like(feeds["input_ids"])}
        elif missing:
            raise InputError(
                f"the teacher has the input `{missing[0]}`, which the training data do not have",
                where="train: distill.teacher",
                fix=f"the data's inputs are: {', '.join(feeds)}",
            )
        with torch.no_grad():
            return self._compute.outputs(self._opened.outputs, feeds)


class OnnxTeacher:
    """An ONNX file on the CPU; its inner values cannot be asked for."""

    def __init__(self, path: Path, names: Sequence[str], device: Any) -> None:
        import onnxruntime
        import torch

        if names:
            raise InputError(
                "the losses name layers of the teacher, and an ONNX file has none",
                where=str(path),
                fix="give the teacher as `factory`, or take losses of outputs",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise InputError(
                f"the teacher cannot be opened: {' '.join(str(error).split())[:300]}",
                where=str(path),
            ) from error
        self._names = [output.name for output in self._session.get_outputs()]
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._device = device
        self._path = path
        self.features: dict[str, torch.Tensor] = {}

    def outputs(self, feeds: Tensors) -> Mapping[str, torch.Tensor]:
        """The named outputs."""
        import torch

        missing = [name for name in self._inputs if name not in feeds]
        if missing:
            raise InputError(
                f"the teacher has the input `{missing[0]}`, which the training data do not have",
                where=str(self._path),
                fix=f"the data's inputs are: {', '.join(feeds)}",
            )
        given = {name: feeds[name].cpu().contiguous().numpy() for name in self._inputs}
        try:
            made = self._session.run(None, given)
        except Exception as error:
            raise InputError(
                f"the teacher does not run: {' '.join(str(error).split())[:300]}",
                where=str(self._path),
                fix="it has to take what the training data give",
            ) from error
        return {
            name: torch.from_numpy(array).to(self._device)
            for name, array in zip(self._names, made, strict=True)
        }


def open_teacher(
    bench: Workbench,
    teacher: str | Teacher,
    folder: Path,
    seed: int,
    names: Sequence[str],
    compute: Compute,
) -> ModuleTeacher | OnnxTeacher:
    """The teacher; `names` are the modules whose features losses need. Modules run as `compute`
    says, an ONNX file in the types it is in."""
    if isinstance(teacher, str):
        return ModuleTeacher(bench.opened(), names, compute)
    if teacher.onnx is not None:
        return OnnxTeacher(folder / teacher.onnx, names, compute.device)
    if teacher.hf is not None:
        options: dict[str, Any] = {
            "path": str(folder / teacher.hf),
            "task": teacher.task,
            "pooling": teacher.pooling or "mean",
            "normalize": bool(teacher.normalize),
            "declared": {},
        }
        return ModuleTeacher(bench.opened("hf", options), names, compute)
    weights = None
    if teacher.weights is not None:
        weights = {
            "file": str(folder / teacher.weights.file),
            "key": teacher.weights.key,
            "prefix": teacher.weights.prefix,
        }
    declared = {
        name: {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": ["batch", *tensor.shape[1:]],
        }
        for name, tensor in bench.example.items()
    }
    options = {
        "call": teacher.factory,
        "folder": str(folder),
        "arguments": dict(teacher.arguments),
        "weights": weights,
        "declared": declared,
        "seed": seed,
    }
    return ModuleTeacher(bench.opened("factory", options), names, compute)


class RememberedAnswers:
    """A teacher's outputs for all samples of a store, made once, in the samples' order.

    The order of training batches then makes no difference to them.
    """

    def __init__(self, arrays: Sequence[Mapping[str, torch.Tensor]], firsts: Sequence[int]) -> None:
        self._arrays = arrays
        self._firsts = firsts

    def rows(self, numbers: Any, device: Any) -> dict[str, torch.Tensor]:
        """The outputs for the samples with these numbers, which are all of one group."""
        import bisect

        import torch

        group = bisect.bisect_right(self._firsts, int(numbers[0])) - 1
        rows = torch.from_numpy(numbers - self._firsts[group])
        return {name: array[rows].to(device) for name, array in self._arrays[group].items()}


def remembered(
    teacher: ModuleTeacher | OnnxTeacher, samples: StoredSamples, feeds_of: Any, size: int
) -> RememberedAnswers | None:
    """All answers; None where they would take too much memory, or are no rows for samples."""
    import torch

    from optimc.core.progress import tell

    parts: dict[int, list[Mapping[str, torch.Tensor]]] = {}
    firsts = [group.first for group in samples.groups]
    done = 0
    for batch in samples.in_order(size):
        answers = {name: t.cpu() for name, t in teacher.outputs(feeds_of(batch)).items()}
        answers = {name: t for name, t in answers.items() if t.is_floating_point()}
        if any(t.ndim == 0 or len(t) != batch.size for t in answers.values()):
            return None
        row = sum(t[:1].nbytes for t in answers.values())
        if row * len(samples) > _REMEMBERED_BYTES:
            return None
        group = max(first for first in firsts if first <= int(batch.numbers[0]))
        parts.setdefault(group, []).append(answers)
        done += batch.size
        tell(0.0, f"the teacher answers sample {done:,} of {len(samples):,}")
    joined = [
        {name: torch.cat([part[name] for part in parts[first]]) for name in parts[first][0]}
        for first in firsts
    ]
    return RememberedAnswers(joined, firsts)
