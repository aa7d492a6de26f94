"""GPT-2, as formulas: attention, LayerNorm, GELU, the block, the head, the loss, and how text comes out.

    python gpt.py                   train on Shakespeare; CUDA=1 python gpt.py on an NVIDIA GPU
    python gpt.py sample [RUN]      write text; also chat, eval, info, export, report; for many models compare, sweep,
                                    coherence; each with --help

Read from top to bottom: the operations, the layers, the model. The model is OpenAI's (Radford et al., "Language Models
are Unsupervised Multitask Learners", 2019), with the names and layouts of its checkpoints. Three words change only the
speed: an operation under `@fast` may run as a kernel from kernels/, which the tests hold to the formula here; `edge(x)`
and `x.contiguous()` have x written to memory once, where tinygrad would compute it again for each of its readers.

Shapes: B texts of T tokens, C channels, nh heads of hs = C / nh channels, V tokens to choose from.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from exchange.adapters import read_adapted_run
from exchange.checkpoint import find_checkpoint
from exchange.layout import Checkpoint, model_for
from kernels import edge, fast, next_seed, random_bits, training
from runtime.compiled import jit, require_tokens
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import copy_into
from tokenizer import Tokenizer

# ---- the operations ----


@fast
def embed(table: Tensor, idx: Tensor, positions: Tensor | None = None) -> Tensor:
    """The rows of a table `(V, C)` for tokens `(B, T)`, plus a vector for each position: `(B, T, C)`."""
    return table[idx] if positions is None else table[idx] + positions[: idx.shape[1]]


@fast
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """y = x W + b: `(..., in)` by `(in, out)`. A `transposed` W lies as `(out, in)`, like an embedding table."""
    weight = weight.cast(x.dtype).contiguous()  # weights are float32; x may have 16-bit numbers
    y = x @ (weight.T if transposed else weight)
    return y if bias is None else y.contiguous().contiguous_backward() + bias.cast(x.dtype)


@fast
def layernorm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Each row of x `(..., C)` with mean 0 and variance 1, times weight, plus bias. Ba et al., arXiv:1607.06450."""
    z = x.float()
    mean = z.mean(-1, keepdim=True)  # (..., 1)
    variance = (z - mean).square().mean(-1, keepdim=True)  # (..., 1)
    y = (z - mean) / (variance + eps).sqrt() * weight
    return (y if bias is None else y + bias).cast(x.dtype)


@fast
def gelu(x: Tensor) -> Tensor:
    """GPT-2's activation: close to 0 below zero, close to x above it. Hendrycks & Gimpel, arXiv:1606.08415."""
    z = x.float()
    return (0.5 * z * (1 + (math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)).tanh())).cast(x.dtype)


@fast
def softmax(scores: Tensor) -> Tensor:
    """Positive weights that sum to 1 along the last axis: e^s / sum e^s."""
    top = scores.max(-1, keepdim=True).detach()  # subtracting it leaves the result as it is, and e^s can't overflow
    e = (scores - top).exp().contiguous()
    return e / e.sum(-1, keepdim=True)


def dropout(x: Tensor, p: float) -> Tensor:
    """While training, set each element to 0 with probability p and scale the rest by 1 / (1 - p), so the mean stays."""
    if not p or (seed := next_seed()) is None:  # there are seeds only within `training`, see GPT.loss
        return x
    return (random_bits(x, seed) >= int(p * 2**32)).where(x * (1 / (1 - p)), 0)


@fast
def attention(qkv: Tensor, n_head: int, p: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(hs)) V for every head; a position sees itself and those before. Vaswani et al., 1706.03762.

    `qkv` `(B, T, 3 C)` has each position's query, key and value side by side. A share p of the weights is dropped.
    """
    B, T, C = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // 3
    qkv = qkv.reshape(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)  # (3, B, nh, T, hs)
    q, k, v = edge(qkv[0]), edge(qkv[1]), edge(qkv[2])  # (B, nh, T, hs) each
    scores = q.matmul(k.transpose(-2, -1), dtype=dtypes.float32) * (C // n_head) ** -0.5  # (B, nh, T, T)
    past = Tensor.ones(T, T, dtype=dtypes.bool, device=qkv.device).tril()
    weights = softmax(past.where(edge(scores), -1e30))  # (B, nh, T, T), 0 for what is yet to come
    y = edge(dropout(weights, p).cast(v.dtype) @ v)  # (B, nh, T, hs)
    return y.transpose(1, 2).reshape(B, T, C)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(logits)[target] in nats: `(..., V)` and `(...)` -> `(...)`. A uniform guess costs log V."""
    top = logits.max(-1, keepdim=True).detach()
    log_sum = (logits - top).exp().sum(-1).log() + top.squeeze(-1)  # (...)
    one_hot = targets.unsqueeze(-1) == Tensor.arange(logits.shape[-1], device=logits.device)  # (..., V)
    return log_sum - one_hot.where(logits, 0).sum(-1)


