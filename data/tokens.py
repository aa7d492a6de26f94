"""Token files of llm.c (https://github.com/karpathy/llm.c): a header, then ids as uint16, little-endian.

Every file of llm.c begins with 256 int32 numbers, the first of them its kind and the second its version; in a token
file the third is how many tokens follow. The next four are zeros there; our files have a digest of the tokenizer in
them, so that nobody trains on the ids of one tokenizer as if they were another's.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from runtime.errors import UserError
from runtime.files import atomic_write
from tokenizer import Tokenizer

TOKENS_MAGIC, TOKENS_VERSION = 20240520, 1
HEADER = 1024  # bytes


def make_header(*numbers: int) -> bytes:
    """The header of a file of llm.c that begins with these numbers."""
    return np.array([*numbers, *[0] * (256 - len(numbers))], "<i4").tobytes()


def read_header(path: Path, magic: int, versions: Collection[int], kind: str) -> list[int]:
    """The 256 numbers of a header. Raises UserError, with the byte, unless they are of a `kind` like "a token file"."""
    try:
        with path.open("rb") as file:
            data = file.read(HEADER)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    if len(data) < HEADER:
        raise UserError(f"{path} is damaged: it ends at byte {len(data)}, before the end of its header at byte 1024")
    header = np.frombuffer(data, "<i4").tolist()
    if header[0] == int.from_bytes(magic.to_bytes(4, "big"), "little", signed=True):
        raise UserError(f"{path} is big-endian from byte 0 on: write it as llm.c does, little-endian")
    if header[0] != magic:
        raise UserError(f"{path} isn't {kind} of llm.c: the number at byte 0 is {header[0]}, not {magic}")
    if header[1] not in versions:
        known = " and ".join(map(str, versions))
        raise UserError(f"{path} has version {header[1]} at byte 4; of {kind} we read version {known}")
    return header


def is_token_file(path: Path) -> bool:
    """Whether a file begins as a token file. Raises OSError when it can't be read."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") == TOKENS_MAGIC


def digest(tokenizer: Tokenizer) -> list[int]:
    """Four numbers that tell tokenizers apart: equal where every id has the same bytes."""
    found = hashlib.sha256()
    for i, token in sorted(tokenizer.vocab.items()):
        found.update(np.array([i, len(token)], "<i4").tobytes() + token)
    return np.frombuffer(found.digest(), "<i4", 4).tolist()


def write_tokens(path: Path, ids: np.ndarray, tokenizer: Tokenizer | None = None) -> list[Path]:
    """Write ids, of this tokenizer, as a token file; the paths written. Raises UserError when it can't be written."""
    with atomic_write(path) as new, new.open("wb") as file:
        file.write(make_header(TOKENS_MAGIC, TOKENS_VERSION, len(ids), *(digest(tokenizer) if tokenizer else ())))
        for start in range(0, len(ids), 1 << 20):
            file.write(ids[start : start + (1 << 20)].astype("<u2").tobytes())
    return [path]


def read_tokens(path: Path, tokenizer: Tokenizer) -> np.ndarray:
    """The ids in a token file, uint16, memory-mapped. Other programs' files don't say which tokenizer made them.

    Raises UserError, with the byte, for a file of another kind, and for one that another tokenizer made.
    """
    header, size = read_header(path, TOKENS_MAGIC, (TOKENS_VERSION,), "a token file"), path.stat().st_size
    count = header[2]
    if any(header[3:7]) and header[3:7] != digest(tokenizer):
        raise UserError(f"{path} holds the ids of another tokenizer: name the one that it was written with, which an "
                        "export puts beside it as a .model file, with --tokenizer")
    if size != (end := HEADER + 2 * count):
        raise UserError(f"{path} is damaged: its {count} tokens should end at byte {end} and it ends at byte {size}")
    return np.memmap(path, "<u2", mode="r", offset=HEADER) if count else np.zeros(0, "<u2")
