"""Files on disk: our run folder, Hugging Face's GPT-2, llm.c's model files. All three are read into a `Checkpoint`.

A run folder is the only thing that passes between training and everything after it:

    config.json         all that is needed to rebuild the model and the tokenizer
    metrics.jsonl       one line per log point
    last.safetensors    the newest weights; best.safetensors those with the lowest validation loss
    state.safetensors   all that is needed to go on: the step, the weights and AdamW's moments, in one file
    sample.txt          text of the finished model

Every file is written whole under another name, flushed, then renamed, so that a run killed at any moment leaves the old
file or the new one. The weights stand in state.safetensors a second time for that reason: two files can't be renamed at
once, and a step counter that disagrees with its weights would be a wrong continuation that looks right.

Nothing is read before its file has been checked from end to end, and then tensor by tensor: a model is never half
loaded, and loading one takes little more memory than the model.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import backend  # before tinygrad

import numpy as np
from tinygrad import Tensor, dtypes

import tokenizer as tk
from cli import UserError, whole
from data.text import Source, Unreachable, default_data_dir, download, read_url


class Run:
    """A run folder, `runs/NAME`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @classmethod
    def new(cls, path: Path | str | None, kind: str) -> "Run":
        """Make the folder: the one asked for, or `runs/KIND-DATE-TIME`. Raises UserError if it holds a run already."""
        run = cls(path or Path("runs", f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"))
        if (run.path / "config.json").exists():
            raise UserError(f"{run.path} already holds a run: go on with --resume {run.path} or choose another --out")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{run.path} can't be made ({error.strerror}); choose another folder with --out") from error
        return run

    @classmethod
    def open(cls, path: Path | str | None, kind: str) -> "Run":
        """The run in `path`, or the newest of its kind in `runs/`. Raises UserError when there is none of that kind."""
        if path is not None:
            run = cls(path)
            if not (run.path / "config.json").is_file():
                raise UserError(f"{path} is not a run folder: it has no config.json")
            if (saved := run.config()["kind"]) != kind:
                raise UserError(f"{path} holds a {saved} run, not one of {kind}.py")
            return run
        runs = newest_runs(kind)
        if not runs:
            raise UserError(f"there is no run in {Path('runs').resolve()} yet: make one with `python {kind}.py`")
        return runs[0]

    @staticmethod
    def holds_one(path: Path | str) -> bool:
        """Whether a folder is a run folder."""
        try:
            return "kind" in json.loads(Path(path, "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return False

    # ---- what the run is ----

    def write_config(self, config: Mapping[str, Any]) -> None:
        self.write_text("config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        with whole(self.path / name) as new:
            new.write_text(text, encoding="utf-8")

    def config(self) -> dict[str, Any]:
        path = self.path / "config.json"
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if missing := {"kind", "options", "model", "tokenizer", "corpus"} - set(saved):
                raise ValueError(f"it has no {min(missing)}")
            return saved
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error})") from error

    def lock(self) -> None:
        """Keep other processes from training into this folder until this one ends. Raises UserError if one does."""
        try:
            import fcntl
        except ImportError:
            return  # Windows has none
        self.locked = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self.locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.path} is being trained by another process: wait for it, or stop it") from error

    def unlock(self) -> None:
        """Let others train into it, before this process ends."""
        if hasattr(self, "locked"):
            os.close(self.locked)
            del self.locked

    # ---- what it measured ----

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. A kill can leave half a line: `metrics` and `forget_after` drop it."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # what follows the last newline was cut short
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise UserError(f"{path} is damaged: a line of it isn't JSON ({error})") from error

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps: a resumed run takes those steps again, and logs them again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def sweep(self) -> None:
        """Remove what a killed process was in the middle of writing."""
        for path in self.path.glob(".*.*.[0-9]*"):
            path.unlink(missing_ok=True)

    # ---- weights and state ----

    def save(self, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any], dtype: str = "F32") -> None:
        """Write `NAME.safetensors`, with `about` (JSON values) in its metadata."""
        save_safetensors(self.path / f"{name}.safetensors", tensors, {"about": json.dumps(about)}, dtype)

    def load(self, name: str) -> tuple[dict[str, "Stored"], dict[str, Any]]:
        """The tensors of `NAME.safetensors`, still on disk, and what `save` was told about them."""
        return load_safetensors(self.path / f"{name}.safetensors")

    def has(self, name: str) -> bool:
        return (self.path / f"{name}.safetensors").is_file()

    def require(self, name: str) -> None:
        """Raise UserError unless there are weights of that name."""
        if not self.has(name):
            other = "--checkpoint last is there" if self.has("last") else "let the run reach its first evaluation"
            raise UserError(f"{self.path} has no {name}.safetensors yet: {other}")


def newest_runs(kind: str, folder: Path | str = "runs") -> list[Run]:
    """The runs of one kind (`gpt`, `bigram`) in a folder, newest first."""
    found = []
    for path in Path(folder).glob("*/config.json"):
        try:
            if json.loads(path.read_text(encoding="utf-8")).get("kind") == kind:
                found.append((path.stat().st_mtime_ns, Run(path.parent)))
        except (OSError, ValueError):
            continue  # a folder that isn't ours, or a run that died while its config was being written
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


# ---- tensors in files ----

# What safetensors calls the types of numbers, as NumPy reads them. NumPy has no bfloat16: those are the upper halves of
# float32 numbers, and are read as 16-bit integers.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2",
          "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8"}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where it is. It is read when it is asked for."""

    path: Path
    offset: int  # of its first byte
    shape: tuple[int, ...]
    dtype: str = "F32"  # one of DTYPES
    transposed: bool = False  # the file has this matrix the other way round

    def numpy(self) -> np.ndarray:
        """Its values, as float32 if they are fractions."""
        shape = self.shape[::-1] if self.transposed else self.shape
        values = np.fromfile(self.path, DTYPES[self.dtype], math.prod(shape), offset=self.offset).reshape(shape)
        if self.dtype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        elif self.dtype in ("F64", "F16"):
            values = values.astype("<f4")
        return values.T if self.transposed else values


def to_bytes(values: np.ndarray, dtype: str) -> memoryview:
    """float32 numbers as a file has them: `F32`, or `F16` and `BF16`, rounded to the nearest, in the middle to even."""
    if dtype == "F16":
        return np.ascontiguousarray(values, "<f2").reshape(-1).view("u1").data
    bits = np.ascontiguousarray(values, "<f4")
    if dtype == "BF16":
        bits = bits.view("<u4")
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return bits.reshape(-1).view("u1").data


def save_safetensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], dtype: str = "F32"
) -> None:
    """Write a safetensors file: 8 bytes of header length, the header as JSON, then the numbers of every tensor."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        shape = [int(n) for n in tensor.shape]
        begin, end = end, end + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    with whole(path) as new, new.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(to_bytes(tensor.numpy(), dtype))


