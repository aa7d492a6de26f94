"""Power laws fitted to losses, with NumPy alone: L(N, D) = E + A / N^alpha + B / D^beta, and what follows from it.

The law is that of Hoffmann et al. (arXiv:2203.15556), section 3.3: E is the loss that no model and no amount of text
goes below, N the parameters, D the tokens read. For given exponents it is linear in E, A and B, so that only the
exponents are searched, on a grid that becomes finer (variable projection, Golub & Pereyra 1973). The errors are
relative: 1 % of a loss of 2 counts as 1 % of one of 4. Nothing has to be guessed at the start, and the same numbers
give the same fit.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 0.02, 3.0  # exponents that are searched


@dataclass(frozen=True)
class Law:
    """E + A / N^alpha + B / D^beta, in nats."""

    E: float
    A: float
    alpha: float
    B: float = 0.0
    beta: float = 1.0

    def loss(self, n: np.ndarray, d: np.ndarray | float = np.inf) -> np.ndarray:
        """What it predicts for `n` parameters and `d` tokens."""
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    @property
    def share(self) -> float:
        """The a in N_opt ~ C^a, the best size for C FLOPs: beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    def best_size(self, flops: np.ndarray, k: float) -> np.ndarray:
        """The size with the lowest loss where N parameters and D tokens cost k N D FLOPs."""
        ratio = self.alpha * self.A / (self.beta * self.B)
        return (ratio * (flops / k) ** self.beta) ** (1 / (self.alpha + self.beta))

    def frontier(self, flops: np.ndarray, k: float) -> np.ndarray:
        """The loss of that size."""
        n = self.best_size(flops, k)
        return self.loss(n, flops / (k * n))


