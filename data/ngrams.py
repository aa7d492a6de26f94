"""Counted language models: the next token by how often it came after the last n - 1 tokens in a text.

What was never seen together must not be impossible, so each order gives a part of its weight to the one below it
(absolute discounting, Ney, Essen and Kneser 1994): with c(h w) the count of token w after the context h, of which
N(h) different tokens were seen,

    p(w | h) = max(c(h w) - d, 0) / c(h) + d N(h) / c(h) * p(w | h without its oldest token)

and below the single token stands 1 / V for every token. n = 2 is the bigram of bigram.py, smoothed in another way.
"""

from collections.abc import Iterator, Sequence

import numpy as np

DISCOUNT = 0.75


class NGram:
    """An n-gram model of ids `(m,)` from a vocabulary of V.

    `keys[k]` holds the sorted numbers of all pairs of a context of k tokens and the token after it: context * V +
    token, a context being the place of its own pair in `keys[k - 1]`. `counts[k]` says how often each came.
    """

    def __init__(self, ids: np.ndarray, V: int, n: int):
        self.V, self.n = V, n
        self.keys: list[np.ndarray] = []
        self.counts: list[np.ndarray] = []
        tokens = np.asarray(ids, np.int64)
        context = np.zeros(len(tokens), np.int64)  # of no tokens, before each token
        for _ in range(n):
            keys, place, counts = np.unique(context * V + tokens, return_inverse=True, return_counts=True)
            self.keys.append(keys)
            self.counts.append(counts)
            context, tokens = place[:-1], tokens[1:]  # the pair that ends before a token is its context one order up

    def _seen(self, k: int, context: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the pairs of contexts of k tokens begin and end in `keys[k]`; equal for a context that has none."""
        low = np.searchsorted(self.keys[k], context * self.V)
        high = np.searchsorted(self.keys[k], (context + 1) * self.V)
        return low, np.where(context < 0, low, high)  # -1: a context that was never seen

    def losses(self, ids: np.ndarray) -> np.ndarray:
        """-log p of each of the ids `(m,)`, in nats, the first ones with as much context as they have."""
        tokens = np.asarray(ids, np.int64)
        p, context = np.full(len(tokens), 1 / self.V), np.zeros(len(tokens), np.int64)
        for k in range(self.n):
            low, high = self._seen(k, context)
            total = np.concatenate([[0], np.cumsum(self.counts[k])])
            followed = total[high] - total[low]
            place = np.searchsorted(self.keys[k], context * self.V + tokens[k:])
            place = np.minimum(place, len(self.keys[k]) - 1)
            found = (self.keys[k][place] == context * self.V + tokens[k:]) & (context >= 0)
            count, known = np.where(found, self.counts[k][place] - DISCOUNT, 0), np.maximum(followed, 1)
            here = count / known + DISCOUNT * (high - low) / known * p[k:]
            p[k:] = np.where(followed > 0, here, p[k:])
            context = np.where(found, place, -1)[:-1]
        return -np.log(p)

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """p of every token after these, `(V,)`."""
        p = np.full(self.V, 1 / self.V)
        for k in range(min(self.n, len(context) + 1)):
            pair = self._place(context[len(context) - k :])
            if pair < 0:
                break
            low, high = (int(i[0]) for i in self._seen(k, np.array([pair])))
            if low == high:
                break
            counts, followed = self.counts[k][low:high], int(self.counts[k][low:high].sum())
            p *= DISCOUNT * (high - low) / followed
            p[self.keys[k][low:high] - pair * self.V] += (counts - DISCOUNT) / followed
        return p

    def _place(self, context: Sequence[int]) -> int:
        """The number of a context, -1 if it was never seen."""
        number = 0
        for k, token in enumerate(context):
            key = number * self.V + int(token)
            number = int(np.searchsorted(self.keys[k], key))
            if number == len(self.keys[k]) or self.keys[k][number] != key:
                return -1
        return number

    def write(self, start: Sequence[int], temperature: float, rng: np.random.Generator) -> Iterator[int]:
        """Tokens that go on from these, without end."""
        ids = list(start)
        while True:
            p = self.distribution(ids[len(ids) - self.n + 1 :] if self.n > 1 else ()) ** (1 / temperature)
            ids.append(int(rng.choice(self.V, p=p / p.sum())))
            yield ids[-1]
