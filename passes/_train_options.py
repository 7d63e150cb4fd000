"""What a recipe says about losses and teachers of `train`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from optimc.core.descriptions import wanted


class Options(BaseModel):
    """Base of all parts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=wanted()
    )

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Plain data without what was left out."""
        plain: dict[str, Any] = handler(self)
        return {name: value for name, value in plain.items() if value not in (None, {})}


Function: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""``package.module:function``, also of a module beside the recipe."""


class Ramp(Options):
    """A weight that goes in a straight line from the first step of the training to the last."""

    first: Annotated[float, Field(ge=0)]
    """The weight at the first step."""
    last: Annotated[float, Field(ge=0)]
    """The weight at the last step."""

    def at(self, share: float) -> float:
        """The weight when `share` (0 to 1) of the training is done."""
        return self.first + (self.last - self.first) * share


Weight: TypeAlias = Annotated[float, Field(ge=0)] | Ramp
"""A factor of a loss: a number, or one that changes during the training."""


def weight_at(weight: Weight, share: float) -> float:
    """The factor when `share` (0 to 1) of the training is done."""
    return weight.at(share) if isinstance(weight, Ramp) else weight


class Logits(Options):
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))`` over the classes, the second axis;
    mean over all else (Hinton et al. 2015, arXiv:1503.02531)."""

    temperature: Annotated[float, Field(gt=0)] = 4.0
    """T: above 1, classes that the teacher thinks unlikely count more."""
    weight: Weight = 0.9
    """The factor of this loss."""
    output: str | None = None
    """The output that holds the logits; without it, the first one."""


class Features(Options):
    """The mean squared difference of what layers give (FitNets: Romero et al. 2015,
    arXiv:1412.6550). Where the widths differ, a linear map of the student's features is trained
    along, and dropped at the end."""

    pairs: Annotated[dict[str, str], Field(min_length=1)]
    """From a module of the student to one of the teacher, by their names in PyTorch."""
    weight: Weight = 1.0
    """The factor of this loss."""


class AttentionTransfer(Options):
    """The mean squared difference of attention maps: a feature's squares, summed over the channels,
    of length 1 (Zagoruyko and Komodakis 2017, arXiv:1612.03928). Widths may differ."""

    pairs: Annotated[dict[str, str], Field(min_length=1)]
    """From a module of the student to one of the teacher, by their names in PyTorch."""
    weight: Weight = 1000.0
    """The factor of this loss."""


class SimilarityPreserving(Options):
    """The squared difference of how alike the samples of a batch are (Tung and Mori 2019,
    arXiv:1907.09682). Features may have any shape."""

    pairs: Annotated[dict[str, str], Field(min_length=1)]
    """From a module of the student to one of the teacher, by their names in PyTorch."""
    weight: Weight = 3000.0
    """The factor of this loss."""


class Embedding(Options):
    """How far an output is from the teacher's."""

    kind: Literal["cosine", "mse"] = "cosine"
    """`cosine`: 1 - cosine along the last axis. `mse`: the mean squared difference."""
    weight: Weight = 1.0
    """The factor of this loss."""
    output: str | None = None
    """The output that is compared; without it, the first one."""


class UserLoss(Options):
    """A function of the user's; see `optimc.passes._train_step.Step` for what it gets."""

    call: Function
    """``package.module:function``, also of a module beside the recipe; it gives the loss, a tensor
    with one number. `--untrusted` refuses it."""
    arguments: dict[str, Any] = Field(default={})
    """Keyword arguments for it."""


class DistillLoss(Options):
    """One loss: exactly one of the names, or `call` with `arguments` and `weight`."""

    logits: Logits | None = None
    """Soft classes."""
    features: Features | None = None
    """Hints between layers."""
    attention_transfer: AttentionTransfer | None = None
    """Where layers look at."""
    similarity_preserving: SimilarityPreserving | None = None
    """Which samples layers find alike."""
    embedding: Embedding | None = None
    """An output itself, such as a sentence's embedding."""
    call: Function | None = None
    """A function of the user's: ``package.module:function``. `--untrusted` refuses it."""
    arguments: dict[str, Any] = Field(default={})
    """Keyword arguments for `call`."""
    weight: Weight | None = None
    """The factor of `call`; 1 without it."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in (*LOSSES, "call") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) if given else 'no loss'} in one entry"
                f"\nwrite each loss as an entry of its own; known: {', '.join(LOSSES)}, call"
            )
        if given != ["call"] and (self.weight is not None or self.arguments):
            raise ValueError(
                f"`weight` and `arguments` beside `{given[0]}` belong to `call` alone"
                f"\nwrite {{{given[0]}: {{weight: ...}}}}"
            )
        return self


LOSSES = ("logits", "features", "attention_transfer", "similarity_preserving", "embedding")


class TeacherWeights(Options):
    """The file of a teacher's weights."""

    file: str
    """Safetensors, or what torch.save wrote of a state_dict; relative to the recipe."""
    key: str | None = None
    """The entry of the file that holds the tensors."""
    prefix: str | None = None
    """Taken off the names of the file's tensors."""


TeacherTask: TypeAlias = Literal[
    "text-classification",
    "embedding",
    "token-classification",
    "question-answering",
    "image-classification",
]
"""As under `model: {hf: ...}`."""


class Teacher(Options):
    """Another model than the source: an ONNX file, a folder of Hugging Face transformers, or a
    factory with its weights."""

    onnx: str | None = None
    """The file, relative to the recipe; it has the recipe's inputs. ONNX Runtime runs it, so only
    losses of outputs can be taken."""
    hf: str | None = None
    """A folder that `save_pretrained` of transformers wrote, relative to the recipe; nothing is
    fetched, no code in it is run."""
    task: TeacherTask | None = None
    """Of `hf`: what the model is for."""
    pooling: Literal["mean", "cls", "max", "last"] | None = None
    """Of `hf` with the task `embedding`, as under `model`."""
    normalize: bool | None = None
    """Of `hf` with the task `embedding`, as under `model`."""
    factory: Function | None = None
    """``package.module:function``, which makes the module. `--untrusted` refuses it."""
    weights: TeacherWeights | None = None
    """What is loaded into the factory's module."""
    arguments: dict[str, Any] = Field(default={})
    """Keyword arguments for the factory."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(kind is not None for kind in (self.onnx, self.hf, self.factory)) != 1:
            raise ValueError(
                "a teacher is one of the three\nwrite `onnx: FILE`, `hf: FOLDER` or `factory: M:F`"
            )
        if self.factory is None and (self.weights is not None or self.arguments):
            raise ValueError("`weights` and `arguments` belong to `factory`\nleave them out")
        if (self.hf is None) != (self.task is None):
            raise ValueError("`hf` and `task` belong together\nwrite `hf: FOLDER, task: embedding`")
        if self.task != "embedding" and (self.pooling is not None or self.normalize is not None):
            raise ValueError("`pooling` and `normalize` belong to `task: embedding`")
        return self


class Distill(Options):
    """Learning from a teacher's answers; labels are not needed."""

    teacher: Literal["source"] | Teacher = "source"
    """`source` is the model as it came in, before any pass."""
    losses: Annotated[list[DistillLoss], Field(min_length=1)] = Field(
        default=[DistillLoss(logits=Logits())]
    )
    """What is summed up, each by its weight."""
    labels: Annotated[float, Field(ge=0)] | None = None
    """The factor of the loss that labels give. Without it, 0.1 where there are labels and a loss of
    logits, else 0."""
