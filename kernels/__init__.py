"""Faster forms of what the lessons define.

A lesson writes an operation as a formula in plain tensors and puts `@fast` above it. Where cpu.py or cuda.py has a
kernel of the same name for the tensors at hand, the kernel runs in its place; the tests hold each kernel to its formula.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tinygrad import Tensor, dtypes

from kernels import cpu, cuda
from kernels.cpu import fused
from kernels.graph import in_memory
from kernels.random_bits import next_seed, random_bits, training

__all__ = ["edge", "fast", "fused", "instead", "next_seed", "random_bits", "training"]

Formula = TypeVar("Formula", bound=Callable[..., Any])
_replaced: dict[str, Callable[..., Any]] = {}  # what `instead` has put in place of an operation


def fast(formula: Formula) -> Formula:
    """Let a kernel of the same name take over where there is one for these tensors.

    `operation.formula` is the formula, whatever kernels there are; `operation.direct` passes by what `instead` put in
    its place.

    Around the formula are edges that tinygrad's scheduler doesn't fuse across, forward or backward. Left alone it
    computes LayerNorm, GELU and softmax again in every tile of the matmul that reads them: without edges a step of the
    CPU preset without kernels takes three times as long.
    """
    name = formula.__name__
    kernels = [getattr(device, name) for device in (cuda, cpu) if hasattr(device, name)]

    def direct(*arguments: Any, **options: Any) -> Any:
        for kernel in kernels:
            if (result := kernel(*arguments, **options)) is not None:
                return result
        return with_edges(*arguments, **options)

    def with_edges(*arguments: Any, **options: Any) -> Any:
        return _with_edge(formula(*map(_with_edge, arguments), **options))

    @functools.wraps(formula)
    def operation(*arguments: Any, **options: Any) -> Any:
        return _replaced.get(name, direct)(*arguments, **options)

    operation.formula, operation.direct = with_edges, direct  # type: ignore[attr-defined]
    return operation  # type: ignore[return-value]


def _with_edge(x: Any) -> Any:
    if isinstance(x, Tensor) and dtypes.is_float(x.dtype) and not in_memory(x):
        return x.contiguous().contiguous_backward()
    return x


def edge(x: Tensor) -> Tensor:
    """Mark that x is to be written to memory once, like `x.realize()` but when its time comes; returns x.

    What reads x is then not computed together with it: see `fast`.
    """
    sum_of_two = cpu.residual(x)
    return x.replace(_with_edge(x) if sum_of_two is None else sum_of_two)


@contextlib.contextmanager
def instead(**functions: Callable[..., Any]) -> Iterator[None]:
    """While this is active, operations of these names are these functions: `instead(attention=...)`."""
    before = dict(_replaced)
    _replaced.update(functions)
    try:
        yield
    finally:
        _replaced.clear()
        _replaced.update(before)
