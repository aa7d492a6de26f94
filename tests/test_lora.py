"""Adapters: nothing at the first step, the gradients of the formula, and the same model once they are merged."""

import re
from pathlib import Path

import numpy as np
import pytest
import reference
from conftest import TINY
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import lora
from gpt import GPT
from runtime.errors import UserError
from runtime.run import Run


def batch(V: int = 11, T: int = 6) -> tuple[Tensor, Tensor]:
    xy = np.random.default_rng(0).integers(0, V, (2, 3, T), dtype=np.int32)
    return Tensor(xy[0]), Tensor(xy[1])


def moved(adapters: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Adapters that aren't zero, as arrays too."""
    rng = np.random.default_rng(3)
    for t in adapters.values():
        t.assign(Tensor(rng.standard_normal(t.shape).astype(np.float32) * 0.3)).realize()
    return {name: t.numpy().astype(np.float64) for name, t in adapters.items()}


def test_before_the_first_step_the_model_is_its_base_to_the_last_bit(small: GPT) -> None:
    x, y = batch()
    before, loss = small(x).numpy(), small.loss(x, y).item()
    adapters = lora.adapt(small, 3, 7.0, "c_attn,c_proj,c_fc", seed=1)
    assert len(adapters) == 2 * 2 * 4 and all(not t.numpy().any() for n, t in adapters.items() if n.endswith("lora_b"))
    assert np.array_equal(small(x).numpy(), before) and small.loss(x, y).item() == loss


@pytest.mark.parametrize(("targets", "layers"), [("c_attn", 1), ("c_attn,c_proj", 3), ("c_fc", 1)])
def test_adapters_stand_where_they_were_asked_for(targets: str, layers: int, small: GPT) -> None:
    adapters = lora.adapt(small, 2, 4.0, targets, seed=1)
    names = {name.rsplit(".", 2)[-2] for name in adapters}
    assert len(adapters) == 2 * 2 * layers and names == set(targets.split(","))


def test_gradients_are_those_of_the_corrected_matrix(small: GPT) -> None:
    """W' = W + s A B, so that dA = s dW' B^T and dB = s A^T dW', with dW' from central differences in double."""
    base = {name: p.numpy().astype(np.float64) for name, p in get_state_dict(small).items()}
    adapters, (x, y), s = lora.adapt(small, 2, 3.0, "c_attn,c_proj", seed=1), batch(), 1.5
    values = moved(adapters)
    layers = sorted({name.rsplit(".", 1)[0] for name in adapters})
    for layer in layers:
        base[f"{layer}.weight"] += s * values[f"{layer}.lora_a"] @ values[f"{layer}.lora_b"]
    exact = reference.gradients(base, x.numpy(), y.numpy(), 2, 2)
    grads = dict(zip(adapters, small.loss(x, y).gradient(*adapters.values())))
    for layer in layers:
        dw = exact[f"{layer}.weight"]
        a, b = values[f"{layer}.lora_a"], values[f"{layer}.lora_b"]
        assert np.abs(grads[f"{layer}.lora_a"].numpy() - s * dw @ b.T).max() < 5e-5, layer
        assert np.abs(grads[f"{layer}.lora_b"].numpy() - s * a.T @ dw).max() < 5e-5, layer


def test_merged_the_model_is_the_same(small: GPT) -> None:
    x, _ = batch()
    moved(lora.adapt(small, 2, 3.0, "c_attn,c_proj", seed=1))
    adapted = small(x).numpy()
    state = get_state_dict(lora.merge(small))
    assert not any("lora" in name or "frozen" in name for name in state)
    assert np.abs(small(x).numpy() - adapted).max() < 1e-5


# ---- the command line ----


def test_adapters_alone_are_trained_and_saved_and_make_the_same_model_everywhere(
    gpt_py, script, corpus: Path, tmp_path: Path
) -> None:
    text = ["--data", corpus, "--steps", 2, *TINY]
    gpt_py(*text, "--out", "base")
    gpt_py(*text, "--out", "other", "--seed", 7)
    train = ["--init-from", "base", "--lora-rank", 2, "--lora-alpha", 8, "--data", corpus, "--batch-size", 4,
             "--eval-batches", 1, "--lr", "0.05", "--log-interval", 1]
    out = gpt_py(*train, "--steps", 3, "--out", "tuned")
    run = Run(tmp_path / "tuned")
    saved = run.load("best")[0]
    count = sum(int(np.prod(t.shape)) for t in saved.values())
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_proj")
    assert set(saved) == {f"h.0.{layer}.lora_{ab}" for layer in layers for ab in "ab"}
    assert count == 2 * (16 + 48 + 16 + 16 + 64 + 16) and f"trained  {count:,} of" in out
    assert any(saved[name].numpy().any() for name in saved if name.endswith("lora_b"))

    loss = lambda *args: re.search(r"loss .*", gpt_py("eval", *args, "--data", corpus))[0]  # type: ignore[index]
    tuned, file = loss("tuned"), tmp_path / "tuned" / "best.safetensors"
    assert tuned != loss("base") and loss("base", "--lora", file) == tuned
    gpt_py("export", "--to", "hf", "--merge", "tuned", "merged")
    assert loss("--init-from", "merged") == tuned
    sample = [gpt_py("sample", *args, "--max-new-tokens", 30) for args in (["tuned"], ["base", "--lora", file])]
    assert sample[0] == sample[1] == gpt_py("sample", "--init-from", "merged", "--max-new-tokens", 30)

    for args, says in (
        (["sample", "other", "--lora", file], "trained on another model"),
        (["sample", "base", "--lora", tmp_path / "base" / "best.safetensors"], "doesn't hold adapters"),
        (["sample", "--init-from", "tuned"], "holds adapters alone"),
        (["export", "--to", "hf", "tuned", "x"], "add --merge"),
        (["export", "--to", "hf", "--merge", "base", "x"], "no adapters to --merge"),
        (["--data", corpus, "--lora-rank", 2], "--init-from"),
        (["--data", corpus, "--lora-alpha", 2], "needs --lora-rank"),
        ([*train, "--lora-targets", "wte"], "can't have 'wte'"),
    ):
        with pytest.raises(UserError, match=says):
            gpt_py(*args)


def test_adapters_go_on_after_a_stop_with_the_losses_of_a_run_that_was_not_stopped(
    gpt_py, script, corpus: Path, tmp_path: Path
) -> None:
    gpt_py("--data", corpus, "--steps", 2, *TINY, "--out", "base")
    train = ["--init-from", "base", "--lora-rank", 2, "--data", corpus, "--batch-size", 4, "--eval-batches", 1,
             "--lr", "0.05", "--min-lr", "0.05", "--warmup", 0, "--log-interval", 1]
    gpt_py(*train, "--steps", 3, "--out", "whole")
    for args in ([*train, "--steps", 2, "--out", "part"], ["--resume", "part", "--steps", 3]):
        done = script("gpt.py", *args)
        assert done.returncode == 0, done.stderr
    losses = [[line["train_loss"] for line in Run(tmp_path / name).metrics()] for name in ("whole", "part")]
    assert losses[0] == losses[1] and len(set(losses[0])) == 3
    (tmp_path / "base").rename(tmp_path / "moved")
    gpt_py("--data", corpus, "--steps", 1, "--seed", 3, *TINY, "--out", "base")  # another model in its place
    with pytest.raises(UserError, match="trained on another model"):
        gpt_py("sample", "part")