def nonnegative(columns: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best coefficients, none below 0, for each of G problems: columns `(G, m, p)` and y `(m,)` -> `(G, p)` and the
    sum of squares `(G,)`. With p at most 3 every set of columns that may be in use is tried."""
    G, m, p = columns.shape
    best, coefficients = np.full(G, np.inf), np.zeros((G, p))
    scale = np.linalg.norm(columns, axis=1) + 1e-300  # (G, p)
    scaled = columns / scale[:, None]
    gram, moment = np.einsum("gmp,gmq->gpq", scaled, scaled), np.einsum("gmp,m->gp", scaled, y)
    for size in range(1, p + 1):
        for used in map(list, itertools.combinations(range(p), size)):
            part = gram[:, used][:, :, used] + 1e-13 * np.eye(size)
            x = np.linalg.solve(part, moment[:, used, None])[..., 0]  # (G, size)
            error = np.square(np.einsum("gmp,gp->gm", scaled[:, :, used], x) - y).sum(1)
            better = (x >= 0).all(1) & (error < best)
            best[better] = error[better]
            coefficients[better] = 0
            coefficients[np.ix_(better, used)] = x[better] / scale[better][:, used]
    return coefficients, best


def search(terms: Sequence[np.ndarray], loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exponents `(k,)` and the coefficients `(1 + k,)` of a constant and a power of each of k terms `(m,)`."""
    k, centre, step = len(terms), np.full(len(terms), np.sqrt(LOWEST * HIGHEST)), 1.25
    wide = np.log(HIGHEST / LOWEST) / 2
    logs = [np.log(t) - np.log(t).mean() for t in terms]  # centred, so that no power overflows

    def on_grid(axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exponents = np.array(list(itertools.product(*(c * np.exp(axis) for c in centre)))).clip(LOWEST, HIGHEST)
        powers = [np.exp(-exponents[:, i : i + 1] * logs[i]) for i in range(k)]  # (G, m) each
        columns = np.stack([np.ones_like(powers[0]), *powers], -1) / loss[None, :, None]
        coefficients, errors = nonnegative(columns, np.ones_like(loss))
        return exponents[errors.argmin()], coefficients[errors.argmin()]

    centre, coefficients = on_grid(np.linspace(-wide, wide, 25))
    step = 2 * wide / 24
    for _ in range(9):
        centre, coefficients = on_grid(np.linspace(-step, step, 7))
        step /= 2.2
    means = [np.log(t).mean() for t in terms]
    return centre, coefficients * np.array([1, *(np.exp(c * m) for c, m in zip(centre, means))])


def fit_law(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> Law:
    """The law of Hoffmann et al. that fits best: sizes, tokens and losses `(m,)`, of at least two sizes and amounts."""
    (alpha, beta), (E, A, B) = search([n, d], loss)
    return Law(float(E), float(A), float(alpha), float(B), float(beta))


def fit_power(x: np.ndarray, loss: np.ndarray) -> Law:
    """E + A / x^alpha, for one quantity `(m,)`."""
    (alpha,), (E, A) = search([x], loss)
    return Law(float(E), float(A), float(alpha))


def bootstrap(fit: Callable[[np.ndarray], Law], m: int, times: int = 200, seed: int = 0) -> list[Law]:
    """`fit(indices)` for samples of m runs drawn with replacement, each with at least three fifths of all runs."""
    rng, laws = np.random.default_rng(seed), list[Law]()
    while len(laws) < times:
        indices = rng.integers(0, m, m)
        if len(np.unique(indices)) >= 0.6 * m:
            laws.append(fit(indices))
    return laws


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 90 % of values."""
    low, high = np.quantile(np.asarray(values), [0.05, 0.95])
    return float(low), float(high)


# ---- IsoFLOP parabolas (Hoffmann et al., section 3.2) ----


@dataclass(frozen=True)
class Parabola:
    """The loss of the sizes at one level of compute: a parabola in ln N with its lowest point."""

    flops: float
    coefficients: np.ndarray  # of np.polyval, in ln N
    low: float  # the smallest and the largest size that it was fitted to
    high: float

    @property
    def size(self) -> float:
        """The size with the lowest loss."""
        a, b, _ = self.coefficients
        return float(np.exp(-b / (2 * a)))

    @property
    def loss(self) -> float:
        """That loss."""
        return float(np.polyval(self.coefficients, np.log(self.size)))

    @property
    def believable(self) -> bool:
        """Whether it opens upwards, with its lowest point among the sizes that were trained."""
        return bool(self.coefficients[0] > 1e-9) and self.low <= self.size <= self.high


def fit_parabolas(flops: np.ndarray, n: np.ndarray, loss: np.ndarray) -> list[Parabola]:
    """A parabola for each level of compute with at least four sizes; flops, sizes and losses `(m,)`."""
    found = []
    for level in np.unique(flops):
        here = flops == level
        if len(np.unique(n[here])) >= 4:
            coefficients = np.polyfit(np.log(n[here]), loss[here], 2)
            found.append(Parabola(float(level), coefficients, float(n[here].min()), float(n[here].max())))
    return found


def slope(parabolas: Sequence[Parabola]) -> float:
    """The a in N_opt ~ C^a that their lowest points have; nan for fewer than two that can be believed."""
    good = [p for p in parabolas if p.believable]
    if len(good) < 2:
        return float("nan")
    return float(np.polyfit(np.log([p.flops for p in good]), np.log([p.size for p in good]), 1)[0])


def bootstrap_slope(flops: np.ndarray, n: np.ndarray, loss: np.ndarray, times: int = 200, seed: int = 0) -> list[float]:
    """The slope for other losses: each parabola plus residuals of all of them, drawn with replacement."""
    parabolas, rng = fit_parabolas(flops, n, loss), np.random.default_rng(seed)
    used = np.isin(flops, [p.flops for p in parabolas])
    fitted, freedom = np.array(loss, float), np.ones(len(loss))
    for p in parabolas:
        here = flops == p.flops
        fitted[here] = np.polyval(p.coefficients, np.log(n[here]))
        freedom[here] = np.sqrt(here.sum() / max(here.sum() - 3, 1))  # a parabola takes three numbers from them
    residuals = ((loss - fitted) * freedom)[used]
    slopes = []
    for _ in range(times if len(residuals) else 0):
        drawn = slope(fit_parabolas(flops, n, fitted + rng.choice(residuals, len(loss))))
        if np.isfinite(drawn):
            slopes.append(drawn)
    return slopes
