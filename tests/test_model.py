"""The model against an independent forward pass, against finite differences, and against what GPT-2 promises."""

import math

import numpy as np
import pytest
import reference
from conftest import perturbed
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from commands.options import PRESETS, Options
from exchange.layout import shapes
from gpt import GPT, GPTConfig, dropout, dropout_seeds, generate
from kernels import training
from tokenizer import CharTokenizer


def double(model: GPT) -> dict[str, np.ndarray]:
    return {name: p.numpy().astype(np.float64) for name, p in get_state_dict(model).items()}


def tokens(model: GPT, B: int = 3, T: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    c = model.config
    xy = np.random.default_rng(seed).integers(0, c.vocab_size, (2, B, T or c.block_size), dtype=np.int32)
    return xy[0], xy[1]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("T", [1, 4, 6])
def test_logits_equal_numpy_float64(bias: bool, T: int) -> None:
    model = perturbed(GPT(GPTConfig(6, 11, 2, 2, 8, bias=bias)))
    x, _ = tokens(model, T=T)
    expected = reference.logits(double(model), x, 2, 2)
    assert np.abs(model(Tensor(x)).numpy() - expected).max() < 1e-5


def test_losses_equal_numpy_float64(small: GPT) -> None:
    x, y = tokens(small)
    expected = reference.losses(double(small), x, y, 2, 2)
    assert np.abs(small.losses(Tensor(x), Tensor(y)).numpy() - expected).max() < 1e-5
    assert abs(small.loss(Tensor(x), Tensor(y)).item() - expected.mean()) < 1e-5


def test_losses_stay_finite_for_huge_logits(small: GPT) -> None:
    small.ln_f.weight.assign(small.ln_f.weight * 1e4).realize()
    x, y = tokens(small)
    expected = reference.losses(double(small), x, y, 2, 2)
    assert np.allclose(small.losses(Tensor(x), Tensor(y)).numpy(), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("bias", [True, False])
def test_every_gradient_equals_central_differences(bias: bool) -> None:
    model = perturbed(GPT(GPTConfig(4, 7, 2, 2, 4, bias=bias)))
    x, y = tokens(model, B=2)
    params = get_state_dict(model)
    grads = model.loss(Tensor(x), Tensor(y)).gradient(*params.values())
    expected = reference.gradients(double(model), x, y, 2, 2)
    assert set(params) == set(expected)
    for name, grad in zip(params, grads):
        assert np.abs(grad.numpy() - expected[name]).max() < 2e-5, name


def test_a_later_token_never_changes_an_earlier_logit(small: GPT) -> None:
    x, _ = tokens(small, B=2)
    base = small(Tensor(x)).numpy()
    for t in range(1, x.shape[1]):
        changed = x.copy()
        changed[:, t] = (changed[:, t] + 1) % small.config.vocab_size
        out = small(Tensor(changed)).numpy()
        assert np.array_equal(out[:, :t], base[:, :t]), t
        assert not np.allclose(out[:, t:], base[:, t:]), t


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_naive_generation_draws_from_the_softmax_of_the_newest_window(small: GPT, temperature: float) -> None:
    tokenizer, weights, rng = CharTokenizer("abcdefghijk"), double(small), np.random.default_rng(5)
    ids = tokenizer.encode("cab")
    for _ in range(10):  # far beyond the block of 6
        z = reference.logits(weights, np.array([ids[-6:]]), 2, 2)[0, -1]
        p = np.exp(z - z.max()) if temperature else (z == z.max()).astype(float)
        ids.append(int(rng.choice(11, p=p / p.sum())))
    assert generate(small, tokenizer, "cab", 10, temperature, seed=5) == tokenizer.decode(ids)


def test_the_head_is_tied_to_the_token_embedding(small: GPT) -> None:
    assert not any("head" in name for name in get_state_dict(small))
    x, _ = tokens(small)
    unused = next(t for t in range(small.config.vocab_size) if t not in x[:, :2])  # a token that isn't in the input
    before = small(Tensor(x[:, :2])).numpy()
    rows = small.wte.weight.numpy()
    rows[unused] += 1
    small.wte.weight.assign(Tensor(rows)).realize()
    moved = np.abs(small(Tensor(x[:, :2])).numpy() - before).max((0, 1)) > 1e-3
    assert moved[unused] and moved.sum() == 1


def test_initialisation_is_gpt2s() -> None:
    model = GPT(GPTConfig(block_size=128, vocab_size=200, n_layer=8, n_head=4, n_embd=128))
    for name, p in get_state_dict(model).items():
        value = p.numpy()
        if name.endswith("bias"):
            assert not value.any(), name
        elif "ln_" in name:
            assert (value == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
            error = 4 / math.sqrt(2 * value.size)  # four standard errors of a standard deviation
            assert abs(value.std() / std - 1) < error, name
            assert abs(value.mean()) < 4 * std / math.sqrt(value.size), name


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    model = GPT(GPTConfig(block_size=32, vocab_size=65, n_layer=4, n_head=4, n_embd=64))
    x, y = tokens(model, B=8)
    assert abs(model.loss(Tensor(x), Tensor(y)).item() - math.log(65)) < 0.05


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    config = GPTConfig(4, 7, 1, 1, 4)
    a, b, c = (double(GPT(config, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["wte.weight"], c["wte.weight"])


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_as_counted_equal_the_formula_and_the_listed_shapes(bias: bool) -> None:
    config = GPTConfig(9, 13, 3, 2, 8, bias=bias)
    state = {name: tuple(p.shape) for name, p in get_state_dict(GPT(config)).items()}
    assert state == shapes(config)
    assert sum(math.prod(s) for s in state.values()) == config.parameters
    if bias:
        V, T, L, C = 13, 9, 3, 8
        assert config.parameters == V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C


@pytest.mark.parametrize(
    ("preset", "published"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_presets_have_the_published_sizes(preset: str, published: int) -> None:
    assert Options(**PRESETS[preset]).config(50257).parameters == published


def test_dropout_drops_the_share_it_is_told_and_keeps_the_mean() -> None:
    x = Tensor(np.ones((512, 512), np.float32))
    with training([Tensor([123456789], dtype="uint32")]):
        out = dropout(x, 0.2).numpy()
    assert set(np.unique(out)) == {np.float32(0), np.float32(1.25)}
    assert abs((out == 0).mean() - 0.2) < 0.004  # five standard errors
    rows = (out == 0).mean(0)
    assert abs(rows.std() - math.sqrt(0.2 * 0.8 / 512)) < 0.003  # no pattern along the columns


def test_dropout_masks_differ_between_places_and_steps_and_repeat_with_the_seed() -> None:
    config = GPTConfig(4, 7, 2, 1, 4, dropout=0.1)
    a, b, again = dropout_seeds(config, 1, 0), dropout_seeds(config, 1, 1), dropout_seeds(config, 1, 0)
    assert np.array_equal(a, again) and len(set(a) | set(b)) == 2 * 7
    x = Tensor(np.ones(4096, np.float32))
    with training(Tensor(a)):
        masks = [dropout(x, 0.5).numpy() != 0 for _ in a]
    for i, m in enumerate(masks):
        for n in masks[:i]:
            assert abs((m == n).mean() - 0.5) < 0.05


def test_dropout_is_off_without_seeds() -> None:
    config = GPTConfig(4, 7, 1, 1, 4, dropout=0.5)
    model = perturbed(GPT(config))
    x, _ = tokens(model)
    plain = model(Tensor(x)).numpy()
    assert np.array_equal(plain, model(Tensor(x)).numpy())
    with training(Tensor(dropout_seeds(config, 0, 0))):
        assert not np.allclose(plain, model(Tensor(x)).numpy())
    assert np.array_equal(plain, model(Tensor(x)).numpy())
