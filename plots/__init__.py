"""The pictures; each module runs as `python -m plots.NAME` and writes a PNG."""
