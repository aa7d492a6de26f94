"""Training in bfloat16 and float16: close to float32, weights in float32, and float16's overflows harmless.

All on the CPU, whose formulas are what a GPU runs too. There every product is rounded before it is summed, which
tensor cores don't do: what holds here holds all the more for them.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import TINY
from test_kernels import attention, gelu, head_loss, layernorm, linear
from tinygrad import Tensor, dtypes
from tinygrad.nn.state import get_state_dict

import gpt
from commands.weights import best_dtype
from gpt import GPT, GPTConfig
from kernels import cpu
from runtime import device as runtime_device
from runtime.run import Run
from trainer import AdamW, LossScale, Task, Trainer, TrainOptions

HALVES = ["bfloat16", "float16"]
EPSILON = {"bfloat16": 2**-8, "float16": 2**-11}  # the largest error of rounding one number, relative to it


def batch(i: int) -> tuple[np.ndarray, ...]:
    """Tokens, and a function of each to learn."""
    x = np.random.default_rng((0, i)).integers(0, 33, (4, 8), dtype=np.int32)
    return x, (x * 3 + 1) % 33


def trainer(dtype: str, folder: Path | str = "unused") -> Trainer:
    model = GPT(GPTConfig(block_size=8, vocab_size=33, n_layer=1, n_head=2, n_embd=16))
    model.dtype = dtype
    o = TrainOptions(steps=30, warmup=5, lr=1e-2, min_lr=1e-2, batch_size=4)
    return Trainer(Task(model, GPT.loss, batch, dict, loss_scaling=dtype == "float16"), o, Run(folder))


def losses(t: Trainer, steps: int = 30) -> np.ndarray:
    return np.array([t.take_step()[0].item() for _ in range(steps)])


@pytest.mark.parametrize(("dtype", "band"), [("bfloat16", 0.02), ("float16", 0.002)])
def test_thirty_losses_in_half_precision_are_those_of_float32_within_the_band(dtype: str, band: float) -> None:
    exact, half = losses(trainer("float32")), losses(trainer(dtype))
    assert exact[-1] < 0.6 * exact[0]  # something was learned, so there is something to compare
    assert np.abs(half - exact).max() < band, np.abs(half - exact).max()
    assert np.abs(half - exact).max() > 1e-6, "nothing was rounded at all"


@pytest.mark.parametrize("dtype", HALVES)
def test_every_operation_in_half_precision_is_numpys_within_its_rounding(dtype: str) -> None:
    rng = np.random.default_rng(1)
    x, w, b, qkv = (rng.standard_normal(shape) for shape in ((2, 5, 12), (12, 12), (12,), (2, 5, 36)))
    targets = rng.integers(0, 12, (2, 5)).astype(np.int32)
    half = lambda a: Tensor(a.astype(np.float32)).cast(dtype)
    full = lambda a: Tensor(a.astype(np.float32))
    y = Tensor(targets)
    for got, wanted in (
        (gpt.linear(half(x), full(w), full(b)), linear(x, w, b)),
        (gpt.gelu(half(x)), gelu(x)),
        (gpt.layernorm(half(x), full(w[0]), full(b)), layernorm(x, w[0], b)),
        (gpt.attention(half(qkv), 3), attention(qkv, 3)),
        (gpt.head_loss(half(x), full(w), y), head_loss(x, w, targets)),
    ):
        assert got.dtype == (dtypes.float32 if got.ndim == 2 else getattr(dtypes, dtype))  # losses are float32
        error = np.abs(got.float().numpy() - wanted).max() / np.abs(wanted).max()
        assert 1e-7 < error < 4 * EPSILON[dtype]


def test_weights_moments_and_logits_are_float32_and_activations_are_not() -> None:
    t = trainer("bfloat16")
    assert {p.dtype for p in t.compiled.state().values()} == {dtypes.float32}
    model = GPT(GPTConfig(8, 33, 1, 2, 16))
    model.dtype = "bfloat16"
    x = Tensor(batch(0)[0])
    assert model.hidden(x).dtype == dtypes.bfloat16 and model(x).dtype == dtypes.float32
    grads = model.loss(x, x).gradient(*get_state_dict(model).values())
    assert {g.dtype for g in grads} == {dtypes.float32}


# ---- float16's losses are scaled ----


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_gradients_that_are_not_finite_change_nothing(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for takes in (cpu.takes, lambda *tensors: False):  # the kernel, and the formula
        monkeypatch.setattr(cpu, "takes", takes)
        adamw = AdamW({"w": Tensor(np.ones((3, 3), np.float32)), "b": Tensor(np.ones(3, np.float32))}, TrainOptions())
        for step in range(2):  # the second with moments that aren't zero
            fine = {k: Tensor(np.full(p.shape, 0.1, np.float32)) for k, p in adamw.params.items()}
            adamw.update(fine, Tensor(adamw.hyper(step, 0.1)))
        tensors = adamw.params | adamw.state()
        before = {k: t.numpy() for k, t in tensors.items()}
        broken = {k: Tensor(np.array([[0.1] * 3, [bad] * 3, [0.1] * 3][: p.ndim * 2 - 1], np.float32).reshape(p.shape))
                  for k, p in adamw.params.items()}
        assert not np.isfinite(adamw.update(broken, Tensor(adamw.hyper(2, 0.1))).item())
        assert all(np.array_equal(t.numpy(), before[k]) for k, t in tensors.items())


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_enough_good_steps(monkeypatch) -> None:
    monkeypatch.setattr(LossScale, "GROW", 3)
    scale, seen = LossScale(Tensor([0.0])), []
    for norm in (1.0, np.inf, np.nan, 2.0, 2.0, 2.0, 2.0):
        scale.update(Tensor(norm, dtype="float32"))
        seen.append(scale.now.tolist())
    s = LossScale.START
    assert seen == [[s, 1], [s / 2, 0], [s / 4, 0], [s / 4, 1], [s / 4, 2], [s / 2, 0], [s / 2, 1]]


def test_float16_gradients_beyond_its_range_skip_steps_until_the_scale_is_low_enough() -> None:
    t = trainer("float16")
    assert t.compiled.loss_scale
    t.compiled.loss_scale.now.assign(Tensor(np.array([2.0**24, 0], np.float32))).realize()  # far too much
    before = t.params["wte.weight"].numpy()
    assert not np.isfinite(t.take_step()[1].item())
    assert np.array_equal(before, t.params["wte.weight"].numpy())
    assert np.isfinite(losses(t, 20)).all()
    assert np.isfinite(t.take_step()[1].item()) and 1 < t.compiled.loss_scale.now.numpy()[0] < 2.0**24
    assert not np.array_equal(before, t.params["wte.weight"].numpy())


def test_a_resumed_float16_run_keeps_its_loss_scale_and_its_losses(tmp_path: Path) -> None:
    whole = trainer("float16", tmp_path)
    assert whole.compiled.loss_scale
    whole.compiled.loss_scale.now.assign(Tensor(np.array([2.0**20, 7], np.float32))).realize()
    losses(whole, 3)
    whole.save()
    rest = trainer("float16", tmp_path)
    rest.resume()
    assert rest.compiled.loss_scale and rest.compiled.loss_scale.now.tolist() == whole.compiled.loss_scale.now.tolist()
    assert losses(rest, 4).tolist() == losses(whole, 4).tolist()


# ---- the option ----


@pytest.mark.parametrize(("arch", "dtype"), [("sm_89", "bfloat16"), ("sm_90a", "bfloat16"), ("sm_75", "float32"),
                                             ("x86_64,native", "float32"), ("Apple9", "float32")])
def test_bfloat16_is_the_default_where_tensor_cores_have_it(arch: str, dtype: str, monkeypatch) -> None:
    nvidia = SimpleNamespace(renderer=SimpleNamespace(target=SimpleNamespace(arch=arch)))
    monkeypatch.setattr(runtime_device, "Device", {"X": nvidia})
    assert best_dtype("X") == dtype


def test_a_run_says_what_it_computes_in_and_keeps_to_it(corpus: Path, script, tmp_path: Path) -> None:
    args = ["--data", corpus, *TINY, "--n-embd", 8, "--steps", 2, "--eval-interval", 2, "--dtype", "float16"]
    done = script("gpt.py", *args, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "numbers  float16 in activations and matmuls, losses scaled" in done.stdout
    assert Run(tmp_path / "run").config()["options"]["dtype"] == "float16"
    assert "loss_scale" in Run(tmp_path / "run").load("state")[0]
    refused = script("gpt.py", "--resume", "run", "--dtype", "float32", "--steps", 3)
    assert refused.returncode == 2 and "--dtype can't change" in refused.stderr
