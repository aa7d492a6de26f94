"""Numbers on circles: how much of an embedding is a wave of each frequency, and its two directions.

Nanda et al., "Progress measures for grokking via mechanistic interpretability" (arXiv:2301.05217), found that a network
that adds mod p has the number a at cos(2 pi k a / p) and sin(2 pi k a / p), for a few frequencies k.
"""

import numpy as np


def waves(p: int, k: int, at: np.ndarray) -> np.ndarray:
    """cos and sin of frequency k at the numbers `at` `(n,)`, as `(n, 2)`."""
    angle = 2 * np.pi * k * at / p
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def fourier_power(wte: np.ndarray) -> np.ndarray:
    """Share of each frequency k = 1, 2, ... in an embedding `(p, C)` less its mean: `(p // 2,)`, 1 in all."""
    spectrum = np.fft.rfft(wte - wte.mean(0), axis=0)[1:]  # (p // 2, C)
    power = (np.abs(spectrum) ** 2).sum(1)
    if len(wte) % 2 == 0:
        power[-1] /= 2  # for an even p the last has no mirror image, as the others have
    return power / power.sum()


def key_frequencies(power: np.ndarray) -> list[int]:
    """The frequencies with more than 1.5 times an even share, strongest first, and at least one."""
    strong = [int(i) + 1 for i in np.argsort(-power) if power[i] > 1.5 / len(power)]
    return strong or [int(power.argmax()) + 1]


def circle(wte: np.ndarray, k: int) -> tuple[np.ndarray, float]:
    """An embedding `(p, C)` seen along its cosine and sine directions of frequency k: `(p, 2)`, and their share of it.

    These are where cos(2 pi k a / p) and sin(2 pi k a / p) point, made orthogonal. The two largest principal components
    would mix frequencies, because many of them have almost equal shares of the variance.
    """
    centred = wte - wte.mean(0)
    directions = waves(len(wte), k, np.arange(len(wte))).T @ centred  # (2, C)
    plane = np.linalg.qr(directions.T)[0]  # (C, 2)
    seen = centred @ (plane * np.sign((plane * directions.T).sum(0)))  # (p, 2)
    return seen, float((seen**2).sum() / (centred**2).sum())
