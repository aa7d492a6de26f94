"""GPT-2 and Llama in the files of Hugging Face's `transformers`, and its hub.

https://github.com/huggingface/transformers
"""

import json
import os
import re
import shlex
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tokenizer as tk
from data.corpora import default_data_dir
from exchange import llama
from exchange.foreign import read_tokenizer_json, without_wrappers
from exchange.layout import Checkpoint, departures, numbers_of
from exchange.tokenizer_json import why_not, write_tokenizer_json
from runtime.download import Source, Unreachable, download, read_url
from runtime.errors import UserError
from runtime.files import atomic_write, read_json
from runtime.tensors import Stored, load_safetensors, refuse_pickle, save_safetensors

HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
OWNERS = dict.fromkeys(HUB, "openai-community") | {"distilgpt2": "distilbert"}
# Our numbers and their names in config.json; then what config.json has for this very architecture, the default first.
HF_NUMBERS = {
    "block_size": "n_positions", "vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head",
    "n_embd": "n_embd",
}
HF_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
TOKENIZER = "llm_fundamentals_tokenizer"  # a key of config.json that `transformers` ignores


def is_hub_name(source: str) -> bool:
    """Whether this can be the name of a model on the hub: one of HUB, or `owner/name`."""
    return source in HUB or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source, re.ASCII) is not None


def fetch(source: str, data_dir: Path | str | None = None) -> Path:
    """The folder of a GPT-2 from Hugging Face's hub, downloaded from its public URL if it isn't here yet.

    `source` is one of HUB or `owner/name`; the files of a tokenizer come too where it has some. The hub has the size
    and the SHA-256 of a large file in a small one of three lines, the pointer of git-lfs; the download is checked
    against it. `HF_ENDPOINT` names a mirror, as it does for Hugging Face's own programs.
    Raises UserError when it can't be fetched or written.
    """
    owner, name = source.split("/") if "/" in source else (OWNERS[source], source)
    known = OWNERS.get(name) == owner  # by its name alone, as before there were owners
    folder = (Path(data_dir) if data_dir else default_data_dir()) / "models" / (name if known else f"{owner}/{name}")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if weights.is_file() and config.is_file():
        return folder
    hub = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{owner}/{name}"
    try:
        for file in TOKENIZER_FILES:
            fetch_if_there(f"{hub}/resolve/main/{file}", folder / file)
        with atomic_write(config) as new:
            new.write_bytes(read_url(f"{hub}/resolve/main/config.json"))
        lines = read_url(f"{hub}/raw/main/model.safetensors").decode(errors="replace").split("\n")
        pointer = dict(line.split(" ", 1) for line in lines if " " in line)
        try:
            size, sha256 = int(pointer["size"]), pointer["oid"].removeprefix("sha256:")
        except (KeyError, ValueError) as error:
            raise Unreachable("it doesn't give the size and the SHA-256 of the file") from error
        download(Source(weights.name, f"{hub}/resolve/main/model.safetensors", size, sha256), weights)
    except Unreachable as error:
        here = "" if source in HUB else f"there is no {source} here, and "
        raise UserError(
            f"{here}{hub} can't be downloaded ({error}); put config.json and model.safetensors into {folder} yourself"
        ) from error
    return folder


def fetch_if_there(url: str, path: Path) -> None:
    """Fetch a small file that a repository may not have. Raises Unreachable when the address doesn't answer at all."""
    try:
        data = read_url(url)
    except Unreachable as error:
        if isinstance(error.__cause__, urllib.error.HTTPError):  # it answers that there is no such file
            return
        raise
    with atomic_write(path) as new:
        new.write_bytes(data)


