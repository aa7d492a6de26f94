"""Checkpoints of every program: found by name or by path, and read as one kind of thing."""

from pathlib import Path
from typing import Any

import tokenizer as tk
from exchange.huggingface import HUB, fetch, is_hub_name, read_huggingface
from exchange.layout import Checkpoint, numbers_of
from exchange.llmc import LLMC_NAMES, read_llmc
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import refuse_pickle


def find_checkpoint(source: str, data_dir: Path | str | None = None) -> Checkpoint:
    """The model that `--init-from` names.

    `source` is a run folder or weights in it, a folder or a .safetensors file of Hugging Face's, a folder or a model
    file of llm.c, or a name on Hugging Face's hub. Raises UserError when it is none of them, or can't be fetched, or is
    damaged.
    """
    path = Path(source).expanduser()
    if source in HUB or (is_hub_name(source) and not path.exists()):
        return read_huggingface(fetch(source, data_dir))
    if path.is_dir():
        if (path / LLMC_NAMES["model"]).is_file():
            return read_llmc(path / LLMC_NAMES["model"])
        if Run.holds_one(path):
            run = Run.open(path, "gpt")
            return read_run(run, "best" if run.has("best") else "last")
        return read_huggingface(path)
    if path.suffix == ".safetensors":
        return read_weights(path)
    if path.is_file():
        refuse_pickle(path)
        return read_llmc(path)
    raise UserError(f"{source} is neither a file nor a folder nor one of {', '.join(HUB)} nor OWNER/NAME on the hub")


def read_weights(path: Path) -> Checkpoint:
    """The model in a .safetensors file: that of a run, if it lies in a run folder, else one of Hugging Face's."""
    if not path.is_file() or not Run.holds_one(path.parent):
        return read_huggingface(path)
    if path.stem not in ("best", "last"):
        raise UserError(f"{path} isn't a model: name the run {path.parent} or its best.safetensors")
    return read_run(Run.open(path.parent, "gpt"), path.stem)


def read_run(run: Run, name: str) -> Checkpoint:
    """The `best` or `last` weights of a run folder.

    Raises UserError if it has no such checkpoint yet, if one of its files is damaged, and if it holds adapters.
    """
    run.require(name)
    path = run.path / f"{name}.safetensors"
    tensors, metadata = run.load(name)
    if "lora" in metadata:
        raise UserError(f"{path} holds adapters alone: gpt.py export --merge makes a model of them and their base")
    return Checkpoint(path, model_of(run), tensors, tokenizer_of(run))


def model_of(run: Run) -> dict[str, Any]:
    """The numbers of a run's model. Raises UserError when its config.json is damaged."""
    return numbers_of(run.config()["model"], run.path / "config.json")


def tokenizer_of(run: Run) -> tk.Tokenizer:
    """The tokenizer in a run's config.json. Raises UserError when it is damaged."""
    try:
        return tk.from_config(run.config()["tokenizer"])
    except (ValueError, OverflowError) as error:
        raise UserError(f"{run.path / 'config.json'} is damaged (its tokenizer: {error})") from error
