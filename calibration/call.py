"""The source `call`: samples from a Python function of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from optimc.calibration.arrays import Transform
from optimc.calibration.options import SourceOptions

if TYPE_CHECKING:
    from optimc.calibration.call_dataset import CallDataset


class CallSource(SourceOptions):
    """``{call: "package.module:function", take: 500}``; `--untrusted` refuses it.

    The function takes no arguments and gives an iterable (a generator, a list) of samples: each a
    mapping from the model's inputs to one array without the samples' axis, or a pair of such a
    mapping and a label. It is called anew for each sweep over the data, and has to give the same
    samples each time. Labels are numbers, arrays, or mappings of arrays.
    """

    call: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """``package.module:function``, also of a module beside the recipe; using it runs its code."""
    transform: Transform = Field(default=[])
    """Steps from the arrays to the model's inputs: a list for all, or one for each input."""

    def open(self, base: Path, seed: int) -> CallDataset:
        """The data set; the function is imported at once, and called at the first use.

        Raises InputError where it cannot be imported.
        """
        from optimc.calibration.call_dataset import CallDataset

        return CallDataset(self, base)
