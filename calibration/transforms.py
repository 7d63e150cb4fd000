"""The steps between stored arrays and what a model takes, as recipes write them under `transform`.

Each step works on a whole batch: axis 0 counts the samples. Arithmetic is done in float32, element
by element, so the result of a sample does not depend on the batch that it came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from optimc.calibration.image_steps import CenterCrop, Letterbox, Pad, Resize
from optimc.calibration.options import Options
from optimc.core.errors import InputError, did_you_mean, unknown_name

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray

    Array: TypeAlias = NDArray[np.generic]

Numbers: TypeAlias = Annotated[
    Annotated[float, Tag("one")] | Annotated[list[float], Tag("many")],
    Discriminator(lambda value: "many" if isinstance(value, list) else "one"),
]
NumericDtype: TypeAlias = Literal[
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


class Divide(Options):
    """``{divide: 255}``: x / d in float32, with a true division (not a product with 1/d)."""

    divide: Numbers
    """One number, or one for each channel (axis 1, so after `nchw`). Not zero."""

    @model_validator(mode="after")
    def _not_zero(self) -> Self:
        if any(number == 0 for number in _listed(self.divide)):
            raise ValueError("cannot divide by zero\nwrite what pixels are divided by, such as 255")
        return self

    def apply(self, x: Array) -> Array:
        """float32, shape of x."""
        return _float32(x, "divide") / _per_channel(self.divide, x, "divide")


class Multiply(Options):
    """``{multiply: 0.5}``: x * m in float32."""

    multiply: Numbers
    """One number, or one for each channel (axis 1)."""

    def apply(self, x: Array) -> Array:
        """float32, shape of x."""
        return _float32(x, "multiply") * _per_channel(self.multiply, x, "multiply")


class MeanStd(Options):
    """The two constants of a normalization."""

    mean: Numbers
    """Subtracted: one number, or one for each channel (axis 1)."""
    std: Numbers
    """What the difference is divided by: one number, or one for each channel (axis 1)."""

    @model_validator(mode="after")
    def _not_zero(self) -> Self:
        if any(number == 0 for number in _listed(self.std)):
            raise ValueError("std must not be zero")
        return self


class Normalize(Options):
    """``{normalize: {mean: [...], std: [...]}}``: (x - mean) / std in float32."""

    normalize: MeanStd
    """The constants."""

    def apply(self, x: Array) -> Array:
        """float32, shape of x."""
        mean = _per_channel(self.normalize.mean, x, "normalize.mean")
        std = _per_channel(self.normalize.std, x, "normalize.std")
        return (_float32(x, "normalize") - mean) / std


class Cast(Options):
    """``{cast: int64}``: changes the element type, as numpy's astype does."""

    cast: NumericDtype
    """The numpy name of the new type."""

    def apply(self, x: Array) -> Array:
        """Shape of x."""
        return x.astype(self.cast)


class ExpandDims(Options):
    """``{expand_dims: 1}``: a new axis of size 1, counted in the batch (axis 0 is the samples)."""

    expand_dims: Annotated[int, Field(ge=1)]
    """Where the new axis stands in the result."""

    def apply(self, x: Array) -> Array:
        """One axis more than x."""
        import numpy as np

        if self.expand_dims > x.ndim:
            raise _does_not_fit("expand_dims", x, f"an axis up to {x.ndim}")
        return np.expand_dims(x, self.expand_dims)


class Squeeze(Options):
    """``{squeeze: 1}``: removes an axis of size 1, counted in the batch."""

    squeeze: Annotated[int, Field(ge=1)]
    """The axis to remove."""

    def apply(self, x: Array) -> Array:
        """One axis less than x."""
        import numpy as np

        if self.squeeze >= x.ndim or x.shape[self.squeeze] != 1:
            raise _does_not_fit("squeeze", x, f"an axis {self.squeeze} of size 1")
        return np.squeeze(x, self.squeeze)


_NAMED = ("nchw", "nhwc")
_SIZES = ("resize", "center_crop", "letterbox", "pad")
_KEYED = ("divide", "multiply", "normalize", "cast", "expand_dims", "squeeze", *_SIZES)
KNOWN_STEPS = (*_NAMED, *_KEYED)


