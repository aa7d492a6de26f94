"""The text that `--data` names: a file, several, a folder, a pattern, compressed or not, or the standard input."""

import codecs
import contextlib
import gzip
import hashlib
import importlib
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from runtime import ranks
from runtime.errors import UserError
from runtime.text import BLOCK, require_utf8

END = "<|endoftext|>"  # stands between two documents; a tokenizer that knows it makes one token of it
PATTERN = "*?["  # one of these makes a name a pattern


def named_files(data: str) -> list[Path]:
    """The files that `--data` names: one, those in a folder, those of a pattern like `texts/*.txt`, or several names
    with commas between. In a folder and a pattern they are in the order of their names. None for what isn't there.
    """
    path = Path(data).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = (p for p in path.rglob("*") if p.is_file())
        return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts))
    if any(c in data for c in PATTERN):
        root = Path(path.anchor) if path.is_absolute() else Path()
        return sorted(p for p in root.glob(str(path.relative_to(root))) if p.is_file())
    if "," in data:
        parts = [named_files(part) for part in data.split(",")]
        return [file for part in parts for file in part] if all(parts) else []
    return []


def absolute(data: str) -> str:
    """What `--data` names, in a way that holds in any current folder."""
    path = Path(data).expanduser()
    if "," in data and not path.exists():
        return ",".join(map(absolute, data.split(",")))
    return str(path.resolve()) if path.exists() else os.path.abspath(path)  # noqa: PTH100  (a pattern isn't there)


def keep_standard_input(folder: Path) -> Path:
    """The standard input as a file in a folder, named after its SHA-256, so that a run can go on with it later."""
    if ranks.size() > 1:
        raise UserError("--data - goes to one process alone, and several were started: write the text to a file")
    new, digest = folder / f".stdin.{os.getpid()}", hashlib.sha256()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            while data := sys.stdin.buffer.read(BLOCK):
                digest.update(data)
                file.write(data)
        return new.replace(folder / f"stdin-{digest.hexdigest()[:12]}.txt")
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); choose another with --data-dir") from error
    finally:
        new.unlink(missing_ok=True)


def _zstd() -> Any:
    """Python's own module for .zst, which is there from 3.14 on, or the same as a package."""
    for name in ("compression.zstd", "backports.zstd"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    raise UserError("a .zst file needs Python 3.14 or `pip install backports.zstd`")


def open_plain(path: Path) -> BinaryIO:
    """A file's bytes, decompressed if its name ends in .gz or .zst."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return cast(BinaryIO, _zstd().open(path, "rb")) if path.suffix == ".zst" else path.open("rb")


def read_bytes(files: Sequence[Path]) -> Iterator[tuple[Path, bytes]]:
    """The bytes of files in pieces, each with its file; between two files the end of a document, unless it is there.

    Raises UserError for a file that can't be read or decompressed.
    """
    for n, path in enumerate(files):
        tail = b""
        try:
            with open_plain(path) as file:
                while data := file.read(BLOCK):
                    tail = (tail + data)[-64:]
                    yield path, data
        except (EOFError, zlib.error, OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise UserError(f"{path} can't be read ({said})") from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise UserError(f"{path} can't be read ({error})") from error
        if n < len(files) - 1 and not tail.rstrip().endswith(END.encode()):
            yield path, END.encode()


def read_pieces(files: Sequence[Path]) -> Iterator[str]:
    """The text of files in pieces, newlines as they are, without byte-order marks. Raises UserError unless it is text
    in UTF-8 without zeros."""
    last, decoder = None, codecs.getincrementaldecoder("utf-8")()
    for path, data in read_bytes(files):
        begins = path != last
        if begins:
            _end(decoder, last)
            decoder.reset()
            last = path
            try:
                require_utf8(data, str(path))
            except ValueError as error:
                raise UserError(str(error)) from error
            data = data.removeprefix(codecs.BOM_UTF8)
        if b"\0" in data:
            raise UserError(f"{path} isn't a text file: it has zero bytes")
        try:
            text = decoder.decode(data)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error) from error
        if text:
            yield text
    _end(decoder, last)


def _end(decoder: codecs.IncrementalDecoder, path: Path | None) -> None:
    """Raise UserError where a file ends within a character."""
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        assert path
        raise _not_utf8(path, error) from error


def _not_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{path} isn't UTF-8 text: {error.reason} (0x{error.object[error.start]:02x})")


def digest_of(files: Sequence[Path]) -> tuple[str, int]:
    """The SHA-256 of all bytes of a text, decompressed, and how many they are."""
    digest, size = hashlib.sha256(), 0
    for _, data in read_bytes(files):
        digest.update(data)
        size += len(data)
    return digest.hexdigest(), size
