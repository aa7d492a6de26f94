"""The CUDA kernels, on a GPU or run on the CPU from their very source (cuda_driver.c), against NumPy in float64.

The stand-in refuses a kernel whose head states other FLOPs in mma.sync than it does: they are what roofline.py counts.
"""

import math
from unittest.mock import Mock

import numpy as np
import pytest
import test_kernels
from conftest import TINY
from test_kernels import attention
from tinygrad import Tensor, dtypes

from kernels import cuda, graph, training
from runtime.compiled import jit
from runtime.device import compiling_for
from runtime.errors import UserError

LAST = 4_000_000_000  # a seed near the end, so that index + seed wraps around


def rounded(a: np.ndarray, dtype) -> np.ndarray:
    """What of an array is left in 16 bits."""
    return Tensor(a.astype(np.float32)).cast(dtype).float().numpy().astype(np.float64)


def close(got: np.ndarray, wanted: np.ndarray, share: float) -> None:
    """Both the largest difference and the whole of it are at most that share of what was wanted."""
    assert np.isfinite(got).all()
    assert np.abs(got - wanted).max() <= 4 * share * np.abs(wanted).max()
    assert np.linalg.norm(got - wanted) <= share * np.linalg.norm(wanted)


def gradient(function, x: np.ndarray, weights: np.ndarray, n: int = 12) -> list[tuple[np.ndarray, float]]:
    """Slopes of sum(weights * function(x)) along random directions, each with its direction."""
    rng, out = np.random.default_rng(0), []
    for _ in range(n):
        d = rng.standard_normal(x.shape)
        out.append((d, (weights * (function(x + 1e-5 * d) - function(x - 1e-5 * d))).sum() / 2e-5))
    return out


