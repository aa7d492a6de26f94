"""`python gpt.py eval --choices` and `--last-word`: how often a model chooses right, beside chance.

An ending is as good as the model finds it likely: the sum of the log probabilities of its tokens after the context, or,
because that favours short endings, the mean over them. Both count as in HellaSwag (Zellers et al., arXiv:1905.07830),
scored on the endings' own words and not on letters.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor

from data.corpora import find_questions
from gpt import GPT, cross_entropy
from runtime.compiled import Inputs, jit
from runtime.errors import UserError
from runtime.progress import Progress, counted
from tokenizer import Tokenizer

# What is published of GPT-2's sizes on these files, scored like this.
PUBLISHED = {
    "hellaswag": "published GPT-2: 124M 28.6 % by the sum, 29.6 % per token; 1.5B 38.4 %, 48.9 % (llm.c, "
                 "dev/data/hellaswag.py)",
    "lambada": "published GPT-2: 124M 32.6 %, perplexity 40.1 (lm-evaluation-harness); 46.0, 55.5, 60.1 and 63.2 % for "
               "124M to 1.5B where\n          only the last token of the word counts (Radford et al., 2019)",
}


@dataclass(frozen=True)
class Item:
    """A context, what may follow, and which of it does; all but the last in tokens."""

    context: list[int]
    endings: list[list[int]]
    answer: int


# ---- the files ----


def read_lines(path: Path) -> dict[int, str]:
    """The lines of a UTF-8 file that have something in them, by number. Raises UserError when there is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as UTF-8 text: {error}") from error
    found = {n: line for n, line in enumerate(lines, 1) if line.strip()}
    if not found:
        raise UserError(f"{path} has no line")
    return found


def read_choices(path: Path, tokenizer: Tokenizer, T: int) -> list[Item]:
    """The items of a .jsonl file: `context` or `ctx`, `endings`, and the right one's place as `answer` or `label`.

    Raises UserError, with the line, for one of another form, and for what the model can't read.
    """
    items = []
    for n, line in read_lines(path).items():
        try:
            item = json.loads(line)
            if not isinstance(item, dict):
                raise ValueError('it is no {"context": ..., "endings": [...], "answer": 0}')
            context, endings = item.get("context", item.get("ctx")), item.get("endings")
            answer = item.get("answer", item.get("label"))
            if not isinstance(context, str) or not isinstance(endings, list) or len(endings) < 2:
                raise ValueError('it needs a "context" and a list of at least two "endings"')
            if not all(isinstance(ending, str) and ending for ending in endings):
                raise ValueError("an ending is a string with something in it")
            if str(answer) not in map(str, range(len(endings))):
                raise ValueError(f'"answer" is the place of an ending, from 0 to {len(endings) - 1}, not {answer!r}')
            items.append(encode_item(tokenizer, context, endings, int(str(answer)), T))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {n}: {'it is not JSON' if is_json(error) else error}") from error
    return items


def read_last_words(path: Path, tokenizer: Tokenizer, T: int) -> list[Item]:
    """The passages of a file, one a line, as text or as `{"text": ...}`; the ending is a passage's last word.

    Raises UserError, with the line, for one of a single word, and for what the model can't read.
    """
    items = []
    for n, line in read_lines(path).items():
        try:
            passage = json.loads(line)["text"] if path.suffix == ".jsonl" else line
            if not isinstance(passage, str) or len(words := passage.rstrip().rsplit(None, 1)) < 2:
                raise ValueError("a passage has at least two words")
            items.append(encode_item(tokenizer, words[0], [words[1]], 0, T))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            wrong = error if isinstance(error, ValueError) and not is_json(error) else 'it is not {"text": "..."}'
            raise UserError(f"{path}, line {n}: {wrong}") from error
    return items


def is_json(error: Exception) -> bool:
    """Whether an error is about JSON itself."""
    return isinstance(error, json.JSONDecodeError | RecursionError)


def encode_item(tokenizer: Tokenizer, context: str, endings: Sequence[str], answer: int, T: int) -> Item:
    """An item in tokens, with a space between the context and an ending where there is no white space yet.

    Raises ValueError for a character that the vocabulary lacks, an empty context, and an ending that is too long.
    """
    encode = lambda text: tokenizer.encode(text, disallowed_special=())
    glue = lambda ending: "" if context[-1:].isspace() or ending[:1].isspace() else " "
    item = Item(encode(context), [encode(glue(ending) + ending) for ending in endings], answer)
    if not item.context:
        raise ValueError("the context is empty")
    if (longest := max(map(len, item.endings))) > T:
        raise ValueError(f"an ending has {longest} tokens, and the model sees {T} at a time")
    return item


