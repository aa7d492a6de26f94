"""The best that this CPU can do: its matmul peak and its memory's speed, and how near a training step comes to them.

    python -m benchmarks.roofline

A step can't be faster than its FLOPs at the matmul's speed, nor than its bytes at the memory's (Williams et al.,
"Roofline", 2009). The first is measured with our own kernel on a matrix that lies in the caches, the second with a copy
of 256 MB. FLOPs of a step are counted by formula, bytes by tinygrad: what its kernels read and write.
"""

from runtime.script import run_main

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tinygrad import Device, GlobalCounters, Tensor

from benchmarks.train_step import tinygrad_step
from commands.options import PRESETS
from commands.options import Options as GPTOptions
from gpt import linear
from runtime.cli import parse
from runtime.compiled import jit
from runtime.device import describe_device, open_device


@dataclass
class Options:
    """It has no option but --help."""


def quickest(work: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of so many calls."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def matmul_peak(n: int = 768, chain: int = 10) -> float:
    """FLOPs per second of (n, n) by (n, n), `chain` of them in one compiled call so that starting it doesn't count."""
    x = Tensor(np.random.default_rng(0).standard_normal((n, n), dtype=np.float32) / n**0.5).realize()

    def multiply(x: Tensor) -> Tensor:
        y = x
        for _ in range(chain):
            y = linear(y, x)
        return y.realize()

    compiled = jit(multiply)

    def run() -> None:
        compiled(x)
        Device[Device.DEFAULT].synchronize()

    run()
    return 2 * chain * n**3 / quickest(run, 12)


def memory_speed(megabytes: int = 256) -> float:
    """Bytes per second, read and written, of a copy by all cores."""
    a = Tensor(np.ones(megabytes * 250_000, np.float32)).realize()
    compiled = jit(lambda a: (a + 1).contiguous().realize())

    def copy() -> None:
        compiled(a)
        Device[Device.DEFAULT].synchronize()

    copy()
    return 2 * 4 * int(a.numel()) / quickest(copy, 5)


def measure() -> dict[str, float]:
    """The two roofs, and a step of the CPU preset under them: FLOPs, bytes and seconds."""
    open_device("cpu")
    o = GPTOptions(**PRESETS["shakespeare-char-cpu"])
    config = o.config(65)
    step = tinygrad_step(o, config)
    step()
    GlobalCounters.reset()
    step()
    moved = GlobalCounters.global_mem
    flops = config.flops_per_token * o.batch_size * o.block_size
    roofs = {"matmul": matmul_peak(), "memory": memory_speed()}
    return roofs | {"flops": flops, "bytes": moved, "seconds": quickest(step, 50)}


def main(argv: Sequence[str]) -> None:
    parse(Options, argv, "python -m benchmarks.roofline", str(__doc__))
    m = measure()
    print(f"device   {describe_device('CPU')}")
    by_flops, by_bytes = m["flops"] / m["matmul"], m["bytes"] / m["memory"]
    print(f"roofs    matmul {m['matmul'] / 1e9:,.0f} GFLOPS, memory {m['memory'] / 1e9:,.1f} GB/s")
    print(f"step     {m['flops'] / 1e9:.2f} GFLOP at that speed {by_flops * 1e3:.1f} ms, {m['bytes'] / 1e6:,.0f} MB "
          f"at that speed {by_bytes * 1e3:.1f} ms if none of it were in the caches")
    print(f"measured {m['seconds'] * 1e3:.1f} ms, the fastest of 50: {by_flops / m['seconds']:.0%} of the matmul roof")


if __name__ == "__main__":
    run_main(main)
