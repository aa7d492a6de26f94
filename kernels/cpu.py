"""The operations of the lessons as C kernels for the CPU, each with its gradient.

tinygrad compiles every kernel by itself and well, but for one thing: on a CPU its matmul reaches 27 to 45 GFLOPS (two
cores, Zen 5), the one in gemm.c 170 to 210 on each core, because it copies a panel of B into L1 and keeps a tile of C
in registers (Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). What is left then is
traffic and the number of kernels: so each operation is one kernel forward and one or two backward.

Each function has the name and the arguments of a formula in gpt.py, trainer.py or generate.py and returns None for
tensors that it doesn't take; the formula runs then. The kernels know float32 alone. To see how one works from end to
end, read `gelu` here, gelu.c, and `cpu_kernel` in graph.py: the others differ in nothing but what they compute.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinygrad import Device, Tensor, dtypes
from tinygrad.helpers import JIT
from tinygrad.uop.ops import Ops, UOp

from kernels.graph import cpu_cores, cpu_kernel, known_shape, laid_out, matrix, not_captured, tested_version
from kernels.random_bits import next_seed
from kernels.shapes import as_wide, looks_up, multiplies, splits
from runtime.device import switched_on

LONGEST = 8192  # tokens: their scores for 64 queries are 2 MB, three times, on a thread's stack of 8 MB
ROWS = 64  # queries at a time, as in attention.c
STACK = 1_500_000  # floats of scratch at most, 6 of the 8 MB


def takes(*tensors: Tensor | None) -> bool:
    """Whether these tensors can go through a kernel: on the CPU, of known shape, and the kernels can be built."""
    for t in tensors:
        if t is not None and not (
            isinstance(t.device, str)
            and t.device.split(":")[0] == "CPU"
            and t.dtype in (dtypes.float32, dtypes.int32, dtypes.uint32)
            and known_shape(t)
        ):
            return False
    return not problem()


@functools.cache
def problem() -> str:
    """Why the kernels can't be built here; nothing if they can. Tried once: a small matmul is compiled and compared."""
    reason = tested_version()
    if not switched_on("KERNELS"):
        reason = "KERNELS=0 is set"
    elif not reason and type(Device["CPU"].renderer).__name__ != "ClangJITRenderer":
        reason = "the CPU's kernels aren't compiled from C"
    elif not reason:
        try:
            with not_captured():
                x = Tensor([[1.0, 2.0], [3.0, 4.0]], device="CPU").realize()
                product = _linear(x, x, None, transposed=True).realize().uop.base.buffer
            if product.numpy().tolist() != [5.0, 11.0, 11.0, 25.0]:  # type: ignore[union-attr]
                reason = "a matmul came out wrong"
        except Exception as error:  # whatever the compiler or the loader has against them, the formulas still work
            reason = str(error).split("\n")[0]
    return reason


@dataclass(frozen=True, eq=False)
class Words:
    """A matrix of bfloat16 or int8, packed as exchange/model.c describes; it stands where a weight does."""

    words: Tensor  # (blocks, lines, 16), 32-bit
    dtype: str
    shape: tuple[int, int]  # of the weight that it replaces
    transposed: bool  # that weight is (out, in), like an embedding table
    memory: object = None  # what has to stay as long as the words are used
    device: None = None  # no other kernel takes it


WORDS = ("float32", "bfloat16", "int8")


def new(shape: Any, like: Tensor) -> Tensor:
    """Memory for an output."""
    return Tensor.empty(*shape, device=like.device, dtype=dtypes.float32)


# ---- GELU ----


def gelu(x: Tensor) -> Tensor | None:
    if not takes(x):
        return None
    if _fusion and (line := _fusion.lines.get(x.uop)) and not line.gelu and line.add is None:
        return _fusion.emit(replace(line, gelu=True))
    x, n = laid_out(x), int(x.numel())

    def backward(g: Tensor) -> dict[str, Tensor]:
        dx = {"D": new(x.shape, x)}
        return {"X": cpu_kernel("gelu.c", "gelu_dx", dx, {"X": x, "G": g}, flops=20 * n, n=n)[0]}

    return cpu_kernel("gelu.c", "gelu", {"Y": new(x.shape, x)}, {"X": x}, backward, flops=15 * n, n=n)[0]


