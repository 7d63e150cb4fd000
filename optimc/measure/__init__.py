"""Latency, quality metrics, memory and their statistics."""
