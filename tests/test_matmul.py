"""The matrix product of matmul.cu and what is built on it, on a GPU or its stand-in, against NumPy in float64."""

import math
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from test_kernels_cuda import close, rounded
from tinygrad import Tensor, dtypes

import gpt
from kernels import cuda, edge, matmul, tiles, tuning
from kernels.tiles import TILES, Product, Tile

# More than what rounding the result changes.
TENTH = {dtypes.float32: 1e-6, dtypes.half: 1e-3, dtypes.bfloat16: 6e-3}


def tensor(a: np.ndarray, dtype=dtypes.float32) -> Tensor:
    return Tensor(a.astype(np.float32)).cast(dtype).realize()


def numbers(*shape: int, dtype=dtypes.bfloat16, seed: int = 0) -> np.ndarray:
    return rounded(np.random.default_rng((seed, *shape)).standard_normal(shape), dtype)


# Rows and columns that fill no tile, more than one tile, and more pieces of the sum than are on their way at a time.
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("kind", ["nn", "nt", "tn"])
def test_a_product_equals_numpy_with_every_tile(kind: str, tile: Tile, on_cuda) -> None:
    p = Product(kind, *((136, 72, 203) if kind == "tn" else (67, 136, 200)), "bfloat16", kind == "tn")
    a, b = numbers(p.m, p.k), numbers(p.k, p.n, seed=1)
    x, y = tensor(a.T if kind == "tn" else a, dtypes.bfloat16), tensor(b.T if kind == "nt" else b, dtypes.bfloat16)
    close(matmul.multiply(p, tile, x, y)[0].float().numpy(), a @ b, 1e-6 if p.float_out else 6e-3)


def test_a_sum_in_parts_equals_the_whole(on_cuda) -> None:
    p, a, b = Product("tn", 72, 40, 300, "float16", True), numbers(72, 300, dtype=dtypes.half), numbers(300, 40)
    tile = Tile(64, 64, 64, 32, 32, 3, split=4)  # of five pieces, so that parts differ in length
    got = matmul.multiply(p, tile, tensor(a.T, dtypes.half), tensor(b, dtypes.half))[0]
    close(got.numpy(), a @ b, 1e-6)


@pytest.mark.parametrize("kind", ["nn", "nt", "tn"])
def test_long_sums_of_whole_numbers_are_the_same_bits_in_each_form(kind: str, on_cuda) -> None:
    """What `measure` goes by: sums beyond 256 are exact in float32, and rounded once where the result has 16 bits."""
    p = Product(kind, 64, 64, 3000, "bfloat16", kind == "tn")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (64, 3000)).astype(np.float64), rng.integers(0, 2, (3000, 64)).astype(np.float64)
    x, y = tensor(a.T if kind == "tn" else a, dtypes.bfloat16), tensor(b.T if kind == "nt" else b, dtypes.bfloat16)
    wanted = a @ b if p.float_out else rounded(a @ b, dtypes.bfloat16)
    assert wanted.max() > 1000
    assert (matmul.plain(p, x, y).float().numpy() == wanted).all()
    assert (matmul.multiply(p, TILES[-1], x, y)[0].float().numpy() == wanted).all()


def test_rows_of_tiles_beyond_the_first_eight_are_all_computed(on_cuda) -> None:
    """Blocks go through eight rows of tiles at a time; here there are eleven, in three columns."""
    p, a, b = Product("nn", 64 * 10 + 3, 136, 24, "bfloat16"), numbers(643, 24), numbers(24, 136)
    got = matmul.multiply(p, TILES[-1], tensor(a, dtypes.bfloat16), tensor(b, dtypes.bfloat16))[0]
    close(got.float().numpy(), a @ b, 6e-3)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


