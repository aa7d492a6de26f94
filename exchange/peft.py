"""Adapters in the two files of Hugging Face's PEFT (https://github.com/huggingface/peft), for a GPT-2.

There a matrix W `(out, in)` becomes W + alpha / r * B A with A `(r, in)` and B `(out, r)`. A GPT-2 of transformers has
its matrices `(in, out)`, as ours, which adapter_config.json calls `fan_in_fan_out`: the correction is then
(B A)^T = A^T B^T, so our A and B are the transposes of theirs.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import atomic_write, read_json
from runtime.tensors import Stored, load_safetensors, number_in, refuse_pickle, save_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = re.compile(r"(?:base_model\.model\.)?(?:transformer\.)?(h\.\d+\.[\w.]+)\.lora_([AB])\.(?:default\.)?weight")
PLAIN: dict[str, tuple[Any, ...]] = {  # what plain LoRA has, the default first; without the name it is that
    "peft_type": ("LORA",), "bias": ("none",), "use_dora": (False,), "lora_bias": (False,),
    "use_qalora": (False,), "use_bdlora": (None, False), "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the base too
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "modules_to_save": (None, []),
}


@dataclass(frozen=True)
class Adapters:
    """The matrices A `(in, r)` and B `(r, out)` of layers, as `h.0.attn.c_attn.lora_a`, and the two numbers."""

    tensors: Mapping[str, Any]
    rank: float
    alpha: float  # they count alpha / rank times


def read_peft(folder: Path) -> Adapters:
    """The adapters in a folder of PEFT. Raises UserError for another method than plain LoRA, and for damaged files."""
    path = folder / WEIGHTS
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is neither a run nor a folder of PEFT, which has {CONFIG} and {WEIGHTS}")
    if not path.is_file():
        for pickled in sorted(folder.glob("*.bin")):
            refuse_pickle(pickled)
    config = read_json(folder / CONFIG)
    for name, known in PLAIN.items():
        if name in config and config[name] not in known:
            raise UserError(f"{folder / CONFIG} has {name} = {config[name]!r}, and only plain LoRA is read here")
    rank, alpha = number_in(config, "r", folder / CONFIG), number_in(config, "lora_alpha", folder / CONFIG)
    if rank < 1:
        raise UserError(f"{folder / CONFIG} is damaged: its r is {rank}")
    tensors = {}
    for name, stored in load_safetensors(path)[0].items():
        if not (found := NAME.fullmatch(name)) or len(stored.shape) != 2:
            raise UserError(f"{path} has {name}, which is no adapter of a GPT-2's matrix")
        turned = replace(stored, shape=stored.shape[::-1], transposed=True)
        tensors[f"{found[1]}.lora_{found[2].lower()}"] = turned
    return Adapters(tensors, rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha)


@dataclass(frozen=True)
class Turned:
    """The transpose of a matrix, which is read when `numpy` is called."""

    matrix: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the transpose."""
        return tuple(self.matrix.shape)[::-1]

    def numpy(self) -> Any:
        """Its values."""
        return self.matrix.numpy().T


def write_peft(folder: Path, adapters: Adapters, base: str) -> list[Path]:
    """Write adapters for `PeftModel.from_pretrained`; `base` names the model that they are for. Returns the paths."""
    tensors = {}
    for name, matrix in adapters.tensors.items():
        layer, _, which = name.rpartition(".lora_")
        tensors[f"base_model.model.transformer.{layer}.lora_{which.upper()}.weight"] = Turned(matrix)
    targets = sorted({name.split(".")[-2] for name in adapters.tensors})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": int(adapters.rank),
        "lora_alpha": adapters.alpha, "target_modules": targets, "fan_in_fan_out": True, "bias": "none",
        "lora_dropout": 0.0, "inference_mode": True, "init_lora_weights": True, "modules_to_save": None,
    }
    save_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
    with atomic_write(folder / CONFIG) as new:
        new.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return [folder / CONFIG, folder / WEIGHTS]
