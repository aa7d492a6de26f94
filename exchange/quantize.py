"""A model whose matrices are bfloat16 or int8, as the C file has them, run by gpt.py itself."""

import contextlib
import mmap
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes

from exchange.cfile import LANES, pack_matrix, packed_bytes
from kernels import cpu
from kernels.cpu import Words
from runtime.errors import UserError


def quantize_model(model: Any, dtype: str) -> None:
    """Put packed matrices in place of a model's: those of linear layers, and the embedding table that is the head too.

    `dtype` is bfloat16 or int8, or float32, which changes nothing. Activations are rounded to the same numbers before
    they are multiplied; the rest of the model stays float32. Raises UserError where there are no C kernels.
    """
    if dtype == "float32":
        return
    device = str(model.wte.weight.device)
    reason = cpu.problem() if device.split(":")[0] == "CPU" else f"the model is on {device}"
    if reason:
        raise UserError(f"--dtype {dtype} needs the C kernels for a CPU: {reason}")
    pack_model(model, dtype)


def layers_of(model: Any) -> list[Any]:
    """The four linear layers of each block."""
    return [layer for b in model.h for layer in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)]


def pack_model(model: Any, dtype: str) -> None:
    """The same for float32 too, which is packed without being rounded."""
    layers = layers_of(model)
    tables = [table for table in (model.wte, getattr(model, "lm_head", None)) if table]  # a tied head has none
    shapes = [layer.weight.shape[::-1] for layer in layers] + [table.weight.shape for table in tables]
    memory, at = large_pages(sum(packed_bytes(outputs, inputs, dtype) for outputs, inputs in shapes)), 0
    for layer, (outputs, inputs) in zip(layers + tables, shapes):
        transposed, size = layer in tables, packed_bytes(outputs, inputs, dtype)
        values = layer.weight.numpy()
        place, rows = memory[at : at + size].view("<u4").reshape(-(-outputs // LANES), -1, LANES), 64 * LANES
        for i in range(0, outputs, rows):  # a part of it at a time, as packing takes three times the memory
            part = values[i : i + rows] if transposed else values[:, i : i + rows].T
            place[i // LANES : (i + rows) // LANES] = pack_matrix(part, dtype)
        words = Tensor.from_blob(place.ctypes.data, place.shape, dtype=dtypes.uint32, device="CPU")
        layer.weight, at = Words(words, dtype, (values.shape[0], values.shape[1]), transposed, memory), at + size


def large_pages(size: int) -> np.ndarray:
    """Memory of so many bytes, on Linux in pages of 2 MB: reading it takes two thirds of the time."""
    page = 1 << 21
    private = [mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS] if hasattr(mmap, "MAP_PRIVATE") else []  # not on Windows
    whole = mmap.mmap(-1, size + page, *private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            whole.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(whole, np.uint8)
    return memory[-memory.ctypes.data % page :][:size]