def _step_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "named" if value in _NAMED else None
    return next((word for word in keys_of(value) if word in _KEYED), None)


def _known_step(value: Any) -> Any:
    if _step_kind(value) is None:
        words = [value] if isinstance(value, str) else keys_of(value)
        raise unknown_choice("transform step", words, KNOWN_STEPS)
    return value


def keys_of(value: Any) -> list[str]:
    """The keys of an entry, raw or already validated."""
    return list(value) if isinstance(value, dict) else list(getattr(value, "model_fields_set", ()))


def unknown_choice(what: str, words: Sequence[Any], known: Sequence[str]) -> PydanticCustomError:
    """The error for an entry that is told by its key, and has none of the known ones."""
    hints = (did_you_mean(str(word), known) for word in words)
    hint = next((f"{hint} " for hint in hints if hint), "")
    message = f"unknown {what}; {hint}known: {', '.join(known)}"
    return PydanticCustomError("unknown_choice", "{message}", {"message": message})


Step: TypeAlias = Annotated[
    Annotated[Literal["nchw", "nhwc"], Tag("named")]
    | Annotated[Divide, Tag("divide")]
    | Annotated[Multiply, Tag("multiply")]
    | Annotated[Normalize, Tag("normalize")]
    | Annotated[Cast, Tag("cast")]
    | Annotated[ExpandDims, Tag("expand_dims")]
    | Annotated[Squeeze, Tag("squeeze")]
    | Annotated[Resize, Tag("resize")]
    | Annotated[CenterCrop, Tag("center_crop")]
    | Annotated[Letterbox, Tag("letterbox")]
    | Annotated[Pad, Tag("pad")],
    Discriminator(_step_kind),
    BeforeValidator(_known_step),
]
"""One step. `nchw` moves the last axis behind the samples, `nhwc` moves axis 1 to the end."""

Steps: TypeAlias = list[Step]


def apply(steps: Sequence[Step], batch: Array) -> Array:
    """The batch [n, ...] after all steps, C-contiguous.

    Raises InputError where a step does not fit the array: which step, and what it met.
    """
    import numpy as np

    for step in steps:
        batch = _move_channels(batch, step) if isinstance(step, str) else step.apply(batch)
    return np.ascontiguousarray(batch)


def per_input(transform: Steps | Mapping[str, Steps], names: Sequence[str]) -> dict[str, Steps]:
    """The steps of each input: one list stands for all of them, a mapping for those it names.

    Raises InputError where the mapping names an input that is not in `names`.
    """
    if not isinstance(transform, Mapping):
        return dict.fromkeys(names, transform)
    for name in transform:
        if name not in names:
            raise unknown_name("input", name, names, where="transform")
    return {name: transform.get(name, []) for name in names}


def _move_channels(x: Array, step: str) -> Array:
    import numpy as np

    if x.ndim < 3:
        raise _does_not_fit(step, x, "at least 3 axes: samples, channels and space")
    return np.moveaxis(x, -1, 1) if step == "nchw" else np.moveaxis(x, 1, -1)


def _float32(x: Array, step: str) -> NDArray[np.float32]:
    if x.dtype.kind in "SUO":
        raise _does_not_fit(step, x, "numbers")
    return x.astype("float32", copy=False)


def _listed(numbers: Numbers) -> list[float]:
    return numbers if isinstance(numbers, list) else [numbers]


def _per_channel(numbers: Numbers, x: Array, step: str) -> NDArray[np.float32]:
    """The constants shaped to stand against axis 1 of x."""
    import numpy as np

    array = np.asarray(numbers, np.float32)
    if array.ndim == 0:
        return array
    if x.ndim < 2 or x.shape[1] != array.size:
        raise _does_not_fit(step, x, f"axis 1 of size {array.size} (its constants are per channel)")
    return array.reshape(-1, *[1] * (x.ndim - 2))


def _does_not_fit(step: str, x: Array, wanted: str) -> InputError:
    shape = ", ".join(map(str, x.shape[1:]))
    return InputError(
        f"the step `{step}` needs {wanted}; the samples are {x.dtype}[{shape}] here",
        where="transform",
        fix="put the steps in another order (`nchw` first), or correct the step",
    )
