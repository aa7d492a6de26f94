"""Text to ids: a corpus is checked, encoded once, split 90/10, and noted in the run that is trained on it."""

import contextlib
import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import tokenizer as tk
from data.corpora import NAMES, Corpus, default_data_dir, find_corpus
from data.tokens import HEADER, is_token_file, read_tokens
from kernels import describe_kernels
from runtime.device import describe_device
from runtime.download import sha256_of
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.run import Run
from runtime.text import require_utf8

LEARNED = re.compile(r"bpe-(\d+)")  # --tokenizer bpe-2048: so many tokens, learned from the text itself
LEARN_FROM = 16 << 20  # characters at most: more change few merges


@dataclass(frozen=True)
class Encoded:
    """A corpus as ids: one memory-mapped `uint16` array, the first nine tenths to train on and the rest to validate."""

    ids: np.ndarray
    tokenizer: tk.Tokenizer
    bytes: int  # of the text, UTF-8
    sha256: str = ""  # of the text
    in_windows: ClassVar[bool] = True  # it is cut into windows of `block_size` tokens anywhere

    def describe(self, corpus: Corpus) -> dict[str, Any]:
        """The text and its tokenizer, as a run's config.json has them."""
        where = {"name": corpus.name, "path": str(corpus.path.resolve()), "origin": corpus.origin}
        return {"corpus": {**where, "sha256": self.sha256}, "tokenizer": self.tokenizer.config()}

    def require_same(self, run: Run) -> None:
        """Raise UserError unless this is the text that a run was trained on."""
        if self.sha256 != run.saved("corpus", "sha256", str):
            path = run.saved("corpus", "path", str)
            raise UserError(f"the text isn't the one that this run was trained on, which was {path} as it was then")

    @property
    def train(self) -> np.ndarray:
        """The first nine tenths of the ids."""
        return self.ids[: int(0.9 * len(self.ids))]

    @property
    def val(self) -> np.ndarray:
        """The last tenth of the ids."""
        return self.ids[int(0.9 * len(self.ids)) :]


