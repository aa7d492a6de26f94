"""Files of LoRA adapters (see lora.py): what they say of their base, and the model that they and their base make."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exchange.checkpoint import find_checkpoint, model_of, tokenizer_of
from exchange.layout import Checkpoint
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors


@dataclass(frozen=True)
class Merged:
    """A matrix with its correction added, which is computed when `numpy` is called."""

    base: Any  # (in, out)
    a: Any  # (in, r)
    b: Any  # (r, out)
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the base."""
        return tuple(self.base.shape)

    def numpy(self) -> np.ndarray:
        """base + scale * a b, float32."""
        return self.base.numpy() + np.float32(self.scale) * (self.a.numpy() @ self.b.numpy())


def fingerprint(base: Checkpoint) -> str:
    """The SHA-256 of one matrix: it tells models apart in a moment; that of all of gpt2-xl would take half a minute."""
    return hashlib.sha256(base.tensors["h.0.attn.c_attn.weight"].numpy().tobytes()).hexdigest()


def adapter_metadata(base: Checkpoint, rank: int, alpha: float) -> dict[str, Any]:
    """The metadata of a file of adapters that are trained on `base`."""
    return {"lora": {"rank": rank, "alpha": alpha, "base": fingerprint(base)}}


def require_base(base: Checkpoint, metadata: Mapping[str, Any], path: Path) -> None:
    """Raise UserError unless the adapters in `path`, whose metadata these are, were trained on `base`."""
    if metadata["lora"]["base"] != fingerprint(base):
        raise UserError(f"the adapters in {path} were trained on another model than {base.path}")


def apply_adapters(base: Checkpoint, path: Path) -> Checkpoint:
    """The model that a file of adapters and its base make.

    Raises UserError for a file without adapters, a damaged one, and adapters of another model.
    """
    adapters, metadata = load_safetensors(path)
    if "lora" not in metadata:
        raise UserError(f"{path} doesn't hold adapters: train them with --lora-rank")
    require_base(base, metadata, path)
    tensors: dict[str, Any] = dict(base.tensors)
    scale = metadata["lora"]["alpha"] / metadata["lora"]["rank"]
    for name, a in adapters.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            b, weight = adapters.get(f"{layer}.lora_b"), base.tensors.get(f"{layer}.weight")
            if b is None or weight is None or tuple(weight.shape) != (a.shape[0], b.shape[-1]):
                raise UserError(f"{path} doesn't fit {base.path}: {layer} is missing or of another shape")
            tensors[f"{layer}.weight"] = Merged(weight, a, b, scale)
    return replace(base, tensors=tensors)


def read_adapted_run(run: Run, name: str, data_dir: Path | str | None = None) -> Checkpoint:
    """The model that the `best` or `last` adapters of a run and the model that they were trained on make.

    `data_dir` is where models of the hub are kept, by default that of the run. Raises UserError if the run has no such
    adapters yet, and if their base can't be read or is another model now.
    """
    path, data_dir = run.path / f"{name}.safetensors", data_dir or run.saved("options", "data_dir", str, type(None))
    base = find_checkpoint(run.saved("options", "init_from", str), data_dir)
    run.require(name)
    model = apply_adapters(base.cropped(model_of(run)["block_size"]), path)
    return replace(model, path=path, tokenizer=tokenizer_of(run))
