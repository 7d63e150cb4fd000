"""The worker's side of `gptq`: which layers there are, their inputs, and their new weights.

neural-compressor's own entry wants a stack of decoder blocks. Its class for one layer wants the
layer's inputs alone, which hooks give for any module.

Scales are cut to 20 bits, so that integer times scale is exact in float32: whoever looks for the
grid of these weights, as `quantize_weights` does, finds it bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimc.calibration.sample_store import StoredSamples
from optimc.core import progress
from optimc.passes._weight_blocks import quantize_blocks

if TYPE_CHECKING:
    import torch

    from optimc.core.workbench import Workbench

    Floats = NDArray[np.float32]

BATCH = 16
BITS = 4
_SCALE_BITS = 20
_DAMPING = 0.05
"""The share of the mean of H's diagonal that is added to it. The paper takes 0.01, for some 100,000
rows of inputs; with the few thousand of MiniLM on sentences, 0.05 left 0.4 dB more."""


def survey(bench: Workbench, arrays: Mapping[str, Any], *, block: int) -> list[dict[str, Any]]:
    """All Linear modules in the order in which they run on the example: `name`; `reason`, why it
    cannot be done, or None; `on_grid`, whether that is because it is; and `group`, which those have
    in common that get the same tensor."""
    groups = _groups(bench)
    owners: dict[int, list[str]] = {}
    for name, parameter in bench.module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    found = []
    for name, layer in _linears(bench).items():
        reason = _unfit(name, layer, owners, block)
        if reason is None and name not in groups:
            reason = "its inputs are not seen: another module reads its weight itself"
        on_grid = reason is None and _is_on_grid(_array(layer), block)
        if on_grid:
            reason = f"its weights are on a {BITS}-bit grid already"
        group = groups.get(name, len(groups))
        found.append({"name": name, "group": group, "reason": reason, "on_grid": on_grid})
    return sorted(found, key=lambda layer: int(str(layer["group"])))


def _linears(bench: Workbench) -> dict[str, torch.nn.Linear]:
    import torch

    modules = bench.module.named_modules()
    return {name: m for name, m in modules if isinstance(m, torch.nn.Linear)}


def _unfit(
    name: str, layer: torch.nn.Linear, owners: Mapping[int, Sequence[str]], block: int
) -> str | None:
    import torch

    weight = layer.weight
    if "weight" not in layer._parameters:
        return "its weight is computed from other parameters"
    others = [owner for owner in owners[id(weight)] if owner != name]
    if others:
        return f"its weight is that of `{others[0]}` too"
    if weight.dtype != torch.float32:
        return f"its weight is {weight.dtype}, not float32"
    if not torch.isfinite(weight).all():
        return "its weight holds infinities or NaNs"
    if weight.shape[1] % block:
        return f"its {weight.shape[1]} inputs are no multiple of {block}"
    return None


def _groups(bench: Workbench) -> dict[str, int]:
    """By name, for the layers that run on the example: the number of the tensor that it gets
    first."""
    import torch

    seen: list[torch.Tensor] = []  # kept, as the id of a tensor that is gone is given to another
    groups: dict[str, int] = {}

    def note(name: str, inputs: torch.Tensor) -> None:
        same = next((n for n, other in enumerate(seen) if other is inputs), len(seen))
        if same == len(seen):
            seen.append(inputs)
        groups.setdefault(name, same)

    bench.module.eval()
    with torch.no_grad(), _watched(_linears(bench), note):
        bench.forward(bench.example)
    return groups


@contextmanager
def _watched(
    layers: Mapping[str, torch.nn.Module], note: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Calls `note` with the name and the input of each layer that runs."""

    def hook(name: str) -> Callable[..., None]:
        def told(module: torch.nn.Module, arguments: Any, keywords: Mapping[str, Any]) -> None:
            note(name, arguments[0] if arguments else keywords["input"])

        return told

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def fit(
    bench: Workbench,
    arrays: Mapping[str, Any],
    *,
    groups: list[list[str]],
    samples: str,
    count: int,
    block: int,
    seed: int,
) -> dict[str, Any]:
    """Puts the weights of all layers of `groups` on the grid; `survey` says what one group is.

    `error` and `rounding_error` are the shares of the layers' output power that are lost, on
    average, by this and by rounding to the nearest. Raises PreconditionError where the inputs of a
    layer are not finite, or zeros alone.
    """
    import torch

    algorithm = _neural_compressor()
    stored, taken = StoredSamples(Path(samples)), 0
    linears, errors = _linears(bench), []
    masks = {id(bench.module.get_parameter(name)): mask for name, mask in bench.masks.items()}
    bench.module.eval()
    with torch.no_grad():
        for number, names in enumerate(groups):
            progress.tell(number / len(groups), f"inputs of {names[0]}")
            solver = algorithm(linears[names[0]], linears[names[0]].weight, "cpu")
            taken = _add_samples(bench, names[0], solver, stored, count, seed)
            gram = _checked(solver.H, names[0])
            for name in names:
                progress.tell((number + 0.5) / len(groups), f"rounding {name}")
                weight = linears[name].weight
                mask = masks.get(id(weight))
                errors.append(_fit_layer(algorithm, linears[name], gram, block, mask))
    shares = np.mean(errors, axis=0)
    return {
        "layers": len(errors),
        "samples": taken,
        "error": float(shares[0]),
        "rounding_error": float(shares[1]),
    }


