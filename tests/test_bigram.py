"""The table that is learned against the table that is counted, for which the answer is exact."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tinygrad import Tensor

import bigram
from bigram import Bigram
from plots import bigram_matrix
from runtime.run import Run


def test_pairs_are_counted_as_a_dictionary_counts_them() -> None:
    ids = np.random.default_rng(0).integers(0, 5, 1000).astype(np.uint16)
    counts = bigram.count_pairs(ids, 5)
    expected = Counter(zip(ids.tolist(), ids[1:].tolist()))
    assert counts.sum() == 999 and all(counts[i, j] == expected[i, j] for i in range(5) for j in range(5))


def test_the_counted_table_is_the_best_and_its_loss_is_the_conditional_entropy() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (4, 4))
    best = bigram.log_probabilities(counts, 0)
    joint = counts / counts.sum()
    marginal = joint.sum(1)
    entropy = -sum(p * math.log(p) for p in joint.flat if p) + sum(p * math.log(p) for p in marginal)  # H(X, Y) - H(X)
    assert bigram.table_loss(best, counts) == pytest.approx(entropy)
    for _ in range(20):
        other = np.log(rng.dirichlet(np.ones(4), 4))
        assert bigram.table_loss(other, counts) > entropy


def test_smoothing_adds_k_to_every_pair_and_rows_sum_to_one() -> None:
    p = np.exp(bigram.log_probabilities(np.array([[3, 0], [0, 0]]), 0.5))
    assert np.allclose(p, [[3.5 / 4, 0.5 / 4], [0.5, 0.5]])


def test_a_pair_never_seen_in_training_makes_the_unsmoothed_loss_infinite() -> None:
    train, val = np.array([[5, 0], [1, 1]]), np.array([[1, 1], [0, 0]])
    assert bigram.table_loss(bigram.log_probabilities(train, 0), val) == math.inf
    assert bigram.table_loss(bigram.log_probabilities(train, 0.1), val) < math.inf


def test_loss_and_gradient_of_the_model_are_those_of_the_closed_form() -> None:
    """d loss / d logits of a row is (softmax - one-hot), added up over the times the row is used."""
    V, rng = 7, np.random.default_rng(0)
    model = Bigram(V)
    model.weight.assign(Tensor(rng.standard_normal((V, V)).astype(np.float32))).realize()
    x, y = rng.integers(0, V, (2, 3, 5), dtype=np.int32)
    log_p = bigram.softmax_table(model)
    counts = np.zeros((V, V))
    np.add.at(counts, (x.ravel(), y.ravel()), 1)
    loss = model.loss(Tensor(x), Tensor(y))
    grad = loss.gradient(model.weight)[0]  # before the loss is computed: tinygrad forgets what it came from
    assert loss.item() == pytest.approx(bigram.table_loss(log_p, counts), rel=1e-5)
    expected = (np.exp(log_p) * counts.sum(1, keepdims=True) - counts) / x.size
    assert np.abs(grad.numpy() - expected).max() < 1e-6


def test_training_ends_within_two_hundredths_of_a_nat_of_the_best_table(corpus: Path, script, tmp_path: Path) -> None:
    done = script(
        "bigram.py", "--data", corpus, "--out", "run", "--steps", 1500, "--lr", 3e-2, "--min-lr", 1e-4,
        "--eval-interval", 1500,
    )
    assert done.returncode == 0, done.stderr
    final = Run(tmp_path / "run").metrics()[-1]
    text = corpus.read_text(encoding="utf-8")
    ids = np.array([sorted(set(text)).index(c) for c in text])
    counts = bigram.count_pairs(ids[: int(0.9 * len(ids))], len(set(text)))
    best = bigram.table_loss(bigram.log_probabilities(counts, 0), counts)
    assert 0 < final["train_eval_loss"] - best < 0.02
    assert f"within {final['train_eval_loss'] - best:.4f} nats" in done.stdout
    sample = (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8")
    assert len(sample) == 300 and set(sample) <= set(text)
    for a, b in zip(sample, sample[1:]):  # 1,500 steps have all but ruled out what never occurs
        assert a + b in text or Counter(zip(sample, sample[1:]))[a, b] <= 2

    assert script("plots/bigram_matrix.py", "run", "--out", "a.png").returncode == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_sentence(script, corpus: Path) -> None:
    cases = {"--add-k": ["--add-k", "0"], "--block-size": ["--block-size", "0"], "--data x is": ["--data", "x"]}
    for word, args in cases.items():
        done = script("bigram.py", "--data", corpus, *args)
        assert done.returncode == 2 and word in done.stderr and len(done.stderr.strip().split("\n")) == 1, done.stderr
    done = script("plots/bigram_matrix.py")
    assert done.returncode == 2 and "python bigram.py" in done.stderr


def test_the_picture_takes_any_two_tables(tmp_path: Path) -> None:
    table = np.full((3, 3), 1 / 3)
    bigram_matrix.draw(table, table, ["a", "␣", "\\n"], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
