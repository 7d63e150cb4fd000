"""Gradients on training samples, for Taylor importance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimc.calibration.sample_store import StoredBatch, StoredSamples
from optimc.core import progress
from optimc.passes._prune_groups import all_trained
from optimc.passes._prune_importance import by_channel

if TYPE_CHECKING:
    import torch

    from optimc.core.workbench import Workbench

SAMPLES = 256
"""How many training samples are looked at: the ranks hardly move beyond some hundred."""
BATCH = 16


def taylor_scores(bench: Workbench, samples: str, seed: int) -> Mapping[int, torch.Tensor]:
    """By the weight's id, for each channel that a convolution or linear layer makes: the squared
    sum of weight times gradient, in eval mode; the mean over batches of training samples.

    Squared first: at the end of a training the gradients of all batches together are about 0.
    The loss is the cross entropy of the first output [n, classes] where labels are class numbers
    [n]; else half the mean square of all outputs, which needs no labels: what then counts is how
    far a channel moves the outputs. A weight that the loss does not depend on has zeros.
    """
    import numpy as np
    import torch

    stored = StoredSamples(Path(samples))
    bench.module.eval()
    layers = [m for m in bench.module.modules() if isinstance(m, _layers())]
    sums = {
        id(m.weight): torch.zeros_like(by_channel(m, m.weight.detach(), reads=False)[:, 0])
        for m in layers
    }
    done = batches = 0
    with all_trained(bench.module), torch.enable_grad():
        for batch in stored.batches(BATCH, np.random.default_rng(seed)):
            if done >= SAMPLES:
                break
            bench.module.zero_grad(set_to_none=True)
            feeds = {name: torch.from_numpy(np.array(a)) for name, a in batch.feeds.items()}
            _loss(bench.forward(feeds), batch).backward()  # type: ignore[no-untyped-call]
            for weight, module in {id(m.weight): m for m in layers}.items():
                if module.weight.grad is not None:
                    product = (module.weight * module.weight.grad).detach()
                    sums[weight] += by_channel(module, product, reads=False).sum(1).square()
            done, batches = done + batch.size, batches + 1
            progress.tell(done / SAMPLES, "gradients on training samples")
    bench.module.zero_grad(set_to_none=True)
    return {weight: total / max(batches, 1) for weight, total in sums.items()}


def _layers() -> Any:
    from torch import nn

    return (nn.modules.conv._ConvNd, nn.Linear)


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
