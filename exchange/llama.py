"""Llama in the files of Hugging Face's `transformers`: `LlamaForCausalLM`, as a model of variants.py and back.

Ours has queries, keys and values in one matrix, and gate and up in another; theirs are apart, and `(out, in)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exchange.layout import GPT2_CHOICES, inner_width
from runtime.errors import UserError
from runtime.tensors import Stored

# Our numbers and their names in config.json; then what config.json has for this very architecture, the default first.
NUMBERS = {
    "block_size": "max_position_embeddings", "vocab_size": "vocab_size", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_embd": "hidden_size", "n_inner": "intermediate_size",
}
FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",), "hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
}
CHOICES = {
    "pos": "rope", "norm": "rmsnorm", "norm_at": "pre", "mlp": "swiglu", "bias": False, "qk_norm": False, "window": 0,
}
PARTS = {  # the tensors of a block, and what they are made of
    "ln_1.weight": ("input_layernorm",), "ln_2.weight": ("post_attention_layernorm",),
    "attn.c_attn.weight": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj.weight": ("self_attn.o_proj",),
    "mlp.c_fc.weight": ("mlp.gate_proj", "mlp.up_proj"), "mlp.c_proj.weight": ("mlp.down_proj",),
}
ENDS = {"wte.weight": "model.embed_tokens", "ln_f.weight": "model.norm", "lm_head.weight": "lm_head"}


@dataclass(frozen=True)
class Joined:
    """Matrices side by side, which are read when `numpy` is called."""

    parts: Sequence[Any]  # (in, out) each

    @property
    def shape(self) -> tuple[int, int]:
        """That of all together."""
        return self.parts[0].shape[0], sum(part.shape[1] for part in self.parts)

    def numpy(self) -> np.ndarray:
        """All of them together, float32."""
        return np.concatenate([part.numpy() for part in self.parts], axis=1)


@dataclass(frozen=True)
class Columns:
    """Some columns of a matrix `(in, out)` as a matrix `(columns, in)`, which is read when `numpy` is called."""

    whole: Any
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, int(self.whole.shape[0])

    def numpy(self) -> np.ndarray:
        """The columns, float32."""
        return np.ascontiguousarray(self.whole.numpy()[:, self.start : self.stop].T)


def read_numbers(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our numbers for a config.json. Raises UserError for one that Llama doesn't have or that isn't built here."""
    if missing := [theirs for theirs in NUMBERS.values() if not isinstance(config.get(theirs), int)]:
        raise UserError(f"{path} has no number {missing[0]}: it isn't a Llama's")
    model = {ours: config[theirs] for ours, theirs in NUMBERS.items()}
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    fixed = FIXED | {"head_dim": (None, model["n_embd"] // model["n_head"])}
    for name, known in fixed.items():
        if name in config and config[name] not in known:
            raise UserError(f"{path} has {name} = {config[name]!r}, and the Llama here {known[-1]!r}")
    if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
        raise UserError(f"{path} scales RoPE's angles ({kind!r}), and they aren't scaled here")
    model |= {name: CHOICES[name] for name in ("pos", "norm", "mlp", "bias")}
    return model | {
        "n_kv_head": config.get("num_key_value_heads") or model["n_head"], "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        "tied": config.get("tie_word_embeddings", False),
    }


def read_tensors(model: Mapping[str, Any], stored: Mapping[str, Stored], path: Path) -> dict[str, Any]:
    """Our tensors of a file with those of `transformers`. Raises UserError where one is missing."""
    left = {name: t for name, t in stored.items() if not name.endswith("rotary_emb.inv_freq")}

    def take(name: str) -> Stored:
        if name not in left:
            raise UserError(f"{path} doesn't fit a Llama of its config.json: {name} is missing")
        t = left.pop(name)
        return replace(t, shape=t.shape[::-1], transposed=True) if len(t.shape) == 2 else t

    tensors: dict[str, Any] = {}
    for i in range(model["n_layer"]):
        for ours, theirs in PARTS.items():
            parts = [take(f"model.layers.{i}.{name}.weight") for name in theirs]
            tensors[f"h.{i}.{ours}"] = parts[0] if len(parts) == 1 else Joined(parts)
    for ours, name in ENDS.items():
        given = left.pop(f"{name}.weight", None)
        if given is not None and not (model["tied"] and name == "lm_head"):
            tensors[ours] = given
    return tensors | left  # what is left has no place here, and is refused by its name


def write_config(model: Mapping[str, Any]) -> dict[str, Any]:
    """config.json for our numbers. Raises UserError for a model that isn't a Llama."""
    numbers = {**GPT2_CHOICES, "bias": True, **model}
    if other := [name for name, value in CHOICES.items() if numbers[name] != value]:
        raise UserError(f"transformers has GPT-2 and Llama for it, and this model is neither: it has {other[0]} = "
                        f"{numbers[other[0]]!r}, a Llama {CHOICES[other[0]]!r}")
    numbers["n_inner"] = inner_width(numbers)
    config = {theirs: numbers[ours] for ours, theirs in NUMBERS.items()}
    theta = {"rope_theta": numbers["rope_theta"]}  # transformers 5 looks into rope_parameters, 4 beside it
    return config | {name: known[0] for name, known in FIXED.items()} | theta | {
        "architectures": ["LlamaForCausalLM"], "num_key_value_heads": numbers["n_kv_head"] or numbers["n_head"],
        "rms_norm_eps": numbers["norm_eps"], "rope_parameters": {**theta, "rope_type": "default"},
        "tie_word_embeddings": numbers["tied"],
    }


def write_tensors(model: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of `transformers` for ours, under its names."""
    out: dict[str, Any] = {f"{theirs}.weight": tensors[ours] for ours, theirs in ENDS.items() if ours in tensors}
    C, nk = model["n_embd"], model.get("n_kv_head") or model["n_head"]
    keys = C // model["n_head"] * nk
    H = inner_width(model)
    widths = {"attn.c_attn.weight": (C, keys, keys), "mlp.c_fc.weight": (H, H), "attn.c_proj.weight": (C,),
              "mlp.c_proj.weight": (C,)}
    for i in range(model["n_layer"]):
        for ours, theirs in PARTS.items():
            whole, at = tensors[f"h.{i}.{ours}"], 0
            for name, width in zip(theirs, widths.get(ours, (0,))):
                full = f"model.layers.{i}.{name}.weight"
                out[full] = Columns(whole, at, at + width) if width else whole
                at += width
    return out
