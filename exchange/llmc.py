"""GPT-2 in the files of llm.c (https://github.com/karpathy/llm.c): a model, a debug state, a tokenizer.

A file begins with a header of 256 int32 numbers (`data.tokens`). Everything is little-endian. In a model file the
tensors follow, each with its layers one after the other. The programs open files of these very names in the current
folder, whatever the size of the model in them.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import tokenizer as tk
from data.tokens import HEADER, make_header, read_header
from exchange.layout import Checkpoint, departures, shapes
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.tensors import NUMPY_DTYPES, Stored, to_bytes

LLMC_NAMES = {"model": "gpt2_124M.bin", "state": "gpt2_124M_debug_state.bin", "tokenizer": "gpt2_tokenizer.bin"}
MODEL_MAGIC, STATE_MAGIC, TOKENIZER_MAGIC = 20240326, 20240327, 20240328
MODEL_VERSIONS = {3: "F32", 5: "BF16"}
# The splits that the fifth number of our tokenizer files stands for, the last of them none
SPLITS = (*tk.PATTERNS.values(), tk.BasicTokenizer.pattern)
MODEL_NUMBERS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")  # in the header, from byte 8 on


def padded_vocabulary(V: int) -> int:
    """V rounded up to a multiple of 128: llm.c's token table has that many rows, the last of them zeros."""
    return V + -V % 128


def llmc_layout(model: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], bool, int]]:
    """Every tensor in the order of llm.c's files: its name, our shape, whether theirs is the transpose of ours, and how
    many numbers of padding follow.

    The order is that of `shapes`, but of each tensor of a block all layers follow each other. A block's matrices are
    `(out, in)` there.
    """
    table = shapes({**model, "bias": True})
    layerless = lambda name: re.sub(r"^h\.\d+", "h", name)
    order = {name: i for i, name in enumerate(dict.fromkeys(map(layerless, table)))}
    for name in sorted(table, key=lambda name: order[layerless(name)]):  # a stable sort: the layers stay in order
        shape, padding = table[name], 0
        if name == "wte.weight":
            padding = (padded_vocabulary(shape[0]) - shape[0]) * shape[1]
        yield name, shape, name.startswith("h.") and len(shape) == 2, padding


def _write_tensors(file: BinaryIO, model: Mapping[str, Any], tensors: Mapping[str, Any], dtype: str) -> None:
    for name, _, transposed, padding in llmc_layout(model):
        values = tensors[name].numpy()
        file.write(to_bytes(values.T if transposed else values, dtype))
        file.write(bytes(padding * np.dtype(NUMPY_DTYPES[dtype]).itemsize))


def _place_tensors(path: Path, model: Mapping[str, Any], offset: int, dtype: str) -> dict[str, Stored]:
    """The places of the tensors in a file whose first is at byte `offset`. Raises UserError unless they end with it."""
    tensors, itemsize = {}, np.dtype(NUMPY_DTYPES[dtype]).itemsize
    for name, shape, transposed, padding in llmc_layout(model):
        tensors[name] = Stored(path, offset, shape, dtype, transposed)
        offset += (math.prod(shape) + padding) * itemsize
    if (size := path.stat().st_size) != offset:
        raise UserError(f"{path} is damaged: its tensors should end at byte {offset} and the file ends at byte {size}")
    return tensors


# ---- a model ----


def write_llmc(path: Path, checkpoint: Checkpoint, dtype: str = "F32") -> list[Path]:
    """Write a model file: version 3 for `F32`, which llm.c's train_gpt2 reads on the CPU, 5 for `BF16`.

    Returns the paths of the files. Raises UserError when it can't be written.
    """
    if other := departures(checkpoint.model):
        raise UserError(f"llm.c's files hold GPT-2s alone, and this model has {next(iter(other))} = "
                        f"{next(iter(other.values()))!r}")
    checkpoint = checkpoint.with_biases()
    version = next(number for number, name in MODEL_VERSIONS.items() if name == dtype)
    numbers = [checkpoint.model[name] for name in MODEL_NUMBERS]
    padded = padded_vocabulary(checkpoint.model["vocab_size"])
    with atomic_write(path) as new, new.open("wb") as file:
        file.write(make_header(MODEL_MAGIC, version, *numbers, padded))
        _write_tensors(file, checkpoint.model, checkpoint.tensors, dtype)
    return [path]


def read_llmc(path: Path) -> Checkpoint:
    """A model file, and the tokenizer file in the same folder if there is one.

    Raises UserError, with the byte where it is wrong, for a file of another kind, version, byte order or length.
    """
    header = read_header(path, MODEL_MAGIC, MODEL_VERSIONS, "a model file")
    model = dict(zip(MODEL_NUMBERS, header[2:7]))
    size = path.stat().st_size
    for i, (name, number) in enumerate(model.items(), 2):
        if not 1 <= number <= size:  # each of them is a length of a tensor, or how many there are
            raise UserError(f"{path} is damaged: {name} at byte {4 * i} is {number}")
    if header[7] != padded_vocabulary(model["vocab_size"]):
        raise UserError(f"{path} is damaged: the padded vocabulary at byte 28 is {header[7]}, which isn't "
                        f"{model['vocab_size']} rounded up to a multiple of 128")
    tensors = _place_tensors(path, model, HEADER, MODEL_VERSIONS[header[1]])
    tokenizer: tk.Tokenizer | None = None
    if (tokenizer_path := path.with_name(LLMC_NAMES["tokenizer"])).is_file():
        tokenizer = read_llmc_tokenizer(tokenizer_path)
    elif model["vocab_size"] == 50257:
        tokenizer = tk.GPT2Tokenizer()
    return Checkpoint(path, model, tensors, tokenizer)


