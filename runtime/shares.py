"""A step on several devices and ranks: each has all of the model and takes its rows of a batch.

The gradients of a device lie side by side in one piece of its memory. Once a step, after the last of the batches that
are accumulated, these pieces are added up: over the devices of this process by copies between them, over the ranks by
MPI (runtime/ranks.py), where they lie if MPI can reach that memory. Then every device takes the same optimizer step.
"""

import contextlib
import ctypes
import dataclasses
import functools
import math
import operator
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.device import Buffer, BufferSpec
from tinygrad.nn.state import get_state_dict
from tinygrad.runtime.autogen import cuda

from runtime import ranks
from runtime.compiled import buffer_of, jit
from runtime.errors import UserError

ALIGNED = 16  # numbers: a tensor begins at a multiple of a cache line
Task = TypeVar("Task")

# ---- who takes which rows ----


@dataclass(frozen=True)
class Share:
    """The `index`-th of `count` shares of a batch."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """Its rows. Shares differ by one row at most."""
        return slice(self.index * batch_size // self.count, (self.index + 1) * batch_size // self.count)


def shares(devices: int) -> list[Share]:
    """Those of this rank's devices."""
    return [Share(ranks.rank() * devices + i, ranks.size() * devices) for i in range(devices)]


def require_rows(batch_size: int, devices: int) -> None:
    """Raise UserError unless each device of each rank has a row of a batch."""
    if devices < 1 or batch_size < ranks.size() * devices:
        of = f"{ranks.size()} ranks with --devices {devices}" if ranks.size() > 1 else f"--devices {devices}"
        raise UserError(f"--batch-size {batch_size} can't be shared by {of}: each device takes a window at least")


def take_rows(batch: Sequence[np.ndarray], rows: slice) -> tuple[np.ndarray, ...]:
    """Some rows of every array of a batch; a vector stays as it is."""
    return tuple(a[rows] if a.ndim > 1 else a for a in batch)


# ---- a model on another device ----


def copy_to(device: str, task: Task) -> Task:
    """The task on a copy of its model's tensors, on another device.

    A model can be any object. So there is no second one: while the loss is computed, its tensors are the copies.
    """
    t: Any = task
    every = get_state_dict(t.model)
    copies = {name: tensor.to(device).contiguous().realize() for name, tensor in every.items()}
    trained = {id(p): name for name, p in (t.params or every).items()}
    params = {trained[id(p)]: copies[name] for name, p in every.items() if id(p) in trained}

    def loss(model: Any, *batch: Tensor) -> Tensor:
        with _standing_in(every, copies):
            return t.loss(model, *batch)

    return dataclasses.replace(t, params=params, loss=loss, devices=())


