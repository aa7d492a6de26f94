"""Tables of modular arithmetic as prompts and answers: `a b =` and then (a + b) mod p, for every pair there is.

The task is that of Power et al., "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets"
(arXiv:2201.02177). A model sees some of the pairs and is asked for the others. There is one trap: if the operation is
commutative, many of the pairs kept for validation have their twin (b, a) among the training pairs, and a model that has
only learned that the order doesn't matter answers them without any arithmetic. `Split.clean` leaves them out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runtime.errors import UserError

Answer = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
OPERATIONS: dict[str, Answer] = {
    "+": lambda a, b, p: (a + b) % p,
    "-": lambda a, b, p: (a - b) % p,
    "*": lambda a, b, p: a * b % p,
    "/": lambda a, b, p: a * _inverses(p)[b] % p,
    "x^2+xy+y^2": lambda a, b, p: (a * a + a * b + b * b) % p,
}
PROMPTS = ("a b =", "a + b =")
P_MIN, P_MAX = 3, 199  # the largest table is 39,601 pairs, and every evaluation is one forward pass over all of them


def _inverses(p: int) -> np.ndarray:
    """The number that gives 1 with each of 0, 1, ..., p - 1 when multiplied; 0 has none, so its entry is 0."""
    return np.array([0, *(pow(b, -1, p) for b in range(1, p))])


def is_prime(p: int) -> bool:
    """Whether p has no divisor but 1 and itself."""
    return p > 1 and all(p % d for d in range(2, int(p**0.5) + 1))


@dataclass(frozen=True)
class Table:
    """Every pair of an operation mod p: n of them, in the order (0, 0), (0, 1), ...; division leaves out b = 0."""

    op: str
    p: int
    pairs: np.ndarray  # (n, 2)
    answers: np.ndarray  # (n,) int32
    prompts: np.ndarray  # (n, T) int32, tokens

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def vocabulary(self) -> list[str]:
        """The tokens: p numbers, the operator, `=`, and two that no prompt uses, as a language model would have."""
        return [*map(str, range(self.p)), self.op, "=", "<|endoftext|>", "<|pad|>"]

    @property
    def commutative(self) -> bool:
        """Whether (a, b) and (b, a) have the same answer for all a and b."""
        a, b = self.pairs.T
        answer = OPERATIONS[self.op]
        return self.op != "/" and bool((answer(a, b, self.p) == answer(b, a, self.p)).all())

    def text(self, i: int) -> str:
        """Prompt and answer of pair i, to be read: `12 34 = 46`."""
        return " ".join(self.vocabulary[t] for t in [*self.prompts[i], self.answers[i]])


def make_table(op: str = "+", p: int = 97, prompt: str = "a b =") -> Table:
    """The table of `op` (one of OPERATIONS) mod p, asked as `prompt` (one of PROMPTS).

    Raises UserError for an unknown operation or prompt, for p out of range, and for division if p isn't a prime.
    """
    if op not in OPERATIONS:
        raise UserError(f"--op {op} is unknown: it is one of {' '.join(OPERATIONS)}")
    if prompt not in PROMPTS:
        raise UserError(f"--prompt {prompt!r} is unknown: it is one of {', '.join(map(repr, PROMPTS))}")
    if not P_MIN <= p <= P_MAX:
        raise UserError(f"--p must be from {P_MIN} to {P_MAX}, not {p}")
    if op == "/" and not is_prime(p):
        raise UserError(f"--op / needs a prime: mod {p} not every number has an inverse")
    first = 1 if op == "/" else 0
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(p), np.arange(first, p), indexing="ij"))
    operator, equals = np.full_like(a, p), np.full_like(a, p + 1)
    columns = [a, b, equals] if prompt == "a b =" else [a, operator, b, equals]
    answers = OPERATIONS[op](a, b, p).astype(np.int32)
    return Table(op, p, np.stack([a, b], 1), answers, np.stack(columns, 1).astype(np.int32))


@dataclass(frozen=True)
class Split:
    """Indices into a table: each pair is in `train` or in `val`; `clean` is `val` without those that have a twin."""

    train: np.ndarray
    val: np.ndarray
    clean: np.ndarray


def make_split(table: Table, frac: float, seed: int) -> Split:
    """A random `frac` of the pairs to train on, the same for the same seed. Raises UserError when a part is empty."""
    if not 0 < frac < 1:
        raise UserError(f"--frac must be between 0 and 1, not {frac:g}")
    n = len(table)
    order = np.random.default_rng((seed, 2)).permutation(n)
    count = int(frac * n)
    train, val = order[:count], order[count:]
    if not count:
        raise UserError(f"--frac {frac:g} of {n:,} pairs leaves none to train on: choose a larger one")
    p = table.p
    seen = np.zeros((p, p), bool)
    seen[tuple(table.pairs[train].T)] = True
    a, b = table.pairs[val].T
    clean = val[~seen[b, a]] if table.commutative else val
    if not len(clean):
        raise UserError(f"--frac {frac:g} of {n:,} pairs leaves none without a twin to validate on: choose less")
    return Split(train, val, clean)


def batch_indices(train: np.ndarray, batch: int, seed: int, step: int) -> np.ndarray:
    """Which pairs step `step` trains on, `(batch,)` int32: a new order every epoch, whose incomplete batch is left out.

    It depends on its arguments alone, so that a resumed run goes on with the same batches.
    """
    epoch, place = divmod(step, len(train) // batch)
    order = np.random.default_rng((seed, 3, epoch)).permutation(len(train))
    return train[order[place * batch : (place + 1) * batch]].astype(np.int32)
