"""One HTML file that needs no network: data, and for a model the program of page.c with the weights.

The page's text, style and programs are files in web/, each of which is the page's part of that name.
"""

import base64
import html
import json
import math
import re
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor

from exchange.cfile import LINE, SOURCE, compile_c, parts
from exchange.layout import Checkpoint, shapes
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.text import repair_surrogates
from tokenizer import Tokenizer

WEB = Path(__file__).with_name("web")
DATA = '<script id="data" type="application/json">'  # which every page has
LARGEST = 300 << 20  # bytes of weights: a browser's strings end at 512 MB, and the file has four bytes for three
LARGEST_EXACT = 5_000_000  # parameters: with more of them 24 bits each would make more than 20 MB of text


def compiled_page() -> bytes:
    """page.c as WebAssembly. Raises UserError when there is no compiler."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "page.wasm")
        compile_c(SOURCE.with_name("page.c"), program, "-target wasm32-wasi -msimd128 -mexec-model=reactor -lm")
        return program.read_bytes()


def pack(data: bytes) -> str:
    """Bytes as text: the four bytes of every word apart, because a number's exponent compresses and its last bits
    don't; deflated; in base64."""
    planes = np.frombuffer(data + bytes(-len(data) % 4), np.uint8).reshape(-1, 4).T
    return base64.b64encode(zlib.compress(planes.tobytes())).decode()


def model_blobs(checkpoint: Checkpoint, dtype: str | None = None) -> tuple[dict[str, bytes], str]:
    """The program and the weights for a page, and the numbers that the weights are.

    Matrices of float32 are rounded to 24 bits, to 1 / 131,072 of a weight, which keeps a quarter out of the file. A
    model of more than 5 million parameters is int8, unless `dtype` says otherwise. Raises UserError for a model that
    model.c doesn't compute, and for too large a one.
    """
    dtype = dtype or ("int8" if sum(map(math.prod, shapes(checkpoint.model).values())) > LARGEST_EXACT else "float32")
    weights = bytearray()
    for values in parts(checkpoint, dtype):
        if dtype == "float32" and values.ndim == 3:  # a matrix
            values = (values + np.uint32(0x80)) & np.uint32(0xFFFFFF00)
        weights += values.tobytes() + bytes(-values.nbytes % LINE)
        if len(weights) > LARGEST:
            raise UserError(f"the weights are too large for a page: more than {LARGEST >> 20} MB in {dtype}")
    return {"program": compiled_page(), "weights": bytes(weights)}, dtype


def tokenizer_blobs(tokenizer: Tokenizer, path: Path) -> dict[str, bytes]:
    """The program and a tokenizer for it, in the file of a model whose weights are zeros.

    Raises UserError for a tokenizer that model.c doesn't know.
    """
    model = {"block_size": 1, "vocab_size": tokenizer.vocab_size, "n_layer": 1, "n_head": 1, "n_embd": 1}
    tensors = {name: Tensor(np.zeros(shape, np.float32)) for name, shape in shapes(model).items()}
    return model_blobs(Checkpoint(path, model, tensors, tokenizer), "int8")[0]


def write_page(out: Path, kind: str, title: str, data: Mapping[str, Any], blobs: Mapping[str, bytes]) -> None:
    """Write the page web/KIND.html with its programs, `data` for them as JSON, and bytes that they unpack by name.

    Raises UserError when it can't be written, and where a file of that name isn't such a page.
    """
    if out.is_file() and DATA.encode() not in out.read_bytes():
        raise UserError(f"{out} is there already, and isn't a page of a report: choose another --out")
    read = lambda name: (WEB / name).read_text(encoding="utf-8").strip()
    programs = ["page.js", *(["model.js"] if "program" in blobs else []), f"{kind}.js"]
    tags = [DATA + json.dumps(data).replace("<", "\\u003c") + "</script>"]
    tags += [f'<script id="packed-{name}" type="text/plain" data-size="{len(blob)}">{pack(blob)}</script>'
             for name, blob in blobs.items()]
    page = {"title": html.escape(title), "style": read("page.css"), "body": read(f"{kind}.html"),
            "data": "\n".join(tags), "script": "\n\n".join(map(read, programs))}
    text = re.sub(r"<!--(\w+)-->", lambda place: page[place[1]], read("page.html"))
    text = repair_surrogates(text)  # of the name of a file that isn't UTF-8
    with atomic_write(out) as new:
        new.write_text(text + "\n", encoding="utf-8")
