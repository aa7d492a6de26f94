"""The ways in which matmul.cu can multiply, and a guess which is best for a shape."""

import functools
from dataclasses import dataclass, replace


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
    dtype: str  # float16 or bfloat16
    float_out: bool = False  # float32 results, for the gradient of a weight

    def __str__(self) -> str:
        return f"{self.kind} {self.m}x{self.n}x{self.k} {self.dtype}{' to float' if self.float_out else ''}"


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
