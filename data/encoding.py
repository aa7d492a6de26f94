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
from data.corpora import NAMES, Corpus, default_data_dir, find_corpus, is_gone
from data.resumable import write_ids
from data.sources import END, absolute, digest_of, read_pieces
from data.tokens import HEADER, is_token_file, read_tokens
from kernels import describe_kernels
from runtime import ranks
from runtime.device import describe_device
from runtime.download import sha256_of
from runtime.errors import UserError
from runtime.files import atomic_write, claimed
from runtime.run import Run
from runtime.signals import when_stopped
from runtime.text import any_of, cut_into_blocks

LEARNED = re.compile(r"bpe-(\d+)")  # --tokenizer bpe-2048: so many tokens, learned from the text itself
LEARN_FROM = 16 << 20  # characters at most: more change few merges


@dataclass(frozen=True)
class Encoded:
    """A corpus as ids: one memory-mapped `uint16` array, the first nine tenths to train on and the rest to validate."""

    ids: np.ndarray
    tokenizer: tk.Tokenizer
    bytes: int  # of the text, UTF-8
    sha256: str = ""  # of the text
    val_text: "Encoded | None" = None  # to validate on, if it isn't the last tenth
    in_windows: ClassVar[bool] = True  # it is cut into windows of `block_size` tokens anywhere

    def describe(self, corpus: Corpus) -> dict[str, Any]:
        """The text and its tokenizer, as a run's config.json has them."""
        where = {"name": corpus.name, "path": str(corpus.path.resolve()), "origin": corpus.origin}
        about = {**where, "sha256": self.sha256}
        if self.val_text and corpus.val:
            about |= {"val_path": str(corpus.val.path.resolve()), "val_sha256": self.val_text.sha256}
        return {"corpus": about, "tokenizer": self.tokenizer.config()}

    def require_same(self, run: Run) -> None:
        """Raise UserError unless this is the text that a run was trained on."""
        if self.sha256 != run.saved("corpus", "sha256", str):
            path = run.saved("corpus", "path", str)
            raise UserError(f"the text isn't the one that this run was trained on, which was {path} as it was then")
        known = run.config()["corpus"].get("val_sha256")
        if known != (self.val_text.sha256 if self.val_text else None):
            raise UserError("the text to validate on isn't the one that this run had: "
                            + ("name its new place with --val-data" if known else "leave out --val-data"))

    @property
    def train(self) -> np.ndarray:
        """The first nine tenths of the ids, or all where another text is there to validate on."""
        return self.ids if self.val_text else self.ids[: int(0.9 * len(self.ids))]

    @property
    def val(self) -> np.ndarray:
        """The last tenth of the ids, or those of another text."""
        return self.val_text.ids if self.val_text else self.ids[int(0.9 * len(self.ids)) :]


def encode_corpus(
    corpus: Corpus, tokenizer: str | tk.Tokenizer = "char", data_dir: Path | str | None = None
) -> Encoded:
    """The ids of a corpus, encoded on the first call and memory-mapped from the data folder on every later one.

    `tokenizer` is `char` (the corpus's own characters), `bpe-2048` (so many tokens, learned from the part to train on),
    `gpt2`, or a tokenizer that exists already. Raises UserError for an empty or binary file and for a vocabulary that
    doesn't fit into 16 bits.
    """
    first = corpus.path
    if first.stat().st_size == 0 and not corpus.others:
        raise UserError(f"{first} is empty")
    if first.suffix == ".bin" or is_token_file(first):
        encoded = _open_tokens(first, tokenizer)
    else:
        encoded = _encode_text(corpus, tokenizer, (Path(data_dir) if data_dir else default_data_dir()) / "encoded")
    if corpus.val:
        encoded = dataclasses.replace(encoded, val_text=encode_corpus(corpus.val, encoded.tokenizer, data_dir))
    return encoded


def _encode_text(corpus: Corpus, tokenizer: str | tk.Tokenizer, folder: Path) -> Encoded:
    """The ids of a text, from the folder or into it."""
    sha256, size = digest_of(corpus.files)  # not its time: a file may be replaced by another of the same size and time
    # A run brings its tokenizer, which may be the one that its text was first encoded with, under a shorter name.
    kinds = [tokenizer] if isinstance(tokenizer, str) else [
        json.dumps(tokenizer.config(), sort_keys=True), "char", f"bpe-{tokenizer.vocab_size}"]
    for kind in kinds:
        path = _ids_path(folder, corpus, sha256, kind)
        found = _stored(path, size, sha256)
        if found and (isinstance(tokenizer, str) or found.tokenizer.config() == tokenizer.config()):
            return found
    path = _ids_path(folder, corpus, sha256, kinds[0])
    lock = path.with_suffix(".lock")
    try:
        with claimed(lock, wait=True):  # another process may just have made it
            found = _stored(path, size, sha256) or _make(corpus, tokenizer, path, size, sha256)
        lock.unlink(missing_ok=True)
        return found
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); choose another with --data-dir") from error


def _ids_path(folder: Path, corpus: Corpus, sha256: str, kind: str) -> Path:
    """Where the ids of a text and a kind of tokenizer are kept."""
    return folder / f"{corpus.path.stem}-{hashlib.sha256(f'{sha256} {kind}'.encode()).hexdigest()[:12]}.bin"


