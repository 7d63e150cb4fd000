"""Pruning of a module's weights: the compiler's side, and the functions for the worker.

The functions that take a `bench` run in the worker; torch is imported there alone. Arrays go
nowhere: masks are computed beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimc.core.passes import PassContext, PassResult
from optimc.core.torch_model import TorchModel
from optimc.passes._patterns import check_modules
from optimc.passes._prune_choice import Unfit, kept_by, nothing

if TYPE_CHECKING:
    import torch

    from optimc.core.workbench import Workbench

_OPERATORS = {
    "Conv1d": "Conv",
    "Conv2d": "Conv",
    "Conv3d": "Conv",
    "ConvTranspose1d": "ConvTranspose",
    "ConvTranspose2d": "ConvTranspose",
    "ConvTranspose3d": "ConvTranspose",
    "Linear": "Gemm",
}
"""Torch's layers, and what they are in ONNX."""


def prune_module(
    model: TorchModel,
    context: PassContext,
    rule: str,
    keep: Sequence[str],
    unfit: Unfit,
    cut: Callable[..., dict[str, Any]],
    **options: Any,
) -> PassResult:
    """Calls ``cut(bench, arrays, layers=..., among=..., **options)`` on the layers that fit.

    `among` are all that fit, `layers` those that may be changed (``--limit``). Raises InputError
    for patterns without effect, PreconditionError where no layer is left.
    """
    log = context.log
    with context.workshop(model) as shop:
        found = shop.call(find_layers, keep=keep, where=rule).data
        among = []
        for layer in found:
            reason = _unfit(layer, keep, unfit)
            if reason is None:
                among.append(layer["name"])
            else:
                log.refuse(rule, layer["name"], reason)
        if not among:
            raise nothing(rule, log)
        open_ = shop.call(cut, among=among, layers=[], **options).data["open"]
        chosen = [name for name in among if name in open_ and log.allow(rule, name)]
        told = shop.call(cut, among=among, layers=chosen, **options).data
        stats = {"zeros": told["zeros"], "weights": told["weights"]}
        result = shop.model() if chosen else model
    return PassResult(result, bool(chosen), stats, log.rewrites, log.refusals)


def _unfit(layer: Mapping[str, Any], keep: Sequence[str], unfit: Unfit) -> str | None:
    pattern = kept_by(layer["name"], keep)
    if pattern is not None:
        return f"kept as it is by `{pattern}`"
    if layer["reason"] is not None:
        return str(layer["reason"])
    operator = layer["operator"]
    return unfit(tuple(layer["shape"]), 0 if operator == "ConvTranspose" else 1, operator)


def find_layers(
    bench: Workbench, arrays: Mapping[str, Any], *, keep: Sequence[str], where: str
) -> list[dict[str, Any]]:
    """All modules with a weight of two dims or more: name, operator, shape, why it cannot be cut.

    A weight that several layers share is that of the first. Raises InputError for patterns of
    `keep` that name none of them; `where` is the pass.
    """
    import torch

    readers: dict[int, list[tuple[str, torch.nn.Module]]] = {}
    for name, module in bench.module.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() > 1:
            readers.setdefault(id(weight), []).append((name, module))
    found = []
    for shared in readers.values():
        name, module = shared[0]
        kinds = {_operator(m) for _, m in shared}
        found.append(
            {
                "name": name,
                "operator": _operator(module),
                "shape": list(module.weight.shape),  # type: ignore[arg-type]
                "reason": _reason(module, shared, kinds),
            }
        )
    names = [str(layer["name"]) for layer in found]
    check_modules(bench, "keep", keep, names, where=where, what="layer")
    return found


def _operator(module: torch.nn.Module) -> str | None:
    return next(
        (_OPERATORS[kind.__name__] for kind in type(module).__mro__ if kind.__name__ in _OPERATORS),
        None,
    )


def _reason(
    module: torch.nn.Module, shared: Sequence[tuple[str, Any]], kinds: set[str | None]
) -> str | None:
    import torch

    weight = module.weight
    if kinds == {None}:
        return f"{type(module).__name__} is no convolution and no linear layer"
    if len(kinds) > 1:
        return f"its weight is that of `{shared[1][0]}` too, a layer of another kind"
    if not isinstance(weight, torch.nn.Parameter):
        return "its weight is computed from other parameters"
    if not weight.dtype.is_floating_point:
        return f"its weight is {weight.dtype}, not floating-point"
    if not torch.isfinite(weight).all():
        return "its weight holds infinities or NaNs"
    return None


def cut_smallest(
    bench: Workbench,
    arrays: Mapping[str, Any],
    *,
    among: list[str],
    layers: list[str],
    share: float,
    scope: str,
) -> dict[str, Any]:
    """Cuts the `share` of the weights nearest to zero in `layers`, as `among` decides it."""
    from optimc.passes._prune_masks import largest_everywhere, largest_in_each

    rule = largest_in_each if scope == "layer" else largest_everywhere
    return _cut(bench, among, layers, lambda weights: rule(weights, share))


def cut_neighbours(
    bench: Workbench,
    arrays: Mapping[str, Any],
    *,
    among: list[str],
    layers: list[str],
    n: int,
    m: int,
) -> dict[str, Any]:
    """Keeps the `n` largest of each `m` neighbours along the input channels of `layers`."""
    from optimc.passes._prune_masks import largest_of_neighbours

    def masks(weights: Mapping[str, Any]) -> dict[str, Any]:
        return {name: largest_of_neighbours(array, 1, n, m) for name, array in weights.items()}

    return _cut(bench, among, layers, masks)


def _cut(
    bench: Workbench,
    among: Sequence[str],
    layers: Sequence[str],
    rule: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> dict[str, Any]:
    """Sets the masks of `layers`; tells which of `among` have no such mask yet, and the zeros."""
    import torch

    names = {id(p): n for n, p in bench.module.named_parameters()}
    parameters: dict[str, torch.Tensor] = {
        n: bench.module.get_submodule(n).get_parameter("weight") for n in among
    }
    weights = {n: p.detach().to("cpu", torch.float64).numpy() for n, p in parameters.items()}
    open_ = []
    for name, kept in rule(weights).items():
        parameter = parameters[name]
        key = names[id(parameter)]
        mask = torch.from_numpy(kept).to(parameter.device)
        known = bench.masks.get(key)
        # What was cut before stays cut.
        mask = mask if known is None else mask & known
        if known is None or not torch.equal(mask, known) or bool((parameter[~mask] != 0).any()):
            open_.append(name)
            if name in layers:
                bench.masks[key] = mask
    bench.apply_masks()
    return {
        "open": open_,
        "zeros": sum(int(torch.count_nonzero(p == 0)) for p in parameters.values()),
        "weights": sum(p.numel() for p in parameters.values()),
    }
