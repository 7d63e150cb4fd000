"""Seeded inputs for models without data: their figures are marked as of random data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from optimc.calibration.dataset import Batch, Dataset
from optimc.core.digest import digest_of
from optimc.core.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optimc.core.model import Signature, TensorSpec

    Array = NDArray[np.generic]

Range: TypeAlias = tuple[float, float]


class RandomDataset(Dataset):
    """Samples drawn by a seed, each by its own: sample i is the same in every batch.

    Floats are uniform over the input's range, standard normal where there is none. Integers are
    uniform over the range, both ends included, 0 and 1 where there is none; booleans are fair.
    Symbolic dims take the size that `dims` gives. Axis 0 counts the samples where it is symbolic;
    a fixed axis 0 of N makes every N samples one feed. An input that is one number has no such
    axis, nor has one of a fixed axis 0 beside inputs of another: it is the same for the samples of
    a batch, so such models want batches of 1.

    Raises InputError for inputs of another type (strings) and dims without a size.
    """

    def __init__(
        self,
        signature: Signature,
        dims: Mapping[str, int],
        ranges: Mapping[str, Range],
        seed: int,
        samples: int,
    ) -> None:
        self.where = "random data"
        self._seed = seed
        self._samples = samples
        self._single = _without_samples(signature)
        self._specs = {
            spec.name: _sample_spec(spec, dims, 0 if spec.name in self._single else 1)
            for spec in signature.inputs
        }
        self._ranges = {name: ranges.get(name) for name in self._specs}

    def __len__(self) -> int:
        return self._samples

    @property
    def digest(self) -> str:
        specs = {name: [spec.dtype, spec.shape] for name, spec in self._specs.items()}
        return digest_of("random", specs, self._ranges, self._seed, self._samples)

    def sample_specs(self) -> Mapping[str, TensorSpec]:
        return self._specs

    def batches(self, size: int) -> Iterator[Batch]:
        import numpy as np

        for first in range(0, len(self), size):
            samples = [self._sample(i) for i in range(first, min(first + size, len(self)))]
            feeds = {
                name: samples[0][name]
                if name in self._single
                else np.stack([s[name] for s in samples])
                for name in self._specs
            }
            yield Batch(feeds, None, first)

    def _sample(self, index: int) -> dict[str, Array]:
        import numpy as np

        random = np.random.default_rng([self._seed, index])
        return {name: _draw(random, spec, self._ranges[name]) for name, spec in self._specs.items()}


def _without_samples(signature: Signature) -> set[str]:
    """The inputs that have no axis for samples."""
    shapes = [spec.shape for spec in signature.inputs]
    shared = all(shapes) and len({shape[0] for shape in shapes if shape}) == 1
    return {
        spec.name
        for spec in signature.inputs
        if spec.shape == ()
        or (spec.shape and isinstance(spec.shape[0], int) and (not shared or not spec.shape[0]))
    }


def _sample_spec(spec: TensorSpec, dims: Mapping[str, int], first: int) -> TensorSpec:
    """A sample of the input: the axes from `first` on."""
    from optimc.core.model import TensorSpec

    if spec.dtype.rstrip("0123456789") not in ("float", "int", "uint", "bool", "bfloat"):
        raise InputError(
            f"no random data can be made for the input `{spec}`",
            fix="name data for it in the recipe, under `data`",
        )
    if spec.shape is None:
        raise InputError(
            f"no random data can be made for the input `{spec}`, whose rank is not known",
            fix="declare its shape in the recipe, under `inputs`",
        )
    missing = [dim for dim in spec.shape[first:] if isinstance(dim, str) and dim not in dims]
    if missing:
        raise InputError(
            f"the dim `{missing[0]}` of the input `{spec.name}` has no size",
            fix=f"dims: {{{missing[0]}: {{min: 1, typical: 1, max: 1}}}}",
        )
    shape = tuple(dims[dim] if isinstance(dim, str) else dim for dim in spec.shape[first:])
    return TensorSpec(spec.name, spec.dtype, shape)


def _draw(random: np.random.Generator, spec: TensorSpec, bounds: Range | None) -> Array:
    shape = [int(dim) for dim in spec.shape or ()]
    if spec.dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if spec.dtype.startswith(("int", "uint")):
        low, high = bounds or (0, 1)
        return random.integers(int(low), int(high), shape, endpoint=True).astype(spec.dtype)
    drawn = random.uniform(*bounds, shape) if bounds else random.standard_normal(shape)
    return drawn.astype(_float_dtype(spec.dtype))


def _float_dtype(name: str) -> np.dtype[np.generic]:
    import numpy as np

    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[np.generic] = np.dtype(name)
    return dtype
