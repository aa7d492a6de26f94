"""What a model consists of: the name and the shape of every tensor, and a model in a file under those names.

The names and layouts are those of OpenAI's checkpoint on Hugging Face: matrices are `(in, out)`, and a tied head has
no tensor of its own, because it uses `wte.weight` once more. Models that aren't GPT-2s have the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor

import tokenizer as tk
from runtime.errors import UserError
from runtime.tensors import Stored, require_shapes

# ---- from the numbers in a file to a model ----

_models: dict[type, Callable[[Any, int | None], Any]] = {}  # the model of each kind of configuration


def model_for(config: type) -> Callable[[type], type]:
    """A decorator: this class is the model of that dataclass of numbers. gpt.py has one, and variants.py another."""

    def register(model: type) -> type:
        _models[config] = model
        return model

    return register


def read_config(numbers: Mapping[str, Any]) -> Any:
    """A configuration with these numbers: GPT-2's if they are enough, else that of variants.py.

    Raises UserError if they are of variants.py and it isn't imported.
    """
    for kind in _models:
        if set(numbers) <= {field.name for field in fields(kind)}:
            return kind(**numbers)
    raise UserError("the model is one of variants.py and not a GPT-2: `import variants` before it is loaded")


def make_model(config: Any, seed: int | None) -> Any:
    """The model of a configuration; with `seed` None its weights are uninitialised."""
    return _models[type(config)](config, seed)


# ---- tensors ----

# The choices of GPT-2, where variants.py has others. A model without these numbers is a GPT-2.
GPT2_CHOICES: dict[str, Any] = {
    "pos": "learned", "rope_theta": 10000.0, "n_kv_head": 0, "qk_norm": False, "window": 0, "norm": "layernorm",
    "norm_at": "pre", "norm_eps": 1e-5, "mlp": "gelu", "n_inner": 0, "tied": True, "attention": "full",
}


CHOICES = {  # what those that are words can be
    "pos": ("learned", "rope", "sinusoidal", "none"), "norm": ("layernorm", "rmsnorm"), "norm_at": ("pre", "post"),
    "mlp": ("gelu", "relu2", "swiglu"), "attention": ("full", "flash"),
}


def departures(model: Mapping[str, Any]) -> dict[str, Any]:
    """What a model has that isn't GPT-2's, by name. How attention is computed is no part of a model."""
    same = {**GPT2_CHOICES, "n_kv_head": (0, model.get("n_head")), "n_inner": (0, 4 * model.get("n_embd", 0))}
    return {name: model[name] for name, known in same.items() if name in model and name != "attention"
            and model[name] != known and not (isinstance(known, tuple) and model[name] in known)}


def inner_width(model: Any) -> int:
    """The channels H in the middle of an MLP: 4 C, or for SwiGLU, which has a third matrix, 8/3 C in whole 32s."""
    numbers = model if isinstance(model, Mapping) else vars(model)
    C, swiglu = numbers["n_embd"], numbers.get("mlp") == "swiglu"
    return numbers.get("n_inner") or (-(-8 * C // 96) * 32 if swiglu else 4 * C)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model by its name, in the order of its state dict.

    `model` is a mapping or a dataclass with vocab_size (V), block_size (T), n_embd (C), n_layer and bias, and for what
    isn't a GPT-2 with the names of GPT2_CHOICES; without `bias` there are biases.
    """
    numbers = model if isinstance(model, Mapping) else vars(model)
    choice = {**GPT2_CHOICES, **numbers}
    V, T, C, H = numbers["vocab_size"], numbers["block_size"], numbers["n_embd"], inner_width(numbers)
    keys = C // numbers["n_head"] * choice["n_kv_head"] if choice["n_kv_head"] else C  # channels of the keys together
    gated = H if choice["mlp"] == "swiglu" else 0
    block = {
        "ln_1.weight":        (C,),
        "ln_1.bias":          (C,),
        "attn.c_attn.weight": (C, C + 2 * keys),  # queries, keys and values of all heads
        "attn.c_attn.bias":   (C + 2 * keys,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias":   (C,),
        "ln_2.weight":        (C,),
        "ln_2.bias":          (C,),
        "mlp.c_fc.weight":    (C, gated + H),
        "mlp.c_fc.bias":      (gated + H,),
        "mlp.c_proj.weight":  (H, C),
        "mlp.c_proj.bias":    (C,),
    }
    table: dict[str, tuple[int, ...]] = {
        "wte.weight": (V, C),  # a row for each token, of the input and of a tied head
        "wpe.weight": (T, C),  # a row for each position
        **{f"h.{i}.{name}": shape for i in range(numbers["n_layer"]) for name, shape in block.items()},
        "ln_f.weight": (C,),
        "ln_f.bias": (C,),
        "lm_head.weight": (V, C),
    }
    absent = ["wpe."] * (choice["pos"] != "learned") + ["ln_f."] * (choice["norm_at"] == "post")
    absent += ["lm_head."] * choice["tied"]

    def has(name: str) -> bool:
        if name.endswith(".bias") and not numbers.get("bias", True):
            return False
        rms_bias = choice["norm"] == "rmsnorm" and name.endswith(("ln_1.bias", "ln_2.bias", "ln_f.bias"))
        return not rms_bias and not name.startswith(tuple(absent))

    return {name: shape for name, shape in table.items() if has(name)}


def numbers_of(model: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The numbers of a model in a file's JSON. Raises UserError unless GPT-2's are there and each can be one."""
    numbers = {name: model.get(name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise UserError(f"{where} is damaged ({name} is {repr(value)[:60]})")
    if not isinstance(model.get("bias", True), bool):
        raise UserError(f"{where} is damaged (bias is {repr(model['bias'])[:60]})")
    for name, known in GPT2_CHOICES.items():
        value = model.get(name, known)
        number = isinstance(known, float) and isinstance(value, int) and not isinstance(value, bool)
        low = isinstance(value, int | float) and not 0 <= value < 1 << 31
        if not (type(value) is type(known) or number) or low or value not in CHOICES.get(name, (value,)):
            raise UserError(f"{where} is damaged ({name} is {repr(value)[:60]})")
    return numbers | {name: model[name] for name in ("bias", *GPT2_CHOICES) if name in model}


@dataclass(frozen=True)
class Grown:
    """A table `(V, C)` with more rows, which are computed when `numpy` is called."""

    table: Any
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, int(self.table.shape[1])

    def numpy(self) -> np.ndarray:
        """The rows of the table, then new ones, float32."""
        known = self.table.numpy()
        noise = np.random.default_rng(1337).standard_normal((self.rows - len(known), known.shape[1]))
        return np.concatenate([known, known.mean(0) + known.std(0) * noise]).astype(np.float32)


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

    def empty_model(self, dropout: float) -> Any:
        """The model for its tensors to be copied into. Raises UserError unless the numbers and the tensors fit."""
        self.require_shapes()
        return make_model(read_config({**self.model, "dropout": dropout}), None)

    def with_biases(self) -> "Checkpoint":
        """The same model with a bias in every layer, which other programs' formats require: zeros if ours has none."""
        if self.model.get("bias", True):
            return self
        model = {**self.model, "bias": True}
        zeros = {name: Tensor.zeros(*shape) for name, shape in shapes(model).items() if name.endswith(".bias")}
        return replace(self, model=model, tensors={**self.tensors, **zeros})

    def grown(self, rows: int) -> "Checkpoint":
        """The same model with an embedding table, and a head, of `rows` tokens or as many as it has if they are more.

        A new token begins as a random one around the mean of all, with their spread (Hewitt,
        nlp.stanford.edu/~johnhew/vocab-expansion.html): the same numbers whenever they are asked for.
        """
        known = self.model["vocab_size"]
        tables = [name for name in ("wte.weight", "lm_head.weight") if name in self.tensors]
        if rows <= known:
            return self
        return replace(self, model={**self.model, "vocab_size": rows},
                       tensors={**self.tensors, **{name: Grown(self.tensors[name], rows) for name in tables}})

    def cropped(self, block_size: int) -> "Checkpoint":
        """The same model with only its first `block_size` positions."""
        model, tensors = {**self.model, "block_size": block_size}, dict(self.tensors)
        if wpe := tensors.get("wpe.weight"):  # else positions have no table of their own
            assert isinstance(wpe, Stored)
            tensors["wpe.weight"] = replace(wpe, shape=(block_size, *wpe.shape[1:]))
        return replace(self, model=model, tensors=tensors)
