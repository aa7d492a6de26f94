"""What came after GPT-2: other positions, norms, MLPs and attentions, each a few lines on top of gpt.py.

    python gpt.py --pos rope --norm rmsnorm     train with some of them; --preset llama has those of Llama
    python gpt.py compare                       what each is worth, at the same budget

Read gpt.py first. Everything here is a choice in VariantConfig, and a flag of `python gpt.py` of the same name. The
names of the tensors stay those of GPT-2, so that the cache, adapters and checkpoints need not know what was chosen.

Shapes as in gpt.py: B texts of T tokens, C channels, nh heads of hs = C / nh channels. Of keys and values there may be
fewer heads, nk. W = C + 2 nk hs is a position's queries, keys and values side by side, H the width of an MLP.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes

from exchange.layout import inner_width, model_for, shapes
from gpt import GPT, MLP, Embedding, GPTConfig, LayerNorm, Linear, Random, dropout, embed, gelu, softmax
from kernels import constant, edge, fast, with_gradient
from runtime.errors import UserError

# ---- norms ----


@fast
def rmsnorm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Each row of x `(..., C)` divided by the root of its mean square, times weight. Zhang & Sennrich, 1910.07467.

    LayerNorm without the mean: the direction that subtracting it takes away is one of C, and nothing is lost with it.
    """
    z = x.float()
    return (z / (z.square().mean(-1, keepdim=True) + eps).sqrt() * weight).cast(x.dtype)


@fast
def normalise_heads(qkv: Tensor, heads: int, hs: int, eps: float = 1e-5) -> Tensor:
    """The first `heads` heads of qkv `(B, T, W)`, all queries and keys, each divided by the root of its mean square.

    A score q k is then a cosine times hs, and can't grow without bound. Henry et al., arXiv:2010.04245.
    """
    n = heads * hs
    z = qkv[..., :n].reshape(*qkv.shape[:-1], heads, hs).float()
    z = z / (z.square().mean(-1, keepdim=True) + eps).sqrt()
    return z.reshape(*qkv.shape[:-1], n).cast(qkv.dtype).cat(qkv[..., n:], dim=-1)


# ---- positions ----


def angles(T: int, n: int, base: float) -> np.ndarray:
    """The angle of n frequencies at each of T positions, `(T, n)`: the first turns by 1 a position, the last by
    nearly 1 / base. Vaswani et al., arXiv:1706.03762, section 3.5."""
    return np.arange(T)[:, None] / base ** (np.arange(n) / n)


