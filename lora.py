"""LoRA (Hu et al., arXiv:2106.09685): leave a pretrained matrix as it is, and train a small correction to it.

y = x W becomes y = x W + alpha / r * (x A) B, with A `(in, r)`, B `(r, out)` and a rank r of 8 or so. B starts at zero:
at the first step the model is the pretrained one, to the last bit. Only A and B have gradients and AdamW's moments, and
only they are saved. When training is over the correction can be added to the matrix, and then it costs no time.
"""

import math

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from gpt import GPT, Linear, linear
from runtime.errors import UserError

TARGETS = ("c_attn", "c_proj", "c_fc")  # the matrices of a block; c_proj is the last of the attention and of the MLP


class Adapted:
    """A `Linear` that stays as it is, and the two matrices that correct it.

    Its matrix is called `frozen` and not `weight`, so that nothing takes it for the whole layer.
    """

    def __init__(self, original: Linear, rank: int, alpha: float, rng: np.random.Generator):
        n_in, n_out = (int(n) for n in original.weight.shape)
        self.frozen, self.frozen_bias, self.scale = original.weight, original.bias, alpha / rank
        start = rng.standard_normal((n_in, rank), dtype=np.float32) * np.float32(1 / math.sqrt(n_in))
        self.lora_a = Tensor(start).realize()
        self.lora_b = Tensor(np.zeros((rank, n_out), np.float32)).realize()

    def __call__(self, x: Tensor) -> Tensor:
        correction = linear(linear(x, self.lora_a), self.lora_b)  # (..., in) -> (..., r) -> (..., out)
        return linear(x, self.frozen, self.frozen_bias) + correction * self.scale

    def merged(self) -> Linear:
        """A `Linear` with the correction added to its matrix."""
        n_in, n_out = (int(n) for n in self.frozen.shape)
        plain = Linear(None, n_in, n_out, bias=False)
        plain.weight = (self.frozen + self.lora_a @ self.lora_b * self.scale).contiguous().realize()
        plain.bias = self.frozen_bias
        return plain


def adapt(model: GPT, rank: int, alpha: float, targets: str, seed: int) -> dict[str, Tensor]:
    """Put adapters around the `targets` (names with commas between) of every block; returns their A and B by name.

    Raises UserError for a target that isn't one of TARGETS.
    """
    names = parse_targets(targets)
    rng = np.random.default_rng((seed, 2))
    for block in model.h:
        for part in (block.attn, block.mlp):
            for name in names:
                if hasattr(part, name):
                    setattr(part, name, Adapted(getattr(part, name), rank, alpha, rng))
    return {name: t for name, t in get_state_dict(model).items() if "lora_" in name}


def parse_targets(targets: str) -> list[str]:
    """The names in a list with commas between. Raises UserError for one that isn't one of TARGETS."""
    names = [name.strip() for name in targets.split(",")]
    if wrong := [name for name in names if name not in TARGETS]:
        raise UserError(f"--lora-targets can't have {wrong[0]!r}: they are {', '.join(TARGETS)}, with commas between")
    return names


def merge(model: GPT) -> GPT:
    """The model with its corrections added to its matrices, in place."""
    for block in model.h:
        for part in (block.attn, block.mlp):
            for name in TARGETS:
                layer = getattr(part, name, None)
                if isinstance(layer, Adapted):
                    setattr(part, name, layer.merged())
    return model