def load_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The tensors of a safetensors file, not read yet, and what `Run.save` was told about them.

    Raises UserError, with the byte where it is wrong, unless the header describes the file to its last byte.
    """
    if not path.is_file():
        raise UserError(f"{path} doesn't exist")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            if size < 8:
                raise ValueError(f"it ends at byte {size}, before the length of its header")
            start = 8 + int.from_bytes(file.read(8), "little")
            if start > size:
                raise ValueError(f"its header should end at byte {start} and the file ends at byte {size}")
            try:
                header = json.loads(file.read(start - 8))
            except ValueError as error:
                raise ValueError(f"its header, from byte 8 to byte {start}, isn't JSON ({error})") from error
        metadata = header.pop("__metadata__", {})
        tensors = {}
        end = start
        for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = (start + offset for offset in about["data_offsets"])
            stored = tensors[name] = Stored(path, begin, tuple(about["shape"]), about["dtype"])
            nbytes = math.prod(stored.shape) * np.dtype(DTYPES[stored.dtype]).itemsize
            if begin != end or stop - begin != nbytes:
                raise ValueError(f"{name} should stand from byte {end} to byte {end + nbytes}, not {begin} to {stop}")
            end = stop
        if end != size:
            raise ValueError(f"its tensors should end at byte {end} and the file ends at byte {size}")
        return tensors, json.loads(metadata.get("about", "{}"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = str(error) if type(error) is ValueError else f"its header at byte 8 isn't one of tensors ({error!r})"
        raise UserError(f"{path} is damaged: {wrong}") from error


def fill(into: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Copy `tensors` into the memory of the tensors of the same names, so that compiled steps stay valid.

    Raises UserError naming every tensor that is missing, unknown or of another shape, before anything is changed.
    """
    wrong = [f"{name} {tuple(into[name].shape)} is missing" for name in into if name not in tensors]
    wrong += [f"{name} {tuple(tensors[name].shape)} is unknown" for name in tensors if name not in into]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(into[name].shape)}"
        for name in into
        if name in tensors and tuple(tensors[name].shape) != tuple(into[name].shape)
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(f"{where} doesn't fit this model: {'; '.join(wrong[:4])}{more}")
    for name, tensor in into.items():
        assert tensor.dtype == dtypes.float32, name
        values = to_bytes(tensors[name].numpy(), "F32")
        for buffer in backend.buffers_of(tensor.realize()):
            buffer.ensure_allocated().copyin(values)


