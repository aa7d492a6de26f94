"""Faster forms of what the lessons define.

A lesson writes an operation as a formula in plain tensors and puts `@fast` above it. Where cpu.py or cuda.py has a
kernel of the same name for the tensors at hand, it runs in place of the formula; the tests hold each to the other.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from tinygrad import Device, Tensor, dtypes

from kernels import cpu, cuda
from kernels.cpu import fused
from kernels.formulas import unchanged
from kernels.graph import add_up, constant, in_memory, with_gradient
from kernels.random_bits import next_seed, random_bits, training

__all__ = [
    "add_up", "constant", "describe_kernels", "edge", "fast", "fused", "instead", "next_seed", "random_bits",
    "training", "with_gradient",
]

_replaced: dict[str, Callable[..., Any]] = {}  # what `instead` has put in place of an operation


class fast:  # noqa: N801  (a decorator)
    """Let a kernel of the same name take over where there is one for these tensors.

    Around the formula are edges that tinygrad's scheduler doesn't fuse across, forward or backward. Left alone it
    computes LayerNorm, GELU and softmax again in every tile of the matmul that reads them: without edges a step of the
    CPU preset without kernels takes three times as long.
    """

    def __init__(self, body: Callable[..., Any]):
        functools.update_wrapper(self, body)
        self.name, self.body = body.__name__, body

    @functools.cached_property
    def kernels(self) -> list[Callable[..., Any]]:
        """The kernels of this name, if the formula is the one that they compute, and not changed since."""
        return [getattr(d, self.name) for d in (cuda, cpu) if hasattr(d, self.name)] if self.known else []

    @functools.cached_property
    def known(self) -> bool:
        """Whether the formula is as it was when its kernels were written, or has none. Asked at the first call, when
        all that the formula calls is defined."""
        has_kernels = any(hasattr(device, self.name) for device in (cuda, cpu))
        return not has_kernels or unchanged(self.body, "it runs as it is written now, without its faster kernel")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if replaced := _replaced.get(self.name):
            return replaced(self, *arguments, **options)
        return self.direct(*arguments, **options)

    def direct(self, *arguments: Any, **options: Any) -> Any:
        """The operation itself, whatever `instead` has put in its place."""
        for kernel in self.kernels:
            if (result := kernel(*arguments, **options)) is not None:
                return result
        return self.formula(*arguments, **options)

    def formula(self, *arguments: Any, **options: Any) -> Any:
        """The formula, whatever kernels there are."""
        return _with_edge(self.body(*map(_with_edge, arguments), **options))


def _with_edge(x: Any) -> Any:
    if isinstance(x, Tensor) and dtypes.is_float(x.dtype) and not in_memory(x):
        return x.contiguous().contiguous_backward()
    return x


def edge(x: Tensor) -> Tensor:
    """Have x written to memory once, when the graph runs (`x.realize()` would do it now). Changes x itself; returns it.

    What reads x is then not computed together with it: see `fast`.
    """
    sum_of_two = cpu.residual(x)  # while `fused` is active: the kernel that made one of the two adds the other
    sum_of_two = cuda.residual(x) if sum_of_two is None else sum_of_two
    return x.replace(_with_edge(x) if sum_of_two is None else sum_of_two)


def describe_kernels(device: str) -> str:
    """Which kernels run on a device, and why not where there are none."""
    kind = device.split(":")[0]
    if kind not in ("CPU", "CUDA"):
        instead = "; CUDA=1 has kernels" if kind == "NV" else ""
        return f"none for {kind}: the formulas run, compiled by tinygrad{instead}"
    reason = cpu.problem() if kind == "CPU" else cuda.problem(device, str(Device[device].renderer.target))
    if reason:
        return f"none, which is slower and takes more memory: {reason}"
    return "C" if kind == "CPU" else "CUDA, for attention in 16 bits, matmuls, LayerNorm, the embedding and AdamW"


@contextlib.contextmanager
def instead(**functions: Callable[..., Any]) -> Iterator[None]:
    """While this is active, operations of these names are these functions: `instead(attention=...)`.

    A function is given the operation that it replaces, and then that one's arguments.
    """
    before = dict(_replaced)
    _replaced.update(functions)
    try:
        yield
    finally:
        _replaced.clear()
        _replaced.update(before)
