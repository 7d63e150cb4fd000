"""The pre-deploy gate: a candidate against a baseline."""