@contextlib.contextmanager
def _standing_in(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Iterator[None]:
    before = {name: t.uop for name, t in tensors.items()}
    for name, t in tensors.items():
        t.uop = others[name].uop
    try:
        yield
    finally:
        for name, t in tensors.items():
            t.uop = before[name]


# ---- tensors that lie side by side ----


class Block:
    """float32 tensors side by side in one piece of a device's memory, so that they are added up as one."""

    def __init__(self, shapes: Mapping[str, Sequence[Any]], device: str):
        sizes = [-(-math.prod(map(int, shape)) // ALIGNED) * ALIGNED for shape in shapes.values()]
        self.device = device
        self.whole = Tensor.zeros(sum(sizes), dtype=dtypes.float32, device=device).contiguous().realize()
        self.memory, begin = buffer_of(self.whole), 0
        self.tensors: dict[str, Tensor] = {}
        for (name, shape), size in zip(shapes.items(), sizes):
            place = address_of(self.memory) + 4 * begin
            self.tensors[name] = Tensor.from_blob(place, tuple(shape), dtype=dtypes.float32, device=device)
            begin += size


def address_of(buffer: Buffer) -> int:
    """Where a buffer lies in its device's memory; 0 on NULL, which has none."""
    memory: Any = buffer.ensure_allocated()._buf
    return int(getattr(memory, "va_addr", None) or getattr(memory, "value", None) or 0)


class Sum:
    """Adds up the blocks of this process's devices over all devices of all ranks: each then holds the sum."""

    def __init__(self, blocks: Sequence[Block]):
        self.blocks = list(blocks)
        self.host: Buffer | None = None  # where the numbers of a GPU pass through
        self.all_to_all, self.to_first, self.from_first = jit(self._all_to_all), jit(self._to_first), jit(self._spread)

    def __call__(self) -> None:
        several = len(self.blocks) > 1
        if ranks.size() == 1:
            return self._run(self.all_to_all) if several else None
        if several:
            self._run(self.to_first)
        self._over_ranks(self.blocks[0].memory)
        return self._run(self.from_first) if several else None

    def _run(self, function: Callable[[], None]) -> None:
        """tinygrad starts a graph of several CUDA devices in the stream of one: the others wait here."""
        for i in (0, 1):
            for block in self.blocks:
                Device[block.device].synchronize()
            if i == 0:
                function()

    def _all_to_all(self) -> None:
        """Each device adds up one part of all blocks and sends it to the others: it sends 2 (N - 1) / N of a block."""
        wholes = [block.whole for block in self.blocks]
        n, size = len(wholes), int(wholes[0].numel())
        cuts = [size * i // n // ALIGNED * ALIGNED for i in range(n)] + [size]
        parts = [
            functools.reduce(operator.add, [w[a:b].contiguous().to(block.device) for w in wholes]).contiguous()
            for block, a, b in zip(self.blocks, cuts, cuts[1:])
        ]
        Tensor.realize(*parts)
        for w in wholes:
            w.assign(Tensor.cat(*[part.to(w.device) for part in parts]))
        Tensor.realize(*wholes)

    def _to_first(self) -> None:
        wholes = [block.whole for block in self.blocks]
        wholes[0].assign(functools.reduce(operator.add, [w.to(wholes[0].device) for w in wholes])).realize()

    def _spread(self) -> None:
        first, *others = [block.whole for block in self.blocks]
        Tensor.realize(*[w.assign(first.to(w.device)) for w in others])

    def _over_ranks(self, memory: Buffer) -> None:
        kind, device = memory.device.split(":")[0], Device[memory.device]
        device.synchronize()
        if kind == "CPU" or (kind == "CUDA" and ranks.reaches_gpus()):
            ranks.sum_in_place(address_of(memory), memory.size)
            return
        if self.host is None:  # page-locked memory, which a GPU reads and writes by itself
            where, how = (memory.device, BufferSpec(host=True)) if kind == "CUDA" else ("CPU", None)
            self.host = Buffer(where, memory.size, memory.dtype, options=how).ensure_allocated()
        place = address_of(self.host)
        numbers = memoryview((ctypes.c_char * memory.nbytes).from_address(place)).cast("B")
        memory.copyout(numbers)
        ranks.sum_in_place(place, memory.size)
        if kind == "CUDA":  # tinygrad's own would copy the numbers once more, into other page-locked memory
            cuda.cuMemcpyHtoDAsync_v2(memory._buf, self.host._buf, memory.nbytes, None)
            device.synchronize()
        else:
            memory.copyin(numbers)


def make_equal(*copies: Mapping[str, Tensor]) -> None:
    """Give all ranks the numbers of rank 0 where theirs differ, and all copies of the tensors those of the first copy.

    Another kind of processor may round otherwise.
    """
    buffers = {name: buffer_of(t) for name, t in copies[0].items()}
    if ranks.size() > 1:
        crc = functools.reduce(lambda crc, b: zlib.crc32(b.as_memoryview(), crc), buffers.values(), 0)
        if len(set(ranks.exchange(crc))) > 1:
            for buffer in buffers.values():
                numbers = np.frombuffer(buffer.as_memoryview(), np.uint8).copy()
                ranks.copy_from_first(numbers.ctypes.data, numbers.nbytes)
                buffer.copyin(numbers.data)
    for copy in copies[1:]:
        for name, t in copy.items():
            buffer_of(t).copyin(buffers[name].as_memoryview())