# ---- a debug state ----


@dataclass(frozen=True)
class DebugState:
    """What llm.c's test_gpt2 checks a forward and a backward pass against."""

    x: np.ndarray  # (B, T) int32, tokens
    y: np.ndarray  # (B, T) int32, the tokens after them
    logits: np.ndarray  # (B, T, V) float32
    loss: float
    gradients: Mapping[str, Any]  # of every tensor, under our names and in our layouts


def write_llmc_state(path: Path, model: Mapping[str, Any], state: DebugState) -> list[Path]:
    """Write the debug state of a model with the configuration `model`. Returns the paths of the files.

    Raises UserError when it can't be written.
    """
    B, T = state.x.shape
    with atomic_write(path) as new, new.open("wb") as file:
        file.write(make_header(STATE_MAGIC, 2, B, T))
        for values in (state.x.astype("<i4"), state.y.astype("<i4"), state.logits.astype("<f4")):
            file.write(values.tobytes())
        file.write(np.array([state.loss], "<f4").tobytes())
        _write_tensors(file, model, state.gradients, "F32")
    return [path]


def read_llmc_state(path: Path, model: Mapping[str, Any]) -> DebugState:
    """The debug state of a model with the configuration `model`, which the file itself doesn't have.

    Raises UserError, with the byte where it is wrong, for a file of another kind, version, byte order or length.
    """
    B, T = read_header(path, STATE_MAGIC, (2,), "a debug state")[2:4]
    if min(B, T) < 1:
        raise UserError(f"{path} is damaged: its batch at byte 8 is {B} x {T}")
    n, V = 4 * B * T, model["vocab_size"]
    gradients = _place_tensors(path, model, HEADER + 2 * n + n * V + 4, "F32")  # checks the length of the file
    x, y = (Stored(path, offset, (B, T), "I32").numpy() for offset in (HEADER, HEADER + n))
    logits, loss = Stored(path, HEADER + 2 * n, (B, T, V)).numpy(), Stored(path, HEADER + 2 * n + n * V, ()).numpy()
    return DebugState(x, y, logits, float(loss), gradients)


# ---- a tokenizer ----


def write_llmc_tokenizer(path: Path, tokenizer: tk.Tokenizer) -> list[Path]:
    """Write llm.c's table for decoding: the length of every token as one byte, then its bytes.

    Its header also names the token that texts begin with: <|endoftext|>, else a new line, else the first token. A
    number that llm.c leaves 0 says how text is split, for `read_llmc_tokenizer`: llm.c itself only decodes.
    Returns the paths of the files. Raises UserError for a tokenizer with missing, empty or too long tokens, and for one
    with a pattern of its own.
    """
    pattern = getattr(tokenizer, "pattern", SPLITS[0])
    if pattern not in SPLITS:
        raise UserError(f"llm.c's tokenizer file has no place for the pattern {pattern!r}: use --to hf")
    try:
        tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
    except (KeyError, ValueError) as error:
        raise UserError(f"llm.c's tokenizer file needs a token for every id, and there is none for {error}") from error
    if bad := next((t for t in tokens if not 0 < len(t) < 256), None):
        raise UserError(f"llm.c's tokenizer file holds tokens of 1 to 255 bytes, and one here has {len(bad)}")
    first = next((t for t in (b"<|endoftext|>", b"\n") if t in tokens), tokens[0])
    with atomic_write(path) as new, new.open("wb") as file:
        file.write(make_header(TOKENIZER_MAGIC, 2, len(tokens), tokens.index(first), SPLITS.index(pattern)))
        for token in tokens:
            file.write(bytes([len(token)]) + token)
    return [path]


def read_llmc_tokenizer(path: Path) -> tk.Tokenizer:
    """The tokenizer whose tokens a file of llm.c lists: GPT-2's, one of characters, or a BPE.

    The file has no merges: they are computed from the tokens, as from a tiktoken.Encoding. In other programs' files the
    pattern is taken to be GPT-2's. Raises UserError, with the byte where it is wrong, for a file of another kind or
    length.
    """
    header = read_header(path, TOKENIZER_MAGIC, (1, 2), "a tokenizer file")
    end = header[3] if header[1] == 2 else 50256
    if not 0 <= header[4] < len(SPLITS):
        raise UserError(f"{path} is damaged: its split at byte 16 is {header[4]}, and there are {len(SPLITS)}")
    data, at, tokens = path.read_bytes(), HEADER, []
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
        return tk.RegexTokenizer.from_ranks(ranks, SPLITS[header[4]], special, str(path))
    except ValueError as error:
        raise UserError(f"{path} isn't the table of a tokenizer that can encode: {error}") from error
