"""A model that reads tokens as the C file does that it would be exported as: a kernel for all of it, on a CPU.

kernels/reader.c is that kernel. It computes GPT-2s and the variants that model.c knows, one text at a time.
"""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.helpers import JIT
from tinygrad.uop.ops import UOp

from exchange.cfile import DTYPES, LANES, WORDS, model_numbers, pad, vector
from exchange.quantize import layers_of, pack_model, quantize_model
from kernels import cpu
from kernels.cpu import new
from kernels.graph import CORES, cpu_kernel
from runtime.compiled import Inputs, jit
from runtime.errors import UserError


def make_reader(model: Any, dtype: str) -> "Reader | None":
    """Put packed matrices in place of a model's, as `quantize_model` does it, and make one kernel of all of it.

    None where model.c doesn't compute such a model, or where the C kernels can't run: a float32 model is unchanged
    then. Raises UserError as `quantize_model` does.
    """
    quantize_model(model, dtype)
    try:
        numbers = model_numbers(asdict(model.config))
    except UserError:
        return None
    if str(model.ln_f.weight.device).split(":")[0] != "CPU" or cpu.problem() or not JIT:  # which it needs for variables
        return None
    if dtype == "float32":
        pack_model(model, dtype)
    return Reader(model, numbers)


def require_formulas(model: Any) -> None:
    """Raise UserError where a model computes other logits than model.c, as when a formula of gpt.py was changed: other
    programs, which have the formulas as they were, would write other text.

    Its matrices are packed afterwards, as by `make_reader`. Where the C kernels can't run a line on stderr says so.
    """
    T, V = model.config.block_size, model.config.vocab_size
    ids = np.random.default_rng(0).integers(0, V, min(T, 64), np.int32)
    expected = model(Tensor(ids[None])).numpy()[:, -1]  # (1, V)
    if not (reader := make_reader(model, "float32")):
        print("note: without the C kernels for a CPU it can't be checked that gpt.py has the formulas that other "
              "programs have", file=sys.stderr)
    elif (off := np.abs(reader.read(ids, 0) - expected).max()) > 1e-4 * np.abs(expected).max():
        raise UserError(f"the model in gpt.py was changed: its logits differ by {off:.2g} from those of the formulas "
                        "that other programs have, which would write other text; undo the change to export")


class Reader:
    """A model with its cache, in one kernel. commands/sampler.py writes text with it."""

    def __init__(self, model: Any, numbers: dict[str, Any]):
        c, layers = model.config, layers_of(model)
        self.model, self.T, self.V = model, c.block_size, c.vocab_size
        numbers |= {"version": 1, "dtype": DTYPES.index(model.wte.weight.dtype),
                    "n_hidden": model.h[0].mlp.c_proj.weight.shape[0]}
        header: dict[str, Any] = {
            "numbers": [numbers[name] for name in WORDS[: WORDS.index("qk_norm") + 1]], "threads": CORES, "flops": 0}
        room = {"size": Tensor.empty(1, dtype=dtypes.int32, device="CPU")}
        size = int(cpu_kernel("reader.c", "reader_size", room, {}, **header)[0].item())
        self.arena = Tensor.zeros(size, device="CPU").contiguous().realize()
        learned, turned = numbers["pos"] == 0, numbers["pos"] == 1
        self.kept: dict[str, Any] = {  # what the arena points to
            "W": [layer.weight.words for layer in layers], "rows": [_rows(block) for block in model.h],
            "wte": model.wte.weight.words, "head": model.head_weight.words, "ln_f": _realized(*_norm(model.ln_f)),
            "wpe": _realized(pad(model.wpe.weight.numpy(), 1, LANES)) if learned else None,
            "turns": _realized(_turns(self.T, numbers["head_size"], numbers["rope_base"])) if turned else None,
            "yield": _realized(np.array([_address("sched_yield")], "<u8").view("<u4")),
        }
        arena = {"arena": self.arena}
        Tensor.realize(*cpu_kernel("reader.c", "reader_open", arena, self.kept, eps=numbers["eps"], **header))
        self.flops = 2 * sum(int(np.prod(w.weight.shape)) for w in layers) + 2 * self.V * c.n_embd
        self.step, self.inputs = jit(self._read), Inputs("CPU")

    def read(self, ids: Sequence[int], start: int) -> np.ndarray:
        """Read tokens that stand at the positions from `start` on; the logits after them `(1, V)`."""
        tokens = np.zeros(self.T, np.int32)
        tokens[: len(ids)] = ids
        n, first = UOp.variable("n", 1, self.T).bind(len(ids)), UOp.variable("start", 0, self.T - 1).bind(start)
        return self.step(*self.inputs(tokens), n, first).numpy()[:, : self.V]

    def _read(self, ids: Tensor, n: UOp, start: UOp) -> Tensor:
        outs = {"logits": new((1, -(-self.V // LANES) * LANES), ids), "arena": self.arena}
        n, start = n.unbind()[0], start.unbind()[0]
        done = cpu_kernel("reader.c", "reader_read", outs, {"ids": ids}, flops=self.flops, n=n, start=start)
        return done[0].realize()


def _turns(T: int, hs: int, base: float) -> np.ndarray:
    """Cosine and sine of each angle of RoPE, side by side: `(T, hs)`."""
    angles = np.arange(T)[:, None] * base ** (-np.arange(0, hs, 2) / hs)
    return np.stack([np.cos(angles), np.sin(angles)], -1).reshape(T, hs).astype(np.float32)


def _address(name: str) -> int:
    """Where a function of the C library lies; 0 if there is none."""
    try:
        return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):  # Windows has no library without a name
        return 0


def _norm(norm: Any) -> list[np.ndarray]:
    size = int(norm.weight.shape[0])
    return [vector(norm.weight, size), vector(getattr(norm, "bias", None), size)]


def _rows(block: Any) -> Tensor:
    """The norms and biases of a block, in the order of model.bin."""
    bias = lambda layer: vector(layer.bias, layer.weight.shape[1])
    return _realized(*_norm(block.ln_1), bias(block.attn.c_attn), bias(block.attn.c_proj), *_norm(block.ln_2),
                     bias(block.mlp.c_fc), bias(block.mlp.c_proj))


def _realized(*arrays: np.ndarray) -> Tensor:
    return Tensor(np.concatenate(arrays), device="CPU").realize()
