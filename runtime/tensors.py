"""Tensors in files: the safetensors format (https://github.com/huggingface/safetensors), written and read here.

A file is checked from end to end before any of its numbers is read, and then it is read tensor by tensor: a model is
never half loaded, and loading one takes little more memory than the model.

Our own files carry a checksum of all their bytes, CRC-32 in the metadata, and one changed bit is found when they are
read. Other programs' files have none: what is checked there is that the header describes the file to its last byte.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes

from runtime.compiled import buffer_of
from runtime.errors import UserError
from runtime.files import atomic_write

# The types of numbers by their names in safetensors, as NumPy reads them. NumPy has no bfloat16: such a number is the
# upper half of a float32, and is read as a 16-bit integer.
NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?", "U8": "u1", "I8": "i1",
    "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
}


CHECKSUM = "crc32"  # a key of the metadata of our own files


@dataclass(frozen=True)
class Stored:
    """The place of a tensor in a file. Its numbers are read only when `numpy` is called."""

    path: Path
    offset: int  # of its first byte
    shape: tuple[int, ...]
    dtype: str = "F32"  # one of NUMPY_DTYPES
    transposed: bool = False  # the file holds the transpose of this matrix

    def numpy(self) -> np.ndarray:
        """Its values, as float32 if they are fractions. Raises OSError when the file can't be read any more."""
        shape = self.shape[::-1] if self.transposed else self.shape
        values = np.fromfile(self.path, NUMPY_DTYPES[self.dtype], math.prod(shape), offset=self.offset).reshape(shape)
        if self.dtype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        elif self.dtype in ("F64", "F16"):
            values = values.astype("<f4")
        return values.T if self.transposed else values


def to_bytes(values: np.ndarray, dtype: str) -> memoryview:
    """float32 numbers as bytes of a file: as `F32`, or rounded to the nearest `F16` or `BF16` (a tie goes to even)."""
    if dtype == "F16":
        return np.ascontiguousarray(values, "<f2").reshape(-1).view("u1").data
    bits = np.ascontiguousarray(values, "<f4")
    if dtype == "BF16":
        bits = bits.view("<u4")
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return bits.reshape(-1).view("u1").data


def save_safetensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], dtype: str = "F32") -> None:
    """Write a safetensors file: 8 bytes of header length, the header as JSON, then the numbers of every tensor.

    Raises UserError when the file can't be written.
    """
    header: dict[str, Any] = {"__metadata__": {CHECKSUM: f"{0:08x}", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        shape = [int(n) for n in tensor.shape]
        begin, end = end, end + math.prod(shape) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8
    with atomic_write(path) as new, new.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        crc = zlib.crc32(text)
        for tensor in tensors.values():
            values = to_bytes(tensor.numpy(), dtype)
            file.write(values)
            crc = zlib.crc32(values, crc)
        file.seek(8)
        file.write(text.replace(checksum_field(0), checksum_field(crc), 1))


def checksum_field(crc: int) -> bytes:
    """How a header says its checksum, which is computed as if it said 0."""
    return f'"{CHECKSUM}":"{crc:08x}"'.encode()


def require_checksum(path: Path, start: int, crc: int) -> None:
    """Raise ValueError unless this is the checksum of a file whose tensors begin at byte `start`."""
    with path.open("rb") as file:
        file.seek(8)
        found = zlib.crc32(file.read(start - 8).replace(checksum_field(crc), checksum_field(0), 1))
        while data := file.read(1 << 20):
            found = zlib.crc32(data, found)
    if found != crc:
        raise ValueError(f"its bytes have the checksum {found:08x} and were written with {crc:08x}")


def refuse_pickle(path: Path) -> None:
    """Raise UserError for a file of `torch.save`, which only unpickling could read."""
    with path.open("rb") as file:
        begin = file.read(2)
    if zipfile.is_zipfile(path) or (begin[:1] == b"\x80" and begin[1:] <= b"\5"):
        raise UserError(f"{path} is a pickle, as torch.save writes it, and reading one can run any code: load it with "
                        "transformers and write it with model.save_pretrained(FOLDER), which makes model.safetensors")


def load_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The tensors of a safetensors file, not read yet, and the metadata that `Run.save` wrote (else an empty dict).

    Raises UserError, with the byte where it is wrong, unless the header describes the file to its last byte, and for a
    file of ours whose checksum isn't that of its bytes.
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
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = (start + offset for offset in entry["data_offsets"])
            if not all(isinstance(n, int) and n >= 0 for n in entry["shape"]):
                raise ValueError(f"the shape of {name} is {repr(entry['shape'])[:60]}")
            stored = tensors[name] = Stored(path, begin, tuple(entry["shape"]), entry["dtype"])
            nbytes = math.prod(stored.shape) * np.dtype(NUMPY_DTYPES[stored.dtype]).itemsize
            if begin != end or stop - begin != nbytes:
                raise ValueError(f"{name} should stand from byte {end} to byte {end + nbytes}, not {begin} to {stop}")
            end = stop
        if end != size:
            raise ValueError(f"its tensors should end at byte {end} and the file ends at byte {size}")
        if CHECKSUM in metadata:
            require_checksum(path, start, int(metadata[CHECKSUM], 16))
        about = json.loads(metadata.get("about", "{}"))
        if not isinstance(about, dict):
            raise ValueError(f"its metadata are {repr(about)[:60]}")
        return tensors, about
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        refuse_pickle(path)
        wrong = str(error) if type(error) is ValueError else f"its header at byte 8 doesn't list tensors ({error!r})"
        raise UserError(f"{path} is damaged: {wrong}") from error


def number_in(metadata: Mapping[str, Any], name: str, path: Path) -> Any:
    """The number that the metadata of a file has under a name. Raises UserError when there is none."""
    value = metadata.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise UserError(f"{path} is damaged: the {name} in its metadata is {repr(value)[:60]}")
    return value


def require_shapes(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str
) -> None:
    """Raise UserError naming the tensors of the file `where` that are missing, unknown or of another shape."""
    wrong = [f"{name} {shape} is missing" for name, shape in expected.items() if name not in found]
    wrong += [f"{name} {shape} is unknown" for name, shape in found.items() if name not in expected]
    wrong += [f"{name} is {found[name]} and should be {shape}" for name, shape in expected.items()
              if found.get(name, shape) != shape]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(f"{where} doesn't fit this model: {'; '.join(wrong[:4])}{more}")


def copy_into(into: Mapping[str, Tensor], tensors: Mapping[str, Any], where: str) -> None:
    """Copy `tensors` into the memory of the tensors of the same names, so that compiled steps stay valid.

    `where` is the file for the message. Raises UserError, before anything is changed, with the names of the tensors
    that are missing, unknown or of another shape.
    """
    of = lambda named: {name: tuple(tensor.shape) for name, tensor in named.items()}
    require_shapes(of(into), of(tensors), where)
    for name, tensor in into.items():
        assert tensor.dtype == dtypes.float32, name
        values = to_bytes(tensors[name].numpy(), "F32")
        buffer_of(tensor.realize()).ensure_allocated().copyin(values)
