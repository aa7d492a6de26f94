"""A model whose matrices are bfloat16 or int8, as the C file has them, run by gpt.py itself."""

from typing import Any

from tinygrad import Tensor

from exchange.cfile import pack_matrix
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
    for block in model.h:
        for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            layer.weight = to_words(layer.weight, dtype, transposed=False)
    for table in (model.wte, getattr(model, "lm_head", None)):  # the second where a head isn't tied
        if table:
            table.weight = to_words(table.weight, dtype, transposed=True)


def to_words(weight: Tensor, dtype: str, transposed: bool) -> Words:
    """A weight `(in, out)`, or `(out, in)` where it is `transposed`, packed."""
    values = weight.numpy()
    words = Tensor(pack_matrix(values if transposed else values.T, dtype)).realize()
    return Words(words, dtype, (values.shape[0], values.shape[1]), transposed)
