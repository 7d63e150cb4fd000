"""Gradients on training samples, for Taylor importance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimc.calibration.sample_store import StoredBatch, StoredSamples
from optimc.core import progress
from optimc.passes._prune_groups import all_trained

if TYPE_CHECKING:
    import torch

    from optimc.core.workbench import Workbench

SAMPLES = 256
"""How many training samples are looked at: the ranks hardly move beyond some hundred."""
BATCH = 16


def gradients_of(bench: Workbench, samples: str, seed: int) -> Mapping[int, torch.Tensor]:
    """By the parameter's id: the mean gradient of the loss over training samples, in eval mode.

    The loss is the cross entropy of the first output [n, classes] where labels are class numbers
    [n]; else half the mean square of all outputs, which needs no labels: what then counts is how
    far a channel moves the outputs. A parameter that the loss does not depend on has zeros.
    """
    import numpy as np
    import torch

    stored = StoredSamples(Path(samples))
    bench.module.eval()
    done = 0
    with all_trained(bench.module), torch.enable_grad():
        bench.module.zero_grad(set_to_none=True)
        for batch in stored.batches(BATCH, np.random.default_rng(seed)):
            if done >= SAMPLES:
                break
            feeds = {name: torch.from_numpy(np.array(a)) for name, a in batch.feeds.items()}
            (_loss(bench.forward(feeds), batch) * batch.size).backward()  # type: ignore[no-untyped-call]
            done += batch.size
            progress.tell(done / SAMPLES, "gradients on training samples")
    found = {
        id(p): (torch.zeros_like(p) if p.grad is None else p.grad.detach() / max(done, 1))
        for p in bench.module.parameters()
    }
    bench.module.zero_grad(set_to_none=True)
    return found


def _loss(outputs: Mapping[str, torch.Tensor], batch: StoredBatch) -> torch.Tensor:
    import numpy as np
    import torch

    first = next(iter(outputs.values()))
    labels = batch.labels
    if labels is not None and labels.dtype.kind in "iu" and labels.ndim == 1 and first.dim() == 2:
        classes = torch.from_numpy(np.asarray(labels, np.int64))
        if first.shape[1] > int(classes.max()):
            return torch.nn.functional.cross_entropy(first, classes)
    squares = [t.square().mean() for t in outputs.values() if t.is_floating_point()]
    return torch.stack(squares).sum() / 2
