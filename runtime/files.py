"""Small files: written so that a kill leaves the old file or the new one, and JSON that is checked when it is read."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from runtime.errors import UserError
from runtime.signals import unfinished


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """`with atomic_write(path) as new:` gives a temporary path in the same folder, which is made if there is none.

    At the end the temporary file is flushed to the disk and renamed to `path`; after an error it is removed, and `path`
    is as it was. Raises UserError when the folder can't be made or the file can't be written, as on a full disk.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {path.parent} can't be made ({error.strerror})") from error
    if path.exists() and not path.is_file():  # a folder, or /dev/null, which a rename would replace
        raise UserError(f"{path} can't be written (it isn't a regular file)")
    unfinished.add(str(new))
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror or error})") from error
    finally:
        new.unlink(missing_ok=True)
        unfinished.discard(str(new))


@contextlib.contextmanager
def claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file meanwhile; False where another process holds it and we don't `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        yield lock(file, wait)


def lock(file: BinaryIO, wait: bool = True) -> bool:
    """Take the lock of an open file until it is closed; False where another process holds it and we don't `wait`."""
    with contextlib.suppress(ImportError):  # Windows has no such lock
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError when there is no such file, or when it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it isn't an object")
        return value
    except FileNotFoundError as error:
        raise UserError(f"{path} doesn't exist") from error
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
