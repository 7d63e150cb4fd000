"""From a recipe to a verdict: plan, pass manager, verification, cache, lock and gate."""