def _stored(ids_path: Path, size: int, sha256: str) -> Encoded | None:
    """The ids that are there already. The .json is written last: where it is, the .bin is complete. None for a damaged
    one, which is made again."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        metadata = json.loads(ids_path.with_suffix(".json").read_text(encoding="utf-8"))
        if sha256_of(ids_path) == metadata["ids_sha256"]:
            ids = np.memmap(ids_path, dtype="<u2", mode="r")
            return Encoded(ids, tk.from_config(metadata["tokenizer"]), size, sha256)
    return None


def _make(corpus: Corpus, tokenizer: str | tk.Tokenizer, ids_path: Path, size: int, sha256: str) -> Encoded:
    """Encode a text into a file, and describe it in another."""
    if not sum(map(len, read_pieces(corpus.files))):
        raise UserError(f"{corpus.path} is empty")
    if isinstance(tokenizer, str):
        tokenizer = _learn(corpus, tokenizer, size)
    try:
        tokenizer.check_whole()
    except ValueError as error:
        raise UserError(f"--tokenizer: {error}") from error
    if tokenizer.vocab_size > 1 << 16:
        raise UserError(f"{corpus.path} needs {tokenizer.vocab_size:,} token ids, and 65,536 fit into 16 bits")
    part = ids_path.with_name(f"{ids_path.name}.part")
    try:
        note = write_ids(read_pieces(corpus.files), tokenizer, part, size, corpus.path.name)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{corpus.path}: {error}") from error
    if digest_of(corpus.files)[0] != sha256:
        part.unlink()
        note.unlink(missing_ok=True)
        raise UserError(f"{corpus.path} changed while it was read: try again when it stays as it is")
    metadata = {"ids_sha256": sha256_of(part), "tokenizer": tokenizer.config()}
    part.replace(ids_path)
    with atomic_write(ids_path.with_suffix(".json")) as new:
        new.write_text(json.dumps(metadata), encoding="utf-8")
    note.unlink(missing_ok=True)
    when_stopped("stopped before it was done; the same command begins again")
    return Encoded(np.memmap(ids_path, dtype="<u2", mode="r"), tokenizer, size, sha256)


def _learn(corpus: Corpus, kind: str, size: int) -> tk.Tokenizer:
    """The tokenizer of a kind: GPT-2's, or one that is learned from a text of `size` bytes."""
    if learned := LEARNED.fullmatch(kind):
        limit = LEARN_FROM if corpus.val else min(LEARN_FROM, size * 9 // 10)
        return learn_bpe(_beginning(corpus, limit), int(learned[1]))
    return learn_characters(read_pieces(corpus.files)) if kind == "char" else tk.GPT2Tokenizer()


def learn_characters(pieces: Iterable[str]) -> tk.Tokenizer:
    """The characters of a text in pieces. Where it has the ends of documents, they are a token and no characters."""
    chars, ends, special = set[str](), False, frozenset({END})
    for block in cut_into_blocks(pieces, special, lambda text, low, high: high):
        parts = any_of(special).split(block)
        chars, ends = chars.union(*parts[::2]), ends or len(parts) > 1
    tokenizer = tk.CharTokenizer("".join(sorted(chars)))
    if ends:
        tokenizer.register_special_tokens({END: tokenizer.vocab_size})
    return tokenizer


def learn_bpe(pieces: Iterable[str], size: int) -> tk.Tokenizer:
    """A BPE of `size` tokens, `<|endoftext|>` among them, learned from a text in pieces.

    Raises UserError for fewer tokens than the 256 bytes and that one.
    """
    if size < 257:
        raise UserError(f"--tokenizer bpe-{size} is too small: 256 bytes and the end of a text are 257 tokens")
    tokenizer = tk.RegexTokenizer()
    tokenizer.register_special_tokens({END: size - 1})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short text has fewer pairs; the header says how many tokens there are
        tokenizer.train("".join(pieces), size - 1)
    tokenizer.register_special_tokens({})
    tokenizer.register_special_tokens({END: tokenizer.vocab_size})
    return tokenizer


def _beginning(corpus: Corpus, limit: int) -> Iterator[str]:
    """The text in pieces, at most so many characters of it."""
    for text in read_pieces(corpus.files):
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return


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
    if encoded.val_text and min(len(encoded.ids), len(encoded.val)) <= block_size:
        raise UserError(f"the texts to train on and to validate on have {len(encoded.ids):,} and {len(encoded.val):,} "
                        f"tokens, and --block-size {block_size} needs {block_size + 1} of each")
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
    if options.resume and is_gone(options.data):
        raise UserError(f"{options.data}, the text of {options.resume}, is gone: name its new place with --data")
    val_data = getattr(options, "val_data", None)
    if options.resume and val_data and is_gone(val_data):
        raise UserError(f"{val_data}, the text that {options.resume} is validated on, is gone: name its new place with "
                        "--val-data")
    with ranks.first_before_the_others():
        corpus = find_corpus(options.data, options.data_dir, val_data)
        encoded = encode(corpus, tokenizer, options.data_dir)
    if options.data not in NAMES:
        options.data = str(corpus.path.resolve()) if options.data == "-" else absolute(options.data)
    if val_data and val_data not in NAMES:
        options.val_data = absolute(val_data)
    if options.data_dir:
        options.data_dir = str(Path(options.data_dir).resolve())
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
          f"{encoded.tokenizer.vocab_size:,} kinds, {len(encoded.val):,} "
          + (f"of {corpus.val.name} for validation" if corpus.val else "kept for validation"))
    print(f"model    {model}")
    print(f"run      {run.path}" + (f", from step {step}" if step else ""), flush=True)