@fast
def head_loss(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy `(B, T)` of the logits that x `(B, T, C)` and the table `(V, C)` give."""
    return cross_entropy(linear(x, table, transposed=True).float(), targets)


# ---- the layers ----


@dataclass(frozen=True)
class GPTConfig:
    """The five numbers of a GPT-2, and two choices. The defaults are GPT-2's own, 124M parameters."""

    block_size: int = 1024  # T: the longest context
    vocab_size: int = 50257  # V
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C
    dropout: float = 0.0
    bias: bool = True  # in every linear layer and LayerNorm; nanoGPT trains without, which is a little smaller

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise UserError(f"--n-embd {self.n_embd} can't be divided into --n-head {self.n_head} equal heads")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be in [0, 1), not {self.dropout}")

    @property
    def parameters(self) -> int:
        """How many there are, by formula: embeddings, L blocks of attention (4 C^2) and MLP (8 C^2), LayerNorms."""
        V, T, L, C = self.vocab_size, self.block_size, self.n_layer, self.n_embd
        biases = L * 11 * C + C if self.bias else 0  # in a block: 3C + C and 4C + C of the matrices, 2C of LayerNorm
        return V * C + T * C + L * (12 * C * C + 2 * C) + C + biases

    @property
    def flops_per_token(self) -> int:
        """In a training step: 6 for each parameter outside `wpe`, and attention's T x T (PaLM, arXiv:2204.02311)."""
        L, C, T = self.n_layer, self.n_embd, self.block_size
        return 6 * (self.parameters - T * C) + 12 * L * C * T


Random = np.random.Generator | None  # None: don't initialise


def normal(rng: Random, *shape: int, std: float = 0.02) -> Tensor:
    if rng is None:
        return Tensor.empty(*shape)
    return Tensor(rng.standard_normal(shape, dtype=np.float32) * np.float32(std))


class Embedding:
    def __init__(self, rng: Random, rows: int, n_embd: int):
        self.weight = normal(rng, rows, n_embd)  # (rows, C)


class Linear:
    def __init__(self, rng: Random, n_in: int, n_out: int, bias: bool, std: float = 0.02):
        self.weight = normal(rng, n_in, n_out, std=std)  # (in, out), as in GPT-2's checkpoints
        self.bias = Tensor(np.zeros(n_out, np.float32)) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm:
    def __init__(self, n_embd: int, bias: bool):
        self.weight = Tensor(np.ones(n_embd, np.float32))
        self.bias = Tensor(np.zeros(n_embd, np.float32)) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return layernorm(edge(x), self.weight, self.bias)  # x is the residual stream, which has other readers


class CausalSelfAttention:
    def __init__(self, rng: Random, config: GPTConfig):
        C = config.n_embd
        self.n_head, self.p = config.n_head, config.dropout
        self.c_attn = Linear(rng, C, 3 * C, config.bias)
        # Each block adds to the residual stream twice; 1/sqrt(2 L) keeps its variance from growing with depth.
        self.c_proj = Linear(rng, C, C, config.bias, std=0.02 / math.sqrt(2 * config.n_layer))

    def __call__(self, x: Tensor) -> Tensor:
        qkv = self.c_attn(x)  # (B, T, C) -> (B, T, 3C)
        y = attention(qkv, self.n_head, self.p)  # (B, T, C)
        return dropout(self.c_proj(y), self.p)


class MLP:
    def __init__(self, rng: Random, config: GPTConfig):
        C = config.n_embd
        self.p = config.dropout
        self.c_fc = Linear(rng, C, 4 * C, config.bias)
        self.c_proj = Linear(rng, 4 * C, C, config.bias, std=0.02 / math.sqrt(2 * config.n_layer))

    def __call__(self, x: Tensor) -> Tensor:
        h = gelu(self.c_fc(x))  # (B, T, C) -> (B, T, 4C)
        return dropout(self.c_proj(h), self.p)  # (B, T, C)


class Block:
    """Attention between positions, then an MLP at each position; both add to the residual stream x `(B, T, C)`."""

    def __init__(self, rng: Random, config: GPTConfig):
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(rng, config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(rng, config)

    def __call__(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


# ---- the model ----


@model_for(GPTConfig)
class GPT:
    """GPT-2. With `seed` None the weights are uninitialised memory, for a checkpoint to be copied into."""

    def __init__(self, config: GPTConfig, seed: int | None = 1337):
        rng = None if seed is None else np.random.default_rng(seed)
        self.config, self.dtype = config, "float32"  # of activations and matmuls; the weights are float32 in any case
        self.wte = Embedding(rng, config.vocab_size, config.n_embd)
        self.wpe = Embedding(rng, config.block_size, config.n_embd)
        self.h = [Block(rng, config) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, config.bias)
        Tensor.realize(*get_state_dict(self).values())  # now: a compiled step would take the copying for a part of it

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix `(V, C)`: GPT-2 uses the embedding table once more."""
        return self.wte.weight

    def embed(self, idx: Tensor) -> Tensor:
        """Tokens `(B, T)` -> the residual stream `(B, T, C)` before the first block."""
        require_tokens(idx, self.config.vocab_size, self.config.block_size)
        return dropout(embed(self.wte.weight, idx, self.wpe.weight), self.config.dropout).cast(self.dtype)

    def hidden(self, idx: Tensor) -> Tensor:
        """Tokens `(B, T)` -> what the head reads, `(B, T, C)`."""
        x = self.embed(idx)
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def head(self, x: Tensor) -> Tensor:
        """`(..., C)` -> logits `(..., V)`, float32: how well each token's embedding fits."""
        return linear(x, self.head_weight, transposed=True).float()

    def __call__(self, idx: Tensor) -> Tensor:
        """Tokens `(B, T)`, T at most block_size -> logits `(B, T, V)` of the token after each."""
        return self.head(self.hidden(idx))

    def losses(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy `(B, T)` of every position, in nats, for tokens and the tokens after them, both `(B, T)`."""
        require_tokens(targets, self.config.vocab_size, self.config.block_size, like=idx)
        return head_loss(self.hidden(idx), self.head_weight, targets)

    def loss(self, idx: Tensor, targets: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The mean of `losses`, `()`, which training lowers. Dropout happens only with `seeds` from `dropout_seeds`."""
        with training(seeds):
            return self.losses(idx, targets).mean(0).mean()  # in two turns: a long float32 sum loses digits


def dropout_seeds(config: GPTConfig, seed: int, step: int) -> np.ndarray:
    """A random 32-bit number for each place that has dropout: the embeddings, then three places in each block."""
    numbers = np.random.default_rng((seed, 1, step)).integers(0, 2**32, 3 * config.n_layer + 1, dtype=np.uint32)
    return np.roll(numbers, 1)  # the last goes to the embeddings: older runs keep their masks


# ---- from files, and to text ----


def build(checkpoint: Checkpoint, dropout: float = 0.0) -> GPT:
    """The model of a checkpoint. Raises UserError naming the tensors that don't fit, and what both shapes are."""
    model: GPT = checkpoint.empty_model(dropout)
    copy_into(get_state_dict(model), checkpoint.tensors, str(checkpoint.path))
    return model


def load(path: Path | str) -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a run folder, of a Hugging Face folder or of an llm.c file; `gpt2` is fetched.
    Raises UserError when there is no model, or one without a tokenizer.
    """
    adapted = Run.holds_one(path) and Run(path).config()["options"].get("lora_rank")
    checkpoint = read_adapted_run(Run(path), "best") if adapted else find_checkpoint(str(path))
    return build(checkpoint), checkpoint.known_tokenizer()


def generate(model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 200, temperature: float = 0.8,
             seed: int = 1337) -> str:
    """The prompt and how it goes on: read the newest T tokens, draw the next one, append it, repeat.
    generate.py does the same, faster, because it doesn't read the whole text again for each token. Its random numbers
    are other ones, so that it draws other tokens.
    """
    ids, T = tokenizer.encode(prompt), model.config.block_size
    require_tokens(np.array([ids], np.int64), model.config.vocab_size, len(ids))
    rng, forward = np.random.default_rng(seed), jit(model)
    for _ in range(max_new_tokens):
        window = ids[-T:]
        padded = np.array([window + [0] * (T - len(window))], np.int32)  # (1, T); no token looks at the zeros after it
        logits = forward(Tensor(padded).realize()).numpy()[0, len(window) - 1, : tokenizer.vocab_size]  # (V,)
        p = np.exp((logits - logits.max()) / max(temperature, 1e-6))
        ids.append(int(rng.choice(len(p), p=p / p.sum())))
    return tokenizer.decode(ids)


if __name__ == "__main__":
    from commands.gpt import main

    run_main(main)
