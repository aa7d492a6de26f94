"""Every option of the grokking experiment against NumPy on the real step, and runs that repeat to the last bit."""

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import grok
from commands import grok_sweep
from commands.grok import main
from gpt import GPT
from grok import Experiment, GrokOptimizer, GrokTrainer, Options
from runtime.errors import UserError
from runtime.run import Run
from trainer import orthogonalize

Arrays = dict[str, np.ndarray]


def tiny(**changes: Any) -> Options:
    """A model of 1,016 parameters and a table of 25 pairs."""
    base = {"p": 5, "frac": 0.5, "batch": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "warmup": 0, "snapshots": False}
    return Options(**{**base, **changes})


def weights(model: GPT) -> Arrays:
    return {name: t.numpy().astype(np.float64) for name, t in get_state_dict(model).items()}


# ---- the model ----


@pytest.mark.parametrize(("tied", "parameters"), [(False, 423_680), (True, 410_752)])
def test_the_documented_configuration_has_a_vocabulary_of_101_and_these_parameters(tied: bool, parameters: int) -> None:
    o = Options(tied=tied)
    config = o.config(grok.make_table())
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size, config.vocab_size) == (2, 4, 128, 8, 101)
    counted = sum(int(w.numel()) for w in get_state_dict(grok.make_model(o, config)).values())
    assert counted == parameters == config.parameters + (0 if tied else 128 * 101)


@pytest.mark.parametrize("T", [1, 3, 6])
def test_logits_at_the_last_position_alone_equal_numpy_float64(small: GPT, T: int) -> None:
    idx = np.random.default_rng(0).integers(0, 11, (4, T), dtype=np.int32)
    expected = reference.logits(weights(small), idx, 2, 2)[:, -1]
    assert np.abs(grok.last_logits(small, Tensor(idx)).numpy() - expected).max() < 1e-5


def test_an_untied_model_uses_its_own_head_everywhere() -> None:
    model = grok.make_model(tiny(), tiny().config(grok.make_table(p=5)))
    idx, targets = np.random.default_rng(0).integers(0, 9, (2, 4, 6), dtype=np.int32)
    w = weights(model)
    assert np.abs(model(Tensor(idx)).numpy() - reference.logits(w, idx, 1, 2)).max() < 1e-5
    losses = model.losses(Tensor(idx), Tensor(targets)).numpy()
    assert np.abs(losses - reference.losses(w, idx, targets, 1, 2)).max() < 1e-5


def test_initial_matrices_are_scaled_and_vectors_are_not() -> None:
    config = tiny().config(grok.make_table(p=5))
    plain, scaled = (weights(grok.make_model(tiny(init_scale=s), config)) for s in (1.0, 3.0))
    assert plain.keys() == scaled.keys()
    for name, w in plain.items():
        assert np.allclose(scaled[name], w * (3 if w.ndim == 2 else 1), rtol=1e-6), name


# ---- one step of the real Trainer, for what changes the loss ----


def last_losses(w: Arrays, idx: np.ndarray, targets: np.ndarray, masks: Arrays | None, stable: bool) -> np.ndarray:
    """`(B,)` of the answers."""
    z = reference.logits(w, idx, 1, 2, masks)[:, -1]
    s = np.where(z >= 0, z + 1, 1 / (1 - np.minimum(z, 0))) if stable else np.exp(z)
    return np.log(s.sum(-1)) - np.log(s[np.arange(len(z)), targets])


def gradient(loss: Callable[[Arrays], float], w: Arrays) -> Arrays:
    """Central differences for every parameter."""
    h, result = 1e-5, {}
    for name, value in w.items():
        result[name] = np.zeros_like(value)
        for i in np.ndindex(value.shape):
            kept = value[i]
            value[i] = kept + h
            up = loss(w)
            value[i] = kept - h
            result[name][i] = (up - loss(w)) / (2 * h)
            value[i] = kept
    return result


def hashed(count: int, seed: int) -> np.ndarray:
    """Wellons' lowbias32 of seed, seed + 1, ...: `(count,)`, in Python's own integers."""
    out = []
    for i in range(count):
        h = (i + seed) % 2**32
        h = (h ^ h >> 16) * 0x7FEB352D % 2**32
        h = (h ^ h >> 15) * 0x846CA68B % 2**32
        out.append(h ^ h >> 16)
    return np.array(out, np.uint64)


