"""The training step against NumPy, and runs that are stopped, killed, resumed or diverge."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY
from tinygrad import Tensor

from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors
from trainer import AdamW, Task, Trainer, TrainOptions, learning_rate


def options(**changes: object) -> TrainOptions:
    base = {"steps": 20, "warmup": 5, "eval_interval": 10, "log_interval": 1, "lr": 1e-2, "min_lr": 1e-3}
    return TrainOptions(**{**base, **changes})  # type: ignore[arg-type]


# ---- the schedule ----


def test_learning_rate_at_every_corner_of_the_schedule() -> None:
    o = options(steps=100, warmup=10, lr=1.0, min_lr=0.1)
    assert learning_rate(0, o) == pytest.approx(0.1)
    assert learning_rate(9, o) == learning_rate(10, o) == 1.0
    assert learning_rate(55, o) == pytest.approx(0.55)  # half way down
    assert learning_rate(99, o) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 89 / 90)))
    assert learning_rate(100, o) == learning_rate(10_000, o) == 0.1


@pytest.mark.parametrize("lr", [0.0, 0.05])
def test_the_learning_rate_never_rises_above_lr(lr: float) -> None:
    o = TrainOptions(steps=100, warmup=10, lr=lr, min_lr=0.1)
    assert max(learning_rate(i, o) for i in range(120)) == lr
    assert learning_rate(50, o) == lr
    rates = [learning_rate(i, o) for i in range(101)]
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize(("warmup", "steps", "first"), [(0, 10, 1.0), (20, 10, 0.05), (10, 10, 0.1)])
def test_learning_rate_without_warmup_and_with_more_warmup_than_steps(warmup: int, steps: int, first: float) -> None:
    o = options(steps=steps, warmup=warmup, lr=1.0, min_lr=0.0)
    assert learning_rate(0, o) == pytest.approx(first)
    assert all(0 <= learning_rate(i, o) <= 1 for i in range(30))


# ---- the optimizer ----


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_three_adamw_steps_equal_numpy_float64_with_decay_on_the_matrix_only(clip: float) -> None:
    rng = np.random.default_rng(0)
    start = {"matrix": rng.standard_normal((3, 4)), "vector": rng.standard_normal(5)}
    params = {k: Tensor(v.astype(np.float32)) for k, v in start.items()}
    o = options(weight_decay=0.5, grad_clip=clip, beta1=0.9, beta2=0.95)
    adamw = AdamW(params, o)
    p = {k: t.numpy().astype(np.float64) for k, t in params.items()}
    m, v = ({k: np.zeros_like(a) for k, a in p.items()} for _ in range(2))
    for step in range(3):
        lr = 0.1 / (step + 1)
        g = {k: rng.standard_normal(a.shape) for k, a in p.items()}
        got = adamw.update({k: Tensor(a.astype(np.float32)) for k, a in g.items()}, Tensor(adamw.hyper(step, lr)))
        norm = math.sqrt(sum((a**2).sum() for a in g.values()))
        assert got.item() == pytest.approx(norm, rel=1e-5)
        for k in p:
            clipped = g[k] * min(1.0, clip / (norm + 1e-6)) if clip else g[k]
            m[k] = 0.9 * m[k] + 0.1 * clipped
            v[k] = 0.95 * v[k] + 0.05 * clipped**2
            update = m[k] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[k] / (1 - 0.95 ** (step + 1))) + 1e-8)
            p[k] = p[k] - lr * (update + (0.5 if k == "matrix" else 0.0) * p[k])
            assert np.abs(params[k].numpy() - p[k]).max() < 2e-6, (k, step)


def test_with_no_gradient_matrices_shrink_and_vectors_stay() -> None:
    params = {"w": Tensor(np.ones((2, 2), np.float32)), "b": Tensor(np.ones(2, np.float32))}
    adamw = AdamW(params, options(weight_decay=0.1))
    adamw.update({k: p.zeros_like().contiguous() for k, p in params.items()}, Tensor(adamw.hyper(0, 0.5)))
    assert np.allclose(params["w"].numpy(), 1 - 0.5 * 0.1) and np.array_equal(params["b"].numpy(), [1, 1])


# ---- the loop, on a model of two tensors ----


class Line:
    """y = x @ w + b, fitted to noisy points."""

    def __init__(self) -> None:
        self.w, self.b = Tensor(np.zeros((3, 2), np.float32)), Tensor(np.zeros(2, np.float32))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ self.w + self.b - y).square().mean()


def trainer(folder: Path, o: TrainOptions, poison: int | None = None) -> Trainer:
    model = Line()

    def batch(i: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng((o.seed, i))
        x = rng.standard_normal((o.batch_size, 3)).astype(np.float32)
        y = x @ np.arange(6).reshape(3, 2).astype(np.float32) + 1
        return x, y * (np.nan if i == poison else 1)

    def evaluate() -> dict[str, float]:
        return {"val_loss": model.loss(*map(Tensor, batch(10**6))).item()}

    run = Run(folder)
    folder.mkdir(exist_ok=True)
    return Trainer(Task(model, Line.loss, batch, evaluate, o.batch_size), o, run)


def losses(run: Run) -> list[tuple[int, float]]:
    return [(line["step"], line["train_loss"]) for line in run.metrics()]


def test_patience_stops_after_so_many_evaluations_without_a_better_one_also_over_a_stop(tmp_path: Path) -> None:
    values = [5.0, 4.0, 4.5, 4.25, 3.0, 3.5, 3.5, 3.5, 1.0]

    def made(patience: int, steps: int = 20) -> Trainer:
        t = trainer(tmp_path, options(patience=patience, eval_interval=1, steps=steps))
        t.task.evaluate = lambda: {"val_loss": values[t.step - 1]}
        if t.run.has("state"):
            t.resume()
        t.train()
        return t

    assert made(3, steps=7).step == 7  # two were worse than the third-last, and then the steps were done
    assert made(3).step == 8 and made(3).step == 8
    assert made(4, steps=9).best == 1.0  # a larger one goes on


@pytest.mark.parametrize("accum", [1, 3])
def test_ten_steps_and_ten_resumed_equal_twenty_to_the_last_bit(tmp_path: Path, accum: int) -> None:
    o = options(grad_accum=accum)
    whole = trainer(tmp_path / "whole", o)
    whole.train()

    part = trainer(tmp_path / "part", o)
    part.options.steps = 20
    stop_at = 10
    original = part.take_step

    def take_step() -> tuple[Tensor, Tensor]:
        result = original()
        if part.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    part.take_step = take_step  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as stopped:
        part.train()
    assert stopped.value.code == 128 + signal.SIGTERM
    rest = trainer(tmp_path / "part", o)
    rest.resume()
    assert rest.step == 10
    rest.train()

    assert losses(rest.run) == losses(whole.run) and len(losses(rest.run)) == 20
    for name in ("state", "last", "best"):
        (a, about_a), (b, about_b) = (t.run.load(name) for t in (whole, rest))
        assert {k: v.numpy().tolist() for k, v in a.items()} == {k: v.numpy().tolist() for k, v in b.items()}
        assert about_a["step"] == about_b["step"]


def test_accumulated_gradients_equal_one_large_batch(tmp_path: Path) -> None:
    """Four batches of 3 in one step against the 12 samples at once."""
    small = trainer(tmp_path / "small", options(batch_size=3, grad_accum=4))
    pieces = [small.task.batch(i) for i in range(8)]
    large = trainer(tmp_path / "large", options(batch_size=12))
    large.task.batch = lambda i: tuple(np.concatenate(a) for a in zip(*pieces[4 * i : 4 * i + 4]))
    for _ in range(2):
        (a, norm_a), (b, norm_b) = small.take_step(), large.take_step()
        assert a.item() == pytest.approx(b.item(), rel=1e-5) and norm_a.item() == pytest.approx(norm_b.item(), rel=1e-5)
    assert np.abs(small.params["w"].numpy() - large.params["w"].numpy()).max() < 1e-5


def test_the_loss_of_a_step_is_that_of_the_parameters_before_it(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options())
    for i in range(3):
        w, b = t.params["w"].numpy().astype(np.float64), t.params["b"].numpy().astype(np.float64)
        x, y = t.task.batch(i)
        assert t.take_step()[0].item() == pytest.approx(((x @ w + b - y) ** 2).mean(), rel=1e-5)


def test_metrics_have_every_field_and_evaluations_fall_where_they_should(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options(steps=25, log_interval=5))
    t.train()
    lines = t.run.metrics()
    assert [line["step"] for line in lines] == [1, 5, 10, 15, 20, 25]
    assert [line["step"] for line in lines if "val_loss" in line] == [10, 20, 25]
    for line in lines:
        assert {"step", "tokens", "seconds", "train_loss", "lr", "grad_norm", "tokens_per_s"} <= set(line)
        assert line["tokens"] == line["step"] * t.options.batch_size
        assert line["lr"] == learning_rate(line["step"] - 1, t.options)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert t.best == min(line["val_loss"] for line in lines if "val_loss" in line)


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options(steps=30))
    values = iter([2.0, 1.0, 3.0])
    weights = []

    def evaluate() -> dict[str, float]:
        weights.append(t.params["w"].numpy())
        return {"val_loss": next(values)}

    t.task.evaluate = evaluate
    t.train()
    tensors, about = t.run.load("best")
    assert about == {"step": 20, "val_loss": 1.0}
    assert np.array_equal(tensors["w"].numpy(), weights[1])
    assert np.array_equal(t.run.load("last")[0]["w"].numpy(), weights[2])


@pytest.mark.parametrize(("poison", "kept"), [(3, "no checkpoint was saved"), (14, "last.safetensors")])
def test_a_loss_that_is_not_a_number_stops_and_names_the_step_and_the_last_good_checkpoint(
    tmp_path: Path, poison: int, kept: str
) -> None:
    t = trainer(tmp_path / "run", options(), poison)
    with pytest.raises(UserError) as error:
        t.train()
    assert f"became nan at step {poison + 1}" in str(error.value) and kept in str(error.value)
    if t.run.has("last"):
        assert np.isfinite(t.run.load("last")[0]["w"].numpy()).all()


def test_a_half_written_line_of_metrics_is_dropped_on_resume(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options(steps=10))
    t.train()
    with (t.run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "tokens": 1')
    (t.run.path / ".state.safetensors.4711").write_bytes(b"half")  # and so is a file that was being written
    again = trainer(tmp_path / "run", options(steps=20))
    again.resume()
    again.train()
    assert [step for step, _ in losses(again.run)] == list(range(1, 21))
    assert not list(again.run.path.glob(".*"))


# ---- the command line ----


def test_sixty_steps_beat_the_unigram_entropy_of_the_corpus(corpus: Path, script, tmp_path: Path) -> None:
    done = script(
        "gpt.py", "--data", corpus, "--out", "run", "--steps", 60, "--eval-interval", 60, "--warmup", 10, "--lr", 1e-2,
        "--n-layer", 2, "--n-embd", 64, "--block-size", 32,
    )
    assert done.returncode == 0, done.stderr
    text = corpus.read_text(encoding="utf-8")
    counts = np.unique(list(text), return_counts=True)[1] / len(text)
    entropy = -(counts * np.log(counts)).sum()
    final = Run(tmp_path / "run").metrics()[-1]
    assert final["val_loss"] < entropy - 0.5, (final, entropy)
    sample = (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8")
    assert len(sample) > 250 and set(sample) <= set(text) and sample in done.stdout
    for verb in ("sample", "eval"):
        assert f"gpt.py {verb} run" in done.stdout


def start(tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "gpt.py"), *args], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**ENVIRONMENT, "DATA_DIR": str(tmp_path / "data")},
    )


def test_ctrl_c_saves_and_a_resumed_run_has_the_same_losses(corpus: Path, script, tmp_path: Path) -> None:
    common = ["--data", str(corpus), *TINY, "--steps", "120", "--eval-interval", "40", "--dropout", "0.1"]
    assert script("gpt.py", *common, "--out", "whole").returncode == 0
    process = start(tmp_path, *common, "--out", "cut")
    assert process.stdout
    for line in process.stdout:
        if "step  50/120" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(60) == 130 and "--resume cut" in rest, rest
    done = script("gpt.py", "--resume", "cut")
    assert done.returncode == 0, done.stderr
    assert losses(Run(tmp_path / "cut")) == losses(Run(tmp_path / "whole"))
    assert len(losses(Run(tmp_path / "cut"))) == 120


def test_kill_9_leaves_whole_files_and_a_run_that_goes_on(corpus: Path, script, tmp_path: Path) -> None:
    common = ["--data", str(corpus), *TINY, "--steps", "200", "--eval-interval", "5"]
    assert script("gpt.py", *common, "--out", "whole").returncode == 0
    moments = random.Random(1)
    args = [*common, "--out", "cut"]
    for _ in range(2):
        process = start(tmp_path, *args)
        assert process.stdout
        for line in process.stdout:
            if line.startswith("compiled"):
                break
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        process.communicate()
        for path in (tmp_path / "cut").glob("[!.]*.safetensors"):
            load_safetensors(path)  # raises if it is damaged
        json.loads((tmp_path / "cut" / "config.json").read_text())
        args = ["--resume", "cut"]
    assert script("gpt.py", "--resume", "cut").returncode == 0
    assert losses(Run(tmp_path / "cut")) == losses(Run(tmp_path / "whole"))


def test_a_gradient_that_overflows_while_accumulating_spoils_no_later_step() -> None:
    class Model:
        def __init__(self) -> None:
            self.w = Tensor([1.0, 2.0]).realize()

    batch = lambda i: (np.full((1, 2), math.inf if i == 1 else 1.0, np.float32),)
    task = Task(Model(), lambda model, x: (model.w * x).sum(), batch, dict)
    t = Trainer(task, options(grad_accum=2, warmup=0, weight_decay=0.0), Run("unused"))
    norms = [t.take_step()[1].item() for _ in range(2)]
    assert not math.isfinite(norms[0]) and norms[1] == pytest.approx(math.sqrt(2))
    assert (t.params["w"].numpy() < [1.0, 2.0]).all()


def test_a_signal_that_comes_while_the_ranks_agree_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a step on several ranks is waiting for the others, and there a signal is likeliest to come."""
    t = trainer(tmp_path / "run", options(steps=50))
    asked = []

    def agree(stop: int) -> int:
        asked.append(stop)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return stop

    monkeypatch.setattr("trainer.largest", agree)
    with pytest.raises(SystemExit) as stopped:
        t.train()
    assert stopped.value.code == 128 + signal.SIGTERM and len(asked) == 4
