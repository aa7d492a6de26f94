"""Matrix products on an NVIDIA GPU, each as one launch of matmul.cu in 16 bits, of matmul32.cu in 32; sums over rows.

tinygrad's own form of a product reads every operand from memory straight into registers. matmul.cu brings tiles through
shared memory while it multiplies others, as CUTLASS does.
"""

from typing import Any

from tinygrad import Tensor, dtypes

from kernels.graph import cuda_kernel, matrix
from kernels.tiles import Product, Tile

SIDE = 64  # of a tile of matmul32.cu
BLOCKS = 512  # more than a GPU has multiprocessors, so that each has some


def plain(p: Product, a: Tensor, b: Tensor) -> Tensor:
    """As a formula."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    kind = dtypes.float32 if p.float_out else None  # with None, sums in float32 are rounded at the end
    return (a.T if p.kind == "tn" else a).matmul(b.T if p.kind == "nt" else b, dtype=kind).contiguous()


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
        "WM": tile.wm, "WN": tile.wn, "STAGES": tile.stages, "LATE": f'"{tile.stages - 2}"', "SPLIT": split,
        "GELU": int(gelu),
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


def multiply32(
    kind: str, a: Tensor, b: Tensor, shape: tuple[int, ...], bias: Tensor | None = None, backward: Any = None
) -> Tensor:
    """a b + bias in float32; `kind` as in Product. A long sum over few rows and columns is taken in parts."""
    (rows, columns_), n = matrix(a), int(b.shape[0 if kind == "nt" else -1])
    m, k = (columns_, rows) if kind == "tn" else (rows, columns_)
    grid = (-(-m // SIDE), -(-n // SIDE))
    split = max(1, min(k // 64, BLOCKS // (grid[0] * grid[1]))) if kind == "tn" else 1
    numbers = {"M": m, "N": n, "K": k, "A_T": int(kind == "tn"), "B_T": int(kind == "nt"), "SPLIT": split}
    y = Tensor.empty(*((split, *shape) if split > 1 else shape), device=a.device)
    y = cuda_kernel("matmul32.cu", "matmul32", (*grid, split), {"Y": y}, {"A": a, "B": b, "bias": bias}, backward, 256,
                    flops=2 * m * n * k, turns=-(-k // (16 * split)), **numbers,
                    label=f"{kind}{m}x{n}x{k}x{split}{'' if bias is None else '_bias'}")[0]
    return y.sum(0).contiguous() if split > 1 else y


def columns(x: Tensor, rows: int = 128) -> Tensor:
    """The sum over all but the last axis, `(C,)` float32: in two stages, or few threads would go through many rows."""
    (m, c), parts = matrix(x), -(-matrix(x)[0] // rows)
    out = cuda_kernel(
        "columns.cu", "columns", (-(-c // 64), parts, 1), {"S": Tensor.empty(parts, c, device=x.device)}, {"X": x},
        flops=m * c, turns=-(-min(m, rows) // 4), label=f"{x.dtype.name}_{m}x{c}", M=m, C=c, ROWS=rows,
        **kind_of(x.dtype),
    )[0]
    return out.reshape(c) if parts == 1 else columns(out, parts)


def kind_of(kind: Any) -> dict[str, Any]:
    """The constants of number.cuh for a dtype."""
    sixteen = kind in (dtypes.half, dtypes.bfloat16)
    return {"KIND": '"f16"' if kind == dtypes.half else '"bf16"', "H": "unsigned short" if sixteen else "float",
            "SIXTEEN": int(sixteen)}
