"""Operations that tinygrad's scheduler has no good form for on an NVIDIA GPU, as CUDA kernels inside its graph.

tinygrad renders matrix products for the tensor cores by itself, and they stay its own. What it does not find is
attention that never writes the T x T scores (Dao et al., "FlashAttention", arXiv:2205.14135, and -2, arXiv:2307.08691),
an embedding's gradient that adds rows up where it now multiplies by a matrix of zeros and ones, and an AdamW that reads
and writes everything once.

Each function has the name and the arguments of a formula of the lessons and returns None for what it doesn't take; the
formula runs then. Attention takes 16-bit numbers, and all of them a GPU from Ampere (sm_80) on.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, dtypes
from tinygrad.renderer.cstyle import CUDARenderer

from kernels.graph import cuda_kernel, known_shape, laid_out, not_captured, tested_version
from kernels.random_bits import next_seed
from runtime.device import compute_capability, switched_on

TILE = 64  # queries or keys of a block: four warps of 16
THREADS = 128
ROWS = 16  # rows of the embedding table in a block of its gradient


def takes(*tensors: Tensor) -> bool:
    """Whether these tensors can go through the kernels: of known shape, on a GPU where the kernels work."""
    return all(
        isinstance(t.device, str)
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
    """What is wrong with the kernels' results for a head of 70 tokens and for a table of 40; nothing if they are right.

    The gradient of softmax(s) v, s = q k^T / sqrt(D), for dy is dv = w^T dy and ds = w (dw - sum(w dw)), dw = dy v^T.
    """
    rng, T, D = np.random.default_rng(0), 70, 16
    qkv, dy = (rng.standard_normal(s).astype(np.float16) for s in ((T, 3 * D), (T, D)))
    x = Tensor(qkv[None], device=device).realize()
    y = _attention(x, 1, 0.0, None)
    dx = y.gradient(x, gradient=Tensor(dy[None], device=device).realize())[0]
    q, k, v = np.split(qkv.astype(np.float64), 3, axis=1)
    w = np.tri(T) * np.exp(q @ k.T / math.sqrt(D))
    w /= w.sum(1, keepdims=True)
    dw = dy @ v.T
    ds = w * (dw - (w * dw).sum(1, keepdims=True)) / math.sqrt(D)
    wanted = [w @ v, np.concatenate([ds @ k, ds.T @ q, w.T @ dy], axis=1)]
    for got, right in zip((y.realize().numpy()[0], dx.realize().numpy()[0]), wanted):
        if not np.abs(got - right).max() < 0.02 * np.abs(right).max():
            return "attention came out wrong"
    table, idx, ones = np.eye(40, 5, dtype=np.float32), rng.integers(0, 40, (2, T)).astype(np.int32), np.ones((2, T, 5))
    weights, zeros = (Tensor(a, device=device).realize() for a in (table, np.zeros((T, 5), np.float32)))
    y = _embed(weights, Tensor(idx, device=device).realize(), zeros)
    dx = y.gradient(weights, gradient=Tensor(ones.astype(np.float32), device=device).realize())[0]
    right = np.repeat(np.bincount(idx.ravel(), minlength=40)[:, None], 5, axis=1)
    if not ((y.realize().numpy() == table[idx]).all() and (dx.realize().numpy() == right).all()):
        return "an embedding came out wrong"
    weight, mean, square, half = ({"": Tensor([x] * 5, device=device).realize()} for x in (1.0, 0.0, 0.0, 0.5))
    hyper = Tensor([0.1, 10.0, 20.0], device=device).realize()
    # A step of 1 and a decay of 0.5, each times 0.1.
    _adamw(weight, half, mean, square, hyper, {"": 0.5}, (0.9, 0.95), 1e-8, math.inf)
    if not np.abs(weight[""].numpy() - 0.85).max() < 1e-5:
        return "AdamW came out wrong"
    return ""


# ---- attention ----


def attention(qkv: Tensor, n_head: int, p: float = 0.0) -> Tensor | None:
    head = int(qkv.shape[2]) // 3 // n_head  # heads of 8, 16, ... or 128 channels
    if qkv.dtype not in (dtypes.half, dtypes.bfloat16) or head % 8 or head > 128 or not takes(qkv):
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
        "KIND": '"f16"' if kind == dtypes.half else '"bf16"', "H": "unsigned short", "TILE": TILE, "T": T, "C": C,
        "D": D, "NH": n_head, "SCALE": f"{math.log2(math.e) * D**-0.5!r}f", "ROOT": f"{D**-0.5!r}f",
        "KEPT": f"{1 / (1 - p) if seed is not None else 1.0!r}f", "LIMIT": f"{int(p * 2**32)}u",
        "label": f"{'' if kind == dtypes.half else 'b'}{B}x{T}x{C}_{n_head}{'' if seed is None else '_drop'}",
    }

    def backward(g: Tensor) -> dict[str, Tensor]:
        dy = laid_out(g, kind)
        delta = (dy.float() * y.float()).reshape(B, T, n_head, D).sum(-1).contiguous()  # (B, T, nh)
        ins = {"X": x, "dY": dy, "L": lse, "delta": delta, **seeds}
        out = {"G": new(B, T, 3 * C)}
        dq = cuda_kernel("attention_dq.cu", "attention_dq", grid, out, ins, flops=3 * one + 9 * scores,
                         tensor_flops=3 * one, **numbers)[0]
        # The second kernel writes the other two thirds of what the first one made.
        done = cuda_kernel("attention_dkv.cu", "attention_dkv", grid, {"G": dq}, ins, flops=4 * one + 10 * scores,
                           tensor_flops=4 * one, **numbers)
        return {"X": done[0]}

    outs = {"Y": new(B, T, C), "L": new(B, n_head, T, dtype=dtypes.float32)}
    y, lse = cuda_kernel("attention.cu", "attention", grid, outs, {"X": x, **seeds}, backward,
                         flops=2 * one + 7 * scores, tensor_flops=2 * one, **numbers)
    return y


# ---- the two ends: embedding, and the head with its loss ----


def embed(table: Tensor, idx: Tensor, positions: Tensor | None = None) -> Tensor | None:
    """Worth it for large tables: for few tokens a matrix of zeros and ones is small."""
    if positions is None or [table.dtype, positions.dtype, idx.dtype] != [dtypes.float32, dtypes.float32, dtypes.int32]:
        return None
    if int(table.shape[0]) < 1024 or not takes(table, idx, positions):
        return None
    return _embed(table, idx, positions)


def _embed(table: Tensor, idx: Tensor, positions: Tensor) -> Tensor:
    (V, C), (B, T) = (int(n) for n in table.shape), (int(n) for n in idx.shape)
    idx = laid_out(idx)
    numbers: dict[str, Any] = {"V": V, "C": C, "N": B * T, "T": T, "ROWS": ROWS, "label": f"{B * T}x{C}x{V}"}

    def backward(g: Tensor) -> dict[str, Tensor]:
        g = laid_out(g, dtypes.float32)
        out, grid = {"G": Tensor.empty(V, C, device=g.device)}, (-(-V // ROWS), 1, 1)
        dw = cuda_kernel("embed_dw.cu", "embed_dw", grid, out, {"idx": idx, "dY": g}, flops=B * T * C, **numbers)[0]
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
    if not more:
        return None
    table = table.pad(((0, more), (0, 0))).cast(x.dtype).contiguous().contiguous_backward()  # (V + more, C)
    x = x.contiguous().contiguous_backward()
    logits = (x @ table.T).contiguous().contiguous_backward().float()  # (..., V + more)
    row = Tensor.arange(V + more, device=x.device)
    logits = (row < V).where(logits, -1e30)  # probability 0, gradient 0
    top = logits.max(-1, keepdim=True).detach()
    log_sum = (logits - top).exp().sum(-1).log() + top.squeeze(-1)
    return log_sum - (targets.unsqueeze(-1) == row).where(logits, 0).sum(-1)


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
    norm = Tensor.stack(*[g.square().sum() for g in grads.values()]).sum().sqrt().reshape(1).contiguous()
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
