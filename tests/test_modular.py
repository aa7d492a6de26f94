"""The tables of modular arithmetic against Python's own integers, and the split that keeps twins apart."""

import numpy as np
import pytest

from data.modular import OPERATIONS, batch_indices, is_prime, make_split, make_table
from runtime.errors import UserError

PYTHON = {
    "+": lambda a, b, p: (a + b) % p,
    "-": lambda a, b, p: (a - b) % p,
    "*": lambda a, b, p: (a * b) % p,
    "/": lambda a, b, p: a * pow(b, p - 2, p) % p,  # Fermat: b^(p-2) is b's inverse
    "x^2+xy+y^2": lambda a, b, p: (a**2 + a * b + b**2) % p,
}


@pytest.mark.parametrize("p", [7, 97])
@pytest.mark.parametrize("op", PYTHON)
def test_every_answer_is_the_one_that_python_computes(op: str, p: int) -> None:
    assert set(PYTHON) == set(OPERATIONS)
    table = make_table(op, p)
    expected = [(a, b) for a in range(p) for b in range(p) if op != "/" or b]
    assert [tuple(pair) for pair in table.pairs.tolist()] == expected and len(table) == len(expected)
    assert table.answers.tolist() == [PYTHON[op](a, b, p) for a, b in expected]
    if op == "/":
        assert all(c * b % p == a for (a, b), c in zip(expected, table.answers.tolist()))


def test_a_prompt_reads_as_it_is_written_and_the_vocabulary_has_101_tokens() -> None:
    short, long = make_table("+", 97), make_table("+", 97, "a + b =")
    i = 12 * 97 + 90
    assert short.text(i) == "12 90 = 5" and long.text(i) == "12 + 90 = 5"
    assert short.prompts.shape == (9409, 3) and long.prompts.shape == (9409, 4)
    assert len(short.vocabulary) == len(set(short.vocabulary)) == 101
    assert make_table("x^2+xy+y^2", 97, "a + b =").text(98) == "1 x^2+xy+y^2 1 = 3"
    assert short.prompts.dtype == short.answers.dtype == np.int32


@pytest.mark.parametrize(
    ("op", "commutes"), [("+", True), ("-", False), ("*", True), ("/", False), ("x^2+xy+y^2", True)]
)
def test_clean_validation_is_what_has_no_twin_in_training_and_all_of_it_where_order_matters(
    op: str, commutes: bool
) -> None:
    table = make_table(op, 23)
    split = make_split(table, 0.4, seed=3)
    assert table.commutative is commutes
    assert len(split.train) == int(0.4 * len(table))
    assert sorted([*split.train, *split.val]) == list(range(len(table)))
    trained = {tuple(pair) for pair in table.pairs[split.train].tolist()}
    expected = [i for i in split.val if not commutes or tuple(table.pairs[i][::-1].tolist()) not in trained]
    assert split.clean.tolist() == expected and (len(expected) < len(split.val)) is commutes


def test_a_quarter_and_more_of_the_default_validation_pairs_have_a_twin() -> None:
    split = make_split(make_table(), 0.275, 0)
    assert 0.25 < 1 - len(split.clean) / len(split.val) < 0.30  # in expectation the fraction that is trained on


def test_the_split_depends_on_the_seed_alone() -> None:
    table = make_table("+", 31)
    a, b, c = (make_split(table, 0.5, seed).train for seed in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_an_epoch_shows_each_pair_once_at_most_and_every_epoch_has_another_order() -> None:
    train = np.arange(1000, 1100)
    steps = [batch_indices(train, 30, seed=5, step=i) for i in range(6)]
    first, second = np.concatenate(steps[:3]), np.concatenate(steps[3:])
    for epoch in (first, second):
        assert len(set(epoch.tolist())) == 90 and set(epoch.tolist()) <= set(train.tolist())
    assert not np.array_equal(first, second) and steps[0].dtype == np.int32
    assert np.array_equal(batch_indices(train, 30, 5, 4), steps[4])  # whatever was asked before
    assert not np.array_equal(batch_indices(train, 30, 6, 4), steps[4])


def test_primes_are_those_of_the_sieve() -> None:
    composite = {a * b for a in range(2, 200) for b in range(2, 200)}
    assert [p for p in range(200) if is_prime(p)] == [p for p in range(2, 200) if p not in composite]


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("%", 97), "--op %"),
        (("/", 91), "prime"),
        (("+", 2), "--p"),
        (("+", 200), "--p"),
        (("+", 7, "a b"), "--prompt"),
    ],
)
def test_a_table_that_there_is_not_is_refused_in_a_sentence(args: tuple, word: str) -> None:
    with pytest.raises(UserError, match=word):
        make_table(*args)
    assert len(make_table("+", 91)) == 91**2  # only division needs a prime


@pytest.mark.parametrize("frac", [0, 1, -0.1, 1.5, float("nan"), 0.0001, 0.999])
def test_a_split_with_an_empty_part_is_refused(frac: float) -> None:
    with pytest.raises(UserError, match="--frac"):
        make_split(make_table("+", 31), frac, 0)
