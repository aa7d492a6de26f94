"""Ids to batches: windows of T tokens, and the token after each of them."""

import numpy as np


def random_batch(ids: np.ndarray, B: int, T: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`B` windows at random places: x `(B, T)` and y `(B, T)`, the token after each of x, both int32."""
    starts = rng.integers(0, len(ids) - T, size=B)  # the last window ends on the last token
    return windows(ids, starts, T)


def windows(ids: np.ndarray, starts: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows that begin at `starts` `(B,)`: x `(B, T)` and y `(B, T)`, shifted by one, both int32."""
    index = starts[:, None] + np.arange(T + 1)  # (B, T+1)
    block = ids[index].astype(np.int32)
    return block[:, :-1], block[:, 1:]


def even_starts(ids: np.ndarray, T: int, count: int) -> np.ndarray:
    """Up to `count` starts of windows that don't overlap, spread evenly: the same ones at every evaluation."""
    available = (len(ids) - 1) // T
    return np.unique(np.linspace(0, available - 1, min(count, available)).astype(np.int64)) * T
