"""A long text to a file of ids: with little memory, and after a stop or a kill from where it was.

The tokenizer cuts the text into blocks that encode on their own as they do together. After some blocks the ids so far
are flushed to the file, and NAME.json beside it says how many they are and how many bytes of text they stand for.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.tokens import digest
from runtime.errors import UserError
from runtime.files import atomic_write, read_json
from runtime.progress import Progress, duration
from runtime.signals import when_stopped
from tokenizer import Tokenizer

EVERY = 2.0  # seconds between two notes of how far it is


def write_ids(pieces: Iterator[str], tokenizer: Tokenizer, part: Path, size: int, name: str) -> Path:
    """Encode a text in `pieces`, `size` bytes in all, into a file of uint16; special tokens in it become their ids.

    A terminal sees how far it is. Returns the note of how far it is, which the caller removes once the file has its
    place. Raises ValueError for text that the tokenizer can't encode.
    """
    note = part.with_name(f"{part.name}.json")
    lengths = np.zeros(tokenizer.vocab_size, np.int64)  # in bytes, of each token
    for i, token in tokenizer.vocab.items():
        lengths[i] = len(token)
    known, count, done = digest(tokenizer), 0, 0
    with contextlib.suppress(UserError, KeyError, TypeError, OSError):  # a damaged note: from the beginning
        saved = read_json(note)
        if saved["tokenizer"] == known and part.stat().st_size >= 2 * saved["ids"]:
            count, done = int(saved["ids"]), int(saved["bytes"])
    progress, begin, begun, noted = Progress(sys.stderr), time.perf_counter(), done, time.perf_counter()
    with part.open("r+b" if count else "wb") as file:
        file.truncate(2 * count)
        file.seek(0, os.SEEK_END)
        _say_when_stopped(name, done, size)
        if done:
            progress.say(f"{name}: {done / 1e6:,.1f} of {size / 1e6:,.1f} MB are encoded already")
        for ids in tokenizer.encode_blocks(_after(pieces, done)):
            array = np.array(ids, "<u2")
            file.write(array.tobytes())
            count, done = count + len(ids), done + int(lengths[array].sum())
            now = time.perf_counter()
            if progress.live and now - begin > 1 and now - progress.shown > 0.2:
                _show(progress, name, done, size, (done - begun) / (now - begin))
            if now - noted > EVERY or done == size:
                file.flush()
                os.fsync(file.fileno())
                with atomic_write(note) as new:
                    new.write_text(json.dumps({"tokenizer": known, "ids": count, "bytes": done}), encoding="utf-8")
                noted = now
                _say_when_stopped(name, done, size)
        file.flush()
        os.fsync(file.fileno())
    progress.clear()
    return note


def _say_when_stopped(name: str, done: int, size: int) -> None:
    when_stopped(f"stopped; {done / max(size, 1):.0%} of {name} is encoded and kept, and the same command goes on")


def _show(progress: Progress, name: str, done: int, size: int, speed: float) -> None:
    share = min(done / size, 1.0) if size else 0.0
    bar = ("█" * round(30 * share)).ljust(30, "░")
    progress.show(f"encoding {name} {bar} {share:4.0%} {speed / 1e6:.1f} MB/s  {duration((size - done) / speed)} left")


def _after(pieces: Iterator[str], start: int) -> Iterator[str]:
    """The text without its first `start` bytes."""
    for piece in pieces:
        if start:
            data = piece.encode()
            piece, start = data[start:].decode(), max(0, start - len(data))
        if piece:
            yield piece
