"""Operations that tinygrad's scheduler has no good form for on an NVIDIA GPU, as CUDA kernels inside its graph.

Its matrix products read memory more often than matmul.cu does. It doesn't find attention that never writes the T x T
scores (Dao et al., "FlashAttention", arXiv:2205.14135, and -2, arXiv:2307.08691), an embedding's gradient that adds
rows up where it now multiplies by a matrix of zeros and ones, nor an AdamW that reads and writes everything once. And
its sums over rows, in LayerNorm and in the norm of the gradient, give a few threads long loops.

Each function has the name and the arguments of a formula of the lessons and returns None for what it doesn't take; the
formula runs then. Attention takes 16-bit numbers, and all of them a GPU from Ampere (sm_80) on.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.renderer.cstyle import CUDARenderer

from kernels.graph import cuda_kernel, in_memory, known_shape, laid_out, matrix, not_captured, tested_version
from kernels.linear import gelu as gelu
from kernels.linear import make_linear
from kernels.linear import residual as residual
from kernels.matmul import columns, kind_of
from kernels.random_bits import next_seed, random_bits
from kernels.shapes import as_wide, looks_up, multiplies, splits
from runtime.device import compute_capability, switched_on

TILE = 64  # queries or keys of a block: four warps of 16
THREADS = 128
PARTS = 1024  # of the gradient's sum of squares
ROWS = 16  # rows of the embedding table in a block of its gradient


def takes(*tensors: Tensor | None) -> bool:
    """Whether these tensors can go through the kernels: of known shape, on a GPU where the kernels work."""
    return all(
        t is None
        or isinstance(t.device, str)
        and t.device.split(":")[0] in ("CUDA", "NULL")
        and known_shape(t)
        and not problem(t.device, str(Device[t.device].renderer.target))
        for t in tensors
    )


@functools.cache
def problem(device: str, target: str) -> str:
    """Why the kernels can't be used on a device, with this compiler and architecture; nothing if they can.

    Tried once: small ones are compiled, run and compared with NumPy.
    """
    reason = tested_version()
    if not switched_on("KERNELS"):
        reason = "KERNELS=0 is set"
    elif not reason and (not isinstance(Device[device].renderer, CUDARenderer) or compute_capability(device) < 80):
        reason = f"{device} compiles no CUDA for sm_80 or later"
    elif not reason and not device.startswith("NULL"):  # which runs nothing
        try:
            with not_captured():
                reason = wrong_result(device)
        except Exception as error:  # whatever the compiler or the driver has against them, the formulas still work
            reason = str(error).split("\n")[0]
    return reason


def wrong_result(device: str) -> str:
    """What is wrong with the kernels' results on small inputs, beside NumPy's; nothing if they are right."""
    for kind, p in (("float16", 0.0), ("bfloat16", 0.3)):
        if wrong_attention(device, kind, p):
            return f"attention in {kind} came out wrong"
    if wrong_embedding(device):
        return "an embedding came out wrong"
    weight, mean, square, half = ({"": Tensor([x] * 5, device=device).realize()} for x in (1.0, 0.0, 0.0, 0.5))
    hyper = Tensor([0.1, 10.0, 20.0], device=device).realize()
    # A step of 1 and a decay of 0.5, each times 0.1.
    _adamw(weight, half, mean, square, hyper, {"": 0.5}, (0.9, 0.95), 1e-8, math.inf)
    if not np.abs(weight[""].numpy() - 0.85).max() < 1e-5:
        return "AdamW came out wrong"
    return next((wrong for kind in ("float32", "float16", "bfloat16") if (wrong := wrong_product(device, kind))), "")


def wrong_attention(device: str, kind: str, p: float) -> bool:
    """Whether a head of 70 tokens and its gradient differ from NumPy's in double precision.

    Of y = w v, w = kept softmax(s), s = q k^T / sqrt(D), the gradient for dy is dv = w^T dy and, with dw = dy v^T,
    ds = w dw - softmax(s) sum(w dw).
    """
    rng, T, D = np.random.default_rng(0), 70, 16
    x, dy = (Tensor(rng.standard_normal((1, T, n), np.float32), device=device).cast(kind).realize() for n in (3 * D, D))
    seed = Tensor(np.array([4_000_000_000], np.uint32), device=device).realize() if p else None
    y = _attention(x, 1, p, seed)
    dx = y.gradient(x, gradient=dy)[0]
    kept = np.ones((T, T))
    if seed is not None:
        kept = (random_bits(Tensor.empty(T, T, device=device), seed).numpy() >= int(p * 2**32)) / (1 - p)
    qkv, g = (t.float().numpy()[0].astype(np.float64) for t in (x, dy))
    q, k, v = np.split(qkv, 3, axis=1)
    softmax = np.tri(T) * np.exp(q @ k.T / math.sqrt(D))
    softmax /= softmax.sum(1, keepdims=True)
    w, dw = softmax * kept, g @ v.T
    ds = (w * dw - softmax * (w * dw).sum(1, keepdims=True)) / math.sqrt(D)
    wanted = (w @ v, np.concatenate([ds @ k, ds.T @ q, w.T @ g], axis=1))
    pairs = zip((y.float().numpy()[0], dx.float().numpy()[0]), wanted)
    return any(not np.abs(got - right).max() < 0.02 * np.abs(right).max() for got, right in pairs)


def wrong_embedding(device: str) -> bool:
    """Whether rows of a table of 40, or its gradient where each row's is 1, differ from NumPy's."""
    rng, T = np.random.default_rng(0), 70
    table, idx = np.eye(40, 5, dtype=np.float32), rng.integers(0, 40, (2, T)).astype(np.int32)
    weights, zeros = (Tensor(a, device=device).realize() for a in (table, np.zeros((T, 5), np.float32)))
    y = _embed(weights, Tensor(idx, device=device).realize(), zeros)
    dx = y.gradient(weights, gradient=Tensor(np.ones((2, T, 5), np.float32), device=device).realize())[0]
    counts = np.repeat(np.bincount(idx.ravel(), minlength=40)[:, None], 5, axis=1)
    return not ((y.realize().numpy() == table[idx]).all() and (dx.realize().numpy() == counts).all())


def wrong_product(device: str, kind: str) -> str:
    """What is wrong with products of whole numbers, LayerNorm and the cross-entropy; nothing if they are right."""
    rng, tensor = np.random.default_rng(0), lambda a: Tensor(a, device=device).realize()
    x, w, dy = (rng.integers(-2, 3, shape).astype(np.float16) for shape in ((70, 24), (24, 40), (70, 40)))
    bias = np.arange(40, dtype=np.float32)
    given = [tensor(x).cast(kind).realize(), tensor(w.astype(np.float32)), tensor(bias)]
    y = make_linear(given[0], given[1], given[2], False)
    assert y is not None
    got = [t.float().numpy() for t in (y, *y.gradient(*given, gradient=tensor(dy).cast(kind).realize()))]
    if not all((a == b).all() for a, b in zip(got, (x @ w + bias, dy @ w.T, x.T @ dy, dy.sum(0)))):
        return f"a product in {kind} came out wrong"
    z = x - x.mean(1, keepdims=True, dtype=np.float64)
    z /= np.sqrt((z**2).mean(1, keepdims=True) + 1e-5)
    y = _layernorm(given[0], tensor(np.ones(24, np.float32)), None, 1e-5)
    if not np.abs(y.float().numpy() - z).max() < 0.02:
        return f"LayerNorm in {kind} came out wrong"
    loss = _cross_entropy(tensor(bias[None, None]), tensor(np.full((1, 1), 38, np.int32)), 39)  # e / (1 + e), nearly
    return "" if abs(loss.item() - np.log(np.exp(bias[:39] - 38).sum())) < 1e-5 else "a cross-entropy came out wrong"


# ---- attention ----


def attention(qkv: Tensor, n_head: int, p: float = 0.0) -> Tensor | None:
    head = int(qkv.shape[2]) // 3 // n_head  # heads of 8, 16, ... or 128 channels
    if qkv.dtype not in (dtypes.half, dtypes.bfloat16) or head % 8 or head > 128:
        return None
    if not takes(qkv) or not splits(qkv, n_head, n_head):
        return None
    return _attention(qkv, n_head, p, next_seed() if p else None)


def _attention(qkv: Tensor, n_head: int, p: float, seed: Tensor | None) -> Tensor:
    B, T, C = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // 3
    D, kind = C // n_head, qkv.dtype
    new = lambda *shape, dtype=kind: Tensor.empty(*shape, device=qkv.device, dtype=dtype)
    x, seeds = laid_out(qkv), {"seed": None if seed is None else laid_out(seed)}
    tiles = -(-T // TILE)
    grid, scores = (tiles, n_head, B), B * n_head * tiles * (tiles + 1) // 2 * TILE * TILE
    one = 2 * scores * (-(-D // 16) * 16)  # FLOPs of a product of all these scores with a head's channels
    numbers: dict[str, Any] = {
        **kind_of(kind), "TILE": TILE, "T": T, "C": C, "D": D,
        "NH": n_head, "SCALE": f"{math.log2(math.e) * D**-0.5!r}f", "ROOT": f"{D**-0.5!r}f",
        "KEPT": f"{1 / (1 - p) if seed is not None else 1.0!r}f", "LIMIT": f"{int(p * 2**32)}u",
        "label": f"{'' if kind == dtypes.half else 'b'}{B}x{T}x{C}_{n_head}{'' if seed is None else '_drop'}",
    }

    def backward(g: Tensor) -> dict[str, Tensor]:
        dy = laid_out(g, kind)
        delta = (dy.float() * y.float()).reshape(B, T, n_head, D).sum(-1).contiguous()  # (B, T, nh)
        ins = {"X": x, "dY": dy, "L": lse, "delta": delta, **seeds}
        out = {"G": new(B, T, 3 * C)}
        dq = cuda_kernel("attention_dq.cu", "attention_dq", grid, out, ins, flops=3 * one + 9 * scores,
                         tensor_flops=3 * one, turns=tiles, **numbers)[0]
        # The second kernel writes the other two thirds of what the first one made.
        done = cuda_kernel("attention_dkv.cu", "attention_dkv", grid, {"G": dq}, ins, flops=4 * one + 10 * scores,
                           tensor_flops=4 * one, turns=tiles, **numbers)
        return {"X": done[0]}

    outs = {"Y": new(B, T, C), "L": new(B, n_head, T, dtype=dtypes.float32)}
    y, lse = cuda_kernel("attention.cu", "attention", grid, outs, {"X": x, **seeds}, backward,
                         flops=2 * one + 7 * scores, tensor_flops=2 * one, turns=tiles, **numbers)
    return y


# ---- products, GELU and LayerNorm ----


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor | None:
    fits = multiplies(x, weight, bias, transposed)
    return make_linear(x, weight, bias, transposed) if fits and takes(x, weight, bias) else None


def layernorm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float = 1e-5) -> Tensor | None:
    if x.dtype not in (dtypes.half, dtypes.bfloat16, dtypes.float32) or x.shape[-1] % 2:
        return None
    if not takes(x, weight, bias) or not as_wide(x, weight, bias):
        return None
    return _layernorm(x, weight, bias, eps)


def _layernorm(x: Tensor, w: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    x, w, (m, n) = laid_out(x), laid_out(w), matrix(x)
    new = lambda *shape, dtype=dtypes.float32: Tensor.empty(*shape, device=x.device, dtype=dtype)
    numbers: dict[str, Any] = {**kind_of(x.dtype), "M": m, "C": n, "EPS": f"{eps!r}f"}
    numbers["label"] = f"{x.dtype.name}_{m}x{n}"
    grid, turns, rows = (-(-m // (THREADS // 32)), 1, 1), -(-n // 64), 128

    def backward(g: Tensor) -> dict[str, Tensor | None]:
        ins, parts = {"X": x, "S": stats, "w": w, "G": laid_out(g, x.dtype)}, -(-m // rows)
        dx = cuda_kernel("layernorm_dx.cu", "layernorm_dx", grid, {"D": new(*x.shape, dtype=x.dtype)}, ins,
                         flops=12 * m * n, turns=2 * turns, **numbers)[0]
        outs = {"W": new(parts, n), "B": new(parts, n)}
        del ins["w"]
        dw, db = cuda_kernel("layernorm_dw.cu", "layernorm_dw", (-(-n // 64), parts, 1), outs, ins, flops=5 * m * n,
                             turns=rows // 4, ROWS=rows, **numbers)
        return {"X": dx, "w": columns(dw, parts), "b": None if bias is None else columns(db, parts)}

    ins = {"X": x, "w": w, "b": None if bias is None else laid_out(bias)}
    outs = {"Y": new(*x.shape, dtype=x.dtype), "S": new(m, 2)}
    y, stats = cuda_kernel("layernorm.cu", "layernorm", grid, outs, ins, backward, flops=8 * m * n, turns=3 * turns,
                           **numbers)
    return y


# ---- the two ends: embedding, and the head with its loss ----


def embed(table: Tensor, idx: Tensor, positions: Tensor | None = None) -> Tensor | None:
    """Worth it for large tables: for few tokens a matrix of zeros and ones is small."""
    if positions is None or [table.dtype, positions.dtype, idx.dtype] != [dtypes.float32, dtypes.float32, dtypes.int32]:
        return None
    if int(table.shape[0]) < 1024 or not takes(table, idx, positions) or not looks_up(table, idx, positions):
        return None
    return _embed(table, idx, positions)


def _embed(table: Tensor, idx: Tensor, positions: Tensor) -> Tensor:
    (V, C), (B, T) = (int(n) for n in table.shape), (int(n) for n in idx.shape)
    idx = laid_out(idx)
    numbers: dict[str, Any] = {"V": V, "C": C, "N": B * T, "T": T, "ROWS": ROWS, "label": f"{B * T}x{C}x{V}"}

    def backward(g: Tensor) -> dict[str, Tensor]:
        g = laid_out(g, dtypes.float32)
        out, grid = {"G": Tensor.empty(V, C, device=g.device)}, (-(-V // ROWS), 1, 1)
        dw = cuda_kernel("embed_dw.cu", "embed_dw", grid, out, {"idx": idx, "dY": g}, flops=B * T * C,
                         turns=-(-B * T // THREADS), **numbers)[0]
        return {"W": dw, "P": g.sum(0).pad(((0, int(positions.shape[0]) - T), (0, 0)))}

    ins = {"W": laid_out(table), "P": laid_out(positions), "idx": idx}
    y = {"Y": Tensor.empty(B, T, C, device=table.device)}
    return cuda_kernel("embed.cu", "embed", (B * T, 1, 1), y, ins, backward, flops=B * T * C, **numbers)[0]


def padding(table: Tensor) -> int:
    """Rows to add to a table `(V, C)` before it multiplies: on an NVIDIA GPU those to the next multiple of 128.

    Of GPT-2's 50,257 rows tinygrad makes no tiles for the tensor cores: compiled for sm_89 in bfloat16 none of the
    head's three matmuls is theirs, with 47 more rows all three are. A small table isn't worth the copy.
    """
    V, device = int(table.shape[0]), table.device if isinstance(table.device, str) else (table.device or ("CPU",))[0]
    return -V % 128 if V > 1024 and compute_capability(device) else 0


def head_loss(x: Tensor, table: Tensor, targets: Tensor) -> Tensor | None:
    """The formula over a copy of the table with more rows: nothing outside sees them, and what they learn is lost."""
    V, more = int(table.shape[0]), padding(table)
    if not more or targets.shape != x.shape[:-1]:
        return None
    table = table.pad(((0, more), (0, 0))).cast(x.dtype).contiguous()  # (V + more, C)
    if takes(x, table, targets):
        return _cross_entropy(_product(x, table), targets, V)
    x, table = x.contiguous().contiguous_backward(), table.contiguous_backward()  # several GPUs, or KERNELS=0
    logits = (x @ table.T).contiguous().contiguous_backward().float()  # (..., V + more)
    row = Tensor.arange(V + more, device=x.device)
    logits = (row < V).where(logits, -1e30)  # probability 0, gradient 0
    top = logits.max(-1, keepdim=True).detach()
    log_sum = (logits - top).exp().sum(-1).log() + top.squeeze(-1)
    return log_sum - (targets.unsqueeze(-1) == row).where(logits, 0).sum(-1)


def _product(x: Tensor, table: Tensor) -> Tensor:
    """x table^T, `(..., V)`."""
    x = x if in_memory(x) else x.contiguous().contiguous_backward()
    y = linear(x, table, transposed=True)
    return (x @ table.T).contiguous().contiguous_backward() if y is None else y


def _cross_entropy(logits: Tensor, targets: Tensor, V: int) -> Tensor:
    """The losses `(B, T)` of logits `(B, T, W)`, of which the first V count."""
    x, targets, (m, w) = laid_out(logits), laid_out(targets), matrix(logits)
    numbers: dict[str, Any] = {**kind_of(x.dtype), "V": V, "W": w, "turns": -(-w // (2 * THREADS)),
                               "label": f"{x.dtype.name}_{m}x{V}of{w}"}

    def backward(g: Tensor) -> dict[str, Tensor]:
        ins, out = {"X": x, "target": targets, "Z": z, "G": laid_out(g)}, {"D": Tensor.empty_like(x)}
        return {"X": cuda_kernel("cross_entropy_dx.cu", "cross_entropy_dx", (m, 1, 1), out, ins, flops=4 * m * w,
                                 **numbers)[0]}

    outs = {"L": Tensor.empty(*targets.shape, device=x.device), "Z": Tensor.empty(m, device=x.device)}
    loss, z = cuda_kernel("cross_entropy.cu", "cross_entropy", (m, 1, 1), outs, {"X": x, "target": targets}, backward,
                          flops=6 * m * w, **numbers)
    return loss


# ---- AdamW ----


def adamw(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], m: Mapping[str, Tensor], v: Mapping[str, Tensor],
    hyper: Tensor, decay: Mapping[str, float], betas: tuple[float, float], eps: float, clip: float,
) -> Tensor | None:
    tensors = (hyper, *params.values(), *grads.values())
    if not all(t.dtype == dtypes.float32 for t in tensors) or not takes(*tensors):
        return None
    return _adamw(params, grads, m, v, hyper, decay, betas, eps, clip)


def _adamw(
    params: Any, grads: Any, m: Any, v: Any, hyper: Tensor, decay: Any, betas: Any, eps: float, clip: float
) -> Tensor:
    """One kernel for each parameter, and the norm of the gradient."""
    norm = gradient_norm([laid_out(grads[name]) for name in params])
    done: list[Tensor] = []
    for name, p in params.items():
        n, number = int(p.numel()), lambda value: f"{float(value)!r}f"
        done += cuda_kernel(
            "adamw.cu", "adamw", (-(-n // (4 * THREADS)), 1, 1), {"p": p, "m": m[name], "v": v[name]},
            {"g": laid_out(grads[name]), "hyper": hyper, "norm": norm}, flops=15 * n, label=str(n), N=n,
            CLIP="__int_as_float(0x7f800000)" if clip == math.inf else number(clip),
            BETA1=number(betas[0]), BETA2=number(betas[1]), EPS=number(eps), DECAY=number(decay[name]),
        )
    Tensor.realize(norm, *done)
    return norm.reshape(())


def gradient_norm(grads: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, `(1,)`: each adds its squares to PARTS sums, then one block adds these up."""
    sums = Tensor.empty(PARTS, device=grads[0].device)
    for i, g in enumerate(grads):
        n, first = int(g.numel()), int(i == 0)
        blocks = max(1, min(PARTS, n // (32 * THREADS)))
        sums = cuda_kernel(
            "squares.cu", "squares", (blocks, 1, 1), {"S": sums}, {"G": g}, flops=2 * n, N=n, FIRST=first, PARTS=PARTS,
            turns=-(-n // (blocks * THREADS)), label=f"{n}{'_first' if first else ''}",
        )[0]
    out = {"R": Tensor.empty(1, device=sums.device)}
    return cuda_kernel("gradient_norm.cu", "gradient_norm", (1, 1, 1), out, {"S": sums}, None, PARTS, flops=PARTS)[0]
