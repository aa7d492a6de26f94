"""Matrix products in 16 bits on an NVIDIA GPU: y = x W + b with its gradients, and GELU or a sum in the same kernel.

tinygrad's own form of a product reads every operand from memory straight into registers. matmul.cu brings tiles through
shared memory while it multiplies others, as CUTLASS does. How large a tile should be depends on the GPU and the shape,
so on a GPU the candidates are timed once for each shape, tinygrad's form among them (`Times`).

A GELU or a sum that comes after a product is taken into its kernel. The kernel of the product alone is then read by
nobody and never runs: the model needs no second form for that.
"""

import functools
import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from tinygrad import Device, Tensor, TinyJit, dtypes
from tinygrad.uop.ops import Ops, UOp

from kernels.graph import cuda_kernel, laid_out, matrix, not_captured, read_source
from runtime.files import atomic_write

FEWEST_ROWS = 64  # of x; with fewer a product only reads W, and that tinygrad does well


@dataclass(frozen=True)
class Tile:
    """What a block computes, and how: tiles of m x n, k of the sum at a time, by warps of wm x wn."""

    m: int
    n: int
    k: int
    wm: int
    wn: int
    stages: int
    split: int = 1

    @property
    def threads(self) -> int:
        return 32 * (self.m // self.wm) * (self.n // self.wn)

    def __str__(self) -> str:
        return "x".join(map(str, (self.m, self.n, self.k, self.wm, self.wn, self.stages, self.split)))


# Each takes at most the 48 KB of shared memory that a kernel has without asking for more.
TILES = (
    Tile(128, 128, 32, 64, 64, 3), Tile(128, 128, 32, 64, 32, 3), Tile(128, 64, 32, 64, 32, 4),
    Tile(64, 128, 32, 32, 64, 4), Tile(64, 64, 64, 32, 32, 3),
)


@dataclass(frozen=True)
class Product:
    """(m, k) by (k, n): `nn`, or with the second lying as (n, k) `nt`, or with the first lying as (k, m) `tn`."""

    kind: str
    m: int
    n: int
    k: int
    dtype: str
    float_out: bool = False  # float32 results, for the gradient of a weight

    def __str__(self) -> str:
        return f"{self.kind} {self.m}x{self.n}x{self.k} {self.dtype}{' to float' if self.float_out else ''}"


# ---- which tile ----


def seconds(p: Product, tile: Tile, processors: int = 128) -> float:
    """A guess, for a 4090 unless it is another GPU's count of multiprocessors: two blocks at a time on each.

    The larger a warp's part the more it multiplies for what it reads. A split sum is written and read once more.
    """
    blocks = -(-p.m // tile.m) * -(-p.n // tile.n) * tile.split
    rounds = -(-blocks // (2 * processors))
    share = tile.wm * tile.wn / (tile.wm + tile.wn) / 32  # 1 for 64 x 64
    work = 2 * tile.m * tile.n * (p.k / tile.split) * 2 / (1.3e12 * share**0.7)
    return rounds * work + (2 * tile.split * p.m * p.n * 4 / 1e12 if tile.split > 1 else 0)


@functools.cache
def guesses(p: Product) -> tuple[Tile, ...]:
    """The tiles, each with the split that suits it, the best guess first: always the same for a shape."""
    pieces = -(-p.k // 32)
    splits = [s for s in (1, 2, 4, 8, 16) if p.float_out and s <= pieces] or [1]
    best = [min((replace(t, split=s) for s in splits), key=lambda t: seconds(p, t)) for t in TILES]
    return tuple(sorted(best, key=lambda t: seconds(p, t)))


class Times:
    """How long products took on a GPU, by name of the GPU, shape and tile, kept in a file of the user's cache folder.

    With TUNE=0, and on devices that run nothing, nothing is timed and the first of `guesses` is taken.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.known: dict[str, dict[str, dict[str, float]]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}

    def of(self, device: str, p: Product) -> dict[str, float]:
        """Seconds by tile, and by `tinygrad`; measured now if they aren't known."""
        mine = self.known.setdefault(f"{gpu_name(device)}, {version()}", {})
        if str(p) not in mine:
            with not_captured():
                mine[str(p)] = measure(device, p)
            with atomic_write(self.path) as new:
                new.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
        return mine[str(p)]


@functools.cache
def times() -> Times:
    return Times(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "llm-fundamentals", "matmul.json"))


@functools.cache
def version() -> str:
    """Changes with the kernel, so that another one is timed anew."""
    return hashlib.sha256(read_source("matmul.cu").encode()).hexdigest()[:8]


@functools.cache
def gpu_name(device: str) -> str:
    """As nvidia-smi has it, like `NVIDIA GeForce RTX 4090`."""
    import ctypes

    from tinygrad.runtime.autogen import cuda

    text = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(text, 256, Device[device].cu_device)
    return text.value.decode()


def measure(device: str, p: Product, candidates: int = 3, repeats: int = 4) -> dict[str, float]:
    """The fastest of three runs with each of the likeliest tiles and as tinygrad has it, in seconds."""
    kind = getattr(dtypes, p.dtype)
    a = Tensor.empty(*((p.k, p.m) if p.kind == "tn" else (p.m, p.k)), device=device, dtype=kind).realize()
    b = Tensor.empty(*((p.n, p.k) if p.kind == "nt" else (p.k, p.n)), device=device, dtype=kind).realize()
    out = {}
    for tile in (None, *guesses(p)[:candidates]):

        def work(a: Tensor, b: Tensor, tile: Tile | None = tile) -> None:
            for _ in range(repeats):
                (plain(p, a, b) if tile is None else multiply(p, tile, a, b)[0]).realize()

        run, best = TinyJit(work), float("inf")
        for _ in range(6):  # it captures in the second, and is quick from then on
            Device[device].synchronize()
            began = time.perf_counter()
            run(a, b)
            Device[device].synchronize()
            best = min(best, time.perf_counter() - began)
        out["tinygrad" if tile is None else str(tile)] = best / repeats
    return out


def tuned(device: str) -> bool:
    return device.split(":")[0] == "CUDA" and os.environ.get("TUNE", "1") != "0"


def best_tile(device: str, p: Product) -> Tile:
    if not tuned(device):
        return guesses(p)[0]
    taken = times().of(device, p)
    return min((t for t in guesses(p) if str(t) in taken), key=lambda t: taken[str(t)])


def tinygrad_is_faster(device: str, products: tuple[Product, ...]) -> bool:
    """Whether a layer's products, forward and backward, take less time as tinygrad has them."""
    if not tuned(device):
        return False
    all_times = [times().of(device, p) for p in products]
    return sum(t["tinygrad"] for t in all_times) < sum(min(s for k, s in t.items() if k != "tinygrad") for t in all_times)


# ---- a product ----


def plain(p: Product, a: Tensor, b: Tensor) -> Tensor:
    """As a formula."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    y = a.T @ b if p.kind == "tn" else a @ (b.T if p.kind == "nt" else b)
    return y.cast(dtypes.float32 if p.float_out else a.dtype).contiguous()


def multiply(
    p: Product, tile: Tile, a: Tensor, b: Tensor, backward: Any = None, *, bias: Tensor | None = None,
    gelu: bool = False, before: Tensor | None = None, add: Tensor | None = None, shape: tuple[int, ...] | None = None,
) -> list[Tensor]:
    """[a b] or, with `gelu`, [GELU(a b + bias), a b + bias]; times GELU's slope at `before`, plus `add`."""
    half, split = a.dtype, tile.split
    shape, kind = shape or (p.m, p.n), dtypes.float32 if p.float_out or split > 1 else half
    y = Tensor.empty(*((split, *shape) if split > 1 else shape), device=a.device, dtype=kind)
    tiles, pieces = -(-p.m // tile.m) * -(-p.n // tile.n), -(-p.k // tile.k)
    numbers: dict[str, Any] = {
        **kind_of(half), "O": "float" if kind == dtypes.float32 else "unsigned short", "M": p.m, "N": p.n, "K": p.k,
        "A_T": int(p.kind == "tn"), "B_T": int(p.kind == "nt"), "BM": tile.m, "BN": tile.n, "BK": tile.k,
        "WM": tile.wm, "WN": tile.wn, "STAGES": tile.stages, "LATE": f'"{tile.stages - 2}"', "SPLIT": split, "GELU": int(gelu),
    }
    extra = "".join(name for name, there in (("_bias", bias), ("_gelu", gelu), ("_slope", before), ("_add", add))
                    if there is not None and there is not False)
    letter = "b" if half == dtypes.bfloat16 else ""
    label = f"{p.kind}{letter}{'f' if kind == dtypes.float32 else ''}{p.m}x{p.n}x{p.k}_{tile}{extra}"
    outs = {"Y": y, "Z": Tensor.empty(*shape, device=a.device, dtype=half) if gelu else None}
    done = cuda_kernel(
        "matmul.cu", "matmul", (tiles, 1, split), outs, {"A": a, "B": b, "bias": bias, "P": before, "R": add}, backward,
        tile.threads, flops=2 * p.m * p.n * p.k, tensor_flops=2 * tiles * tile.m * tile.n * pieces * tile.k,
        turns=-(-pieces // split), label=label, **numbers,
    )
    if split > 1:
        done[0] = done[0].sum(0).cast(dtypes.float32 if p.float_out else half).contiguous()
    return done


def product(kind: str, a: Tensor, b: Tensor, shape: tuple[int, ...], float_out: bool = False) -> Tensor:
    """a b, for a gradient: the kernel that is fastest."""
    (m, k), n = matrix(a), int(b.shape[0 if kind == "nt" else -1])
    p = Product(kind, *((k, n, m) if kind == "tn" else (m, n, k)), a.dtype.name, float_out)
    device = str(a.device)
    if tinygrad_is_faster(device, (p,)):
        return plain(p, a, b).reshape(shape)
    y = multiply(p, best_tile(device, p), a, b, shape=shape)[0]
    if not float_out:
        _gradients[y.uop] = (p, a, b)
    return y


_gradients: WeakKeyDictionary[UOp, tuple[Product, Tensor, Tensor]] = WeakKeyDictionary()  # of an x, by what was made


# ---- y = x w + bias, and what follows ----


@dataclass(frozen=True, eq=False)
class Line:
    """y = gelu(x w + bias) + add, as much of it as there is."""

    x: Tensor
    w: Tensor  # in the 16 bits of x
    bias: Tensor | None
    transposed: bool
    gelu: bool = False
    add: Tensor | None = None


_lines: WeakKeyDictionary[UOp, Line] = WeakKeyDictionary()  # by their outputs


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor | None:
    """None for shapes that the kernel doesn't take, and where tinygrad's own form is faster."""
    (m, k), n = matrix(x), int(weight.shape[0 if transposed else 1])
    if x.dtype not in (dtypes.half, dtypes.bfloat16) or k % 8 or n % 8 or m < FEWEST_ROWS:
        return None
    if tinygrad_is_faster(str(x.device), _products(m, k, n, transposed, x.dtype.name)):
        return None
    w = weight if weight.dtype == x.dtype else weight.cast(x.dtype).contiguous()
    return emit(Line(x, w, None if bias is None else bias.float(), transposed))


def _products(m: int, k: int, n: int, transposed: bool, dtype: str) -> tuple[Product, Product, Product]:
    """Forward, and those of the gradients of x and w."""
    forward, back = ("nt", "nn") if transposed else ("nn", "nt")
    dw = Product("tn", *((n, k) if transposed else (k, n)), m, dtype, True)
    return Product(forward, m, n, k, dtype), Product(back, m, k, n, dtype), dw


def emit(line: Line) -> Tensor:
    """The kernel of a line."""
    x, w, t = laid_out(line.x), laid_out(line.w), line.transposed
    (m, k), n = matrix(x), int(w.shape[0 if t else 1])
    p = _products(m, k, n, t, x.dtype.name)[0]

    def backward(g: Tensor) -> dict[str, Tensor | None]:
        given, g = g, laid_out(g, x.dtype)
        dz = gelu_dx(g, made[1]) if line.gelu else g
        a, b = (dz, x) if t else (x, dz)
        dw = product("tn", a, b, (n, k) if t else (k, n), True)
        dx = product("nn" if t else "nt", dz, w, tuple(map(int, x.shape)))
        return {"A": dx, "B": dw, "bias": None if line.bias is None else columns(dz), "R": given}

    optional = {"bias": line.bias, "add": line.add}
    made = multiply(p, best_tile(str(x.device), p), x, w, backward, gelu=line.gelu, shape=(*map(int, x.shape[:-1]), n),
                    **{key: None if value is None else laid_out(value) for key, value in optional.items()})
    _lines[made[0].uop] = line
    return made[0]


def gelu(x: Tensor) -> Tensor | None:
    """Taken into the product that x is; None where it isn't one."""
    line = _lines.get(x.uop)
    return None if line is None or line.gelu or line.add is not None else emit(replace(line, gelu=True))


def gelu_dx(g: Tensor, z: Tensor) -> Tensor:
    """The gradient of z for that of GELU(z): in the kernel of the product that g is, if it is one."""
    made = _gradients.get(g.uop)
    if made is None:
        v = z.float()
        s = (1.5957691 * (v + 0.044715 * v**3)).sigmoid()
        return (g * (s + v * s * (1 - s) * 1.5957691 * (1 + 3 * 0.044715 * v.square()))).cast(g.dtype).contiguous()
    p, a, b = made
    return multiply(p, best_tile(str(a.device), p), a, b, before=z, shape=tuple(map(int, g.shape)))[0]


def residual(x: Tensor) -> Tensor | None:
    """x as one kernel, where it is the sum of a product and something else of its shape."""
    if x.uop.op is Ops.ADD:
        for this, other in (x.uop.src, x.uop.src[::-1]):
            line = _lines.get(this)
            if line and line.add is None and other.shape == this.shape and other.dtype == this.dtype:
                return emit(replace(line, add=Tensor(other)))
    return None


# ---- sums over rows ----


def columns(x: Tensor, rows: int = 128) -> Tensor:
    """The sum over all but the last axis, `(C,)` float32: in two stages, or few threads would go through many rows."""
    (m, c), parts = matrix(x), -(-matrix(x)[0] // rows)
    out = cuda_kernel(
        "columns.cu", "columns", (-(-c // 64), parts, 1), {"S": Tensor.empty(parts, c, device=x.device)}, {"X": x},
        flops=m * c, turns=-(-min(m, rows) // 4), label=f"{x.dtype.name}_{m}x{c}", M=m, C=c, ROWS=rows, **kind_of(x.dtype),
    )[0]
    return out.reshape(c) if parts == 1 else columns(out, parts)


def kind_of(kind: Any) -> dict[str, Any]:
    """The constants of number.cuh for a dtype."""
    sixteen = kind in (dtypes.half, dtypes.bfloat16)
    return {"KIND": '"f16"' if kind == dtypes.half else '"bf16"', "H": "unsigned short" if sixteen else "float",
            "SIXTEEN": int(sixteen)}
