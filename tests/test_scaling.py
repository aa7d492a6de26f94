"""Sweeps over size and compute: what they spend, that they go on, that processes share them; and the laws fitted."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor

from data.corpora import find_corpus
from data.encoding import encode_corpus
from gpt import GPTConfig
from plots import power_laws as pl
from plots import scaling
from runtime.errors import UserError
from runtime.files import claimed
from trainer import Trainer

SWEEP = ["sweep", "--block-size", 8, "--batch-size", 2, "--compute", "3e7,6e7", "--sizes", "1x8,1x16", "--epochs", 99]


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())["runs"]


def test_a_sweep_spends_each_level_of_compute_on_every_size_and_goes_on_where_it_was_stopped(
    gpt_py, corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    argv, original, taken = [*SWEEP, "--data", corpus], Trainer.take_step, []

    def take_step(self: Trainer) -> tuple[Tensor, Tensor]:
        taken.append(self.run.path.name)
        if len(taken) == 700:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Trainer, "take_step", take_step)
    with pytest.raises(SystemExit):
        gpt_py(*argv)
    printed = gpt_py(*argv)
    runs = results(tmp_path / "runs" / "sweep")
    assert len(runs) == len({r["setting"] for r in runs}) == 3  # 1x16 at 3e7 would take under 100 steps
    V = len(set(corpus.read_text()))
    for r in runs:
        config = GPTConfig(8, V, r["n_layer"], 1, r["n_embd"])
        assert r["parameters"] == config.parameters and r["n"] == config.parameters - 8 * r["n_embd"]
        assert r["flops"] == config.flops_per_token * r["tokens"] and r["tokens"] == 16 * r["steps"]
        assert r["flops"] == pytest.approx(r["level"], rel=0.01)
        assert taken.count(Path(r["run"]).name) == r["steps"]  # each step once, whatever was stopped
        assert r["val_loss"] < np.log(V) and Path(r["run"], "best.safetensors").is_file()
    assert printed.count(" left\n") >= 1 and printed.count("lowest") == 1
    gpt_py(*argv)
    assert len(taken) == sum(r["steps"] for r in runs)  # nothing is left to do


def test_processes_with_the_same_command_share_the_runs_and_each_is_made_once(
    script, corpus: Path, tmp_path: Path
) -> None:
    done = script("gpt.py", *SWEEP, "--data", corpus, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    runs = results(tmp_path / "runs" / "sweep")
    assert len(runs) == 3 and done.stdout.count("seed 0") == 3
    for r in runs:  # two trainings into one folder would have logged every step twice
        lines = Path(tmp_path, r["run"], "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(set(steps)) and steps[-1] == r["steps"]


def test_a_run_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "a", wait=False) as first, claimed(tmp_path / "a", wait=False) as second:
        assert first and not second
    with claimed(tmp_path / "a", wait=False) as free:
        assert free


@pytest.mark.parametrize(("flags", "says"), [
    (["--n-layer", 3], "--n-layer isn't an option of sweep"),
    (["--sizes", "3by4"], "LAYERSxCHANNELS"),
    (["--compute", "-1"], "--compute takes numbers above 0"),
    (["--compute", "1e3"], "no size suits"),
    (["--sizes", "1x0"], "--n-embd must be at least 1"),
    (["--tokenizer", "bpe-3"], "bpe-3 is too small"),
])
def test_a_sweep_that_makes_no_sense_is_one_sentence(flags: list[Any], says: str, gpt_py, corpus: Path) -> None:
    with pytest.raises(UserError, match=says):
        gpt_py("sweep", "--data", corpus, *flags)


def test_a_bpe_is_learned_from_the_training_part_and_ends_a_story_with_one_token(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("the cat sat.\n<|endoftext|>\n" * 90 + "zzzzzzzz\n<|endoftext|>\n" * 10)
    encoded = encode_corpus(find_corpus(str(path)), "bpe-280", tmp_path)
    assert encoded.tokenizer.decode(encoded.ids.tolist()) == path.read_text()
    assert (encoded.ids == encoded.tokenizer.special_tokens["<|endoftext|>"]).sum() == 100
    assert b" cat" in encoded.tokenizer.vocab.values() and b"zz" not in encoded.tokenizer.vocab.values()
    encoded.tokenizer.check_whole()


# ---- the laws ----

TRUE = pl.Law(E=1.2, A=30.0, alpha=0.4, B=200.0, beta=0.5)
SIZES = np.array([2e3, 5e3, 1e4, 2e4, 4e4, 8e4, 1.6e5])


def iso_flop(law: pl.Law, noise: float = 0.0, seed: int = 0) -> dict[str, np.ndarray]:
    """Sizes at six levels of compute, C = 6 N D, with the losses of a law that is known."""
    level = np.repeat(np.geomspace(1e10, 3e12, 6), len(SIZES))
    n = np.tile(SIZES, 6)
    d = level / (6 * n)
    loss = law.loss(n, d) * (1 + noise * np.random.default_rng(seed).standard_normal(len(n)))
    return {"n": n, "d": d, "level": level, "loss": loss}


def write_sweep(folder: Path, x: dict[str, np.ndarray]) -> Path:
    more = {"setting": "x", "seed": 0, "n_layer": 1, "n_embd": 8, "steps": 9, "bits_per_byte": 2.0, "run": "x"}
    runs = [{**more, "n": n, "parameters": n, "tokens": d, "flops": 6 * n * d, "level": level, "val_loss": loss,
             "epochs": 1.0}
            for n, d, level, loss in zip(*(x[name].tolist() for name in ("n", "d", "level", "loss")))]
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"scaling": "a text", "runs": runs}))
    return folder


@pytest.mark.parametrize("true", [TRUE, pl.Law(0.0, 9.0, 0.1, 5.0, 0.2), pl.Law(1.69, 406.4, 0.34, 410.7, 0.28)])
def test_a_law_without_noise_is_found_again(true: pl.Law) -> None:
    x = iso_flop(true)
    found = pl.fit_law(x["n"], x["d"], x["loss"])
    assert found.loss(x["n"], x["d"]) == pytest.approx(x["loss"], rel=1e-4)
    assert (found.E, found.alpha, found.beta) == pytest.approx((true.E, true.alpha, true.beta), rel=0.02, abs=0.02)
    one = pl.fit_power(x["n"], true.loss(x["n"]))
    assert (one.E, one.A, one.alpha) == pytest.approx((true.E, true.A, true.alpha), rel=0.02, abs=0.02)


def test_the_bootstrap_intervals_hold_the_law_that_made_the_noisy_losses() -> None:
    held = dict.fromkeys(("E", "alpha", "beta", "share"), 0)
    for seed in range(4):
        n, d, loss = (iso_flop(TRUE, 0.003, seed)[name] for name in ("n", "d", "loss"))
        fit = lambda i, n=n, d=d, loss=loss: pl.fit_law(n[i], d[i], loss[i])
        samples = pl.bootstrap(fit, len(n), 40, seed)
        for name in held:
            low, high = pl.interval([getattr(law, name) for law in samples])
            held[name] += low <= getattr(TRUE, name) <= high
            assert high - low < 0.2
    assert min(held.values()) >= 3  # of four, for intervals of 90 %


def test_the_best_size_is_the_one_that_trying_every_size_finds() -> None:
    n = np.geomspace(1e2, 1e7, 200_001)
    for flops in (1e10, 1e12):
        losses = TRUE.loss(n, flops / (6 * n))
        assert TRUE.best_size(np.array([flops]), 6.0)[0] == pytest.approx(n[losses.argmin()], rel=1e-3)
        assert TRUE.frontier(np.array([flops]), 6.0)[0] == pytest.approx(losses.min())
    ratio = TRUE.best_size(np.array([1e10, 1e12]), 6.0)
    assert np.log(ratio[1] / ratio[0]) / np.log(100) == pytest.approx(TRUE.share) == 0.5 / 0.9


def test_parabolas_have_the_lowest_points_that_were_put_into_them_and_their_slope() -> None:
    level, n = np.repeat([1e10, 1e11, 1e12], 5), np.tile(np.geomspace(1e3, 1e6, 5), 3)
    best = 1e4 * (level / 1e10) ** 0.6
    loss = 2.0 + 0.05 * np.log(n / best) ** 2
    found = pl.fit_parabolas(level, n, loss)
    assert [p.size for p in found] == pytest.approx([1e4, 1e4 * 10**0.6, 1e4 * 100**0.6])
    assert [p.loss for p in found] == pytest.approx([2.0] * 3) and all(p.believable for p in found)
    assert pl.slope(found) == pytest.approx(0.6)
    assert np.ptp(pl.bootstrap_slope(level, n, loss, 20)) < 1e-9  # nothing is left over to draw from
    outside = pl.fit_parabolas(level, n, 2.0 + 0.05 * np.log(n / 1e7) ** 2)
    assert not any(p.believable for p in outside) and np.isnan(pl.slope(outside))


def test_the_report_believes_a_law_that_is_there_and_not_noise(tmp_path: Path) -> None:
    good = scaling.read(write_sweep(tmp_path / "good", iso_flop(TRUE, 0.001)))
    found = scaling.study(good, 30)
    text = scaling.report(good, found)
    assert "good enough to believe" in text and "NO" not in text and "0.73" in text
    for errors in found.held_out.values():
        assert np.abs(errors).max() < 0.01
    assert list(found.held_out) == ["the largest size", "the largest level"] and len(found.parabolas) == 6
    x = iso_flop(TRUE)
    x["loss"] = np.random.default_rng(0).uniform(2, 3, len(x["n"]))
    bad = scaling.read(write_sweep(tmp_path / "bad", x))
    assert "don't believe" in scaling.report(bad, scaling.study(bad, 30))


def test_the_largest_size_is_predicted_without_having_been_seen(tmp_path: Path) -> None:
    x = iso_flop(TRUE)
    largest = x["n"] == x["n"].max()
    x["loss"][largest] *= 1.1  # a size that breaks the law: the others can't know
    runs = scaling.read(write_sweep(tmp_path / "a", x))
    assert scaling.study(runs, 3).held_out["the largest size"] == pytest.approx(1 / 1.1 - 1, abs=1e-3)


def test_scaling_is_drawn_and_a_folder_without_a_sweep_is_refused(script, tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs" / "sweep", iso_flop(TRUE, 0.001))
    done = script("plots/scaling.py")
    assert done.returncode == 0 and (tmp_path / "scaling.png").stat().st_size > 50_000, done.stderr
    same = {name: np.tile(SIZES, 3)[:14] for name in ("n", "level")} | {"d": np.full(14, 1e6), "loss": np.full(14, 2.0)}
    one_amount = write_sweep(tmp_path / "one", same | {"loss": TRUE.loss(same["n"])})
    found = scaling.read(one_amount)
    assert not found.two_ways and scaling.study(found, 3).law.alpha == pytest.approx(0.4, abs=0.01)
    (tmp_path / "one" / "results.json").write_text("{}")
    refused = script("plots/scaling.py", "one")
    assert refused.returncode == 2 and "python gpt.py sweep" in refused.stderr and "Traceback" not in refused.stderr