# ---- y = x w + bias ----


def linear(
    x: Tensor, w: Tensor | Words, bias: Tensor | None = None, transposed: bool = False
) -> Tensor | None:
    if not takes(x, None if isinstance(w, Words) else w, bias) or not multiplies(x, w, bias, transposed):
        return None
    if isinstance(w, Words) and not _fusion:
        return emit_line(Line(x, w, bias, transposed, Norm()))
    if _fusion:
        norm = _fusion.norms.get(x.uop)
        return _fusion.emit(Line(norm[0] if norm else x, w, bias, transposed, norm[1] if norm else Norm()))
    assert isinstance(w, Tensor)
    return _linear(x, w, bias, transposed)


def _linear(x: Tensor, w: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    x, w = laid_out(x), laid_out(w)
    (m, k), n = matrix(x), int(w.shape[0 if transposed else 1])

    def backward(g: Tensor) -> dict[str, Tensor]:  # g is (..., n)
        dx = _linear(g, w, None, not transposed)
        if transposed:  # (n, m) @ (m, k)
            return {"X": dx, "W": _linear_dw(g, x, False)[0]}
        return {"X": dx} | dict(zip(("W", "bias"), _linear_dw(x, g, bias is not None)))

    ins = {"X": x, "W": w, "bias": None if bias is None else laid_out(bias)}
    y, flops = {"Y": new((*x.shape[:-1], n), x)}, 2 * m * n * k
    rb, cb = (1, k) if transposed else (n, 1)
    return cpu_kernel("linear.c", "linear", y, ins, backward, flops=flops, m=m, n=n, k=k, rb=rb, cb=cb)[0]


def _linear_dw(x: Tensor, g: Tensor, bias: bool) -> list[Tensor]:
    """Gradients of w `(K, N)` and, if there is one, the bias `(N,)`, for x `(..., K)` and y's gradient `(..., N)`."""
    (m, k), (_, n) = matrix(x), matrix(g)
    outs = {"dW": new((k, n), x)} | ({"db": new((n,), x)} if bias else {})
    ins = {"X": x, "G": g} | ({} if bias else {"db": None})
    return cpu_kernel("linear.c", "linear_dw", outs, ins, flops=2 * m * n * k, m=m, n=n, k=k)


# ---- LayerNorm ----


def layernorm(x: Tensor, w: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor | None:
    return _norm(x, w, bias, eps, False) if takes(x, w, bias) and as_wide(x, w, bias) else None


def rmsnorm(x: Tensor, w: Tensor, eps: float = 1e-5) -> Tensor | None:
    return _norm(x, w, None, eps, True) if takes(x, w) and as_wide(x, w) else None


def _norm(x: Tensor, w: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    given, x, w = x, laid_out(x), laid_out(w)
    m, n = matrix(x)

    def backward(g: Tensor) -> dict[str, Tensor]:
        numbers: dict[str, Any] = {"m": m, "n": n}
        outs = {"dw": new((n,), x)} | ({} if bias is None else {"db": new((n,), x)})
        ins: dict[str, Tensor | None] = {"X": x, "S": stats, "w": w, "G": g}
        dx = cpu_kernel("layernorm.c", "layernorm_dx", {"D": new(x.shape, x)}, ins, flops=12 * m * n, rms=int(rms),
                        **numbers)
        ins = {"X": x, "S": stats, "G": g} | ({"db": None} if bias is None else {})
        dw = cpu_kernel("layernorm.c", "layernorm_dw", outs, ins, flops=5 * m * n, **numbers)
        return {"X": dx[0]} | dict(zip(("w", "b"), dw))

    ins = {"X": x, "w": w, "b": None if bias is None else laid_out(bias)}
    outs = {"Y": new(x.shape, x), "S": new((m, 2), x)}
    y, stats = cpu_kernel("layernorm.c", "layernorm", outs, ins, backward, flops=8 * m * n, rms=int(rms), m=m, n=n,
                          eps=eps)
    if _fusion and x.numel() <= 1 << 18:  # each core normalises all of it, on its stack
        _fusion.norms[y.uop] = given, Norm(w, bias, eps, rms)
    return y


# ---- attention ----


def attention(qkv: Tensor, n_head: int, p: float = 0.0) -> Tensor | None:
    return grouped_attention(qkv, n_head, p)


def document_attention(
    qkv: Tensor, first: Tensor, n_head: int, p: float = 0.0, n_kv_head: int = 0, window: int = 0
) -> Tensor | None:
    return grouped_attention(qkv, n_head, p, n_kv_head, window, first)


def grouped_attention(
    qkv: Tensor, n_head: int, p: float = 0.0, n_kv_head: int = 0, window: int = 0, first: Tensor | None = None
) -> Tensor | None:
    nk = n_kv_head or n_head
    if not takes(qkv, first) or not splits(qkv, n_head, nk) or qkv.shape[1] > LONGEST:
        return None
    seed = next_seed() if p else None
    B, T, hs = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // (n_head + 2 * nk)
    qkv = laid_out(qkv)
    ins = {"X": qkv, **{key: None if t is None else laid_out(t) for key, t in (("seed", seed), ("first", first))}}
    flops = 2 * B * T * T * n_head * hs  # half of 4 B T^2 C, as the mask halves it
    numbers: dict[str, Any] = {"B": B, "T": T, "hs": hs, "nh": n_head, "nk": nk, "window": window, "scale": hs**-0.5,
                               "threshold": int(p * 2**32), "keep": 1 / (1 - p)}

    def backward(g: Tensor) -> dict[str, Tensor]:
        scratch = {"S": ROWS * T, "E": (1 if seed is None else 2) * ROWS * T}
        return {"X": cpu_kernel("attention.c", "attention_dx", {"D": new(qkv.shape, qkv)}, {**ins, "G": g},
                                scratch=scratch, flops=flops * 5 // 2, **numbers)[0]}

    y = {"Y": new((B, T, n_head * hs), qkv)}
    return cpu_kernel("attention.c", "attention", y, ins, backward, {"S": ROWS * T}, flops=flops, **numbers)[0]


flash_attention = grouped_attention  # the kernel never writes the T x T weights either


# ---- what variants.py adds: queries and keys turned or normalised, other MLPs ----


def rotate(qkv: Tensor, turns: Tensor, heads: int) -> Tensor | None:
    hs, (m, W) = int(turns.shape[-1]), matrix(qkv)
    known = turns.shape[0] >= qkv.shape[1] if turns.ndim == 2 else turns.shape[:-1] == qkv.shape[:2]
    if not takes(qkv, turns) or not known or hs % 2 or heads * hs > W:
        return None
    qkv, turns = laid_out(qkv), laid_out(turns)
    rows = int(qkv.shape[1] if turns.ndim == 2 else turns.numel() // hs)  # for each position, or each of every text
    numbers: dict[str, Any] = {"m": m, "W": W, "n": heads, "hs": hs, "rows": rows}

    def backward(g: Tensor) -> dict[str, Tensor]:
        d = {"Y": new(qkv.shape, qkv)}
        return {"X": cpu_kernel("variants.c", "rotate", d, {"X": g, "P": turns}, flops=8 * m * W, sign=-1.0,
                                **numbers)[0]}

    y = {"Y": new(qkv.shape, qkv)}
    return cpu_kernel("variants.c", "rotate", y, {"X": qkv, "P": turns}, backward, flops=8 * m * W, sign=1.0,
                      **numbers)[0]


def normalise_heads(qkv: Tensor, heads: int, hs: int, eps: float = 1e-5) -> Tensor | None:
    if not takes(qkv) or heads * hs > qkv.shape[-1]:
        return None
    qkv = laid_out(qkv)
    m, W = matrix(qkv)
    numbers: dict[str, Any] = {"m": m, "W": W, "n": heads, "hs": hs, "eps": eps}

    def backward(g: Tensor) -> dict[str, Tensor]:
        d = {"D": new(qkv.shape, qkv)}
        return {"X": cpu_kernel("variants.c", "normalise_dx", d, {"X": qkv, "G": g}, flops=8 * m * W, **numbers)[0]}

    y = {"Y": new(qkv.shape, qkv)}
    return cpu_kernel("variants.c", "normalise", y, {"X": qkv}, backward, flops=8 * m * W, **numbers)[0]


def relu2(x: Tensor) -> Tensor | None:
    if not takes(x):
        return None
    x, n = laid_out(x), int(x.numel())

    def backward(g: Tensor) -> dict[str, Tensor]:
        d = {"D": new(x.shape, x)}
        return {"X": cpu_kernel("variants.c", "relu2_dx", d, {"X": x, "G": g}, flops=8 * n, n=n)[0]}

    return cpu_kernel("variants.c", "relu2", {"Y": new(x.shape, x)}, {"X": x}, backward, flops=8 * n, n=n)[0]


def swiglu(x: Tensor) -> Tensor | None:
    if not takes(x) or x.shape[-1] % 2:
        return None
    x, (m, two) = laid_out(x), matrix(x)
    numbers: dict[str, Any] = {"m": m, "n": two // 2}

    def backward(g: Tensor) -> dict[str, Tensor]:
        d = {"D": new(x.shape, x)}
        return {"X": cpu_kernel("variants.c", "swiglu_dx", d, {"X": x, "G": g}, flops=20 * m * two, **numbers)[0]}

    y = {"Y": new((*x.shape[:-1], two // 2), x)}
    return cpu_kernel("variants.c", "swiglu", y, {"X": x}, backward, flops=15 * m * two, **numbers)[0]


# ---- the two ends: embedding, and the head with its loss ----


def embed(table: Tensor | Words, idx: Tensor, positions: Tensor | None = None) -> Tensor | None:
    if not takes(None if isinstance(table, Words) else table, idx, positions) or not looks_up(table, idx, positions):
        return None
    if isinstance(table, Words):
        return _embed_words(table, laid_out(idx), positions)
    (V, C), (_, T), n = matrix(table), matrix(idx), int(idx.numel())
    idx = laid_out(idx)
    numbers: dict[str, Any] = {"m": n, "T": T, "c": C, "v": V}
    rows = 0 if positions is None else int(positions.shape[0])

    def backward(g: Tensor) -> dict[str, Tensor]:
        outs = {"dW": new((V, C), g)} | ({} if positions is None else {"dP": new((rows, C), g)})
        ins = {"idx": idx, "G": g} | ({"dP": None} if positions is None else {})
        grads = cpu_kernel("embed.c", "embed_dw", outs, ins, flops=V * C + 2 * n * C, rows=rows, **numbers)
        return dict(zip(("W", "P"), grads))

    ins = {"W": laid_out(table), "P": None if positions is None else laid_out(positions), "idx": idx}
    y = {"Y": new((*idx.shape, C), table)}
    return cpu_kernel("embed.c", "embed", y, ins, backward, flops=2 * n * C, **numbers)[0]


def _embed_words(table: Words, idx: Tensor, positions: Tensor | None) -> Tensor:
    (V, C), (_, T), n = table.shape, matrix(idx), int(idx.numel())
    ins = {"W": table.words, "P": None if positions is None else laid_out(positions), "idx": idx}
    y = {"Y": Tensor.empty(*idx.shape, C, device=idx.device)}
    return cpu_kernel("words.c", "words_embed", y, ins, flops=2 * n * C, dtype=WORDS.index(table.dtype), m=n, T=T, c=C,
                      v=V)[0]


def head_loss(x: Tensor, table: Tensor, targets: Tensor) -> Tensor | None:
    """It never holds more than a tile of the logits: of 3,072 tokens and GPT-2's vocabulary they would be 617 MB, once
    forward and once backward."""
    if isinstance(table, Words) or not takes(x, table, targets) or not multiplies(x, table, None, True):
        return None  # with a table of words the formula runs, whose head is a `linear`
    if targets.shape != x.shape[:-1]:
        return None
    x, table, targets = laid_out(x), laid_out(table), laid_out(targets)
    (m, C), (V, _) = matrix(x), matrix(table)
    ins = {"X": x, "W": table, "Y": targets}
    numbers: dict[str, Any] = {"m": m, "c": C, "v": V}

    def backward(g: Tensor) -> dict[str, Tensor]:
        outs = {"dX": new((cpu_cores(6 * m * C * V), *x.shape), x), "dW": new((V, C), x)}
        dx, dw = cpu_kernel("head.c", "head_loss_dx", outs, {**ins, "Z": lse, "G": g}, flops=6 * m * C * V, **numbers)
        return {"X": dx.sum(0), "W": dw}

    outs = {"L": new(x.shape[:-1], x), "Z": new((m,), x)}
    loss, lse = cpu_kernel("head.c", "head_loss", outs, ins, backward, flops=2 * m * C * V, **numbers)
    return loss


# ---- AdamW and Muon ----


def squares(tensors: list[Tensor]) -> Tensor:
    """The sum of the squares of all tensors together in some pieces, one for each core."""
    sizes = [int(t.numel()) for t in tensors]
    sums, flops = {"sums": new((cpu_cores(2 * sum(sizes)),), tensors[0])}, 2 * sum(sizes)
    return cpu_kernel("adamw.c", "squares", sums, {"g": tensors}, flops=flops, n=sizes, count=len(sizes))[0]


def total_norm(grads: Mapping[str, Tensor]) -> Tensor | None:
    return squares([laid_out(g) for g in grads.values()]).sum().sqrt() if takes(*grads.values()) else None


def adamw(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], m: Mapping[str, Tensor], v: Mapping[str, Tensor],
    hyper: Tensor, decay: Mapping[str, float], betas: tuple[float, float], eps: float, clip: float,
) -> Tensor | None:
    if not takes(hyper, *params.values(), *grads.values()):
        return None
    sizes = [int(p.numel()) for p in params.values()]
    count, total = len(sizes), sum(sizes)
    g = [grads[k] for k in params]
    sums = {"sums": squares(g)}
    parts = int(sums["sums"].shape[0])
    outs = {"norm": new((1,), hyper)} | {key: [t[k] for k in params] for key, t in (("p", params), ("m", m), ("v", v))}
    done = cpu_kernel(
        "adamw.c", "adamw", outs, {"hyper": hyper, **sums, "g": g}, flops=15 * total, n=sizes,
        decay=[decay[k] for k in params], count=count, parts=parts, beta1=betas[0], beta2=betas[1], eps=eps, clip=clip,
    )
    Tensor.realize(*done)
    return done[0].reshape(())


def muon(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], m: Mapping[str, Tensor], hyper: Tensor, beta: float,
    decay: float,
) -> bool | None:
    sides = [sorted(map(int, p.shape)) for p in params.values()]
    room = max((a * b + 4 * a * a for a, b in sides), default=0)
    if not params or not takes(hyper, *params.values(), *grads.values()) or room > STACK:
        return None
    outs = {"p": list(params.values()), "v": [m[k] for k in params]}
    done = cpu_kernel(
        "muon.c", "muon", outs, {"hyper": hyper, "g": [grads[k] for k in params]}, scratch={"S": room},
        flops=sum(a * a * (17 * a + 3 * b) for a, b in sides), r=[int(p.shape[0]) for p in params.values()],
        c=[int(p.shape[1]) for p in params.values()], count=len(sides), beta=beta, decay=decay,
    )
    Tensor.realize(*done)
    return True


# ---- generation: one position at a time, with the keys and values of those before it kept ----


def remember(qkv: Tensor, keys: Tensor, values: Tensor, first: Tensor) -> bool | None:
    if not takes(qkv, keys, values, first):
        return None
    (B, nk, N, hs), (T, W) = (int(n) for n in keys.shape), (int(n) for n in qkv.shape[1:])
    outs, ins = {"K": keys, "V": values}, {"X": laid_out(qkv), "first": first}
    numbers: dict[str, Any] = {"B": B, "T": T, "hs": hs, "nh": W // hs - 2 * nk, "nk": nk, "N": N}
    Tensor.realize(*cpu_kernel("generate.c", "remember", outs, ins, flops=2 * B * T * W, **numbers))
    return True


def attend(qkv: Tensor, keys: Tensor, values: Tensor, first: Tensor, now: UOp, window: int = 0) -> Tensor | None:
    if not takes(qkv, keys, values, first) or not JIT:  # without it variables don't reach a kernel of ours
        return None
    B, nk, N, hs = (int(n) for n in keys.shape)
    nh = int(qkv.shape[-1]) // hs - 2 * nk
    outs = {"Y": new((*qkv.shape[:-1], nh * hs), qkv), "K": keys, "V": values}
    ins = {"X": laid_out(qkv), "first": first}
    numbers: dict[str, Any] = {"B": B, "hs": hs, "nh": nh, "nk": nk, "N": N, "window": window, "scale": hs**-0.5}
    return cpu_kernel("generate.c", "attend", outs, ins, flops=4 * B * N * nh * hs, now=now.unbind()[0], **numbers)[0]


# A step of generation has a row for each text, and no time for more than one kernel that reads a matrix once. So while
# `fused` is active, a `linear` takes in what stands around it in the graph: the LayerNorm before it, the GELU after it,
# and the sum with the residual stream. The model needs no second form for that: a kernel that another one has taken in
# is read by nobody and never runs.


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm or RMSNorm; without a weight, none."""

    w: Tensor | None = None
    b: Tensor | None = None
    eps: float = 1e-5
    rms: bool = False


@dataclass(frozen=True, eq=False)
class Line:
    """y = gelu(norm(x) w + bias) + add, as much of it as there is."""

    x: Tensor
    w: Tensor | Words
    bias: Tensor | None
    transposed: bool
    norm: Norm
    gelu: bool = False
    add: Tensor | None = None


def emit_line(line: Line) -> Tensor:
    """The kernel of a line."""
    x, n = laid_out(line.x), int(line.w.shape[0 if line.transposed else 1])
    m, k = matrix(x)
    optional = {"w": line.norm.w, "b": line.norm.b, "bias": line.bias, "R": line.add}
    ins = {"X": x, **{key: None if t is None else laid_out(t) for key, t in optional.items()}}
    y = {"Y": new((*x.shape[:-1], n), x)}
    numbers: dict[str, Any] = {"act": int(line.gelu), "rms": int(line.norm.rms), "eps": line.norm.eps, "m": m, "n": n,
                               "k": k}
    if isinstance(line.w, Words):
        dtype = WORDS.index(line.w.dtype)
        return cpu_kernel("words.c", "words_step", y, {**ins, "W": line.w.words}, flops=2 * m * n * k, dtype=dtype,
                          **numbers)[0]
    rb, cb = (1, k) if line.transposed else (n, 1)
    return cpu_kernel("generate.c", "step", y, {**ins, "W": laid_out(line.w)}, flops=2 * m * n * k, rb=rb, cb=cb,
                      **numbers)[0]


class Fusion:
    def __init__(self) -> None:
        self.norms: dict[UOp, tuple[Tensor, Norm]] = {}  # a norm's output: its x, and what it is
        self.lines: dict[UOp, Line] = {}  # by its output

    def emit(self, line: Line) -> Tensor:
        """The kernel of a line, which others may extend."""
        out = emit_line(line)
        self.lines[out.uop] = line
        return out

    def residual(self, x: Tensor) -> Tensor | None:
        """x as one kernel, where it is the sum of a line's output and something else."""
        if x.uop.op is Ops.ADD:
            for this, other in (x.uop.src, x.uop.src[::-1]):
                line = self.lines.get(this)
                if line and line.add is None and other.shape == this.shape:
                    return self.emit(replace(line, add=Tensor(other)))
        return None


_fusion: Fusion | None = None


class fused:  # noqa: N801  (used like a function)
    """While this is active there are no gradients, and a matmul takes in the operations around it."""

    def __enter__(self) -> None:
        global _fusion
        _fusion = Fusion()

    def __exit__(self, *error: Any) -> None:
        global _fusion
        _fusion = None


def residual(x: Tensor) -> Tensor | None:
    """A kernel that computes the sum x, while `fused` is active and there is one."""
    return _fusion.residual(x) if _fusion else None