# ---- checkpoints, whatever program wrote them ----


@dataclass(frozen=True)
class Checkpoint:
    """A model in a file: the numbers of its GPTConfig, where its tensors are, under our names, and its tokenizer."""

    path: Path  # of the weights
    model: dict[str, Any]
    tensors: Mapping[str, Any]  # Stored, or whatever else has a shape and numpy()
    tokenizer: tk.Tokenizer | None  # None: the file doesn't say

    def with_biases(self) -> "Checkpoint":
        """The same model where every layer has a bias, as the formats of others demand: zeros where ours has none."""
        if self.model.get("bias", True):
            return self
        tensors = dict(self.tensors)
        for name, t in self.tensors.items():
            if name.startswith(("h.", "ln_f")):
                tensors[name.removesuffix("weight") + "bias"] = Tensor.zeros(t.shape[-1])
        return Checkpoint(self.path, {**self.model, "bias": True}, tensors, self.tokenizer)

    def cropped(self, block_size: int) -> "Checkpoint":
        """The same model with its first `block_size` positions alone."""
        wpe = self.tensors["wpe.weight"]
        assert isinstance(wpe, Stored)
        first = replace(wpe, shape=(block_size, *wpe.shape[1:]))
        model = {**self.model, "block_size": block_size}
        return Checkpoint(self.path, model, {**self.tensors, "wpe.weight": first}, self.tokenizer)


def find_checkpoint(source: str, data_dir: Path | str | None = None) -> Checkpoint:
    """What `--init-from` means: a name on the hub, a run folder, a folder or a .safetensors file of Hugging Face's, or
    a model file of llm.c. Raises UserError when it is none of them."""
    if source in HUB:
        return read_huggingface(fetch(source, data_dir))
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / LLMC_NAMES["model"]).is_file():
            return read_llmc(path / LLMC_NAMES["model"])
        if (path / "config.json").is_file() and "kind" in read_json(path / "config.json"):
            run = Run.open(path, "gpt")
            return read_run(run, "best" if run.has("best") else "last")
        return read_huggingface(path)
    if path.suffix == ".safetensors":
        return read_huggingface(path)
    if path.is_file():
        return read_llmc(path)
    raise UserError(f"--init-from {source} is neither a file nor a folder nor one of {', '.join(HUB)}")


def read_run(run: Run, name: str) -> Checkpoint:
    """The `best` or `last` weights of a run folder. Raises UserError if it has no such checkpoint yet."""
    saved = run.config()
    run.require(name)
    path = run.path / f"{name}.safetensors"
    tensors, about = run.load(name)
    if "lora" in about:
        raise UserError(f"{path} holds adapters alone: gpt.py export --merge makes a model of them and their base")
    return Checkpoint(path, saved["model"], tensors, tk.from_config(saved["tokenizer"]))


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it isn't an object")
        return found
    except FileNotFoundError as error:
        raise UserError(f"{path} doesn't exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error})") from error


# ---- Hugging Face's GPT-2 ----

HUB = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
# Our numbers under the names of its config.json, and what a GPT-2 that this is the architecture of has there.
HF_NUMBERS = {"block_size": "n_positions", "vocab_size": "vocab_size", "n_layer": "n_layer", "n_head": "n_head",
              "n_embd": "n_embd"}  # fmt: skip
