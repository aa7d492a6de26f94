"""Published files: fetched with a line of progress, resumed after an interruption, checked against their SHA-256."""

import hashlib
import http
import http.client
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError
from runtime.files import lock
from runtime.progress import Progress

TIMEOUT = 5  # seconds that an address may take to answer: without a network the user should not wait long


@dataclass(frozen=True)
class Source:
    """A published file: its name in the data folder, its address, its size in bytes and its SHA-256."""

    file: str
    url: str
    size: int
    sha256: str


class Unreachable(Exception):  # noqa: N818
    """An address that doesn't answer, or that sends another file than the published one."""


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError when it can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(url: str, start: int = 0) -> Iterator[bytes]:
    """What an address sends, from byte `start` on. If it can only send all of it, b"" comes first, and then all."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if start and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                yield b""
            while block := answer.read(1 << 20):
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(str(getattr(error, "reason", error))) from error


def read_url(url: str) -> bytes:
    """What an address sends, for small files. Raises Unreachable when it doesn't answer."""
    return b"".join(_blocks(url))


def download(source: Source, path: Path) -> None:
    """Fetch a published file with a line of progress; it appears at `path` only once its size and SHA-256 are right.

    After an interruption the part that came is kept as `NAME.part` in the same folder, and the next call goes on from
    there. Raises Unreachable when the file can't be fetched, and UserError when it can't be written.
    """
    part, progress, digest, done = path.with_name(f"{path.name}.part"), Progress(), hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as file:
            lock(file)  # one process at a time writes into it
            if path.is_file():  # another process has fetched it meanwhile
                return part.unlink(missing_ok=True)
            file.seek(0)
            while block := file.read(1 << 20):  # the hash of the part that is here already
                digest.update(block)
                done += len(block)
            for block in _blocks(source.url, done) if done < source.size else ():
                if not block:
                    file.truncate(0)
                    digest, done = hashlib.sha256(), 0
                digest.update(block)
                file.write(block)
                done += len(block)
                if progress.live or done == source.size:
                    progress.show(f"fetching {path.name}  {done / 1e6:,.1f} of {source.size / 1e6:,.1f} MB")
            file.flush()
            os.fsync(file.fileno())
        if done < source.size:
            raise Unreachable(f"it sent {done:,} of {source.size:,} bytes, which are kept: try again")
        if digest.hexdigest() != source.sha256 or done != source.size:
            part.unlink()
            raise Unreachable(f"it sent {done:,} bytes that aren't the published file")
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}); choose another folder with --data-dir") from error
    finally:
        progress.end()
