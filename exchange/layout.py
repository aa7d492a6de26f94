"""What a GPT-2 consists of: the name and the shape of every tensor, and a model in a file under those names.

The names and layouts are those of OpenAI's checkpoint on Hugging Face: matrices are `(in, out)`, and the head has no
tensor of its own, because it uses `wte.weight` once more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinygrad import Tensor

import tokenizer as tk
from runtime.errors import UserError
from runtime.tensors import Stored, require_shapes


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a GPT-2 by its name, in the order of its state dict.

    `model` is a mapping or a dataclass with vocab_size (V), block_size (T), n_embd (C), n_layer and bias; without
    `bias` there are biases. The number of heads changes no shape.
    """
    numbers = model if isinstance(model, Mapping) else vars(model)
    V, T, C = numbers["vocab_size"], numbers["block_size"], numbers["n_embd"]
    block = {
        "ln_1.weight":        (C,),
        "ln_1.bias":          (C,),
        "attn.c_attn.weight": (C, 3 * C),  # queries, keys and values of all heads
        "attn.c_attn.bias":   (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias":   (C,),
        "ln_2.weight":        (C,),
        "ln_2.bias":          (C,),
        "mlp.c_fc.weight":    (C, 4 * C),
        "mlp.c_fc.bias":      (4 * C,),
        "mlp.c_proj.weight":  (4 * C, C),
        "mlp.c_proj.bias":    (C,),
    }
    table: dict[str, tuple[int, ...]] = {
        "wte.weight": (V, C),  # a row for each token, of the input and of the head
        "wpe.weight": (T, C),  # a row for each position
        **{f"h.{i}.{name}": shape for i in range(numbers["n_layer"]) for name, shape in block.items()},
        "ln_f.weight": (C,),
        "ln_f.bias": (C,),
    }
    return {name: shape for name, shape in table.items() if numbers.get("bias", True) or not name.endswith(".bias")}


def numbers_of(model: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The numbers of a GPT-2 in a file's JSON. Raises UserError unless each is there and can be one."""
    numbers = {name: model.get(name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise UserError(f"{where} is damaged ({name} is {repr(value)[:60]})")
    if not isinstance(model.get("bias", True), bool):
        raise UserError(f"{where} is damaged (bias is {repr(model['bias'])[:60]})")
    return numbers | {name: model[name] for name in ("bias",) if name in model}


@dataclass(frozen=True)
class Checkpoint:
    """A model in a file: the numbers of its GPTConfig, its tensors under our names, and its tokenizer."""

    path: Path  # of the weights
    model: dict[str, Any]
    tensors: Mapping[str, Any]  # Stored, or anything else with a shape and numpy()
    tokenizer: tk.Tokenizer | None  # None: the file doesn't name one

    def known_tokenizer(self) -> tk.Tokenizer:
        """Its tokenizer. Raises UserError when the file names none, and for one that doesn't fit the model's ids."""
        if self.tokenizer is None:
            raise UserError(f"{self.path} has no tokenizer: put its tokenizer.json, or its vocab.json and "
                            "merges.txt, into the same folder")
        if self.tokenizer.vocab_size > self.model["vocab_size"]:
            raise UserError(f"the tokenizer of {self.path} has {self.tokenizer.vocab_size:,} tokens and the model only "
                            f"{self.model['vocab_size']:,}")
        try:
            self.tokenizer.check_whole()
        except ValueError as error:
            raise UserError(f"{self.path} can't be used: {error}") from error
        return self.tokenizer

    def require_shapes(self) -> None:
        """Raise UserError unless the numbers and the tensors can be of one model, before any memory is taken for it."""
        if self.model["n_layer"] > len(self.tensors):
            raise UserError(f"{self.path} doesn't fit its numbers: {self.model['n_layer']:,} layers, and "
                            f"{len(self.tensors):,} tensors in all")
        require_shapes(shapes(self.model), {n: tuple(t.shape) for n, t in self.tensors.items()}, str(self.path))

    def with_biases(self) -> "Checkpoint":
        """The same model with a bias in every layer, which other programs' formats require: zeros if ours has none."""
        if self.model.get("bias", True):
            return self
        model = {**self.model, "bias": True}
        zeros = {name: Tensor.zeros(*shape) for name, shape in shapes(model).items() if name.endswith(".bias")}
        return replace(self, model=model, tensors={**self.tensors, **zeros})

    def cropped(self, block_size: int) -> "Checkpoint":
        """The same model with only its first `block_size` positions."""
        wpe = self.tensors["wpe.weight"]
        assert isinstance(wpe, Stored)
        first = replace(wpe, shape=(block_size, *wpe.shape[1:]))
        model = {**self.model, "block_size": block_size}
        return replace(self, model=model, tensors={**self.tensors, "wpe.weight": first})