# ---- scores ----


def score(model: GPT, rows: Sequence[tuple[list[int], int]], B: int, greedy: bool = False) -> np.ndarray:
    """For rows of (tokens, how many of the last ones count): minus the sum of their log probabilities, and 1 if each
    of them is the likeliest (only with `greedy`, else 0), `(N, 2)` float64.

    Of a row that is longer than the model sees only the newest tokens are read.
    """
    longest, found = model.config.block_size, np.zeros((len(rows), 2))
    steps: dict[int, tuple[Any, Inputs]] = {}  # for each width, as a compiled step has one shape
    progress = Progress(sys.stderr)

    def both(x: Tensor, y: Tensor) -> Tensor:  # (2, B, T)
        if not greedy:
            losses = model.losses(x, y)
            return losses.stack(losses * 0).realize()
        logits = model(x)
        return cross_entropy(logits, y).stack((logits.argmax(-1) == y).float()).realize()

    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    for at in range(0, len(order), B):
        chosen = order[at : at + B]
        lengths = [min(len(rows[i][0]) - 1, longest) for i in chosen]
        T = min(max(16, 1 << (max(lengths) - 1).bit_length()), longest)
        x, y = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
        for b, (i, n) in enumerate(zip(chosen, lengths)):
            x[b, :n], y[b, :n] = rows[i][0][-n - 1 : -1], rows[i][0][-n:]
        step, inputs = steps.setdefault(T, (jit(both), Inputs()))
        losses, right = step(*inputs(x, y)).numpy().astype(np.float64)
        for b, (i, n) in enumerate(zip(chosen, lengths)):
            last = slice(n - rows[i][1], n)
            found[i] = losses[b, last].sum(), right[b, last].all()
        if progress.live:
            progress.show(f"{at + len(chosen):,} of {len(rows):,} texts")
    progress.clear()
    return found


def choose(model: GPT, items: Sequence[Item], B: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether the right ending of each item has the highest sum of log probabilities, and the highest mean of them."""
    rows = [(item.context + ending, len(ending)) for item in items for ending in item.endings]
    losses, at, right = score(model, rows, B)[:, 0], 0, []
    for item in items:
        sums = losses[at : at + len(item.endings)]
        at += len(item.endings)
        right.append((sums.argmin() == item.answer, (sums / [len(e) for e in item.endings]).argmin() == item.answer))
    by_sum, per_token = np.array(right).T
    return by_sum, per_token


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of which `right` of n were seen (Wilson, 1927): unlike p ± 2 sigma it stays within
    0 and 1, and is right for small n."""
    p, widen = right / n, 1 + z * z / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / widen), min(1.0, (middle + half) / widen)


def percent(right: np.ndarray) -> str:
    """A share with its interval."""
    low, high = wilson(int(right.sum()), len(right))
    return f"{right.mean():7.2%}   95 % interval {low:.2%} to {high:.2%}"


def format_perplexity(loss: float) -> str:
    """e to the loss; `10^300` and such where that is more than a person reads as digits, or a float can hold."""
    return f"{math.exp(loss):.3f}" if not 30 < loss < math.inf else f"10^{loss / math.log(10):.0f}"


def print_choices(model: GPT, tokenizer: Tokenizer, name: str, B: int, data_dir: str | None) -> None:
    """Accuracy on the items of a file, or of `hellaswag`, beside chance."""
    items = read_choices(find_questions(name, data_dir), tokenizer, model.config.block_size)
    by_sum, per_token = choose(model, items, B)
    print(f"{name}: {counted(len(items), 'item')}")
    print(f"chance    {np.mean([1 / len(item.endings) for item in items]):7.2%}")
    print(f"by sum    {percent(by_sum)}\nper token {percent(per_token)}")
    if name in PUBLISHED:
        print(PUBLISHED[name])


def print_last_words(model: GPT, tokenizer: Tokenizer, name: str, B: int, data_dir: str | None) -> None:
    """How often the last word of the passages of a file, or of `lambada`, is what the model finds likeliest."""
    items = read_last_words(find_questions(name, data_dir), tokenizer, model.config.block_size)
    found = score(model, [(item.context + item.endings[0], len(item.endings[0])) for item in items], B, greedy=True)
    loss = found[:, 0].mean()
    print(f"{name}: {len(items):,} passages\nlast word {percent(found[:, 1])}")
    print(f"perplexity of the word {format_perplexity(loss)}, loss {loss:.4f} nats")
    if name in PUBLISHED:
        print(PUBLISHED[name])
