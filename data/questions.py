"""Conversations to begin with: sums, words and names, made here, so that a small model can answer after minutes.

A conversation is a few questions with their answers. Some need what was said before: a name, or the last sum.
"""

import json
from collections.abc import Callable

import numpy as np

COUNT = 20_000  # conversations
Pair = tuple[str, str]  # a question and its answer

NAMES = ("Ada", "Alan", "Anna", "Ben", "Carl", "Emma", "Eve", "Finn", "Grace", "Ida", "Jack", "Kim", "Leo", "Lily",
         "Max", "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tom", "Una", "Zoe")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
OPPOSITES = ("hot cold", "big small", "old young", "up down", "fast slow", "day night", "wet dry", "open closed",
             "rich poor", "light dark", "left right", "early late", "full empty", "hard soft", "loud quiet",
             "true false")
SOUNDS = ("a cow moo", "a cat meow", "a dog woof", "a duck quack", "a sheep baa", "a pig oink", "a lion roar",
          "an owl hoot", "a snake hiss", "a bee buzz")
WORDS = ("cat", "dog", "sun", "tree", "book", "fish", "king", "ship", "moon", "star", "bread", "house", "river",
         "table", "green", "queen")


def add(rng: np.random.Generator) -> list[Pair]:
    """A sum, and often more to add to it."""
    a, b, c = (int(n) for n in rng.integers(0, 10, 3))
    pairs = [(f"What is {a} + {b}?", f"{a + b}")]
    return [*pairs, (f"And {c} more?", f"{a + b + c}")] if rng.random() < 0.5 else pairs


def meet(rng: np.random.Generator) -> list[Pair]:
    """A name, which is asked for after something else."""
    name = str(rng.choice(NAMES))
    between = TOPICS[int(rng.integers(len(TOPICS) - 1))](rng) if rng.random() < 0.5 else []
    return [(f"My name is {name}.", f"Hello, {name}!"), *between, ("What is my name?", f"Your name is {name}.")]


def after(rng: np.random.Generator) -> list[Pair]:
    i = int(rng.integers(7))
    return [(f"What day comes after {DAYS[i]}?", f"{DAYS[(i + 1) % 7]}.")]


def oppose(rng: np.random.Generator) -> list[Pair]:
    a, b = rng.permutation(str(rng.choice(OPPOSITES)).split())
    return [(f"What is the opposite of {a}?", f"{b}.")]


def sound(rng: np.random.Generator) -> list[Pair]:
    animal, says = str(rng.choice(SOUNDS)).rsplit(" ", 1)
    return [(f"What does {animal} say?", f"{says.capitalize()}!")]


def spell(rng: np.random.Generator) -> list[Pair]:
    word = str(rng.choice(WORDS))
    return [(f"How do you spell {word}?", "-".join(word))]


def count(rng: np.random.Generator) -> list[Pair]:
    a, n = int(rng.integers(1, 10)), int(rng.integers(3, 7))
    return [(f"Count from {a} to {a + n - 1}.", ", ".join(str(a + i) for i in range(n)) + ".")]


TOPICS: tuple[Callable[[np.random.Generator], list[Pair]], ...] = (add, after, oppose, sound, spell, count, meet)


def write_questions(conversations: int = COUNT) -> str:
    """The text of a .jsonl file: on every machine the same."""
    rng, lines = np.random.default_rng(1337), []
    for _ in range(conversations):
        pairs = [pair for _ in range(rng.integers(1, 4)) for pair in TOPICS[int(rng.integers(len(TOPICS)))](rng)]
        roles = [(role, content) for pair in pairs for role, content in zip(("user", "assistant"), pair)]
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in roles]}))
    return "\n".join(lines) + "\n"
