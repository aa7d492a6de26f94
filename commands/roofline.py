"""The kernels of a training step for an NVIDIA GPU that you don't have: compiled, counted, and never run.

The step is the Trainer's own, captured on tinygrad's NULL device, which has no memory and runs nothing, with the CUDA
compiler of `runtime.device.compiling_for`. What its kernels do is exact; how long they take isn't known from that.
`estimate` says how long they would take at the very least, on a GPU that reached its published peaks. `waiting` is a
guess at what a roof doesn't show: a kernel of few threads, each of which reads memory again and again.
"""

import contextlib
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Tensor
from tinygrad.dtype import AddrSpace
from tinygrad.engine import jit as tinygrad_jit
from tinygrad.helpers import ansistrip
from tinygrad.renderer import Estimates
from tinygrad.uop.ops import Ops, UOp

from runtime.run import Run
from trainer import Task, Trainer, TrainOptions


@dataclass(frozen=True)
class GPU:
    """Published dense peaks: FLOPs per second in tensor cores (16-bit numbers, float32 sums) and outside them in
    float32, bytes per second between memory and chip, bytes of memory, and multiprocessors (SMs)."""

    name: str
    tensor: float
    plain: float
    bandwidth: float
    memory: float
    processors: int


# FLOPs per second that NVIDIA publishes for tensor cores: dense 16-bit matrices, float32 sums. A key has the words that
# identify the GPU in the name that nvidia-smi gives it; the first key that fits counts.
TENSOR_PEAKS = {
    "RTX 3090": 71e12, "RTX 4090": 165.2e12, "RTX 5090": 209.5e12, "A100": 312e12, "L40S": 362e12,
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "H200": 989.4e12,
}
GPUS = (
    GPU("RTX 4090", TENSOR_PEAKS["RTX 4090"], 82.6e12, 1008e9, 24e9, 128),  # NVIDIA Ada GPU Architecture, appendix A
    GPU("H100 SXM", TENSOR_PEAKS["H100"], 66.9e12, 3350e9, 80e9, 132),  # NVIDIA H100 Tensor Core GPU, table 2
)


def tensor_peak(name: str) -> float | None:
    """The entry of TENSOR_PEAKS for a GPU by its name, like `NVIDIA GeForce RTX 4090`; None for an unknown one."""
    return next((peak for key, peak in TENSOR_PEAKS.items() if all(word in name for word in key.split())), None)

# A guess: an answer from a GPU's memory takes some 0.6 microseconds, and a compiler has four questions on the way.
TURN = 0.15e-6


@dataclass(frozen=True)
class Kernel:
    """One launch: its FLOPs, those of them in `mma.sync`, and the bytes of every buffer it reads or writes, once.

    Of its parallelism: blocks, the threads of each, and how often a thread reads memory in loops, one turn after the
    other.
    """

    name: str
    flops: float
    tensor: float
    bytes: float
    source: str
    blocks: int = 1
    threads: int = 1
    turns: int = 0

    def seconds(self, gpu: GPU) -> float:
        """The least that it could take: its arithmetic at the peaks, or its traffic, whichever is longer.

        A block runs on one multiprocessor, so with fewer blocks than these a kernel has a share of the peaks.
        """
        share = min(1.0, self.blocks / gpu.processors)
        arithmetic = self.tensor / gpu.tensor + (self.flops - self.tensor) / gpu.plain
        return max(arithmetic / share, self.bytes / gpu.bandwidth)

    def waiting(self, gpu: GPU) -> float:
        """By how much longer its threads may wait for memory, guessed at TURN seconds a turn."""
        return max(0.0, self.turns * TURN - self.seconds(gpu))


