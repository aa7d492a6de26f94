"""Compiled steps: capturing one, and giving it the next batch without making new tensors."""

import functools
import gc
import threading
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from tinygrad import Tensor, TinyJit, dtypes
from tinygrad.device import Buffer
from tinygrad.engine.realize import capturing
from tinygrad.runtime.graph.hcq import HCQGraph
from tinygrad.runtime.ops_cpu import CPUWorker
from tinygrad.runtime.support.hcq import HCQAllocatorBase

from runtime.device import TESTED
from runtime.errors import UserError


def _outside_workers(free: Callable[..., None]) -> Callable[..., None]:
    """The same function, which a worker thread of tinygrad's CPU gives to a new thread.

    What is freed waits until the device has done its work. Python's garbage collector runs in any thread, and in a
    worker this would wait for the worker itself, for ever.
    """

    @functools.wraps(free)
    def call(*args: Any) -> None:
        if isinstance(threading.current_thread(), CPUWorker):
            threading.Thread(target=free, args=args, daemon=True).start()
        else:
            free(*args)

    return call


if version("tinygrad") == TESTED:
    HCQGraph.__del__ = _outside_workers(HCQGraph.__del__)  # type: ignore[method-assign]
    HCQAllocatorBase._free = _outside_workers(HCQAllocatorBase._free)  # type: ignore[method-assign]


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A TinyJit that captures on its first call, and quickly.

    By itself TinyJit runs the function once without capturing, so that lazily made buffers exist before it captures.
    Ours all exist, and scheduling the step twice would double the time to the first line of progress. Meanwhile
    Python's garbage collector is off: it would walk the graph's million objects again and again, a seventh of the time.
    """
    compiled: TinyJit = TinyJit(function)
    compiled.cnt = 1

    def call(*inputs: Tensor) -> Any:
        try:
            if compiled.captured is None:
                gc.disable()
            return compiled(*inputs)
        finally:
            gc.enable()

    return call


def require_tokens(ids: Any, vocab_size: int, longest: int, like: Any = None) -> None:
    """Raise UserError unless `ids`, a tensor or an array, are `(B, T)` whole numbers from 0 to `vocab_size` - 1, T from
    1 to `longest`; and of the shape of `like`. While a step is captured nothing can be read: then by their shape alone.
    """
    shape, kind = tuple(ids.shape), ids.dtype
    if len(shape) != 2 or min(shape) < 1:
        raise UserError(f"tokens are given as (B, T), B texts of at least one token, and not as {shape}")
    if not (dtypes.is_int(kind) if isinstance(ids, Tensor) else np.issubdtype(kind, np.integer)):
        raise UserError(f"tokens are whole numbers, and these are {kind}")
    if shape[1] > longest:
        raise UserError(f"the model sees {longest} tokens at a time, and these texts have {shape[1]}")
    if like is not None and shape != tuple(like.shape):
        raise UserError(f"each token needs the one after it: tokens {tuple(like.shape)} and targets {shape} differ")
    if isinstance(ids, Tensor) and (capturing or "NULL" in str(ids.device)):
        return
    values = ids.numpy() if isinstance(ids, Tensor) else ids
    if values.min() < 0 or values.max() >= vocab_size:
        wrong = int(values.min() if values.min() < 0 else values.max())
        raise UserError(f"there is no token {wrong}: the model has {vocab_size:,} of them, from 0 up")


class Inputs:
    """Tensors that NumPy arrays are copied into, call after call, as inputs of a compiled step.

    tinygrad takes 0.5 ms to schedule the copy into a fresh tensor, more than a whole step of a small model takes;
    writing into the buffer of an existing one takes 0.01 ms. Each copy waits for work that still reads the buffer.
    """

    def __init__(self, device: str | None = None) -> None:
        """Tensors on this device, or on the default one."""
        self.device = device
        self.tensors: list[Tensor] = []

    def __call__(self, *arrays: np.ndarray) -> list[Tensor]:
        """The same tensors each time, holding these arrays. AssertionError if a shape or dtype differs from before."""
        if not self.tensors:
            self.tensors = [Tensor(a.copy(), device=self.device).realize() for a in arrays]
            self.kinds = [(a.shape, a.dtype) for a in arrays]
        else:
            assert self.kinds == [(a.shape, a.dtype) for a in arrays], "a compiled step has one shape"
            for tensor, array in zip(self.tensors, arrays):
                buffer_of(tensor).copyin(np.ascontiguousarray(array).data.cast("B"))
        return self.tensors


def buffer_of(tensor: Tensor) -> Buffer:
    """The memory of a realized tensor."""
    memory = tensor.uop.base.buffer
    assert isinstance(memory, Buffer)
    return memory


def zeros_on(other: Tensor, shape: Sequence[Any]) -> Tensor:
    """float32 zeros `shape` in memory, made on the device of another tensor.

    From the host to a GPU they would pass through pinned memory as large, which tinygrad keeps.
    """
    return Tensor.zeros(*shape, device=other.device, dtype=dtypes.float32).contiguous()