def _add_samples(
    bench: Workbench, name: str, solver: Any, stored: StoredSamples, count: int, seed: int
) -> int:
    """Adds the inputs of the layer on `count` samples, which are the same for every layer."""
    import torch

    def note(name: str, inputs: torch.Tensor) -> None:
        solver.add_batch(inputs.detach().float().cpu().reshape(1, -1, inputs.shape[-1]), None)

    done = 0
    with _watched({name: bench.module.get_submodule(name)}, note):
        for batch in stored.batches(BATCH, np.random.default_rng(seed)):
            if done >= count:
                break
            rows = min(batch.size, count - done)
            bench.forward({n: torch.from_numpy(np.array(a[:rows])) for n, a in batch.feeds.items()})
            done += rows
    return done


def _checked(gram: torch.Tensor, name: str) -> torch.Tensor:
    """The products of inputs [inputs, inputs] with something where an input was always zero.

    neural-compressor sets the weights of such inputs to zero, as if they would stay zero for ever.
    """
    import torch

    from optimc.core.errors import PreconditionError

    power = torch.diagonal(gram)
    if not torch.isfinite(gram).all() or not bool((power > 0).any()):
        what = "zeros alone" if torch.isfinite(gram).all() else "not finite"
        raise PreconditionError(
            f"the inputs of `{name}` are {what} on the training samples",
            fix=f"keep it as it is: `keep: [{name}]`",
        )
    power[power == 0] = power.mean()
    return gram


def _fit_layer(
    algorithm: Any,
    layer: torch.nn.Linear,
    gram: torch.Tensor,
    block: int,
    mask: torch.Tensor | None,
) -> tuple[float, float]:
    """Puts one layer's weight on the grid, the better of two ways; what both would lose."""
    import torch

    before = _array(layer)
    rounded = _rounded(before, block)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of small steps, which more threads make slower
    try:
        fitted = _solved(algorithm, layer, gram.clone(), block)
    finally:
        torch.set_num_threads(threads)
    if mask is not None:
        fitted = fitted * mask.cpu().numpy()
    products = gram.double().numpy()
    losses = [_power(candidate - before, products) for candidate in (fitted, rounded)]
    chosen = fitted if losses[0] < losses[1] else rounded
    layer.weight.copy_(torch.from_numpy(chosen))
    whole = _power(before, products) or 1.0
    return min(losses) / whole, losses[1] / whole


def _solved(algorithm: Any, layer: torch.nn.Linear, gram: torch.Tensor, block: int) -> Floats:
    """The weight by neural-compressor's algorithm; `gram` is used up."""
    solver = algorithm(layer, layer.weight, "cpu")
    solver.H = gram
    solver.quantizer.configure(
        {
            "dtype": "int",
            "bits": BITS,
            "group_size": block,
            "sym": True,
            "perchannel": True,
            "mse": True,
            "use_double_quant": False,
            "double_quant_sym": False,
        }
    )
    # With blocks of columns wider than a group, scales would be taken from weights that are behind.
    weight = layer.weight.detach().float().cpu().clone()
    scale, _, _, found = solver.fasterquant(
        weight, blocksize=block, groupsize=block, percdamp=_DAMPING, hybrid_order=True
    )
    scales = _exact(scale.numpy())
    steps = np.repeat(scale.numpy(), block, axis=1)
    integers = np.clip(np.rint(found.numpy() / steps), -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1)
    values: Floats = (integers * np.repeat(scales, block, axis=1)).astype(np.float32)
    return values


def _rounded(weight: Floats, block: int) -> Floats:
    """Each weight at the nearest place of the grid that `quantize_weights` would take."""
    integers, scales = quantize_blocks(weight, 1, block, BITS)
    return (integers * np.repeat(_exact(scales), block, axis=1)).astype(np.float32)


def _is_on_grid(weight: Floats, block: int) -> bool:
    return bool(np.allclose(_rounded(weight, block), weight, rtol=1e-5, atol=0.0))


def _exact(scales: Floats) -> Floats:
    """The scales with so few bits that their products with integers are exact."""
    mantissa, exponent = np.frexp(scales.astype(np.float64))
    cut = np.rint(mantissa * 2.0**_SCALE_BITS) / 2.0**_SCALE_BITS
    return np.ldexp(cut, exponent).astype(np.float32)


def _power(weight: Floats, products: NDArray[np.float64]) -> float:
    """The squared outputs of a weight [outputs, inputs], summed over what `products` are of."""
    wide = weight.astype(np.float64)
    return float(((wide @ products) * wide).sum())


def _array(layer: torch.nn.Linear) -> Floats:
    array: Floats = layer.weight.detach().float().cpu().numpy().copy()
    return array


@lru_cache(maxsize=1)
def _neural_compressor() -> Any:
    """The class GPTQ, which works on one layer.

    The package makes a folder when it is imported, in the current one unless told otherwise, and
    writes its doings to stderr.
    """
    import logging
    import tempfile

    from neural_compressor.common import set_workspace

    logging.getLogger("neural_compressor").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="optimc-inc-") as folder:
        set_workspace(folder)
        from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ
    return GPTQ
