"""Contract suites that every pass and every target has to meet, and helpers for tests."""

from __future__ import annotations

from optimc.testing.pass_contract import PassContract
from optimc.testing.runs import as_model, run_model, run_pass, seeded_feeds

__all__ = ["PassContract", "as_model", "run_model", "run_pass", "seeded_feeds"]
