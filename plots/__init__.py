"""The pictures: each file runs as `python plots/NAME.py` and writes a PNG."""
