"""Passes that are told which of their rewrites to leave out, as bisection does."""

from __future__ import annotations

import numpy as np
import pytest

from optimc.core.errors import CellError
from optimc.core.model import OnnxModel
from optimc.core.passes import Pass, Rewrite, RewriteLog, rewrite_keys
from optimc.passes.fuse import Fuse
from optimc.passes.simplify import Simplify
from optimc.testing.graphs import small_models
from optimc.testing.runs import run_model, run_pass, seeded_feeds

MODELS = sorted(small_models())


@pytest.mark.parametrize("pass_", [Simplify(), Fuse()], ids=lambda pass_: pass_.pass_name())
@pytest.mark.parametrize("name", MODELS)
def test_any_rewrite_can_be_left_out(pass_: Pass, name: str) -> None:
    model = small_models()[name]
    keys = rewrite_keys(run_pass(pass_, model).rewrites)
    for left_out in sorted({0, len(keys) // 2, len(keys) - 1} & set(range(len(keys)))):
        only = frozenset(key for n, key in enumerate(keys) if n != left_out)
        part = run_pass(pass_, model, only=only)
        assert set(rewrite_keys(part.rewrites)) <= only
        assert isinstance(part.model, OnnxModel)
        _agree(model, part.model)


@pytest.mark.parametrize("pass_", [Simplify(), Fuse()], ids=lambda pass_: pass_.pass_name())
@pytest.mark.parametrize("name", MODELS)
def test_all_of_them_are_the_pass_itself(pass_: Pass, name: str) -> None:
    model = small_models()[name]
    whole = run_pass(pass_, model)
    again = run_pass(pass_, model, only=frozenset(rewrite_keys(whole.rewrites)))
    assert again.rewrites == whole.rewrites
    assert again.model.digest == whole.model.digest
    nothing = run_pass(pass_, model, only=frozenset())
    assert nothing.rewrites == ()


def test_keys_tell_rewrites_of_one_place_apart() -> None:
    rewrites = [Rewrite(1, "fold", "a"), Rewrite(2, "fold", "b"), Rewrite(3, "fold", "a")]
    assert rewrite_keys(rewrites) == (("fold", "a", 1), ("fold", "b", 1), ("fold", "a", 2))


def test_a_pass_that_asks_forever_is_stopped() -> None:
    log = RewriteLog(only=frozenset())

    def ask_forever() -> None:
        while not log.allow("fold", "a"):
            pass

    with pytest.raises(CellError, match="does not end"):
        ask_forever()


def _agree(before: OnnxModel, after: OnnxModel) -> None:
    feeds = seeded_feeds(before)
    for x, y in zip(run_model(before, feeds), run_model(after, feeds), strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_allclose(x[name], y[name], rtol=1e-4, atol=1e-5)
