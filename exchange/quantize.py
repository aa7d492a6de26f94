"""A model whose matrices are bfloat16 or int8, as the C file has them, run by gpt.py itself."""

import contextlib
import mmap
from typing import Any

import numpy as np
from tinygrad import Device, Tensor, dtypes

from exchange.cfile import LANES, pack_matrix, packed_bytes
from kernels import cpu
from kernels.cpu import Words
from runtime.compiled import buffer_of
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
    shapes = [tuple(map(int, layer.weight.shape[::-1])) for layer in layers]
    shapes += [tuple(map(int, table.weight.shape)) for table in tables]
    allocator: Any = Device["CPU"].allocator
    memory, at = large_pages(sum(packed_bytes(outputs, inputs, dtype) for outputs, inputs in shapes)), 0
    for layer, (outputs, inputs) in zip(layers + tables, shapes):
        transposed, size = layer in tables, packed_bytes(outputs, inputs, dtype)
        place = memory[at : at + size].view("<u4").reshape(-(-outputs // LANES), -1, LANES)
        _pack(layer.weight, dtype, transposed, place)
        words = Tensor.from_blob(place.ctypes.data, place.shape, dtype=dtypes.uint32, device="CPU")
        shape = (inputs, outputs) if not transposed else (outputs, inputs)
        layer.weight, at = Words(words, dtype, shape, transposed, memory), at + size
        allocator.free_cache()  # else tinygrad keeps the memory of the weight


def _pack(weight: Tensor, dtype: str, transposed: bool, place: np.ndarray) -> None:
    """Pack a weight where it belongs, a part of it at a time, as this takes three times the part's memory."""
    memory = buffer_of(weight.contiguous().realize()).as_memoryview(allow_zero_copy=True)
    values = np.frombuffer(memory, np.float32).reshape(tuple(map(int, weight.shape)))
    values, rows = values if transposed else values.T, 64 * LANES
    for i in range(0, len(values), rows):
        place[i // LANES : (i + rows) // LANES] = pack_matrix(values[i : i + rows], dtype)


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
