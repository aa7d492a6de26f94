"""Every C kernel against the formula of its name, against NumPy in double precision, and inside its buffers.

The oracle for a gradient is a central difference of the NumPy function along a random direction: nothing of either
implementation is in it.
"""

import contextlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT
from tinygrad import GlobalCounters, Tensor
from tinygrad.nn.state import get_state_dict
from tinygrad.uop.ops import UOp

import gpt
import trainer
import variants
from generate import attend, remember
from gpt import GPT, GPTConfig, dropout_seeds
from kernels import cpu, edge, fused, graph, training
from runtime.compiled import jit

pytestmark = pytest.mark.skipif(os.environ.get("KERNELS") == "0", reason="KERNELS=0 turns the kernels off")

# ---- the operations in NumPy ----


def linear(x, w, b=None):
    return x @ w + (0 if b is None else b)


def linear_t(x, w):
    return x @ w.T


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layernorm(x, w, b=None):
    z = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return z * w + (0 if b is None else b)


def mask(index, seed, p):
    """1 / (1 - p) where an element survives, else 0; Python integers, so nothing overflows."""
    h = (index + seed) % 2**32
    h = (h ^ (h >> 16)) * 0x7FEB352D % 2**32
    h = (h ^ (h >> 15)) * 0x846CA68B % 2**32
    return 1 / (1 - p) if h ^ (h >> 16) >= int(p * 2**32) else 0.0


