"""Training of what passes before left: recovery after pruning, and distillation.

One small loop, in the worker that holds the module (`_train_loop`); the losses and their papers are
in `_train_options` and `_train_losses`. Here is what the compiler's process does: it asks for one
epoch after the other, judges each by the metric on the tuning split, and keeps the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from optimc.core.errors import PreconditionError, missing_extra
from optimc.core.model import Level
from optimc.core.passes import Effect, Input, Pass, PassContext, PassResult, lossy
from optimc.core.units import Seconds
from optimc.passes._train_augment import Augmentation
from optimc.passes._train_options import Distill, UserLoss
from optimc.passes._train_precision import Precision

if TYPE_CHECKING:
    from optimc.core.model import Model
    from optimc.core.torch_model import TorchModel

Share = Annotated[float, Field(gt=0, lt=1)]


class Train(Pass):
    """Trains the module on the training split, with labels, a teacher, or both.

    After each epoch the module is judged by the recipe's first metric on the tuning split, and the
    best is kept: the module as it came, if no epoch is better. Without a tuning split the last
    epoch is kept. A build that was killed goes on after the last whole epoch, and comes to the same
    result as one that was not. What passes before set to zero stays zero.

    Rewrites: parameters and running statistics; the structure stays. Nothing is numbered: a
        training run is one change.
    Refuses: nothing in parts. Data without labels and without a teacher, losses that do not fit
        the outputs, and a loss that stops being a finite number are errors.
    Accuracy: lossy; judged by the gate where the recipe limits a metric, else by 1 % of the metric
        or an output SQNR of 10 dB. The order of the samples, augmentation and dropout come from the
        recipe's seed. Another number of threads, another processor or a GPU gives other roundings.
    Options: epochs, batch, optimizer, learning_rate, momentum, nesterov, weight_decay, schedule,
        milestones, factor, warm_up, clip_norm, loss, output, label_smoothing, augment, distill,
        freeze_batchnorm, keep, average, patience, at_most, precision, threads.
    """

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    """How often every sample is seen."""
    batch: Annotated[int, Field(ge=1)] = 128
    """Samples in one step."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """As in `torch.optim`."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """The greatest rate; `schedule` says how it falls."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd."""
    nesterov: bool = True
    """Nesterov's form of the momentum; of sgd."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of all parameters; added to the gradient by sgd and adam, apart from it by adamw."""
    schedule: Literal["cosine", "step", "constant", "one_cycle"] = "cosine"
    """`cosine` falls to 0 by half a wave (arXiv:1608.03983), `step` falls by `factor` at each of
    `milestones`, `one_cycle` rises for 30 % of the training and falls to nearly 0
    (arXiv:1708.07120)."""
    milestones: list[Share] = Field(default=[0.5, 0.75])
    """Of `step`: shares of the training."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of `step`."""
    warm_up: Annotated[float, Field(ge=0)] = 0.0
    """Epochs (0.5 is half of one) in which the rate rises to what the schedule says."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients whose norm is greater are scaled down to it."""
    loss: Literal["cross_entropy", "binary_cross_entropy", "mse", "l1"] | UserLoss | None = None
    """The loss of labels, or `{call: "module:function"}`. Without it, cross_entropy where they are
    integers (classes), mse where they are not."""
    output: str | None = None
    """The output that labels are for; without it, the first one."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of cross_entropy: the share of a label that is spread over all classes (arXiv:1512.00567)."""
    augment: list[Augmentation] = Field(default=[])
    """Random changes of images [n, channels, height, width], in this order: `flip` (left to right),
    `{crop: 4}` (shifts by up to 4 pixels, zeros moving in)."""
    distill: Distill | None = None
    """A teacher and losses against its answers: `distill: {}` takes the source and its logits.
    `teacher` is `source`, `{onnx: FILE}`, `{hf: FOLDER, task: embedding}` or `{factory:
    "module:function", weights: {file: FILE}, arguments: {}}`. `losses` is a list of: `logits`
    (temperature; arXiv:1503.02531), `features` (pairs of layers, student: teacher;
    arXiv:1412.6550), `attention_transfer` (pairs; arXiv:1612.03928), `similarity_preserving`
    (pairs; arXiv:1907.09682), `embedding` (kind: cosine or mse), each with a `weight`, which may go
    from `first` to `last`; and `{call: "module:function", arguments: {}, weight: 1}` for the user's
    own, which gets one `optimc.passes._train_step.Step`. `labels` is the factor of the loss that
    labels give."""
    freeze_batchnorm: bool = False
    """Keep the running statistics of batch normalization as they are."""
    keep: Literal["best", "last"] = "best"
    """Which epoch is kept: the `best` on the tuning split where there is one, or the `last`."""
    average: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Judge and keep a moving average of the weights in their place, with this decay: 0.999 is one
    over about the last 1,000 steps, 0.99 over 100. At a constant rate it is what a falling one
    comes to."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many epochs in a row that were no better than the best one."""
    at_most: Seconds | None = None
    """Train for this long at most (`20 min`): as many epochs are planned as should fit, by the pace
    of the first steps, and none is begun after that. The lock keeps their number, so that --locked
    trains as many."""
    precision: Precision = "float32"
    """What products and convolutions are computed in, of the model and of a teacher that is no ONNX
    file. `bfloat16` takes about 0.6 times as long where the processor or GPU has instructions for
    it (AVX-512 BF16, AMX; a note tells where it has none); weights, optimizer and losses stay
    float32 (arXiv:1710.03740, arXiv:1905.12322)."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of the processor; without it, what PyTorch takes."""

    level: ClassVar[Level] = Level.TORCH
    reads: ClassVar[frozenset[Input]] = frozenset({Input.TRAINING})
    required_by_default: ClassVar[bool] = True
    tools: ClassVar[tuple[str, ...]] = ("torch", "numpy", "safetensors")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.patience is not None and self.keep == "last":
            raise ValueError("`patience` waits for a better epoch\nwrite `keep: best`, or leave it")
        if self.milestones != sorted(self.milestones):
            raise ValueError("the milestones must rise\nfor example `milestones: [0.5, 0.75]`")
        return self

    @property
    def effect(self) -> Effect:
        """LOSSY: a model that was trained answers otherwise."""
        return lossy(10.0)

    @property
    def wants(self) -> frozenset[Input]:
        """The tuning split, to choose the best epoch by."""
        return frozenset({Input.TUNING} if self.keep == "best" else ())

    @property
    def same_samples(self) -> bool:
        """Whether the teacher is asked the same in every epoch, and by outputs that are known."""
        losses = self.distill.losses if self.distill is not None else []
        users = isinstance(self.loss, UserLoss) or any(entry.call for entry in losses)
        return not self.augment and not users

    def rate(self, step: int, steps: int, epoch_steps: int) -> float:
        """The learning rate at `step` (from 0) of `steps`."""
        from optimc.passes._train_schedule import Schedule

        schedule = Schedule(self.schedule, self.milestones, self.factor, self.warm_up)
        return self.learning_rate * schedule.share(step, steps, epoch_steps)

    def check_extras(self) -> None:
        """Raises UnavailableError where transformers is not installed and the teacher needs it."""
        from importlib.util import find_spec

        teacher: Any = self.distill.teacher if self.distill is not None else None
        if getattr(teacher, "hf", None) and find_spec("transformers") is None:
            raise missing_extra("hf", "a teacher from a folder of transformers")

    def check(self, model: Model, context: PassContext) -> None:
        """Raises PreconditionError for files that are not there, and patience without tuning;
        UnavailableError where transformers is not installed and the teacher needs it."""
        self.check_extras()
        for file in self._teacher_files(context.folder):
            if not file.is_file():
                raise PreconditionError(
                    f"train: the teacher's file {file} is not there",
                    fix="correct the path (it is relative to the recipe)",
                )
        if self.patience is not None and not context.has(Input.TUNING):
            raise PreconditionError(
                "train: `patience` needs a tuning split to judge epochs by",
                fix="add data.tuning, or leave `patience` out",
            )

    def run(self, model: TorchModel, context: PassContext) -> PassResult:
        """See the class."""
        from optimc.passes._train_course import Course

        self.check(model, context)
        with context.workshop(model) as shop:
            return Course(self, model, context, shop).run()

    def module_patterns(self) -> Mapping[str, Sequence[str]]:
        """The layers that losses name, of the student and of a teacher that is the source."""
        from glob import escape

        from optimc.passes._train_losses import tapped

        own, others = tapped(self)
        source = self.distill is not None and self.distill.teacher == "source"
        named = [*own, *others] if source else own
        return {"distill.losses": [escape(name) for name in named]}

    def functions(self) -> list[str]:
        """Losses and the teacher's factory."""
        calls = [self.loss.call] if isinstance(self.loss, UserLoss) else []
        if self.distill is not None:
            calls += [entry.call for entry in self.distill.losses if entry.call is not None]
            if not isinstance(self.distill.teacher, str) and self.distill.teacher.factory:
                calls.append(self.distill.teacher.factory)
        return calls

    def files(self, folder: Path) -> list[Path]:
        """The teacher's files with its external data, and the source in `folder` of the user's
        functions: see `core.user_code.source_files`."""
        from optimc.core.user_code import source_files
        from optimc.passes._train_files import onnx_files

        named = self._teacher_files(folder)
        teacher = self.distill.teacher if self.distill is not None else "source"
        if not isinstance(teacher, str) and teacher.onnx is not None:
            named = [file for path in named for file in onnx_files(path)]
        modules = (call.partition(":")[0] for call in self.functions())
        return [*named, *source_files(folder, modules)]

    def _teacher_files(self, folder: Path) -> list[Path]:
        teacher: Any = self.distill.teacher if self.distill is not None else None
        if teacher is None or isinstance(teacher, str):
            return []
        names = [teacher.onnx, teacher.weights.file if teacher.weights else None]
        if teacher.hf is not None:
            place = folder / teacher.hf
            kinds = (".bin", ".json", ".safetensors")
            found = {p for p in place.glob("*") if p.is_file() and p.suffix in kinds}
            return sorted(found | {place / "config.json"})
        return [folder / name for name in names if name is not None]