HF_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2",), "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}  # fmt: skip


def fetch(name: str, data_dir: Path | str | None = None) -> Path:
    """The folder of a GPT-2 from Hugging Face's hub, downloaded by its public URL where it isn't yet.

    The hub says the size and the SHA-256 of a large file in a small one of three lines, the pointer of git-lfs; the
    download is checked against it. `HF_ENDPOINT` names a mirror, as it does to Hugging Face's own programs.
    """
    folder = (Path(data_dir) if data_dir else default_data_dir()) / "models" / name
    weights, config = folder / "model.safetensors", folder / "config.json"
    if weights.is_file() and config.is_file():
        return folder
    hub = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/openai-community/{name}"
    try:
        with whole(config) as new:
            new.write_bytes(read_url(f"{hub}/resolve/main/config.json"))
        lines = read_url(f"{hub}/raw/main/model.safetensors").decode(errors="replace").split("\n")
        pointer = dict(line.split(" ", 1) for line in lines if " " in line)
        try:
            size, sha256 = int(pointer["size"]), pointer["oid"].removeprefix("sha256:")
        except (KeyError, ValueError) as error:
            raise Unreachable("it doesn't say the size and the SHA-256 of the file") from error
        download(Source(weights.name, f"{hub}/resolve/main/model.safetensors", size, sha256), weights)
    except Unreachable as error:
        raise UserError(f"{hub} can't be had ({error}); bring config.json and model.safetensors as {folder}") from error
    return folder


def read_huggingface(path: Path) -> Checkpoint:
    """A GPT-2 of the `transformers` library: a folder with config.json and model.safetensors, or that file in it.

    The names and layouts are ours. A `transformer.` before the names is dropped, with the buffers that hold the mask
    and a second copy of the tied head. Raises UserError for another architecture than GPT-2's.
    """
    folder = path if path.is_dir() else path.parent
    path = path / "model.safetensors" if path.is_dir() else path
    config = read_json(folder / "config.json")
    if missing := [theirs for theirs in HF_NUMBERS.values() if not isinstance(config.get(theirs), int)]:
        raise UserError(f"{folder / 'config.json'} has no number {missing[0]}: it isn't a GPT-2's")
    model = {ours: config[theirs] for ours, theirs in HF_NUMBERS.items()}
    for name, known in (HF_FIXED | {"n_inner": (None, 4 * model["n_embd"])}).items():
        if name in config and config[name] not in known:
            raise UserError(f"{folder / 'config.json'} has {name} = {config[name]!r}, and GPT-2 {known[0]!r}")
    found: dict[str, Stored] = {}
    if not path.is_file() and (folder / "model.safetensors.index.json").is_file():
        for shard in set(read_json(folder / "model.safetensors.index.json").get("weight_map", {}).values()):
            found |= load_safetensors(folder / shard)[0]
    else:
        found, _ = load_safetensors(path)
    named = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    head = named.pop("lm_head.weight", None)
    if head and "wte.weight" in named and not np.array_equal(head.numpy(), named["wte.weight"].numpy()):
        raise UserError(f"{path} isn't a GPT-2: its lm_head.weight differs from its wte.weight, and here they are one")
    tensors = {name: t for name, t in named.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    return Checkpoint(path, model, tensors, huggingface_tokenizer(folder, config))


def huggingface_tokenizer(folder: Path, config: Mapping[str, Any]) -> tk.Tokenizer | None:
    """The tokenizer of a folder: the one that `write_huggingface` noted, that of its vocab.json and merges.txt, or
    GPT-2's for a model with as many tokens."""
    try:
        if TOKENIZER in config:
            return tk.from_config(config[TOKENIZER])
        if config["vocab_size"] == 50257:
            return tk.GPT2Tokenizer()
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return tk.RegexTokenizer.from_huggingface(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"the tokenizer in {folder} can't be read: {error}") from error
    return None


TOKENIZER = "llm_fundamentals_tokenizer"  # in config.json, where `transformers` leaves alone what it doesn't know


def write_huggingface(folder: Path, checkpoint: Checkpoint, dtype: str = "F32") -> None:
    """Write a folder that `transformers` loads: config.json, model.safetensors and the vocabulary of a BPE."""
    checkpoint = checkpoint.with_biases()
    tokenizer = checkpoint.tokenizer
    config = {theirs: checkpoint.model[ours] for ours, theirs in HF_NUMBERS.items()}
    end = getattr(tokenizer, "special_tokens", {}).get("<|endoftext|>")
    config |= {name: known[0] for name, known in HF_FIXED.items()} | {
        "architectures": ["GPT2LMHeadModel"], "n_ctx": config["n_positions"], "n_inner": None,
        "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}[dtype], "bos_token_id": end, "eos_token_id": end,
    }  # fmt: skip
    if tokenizer and not isinstance(tokenizer, tk.GPT2Tokenizer):
        config[TOKENIZER] = tokenizer.config()
    save_safetensors(folder / "model.safetensors", {f"transformer.{name}": t for name, t in checkpoint.tensors.items()},
                     {"format": "pt"}, dtype)  # fmt: skip
    if isinstance(tokenizer, tk.BasicTokenizer):
        try:
            tokenizer.to_huggingface(folder)
        except ValueError as error:
            raise UserError(f"the tokenizer can't be written as Hugging Face's: {error}") from error
        with whole(folder / "tokenizer_config.json") as new:
            about = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config["n_positions"]}
            new.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    with whole(folder / "config.json") as new:
        new.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- llm.c ----
