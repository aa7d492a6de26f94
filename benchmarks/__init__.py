"""Measurements and long checks; each module runs as `python -m benchmarks.NAME`."""