def attention(qkv, nh, p=0.0, seed=0):
    B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (a.reshape(B, T, nh, C // nh).transpose(0, 2, 1, 3) for a in np.split(qkv, 3, axis=-1))
    scores = np.where(np.tri(T, dtype=bool), q @ k.transpose(0, 1, 3, 2) / math.sqrt(C // nh), -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    w = e / e.sum(-1, keepdims=True)
    if p:
        w = w * np.array([mask(i, seed, p) for i in range(w.size)]).reshape(w.shape)
    return (w @ v).transpose(0, 2, 1, 3).reshape(B, T, C)


def head_loss(x, table, targets):
    z = x @ table.T
    z = z - z.max(-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    known = (targets >= 0) & (targets < len(table))
    picked = np.take_along_axis(log_p, np.where(known, targets, 0)[..., None], -1)[..., 0]
    return np.where(known, -picked, np.nan)


def embed(idx, table, positions=None):
    return table[idx] + (0 if positions is None else positions[: idx.shape[1]])


# ---- the comparison ----


def check(
    operation: Callable[..., Tensor] | Sequence[Callable[..., Tensor]],
    exact: Callable[..., np.ndarray],
    *shapes: tuple[int, ...],
) -> None:
    """Output and gradients of an operation against its formula's and NumPy's, for random inputs of these shapes.

    `operation` is one that has a formula, or two functions: one that uses it and one that uses its formula.
    """
    both = operation if isinstance(operation, Sequence) else (operation, operation.formula)  # type: ignore[attr-defined]
    rng = np.random.default_rng(sum(map(sum, shapes)))
    arrays = [rng.standard_normal(s) for s in shapes]
    inputs = [Tensor(a.astype(np.float32)).realize() for a in arrays]
    weights = rng.standard_normal(exact(*arrays).shape)  # of a sum, so that every output has a gradient of its own
    results = []
    for function in both:
        y = function(*inputs)
        grads = y.gradient(*inputs, gradient=Tensor(weights.astype(np.float32)).realize())
        Tensor.realize(y, *grads)
        results.append([t.numpy().astype(np.float64) for t in (y, *grads)])
    for got, twin in zip(*results):
        np.testing.assert_allclose(got, twin, rtol=2e-4, atol=2e-5 * max(1, np.abs(twin).max()))
    wanted = exact(*arrays)
    np.testing.assert_allclose(results[0][0], wanted, rtol=1e-4, atol=1e-5 * max(1, np.abs(wanted).max()))
    for i, (a, grad) in enumerate(zip(arrays, results[0][1:])):
        d, h = rng.standard_normal(a.shape), 1e-5
        up, down = (exact(*[b + s * h * d if i == j else b for j, b in enumerate(arrays)]) for s in (1, -1))
        slope = (weights * (up - down)).sum() / (2 * h)
        assert abs((grad * d).sum() - slope) < 1e-4 * max(1, np.abs(grad * d).sum()), f"gradient of input {i}"


# One row, one column, one of everything, sizes below, at and beyond a tile and a panel, and none that divides evenly.
SIZES = [(1, 1, 1), (1, 37, 19), (5, 1, 33), (53, 300, 1), (26, 257, 67), (120, 64, 128)]


@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_linear_equals_its_formula_and_numpy_at_any_size(m: int, k: int, n: int) -> None:
    check(gpt.linear, linear, (m, k), (k, n), (n,))


@pytest.mark.parametrize(("lead", "k", "n"), [((1,), 6, 5), ((2, 3), 31, 65), ((3, 7), 1, 40)])
def test_linear_with_a_transposed_matrix_equals_its_formula_and_numpy(lead: tuple[int, ...], k: int, n: int) -> None:
    turned = [lambda x, w, f=f: f(x, w, None, True) for f in (gpt.linear, gpt.linear.formula)]
    check(turned, linear_t, (*lead, k), (n, k))


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 64, 100)])
def test_gelu_equals_its_formula_and_numpy(shape: tuple[int, ...]) -> None:
    check(gpt.gelu, gelu, shape)


@pytest.mark.parametrize(("rows", "n"), [(1, 1), (1, 130), (37, 5), (90, 67)])
def test_layernorm_equals_its_formula_and_numpy(rows: int, n: int) -> None:
    if n > 1:  # of one column nothing is left, and its gradient is 0 by cancellation
        check(gpt.layernorm, layernorm, (rows, n), (n,), (n,))
    bare = [lambda x, w, f=f: f(x, w, None) for f in (gpt.layernorm, gpt.layernorm.formula)]
    check(bare, layernorm, (rows, n), (n,))


@pytest.mark.parametrize(("B", "T", "nh", "hs"), [(1, 1, 1, 1), (2, 3, 4, 8), (1, 70, 2, 5), (2, 129, 1, 17)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_attention_equals_its_formula_and_numpy(B: int, T: int, nh: int, hs: int, p: float) -> None:
    seed = Tensor(np.array([4_000_000_000], np.uint32)).realize()  # near the end, so that index + seed wraps around

    def trained(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with training([seed]):
                return f(x, nh, p)

        return run

    both = [trained(f) for f in (gpt.attention, gpt.attention.formula)]
    check(both, lambda x: attention(x, nh, p, 4_000_000_000), (B, T, 3 * nh * hs))


@pytest.mark.parametrize(("B", "T", "C", "V"), [(1, 1, 1, 1), (3, 5, 7, 11), (2, 300, 33, 130)])
def test_head_loss_equals_its_formula_and_numpy(B: int, T: int, C: int, V: int) -> None:
    targets = np.random.default_rng(V).integers(0, V, (B, T)).astype(np.int32)
    given = Tensor(targets).realize()
    both = [lambda x, w, f=f: f(x, w, given) for f in (gpt.head_loss, gpt.head_loss.formula)]
    check(both, lambda x, w: head_loss(x, w, targets), (B, T, C), (V, C))


def test_head_loss_of_large_logits_stays_exact() -> None:
    x, table = np.array([[100.0, -100.0]]), np.array([[9.0, 1.0], [1.0, 9.0], [-9.0, 8.0]])  # logits 800, -800, -1700
    targets = np.array([1], np.int32)
    given = [Tensor(a).realize() for a in (x.astype(np.float32), table.astype(np.float32), targets)]
    loss = gpt.head_loss(given[0], given[1], given[2])
    assert loss.numpy() == pytest.approx(head_loss(x, table, targets), rel=1e-6)


@pytest.mark.parametrize(("B", "T", "C", "V", "block"), [(1, 1, 1, 1, 1), (4, 9, 37, 5, 12)])
def test_embed_equals_its_formula_and_numpy_and_repeated_tokens_add_up(
    B: int, T: int, C: int, V: int, block: int
) -> None:
    idx = np.random.default_rng(V).integers(0, V, (B, T)).astype(np.int32)
    given = Tensor(idx).realize()
    both = [lambda w, p, f=f: f(w, given, p) for f in (gpt.embed, gpt.embed.formula)]
    check(both, lambda w, p: embed(idx, w, p), (V, C), (block, C))
    alone = [lambda w, f=f: f(w, given) for f in (gpt.embed, gpt.embed.formula)]
    check(alone, lambda w: embed(idx, w), (V, C))


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 70, 33), (5, 37, 19), (17, 300, 65)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("around", [False, True])
def test_a_fused_step_of_generation_is_one_kernel_and_equals_numpy(
    m: int, k: int, n: int, transposed: bool, around: bool
) -> None:
    """A LayerNorm, a matmul, GELU and the sum with the residual stream, written as the model writes them."""
    rng = np.random.default_rng(m * k * n)
    x, w, b, add, scale, shift = (rng.standard_normal(s) for s in ((m, k), (k, n), (n,), (m, n), (k,), (k,)))
    wanted = linear(layernorm(x, scale, shift) if around else x, w, b)
    wanted = gelu(wanted) + add if around else wanted
    given = [Tensor(a.astype(np.float32)).realize() for a in (x, w.T.copy() if transposed else w, b, add, scale, shift)]
    for kernels in (True, False):
        with fused() if kernels else contextlib.nullcontext():
            y = gpt.layernorm(given[0], given[4], given[5]) if around else given[0]
            y = gpt.linear(y, given[1], given[2], transposed)
            y = edge(gpt.gelu(y) + given[3]) if around else y
        GlobalCounters.reset()
        y.realize()
        assert not kernels or GlobalCounters.kernel_count == 1
        np.testing.assert_allclose(y.numpy(), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("cached", [1, 4])
def test_what_is_remembered_is_attended_to_as_without_a_cache(cached: int, monkeypatch) -> None:
    """Texts of different lengths end at the same place of the cache; each then reads two tokens more."""
    B, nh, hs, N = 3, 2, 5, 9
    C, first = nh * hs, np.array([0, 3, 1], np.int32) if cached == 4 else np.zeros(3, np.int32)
    texts = [np.random.default_rng(b).standard_normal((cached - first[b] + 2, 3 * C)) for b in range(B)]
    wanted = [attention(text[None], nh)[0, -2:] for text in texts]
    for takes in (cpu.takes, lambda *tensors: False):
        monkeypatch.setattr(cpu, "takes", takes)
        keys, values = (Tensor(np.zeros((B, nh, N, hs), np.float32)).realize() for _ in range(2))
        prompt = np.zeros((B, cached, 3 * C), np.float32)
        for b, text in enumerate(texts):
            prompt[b, : len(text) - 2] = text[:-2]
        starts = Tensor(first).realize()
        remember(Tensor(prompt).realize(), keys, values, starts)
        # The place is a variable of a compiled step.
        step = jit(lambda qkv, k, v, first, now: attend(qkv, k, v, first, now).realize())
        for i in range(2):
            qkv = Tensor(np.stack([text[i - 2] for text in texts])[:, None].astype(np.float32)).realize()
            now = UOp.variable("now", 0, N - 1).bind(cached + i)
            y = step(qkv, keys, values, starts, now).numpy()[:, 0]
            for b in range(B):
                np.testing.assert_allclose(y[b], wanted[b][i], rtol=1e-4, atol=1e-5)


def test_a_token_outside_the_table_reads_and_writes_nothing() -> None:
    table = Tensor(np.ones((3, 4), np.float32)).realize()
    y = gpt.embed(table, Tensor(np.array([[-1, 2, 3, 2**31 - 1]], np.int32)).realize())
    grad = y.gradient(table, gradient=Tensor(np.ones((1, 4, 4), np.float32)).realize())[0]
    assert y.numpy()[0, :, 0].tolist() == [0, 1, 0, 0]
    assert grad.numpy()[:, 0].tolist() == [0, 0, 1]


def numbers(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, np.float32)).realize()


IDS = np.zeros((1, 7), np.int32)
UNFIT: dict[str, Callable[[], Tensor]] = {
    "wide rows": lambda: gpt.linear(numbers(1, 2, 9), numbers(7, 3)),
    "narrow rows": lambda: gpt.linear(numbers(1, 2, 5), numbers(7, 3)),
    "transposed": lambda: gpt.linear(numbers(1, 2, 3), numbers(7, 5), None, True),
    "bias": lambda: gpt.linear(numbers(1, 2, 7), numbers(7, 3), numbers(2)),
    "norm": lambda: gpt.layernorm(numbers(1, 2, 9), numbers(7), numbers(7)),
    "norm's bias": lambda: gpt.layernorm(numbers(1, 2, 9), numbers(9), numbers(7)),
    "rmsnorm": lambda: variants.rmsnorm(numbers(1, 2, 9), numbers(7)),
    "heads": lambda: gpt.attention(numbers(1, 2, 48), 5),
    "shared heads": lambda: variants.grouped_attention(numbers(1, 2, 40), 3, 0.0, 2),
    "turns": lambda: variants.rotate(numbers(1, 6, 24), numbers(5, 4), 4),
    "turned heads": lambda: variants.rotate(numbers(1, 6, 24), numbers(6, 4), 7),
    "normalised heads": lambda: variants.normalise_heads(numbers(1, 6, 24), 7, 4),
    "gate": lambda: variants.swiglu(numbers(1, 6, 5)),
    "positions": lambda: gpt.embed(numbers(9, 4), Tensor(IDS), numbers(6, 4)),
    "width of positions": lambda: gpt.embed(numbers(9, 4), Tensor(IDS), numbers(7, 3)),
    "head": lambda: gpt.head_loss(numbers(1, 7, 3), numbers(9, 4), Tensor(IDS)),
    "targets": lambda: gpt.head_loss(numbers(1, 7, 4), numbers(9, 4), Tensor(IDS[:, :6])),
}


@pytest.mark.parametrize("call", UNFIT.values(), ids=UNFIT)
def test_shapes_that_do_not_fit_are_refused_and_no_kernel_reads_what_lies_behind_a_tensor(
    call: Callable[[], Tensor]
) -> None:
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        call().realize()
    with fused(), pytest.raises((IndexError, RuntimeError, ValueError)):
        call().realize()


@pytest.mark.parametrize("shapes", [[(5, 9), (9, 5), (4, 4)], [(1, 7)], [(40, 33)] * 3])
def test_muon_equals_its_formula_and_numpy_over_three_steps(shapes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(s) for s in shapes]
    steps = [[rng.standard_normal(s) for s in shapes] for _ in range(3)]
    given = lambda arrays: {f"{i}": Tensor(a.astype(np.float32)).realize() for i, a in enumerate(arrays)}
    results = []
    for f in (trainer.muon, trainer.muon.formula):
        p, m = given(start), given([np.zeros(s) for s in shapes])
        for g in steps:
            assert f(p, given(g), m, Tensor(np.array([0.1], np.float32)).realize(), 0.9, 0.5)
        results.append([t.numpy() for t in p.values()])
    for i, w in enumerate(start):
        v = np.zeros(w.shape)
        for g in steps:
            v = 0.9 * v + g[i]
            x = (g[i] + 0.9 * v) / np.linalg.norm(g[i] + 0.9 * v)
            for _ in range(5):
                x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
            w = w - 0.1 * (x * 0.2 * math.sqrt(max(w.shape)) + 0.5 * w)
        for result in results:
            np.testing.assert_allclose(result[i], w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(128, 128), (64, 256), (256, 64)])
@pytest.mark.parametrize("singular_values", ["falling to 0.3", "falling to 1e-8", "1 and others of 0.005", "1 and 0"])
def test_muons_step_of_a_nearly_singular_matrix_is_the_exact_iterations(
    shape: tuple[int, int], singular_values: str
) -> None:
    rng = np.random.default_rng(0)
    u, s, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    first, last = singular_values.split()[0], float(singular_values.split()[-1])
    s = np.geomspace(1, last, len(s)) if first == "falling" else np.array([1.0] + [last] * (len(s) - 1))
    given = lambda a: {"w": Tensor(a.astype(np.float32)).realize()}
    p = given(np.zeros(shape))
    trainer.muon(p, given((u * s) @ vt), given(np.zeros(shape)), Tensor([-1.0]).realize(), 0.0, 0.0)
    step = p["w"].numpy() / (0.2 * math.sqrt(max(shape)))
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5  # the iteration does this to each singular value
    difference = step - (u * s) @ vt
    assert np.linalg.norm(difference) < 2e-3 * np.linalg.norm(s)
    assert np.linalg.norm(difference, 2) < 5e-3  # so no singular value is further than that from the exact one
    if last == 0.3:
        assert np.linalg.norm(difference) < 2e-5 * np.linalg.norm(s)


def test_adamw_equals_its_formula_and_numpy_over_ten_steps() -> None:
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape) for name, shape in (("a", (70, 33)), ("b", (1,)), ("c", (50,)))}
    decay, betas, eps, clip = {"a": 0.1, "b": 0.0, "c": 0.0}, (0.9, 0.95), 1e-8, 1.0
    gradients = [{k: rng.standard_normal(a.shape) * 0.1 for k, a in start.items()} for _ in range(10)]

    def run(update: Any) -> tuple[list[float], dict[str, np.ndarray]]:
        p, m, v = ({k: Tensor((a * s).astype(np.float32)).realize() for k, a in start.items()} for s in (1, 0, 0))
        norms = []
        for i, g in enumerate(gradients):
            hyper = np.array([1e-2, 1 / (1 - betas[0] ** (i + 1)), 1 / (1 - betas[1] ** (i + 1))], np.float32)
            given = {k: Tensor(a.astype(np.float32)).realize() for k, a in g.items()}
            norms.append(update(p, given, m, v, Tensor(hyper).realize(), decay, betas, eps, clip).item())
        return norms, {k: t.numpy() for k, t in p.items()}

    p, m, v = ({k: a * s for k, a in start.items()} for s in (1, 0, 0))
    norms = []
    for i, g in enumerate(gradients):
        norms.append(math.sqrt(sum((a**2).sum() for a in g.values())))
        for k in p:
            d = g[k] * min(1, clip / (norms[-1] + 1e-6))
            m[k], v[k] = betas[0] * m[k] + (1 - betas[0]) * d, betas[1] * v[k] + (1 - betas[1]) * d * d
            hat = m[k] / (1 - betas[0] ** (i + 1)) / (np.sqrt(v[k] / (1 - betas[1] ** (i + 1))) + eps)
            p[k] = p[k] - 1e-2 * (hat + decay[k] * p[k])
    for update in (trainer.adamw, trainer.adamw.formula):
        got_norms, got = run(update)
        assert got_norms == pytest.approx(norms, rel=1e-5)
        assert max(norms) > clip > min(norms) or min(norms) > clip  # the clipping is in what was compared
        for k in p:
            np.testing.assert_allclose(got[k], p[k], rtol=1e-4, atol=1e-5)


# ---- the whole model ----


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_the_models_gradients_with_kernels_equal_those_of_the_formulas(p: float, monkeypatch) -> None:
    config = GPTConfig(block_size=40, vocab_size=70, n_layer=2, n_head=2, n_embd=24, dropout=p)
    model = GPT(config)
    idx = np.random.default_rng(1).integers(0, 70, (2, 3, 40)).astype(np.int32)
    x, y, seeds = (Tensor(a).realize() for a in (*idx, dropout_seeds(config, 1, 2)))
    params = get_state_dict(model)
    results = []
    for takes in (cpu.takes, lambda *tensors: False):
        monkeypatch.setattr(cpu, "takes", takes)
        loss = model.loss(x, y, seeds if p else None)
        grads = loss.gradient(*params.values())
        Tensor.realize(loss, *grads)
        results.append([t.numpy() for t in (loss, *grads)])
    assert abs(results[0][0] - results[1][0]) < 2e-6
    for name, got, twin in zip(params, results[0][1:], results[1][1:]):
        assert np.abs(got - twin).max() < 2e-6, name


def test_any_number_of_cores_gives_the_same_result(monkeypatch) -> None:
    rng = np.random.default_rng(3)
    x, w, b = (Tensor(rng.standard_normal(s).astype(np.float32)).realize() for s in ((90, 130), (130, 75), (75,)))
    targets = Tensor(rng.integers(0, 75, 90).astype(np.int32)).realize()
    results = []
    for cores in (1, 3):
        for module in (graph, cpu):
            monkeypatch.setattr(module, "cpu_cores", lambda flops, cores=cores: cores)
        y = gpt.layernorm(gpt.gelu(gpt.linear(x, w, b)), b, b)
        loss = gpt.head_loss(y, gpt.linear(w.T, w), targets)
        grads = loss.sum().gradient(x, w, b)
        Tensor.realize(loss, *grads)
        results.append([t.numpy() for t in (loss, *grads)])
    for other in results[1:]:
        for got, one in zip(other, results[0]):
            np.testing.assert_allclose(got, one, rtol=1e-4, atol=1e-4 * np.abs(one).max())


def test_a_kernel_wakes_as_many_cores_as_its_work_is_worth(monkeypatch) -> None:
    monkeypatch.setattr(graph, "CORES", 64)
    assert [graph.cpu_cores(n) for n in (0, 900_000, 1_000_000, 100_000_000, 10**12)] == [1, 1, 2, 20, 64]
    monkeypatch.setattr(graph, "CORES", 2)
    assert graph.cpu_cores(10**12) == 2


# ---- where they can't run, and where they may not reach ----


@pytest.mark.parametrize("cause", ["switched off", "another tinygrad", "doesn't compile", "wrong result"])
def test_where_kernels_cant_be_built_the_formula_runs_and_says_so_once(cause: str) -> None:
    change = {
        "another tinygrad": "graph.TESTED = '0.0.0'",
        "doesn't compile": "graph.read_source = lambda file: '#error no\\n' + read(file)",
        "wrong result": "graph.read_source = lambda file: read(file).replace('bias ? bias + n0', '1 ? W')",
    }.get(cause, "")
    program = f"""
import gpt
from kernels import cpu, describe_kernels, graph
from runtime.device import open_device
from tinygrad import Tensor
open_device("cpu")
read = graph.read_source
{change}
x = Tensor([[1.0, 2.0], [3.0, 4.0]])
for _ in range(2):
    print(cpu.problem() == "", gpt.linear(x, x).tolist())
print(describe_kernels("CPU"))
"""
    switch = {"KERNELS": "0"} if cause == "switched off" else {}
    environment = {**ENVIRONMENT, "DEBUG": "1", "PYTHONPATH": str(ROOT), **switch}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("False [[7.0, 10.0], [15.0, 22.0]]") == 2
    assert done.stdout.count("none, which is slower and takes more memory: ") == 1


GUARDED = """
import ctypes, math, mmap, sys
import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.uop.ops import UOp
import gpt, generate, trainer
from kernels import cpu, edge, fused, graph, training
from runtime.compiled import jit
from runtime.device import open_device
open_device("cpu")
libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
kept = []

def guarded(array, at_end):
    "A tensor whose memory ends (or begins) where a page begins (or ends) that may not be touched."
    pages = -(-array.nbytes // page)
    area = mmap.mmap(-1, (pages + 2) * page)
    first = ctypes.addressof(ctypes.c_char.from_buffer(area))
    address = first + (page * (pages + 1) - array.nbytes if at_end else page)
    ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, array.nbytes)
    for guard in (first, first + page * (pages + 1)):
        assert libc.mprotect(guard, page, 0) == 0
    kept.append(area)
    kind = {{"float32": dtypes.float32, "int32": dtypes.int32, "uint32": dtypes.uint32}}[array.dtype.name]
    return Tensor.from_blob(address, array.shape, dtype=kind, device="CPU")

rng = np.random.default_rng(0)
touch = {touch}
for at_end in (True, False):
    make = lambda *shape: guarded(rng.standard_normal(shape).astype(np.float32), at_end)
    whole = lambda high, *shape: guarded(rng.integers(0, high, shape).astype(np.int32), at_end)
    cpu.new = lambda shape, like: guarded(np.zeros([int(n) for n in shape], np.float32), at_end)
    seed = guarded(np.array([7], np.uint32), at_end)
    idx, targets = whole(13, 3, 37), whole(13, 3, 37)
    turned = lambda x, w: gpt.linear(x, w, None, True)
    def attention(x):
        with training([seed]):
            return gpt.attention(x, 3, 0.3)
    for function, *inputs in (
        (gpt.linear, make(1, 19), make(19, 37), make(37)),
        (gpt.linear, make(29, 261), make(261, 35), make(35)),
        (turned, make(1, 19), make(37, 19)),
        (turned, make(29, 19), make(37, 19)),
        (gpt.gelu, make(3, 41)),
        (gpt.layernorm, make(7, 69), make(69), make(69)),
        (attention, make(2, 67, 45)),
        (lambda w, p: gpt.embed(w, idx, p), make(13, 37), make(40, 37)),
        (lambda x, w: gpt.head_loss(x, w, targets), make(3, 37, 21), make(69, 21)),
    ):
        y = function(*inputs)
        Tensor.realize(y, *y.gradient(*inputs, gradient=make(*y.shape)))
    norm = (make(37), make(37))
    for m in (1, 5):
        with fused():
            y = gpt.gelu(gpt.linear(gpt.layernorm(make(m, 37), *norm), make(37, 19), make(19)))
            edge(y + make(m, 19)).realize()
            gpt.linear(gpt.layernorm(make(m, 37), *norm), make(19, 37), None, True).realize()
    keys, values, first = make(2, 3, 7, 5), make(2, 3, 7, 5), guarded(np.array([0, 2], np.int32), at_end)
    generate.remember(make(2, 9, 45), keys, values, first)  # more than there is room for
    attend = jit(lambda qkv, now: generate.attend(qkv, keys, values, first, now).realize())
    for now in (0, 6):
        attend(make(2, 1, 45), UOp.variable("now", 0, 6).bind(now))
    params, grads, m, v = ({{"a": make(5, 7), "b": make(33)}} for _ in range(4))
    v = {{k: guarded(np.ones(t.shape, np.float32), at_end) for k, t in v.items()}}
    trainer.adamw(params, grads, m, v, make(3), {{"a": 0.1, "b": 0.0}}, (0.9, 0.99), 1e-8, 1.0)
    if touch:
        x = make(4, 4)
        y, text = cpu.new((3, 4), x), "static void outside(float* Y, const float* X, long last) {{ Y[last] = X[0]; }}"
        read = graph.read_source
        graph.read_source = lambda file: read("gemm.c") + text
        last = 12 if at_end else 0
        Tensor.realize(*graph.cpu_kernel("outside.c", "outside", {{"Y": y}}, {{"X": x}}, flops=1, last=last))
print("no access outside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guard pages by mmap and mprotect")
@pytest.mark.parametrize("touch", [False, True])
def test_no_kernel_reads_or_writes_outside_its_buffers(touch: bool) -> None:
    """Each buffer lies against a page that can't be touched; `touch` is a kernel that does, and must be noticed."""
    program = GUARDED.format(touch=touch)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0 and "no access outside" in done.stdout) is not touch, done.stderr[-2000:]
    if touch:
        assert done.returncode < 0, "killed by a signal, nothing else"
