"""`eval --choices` and `--last-word`: beside NumPy in double precision, at chance, refused by line, fetched by name."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
from conftest import perturbed
from tinygrad.nn.state import get_state_dict

from commands.questions import choose, read_choices, read_last_words, score, wilson
from data import corpora
from data.corpora import find_questions
from gpt import GPT, GPTConfig
from runtime.download import Source, sha256_of
from runtime.errors import UserError
from tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("abcdefgh ")


@pytest.fixture(scope="module")
def model() -> GPT:
    return perturbed(GPT(GPTConfig(block_size=24, vocab_size=9, n_layer=2, n_head=2, n_embd=8)))


def write_items(path: Path, count: int, seed: int = 0) -> Path:
    """Contexts of 1 to 30 characters with 2 to 5 endings of 1 to 8, in both spellings of the fields."""
    rng, lines = np.random.default_rng(seed), []
    word = lambda n: "".join(rng.choice(list("abcdefgh"), n))
    for i in range(count):
        endings = [word(rng.integers(1, 9)) for _ in range(rng.integers(2, 6))]
        names = ("context", "answer") if i % 2 else ("ctx", "label")
        answer = int(rng.integers(len(endings)))
        lines.append(json.dumps({names[0]: word(rng.integers(1, 31)), "endings": endings,
                                 names[1]: answer if i % 3 else str(answer)}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def log_p(weights: dict[str, np.ndarray], context: str, ending: str, T: int) -> np.ndarray:
    """Of each token of the ending, one text at a time, from the newest T tokens before it."""
    ids = np.array(TOKENIZER.encode(context + ending))[-(T + 1) :]
    losses = reference.losses(weights, ids[None, :-1], ids[None, 1:], 2, 2)[0]
    return -losses[len(ids) - 1 - len(ending) :]


def test_choices_equal_an_independent_scoring_of_fifty_items(model: GPT, tmp_path: Path) -> None:
    path = write_items(tmp_path / "items.jsonl", 50)
    by_sum, per_token = choose(model, read_choices(path, TOKENIZER, 24), 8)
    weights = {name: p.numpy().astype(np.float64) for name, p in get_state_dict(model).items()}
    differ = 0
    for i, line in enumerate(path.read_text().splitlines()):
        item = json.loads(line)
        found = [log_p(weights, item.get("context") or item["ctx"], f" {ending}", 24) for ending in item["endings"]]
        answer = int(item.get("answer", item.get("label")))
        sums, means = [p.sum() for p in found], [p.mean() for p in found]
        assert by_sum[i] == (np.argmax(sums) == answer) and per_token[i] == (np.argmax(means) == answer)
        differ += np.argmax(sums) != np.argmax(means)
    assert differ > 5  # the two are not the same question


def test_last_words_equal_numpy_greedy_and_in_their_perplexity(model: GPT, tmp_path: Path) -> None:
    passages = ["abc de fgh", "h g f", "a abcdefghabcdefghabcdefgh b", " aa  bb cc "]
    (tmp_path / "p.txt").write_text("\n".join(passages) + "\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in passages), encoding="utf-8")
    items = read_last_words(tmp_path / "p.txt", TOKENIZER, 24)
    assert items == read_last_words(tmp_path / "p.jsonl", TOKENIZER, 24)
    assert [TOKENIZER.decode(item.endings[0]) for item in items] == [" fgh", " f", " b", " cc"]
    found = score(model, [(i.context + i.endings[0], len(i.endings[0])) for i in items], 3, greedy=True)
    weights = {name: p.numpy().astype(np.float64) for name, p in get_state_dict(model).items()}
    for passage, item, (loss, right) in zip(passages, items, found):
        ids = np.array(TOKENIZER.encode(passage.rstrip()))[-25:]
        n = len(item.endings[0])
        z = reference.logits(weights, ids[None, :-1], 2, 2)[0]
        exact = -sum(row[t] - np.log(np.exp(row).sum()) for row, t in zip(z[-n:], ids[-n:]))
        assert abs(loss - exact) < 1e-4 * exact and right == (z[-n:].argmax(-1) == ids[-n:]).all()
    likeliest = reference.logits(weights, np.array([TOKENIZER.encode("ab cd ")]), 2, 2)[0, -1].argmax()
    found = score(model, [(TOKENIZER.encode(f"ab cd {c}"), 1) for c in "abcdefgh "], 4, greedy=True)
    assert found[:, 1].tolist() == np.eye(9)[likeliest].tolist()  # of all that may follow just one is


def test_a_random_models_accuracy_is_chance_within_its_interval(gpt_py: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdefgh " * 100, encoding="utf-8")
    tiny = ["--n-layer", 1, "--n-head", 1, "--n-embd", 8, "--block-size", 16, "--eval-batches", 1]
    gpt_py("--data", "text.txt", "--out", "run", "--steps", 1, "--lr", 0, *tiny)  # as it was initialised
    write_items(tmp_path / "items.jsonl", 400, seed=4)
    shown = gpt_py("eval", "run", "--choices", "items.jsonl")
    chance = float(re.search(r"chance +([\d.]+)%", shown)[1])  # type: ignore[index]
    assert abs(chance - 100 * np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5])) < 3
    for name in ("by sum", "per token"):
        found = re.search(rf"{name} +([\d.]+)%   95 % interval ([\d.]+)% to ([\d.]+)%", shown)
        assert found, shown
        share, low, high = map(float, found.groups())
        assert low < chance < high and low < share < high
        assert (low, high) == pytest.approx([100 * x for x in wilson(round(4 * share), 400)], abs=0.01)


def test_the_interval_is_wilsons() -> None:
    """The ends are the shares p from which the one seen is just 1.96 standard errors, of p itself, away."""
    for right, n in ((0, 10), (3, 10), (1, 1), (250, 1000)):
        for p in wilson(right, n):
            if 0 < p < 1:
                assert abs(abs(right / n - p) - 1.96 * math.sqrt(p * (1 - p) / n)) < 1e-9
    assert wilson(0, 10)[0] == 0 and wilson(1, 1)[1] == 1


@pytest.mark.parametrize(("line", "reason"), [
    ("{", "it is not JSON"), ("[1]", "it is no"), ('{"context": "a", "endings": ["b"], "answer": 0}', "at least two"),
    ('{"context": "a", "endings": ["b", ""], "answer": 0}', "with something in it"),
    ('{"context": "a", "endings": ["b", "c"], "answer": 2}', "from 0 to 1, not 2"),
    ('{"context": "a", "endings": ["b", "c"]}', "not None"),
    ('{"context": "", "endings": ["b", "c"], "answer": 0}', "context is empty"),
    ('{"context": "x", "endings": ["b", "c"], "answer": 0}', "'x'"),
    ('{"context": "a", "endings": ["b", "%s"], "answer": 0}' % ("c" * 30), "31 tokens, and the model sees 24"),
])
def test_a_wrong_item_is_named_by_its_line(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"context": "a", "endings": ["b", "c"], "answer": "1"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=rf"items\.jsonl, line 3: .*{reason}"):
        read_choices(path, TOKENIZER, 24)


def test_hellaswag_is_fetched_by_name_checked_and_refused_when_it_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt_py: Callable[..., str]
) -> None:
    there = write_items(tmp_path / "served.jsonl", 3)
    source = Source("hellaswag_val.jsonl", there.as_uri(), there.stat().st_size, sha256_of(there))
    monkeypatch.setitem(corpora.QUESTIONS, "hellaswag", source)
    path = find_questions("hellaswag", tmp_path / "data")
    assert path.read_bytes() == there.read_bytes() and path.parent == tmp_path / "data"
    there.unlink()
    assert find_questions("hellaswag", tmp_path / "data") == path  # kept
    path.write_text("another file", encoding="utf-8")
    with pytest.raises(UserError, match="isn't the published hellaswag"):
        find_questions("hellaswag", tmp_path / "data")
    path.unlink()
    with pytest.raises(UserError, match="save it yourself as .*hellaswag_val.jsonl"):
        find_questions("hellaswag", tmp_path / "data")
    with pytest.raises(UserError, match="neither a file nor one of hellaswag, lambada"):
        find_questions("hellasvag")
    for wrong, said in ((("--choices", "a", "--split", "val"), "leave out --data and --split"),
                        (("--init-from", "gpt2"), "needs a text")):
        with pytest.raises(UserError, match=said):
            gpt_py("eval", *wrong)
