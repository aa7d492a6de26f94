"""A model as one C file: model.c, which computes, and model.bin, which holds the weights and the tokenizer.

The file's format is described in model.c, in the order in which it is read; the functions here are the same from the
other side.
"""

import functools
import importlib.util
import itertools
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import regex

import tokenizer as tk
from exchange.layout import Checkpoint
from runtime.device import cache_folder
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.tensors import to_bytes
from runtime.text import NEWER_THAN_TIKTOKEN

SOURCE = Path(__file__).with_name("model.c")
LANES, GROUP, LINE = 16, 64, 64  # rows in a block, inputs that share a scale, bytes that every part is a multiple of
DTYPES = ("float32", "bfloat16", "int8")
CHOICES = {"norm": ("layernorm", "rmsnorm"), "mlp": ("gelu", "relu2", "swiglu"), "pos": ("learned", "rope", "none")}
# What zig, which is a clang, is told for each machine that --build names, and what the program is called there.
TARGETS = {
    "native": ("-mcpu=native", "model"),
    "aarch64": ("-target aarch64-linux-musl", "model-aarch64"),
    "riscv64": ("-target riscv64-linux-musl", "model-riscv64"),
    "windows": ("-target x86_64-windows-gnu -mcpu=x86_64_v3", "model.exe"),  # AVX2: any since 2013
    "macos": ("-target aarch64-macos -mcpu=apple_m1", "model-macos"),
    "wasm": ("-target wasm32-wasi -msimd128", "model.wasm"),
}
LARGEST_EMBEDDED = 128 << 20  # bytes of weights: a C file of more than twice as many takes a compiler minutes


def pad(values: np.ndarray, *multiples: int) -> np.ndarray:
    """An array with zeros up to a multiple of these sizes."""
    return np.pad(values, [(0, -n % m) for n, m in zip(values.shape, multiples)])


