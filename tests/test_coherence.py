"""How coherent a text is: the measures beside hand-counted texts, counted models beside their formula, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY

from commands.coherence import answer, by_size, read_measures
from data.coherence import (
    Known,
    closed_quotes,
    ended_sentences,
    known_words,
    measure,
    persisting_names,
    repeated,
)
from data.ngrams import NGram
from plots import coherence as plot
from runtime.errors import UserError

TRAINED = "Then Lily saw a cat. He told Lily that Tom met us. Lily went. One day the cat saw, then Bob saw. Don't go."
KNOWN = Known.of([TRAINED])


def test_words_and_names_are_those_of_the_training_text() -> None:
    assert KNOWN.names == frozenset()  # Lily stands twice within a sentence, once after a stop or a first word
    assert Known.of([TRAINED, " the boy and Lily"]).names == {"Lily"}
    assert "don't" in KNOWN.words and "boy" not in KNOWN.words
    assert known_words("Lily DON'T see the Cat?", KNOWN) == (4, 5)


@pytest.mark.parametrize(("text", "counted"), [
    ("a b c d e", (0, 2)),
    ("a b c d, a b c d", (1, 5)),  # abcd bcda cdab dabc abcd
    ("A a a a a a a", (3, 4)),
    ("one two", (0, 0)),
])
def test_repeated_four_grams_are_counted_by_hand(text: str, counted: tuple[int, int]) -> None:
    assert repeated(text, KNOWN) == counted


@pytest.mark.parametrize(("text", "counted"), [
    ("He ran. She sat! Did they?", (3, 3)),
    ("He ran. She sat on the", (1, 1)),  # cut off by the limit of tokens: left out
    ("He ran\nShe sat.", (1, 2)),  # the first comes to no end within its line
    ('"Go!" he said. "Why?"', (3, 3)),
    ("word " * 41 + ".", (0, 1)),  # longer than any sentence
    ("word " * 41, (0, 1)),  # and it isn't left out as cut off
    ("...", (0, 0)),
])
def test_sentences_that_end_are_counted_by_hand(text: str, counted: tuple[int, int]) -> None:
    assert ended_sentences(text, KNOWN) == counted


@pytest.mark.parametrize(("text", "counted"), [
    ('"Go," he said. "Now."', (2, 2)),
    ('"Go, he said.\nHe ran.', (0, 1)),
    ("“Go,” he said. “Now.", (1, 2)),
    ('He ran.\n"I am', (0, 0)),  # cut off
    ('He said "a" "b" "c.', (2, 3)),
])
def test_quotes_that_close_are_counted_by_hand(text: str, counted: tuple[int, int]) -> None:
    assert closed_quotes(text, KNOWN) == counted


def test_names_that_persist_are_counted_by_hand() -> None:
    known = Known(frozenset(), frozenset({"Lily", "Tom", "Bob"}))
    assert persisting_names("Lily met a cat. Then Lily saw Tom run.", known) == (1, 2)
    assert persisting_names("Tom and Bob ran on. Bob fell, and Bob cried.", known) == (2, 2)
    assert persisting_names("a cat sat. The cat ran.", known) == (0, 0)


def test_measures_are_of_all_texts_together_and_none_where_there_is_nothing_to_count() -> None:
    found = measure(["the cat zzz.", "the cat"], KNOWN, stories=True)
    assert found["words that exist"] == pytest.approx(4 / 5) and found["quotes that close"] is None
    assert found["words in a text"] == 2.5
    assert set(measure(["a"], KNOWN, stories=False)) == {"words that exist", "repeated 4-grams", "words in a text"}


# ---- counted models ----


def by_the_book(ids: list[int], V: int, context: tuple[int, ...], w: int) -> float:
    """Absolute discounting as its formula has it, one pair at a time."""
    k = len(context)
    followed = [ids[i + k] for i in range(len(ids) - k) if tuple(ids[i : i + k]) == context]
    lower = by_the_book(ids, V, context[1:], w) if k else 1 / V
    if not followed:
        return lower
    return max(followed.count(w) - 0.75, 0) / len(followed) + 0.75 * len(set(followed)) / len(followed) * lower


@pytest.mark.parametrize("n", [1, 2, 5])
def test_counted_models_are_their_formula_and_sum_to_one_also_after_what_was_never_seen(n: int) -> None:
    rng, V = np.random.default_rng(0), 7
    ids, test = rng.choice(V - 1, 200, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05]), rng.integers(0, V, 30)
    model = NGram(ids, V, n)
    losses = model.losses(test)
    for i, w in enumerate(test):
        context = tuple(test[max(0, i - n + 1) : i].tolist())
        expected, p = by_the_book(ids.tolist(), V, context, int(w)), model.distribution(context)
        assert p.sum() == pytest.approx(1) and (p > 0).all()
        assert p[w] == pytest.approx(expected) and losses[i] == pytest.approx(-np.log(expected))


def test_a_counted_model_writes_what_it_has_counted() -> None:
    model = NGram(np.tile([0, 1, 2, 3], 500), 4, 2)
    written = [token for token, _ in zip(model.write([0], 0.3, np.random.default_rng(0)), range(40))]
    assert written == [1, 2, 3, 0] * 10


# ---- the command ----


def stories(path: Path) -> Path:
    rng, names = np.random.default_rng(0), ["Lily", "Tom", "Ben"]
    told = [f'One day {n} met {m}. "Go," said {n}. Then {n} ran and {m} sat.\n<|endoftext|>\n'
            for n, m in (rng.choice(names, 2, replace=False) for _ in range(400))]
    path.write_text("".join(told))
    return path


def test_coherence_of_a_run_and_of_a_sweep_stands_beside_real_text_and_counted_models(gpt_py, tmp_path: Path) -> None:
    text = stories(tmp_path / "stories.txt")
    common = ["--data", text, "--tokenizer", "bpe-300", "--block-size", 32, "--batch-size", 4]
    gpt_py("sweep", *common, "--tokens", "13e3", "--sizes", "1x8,1x16", "--epochs", 99)
    asked = ["--num-samples", 6, "--max-new-tokens", 40]
    printed = gpt_py("coherence", "runs/sweep", *asked)
    saved = json.loads((tmp_path / "runs" / "sweep" / "coherence.json").read_text())
    assert len(saved["runs"]) == 2 and "from 1x8" in printed
    real = saved["anchors"]["real text"]
    assert real["quotes that close"] == real["sentences that end"] == real["words that exist"] == 1
    assert real["names that persist"] > 0.9 and real["words in a text"] == 14
    assert saved["anchors"]["5-gram"]["bits per byte"] < saved["anchors"]["bigram"]["bits per byte"]
    run = saved["runs"][-1]
    alone = gpt_py("coherence", f"runs/sweep/{run['setting'].replace(' ', '-')}-seed{run['seed']}", *asked)
    assert f"{run['measures']['bits per byte']:.3f}" in alone and run["sample"] in alone
    evaluated = gpt_py("eval", f"runs/sweep/{run['setting'].replace(' ', '-')}-seed{run['seed']}")
    assert f"bits per byte {run['measures']['bits per byte']:.2f}" in evaluated
    assert gpt_py("coherence", "runs/sweep", *asked).count(" seed ") == 0  # nothing is left to measure
    plot.draw(read_measures(tmp_path / "runs" / "sweep"), tmp_path / "coherence.png")
    assert (tmp_path / "coherence.png").stat().st_size > 50_000


def test_the_answer_is_the_smallest_size_from_which_on_every_size_is_near_real_text() -> None:
    shares = {100: (0.5, 0.7), 200: (0.97, 0.93), 300: (0.80, 0.82), 400: (0.99, 0.97), 500: (0.95, 0.99)}
    runs = [{"n_layer": 1, "n_embd": n, "parameters": n, "tokens": tokens, "seed": seed, "setting": f"{n} {tokens}",
             "measures": {"bits per byte": 9 - n / 100, "quotes that close": value if tokens == 9 else 0.0}}
            for n, values in shares.items() for seed, value in enumerate(values) for tokens in (5, 9)]
    real = {"bits per byte": None, "quotes that close": 1.0}
    saved = {"runs": runs, "anchors": {"real text": real, "5-gram": {"bits per byte": 6.5}}}
    assert by_size(runs)["1x200"]["quotes that close"] == pytest.approx(0.95)  # of the runs on the most text
    assert answer(saved).splitlines() == [
        "bits per byte        below the 5-gram: from 1x300, 300 parameters, on",
        "quotes that close    within 5 points of real text: from 1x400, 400 parameters, on",
    ]


def test_coherence_of_what_has_no_text_is_refused(gpt_py, corpus: Path, tmp_path: Path) -> None:
    gpt_py("--data", corpus, *TINY, "--steps", 2, "--out", "run")
    with pytest.raises(UserError, match="choose --max-new-tokens"):
        gpt_py("coherence", "run", "--max-new-tokens", 5000)
    with pytest.raises(UserError, match="--num-samples"):
        gpt_py("coherence", "run", "--num-samples", 0)
    with pytest.raises(UserError, match="coherence runs/sweep"):
        read_measures(tmp_path)