@pytest.mark.parametrize("dtype", TENTH)
def test_an_mlp_with_its_residual_and_all_gradients_equals_numpy(dtype, on_cuda) -> None:
    """x + W2 gelu(W1 x + b1) + b2, as a block has it: each product takes in what follows it, on the way back too."""
    m, c, share = 70, 40, TENTH[dtype]
    x, dy = numbers(m, c, dtype=dtype), numbers(m, c, dtype=dtype, seed=1)
    w1, w2 = numbers(c, 4 * c, dtype=dtype) / 8, numbers(4 * c, c, dtype=dtype) / 8
    b1, b2 = numbers(4 * c), numbers(c)
    given = [tensor(x, dtype), *(tensor(a) for a in (w1, b1, w2, b2))]
    h = gpt.linear(gpt.gelu(gpt.linear(given[0], given[1], given[2])), given[3], given[4])
    y = edge(given[0] + h)
    grads = y.gradient(*given, gradient=tensor(dy, dtype))
    Tensor.realize(y, *grads)
    z = x @ w1 + b1
    dz = dy @ w2.T * slope(z)
    wanted = (dy + dz @ w1.T, x.T @ dz, dz.sum(0), gelu(z).T @ dy, dy.sum(0))
    close(y.float().numpy(), x + gelu(z) @ w2 + b2, share)
    for got, right, like in zip(grads, wanted, given):
        assert got.dtype == like.dtype
        close(got.float().numpy(), right, 3 * share)


@pytest.mark.parametrize(("dtype", "m"), [(dtypes.bfloat16, 65), (dtypes.float32, 65), (dtypes.float32, 500)])
def test_a_product_with_the_embedding_table_and_its_gradients_equal_numpy(dtype, m: int, on_cuda) -> None:
    """In float32 the sum over 500 rows is taken in parts."""
    x, w, dy = numbers(m, 48), numbers(88, 48), numbers(m, 88)
    given = (tensor(x, dtype), tensor(w))
    y = cuda.linear(*given, transposed=True)
    assert y is not None
    dx, dw = y.gradient(*given, gradient=tensor(dy, dtype))
    Tensor.realize(y, dx, dw)
    for got, right in ((y, x @ w.T), (dx, dy @ w), (dw, dy.T @ x)):
        close(got.float().numpy(), right, TENTH[dtype])


@pytest.mark.parametrize(("dtype", "share"), [(dtypes.float32, 1e-5), (dtypes.half, 1e-3), (dtypes.bfloat16, 8e-3)])
@pytest.mark.parametrize(("m", "c", "bias"), [(5, 10, True), (300, 130, False)])
def test_layernorm_and_its_gradients_equal_numpy(m: int, c: int, bias: bool, dtype, share: float, on_cuda) -> None:
    x, dy = 3 + numbers(m, c, dtype=dtype) * (np.arange(m) % 5 + 1)[:, None], numbers(m, c, dtype=dtype, seed=1)
    x, w, b = rounded(x, dtype), numbers(c), numbers(c, seed=2)
    given = [tensor(x, dtype), tensor(w)] + [tensor(b)] * bias
    y = cuda.layernorm(given[0], given[1], given[2] if bias else None)
    assert y is not None
    grads = y.gradient(*given, gradient=tensor(dy, dtype))
    Tensor.realize(y, *grads)
    sd = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    n, g = (x - x.mean(-1, keepdims=True)) / sd, dy * w
    dx = (g - g.mean(-1, keepdims=True) - n * (g * n).mean(-1, keepdims=True)) / sd
    for got, right in zip((y, *grads), (n * w + bias * b, dx, (dy * n).sum(0), dy.sum(0))):
        close(got.float().numpy(), right, share)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.half, dtypes.bfloat16])
def test_cross_entropy_over_a_padded_vocabulary_and_its_gradient_equal_numpy(dtype, on_cuda) -> None:
    """Logits that are large, so that no power of e is finite, and what stands behind the vocabulary is never read."""
    B, T, V, W = 2, 3, 1001, 1024
    x = numbers(B, T, W, dtype=dtype) * 64
    x[..., V:] = 30_000
    targets, g = np.array([[0, 1, V - 1], [V - 2, 500, 7]], np.int32), np.random.default_rng(0).random((B, T)) + 1
    given = tensor(x, dtype)
    loss = cuda._cross_entropy(given, Tensor(targets).realize(), V)
    dx = loss.gradient(given, gradient=tensor(g))[0]
    Tensor.realize(loss, dx)
    z = x[..., :V]
    lse = z.max(-1) + np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1))
    right = np.exp(z - lse[..., None]) - (np.arange(V) == targets[..., None])
    close(loss.numpy(), lse - np.take_along_axis(z, targets[..., None], -1)[..., 0], 1e-5)
    close(dx.float().numpy()[..., :V], right * g[..., None], {dtypes.float32: 1e-4}.get(dtype, TENTH.get(dtype, 0)))
    assert (dx.float().numpy()[..., V:] == 0).all()


