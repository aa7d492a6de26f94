"""LoRA (Hu et al., arXiv:2106.09685): leave a pretrained matrix as it is, and train a small correction to it.

To y = x W comes alpha / r * (x A) B, with A `(in, r)`, B `(r, out)` and a rank r of 8 or so. B starts at zero: at the
first step the model is the pretrained one, to the last bit. Only A and B have gradients and AdamW's moments, and only
they are saved. When training is over the correction can be added to the matrix, and costs nothing any more.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import backend  # noqa: F401  (before tinygrad)

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import kernels
from checkpoint import Checkpoint, load_safetensors
from cli import UserError

if TYPE_CHECKING:
    from gpt import GPT, Linear

TARGETS = ("c_attn", "c_proj", "c_fc")  # the matrices of a block; c_proj is the last of the attention and of the MLP


class Adapted:
    """A `Linear` that is left alone, and the two matrices that correct it.

    Its matrix isn't called `weight`, so that nothing takes it for the whole layer.
    """

    def __init__(self, linear: "Linear", rank: int, alpha: float, rng: np.random.Generator):
        n_in, n_out = (int(n) for n in linear.weight.shape)
        self.frozen, self.frozen_bias, self.scale = linear.weight, linear.bias, alpha / rank
        self.lora_a = Tensor(rng.standard_normal((n_in, rank), dtype=np.float32) * np.float32(1 / math.sqrt(n_in)))
        self.lora_b = Tensor(np.zeros((rank, n_out), np.float32))

    def __call__(self, x: Tensor) -> Tensor:
        correction = kernels.linear(kernels.linear(x, self.lora_a), self.lora_b)  # (..., in) -> (..., r) -> (..., out)
        return kernels.edge(kernels.linear(x, self.frozen, self.frozen_bias) + correction * self.scale)


def adapt(model: "GPT", rank: int, alpha: float, targets: str, seed: int) -> dict[str, Tensor]:
    """Put adapters around the `targets` (names with commas between) of every block; the adapters by name."""
    names = parse_targets(targets)
    rng = np.random.default_rng((seed, 2))
    for block in model.h:
        for part in (block.attn, block.mlp):
            for name in names:
                if hasattr(part, name):
                    setattr(part, name, Adapted(getattr(part, name), rank, alpha, rng))
    return {name: t for name, t in get_state_dict(model).items() if "lora_" in name}


def parse_targets(targets: str) -> list[str]:
    names = [name.strip() for name in targets.split(",")]
    if wrong := [name for name in names if name not in TARGETS]:
        raise UserError(f"--lora-targets can't have {wrong[0]!r}: they are {', '.join(TARGETS)}, with commas between")
    return names


def about(base: Checkpoint, rank: int, alpha: float) -> dict[str, Any]:
    """What a file of adapters says of itself."""
    return {"lora": {"rank": rank, "alpha": alpha, "base": fingerprint(base)}}


def fingerprint(base: Checkpoint) -> str:
    """The SHA-256 of one matrix: it tells models apart, and takes a moment where all of gpt2-xl would take half a
    minute."""
    return hashlib.sha256(base.tensors["h.0.attn.c_attn.weight"].numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class Merged:
    """A matrix with its correction added, worked out when it is asked for."""

    base: Any
    a: Any
    b: Any
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.shape)

    def numpy(self) -> np.ndarray:
        return self.base.numpy() + np.float32(self.scale) * (self.a.numpy() @ self.b.numpy())


def apply(base: Checkpoint, path: Path) -> Checkpoint:
    """The model that a file of adapters makes of its base. Raises UserError for adapters of another model."""
    adapters, said = load_safetensors(path)
    if "lora" not in said:
        raise UserError(f"{path} doesn't hold adapters: train them with --lora-rank")
    require_base(base, said, path)
    tensors: dict[str, Any] = dict(base.tensors)
    scale = said["lora"]["alpha"] / said["lora"]["rank"]
    for name, a in adapters.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            b, weight = adapters.get(f"{layer}.lora_b"), base.tensors.get(f"{layer}.weight")
            if b is None or weight is None or tuple(weight.shape) != (a.shape[0], b.shape[-1]):
                raise UserError(f"{path} doesn't fit {base.path}: {layer} is missing or of another shape")
            tensors[f"{layer}.weight"] = Merged(weight, a, b, scale)
    return replace(base, tensors=tensors)


def require_base(base: Checkpoint, said: Mapping[str, Any], path: Path) -> None:
    """Raise UserError unless the adapters in `path`, which say this of themselves, were trained on `base`."""
    if said["lora"]["base"] != fingerprint(base):
        raise UserError(f"the adapters in {path} were trained on another model than {base.path}")


def merge(model: "GPT") -> "GPT":
    """The model with its corrections added to its matrices, in place."""
    from gpt import Linear

    for block in model.h:
        for part in (block.attn, block.mlp):
            for name in TARGETS:
                layer = getattr(part, name, None)
                if isinstance(layer, Adapted):
                    plain = Linear.__new__(Linear)
                    plain.weight = (layer.frozen + layer.lora_a @ layer.lora_b * layer.scale).contiguous().realize()
                    plain.bias = layer.frozen_bias
                    setattr(part, name, plain)
    return model