def quantize(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `(..., n)` as int8 `(..., n / 64, 64)` and scales `(..., n / 64)`: weights = int8 * scale, nearly.

    A scale is the largest of 64 weights over 127, so that each weight is at most half a scale off.
    """
    groups = weights.reshape(*weights.shape[:-1], -1, GROUP)
    scale = np.abs(groups).max(-1) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    return np.rint(groups * inverse[..., None]).astype(np.int8), scale


def packed_bytes(outputs: int, inputs: int, dtype: str) -> int:
    """How much memory `pack_matrix` fills."""
    of_group = {"float32": 256, "bfloat16": 128, "int8": 68}[dtype]  # for each output
    return -(-outputs // LANES) * LANES * -(-inputs // GROUP) * of_group


def pack_matrix(weights: np.ndarray, dtype: str) -> np.ndarray:
    """A matrix `(outputs, inputs)` as 32-bit words: `(blocks, lines, 16)`, a column for each of a block's 16 outputs.

    A word is one float32, or two bfloat16 of inputs i and i + 16, or four int8 of i, i + 16, i + 32 and i + 48. In int8
    the line before each 16 has the scales of 64 inputs, and the numbers are int8 + 128.
    """
    w = pad(np.asarray(weights, np.float32), LANES, GROUP)
    blocks = len(w) // LANES
    if dtype == "float32":
        parts = w.view("<u4").reshape(blocks, LANES, -1, 1, 16)
    elif dtype == "bfloat16":
        parts = np.frombuffer(to_bytes(w, "BF16"), "<u2").astype("<u4").reshape(blocks, LANES, -1, 2, 16)
    else:
        q, scale = quantize(w)
        parts = (q.astype(np.int16) + 128).astype("<u4").reshape(blocks, LANES, -1, 4, 16)
    words = sum(parts[..., i, :] << np.uint32(32 // parts.shape[3] * i) for i in range(parts.shape[3]))
    assert isinstance(words, np.ndarray)  # (blocks, outputs, lines of 16 inputs' words, inputs)
    lines = words.transpose(0, 2, 3, 1)  # (blocks, groups, inputs, outputs)
    if dtype == "int8":
        scales = scale.view("<u4").reshape(blocks, LANES, -1, 1).transpose(0, 2, 3, 1)  # (blocks, groups, 1, outputs)
        lines = np.concatenate([scales, lines], 2)
    return np.ascontiguousarray(lines).reshape(blocks, -1, LANES)


# ---- the tokenizer ----


@functools.cache
def character_classes() -> np.ndarray:
    """Letters, numbers and white space of Unicode as the tokenizers' patterns see them: rows of first, last, class."""
    text = "".join(chr(i) if not 0xD800 <= i < 0xE000 else "\0" for i in range(0x110000))
    text = NEWER_THAN_TIKTOKEN.sub("\0", text)
    rows = [(m.start(), m.end() - 1, kind) for kind, pattern in ((1, r"\p{L}+"), (2, r"\p{N}+"), (3, r"\s+"))
            for m in regex.finditer(pattern, text)]
    return np.array(sorted(rows), "<u4")


def pack_tokenizer(tokenizer: tk.Tokenizer) -> tuple[dict[str, int], list[np.ndarray]]:
    """The header's numbers of a tokenizer, and its tables in the order of the file.

    Raises UserError for a pattern that model.c doesn't know.
    """
    splits = {tk.GPT2_SPLIT_PATTERN: 2, tk.GPT4_SPLIT_PATTERN: 3}
    bpe = tokenizer if isinstance(tokenizer, tk.BasicTokenizer) else None
    kind = 0 if not bpe else splits.get(bpe.pattern, -1) if isinstance(bpe, tk.RegexTokenizer) else 1
    if kind < 0:
        raise UserError("model.c splits text as GPT-2 or GPT-4 do, and this tokenizer has a pattern of its own: train "
                        "one with the pattern gpt2 or gpt4")
    tokens = [tokenizer.vocab.get(i, b"") for i in range(tokenizer.vocab_size)]
    offsets = list(itertools.accumulate(map(len, tokens), initial=0))
    by_bytes = {token: i for i, token in tokenizer.ordinary_vocab().items()}  # of two that are equal, the later one
    special = sorted(tokenizer.special_tokens.values(), key=lambda i: -len(tokenizer.vocab[i].decode()))
    merges = np.array(sorted((a, b, i) for (a, b), i in bpe.merges.items()) if bpe else [], "<u4")
    classes = character_classes() if kind >= 2 else np.zeros((0, 3), "<u4")
    ids = np.array([by_bytes[token] for token in sorted(by_bytes)], "<u4")
    numbers = {"tokenizer": kind, "n_tokens": len(tokens), "n_merges": len(merges), "n_special": len(special),
               "n_classes": len(classes), "n_sorted": len(ids), "n_bytes": offsets[-1]}
    text = np.frombuffer(b"".join(tokens), np.uint8)
    return numbers, [np.array(offsets, "<u4"), text, ids, np.array(special, "<u4"),
                     np.array(bpe.byte_ids if bpe else [0] * 256, "<u4"), merges, classes]


# ---- the model ----


def model_numbers(model: Mapping[str, Any]) -> dict[str, Any]:
    """The header's numbers of a model. Raises UserError for what model.c doesn't compute."""
    choice = {"norm": "layernorm", "mlp": "gelu", "pos": "learned", "norm_at": "pre", "window": 0, **model}
    for name, known in {**CHOICES, "norm_at": ("pre",), "window": (0,)}.items():
        if choice[name] not in known:
            raise UserError(f"model.c has no --{name.replace('_', '-')} {choice[name]}: it has "
                            f"{', '.join(map(str, known))}")
    kinds = {name: known.index(choice[name]) for name, known in CHOICES.items()}
    return {name: choice[name] for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")} | kinds | {
        "n_kv_head": choice.get("n_kv_head") or choice["n_head"], "head_size": choice["n_embd"] // choice["n_head"],
        "tied": int(choice.get("tied", True)), "qk_norm": int(choice.get("qk_norm", False)),
        "eps": choice.get("norm_eps", 1e-5), "rope_base": choice.get("rope_theta", 10000.0),
    }


WORDS = ("version", "dtype", "block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "head_size", "n_embd",
         "n_hidden", "norm", "mlp", "pos", "tied", "qk_norm", "tokenizer", "n_tokens", "n_merges", "n_special",
         "n_classes", "n_sorted", "n_bytes")


def vector(values: Any, size: int) -> np.ndarray:
    """A tensor as a row of the file; zeros for None, which a layer without biases has."""
    return pad(np.asarray(np.zeros(size) if values is None else values.numpy(), "<f4"), LANES)


def parts(checkpoint: Checkpoint, dtype: str) -> Iterator[np.ndarray]:
    """Everything in model.bin, in order. Raises UserError, before anything else, for what model.c doesn't compute."""
    tensors, numbers = checkpoint.tensors, model_numbers(checkpoint.model)
    about, tables = pack_tokenizer(checkpoint.known_tokenizer())
    numbers |= about | {"version": 1, "dtype": DTYPES.index(dtype)}
    numbers["n_hidden"] = tensors["h.0.mlp.c_proj.weight"].shape[0]
    words = [numbers[name] for name in WORDS]
    header = struct.pack(f"<8s{len(words)}I2f", b"llmfundC", *words, numbers["eps"], numbers["rope_base"])
    yield np.frombuffer(header, np.uint8)
    yield from tables

    def row(name: str, size: int) -> np.ndarray:
        return vector(tensors.get(name), size)

    def matrix(name: str) -> np.ndarray:
        return pack_matrix(tensors[name].numpy(), dtype)

    def norm(name: str) -> Iterator[np.ndarray]:
        yield row(f"{name}.weight", 0)
        yield row(f"{name}.bias", int(tensors[f"{name}.weight"].shape[0]))

    yield matrix("wte.weight")
    if not numbers["tied"]:
        yield matrix("lm_head.weight")
    if checkpoint.model.get("pos", "learned") == "learned":
        yield pad(np.asarray(tensors["wpe.weight"].numpy(), "<f4"), 1, LANES)
    yield from norm("ln_f")
    for i in range(numbers["n_layer"]):
        for layer in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            name = f"h.{i}.{layer}"
            if layer.startswith("ln"):
                yield from norm(name)
            else:
                yield pack_matrix(tensors[f"{name}.weight"].numpy().T, dtype)
                yield row(f"{name}.bias", int(tensors[f"{name}.weight"].shape[1]))


def c_files(folder: Path, embed: bool, target: str | None) -> list[Path]:
    """What an export writes: the source, the weights unless they are in it, and the program."""
    names = ["model.c"] + ["model.bin"] * (not embed) + ([TARGETS[target][1]] if target else [])
    return [folder / name for name in names]


def write_model(folder: Path, checkpoint: Checkpoint, dtype: str = "float32", embed: bool = False) -> list[Path]:
    """Write model.c and model.bin, or with `embed` model.c alone, and return their paths.

    Raises UserError for a model that model.c doesn't compute, for too large a one to embed, and when a file can't be
    written.
    """
    everything = parts(checkpoint, dtype)
    first = next(everything)
    source, paths = SOURCE.read_text(encoding="utf-8"), [folder / "model.c"]

    def blobs() -> Iterator[bytes]:
        for values in itertools.chain([first], everything):
            yield values.tobytes() + bytes(-values.nbytes % LINE)

    if embed:
        data = b"".join(blobs())
        if len(data) > LARGEST_EMBEDDED:
            raise UserError(f"--embed is for up to {LARGEST_EMBEDDED >> 20} MB of weights, and these are "
                            f"{len(data) >> 20}: leave it out, or choose --dtype int8")
        source = with_weights(source, data)
    else:
        paths.append(folder / "model.bin")
        with atomic_write(paths[-1]) as new, new.open("wb") as file:
            for blob in blobs():
                file.write(blob)
    with atomic_write(paths[0]) as new:
        new.write_text(source, encoding="utf-8")
    return paths


def with_weights(source: str, data: bytes) -> str:
    """model.c with the bytes of model.bin at its end."""
    words = [f"0x{w:x}," for w in np.frombuffer(data, "<u8").tolist()]
    lines = [" ".join(words[i : i + 6]) for i in range(0, len(words), 6)]
    return (f"#define EMBEDDED {len(data)}  /* bytes of model.bin, which stand at the end */\n{source}\n"
            "const uint64_t embedded[] __attribute__((aligned(64))) = {\n" + "\n".join(lines) + "\n};\n")


def build_model(folder: Path, target: str) -> Path:
    """Compile a folder's model.c with the ziglang package for one of TARGETS; the path of the program.

    Raises UserError when there is no such package, and with the compiler's first words when it fails.
    """
    flags, name = TARGETS[target]
    libraries = "-lm" if target in ("windows", "wasm") else "-lm -lpthread"
    compile_c(folder / "model.c", folder / name, f"{flags} {libraries}")
    return folder / name


def compile_c(source: Path, path: Path, flags: str) -> None:
    """Compile a C file into the program `path`. Raises UserError as `build_model` does."""
    if importlib.util.find_spec("ziglang") is None:
        raise UserError("compiling needs the ziglang package, which isn't installed: pip install ziglang")
    env, cache = dict(os.environ), cache_folder(os.environ)
    if cache.parent == Path(tempfile.gettempdir()):  # where zig's own can't be made, zig never ends
        env.setdefault("ZIG_GLOBAL_CACHE_DIR", str(cache / "zig"))
    with atomic_write(path) as new:
        done = subprocess.run([sys.executable, "-m", "ziglang", "cc", "-O3", "-s", "-o", new, source, *flags.split()],
                              capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise UserError(f"the compiler doesn't make {path}: {done.stderr.strip()[:300]}")
