"""The pictures show what the run folders hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from tinygrad import Tensor

from data.modular import make_split, make_table
from plots import grok_curves, grok_mechanism, grok_sweep, loss_curves, style
from runtime.errors import UserError
from runtime.run import Run


def make_run(folder: Path, evaluations: bool = True) -> Run:
    run = Run.new(folder, "gpt")
    run.write_config({"kind": "gpt", "options": {}, "model": {}, "tokenizer": {}, "corpus": {}})
    for step in range(1, 41):
        line = {"step": step, "tokens": 10 * step, "seconds": 0.5 * step, "train_loss": 4 / step}
        if evaluations and step % 10 == 0:
            line |= {"train_eval_loss": 4 / step, "val_loss": [3.0, 2.0, 2.5, 3.0][step // 10 - 1]}
        run.log(line)
    return run


@pytest.mark.parametrize("x", ["step", "tokens", "seconds"])
def test_loss_curves_of_one_and_of_two_runs_are_written(tmp_path: Path, x: str) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", evaluations=False)]
    for n in (1, 2):
        out = tmp_path / f"{n}.png"
        loss_curves.draw(runs[:n], x, out)
        assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    run = Run.new(tmp_path / "empty", "gpt")
    with pytest.raises(UserError, match="has logged nothing yet"):
        loss_curves.draw([run], "step", tmp_path / "x.png")


def test_the_running_mean_is_that_of_the_last_n_and_smoothing_is_stated(tmp_path: Path, monkeypatch: Any) -> None:
    x = np.random.default_rng(0).random(12)
    means = [x[max(0, i - 3) : i + 1].mean() for i in range(12)]
    assert loss_curves.running_mean(x.tolist(), 4) == pytest.approx(means)
    assert loss_curves.running_mean(x.tolist(), 1) == pytest.approx(x)
    texts: list[str] = []
    monkeypatch.setattr(style, "save", lambda figure, out: texts.extend(t.get_text() for t in figure.findobj(Text)))
    loss_curves.draw([make_run(tmp_path / "one")], "seconds", tmp_path / "x.png", smooth=5)
    assert "train, running mean of 5 logged batches" in texts and "gap, 2.90 at the end" in texts
    assert any("lowest validation loss 2.0000\n at seconds 10: " in t for t in texts)


def test_divergence_is_where_validation_turns_up_while_train_still_falls() -> None:
    assert loss_curves.divergence([4, 3, 2, 1], [4, 3, 3.5, 4]) == 1
    assert loss_curves.divergence([4, 3, 2, 1], [4, 3, 2.5, 2.4]) is None  # still getting better
    assert loss_curves.divergence([4, 3, 3, 3], [4, 3, 3.5, 4]) is None  # train doesn't fall any more
    assert loss_curves.divergence([4, 3, 2, 1], [4, 3, 3.005, 3.009]) is None  # no more than noise


def test_the_script_runs_from_any_folder_and_says_how_to_make_a_run(script, tmp_path: Path) -> None:
    done = script("plots/loss_curves.py")
    assert done.returncode == 2 and "python gpt.py" in done.stderr and "Traceback" not in done.stderr
    make_run(tmp_path / "runs" / "one")
    assert script("plots/loss_curves.py", "--out", "a.png").returncode == 0 and (tmp_path / "a.png").is_file()


# ---- grokking ----


def solved(p: int, frequencies: list[int], op: str = "+") -> np.ndarray:
    """Logits `(n, p)` of a network that adds as Nanda et al. found: cosines that agree only at the right answer."""
    a, b = make_table(op, p).pairs.T
    s = a - b if op == "-" else a + b
    return sum(np.cos(2 * np.pi * k * (s[:, None] - np.arange(p)) / p) for k in frequencies)


def make_grok_run(folder: Path, p: int = 11, op: str = "+") -> Run:
    """A run that learns at step 50, generalises at step 150 and keeps three snapshots, its embedding two circles."""
    run = Run.new(folder, "grok")
    options = {"op": op, "p": p, "prompt": "a b =", "frac": 0.4, "seed": 0, "wd": 1.0, "n_embd": 8}
    config = {"kind": "grok", "options": options, "model": {}, "tokenizer": {}, "corpus": {"name": "a + b mod 11"}}
    run.write_config(config)
    for i in range(1, 9):
        train, val = min(1.0, 0.5 * i), float(i >= 6)
        line = {"step": 25 * i, "train_acc": train, "val_acc": val, "clean_val_acc": val, "weight_norm": 10.0 - i}
        run.log({**line, "train_eval_loss": 2 / i, "val_loss": 3.0 - 0.3 * i, "clean_val_loss": 3.2 - 0.3 * i})
    rng = np.random.default_rng(0)
    table = make_table(op, p)
    for step, strength in ((0, 0.0), (100, 1.0), (200, 5.0)):
        waves = np.concatenate([grok_mechanism.waves(p, k, np.arange(p)) for k in (2, 3)], 1)  # (p, 4)
        wte = strength * waves @ rng.standard_normal((4, 8)) + 0.1 * rng.standard_normal((p, 8))
        logits = strength * solved(p, [2, 3], op) if op in "+-" else rng.standard_normal((len(table), p))
        tensors = {"logits": Tensor(logits.astype(np.float16)), "wte": Tensor(wte.astype(np.float32))}
        run.save(f"snapshots/{step:06d}", tensors, {"step": step}, "F16")
    return run


@pytest.mark.parametrize("p", [10, 11])
def test_fourier_power_is_the_share_of_the_variance_that_each_frequency_explains(p: int) -> None:
    rng = np.random.default_rng(0)
    wte = rng.standard_normal((p, 6))
    power = grok_mechanism.fourier_power(wte)
    centred = wte - wte.mean(0)
    for k in range(1, p // 2 + 1):  # least squares on cos and sin, another way to the same number
        basis = grok_mechanism.waves(p, k, np.arange(p))
        fitted = basis @ np.linalg.lstsq(basis, centred, rcond=1e-9)[0]
        assert power[k - 1] == pytest.approx((fitted**2).sum() / (centred**2).sum())
    assert power.sum() == pytest.approx(1)
    pure = grok_mechanism.waves(p, 3, np.arange(p)) @ rng.standard_normal((2, 6))
    assert grok_mechanism.fourier_power(pure)[2] == pytest.approx(1) and grok_mechanism.key_frequencies(
        grok_mechanism.fourier_power(pure)
    ) == [3]


def test_an_embedding_of_three_circles_is_seen_as_each_of_them() -> None:
    p, rng = 29, np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((12, 6)))[0].T  # three planes that have nothing in common
    wte = np.concatenate([grok_mechanism.waves(p, k, np.arange(p)) for k in (2, 5, 11)], 1) @ directions
    for k in (2, 5, 11):
        seen, share = grok_mechanism.circle(wte + 3.0, k)
        assert share == pytest.approx(1 / 3) and np.linalg.norm(seen, axis=1) == pytest.approx(np.ones(p))
        turns = np.diff(np.unwrap(np.arctan2(seen[:, 1], seen[:, 0])))
        assert np.allclose(turns, 2 * np.pi * k / p)  # cosine to the right, sine upwards


@pytest.mark.parametrize("op", ["+", "-"])
def test_restricted_and_excluded_loss_part_a_network_that_adds_from_its_memory(op: str) -> None:
    table = make_table(op, 13)
    split = make_split(table, 0.4, 0)
    memory = np.zeros((169, 13))
    memory[split.train, table.answers[split.train]] = 8.0
    adds = 6 * solved(13, [2, 5], op)
    restricted, excluded = grok_mechanism.progress_measures(adds + memory, table, split, [2, 5])
    plain = grok_mechanism.mean_loss(adds[split.clean], table.answers[split.clean])
    assert restricted < 0.5 and abs(restricted - plain) < 0.2  # the waves alone answer what was never seen
    assert np.allclose(grok_mechanism.trigonometric_part(adds, table, [2, 5]), adds)
    assert excluded == pytest.approx(grok_mechanism.progress_measures(memory, table, split, [2, 5])[1], abs=1e-6)
    assert grok_mechanism.progress_measures(adds, table, split, [3])[0] == pytest.approx(np.log(13))


def test_gini_is_zero_for_equal_shares_and_nearly_one_for_a_single_one() -> None:
    assert grok_mechanism.gini(np.ones(50)) == pytest.approx(0)
    assert grok_mechanism.gini(np.eye(50)[7]) == pytest.approx(1 - 1 / 50)
    x = np.random.default_rng(0).random(20)
    pairwise = np.abs(x[:, None] - x).mean() / (2 * x.mean())
    assert grok_mechanism.gini(x) == pytest.approx(pairwise)


def test_grok_curves_of_one_and_of_two_runs_have_the_delay_written_on_them(tmp_path: Path, monkeypatch: Any) -> None:
    runs = [make_grok_run(tmp_path / "one"), make_grok_run(tmp_path / "two")]
    written = []
    monkeypatch.setattr(grok_curves, "mark_delay", lambda axes, a, b, *rest: written.append((a, b)))
    for n in (1, 2):
        out = tmp_path / f"{n}.png"
        grok_curves.draw(runs[:n], out)
        assert out.read_bytes().startswith(b"\x89PNG")
    assert written == [(50, 150)] * 3
    monkeypatch.undo()
    grok_curves.draw(runs, tmp_path / "marked.png")
    assert (tmp_path / "marked.png").stat().st_size > 10_000


def test_the_mechanism_is_drawn_for_addition_and_refused_for_what_has_no_such_waves(tmp_path: Path) -> None:
    for p, op in ((11, "+"), (10, "-")):
        out = tmp_path / f"{p}.png"
        grok_mechanism.draw(make_grok_run(tmp_path / f"run{p}", p, op), out)
        assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 50_000
    with pytest.raises(UserError, match="waves of a"):
        grok_mechanism.draw(make_grok_run(tmp_path / "times", op="*"), tmp_path / "x.png")
    run = make_grok_run(tmp_path / "none")
    for path in (run.path / "snapshots").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="--snapshots"):
        grok_mechanism.draw(run, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_the_picture_of_a_sweep_shows_every_run_also_one_that_never_got_there(script, tmp_path: Path) -> None:
    result = {"frac": 0.3, "n_layer": 1, "step": 3000, "clean_val_acc": 0.2, "train_99": 100, "val_99": None,
              "clean_val_99": None}
    for name in ("fraction", "intervention"):
        runs = [{**result, "setting": s, "seed": seed} for s in ("a", "b") for seed in (0, 1)]
        runs[0] |= {"clean_val_99": 1500, "clean_val_acc": 1.0}
        runs[1] |= {"frac": 0.5, "train_99": None}
        folder = tmp_path / "runs" / f"sweep-{name}"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"sweep": name, "runs": runs}))
    grok_sweep.draw([grok_sweep.read(path) for path in sorted((tmp_path / "runs").iterdir())], tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 20_000
    assert script("plots/grok_sweep.py", "runs/sweep-fraction").returncode == 0
    (tmp_path / "runs" / "sweep-fraction" / "results.json").write_text("{}")
    done = script("plots/grok_sweep.py", "runs/sweep-fraction")
    assert done.returncode == 2 and "holds no sweep" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["grok_curves", "grok_mechanism", "grok_sweep"])
def test_without_a_run_a_grokking_picture_says_how_to_make_one(name: str, script) -> None:
    done = script(f"plots/{name}.py")
    assert done.returncode == 2 and "python grok.py" in done.stderr and "Traceback" not in done.stderr