def test_the_norm_of_gradients_of_all_sizes_equals_numpy(on_cuda) -> None:
    sizes = (1, 127, 8 * 1024, 128 * 1024 + 5)  # less than a block, one block, two and more; the largest isn't first
    arrays = [np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in sizes]
    norm = cuda.gradient_norm([tensor(a) for a in arrays])
    assert norm.item() == pytest.approx(math.sqrt(sum((a.astype(np.float64) ** 2).sum() for a in arrays)), rel=1e-6)


@pytest.mark.parametrize(("m", "c"), [(1, 2), (129, 66), (1000, 8)])
def test_sums_over_rows_equal_numpy(m: int, c: int, on_cuda) -> None:
    a = numbers(m, c)
    close(matmul.columns(tensor(a, dtypes.bfloat16)).numpy(), a.sum(0), 1e-6)


# ---- which tile ----


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_a_tile_fits_in_shared_memory_and_divides_among_its_warps(tile: Tile) -> None:
    assert tile.stages * (tile.m + tile.n) * tile.k * 2 <= 48 * 1024
    assert tile.m % tile.wm == tile.n % tile.wn == tile.wm % 16 == tile.wn % 16 == tile.k % 16 == 0
    assert tile.stages >= 2 and tile.threads <= 256


GPT2 = [Product("nn", 12288, 2304, 768, "bfloat16"), Product("tn", 768, 768, 12288, "bfloat16", True)]


def test_without_timing_a_shape_always_takes_the_same_tile() -> None:
    for p in GPT2:
        first = tiles.guesses(p)
        tiles.guesses.cache_clear()
        assert tiles.guesses(p) == first and tuning.best_tile("NULL", p) == first[0]
        assert not tuning.tinygrad_is_faster("NULL", [p])
    assert tiles.guesses(GPT2[1])[0].split > 1  # 36 tiles of 128 x 128 would leave most of a GPU idle


def test_on_a_gpu_each_shape_is_timed_once_and_the_fastest_is_kept_in_a_file(tmp_path: Path, monkeypatch) -> None:
    p, q = GPT2
    third = str(tiles.guesses(p)[2])
    fast = {"nn": {third: 1.0}, "tn": {}}
    timing = Mock(side_effect=lambda _, p: {"tinygrad": 2.0, str(tiles.guesses(p)[0]): 3.0, **fast[p.kind]})
    monkeypatch.setattr(tuning, "measure", timing)
    monkeypatch.setattr(tuning, "gpu_name", lambda device: "NVIDIA GeForce RTX 4090" if device == "CUDA" else "")
    for _ in range(2):  # the second time as another process would find it
        kept = tuning.Times(tmp_path / "new" / "matmul.json")
        monkeypatch.setattr(tuning, "times", lambda kept=kept: kept)
        assert str(tuning.best_tile("CUDA", p)) == third and not tuning.tinygrad_is_faster("CUDA", [p])
    assert timing.call_count == 1
    assert tuning.tinygrad_is_faster("CUDA", [q])  # 2 s against 3 s
    assert timing.call_count == 2
    monkeypatch.setenv("TUNE", "0")
    assert tuning.best_tile("CUDA", p) == tiles.guesses(p)[0] and not tuning.tinygrad_is_faster("CUDA", [q])
    (tmp_path / "new" / "matmul.json").write_text("{")  # a damaged file is made anew
    monkeypatch.delenv("TUNE")
    monkeypatch.setattr(tuning, "times", lambda: tuning.Times(tmp_path / "new" / "matmul.json"))
    assert str(tuning.best_tile("CUDA", p)) == third


def test_a_tile_that_gives_another_result_than_tinygrad_is_never_taken(on_cuda, monkeypatch) -> None:
    p, right = Product("nt", 64, 64, 72, "bfloat16"), tuning.multiply
    bad, raising = tiles.guesses(p)[0], tiles.guesses(p)[1]

    def multiply(p: Product, tile: Tile, a: Tensor, b: Tensor) -> list[Tensor]:
        if tile == raising:
            raise RuntimeError("it can't be launched")
        return [right(p, tile, a, b)[0] + (1 if tile == bad else 0)]

    monkeypatch.setattr(tuning, "multiply", multiply)
    measured = tuning.measure("CUDA", p)
    assert set(measured) == {"tinygrad", str(tiles.guesses(p)[2])}
    assert all(0 < seconds < 60 for seconds in measured.values())