def read_huggingface(path: Path) -> Checkpoint:
    """A GPT-2 or Llama of the `transformers` library: a folder with config.json and model.safetensors, or that file.

    GPT-2's names and layouts are ours. A `transformer.` before the names is dropped, and so are the buffers that hold
    the mask and a second copy of the tied head. Raises UserError for another architecture, and for a file that is
    missing or damaged.
    """
    folder = path if path.is_dir() else path.parent
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file() and not (folder / "model.safetensors.index.json").is_file():
        for pickled in sorted({*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")}):
            refuse_pickle(pickled)
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds adapters of PEFT alone: name their base with --init-from, and add "
                            f"--lora {shlex.quote(str(folder))}")
    config = read_json(folder / "config.json")
    if config.get("model_type") == "llama":
        model = llama.read_numbers(config, folder / "config.json")
        tensors = llama.read_tensors(model, read_stored(path), path)
        return Checkpoint(path, model, tensors, huggingface_tokenizer(folder, config))
    if missing := [theirs for theirs in HF_NUMBERS.values() if not isinstance(config.get(theirs), int)]:
        raise UserError(f"{folder / 'config.json'} has no number {missing[0]}: it isn't a GPT-2's")
    model = numbers_of({ours: config[theirs] for ours, theirs in HF_NUMBERS.items()}, folder / "config.json")
    for name, known in (HF_FIXED | {"n_inner": (None, 4 * model["n_embd"])}).items():
        if name in config and config[name] not in known:
            raise UserError(f"{folder / 'config.json'} has {name} = {config[name]!r}, and GPT-2 has {known[0]!r}")
    stored = read_stored(path)
    named = {new: stored[name] for name, new in without_wrappers(stored).items()}
    if len(named) < len(stored):
        raise UserError(f"{path} has two tensors for one of GPT-2's: is it one model?")
    head = named.pop("lm_head.weight", None)
    if head and "wte.weight" in named and not np.array_equal(head.numpy(), named["wte.weight"].numpy()):
        raise UserError(f"{path} isn't a GPT-2: its lm_head.weight differs from its wte.weight, and here they are one")
    tensors = {name: t for name, t in named.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    return Checkpoint(path, model, tensors, huggingface_tokenizer(folder, config))


def read_stored(path: Path) -> dict[str, Stored]:
    """The tensors of model.safetensors, or of the files that its index names if it is in several."""
    index = path.parent / "model.safetensors.index.json"
    if path.is_file() or not index.is_file():
        return load_safetensors(path)[0]
    stored: dict[str, Stored] = {}
    for part in set(read_json(index).get("weight_map", {}).values()):
        stored |= load_safetensors(path.parent / part)[0]
    return stored


def huggingface_tokenizer(folder: Path, config: Mapping[str, Any]) -> tk.Tokenizer | None:
    """The tokenizer of a folder: the one that `write_huggingface` noted, or that of tokenizer.json, which transformers
    takes first too, or of vocab.json and merges.txt; in a folder without any such file GPT-2's for a model with as many
    tokens, else None. Raises UserError for a damaged one."""
    exists = lambda name: (folder / name).is_file()
    try:
        if TOKENIZER in config:
            return tk.from_config(config[TOKENIZER])
        if exists("tokenizer.json"):
            found: tk.BasicTokenizer = read_tokenizer_json(folder / "tokenizer.json")
        elif exists("vocab.json") and exists("merges.txt"):
            found = tk.RegexTokenizer.from_huggingface(folder)
        elif config["vocab_size"] == 50257 and not exists("vocab.json") and not exists("merges.txt"):
            return tk.GPT2Tokenizer()
        else:
            return None
        known = tk.GPT2Tokenizer() if found.vocab_size == 50257 else None
        parts = lambda t: (t.vocab, t.merges, t.special_tokens, getattr(t, "pattern", None))
        return known if known and parts(known) == parts(found) else found
    except (ValueError, OSError) as error:
        raise UserError(f"the tokenizer in {folder} can't be read: {error}") from error


def hf_files(folder: Path) -> list[Path]:
    """Every file that `write_huggingface` may write, and the one that `read_huggingface` would take for an index."""
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
    return [folder / name for name in (*names, "model.safetensors.index.json")]


def write_huggingface(folder: Path, checkpoint: Checkpoint, dtype: str = "F32") -> list[Path]:
    """Write a folder that `transformers` loads: config.json, model.safetensors and the tokenizer, if it is a BPE whose
    split can be said there (`why_not`).

    `dtype` is `F32` or `BF16`. Returns the paths of the files. Raises UserError when one can't be written.
    """
    tokenizer, T = checkpoint.tokenizer, checkpoint.model["block_size"]
    if departures(checkpoint.model):
        config = llama.write_config(checkpoint.model)
        tensors = llama.write_tensors(checkpoint.model, checkpoint.tensors)
    else:
        checkpoint = checkpoint.with_biases()
        config = {theirs: checkpoint.model[ours] for ours, theirs in HF_NUMBERS.items()}
        config |= {name: known[0] for name, known in HF_FIXED.items()}
        config |= {"architectures": ["GPT2LMHeadModel"], "n_ctx": T, "n_inner": None}
        tensors = {f"transformer.{name}": tensor for name, tensor in checkpoint.tensors.items()}
    end = getattr(tokenizer, "special_tokens", {}).get("<|endoftext|>")
    kind = {"F32": "float32", "BF16": "bfloat16"}[dtype]
    config |= {"torch_dtype": kind, "bos_token_id": end, "eos_token_id": end}
    if tokenizer and not isinstance(tokenizer, tk.GPT2Tokenizer):
        config[TOKENIZER] = tokenizer.config()
    paths = [folder / "config.json", folder / "model.safetensors"]
    save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"}, dtype)
    try:
        if isinstance(tokenizer, tk.BasicTokenizer) and not why_not(tokenizer):
            paths += write_tokenizer_json(folder, tokenizer, T)
            if getattr(tokenizer, "pattern", "") == tk.GPT2_SPLIT_PATTERN:  # with which other programs read them
                tokenizer.to_huggingface(folder)
                paths += [folder / name for name in ("merges.txt", "vocab.json")]
    except ValueError as error:
        raise UserError(f"the tokenizer can't be written as Hugging Face's: {error}") from error
    with atomic_write(folder / "config.json") as new:
        new.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return paths
