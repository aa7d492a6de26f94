"""Which tile a product takes on a GPU: each candidate is timed once for a shape, tinygrad's own form among them."""

import contextlib
import ctypes
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tinygrad import Device, GlobalCounters, Tensor, TinyJit, dtypes
from tinygrad.device import CompileError
from tinygrad.engine.realize import run_linear
from tinygrad.runtime.autogen import cuda

from kernels.graph import not_captured, read_source
from kernels.matmul import multiply, plain
from kernels.tiles import Product, Tile, guesses
from runtime.device import switched_on
from runtime.errors import UserError
from runtime.files import atomic_write


class Times:
    """How long products took on a GPU, by name of the GPU, shape and tile, kept in a file of the user's cache folder.

    With TUNE=0, for products that are over in a few microseconds, and on devices that run nothing or have no name,
    nothing is timed: the first of `guesses` is taken.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.known: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def of(self, device: str, p: Product) -> dict[str, float]:
        """Seconds by tile, and by `tinygrad`; measured now if they aren't known."""
        mine = self.known.setdefault(f"{gpu_name(device)}, matmul.cu {version()}", {})
        if str(p) not in mine:
            with not_captured():
                mine[str(p)] = measure(device, p)
            with contextlib.suppress(OSError, UserError), atomic_write(self.path) as new:
                new.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        return mine[str(p)]


@functools.cache
def times() -> Times:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Times(Path(folder, "llm-fundamentals", "matmul.json"))


@functools.cache
def version() -> str:
    """Changes with the kernel, so that another one is timed anew."""
    return hashlib.sha256(read_source("matmul.cu").encode()).hexdigest()[:8]


@functools.cache
def gpu_name(device: str) -> str:
    """As nvidia-smi has it, like `NVIDIA GeForce RTX 4090`; nothing where the driver doesn't say."""
    text = ctypes.create_string_buffer(256)
    if not device.startswith("CUDA"):
        return ""
    try:
        cuda.cuDeviceGetName(text, 256, getattr(Device[device], "cu_device"))  # noqa: B009  (of tinygrad's CUDADevice)
    except AttributeError:
        return ""
    return text.value.decode()


SMALLEST = 1 << 27  # multiplications of a product that is worth timing


def tuned(device: str, p: Product) -> bool:
    return switched_on("TUNE") and p.m * p.n * p.k >= SMALLEST and bool(gpu_name(device))


def measure(device: str, p: Product, candidates: int = 3) -> dict[str, float]:
    """Seconds that a product takes as tinygrad has it and with each of the likeliest tiles, the best of four runs.

    The numbers are -1, 0 and 1, so every sum is exact: a tile whose result isn't tinygrad's, or that doesn't run, is
    left out.
    """
    kind = getattr(dtypes, p.dtype)
    ones = lambda shape, by: (
        ((Tensor.arange(shape[0] * shape[1], device=device) * by // 7 % 3) - 1).cast(kind).reshape(shape).realize()
    )
    a, b = ones((p.k, p.m) if p.kind == "tn" else (p.m, p.k), 5), ones((p.n, p.k) if p.kind == "nt" else (p.k, p.n), 3)
    right, out = plain(p, a, b).realize(), {"tinygrad": timed(lambda a, b: plain(p, a, b), a, b)}
    for tile in guesses(p)[:candidates]:
        with contextlib.suppress(RuntimeError, CompileError):
            if (multiply(p, tile, a, b)[0] == right).all().item():
                out[str(tile)] = timed(lambda a, b, tile=tile: multiply(p, tile, a, b)[0], a, b)
    return out


def timed(function: Callable[..., Tensor], *inputs: Tensor) -> float:
    """Seconds of the fastest of four runs of a compiled function, by the GPU's own clock."""
    run = TinyJit(lambda *inputs: function(*inputs).realize())
    for _ in range(2):  # the second captures
        run(*inputs)
    assert run.captured
    taken = []
    for _ in range(4):
        before = GlobalCounters.time_sum_s
        run_linear(run.captured.linear, {}, tuple(x.uop.base for x in inputs), jit=True, wait=True)
        taken.append(GlobalCounters.time_sum_s - before)
    return min(taken)


def best_tile(device: str, p: Product) -> Tile:
    """The tile to take where tinygrad's form isn't."""
    if not tuned(device, p):
        return guesses(p)[0]
    taken = times().of(device, p)
    return min(guesses(p), key=lambda t: taken.get(str(t), math.inf))


def tinygrad_is_faster(device: str, products: Sequence[Product]) -> bool:
    """Whether these products take less time as tinygrad has them, all together."""
    if not all(tuned(device, p) for p in products):
        return False
    taken = [times().of(device, p) for p in products]
    ours = [min((s for name, s in t.items() if name != "tinygrad"), default=math.inf) for t in taken]
    return sum(t["tinygrad"] for t in taken) < sum(ours)