#
# A file begins with 256 int32 numbers, the first of them its kind and the second its version. Everything is
# little-endian. In a model file the tensors follow in the order below; a star stands for the layers, one after the
# other. The programs open files of these very names in the current folder, whatever the size of the model in them.

LLMC_NAMES = {"model": "gpt2_124M.bin", "state": "gpt2_124M_debug_state.bin", "tokenizer": "gpt2_tokenizer.bin"}
MODEL_MAGIC, STATE_MAGIC, TOKENIZER_MAGIC = 20240326, 20240327, 20240328
MODEL_VERSIONS = {3: "F32", 5: "BF16"}
LLMC_ORDER = (
    "wte.weight", "wpe.weight", "h.*.ln_1.weight", "h.*.ln_1.bias", "h.*.attn.c_attn.weight", "h.*.attn.c_attn.bias",
    "h.*.attn.c_proj.weight", "h.*.attn.c_proj.bias", "h.*.ln_2.weight", "h.*.ln_2.bias", "h.*.mlp.c_fc.weight",
    "h.*.mlp.c_fc.bias", "h.*.mlp.c_proj.weight", "h.*.mlp.c_proj.bias", "ln_f.weight", "ln_f.bias",
)  # fmt: skip


def llmc_layout(model: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], bool, int]]:
    """Every tensor in the order of llm.c's files: its name, our shape, whether theirs is `(out, in)` where ours is
    `(in, out)`, and how many numbers of padding follow (the rows that round the vocabulary up to a multiple of 128)."""
    V, T, C = model["vocab_size"], model["block_size"], model["n_embd"]
    tables = {"wte": (V, C), "wpe": (T, C)}
    linear = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    for pattern in LLMC_ORDER:
        layer, _, kind = pattern.removeprefix("h.*.").rpartition(".")
        shape: tuple[int, ...] = (tables | linear).get(layer, (C,))
        if kind == "bias":
            shape = shape[-1:]
        padding = (-V % 128) * C if layer == "wte" else 0
        for i in range(model["n_layer"] if "*" in pattern else 1):
            yield pattern.replace("*", str(i)), shape, layer in linear and kind == "weight", padding


def llmc_header(*numbers: int) -> bytes:
    return np.array([*numbers, *[0] * (256 - len(numbers))], "<i4").tobytes()