def encode_corpus(
    corpus: Corpus, tokenizer: str | tk.Tokenizer = "char", data_dir: Path | str | None = None
) -> Encoded:
    """The ids of a corpus, encoded on the first call and memory-mapped from the data folder on every later one.

    `tokenizer` is `char` (the corpus's own characters), `bpe-2048` (so many tokens, learned from the part to train on),
    `gpt2`, or a tokenizer that exists already. Raises UserError for an empty or binary file and for a vocabulary that
    doesn't fit into 16 bits.
    """
    stat = corpus.path.stat()
    if stat.st_size == 0:
        raise UserError(f"{corpus.path} is empty")
    if corpus.path.suffix == ".bin" or is_token_file(corpus.path):
        return _open_tokens(corpus.path, tokenizer)
    sha256 = sha256_of(corpus.path)  # and not its time: a file may be replaced by another of the same size and time
    kind = tokenizer if isinstance(tokenizer, str) else json.dumps(tokenizer.config(), sort_keys=True)
    stem = f"{corpus.path.stem}-{hashlib.sha256(f'{sha256} {kind}'.encode()).hexdigest()[:12]}"
    folder = (Path(data_dir) if data_dir else default_data_dir()) / "encoded"
    ids_path, metadata_path = folder / f"{stem}.bin", folder / f"{stem}.json"

    # The .json is written last: where it is, the .bin is complete. A damaged one is made again.
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        metadata = json.loads(metadata_path.read_text(encoding="utf-8"))
        if sha256_of(ids_path) == metadata["ids_sha256"]:
            ids = np.memmap(ids_path, dtype="<u2", mode="r")
            return Encoded(ids, tk.from_config(metadata["tokenizer"]), stat.st_size, sha256)

    _require_text(corpus.path)
    if tokenizer == "char":
        tokenizer = tk.CharTokenizer.train(_chunks(corpus.path))
    elif isinstance(tokenizer, str) and (learned := LEARNED.fullmatch(tokenizer)):
        limit = min(LEARN_FROM, stat.st_size * 9 // 10)
        tokenizer = learn_bpe(_beginning(corpus.path, limit), int(learned[1]))
    elif isinstance(tokenizer, str):
        tokenizer = tk.GPT2Tokenizer()
    try:
        tokenizer.check_whole()
    except ValueError as error:
        raise UserError(f"--tokenizer: {error}") from error
    if tokenizer.vocab_size > 1 << 16:
        raise UserError(f"{corpus.path} needs {tokenizer.vocab_size:,} token ids, and 65,536 fit into 16 bits")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.encode_file(corpus.path, ids_path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); choose another with --data-dir") from error
    except ValueError as error:
        raise UserError(f"{corpus.path}: {error}") from error
    if sha256_of(corpus.path) != sha256:
        raise UserError(f"{corpus.path} changed while it was read: try again when it stays as it is")
    metadata = {"ids_sha256": sha256_of(ids_path), "tokenizer": tokenizer.config()}
    with atomic_write(metadata_path) as new:
        new.write_text(json.dumps(metadata), encoding="utf-8")
    return Encoded(np.memmap(ids_path, dtype="<u2", mode="r"), tokenizer, stat.st_size, sha256)


def _chunks(path: Path) -> Iterator[str]:
    """The text in pieces, newlines as they are in the file, without a byte-order mark."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        while text := file.read(1 << 20):
            yield text


def learn_bpe(pieces: Iterable[str], size: int) -> tk.Tokenizer:
    """A BPE of `size` tokens, `<|endoftext|>` among them, learned from a text in pieces.

    Raises UserError for fewer tokens than the 256 bytes and that one.
    """
    if size < 257:
        raise UserError(f"--tokenizer bpe-{size} is too small: 256 bytes and the end of a text are 257 tokens")
    end = "<|endoftext|>"
    tokenizer = tk.RegexTokenizer()
    tokenizer.register_special_tokens({end: size - 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short text has fewer pairs; the header says how many tokens there are
        tokenizer.train("".join(pieces), size - 1)
    tokenizer.register_special_tokens({})
    tokenizer.register_special_tokens({end: tokenizer.vocab_size})
    return tokenizer


def _beginning(path: Path, limit: int) -> Iterator[str]:
    """The text in pieces, at most so many characters of it."""
    for text in _chunks(path):
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return


def _require_text(path: Path) -> None:
    """Raise UserError unless this is UTF-8 text of at least one character, without a zero."""
    with path.open("rb") as file:
        try:
            require_utf8(file.read(1 << 20), str(path))
        except ValueError as error:
            raise UserError(str(error)) from error
        file.seek(0)
        while data := file.read(1 << 20):
            if b"\0" in data:
                raise UserError(f"{path} isn't a text file: it has zero bytes")
    try:
        if not sum(map(len, _chunks(path))):
            raise UserError(f"{path} is empty")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 text: {error.reason} (0x{error.object[error.start]:02x})") from error


def _open_tokens(path: Path, tokenizer: str | tk.Tokenizer) -> Encoded:
    """A token file as a corpus; its ids are those of `tokenizer`. Raises UserError for an id that it doesn't have."""
    if tokenizer == "char":
        raise UserError(f"{path} holds token ids: name their tokenizer with --tokenizer gpt2 or a .model file")
    known = tk.GPT2Tokenizer() if isinstance(tokenizer, str) else tokenizer
    ids = read_tokens(path, known)
    pieces = (ids[start : start + (1 << 20)] for start in range(0, len(ids), 1 << 20))
    counts = sum((np.bincount(piece, minlength=1 << 16) for piece in pieces), np.zeros(1 << 16, np.int64))
    if unknown := [i for i in np.flatnonzero(counts).tolist() if i not in known.vocab]:
        where = HEADER + 2 * int(np.argmax(ids == unknown[0]))
        raise UserError(f"{path} has the id {unknown[0]} at byte {where}, and the tokenizer has no such token")
    size = sum(int(counts[i]) * len(token) for i, token in known.vocab.items() if i < len(counts))
    return Encoded(ids, known, size, sha256_of(path))


def require_block(encoded: Encoded, block_size: int) -> None:
    """Raise UserError unless both splits hold at least one window of `block_size` tokens and the one after it."""
    if len(encoded.val) <= block_size:
        raise UserError(
            f"the text has {len(encoded.ids):,} tokens, too few for --block-size {block_size}: "
            f"the tenth that is kept for validation needs {block_size + 1}"
        )


# ---- the text of a run ----


def open_text(
    options: Any, tokenizer: str | tk.Tokenizer, encode: Callable[..., Encoded] = encode_corpus
) -> tuple[Corpus, Encoded]:
    """The text that `--data` names, encoded; its two splits hold at least one window of `--block-size` tokens.

    `options` has `data`, `data_dir` and `block_size`. Its paths become absolute, so that a run can go on from any
    current folder. Raises UserError when there is no such text, or it can't be encoded, or it is too short.
    """
    if options.resume and options.data not in NAMES and not Path(options.data).is_file():
        raise UserError(f"{options.data}, the text of {options.resume}, is gone: name its new place with --data")
    corpus = find_corpus(options.data, options.data_dir)
    if options.data not in NAMES:
        options.data = str(corpus.path.resolve())
    if options.data_dir:
        options.data_dir = str(Path(options.data_dir).resolve())
    encoded = encode(corpus, tokenizer, options.data_dir)
    if encoded.in_windows:
        require_block(encoded, options.block_size)
    return corpus, encoded


def start_run(
    options: Any, kind: str, run: Run | None, model: Mapping[str, Any], corpus: Corpus, encoded: Encoded
) -> Run:
    """A new run folder, or `run` if that goes on, with a config.json of these options and this text.

    `model` has the numbers that rebuild the model. Raises UserError when the text isn't the one that the run began
    with, and when the new folder holds a run already or can't be made.
    """
    if run is None:
        run = Run.new(options.out, kind)
        run.lock()
    else:
        encoded.require_same(run)
    saved = {"kind": kind, "options": dataclasses.asdict(options), "model": dict(model)}
    run.write_config({**saved, **encoded.describe(corpus)})
    return run


def print_header(device: str, corpus: Corpus, encoded: Encoded, model: str, run: Run, step: int) -> None:
    """Print what a run consists of, before its first step: device, corpus, `model` in words, folder, and `step` if it
    goes on from one."""
    print(f"device   {describe_device(device)}, tinygrad {version('tinygrad')}")
    print(f"kernels  {describe_kernels(device)}")
    print(f"corpus   {corpus.name} ({corpus.origin}): {encoded.bytes:,} bytes, {len(encoded.ids):,} tokens of "
          f"{encoded.tokenizer.vocab_size:,} kinds, {len(encoded.val):,} kept for validation")
    print(f"model    {model}")
    print(f"run      {run.path}" + (f", from step {step}" if step else ""), flush=True)