def waves(T: int, C: int) -> np.ndarray:
    """Positions as sines and cosines, `(T, C)`; as large as GPT-2's first embeddings, to which they are added."""
    a = angles(T, C // 2, 10000.0)
    return np.concatenate([np.sin(a), np.cos(a)], axis=1) * 0.02


def turns(T: int, hs: int, base: float) -> np.ndarray:
    """Cosines, then sines, of the angles by which `rotate` turns hs / 2 pairs of channels: `(T, hs)`."""
    a = angles(T, hs // 2, base)
    return np.concatenate([np.cos(a), np.sin(a)], axis=1)


@fast
def rotate(qkv: Tensor, turns: Tensor, heads: int) -> Tensor:
    """Turn the first `heads` heads of qkv `(B, T, W)`, all queries and keys, by angles that grow with the position.

    Channels j and j + hs/2 are a point in a plane. A query turned by m and a key turned by n have the score of a query
    turned by m - n alone: attention sees distances. `turns` is `(T, hs)` or more rows, or `(B, T, hs)` where texts are
    at positions of their own. RoPE, Su et al., arXiv:2104.09864; the pairs are those of Llama's checkpoints.
    """
    *BT, hs = *qkv.shape[:-1], int(turns.shape[-1])
    n = heads * hs
    turns = turns if turns.ndim == 3 else turns[: qkv.shape[-2]]
    cos, sin = turns[..., : hs // 2].unsqueeze(-2), turns[..., hs // 2 :].unsqueeze(-2)  # (T, 1, hs/2) each
    x = qkv[..., :n].reshape(*BT, heads, 2, hs // 2).float()
    a, b = x[..., 0, :], x[..., 1, :]  # (B, T, heads, hs/2) each
    turned = (a * cos - b * sin).unsqueeze(-2).cat((b * cos + a * sin).unsqueeze(-2), dim=-2)
    return turned.reshape(*BT, n).cast(qkv.dtype).cat(qkv[..., n:], dim=-1)


# ---- attention ----


def split_heads(qkv: Tensor, n_head: int, n_kv_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(B, nh, T, hs)` of qkv `(B, T, W)`; each key and value is there nh / nk times."""
    nk = n_kv_head or n_head
    B, T, hs = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // (n_head + 2 * nk)
    heads = qkv.reshape(B, T, n_head + 2 * nk, hs).transpose(1, 2)  # (B, nh + 2 nk, T, hs)
    q, k, v = heads[:, :n_head], heads[:, n_head : n_head + nk], heads[:, n_head + nk :]
    shared = lambda x: x.unsqueeze(2).expand(B, nk, n_head // nk, T, hs).reshape(B, n_head, T, hs)
    return edge(q), edge(shared(k)), edge(shared(v))


def visible(rows: int, columns: int, window: int, device: Any) -> Tensor:
    """Which of `columns` positions each of the `rows` positions from the same one on sees: itself and what came before
    it, with a window only the newest of them."""
    apart = Tensor.arange(rows, device=device).reshape(-1, 1) - Tensor.arange(columns, device=device)  # (rows, columns)
    return (apart >= 0) & (apart < window) if window else apart >= 0


@fast
def grouped_attention(qkv: Tensor, n_head: int, p: float = 0.0, n_kv_head: int = 0, window: int = 0) -> Tensor:
    """gpt.attention of qkv `(B, T, W)` with nk heads of keys and values, looking back `window` positions (0: all).

    nh / nk queries share a key, so the cache is that much smaller: one for all is multi-query attention (Shazeer,
    arXiv:1911.02150), some are grouped-query attention (Ainslie et al., arXiv:2305.13245). The window is Mistral's
    (arXiv:2310.06825): L layers still look back L windows.
    """
    q, k, v = split_heads(qkv, n_head, n_kv_head)
    B, nh, T, hs = (int(n) for n in q.shape)
    scores = edge(q.matmul(k.transpose(-2, -1), dtype=dtypes.float32) * hs**-0.5)  # (B, nh, T, T)
    weights = softmax(visible(T, T, window, qkv.device).where(scores, -1e30))
    y = edge(dropout(weights, p).cast(v.dtype) @ v)  # (B, nh, T, hs)
    return y.transpose(1, 2).reshape(B, T, nh * hs)


BLOCK = 128  # keys that flash_attention looks at together


def after(x: Tensor, *others: Tensor) -> Tensor:
    """x, but not before these others: tinygrad runs what is ready in any order, and would hold all blocks at once.

    What is added is 0, but only a kernel that has the others knows it.
    """
    for other in others:
        x = x + other[:1, :1, :1, :1].square().minimum(0).cast(x.dtype)
    return x


@fast
def flash_attention(qkv: Tensor, n_head: int, p: float = 0.0, n_kv_head: int = 0, window: int = 0) -> Tensor:
    """The same numbers as grouped_attention without ever holding the T x T weights. Dao et al., arXiv:2205.14135.

    Keys come in blocks. Of the softmax so far a query needs the largest score and the sum of e^(score - largest) alone:
    when a block brings a larger score, what was summed up shrinks by e^(old largest - new largest). The way back
    computes the weights of each block again, from log sum e^score. p is 0 here: no weights are dropped.
    """
    q, k, v = split_heads(qkv, n_head, n_kv_head)
    B, nh, T, hs = (int(n) for n in q.shape)
    starts, scale = range(0, T, BLOCK), hs**-0.5

    def scores(q: Tensor, kj: Tensor, at: int) -> Tensor:
        """Of the queries from the key at `at` on, for the block of keys that begins there: `(B, nh, T - at, BLOCK)`."""
        s = q[:, :, at:].matmul(kj.transpose(-2, -1), dtype=dtypes.float32) * scale
        return visible(int(s.shape[2]), int(s.shape[3]), window, q.device).where(s, -1e30)

    def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """y `(B, nh, T, hs)` and log sum e^score `(B, nh, T, 1)`."""
        ys: list[Tensor] = []
        logs: list[Tensor] = []
        y, total, top = (Tensor.full((B, nh, T, n), x, device=q.device) for n, x in ((hs, 0.0), (1, 0.0), (1, -1e30)))
        for at in starts:
            s = scores(q, after(k[:, :, at : at + BLOCK], *ys[-1:]), at).contiguous()
            new = top.maximum(s.max(-1, keepdim=True)).contiguous()
            e, shrink = (s - new).exp().contiguous(), (top - new).exp()
            y = (y * shrink + (e.cast(v.dtype) @ v[:, :, at : at + BLOCK]).float()).contiguous()
            total, top = (total * shrink + e.sum(-1, keepdim=True)).contiguous(), new
            done = slice(0, min(BLOCK, T - at))  # these queries have seen their last key
            ys.append((y[:, :, done] / total[:, :, done]).contiguous())
            logs.append(top[:, :, done] + total[:, :, done].log())
            y, total, top = (x[:, :, BLOCK:] for x in (y, total, top))
        return Tensor.cat(*ys, dim=2), Tensor.cat(*logs, dim=2)

    def backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, log_sum: Tensor) -> tuple[Tensor, ...]:
        """Gradients of q, k and v for that of y, `(B, nh, T, hs)` each."""
        mean = (g * y).sum(-1, keepdim=True).contiguous()  # (B, nh, T, 1): of the weights' gradients, by the weights
        dqs: list[Tensor] = []
        dks: list[Tensor] = []
        dvs: list[Tensor] = []
        dq = Tensor.zeros(B, nh, T, hs, device=q.device)
        for at in starts:
            kj, vj, gi, block = k[:, :, at : at + BLOCK], v[:, :, at : at + BLOCK], g[:, :, at:], slice(at, None)
            kj, vj = (after(x, *dvs[-1:], *dks[-1:], *dqs[-1:]) for x in (kj, vj))
            w = (scores(q, kj, at) - log_sum[:, :, block]).exp().contiguous()  # (B, nh, T - at, BLOCK)
            ds = (w * (gi @ vj.transpose(-2, -1).float() - mean[:, :, block]) * scale).contiguous()
            dvs.append((w.transpose(-2, -1) @ gi).contiguous())
            dks.append((ds.transpose(-2, -1) @ q[:, :, block].float()).contiguous())
            dq = (dq + ds @ kj.float()).contiguous()
            dqs.append(dq[:, :, :BLOCK])
            dq = dq[:, :, BLOCK:]
        return tuple(Tensor.cat(*parts, dim=2) for parts in (dqs, dks, dvs))

    y = with_gradient(forward, backward, q, k, v)
    return y.cast(qkv.dtype).transpose(1, 2).reshape(B, T, nh * hs)


# ---- MLPs ----


@fast
def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2. So et al., "Primer", arXiv:2109.08668."""
    return x.relu().square()


@fast
def swiglu(x: Tensor) -> Tensor:
    """silu(gate) up, `(..., H)`, of gate and up side by side, `(..., 2 H)`. Shazeer, arXiv:2002.05202.

    One half decides, channel by channel, how much of the other half passes.
    """
    H = int(x.shape[-1]) // 2
    gate, up = x[..., :H].float(), x[..., H:].float()
    return (gate * gate.sigmoid() * up).cast(x.dtype)


# ---- the choices, and the layers that they make ----

@dataclass(frozen=True)
class VariantConfig(GPTConfig):
    """GPT-2's configuration and what may be otherwise. The defaults are GPT-2's."""

    pos: str = "learned"  # none: only what the causal mask gives away (Haviv et al., arXiv:2203.16634)
    rope_theta: float = 10000.0  # the base of RoPE's frequencies
    n_kv_head: int = 0  # nk; 0: as many as there are heads
    qk_norm: bool = False
    window: int = 0  # 0: all of the context
    norm: str = "layernorm"
    norm_at: str = "pre"
    norm_eps: float = 1e-5
    mlp: str = "gelu"
    n_inner: int = 0  # H; 0: 4 C, or 8/3 C for SwiGLU
    tied: bool = True
    attention: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_kv_head < 0 or self.n_kv_head and self.n_head % self.n_kv_head:
            raise UserError(f"--n-head {self.n_head} can't share --n-kv-head {self.n_kv_head} keys equally")
        if min(self.window, self.n_inner) < 0 or not self.norm_eps > 0 or not 1 < self.rope_theta < math.inf:
            raise UserError("--window and --n-inner must be at least 0, --norm-eps above 0 and --rope-theta above 1")
        pairs = {"rope": self.n_embd // self.n_head, "sinusoidal": self.n_embd}.get(self.pos, 0)
        if pairs % 2:
            raise UserError(f"--pos {self.pos} turns pairs of channels, and their number is odd")
        if self.attention == "flash" and self.dropout:
            raise UserError("--attention flash drops no weights: train with --dropout 0")

    @property
    def parameters(self) -> int:
        """How many there are, by the table of shapes."""
        return sum(math.prod(shape) for shape in shapes(self).values())

    @property
    def flops_per_token(self) -> int:
        """As GPT-2's: an untied embedding is looked up and not multiplied, and attention is as wide as the window."""
        T, looked_up = self.block_size, self.pos == "learned"
        matrices = self.parameters - T * self.n_embd * looked_up - self.vocab_size * self.n_embd * (not self.tied)
        return 6 * matrices + 12 * self.n_layer * self.n_embd * (min(T, self.window) if self.window else T)


class RMSNorm:
    def __init__(self, n_embd: int, eps: float):
        self.weight, self.eps = Tensor(np.ones(n_embd, np.float32)), eps

    def __call__(self, x: Tensor) -> Tensor:
        return rmsnorm(edge(x), self.weight, self.eps)


def make_norm(c: VariantConfig) -> Any:
    return RMSNorm(c.n_embd, c.norm_eps) if c.norm == "rmsnorm" else LayerNorm(c.n_embd, c.bias)


class Attention:
    """gpt.CausalSelfAttention, with queries and keys normalised and turned before they meet."""

    def __init__(self, rng: Random, c: VariantConfig):
        C, self.config, self.hs, self.nk = c.n_embd, c, c.n_embd // c.n_head, c.n_kv_head or c.n_head
        self.c_attn = Linear(rng, C, C + 2 * self.nk * self.hs, c.bias)
        self.c_proj = Linear(rng, C, C, c.bias, std=0.02 / math.sqrt(2 * c.n_layer))
        self.operation = flash_attention if c.attention == "flash" else grouped_attention

    def __call__(self, x: Tensor) -> Tensor:
        c, heads = self.config, self.config.n_head + self.nk  # of queries and of keys
        qkv = self.c_attn(x)  # (B, T, C) -> (B, T, W)
        if c.qk_norm:
            qkv = normalise_heads(qkv, heads, self.hs, c.norm_eps)
        if c.pos == "rope":
            qkv = rotate(qkv, constant(turns, c.block_size, self.hs, c.rope_theta, like=x), heads)
        y = self.operation(qkv, c.n_head, c.dropout, self.nk, c.window)  # (B, T, C)
        return dropout(self.c_proj(y), c.dropout)


class VariantMLP(MLP):
    def __init__(self, rng: Random, c: VariantConfig):
        self.p, H = c.dropout, inner_width(c)
        self.act = {"gelu": gelu, "relu2": relu2, "swiglu": swiglu}[c.mlp]
        self.c_fc = Linear(rng, c.n_embd, 2 * H if c.mlp == "swiglu" else H, c.bias)
        self.c_proj = Linear(rng, H, c.n_embd, c.bias, std=0.02 / math.sqrt(2 * c.n_layer))

    def __call__(self, x: Tensor) -> Tensor:
        return dropout(self.c_proj(self.act(self.c_fc(x))), self.p)


class VariantBlock:
    def __init__(self, rng: Random, c: VariantConfig):
        self.ln_1, self.attn = make_norm(c), Attention(rng, c)
        self.ln_2, self.mlp = make_norm(c), VariantMLP(rng, c)
        self.post = c.norm_at == "post"

    def __call__(self, x: Tensor) -> Tensor:
        if self.post:  # Vaswani et al.; what comes out has passed every norm, and so has its gradient
            x = self.ln_1(x + self.attn(x))
            return self.ln_2(x + self.mlp(x))
        x = x + self.attn(self.ln_1(x))  # GPT-2; the sum itself is never normalised (Xiong et al., arXiv:2002.04745)
        return x + self.mlp(self.ln_2(x))


@model_for(VariantConfig)
class Variant(GPT):
    """A GPT of other parts, which are made in GPT-2's order."""

    config: VariantConfig

    def __init__(self, config: VariantConfig, seed: int | None = 1337):
        rng, c = None if seed is None else np.random.default_rng(seed), config
        self.config, self.dtype = c, "float32"
        self.wte = Embedding(rng, c.vocab_size, c.n_embd)
        if c.pos == "learned":
            self.wpe = Embedding(rng, c.block_size, c.n_embd)
        self.h = [VariantBlock(rng, c) for _ in range(c.n_layer)]  # type: ignore[misc]
        self.ln_f: Any = make_norm(c) if c.norm_at == "pre" else lambda x: x  # post-norm has left nothing to do
        if not c.tied:
            self.lm_head = Embedding(rng, c.vocab_size, c.n_embd)  # (V, C), as wte

    @property
    def head_weight(self) -> Tensor:
        return self.wte.weight if self.config.tied else self.lm_head.weight

    def embed(self, idx: Tensor) -> Tensor:
        c, positions = self.config, None
        if c.pos == "learned":
            positions = self.wpe.weight
        elif c.pos == "sinusoidal":
            positions = constant(waves, c.block_size, c.n_embd, like=self.wte.weight)
        return dropout(embed(self.wte.weight, idx, positions), c.dropout).cast(self.dtype)