def read_llmc_header(path: Path, magic: int, versions: Mapping[int, Any], what: str) -> list[int]:
    """The 256 numbers at the beginning of one of llm.c's files. Raises UserError unless they are of that kind."""
    try:
        with path.open("rb") as file:
            data = file.read(1024)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    if len(data) < 1024:
        raise UserError(f"{path} is damaged: it ends at byte {len(data)}, before the end of its header at byte 1024")
    header = np.frombuffer(data, "<i4").tolist()
    if header[0] != magic:
        if header[0] == int.from_bytes(magic.to_bytes(4, "big"), "little", signed=True):
            raise UserError(f"{path} is big-endian from byte 0 on, and llm.c's files are little-endian: write it anew")
        raise UserError(f"{path} isn't {what} of llm.c: the number at byte 0 is {header[0]}, not {magic}")
    if header[1] not in versions:
        known = " and ".join(map(str, versions))
        raise UserError(f"{path} has version {header[1]} at byte 4, and only {known} of {what} can be read")
    return header


def write_llmc_tensors(file: BinaryIO, model: Mapping[str, Any], tensors: Mapping[str, Any], dtype: str) -> None:
    for name, _, transposed, padding in llmc_layout(model):
        values = tensors[name].numpy()
        file.write(to_bytes(values.T if transposed else values, dtype))
        file.write(bytes(padding * np.dtype(DTYPES[dtype]).itemsize))


def place_llmc_tensors(path: Path, model: Mapping[str, Any], offset: int, dtype: str) -> dict[str, Stored]:
    """Where the tensors stand in a file whose first is at byte `offset`. Raises UserError unless they end with it."""
    tensors, itemsize = {}, np.dtype(DTYPES[dtype]).itemsize
    for name, shape, transposed, padding in llmc_layout(model):
        tensors[name] = Stored(path, offset, shape, dtype, transposed)
        offset += (math.prod(shape) + padding) * itemsize
    if (size := path.stat().st_size) != offset:
        raise UserError(f"{path} is damaged: its tensors should end at byte {offset} and the file ends at byte {size}")
    return tensors


def write_llmc(path: Path, checkpoint: Checkpoint, dtype: str = "F32") -> None:
    """Write a model file of llm.c: version 3 for `F32`, which is what its train_gpt2 reads on the CPU, 5 for `BF16`."""
    checkpoint = checkpoint.with_biases()
    m = checkpoint.model
    version = next(number for number, name in MODEL_VERSIONS.items() if name == dtype)
    padded = m["vocab_size"] + -m["vocab_size"] % 128
    numbers = (m["block_size"], m["vocab_size"], m["n_layer"], m["n_head"], m["n_embd"], padded)
    with whole(path) as new, new.open("wb") as file:
        file.write(llmc_header(MODEL_MAGIC, version, *numbers))
        write_llmc_tensors(file, m, checkpoint.tensors, dtype)


def read_llmc(path: Path) -> Checkpoint:
    """A model file of llm.c, and the tokenizer file beside it if there is one.

    Raises UserError, with the byte where it is wrong, for a file of another kind, version, byte order or length.
    """
    header = read_llmc_header(path, MODEL_MAGIC, MODEL_VERSIONS, "a model file")
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    model = dict(zip(names, header[2:7]))
    for i, (name, number) in enumerate(model.items(), 2):
        if number < 1:
            raise UserError(f"{path} is damaged: {name} at byte {4 * i} is {number}")
    if header[7] != model["vocab_size"] + -model["vocab_size"] % 128:
        raise UserError(f"{path} is damaged: the padded vocabulary at byte 28 is {header[7]}, which isn't "
                        f"{model['vocab_size']} rounded up to a multiple of 128")  # fmt: skip
    tensors = place_llmc_tensors(path, model, 1024, MODEL_VERSIONS[header[1]])
    beside = path.with_name(LLMC_NAMES["tokenizer"])
    tokenizer: tk.Tokenizer | None = None
    if beside.is_file():
        tokenizer = read_llmc_tokenizer(beside)
    elif model["vocab_size"] == 50257:
        tokenizer = tk.GPT2Tokenizer()
    return Checkpoint(path, model, tensors, tokenizer)


@dataclass(frozen=True)
class DebugState:
    """What llm.c's test_gpt2 checks a forward and a backward pass against."""

    x: np.ndarray  # (B, T) int32, tokens
    y: np.ndarray  # (B, T) int32, the tokens after them
    logits: np.ndarray  # (B, T, V) float32
    loss: float
    gradients: Mapping[str, Any]  # of every tensor, under our names and in our layouts


