"""Data sources, observers and range estimators."""