def attention_gradient(qkv: np.ndarray, dy: np.ndarray, nh: int, p: float) -> np.ndarray:
    """In closed form: dv = w^T dy, dw = dy v^T, ds = w (dw - sum(w dw)), dq = ds k, dk = ds^T q."""
    B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    D = C // nh
    split = lambda a: a.reshape(B, T, nh, D).transpose(0, 2, 1, 3)
    q, k, v = map(split, np.split(qkv, 3, axis=-1))
    s = np.where(np.tri(T, dtype=bool), q @ k.transpose(0, 1, 3, 2) / math.sqrt(D), -np.inf)
    w = np.exp(s - s.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    kept = np.ones_like(w)
    if p:
        # The mask, out of the function that test_kernels holds the CPU's kernels to.
        from test_kernels import mask

        kept = np.array([mask(i, LAST, p) for i in range(w.size)]).reshape(w.shape)
    g = split(dy)
    dw = kept * (g @ v.transpose(0, 1, 3, 2))
    ds = w * (dw - (w * dw).sum(-1, keepdims=True)) / math.sqrt(D)
    parts = (ds @ k, ds.transpose(0, 1, 3, 2) @ q, (w * kept).transpose(0, 1, 3, 2) @ g)
    return np.concatenate([a.transpose(0, 2, 1, 3).reshape(B, T, C) for a in parts], axis=-1)


# One token, fewer than a tile, exactly one, more than one and two; heads that fill their steps of 16 channels or not.
SHAPES = [(1, 1, 1, 8, 0.0), (2, 3, 2, 16, 0.3), (1, 64, 1, 40, 0.0), (2, 70, 2, 24, 0.3), (1, 129, 1, 64, 0.0)]
SHAPES += [(1, 70, 1, 96, 0.3)]  # too wide for two buffers


@pytest.mark.parametrize(("dtype", "share"), [(dtypes.half, 2e-3), (dtypes.bfloat16, 1.5e-2)])
@pytest.mark.parametrize(("B", "T", "nh", "D", "p"), SHAPES)
def test_attention_and_its_gradient_equal_numpy(B, T, nh, D, p, dtype, share, on_cuda) -> None:
    rng = np.random.default_rng(T)
    qkv = rounded(rng.standard_normal((B, T, 3 * nh * D)), dtype)
    dy = rounded(rng.standard_normal((B, T, nh * D)), dtype)
    x, seed = Tensor(qkv.astype(np.float32)).cast(dtype).realize(), Tensor(np.array([LAST], np.uint32)).realize()
    with training([seed]):
        y = cuda.attention(x, nh, p)
    assert y is not None
    dx = y.gradient(x, gradient=Tensor(dy.astype(np.float32)).cast(dtype).realize())[0]
    Tensor.realize(y, dx)
    assert y.dtype == dx.dtype == dtype
    close(y.float().numpy(), attention(qkv, nh, p, LAST), share)
    wanted = attention_gradient(qkv, dy, nh, p)
    close(dx.float().numpy(), wanted, 2 * share)
    for d, slope in gradient(lambda a: attention(a, nh, p, LAST), qkv, dy, 2):  # of the oracle itself
        assert (wanted * d).sum() == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_attention_stays_finite_and_exact_where_scores_are_large(on_cuda) -> None:
    qkv = rounded(40 * np.random.default_rng(0).standard_normal((1, 80, 48)), dtypes.half)
    y = cuda.attention(Tensor(qkv.astype(np.float32)).half().realize(), 1)
    assert y is not None
    close(y.float().numpy(), attention(qkv, 1), 2e-3)


@pytest.mark.parametrize(("B", "T", "C", "V"), [(1, 1, 1, 1), (3, 50, 37, 21), (2, 100, 130, 40)])
def test_embed_and_its_gradient_equal_numpy_exactly(B: int, T: int, C: int, V: int, on_cuda) -> None:
    rng = np.random.default_rng(V)
    table, positions = (rng.integers(-99, 99, s).astype(np.float32) for s in ((V, C), (T + 3, C)))
    idx, dy = rng.integers(0, V, (B, T)).astype(np.int32), rng.integers(-9, 9, (B, T, C)).astype(np.float32)
    given = [Tensor(a).realize() for a in (table, positions, idx)]
    y = cuda._embed(given[0], given[2], given[1])
    grads = y.gradient(given[0], given[1], gradient=Tensor(dy).realize())
    Tensor.realize(y, *grads)
    wanted = np.zeros((V, C))
    np.add.at(wanted, idx, dy)
    assert (y.numpy() == table[idx] + positions[:T]).all()
    assert (grads[0].numpy() == wanted).all()  # whole numbers: any order gives the same sum
    assert (grads[1].numpy()[:T] == dy.sum(0)).all() and (grads[1].numpy()[T:] == 0).all()


def test_a_gpu_whose_kernels_give_something_else_gets_the_formulas(on_cuda, monkeypatch) -> None:
    assert cuda.wrong_result("CUDA") == ""
    read = graph.read_source
    for right, wrong, result in (
        ("+ DECAY * w", "", "AdamW came out wrong"),
        ("G[v * C + c] +=", "G[v * C + c] =", "an embedding came out wrong"),
        ("mine, dk, ROOT", "mine, dk, 1", "attention in float16 came out wrong"),
        ('"cvt.rn." KIND', '"cvt.rn.f16"', "attention in bfloat16 came out wrong"),
        ("0x846CA68Bu", "0x846CA68Du", "attention in bfloat16 came out wrong"),  # the mask of dropout
        ("turned_r, k + turned_c, WIDE_B", "turned_r, k, WIDE_B", "a product in float16 came out wrong"),
        ("(a.x - mean) * scale * w", "(a.x - 0) * scale * w", "LayerNorm in float32 came out wrong"),
        ("if (c + 1 >= V) a.y", "if (c > V) a.y", "a cross-entropy came out wrong"),
    ):
        monkeypatch.setattr(graph, "read_source", lambda file, a=right, b=wrong: read(file).replace(a, b))
        assert cuda.wrong_result("CUDA") == result


def test_a_token_outside_the_table_reads_and_writes_nothing(on_cuda) -> None:
    table, positions = Tensor(np.ones((3, 4), np.float32)).realize(), Tensor(np.zeros((4, 4), np.float32)).realize()
    y = cuda._embed(table, Tensor(np.array([[-1, 2, 3, 2**31 - 1]], np.int32)).realize(), positions)
    grad = y.gradient(table, gradient=Tensor(np.ones((1, 4, 4), np.float32)).realize())[0]
    assert y.numpy()[0, :, 0].tolist() == [0, 1, 0, 0]
    assert grad.numpy()[:, 0].tolist() == [0, 0, 1]


def test_adamw_equals_numpy_over_ten_steps(on_cuda, monkeypatch) -> None:
    kernel = Mock(wraps=graph.cuda_kernel)
    assert cuda.takes(Tensor([1.0]).realize())  # which tries the kernels
    monkeypatch.setattr(cuda, "cuda_kernel", kernel)
    test_kernels.test_adamw_equals_its_formula_and_numpy_over_ten_steps()
    assert kernel.call_count == 10 * (3 + 3 + 1)  # three parameters, their squares, and the norm


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_adamw_changes_nothing_after_a_gradient_that_isnt_finite(bad: float, on_cuda) -> None:
    make = lambda values: {"w": Tensor(np.array(values, np.float32)).realize()}
    p, m, v, g, hyper = make([1, 2, 3]), make([0, 1, 0]), make([1, 1, 0]), make([1, bad, 1]), Tensor([1e-2, 1, 1])
    norm = cuda._adamw(p, g, m, v, hyper.realize(), {"w": 0.1}, (0.9, 0.95), 1e-8, math.inf)
    assert not math.isfinite(norm.item())
    assert [t["w"].tolist() for t in (p, m, v)] == [[1, 2, 3], [0, 1, 0], [1, 1, 0]]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_every_kernel_compiles_for_a_gpu_and_multiplies_in_its_tensor_cores(arch: str) -> None:
    try:
        with compiling_for(arch):
            for dtype, p in ((dtypes.half, 0.0), (dtypes.bfloat16, 0.1)):
                x, seed = Tensor.empty(2, 100, 3 * 128, dtype=dtype), Tensor.empty(1, dtype=dtypes.uint32)
                with training([seed]):
                    y = cuda.attention(x, 2, p)
                assert y is not None
                Tensor.realize(y, *y.float().sum().gradient(x))
            table, positions = Tensor.empty(2000, 128), Tensor.empty(100, 128)
            y = cuda.embed(table, Tensor.empty(2, 100, dtype=dtypes.int32), positions)
            assert y is not None
            Tensor.realize(y, *y.sum().gradient(table, positions))
    except UserError as error:
        pytest.skip(str(error))


# ---- what tinygrad does around a kernel ----


def test_a_sum_of_as_many_scalars_as_gpt2_xl_has_parameters_fits_a_gpus_kernels(on_cuda) -> None:
    """581 pointers are 4,648 bytes of arguments, of which a kernel takes 4,096: the driver refuses more."""
    scalars = [Tensor([float(i)]).realize()[0] for i in range(580)]
    assert graph.add_up(scalars).item() == 580 * 579 / 2


def test_kernels_can_be_tried_for_the_first_time_while_a_step_is_captured() -> None:
    """tinygrad refuses to read a tensor then: the kernels of a GPU would be left out, and nobody would be told."""
    seen = []

    @jit
    def step(x: Tensor) -> Tensor:
        with graph.not_captured():
            seen.append(Tensor([1.0, 2.0]).add(1).tolist())
        return (x * 2).realize()

    for value in (3.0, 4.0):
        assert step(Tensor([value]).realize()).tolist() == [2 * value]
    assert seen == [[2.0, 3.0]]


def test_a_view_that_moves_nothing_goes_into_a_kernel_as_the_buffer_that_it_is() -> None:
    """As a BUFFER_VIEW its use would be overlooked by tinygrad's memory planner, and its memory be used too early."""
    x = Tensor(np.arange(6, dtype=np.float32).reshape(2, 3)).realize()
    turned = graph.laid_out(x.permute(1, 0).permute(1, 0))
    assert turned.uop.base is x.uop.base and turned.tolist() == x.tolist()
    assert graph.laid_out(x.permute(1, 0)).tolist() == x.numpy().T.tolist()
    row = graph.laid_out(x[1])
    assert row.tolist() == [3.0, 4.0, 5.0]


def test_a_run_says_which_kernels_it_uses_and_why_it_has_none(script, corpus) -> None:
    tiny = ["--data", corpus, *TINY, "--steps", 1, "--eval-interval", 1, "--device", "cpu"]
    assert "kernels  C\n" in script("gpt.py", *tiny, "--out", "a").stdout
    without = script("gpt.py", *tiny, "--out", "b", KERNELS="0").stdout
    assert "kernels  none, which is slower and takes more memory: KERNELS=0 is set\n" in without
