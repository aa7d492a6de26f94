"""Files of LoRA adapters (see lora.py): what they say of their base, and the model that they and their base make."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.conversations import has_turns
from exchange import peft
from exchange.checkpoint import find_checkpoint, model_of, tokenizer_of
from exchange.huggingface import OWNERS
from exchange.layout import Checkpoint
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors, number_in


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
    if metadata.get("lora", {}).get("base") != fingerprint(base):
        raise UserError(f"the adapters in {path} were trained on another model than {base.path}")


def apply_adapters(base: Checkpoint, path: Path) -> Checkpoint:
    """The model that adapters and their base make. `path` is a run, a file of adapters in one, or a folder of PEFT.

    Raises UserError for one without adapters, a damaged one, and adapters of another model.
    """
    if path.is_dir() and Run.holds_one(path):
        run = Run(path)
        base = replace(base.grown(model_of(run)["vocab_size"]), tokenizer=tokenizer_of(run))
        path = path / ("best.safetensors" if Run(path).has("best") else "last.safetensors")
    if path.is_dir() or path.name == peft.WEIGHTS:
        found = peft.read_peft(path if path.is_dir() else path.parent)
    else:
        found, metadata = read_ours(path)
        require_base(base, metadata, path)
    tensors: dict[str, Any] = dict(base.tensors)
    for name, a in found.tensors.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            b, weight = found.tensors.get(f"{layer}.lora_b"), base.tensors.get(f"{layer}.weight")
            fits = b is not None and len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[0]
            if b is None or not fits or weight is None or tuple(weight.shape) != (a.shape[0], b.shape[-1]):
                raise UserError(f"{path} doesn't fit {base.path}: {layer} is missing or of another shape")
            tensors[f"{layer}.weight"] = Merged(weight, a, b, found.alpha / found.rank)
    return replace(base, tensors=tensors)


def read_ours(path: Path) -> tuple[peft.Adapters, dict[str, Any]]:
    """The adapters in a file of a run, and its metadata. Raises UserError for a file without any."""
    tensors, metadata = load_safetensors(path)
    about = metadata.get("lora")
    if not isinstance(about, dict):
        raise UserError(f"{path} doesn't hold adapters: train them with --lora-rank")
    rank, alpha = number_in(about, "rank", path), number_in(about, "alpha", path)
    if rank < 1:
        raise UserError(f"{path} is damaged: the rank in its metadata is {rank}")
    return peft.Adapters(tensors, rank, alpha), metadata


def write_peft(run: Run, name: str, folder: Path, data_dir: Path | str | None = None) -> list[Path]:
    """Write the adapters of a run in PEFT's two files. Returns their paths. Raises UserError when it has none, or when
    they are for more tokens than their base has."""
    run.require(name)
    adapters, _ = read_ours(run.path / f"{name}.safetensors")
    base = run.saved("options", "init_from", str)
    rows = model_of(run)["vocab_size"]
    if has_turns(tokenizer_of(run)) and find_checkpoint(base, data_dir).model["vocab_size"] < rows:
        raise UserError(f"the adapters of {run.path} need the tokens of turns, which {base} lacks: export --merge "
                        "makes one model of both")
    return peft.write_peft(folder, adapters, f"{OWNERS[base]}/{base}" if base in OWNERS else base)


def read_adapted_run(run: Run, name: str, data_dir: Path | str | None = None) -> Checkpoint:
    """The model that the `best` or `last` adapters of a run and the model that they were trained on make.

    `data_dir` is where models of the hub are kept, by default that of the run. Raises UserError if the run has no such
    adapters yet, and if their base can't be read or is another model now.
    """
    path, data_dir = run.path / f"{name}.safetensors", data_dir or run.saved("options", "data_dir", str, type(None))
    source = run.saved("options", "init_from", str)
    if Path(source).is_absolute() and not Path(source).exists():
        raise UserError(f"{source}, which the adapters in {run.path} are for, is gone: name its new place, "
                        f"--init-from NEW --lora {shlex.quote(str(run.path))}")
    base = find_checkpoint(source, data_dir)
    run.require(name)
    numbers = model_of(run)
    model = apply_adapters(base.grown(numbers["vocab_size"]).cropped(numbers["block_size"]), path)
    return replace(model, path=path, tokenizer=tokenizer_of(run))