@dataclass(frozen=True)
class Step:
    """A compiled step. `memory` is what all its buffers take: parameters, optimizer, inputs and the planned rest."""

    kernels: list[Kernel]
    memory: int

    @property
    def flops(self) -> float:
        return sum(k.flops for k in self.kernels)

    @property
    def tensor(self) -> float:
        return sum(k.tensor for k in self.kernels)

    @property
    def bytes(self) -> float:
        return sum(k.bytes for k in self.kernels)

    def estimate(self, gpu: GPU) -> float:
        """Seconds, with every kernel at the roof and no time between two of them."""
        return sum(k.seconds(gpu) for k in self.kernels)

    def waiting(self, gpu: GPU) -> dict[Kernel, float]:
        """The kernels of too few threads, the worst first, each with the seconds that all its launches may wait."""
        counts = Counter(self.kernels)
        waits = {k: n * k.waiting(gpu) for k, n in counts.items()}
        return {k: s for k, s in sorted(waits.items(), key=lambda item: -item[1]) if s}


def compile_step(
    model: Any, loss: Callable[..., Tensor], batch: tuple[np.ndarray, ...], options: TrainOptions, **more: Any
) -> Step:
    """The step of a Task with `more`, for one batch. The model has to be made under `compiling_for`."""
    with tempfile.TemporaryDirectory() as folder, recorded() as steps:
        Trainer(Task(model, loss, lambda i: batch, dict, **more), options, Run(folder)).take_step()
    return count(steps)


def count(steps: list[UOp]) -> Step:
    """What is in steps that tinygrad's JIT has captured."""
    calls = [call for step in steps for call in _calls(step)]
    buffers = {b for call in calls for argument in call.src[1:] for b in argument.toposort() if b.op is Ops.BUFFER}
    buffers |= {b for call in calls for b in call.src[1:] if b.op is Ops.PARAM}  # the inputs
    memory = sum(math.prod(map(int, b.shape)) * b.dtype.base.itemsize for b in buffers)
    return Step([_kernel(call.src[0]) for call in calls if call.src[0].op is Ops.PROGRAM], memory)


@contextlib.contextmanager
def recorded() -> Iterator[list[UOp]]:
    """What tinygrad's JIT makes of the functions that it captures meanwhile: lists of calls, compiled and planned."""
    steps: list[UOp] = []
    original = tinygrad_jit.jit_lower

    def recording(*args: Any) -> UOp:
        steps.append(original(*args))
        return steps[-1]

    tinygrad_jit.jit_lower = recording
    try:
        yield steps
    finally:
        tinygrad_jit.jit_lower = original


def _calls(step: UOp) -> Iterator[UOp]:
    for call in step.src:
        if call.src[0].op is Ops.CUSTOM_FUNCTION:  # a CUDA graph of several
            yield from _calls(call.src[0].src[0])
        else:
            yield call


def _kernel(program: UOp) -> Kernel:
    sink, _, lines, source = program.src[:4]
    total, text, info = sink.arg.estimates or Estimates(), source.arg, program.arg
    if stated := re.search(r"// (\d+) FLOPs in mma.sync, (\d+) turns", text):  # a kernel that was written by hand
        tensor, turns = int(stated[1]), int(stated[2])
    else:
        loops = (Ops.WMMA, Ops.RANGE, Ops.END, Ops.SPECIAL)
        tensor = int(Estimates.from_uops(tuple(u for u in lines.src if u.op in loops)).simplify().ops)
        turns = _turns(lines.src)
    tensor = tensor if "mma.sync" in text else 0
    blocks, threads = (math.prod(map(int, size or (1,))) for size in (info.global_size, info.local_size))
    return Kernel(ansistrip(info.name), int(total.ops), tensor, int(total.mem), text, blocks, threads, turns)


def _turns(lines: Sequence[UOp]) -> int:
    """How often a thread goes through the loops of a kernel of tinygrad's that read memory, one inside another."""
    around: list[UOp] = []  # the loops at a line
    reading: dict[UOp, int] = {}  # the innermost loop around a load from memory: how often it goes round in all
    for u in lines:
        if u.op is Ops.RANGE:
            around.append(u)
        elif u.op is Ops.END:
            around.pop()
        elif u.op is Ops.LOAD and around and u.src[0].ptrdtype.addrspace == AddrSpace.GLOBAL:
            reading[around[-1]] = math.prod(int(r.vmax) + 1 for r in around)
    return sum(reading.values())
