"""The worker's side of `prune_depth`: finds blocks that can be skipped, and skips them.

A block is a member of a ModuleList or a Sequential that has modules of its own, runs once, gives
out what has the shape and type of its first input, and without which the module still runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from optimc.core.workbench import Workbench
from optimc.passes._patterns import check_modules

if TYPE_CHECKING:
    import torch

FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError)
SAMPLES = 64
"""How many training samples outputs are compared on where there is no tuning split."""


class _Blocks:
    """The blocks of one module: which are left out now."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.whole: list[dict[str, torch.Tensor]] = []
        """The outputs of the module with all its blocks, by batch; see `distance`."""
        self._out: list[tuple[str, torch.nn.Module]] = []
        self._masks = bench.masks

    def leave_out(self, names: Sequence[str]) -> None:
        """Puts all blocks back, and takes these out until the next call."""
        for name, block in reversed(self._out):
            self.bench.put_back(name, block)
        self.bench.masks = self._masks
        self._out = []
        for name in names:
            self._out.append((name, self.bench.skip(name)))


_known: WeakKeyDictionary[Workbench, _Blocks] = WeakKeyDictionary()


def survey(
    bench: Workbench, arrays: Any, *, among: Sequence[str], keep: Sequence[str]
) -> dict[str, Any]:
    """``blocks`` that can be skipped, in the module's order; ``refused`` ones with reasons.

    Raises InputError for patterns that name nothing.
    """
    blocks = _known[bench] = _Blocks(bench)
    names = [name for name in _members(bench, among) if name not in bench.skipped]
    check_modules(bench, "keep", keep, names, where="prune_depth", what="block")
    seen = _seen(bench, names)
    found: list[str] = []
    refused = []
    for name in names:
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        reason = _kept(name, keep) or _unfit(seen.get(name, []))
        if reason is None:
            reason = _does_not_run(blocks, name)
        if reason is None:
            found.append(name)
        elif among or any(True for _ in bench.module.get_submodule(name).parameters()):
            refused.append(("skip block", name, reason))
    return {"blocks": found, "refused": refused, "figures": figures(bench)}


def leave_out(bench: Workbench, arrays: Any, *, names: Sequence[str]) -> dict[str, int]:
    """Takes these blocks out, and all others back in; the module's figures then."""
    _known[bench].leave_out(names)
    return figures(bench)


def distance(
    bench: Workbench, arrays: Any, *, names: Sequence[str], samples: str, batch: int
) -> float:
    """The noise to signal ratio of the outputs without these blocks, on stored samples.

    The worst over the outputs; 0 is no difference, 1 (an SQNR of 0 dB) one as large as the outputs.
    """
    blocks = _known[bench]
    feeds = list(_feeds(Path(samples), batch))
    if not blocks.whole:
        blocks.leave_out([])
        blocks.whole = [_outputs(bench, feed) for feed in feeds]
    noise: dict[str, float] = {}
    signal: dict[str, float] = {}
    blocks.leave_out(names)
    for feed, whole in zip(feeds, blocks.whole, strict=True):
        for name, got in _outputs(bench, feed).items():
            wanted = whole[name].double()
            noise[name] = noise.get(name, 0.0) + float((got.double() - wanted).square().sum())
            signal[name] = signal.get(name, 0.0) + float(wanted.square().sum())
    return max(noise[name] / max(signal[name], 1e-30) for name in noise)


def figures(bench: Workbench) -> dict[str, int]:
    """What targets are given in: MACs of one sample, parameters and their bytes."""
    stats = bench.stats()
    return {"macs": stats.macs, "parameters": stats.parameters, "bytes": stats.bytes}


def _feeds(folder: Path, batch: int) -> Iterator[dict[str, torch.Tensor]]:
    import numpy as np
    import torch

    from optimc.calibration.sample_store import StoredSamples

    left = SAMPLES
    for group in StoredSamples(folder).groups:
        for first in range(0, min(len(group), left), batch):
            numbers = np.arange(first, min(first + batch, len(group), left)) + group.first
            rows = group.rows(numbers)
            yield {name: torch.from_numpy(np.array(array)) for name, array in rows.feeds.items()}
        left -= min(len(group), left)


def _outputs(bench: Workbench, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    import torch

    bench.module.eval()
    with torch.no_grad():
        return {name: tensor.clone() for name, tensor in bench.forward(feeds).items()}


def _members(bench: Workbench, among: Sequence[str]) -> list[str]:
    """The modules that may be blocks."""
    from torch import nn

    parts = dict(bench.module.named_modules())
    check_modules(bench, "among", among, where="prune_depth")
    if among:
        return [n for n in parts if n and any(fnmatchcase(n, p) for p in among)]
    containers = (nn.ModuleList, nn.Sequential)
    return [
        name
        for name, part in parts.items()
        if name
        and isinstance(parts[name.rpartition(".")[0]], containers)
        and not isinstance(part, containers)
        and any(True for _ in part.children())
    ]


def _seen(bench: Workbench, names: Sequence[str]) -> dict[str, list[bool]]:
    """By module, for each time it ran: whether its first input and its output are alike."""
    import torch

    seen: dict[str, list[bool]] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, arguments: Any, keywords: Any, output: Any) -> None:
            first: Any = arguments[0] if arguments else next(iter(keywords.values()), None)
            given = output[0] if isinstance(output, tuple) and len(output) == 1 else output
            alike = isinstance(first, torch.Tensor) and isinstance(given, torch.Tensor)
            if alike:
                alike = first.shape == given.shape and first.dtype == given.dtype
            seen.setdefault(name, []).append(alike)

        return hook

    handles = [
        bench.module.get_submodule(name).register_forward_hook(watch(name), with_kwargs=True)
        for name in names
    ]
    try:
        _outputs(bench, bench.example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _kept(name: str, keep: Sequence[str]) -> str | None:
    pattern = next((p for p in keep if fnmatchcase(name, p)), None)
    return None if pattern is None else f"`{pattern}` in keep names it"


def _unfit(runs: Sequence[bool]) -> str | None:
    if len(runs) != 1:
        return "it does not run" if not runs else f"it runs {len(runs)} times"
    if not runs[0]:
        return "what it gives has not the shape and type of its first input"
    return None


def _does_not_run(blocks: _Blocks, name: str) -> str | None:
    bench = blocks.bench
    wanted = {n: t.shape for n, t in _outputs(bench, bench.example).items()}
    try:
        blocks.leave_out([name])
        got = {n: t.shape for n, t in _outputs(bench, bench.example).items()}
    except FAILURES as error:
        text = " ".join(str(error).split())[:160]
        return f"the module does not run without it: {type(error).__name__}: {text}"
    finally:
        blocks.leave_out([])
    return None if got == wanted else "without it the outputs have other shapes"