def box_muller(count: int, seeds: np.ndarray) -> np.ndarray:
    u, v = ((hashed(count, int(s)) >> np.uint64(8)) / 2**24 for s in seeds)
    return np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v)


CASES: list[dict[str, Any]] = [
    {},
    {"stablemax": True},
    {"dropout": 0.4},
    {"weight_noise": 0.3},
    {"init_scale": 5.0, "prompt": "a + b ="},
    {"tied": True, "batch": 0},
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case) or "plain")
def test_a_step_moves_every_weight_against_the_gradient_that_numpy_finds(case: dict[str, Any], tmp_path: Path) -> None:
    """With plain gradient descent at rate 1 the change of a weight is its gradient."""
    o = tiny(optimizer="sgd", betas="0,0", lr=1.0, wd=0.0, **case)
    e = Experiment(o)
    rng = np.random.default_rng(1)
    for t in e.params.values():  # a bias that is zero or a LayerNorm weight that is one hides mistakes
        t.assign(Tensor(t.numpy() + 0.2 * rng.standard_normal(t.shape).astype(np.float32))).realize()
    before = weights(e.model)
    index, *seeds = e.batch(0)
    idx, targets = e.table.prompts[index], e.table.answers[index]
    assert len(index) == (o.batch or len(e.split.train)) and set(index.tolist()) <= set(e.split.train.tolist())
    if not o.batch:
        assert sorted(index.tolist()) == sorted(e.split.train.tolist())
    (B, T), masks = idx.shape, None
    if o.dropout:  # seeds: the embeddings, attention's weights (none is dropped here), its sum, the MLP's
        keep = lambda shape, seed: (
            (hashed(math.prod(shape), int(seed)) >= o.dropout * 2**32).reshape(shape) / (1 - o.dropout)
        )
        masks = {"wte": keep((B, T, 8), seeds[0][0])}
        for name, seed in (("h.0.attn", seeds[0][2]), ("h.0.mlp", seeds[0][3])):
            masks[name] = np.ones((B, T, 8))
            masks[name][:, -1:] = keep((B, 1, 8), seed)
        assert 0.2 < (masks["wte"] == 0).mean() < 0.6
    at = before
    if o.weight_noise:
        noise = iter(box_muller(sum(w.size for w in before.values()), seeds[0]))
        at = {n: w + o.weight_noise * np.fromiter(noise, float, w.size).reshape(w.shape) for n, w in before.items()}
    loss = lambda w: float(last_losses(w, idx, targets, masks, o.stablemax).mean())
    expected_loss, expected = loss(at), gradient(loss, at)

    value, norm = GrokTrainer(e, Run(tmp_path)).take_step()
    assert value.item() == pytest.approx(expected_loss, rel=1e-5)
    assert norm.item() == pytest.approx(math.sqrt(sum((g**2).sum() for g in expected.values())), rel=1e-4)
    for name, w in weights(e.model).items():
        assert np.abs(before[name] - w - expected[name]).max() < 1e-5, name


def test_weight_noise_is_standard_normal_and_another_for_every_seed() -> None:
    a, b = (grok.gaussian(100_000, Tensor(np.array(s, np.uint32))).numpy() for s in ([1, 2], [3, 2**32 - 1]))
    for z in (a, b):
        assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and np.isfinite(z).all()
        assert abs((np.abs(z) > 1.959964).mean() - 0.05) < 0.003
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01


# ---- three steps of the real optimizer, for what changes the update ----