def write_llmc_state(path: Path, model: Mapping[str, Any], state: DebugState) -> None:
    B, T = state.x.shape
    with whole(path) as new, new.open("wb") as file:
        file.write(llmc_header(STATE_MAGIC, 2, B, T))
        for values in (state.x.astype("<i4"), state.y.astype("<i4"), state.logits.astype("<f4")):
            file.write(values.tobytes())
        file.write(np.array([state.loss], "<f4").tobytes())
        write_llmc_tensors(file, model, state.gradients, "F32")


def read_llmc_state(path: Path, model: Mapping[str, Any]) -> DebugState:
    """The debug state of a model with the configuration `model`, which the file itself doesn't have."""
    B, T = read_llmc_header(path, STATE_MAGIC, {2: None}, "a debug state")[2:4]
    if min(B, T) < 1:
        raise UserError(f"{path} is damaged: its batch at byte 8 is {B} x {T}")
    n, V = 4 * B * T, model["vocab_size"]
    gradients = place_llmc_tensors(path, model, 1024 + 2 * n + n * V + 4, "F32")  # checks the length of the file
    x, y = (Stored(path, at, (B, T), "I32").numpy() for at in (1024, 1024 + n))
    logits, loss = Stored(path, 1024 + 2 * n, (B, T, V)).numpy(), Stored(path, 1024 + 2 * n + n * V, ()).numpy()
    return DebugState(x, y, logits, float(loss), gradients)


def write_llmc_tokenizer(path: Path, tokenizer: tk.Tokenizer) -> None:
    """Write llm.c's table for decoding: the length of every token as one byte, then its bytes.

    Its header also names the token that texts begin with: <|endoftext|>, else a new line, else the first.
    """
    try:
        tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    except (KeyError, ValueError) as error:
        raise UserError(f"llm.c's tokenizer file needs a token for every id, and here there is no {error}") from error
    if bad := next((t for t in tokens if not 0 < len(t) < 256), None):
        raise UserError(f"llm.c's tokenizer file holds tokens of 1 to 255 bytes, and one here has {len(bad)}")
    first = next((t for t in (b"<|endoftext|>", b"\n") if t in tokens), tokens[0])
    with whole(path) as new, new.open("wb") as file:
        file.write(llmc_header(TOKENIZER_MAGIC, 2, len(tokens), tokens.index(first)))
        for token in tokens:
            file.write(bytes([len(token)]) + token)


def read_llmc_tokenizer(path: Path) -> tk.Tokenizer:
    """The tokenizer whose tokens a file of llm.c lists: GPT-2's, one of characters, or a BPE.

    The file has no merges: they are worked out from the tokens, as from a tiktoken.Encoding, and the pattern is taken
    to be GPT-2's. Raises UserError, with the byte where it is wrong, for a file of another kind or length.
    """
    header = read_llmc_header(path, TOKENIZER_MAGIC, {1: None, 2: None}, "a tokenizer file")
    end = header[3] if header[1] == 2 else 50256
    data, at, tokens = path.read_bytes(), 1024, []
    for i in range(header[2]):
        length = data[at] if at < len(data) else 0
        if not length or at + 1 + length > len(data):
            raise UserError(f"{path} is damaged: token {i} of {header[2]} at byte {at} is empty or cut short")
        tokens.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    if at != len(data) or not tokens:
        raise UserError(f"{path} is damaged: its tokens end at byte {at} and the file ends at byte {len(data)}")
    if len(tokens) == 50257 and dict(enumerate(tokens)) == (gpt2 := tk.GPT2Tokenizer()).vocab:
        return gpt2
    texts = [token.decode(errors="replace") for token in tokens]
    if all(len(t) == 1 for t in texts) and "\ufffd" not in texts:
        return tk.CharTokenizer("".join(texts))
    special = {texts[end]: end} if 0 <= end < len(tokens) and len(tokens[end]) > 1 else {}
    try:
        ranks = {token: i for i, token in enumerate(tokens) if i not in special.values()}
        return tk.RegexTokenizer.from_ranks(ranks, tk.PATTERNS["gpt2"], special, str(path))
    except ValueError as error:
        raise UserError(f"{path} isn't the table of a tokenizer that can encode: {error}") from error
