"""The core types, which everything else builds on."""
