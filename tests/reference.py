"""GPT-2's forward pass again, in NumPy and double precision, written from the paper: the independent witness."""

import math
from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]


def layer_norm(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)


def linear(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    return x @ w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def logits(w: Weights, idx: np.ndarray, n_layer: int, n_head: int, masks: Weights | None = None) -> np.ndarray:
    """`(B, T, V)` for tokens `(B, T)`, one head and one query at a time.

    `masks` multiply the embeddings (`wte`) and what each block adds (`h.0.attn`, `h.0.mlp`): dropout's.
    """
    B, T = idx.shape
    kept = masks or {}
    x = (w["wte.weight"][idx] + w["wpe.weight"][:T]) * kept.get("wte", 1.0)
    hs = x.shape[-1] // n_head
    for i in range(n_layer):
        q, k, v = np.split(linear(layer_norm(x, w, f"h.{i}.ln_1"), w, f"h.{i}.attn.c_attn"), 3, axis=-1)
        y = np.zeros_like(x)
        for head in range(n_head):
            s = slice(head * hs, (head + 1) * hs)
            for t in range(T):
                score = np.einsum("bc,btc->bt", q[:, t, s], k[:, : t + 1, s]) / math.sqrt(hs)
                weight = np.exp(score - score.max(-1, keepdims=True))
                y[:, t, s] = np.einsum("bt,btc->bc", weight / weight.sum(-1, keepdims=True), v[:, : t + 1, s])
        x = x + linear(y, w, f"h.{i}.attn.c_proj") * kept.get(f"h.{i}.attn", 1.0)
        y = linear(gelu(linear(layer_norm(x, w, f"h.{i}.ln_2"), w, f"h.{i}.mlp.c_fc")), w, f"h.{i}.mlp.c_proj")
        x = x + y * kept.get(f"h.{i}.mlp", 1.0)
    return layer_norm(x, w, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T


def losses(w: Weights, idx: np.ndarray, targets: np.ndarray, n_layer: int, n_head: int) -> np.ndarray:
    """Cross-entropy of every position `(B, T)`, in nats."""
    z = logits(w, idx, n_layer, n_head)
    log_sum = np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1)) + z.max(-1)
    return log_sum - np.take_along_axis(z, targets[..., None], -1)[..., 0]


def gradients(w: Weights, idx: np.ndarray, targets: np.ndarray, n_layer: int, n_head: int) -> dict[str, np.ndarray]:
    """Central differences of the mean loss for every single parameter: (f(p + h) - f(p - h)) / 2h."""
    h, mutable = 1e-5, {name: value.copy() for name, value in w.items()}
    result = {}
    for name, value in mutable.items():
        grad = np.zeros_like(value)
        for i in np.ndindex(value.shape):
            kept = value[i]
            value[i] = kept + h
            up = losses(mutable, idx, targets, n_layer, n_head).mean()
            value[i] = kept - h
            grad[i] = (up - losses(mutable, idx, targets, n_layer, n_head).mean()) / (2 * h)
            value[i] = kept
        result[name] = grad
    return result
