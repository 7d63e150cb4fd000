"""`simplify`: the contract of every pass, and what this one does and refuses."""

from __future__ import annotations

from optimc.passes.simplify import Simplify
from optimc.testing import PassContract


class TestSimplify(PassContract):
    passes = (Simplify(), Simplify(fold_limit=0))
