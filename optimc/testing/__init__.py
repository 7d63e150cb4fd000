"""Contract suites that every pass and every target has to meet."""