def newton_schulz(g: np.ndarray) -> np.ndarray:
    x = g / (np.linalg.norm(g) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


def numpy_steps(start: Arrays, grads: list[Arrays], o: Options, lr: float) -> Arrays:
    """The textbook's updates, one parameter at a time."""
    (b1, b2), end = o.both_betas(), {}
    for name, p0 in start.items():
        p, m, v = p0.copy(), np.zeros_like(p0), np.zeros_like(p0)
        slow = None
        for t, step_grads in enumerate(grads, 1):
            g = step_grads[name]
            if o.grokfast:
                slow = g if slow is None else 0.98 * slow + 0.02 * g
                g = g + 2.0 * slow
            pull = o.wd * (p - p0 if o.wd_to == "init" else p)
            if o.optimizer in ("adam", "sgd"):
                g = g + pull
                pull = np.zeros_like(p)
            if o.optimizer == "sgd":
                m = b1 * m + g
                step = m
            elif o.optimizer == "muon" and name.startswith("h.") and p.ndim == 2:
                m = b1 * m + g
                wide = p.shape[0] <= p.shape[1]
                direction = g + b1 * m
                step = newton_schulz(direction) if wide else newton_schulz(direction.T).T
                step = step * 0.2 * math.sqrt(max(p.shape))
            else:
                m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
                step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
            p = p - lr * (step + pull)
        end[name] = p
    return end


RULES: list[dict[str, Any]] = [
    {"optimizer": "adamw"},
    {"optimizer": "adam"},
    {"optimizer": "sgd"},
    {"optimizer": "muon"},
    {"optimizer": "adamw", "wd_to": "init"},
    {"optimizer": "adam", "wd_to": "init"},
    {"optimizer": "adamw", "grokfast": True},
    {"optimizer": "muon", "grokfast": True, "wd_to": "init"},
    {"optimizer": "adamw", "betas": "0.8,0.9", "wd": 0.0},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: " ".join(map(str, rule.values())))
def test_three_updates_equal_numpy_float64_with_decay_on_every_parameter(rule: dict[str, Any]) -> None:
    o = Options(**{"wd": 0.7, **rule})
    rng = np.random.default_rng(0)
    shapes = {"wte.weight": (5, 4), "h.0.wide.weight": (4, 6), "h.0.tall.weight": (6, 4), "h.0.bias": (6,)}
    start = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    params = {name: Tensor(w.astype(np.float32)) for name, w in start.items()}
    start = {name: t.numpy().astype(np.float64) for name, t in params.items()}
    grads = [{name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(3)]
    optimizer = GrokOptimizer(params, o.train_options(), o)
    for i, g in enumerate(grads):
        optimizer.update({k: Tensor(a.astype(np.float32)) for k, a in g.items()}, Tensor(optimizer.hyper(i, 0.05)))
    for name, expected in numpy_steps(start, grads, o, 0.05).items():
        assert np.abs(params[name].numpy() - expected).max() < 1e-5, name
        assert np.abs(expected - start[name]).max() > 0.01  # it did move


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_muons_step_keeps_the_singular_vectors_and_brings_the_singular_values_near_one(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    g = (u * np.geomspace(1, 0.1, len(vt))) @ vt
    rotated = u.T @ orthogonalize(Tensor(g.astype(np.float32))).numpy() @ vt.T
    s = np.diag(rotated)
    assert np.abs(rotated - np.diag(s)).max() < 1e-4 and s.min() > 0.6 and s.max() < 1.3


# ---- evaluation ----


@pytest.mark.parametrize("op", ["+", "/"])
def test_an_evaluation_equals_numpys_over_every_pair_of_each_part(op: str) -> None:
    e = Experiment(tiny(op=op, frac=0.4))
    measured = e.evaluate()
    z = reference.logits(weights(e.model), e.table.prompts, 1, 2)[:, -1]
    losses = last_losses(weights(e.model), e.table.prompts, e.table.answers, None, False)
    for name, accuracy, part in (
        ("train_eval_loss", "train_acc", e.split.train),
        ("val_loss", "val_acc", e.split.val),
        ("clean_val_loss", "clean_val_acc", e.split.clean),
    ):
        assert measured[name] == pytest.approx(losses[part].mean(), rel=1e-5)
        assert measured[accuracy] == pytest.approx((z.argmax(-1) == e.table.answers)[part].mean(), abs=1e-9)
    norm = math.sqrt(sum((w**2).sum() for w in weights(e.model).values()))
    assert measured["weight_norm"] == pytest.approx(norm, rel=1e-5)
    kept = e.snapshot()
    assert np.abs(kept["logits"].numpy() - z[:, :5]).max() < 2e-3 and kept["logits"].dtype.itemsize == 2
    assert np.array_equal(kept["wte"].numpy(), e.model.wte.weight.numpy()[:5])


def test_a_step_is_fed_with_indices_and_seeds_and_nothing_else() -> None:
    assert [(a.shape, a.dtype) for a in Experiment(tiny()).batch(3)] == [((8,), np.int32)]
    noisy = Experiment(tiny(dropout=0.1, weight_noise=0.01))
    assert [a.dtype for a in noisy.batch(3)] == [np.int32, np.uint32, np.uint32]
    assert not np.array_equal(noisy.batch(3)[2], noisy.batch(4)[2])


def test_evaluations_come_every_25_steps_up_to_400_and_then_every_100() -> None:
    assert [s for s in range(1, 801) if grok.evaluation_due(s)] == [*range(25, 401, 25), 500, 600, 700, 800]
    assert all(grok.evaluation_due(s) for s in range(1, 4001) if grok.snapshot_due(s))


def test_a_run_ends_200_steps_after_two_evaluations_in_a_row_above_99_percent(tmp_path: Path) -> None:
    t = GrokTrainer(Experiment(tiny(steps=4000)), Run(tmp_path))
    for step, accuracy in ((300, 0.995), (325, 0.98), (350, 0.99), (375, 0.989), (400, 0.99)):
        t.record(step, accuracy)
        assert t.last == math.inf
    t.record(500, 1.0)
    t.record(600, 0.5)  # what comes later changes nothing
    t.record(700, 1.0)
    assert t.last == 700
    for t.step, done in ((699, False), (700, True)):
        assert t.done() is done


# ---- runs ----

NOISY = {"p": 11, "batch": 16, "steps": 60, "dropout": 0.1, "weight_noise": 0.01, "grokfast": True, "snapshots": True}


def run_to_the_end(folder: Path, stop_at: int | None = None, resume: bool = False, **changes: Any) -> Run:
    o = tiny(**{**NOISY, **changes}, out=str(folder), resume=str(folder) if resume else None)
    trainer = grok.prepare(o, Run.open(folder, "grok") if resume else None)
    if stop_at:
        original = trainer.take_step

        def take_step() -> tuple[Tensor, Tensor]:
            result = original()
            if trainer.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        trainer.take_step = take_step  # type: ignore[method-assign]
        with pytest.raises(SystemExit):
            trainer.train()
    else:
        trainer.train()
    trainer.run.unlock()
    return trainer.run


def curve(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in ("seconds", "steps_per_s")} for line in run.metrics()]


def test_the_same_seed_gives_the_same_curve_to_the_last_bit_also_after_a_stop(tmp_path: Path) -> None:
    uncut = run_to_the_end(tmp_path / "uncut")
    run_to_the_end(tmp_path / "cut", stop_at=33)
    cut = run_to_the_end(tmp_path / "cut", resume=True)
    assert {"train_acc", "val_acc", "clean_val_acc", "weight_norm"} <= set(curve(uncut)[-1])
    assert curve(cut) == curve(uncut) and [line["step"] for line in curve(cut)] == [1, 25, 50, 60]
    kept = [*cut.path.glob("snapshots/*"), cut.path / "last.safetensors"]
    assert {path.stem for path in kept} == {"000050", "000060", "last"}
    assert kept[0].stat().st_size < 2 * (11**3 + 11 * 8) + 300  # two bytes for a number
    for path in kept:
        assert path.read_bytes() == (uncut.path / path.relative_to(cut.path)).read_bytes(), path


def test_a_run_learns_its_pairs_and_says_what_came_of_it(script, tmp_path: Path) -> None:
    args = ["--p", 11, "--frac", 0.6, "--batch", 64, "--n-layer", 1, "--n-embd", 48, "--lr", 3e-3, "--wd", 0]
    done = script("grok.py", *args, "--steps", 200, "--out", "run")
    assert done.returncode == 0, done.stderr
    lines = Run(tmp_path / "run").metrics()
    assert lines[-1]["step"] == 200 and lines[-1]["train_acc"] > 0.99
    assert "tokens_per_s" not in lines[-1] and lines[-1]["steps_per_s"] > 0
    step = grok.crossing(lines, "train_acc")
    assert f"training pairs 99 % at step {step}" in done.stdout and "steps/s" in done.stdout
    for script_name in ("grok_curves.py run", "grok_mechanism.py run"):
        assert script_name in done.stdout
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["corpus"]["pairs"] == 121 and config["tokenizer"]["vocabulary"][11:13] == ["+", "="]
    assert "done: 200 steps; a larger --steps goes on" in script("grok.py", "--resume", "run").stdout
    refused = script("grok.py", "--resume", "run", "--wd", 1)
    assert refused.returncode == 2 and "--wd can't change" in refused.stderr


SWEEP = ["sweep", "fraction", "--values", "0.25; 0.6", "--steps", 50]


def test_a_sweep_runs_each_setting_once_and_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grok_sweep, "Options", lambda **given: Options(**{"p": 11, "batch": 16, "n_embd": 16, **given}))
    argv = [str(a) for a in SWEEP]
    original, calls = GrokTrainer.take_step, []

    def take_step(self: GrokTrainer) -> tuple[Tensor, Tensor]:
        calls.append(self.experiment.o.frac)
        if len(calls) == 80:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(GrokTrainer, "take_step", take_step)
    with pytest.raises(SystemExit):
        main(argv)
    path = tmp_path / "runs" / "sweep-fraction" / "results.json"
    assert [r["setting"] for r in json.loads(path.read_text())["runs"]] == ["0.25"]
    for lock in tmp_path.glob("runs/*/*/"):
        assert not list(lock.glob("snapshots"))
    main(argv)
    assert calls == [0.25] * 50 + [0.6] * 50
    runs = json.loads(path.read_text())["runs"]
    assert [(r["setting"], r["frac"], r["seed"], r["step"]) for r in runs] == [
        ("0.25", 0.25, 0, 50),
        ("0.6", 0.6, 0, 50),
    ]
    main(argv)  # nothing is left to do
    assert len(calls) == 100
    with pytest.raises(UserError, match="other options"):
        main([*argv, "--n-layer", "2"])


def test_every_setting_of_a_sweep_is_a_valid_run() -> None:
    for settings, steps in grok_sweep.SWEEPS.values():
        for changes in settings.values():
            o = Options(steps=steps, **{"n_layer": 1, **changes})
            o.check()
            assert set(changes) <= {f.name for f in fields(Options)}


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--op", "%"], "--op"),
        (["--op", "/", "--p", "91"], "prime"),
        (["--frac", "0"], "--frac"),
        (["--frac", "1"], "--frac"),
        (["--frac", "0.05"], "--batch 512 is more than 470 training pairs"),
        (["--p", "2"], "--p"),
        (["--p", "1000"], "--p"),
        (["--steps", "0"], "--steps"),
        (["--betas", "0.9"], "--betas"),
        (["--betas", "0.9,1"], "--betas"),
        (["--lr", "nan"], "--lr"),
        (["--wd", "-1"], "--wd"),
        (["--wd", "0", "--wd-to", "init"], "--wd-to init"),
        (["--dropout", "1"], "--dropout"),
        (["--init-scale", "0"], "--init-scale"),
        (["--n-head", "3"], "--n-head 3"),
        (["--optimizer", "adagrad"], "adagrad"),
        (["--preset", "slow"], "fast"),
        (["fly"], "no verb 'fly'"),
        (["sweep"], "fraction, intervention"),
        (["sweep", "seeds"], "not 'seeds'"),
        (["sweep", "fraction", "--values", "0.33"], "'0.33' is unknown"),
        (["sweep", "fraction", "--seeds", "one"], "--seeds"),
    ],
)
def test_a_mistake_is_one_sentence(args: list[str], word: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=word) as error:
        main(args)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_mistakes_end_with_code_2_and_help_lists_every_option(script) -> None:
    done = script("grok.py", "--frac", "2")
    assert done.returncode == 2 and done.stderr == "grok.py: --frac must be between 0 and 1, not 2\n"
    done = script("grok.py", "--help")
    assert done.returncode == 0
    for field in fields(Options):
        assert f"--{field.name.replace('_', '-')}" in done.stdout, field.name
