"""Which shapes fit an operation.

A kernel reads as far as it is told to: with a shape that doesn't fit it would read what lies behind a tensor. Where one
of these says no, no kernel takes the tensors, and the formula runs, which says what doesn't fit.
"""

from typing import Any

from tinygrad import Tensor


def multiplies(x: Tensor, w: Any, bias: Tensor | None, transposed: bool) -> bool:
    """Whether x `(..., k)` can be multiplied by w, `(k, n)` or transposed `(n, k)`, and has a bias of n numbers."""
    k, n = (w.shape[0], w.shape[-1])[:: -1 if transposed else 1]
    return len(w.shape) == 2 and x.shape[-1] == k and (bias is None or tuple(bias.shape) == (n,))


def as_wide(x: Tensor, *vectors: Tensor | None) -> bool:
    """Whether each of these vectors has as many numbers as a row of x."""
    return all(v is None or tuple(v.shape) == (x.shape[-1],) for v in vectors)


def looks_up(table: Any, idx: Tensor, positions: Tensor | None) -> bool:
    """Whether idx is `(B, T)`, the table `(V, C)`, and the table of positions as wide and at least T long."""
    return len(table.shape) == len(idx.shape) == 2 and (
        positions is None
        or (int(positions.shape[1]) == int(table.shape[1]) and int(positions.shape[0]) >= int(idx.shape[1]))
    )


def splits(qkv: Tensor, n_head: int, n_kv_head: int) -> bool:
    """Whether qkv is `(B, T, W)`, and W so many heads of queries, and of keys and values, that queries can share."""
    return qkv.ndim == 3 and n_head % n_kv_head == 0 and int(qkv.shape[2]) % (n_head + 2 * n_kv_head) == 0
