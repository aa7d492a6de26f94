"""Peak memory of full and of flash attention, forward and backward, for longer and longer texts.

    python -m benchmarks.attention_memory [--longest 8192] [--block 512]

Both are the formulas of variants.py in plain tensors, without kernels (which never hold the T x T weights either). What
is counted is the memory of the buffers of a compiled step, beside its inputs: all that grows with T. A longer text
has more blocks, and each has kernels of its own shapes: most of the time goes into compiling them.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import numpy as np
from tinygrad import GlobalCounters, Tensor
from tinygrad.device import Buffer

import variants
from kernels import fast
from runtime.cli import option, parse
from runtime.compiled import jit
from runtime.device import open_device


@dataclass
class Options:
    longest: int = option(8192, "tokens; it doubles from 256 up to it")
    block: int = option(512, "keys that flash attention looks at together")
    n_head: int = option(2, "heads, of 32 channels each")


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A list whose one number is the most memory in MB that buffers take, beyond what there was before."""
    before, peak, allocate = GlobalCounters.mem_used, [0.0], Buffer.allocate

    def counted(self: Buffer, *arguments: object, **options: object) -> Buffer:
        buffer = allocate(self, *arguments, **options)
        peak[0] = max(peak[0], (GlobalCounters.mem_used - before) / 1e6)
        return buffer

    with mock.patch.object(Buffer, "allocate", counted):
        yield peak


def measure(operation: fast, T: int, n_head: int) -> tuple[float, list[np.ndarray]]:
    """The peak memory in MB of one attention, forward and backward, and what it gives: y and the gradient of qkv."""
    rng, C = np.random.default_rng(0), 32 * n_head
    qkv, g = (Tensor(rng.standard_normal((1, T, n), dtype=np.float32)).realize() for n in (3 * C, C))

    def both(qkv: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        y = operation.formula(qkv, n_head)
        d = y.gradient(qkv, gradient=g)[0]
        Tensor.realize(y, d)
        return y, d

    with peak_memory() as peak:
        y, d = jit(both)(qkv, g)
    return peak[0], [y.numpy(), d.numpy()]


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.attention_memory", str(__doc__))
    open_device("cpu")
    variants.BLOCK = o.block
    print(f"{'T':>6}{'full':>12}{'flash':>12}{'largest difference':>22}{'of numbers up to':>19}", flush=True)
    for T in (256 << n for n in range(max(1, (o.longest // 256).bit_length()))):
        full, wanted = measure(variants.grouped_attention, T, o.n_head)
        flash, got = measure(variants.flash_attention, T, o.n_head)
        apart = max(np.abs(a - b).max() for a, b in zip(wanted, got))
        largest = max(np.abs(a).max() for a in wanted)
        print(f"{T:>6}{full:>9,.1f} MB{flash:>9,.1f} MB{apart:>22.1e}{largest:>19.1f}", flush=True)


if __name__ == "__main__":
    run_main(main)
