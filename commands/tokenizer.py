"""`python tokenizer.py VERB`: train a tokenizer, encode and decode with it, look at what it does to a text."""

import contextlib
import io
import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from runtime import text
from runtime.cli import REQUIRED, dispatch, option, parse
from runtime.errors import UserError
from runtime.text import read_text
from tokenizer import (
    BasicTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    PathLike,
    RegexTokenizer,
    Tokenizer,
    load,
    render,
    unpack_ids,
)

TOKENIZER = "gpt2, or a .model file that train wrote"


@dataclass
class TrainOptions:
    files: list[str] = option(REQUIRED, "UTF-8 text files, each a text of its own")
    out: str = option(REQUIRED, "writes OUT.model and OUT.vocab")
    vocab_size: int = option(1024, "bytes, merges and special tokens together")
    type: str = option("regex", "BPE with a split, BPE without one, or characters", choices=("regex", "basic", "char"))
    pattern: str = option("gpt4", "the split: gpt2, gpt4 or a regular expression")
    special: list[str] = option((), "a special token; may be repeated")
    verbose: bool = option(False, "print every merge")


def train(argv: Sequence[str]) -> None:
    """learn a vocabulary from UTF-8 text files"""
    o = parse(TrainOptions, argv, "tokenizer.py train", str(train.__doc__), positional=("files", "FILE"))[0]
    if twice := [token for token, count in Counter(o.special).items() if count > 1]:
        raise UserError(f"--special {twice[0]!r} is given twice")
    if o.type == "char":
        tokenizer: Tokenizer = CharTokenizer.train(chain.from_iterable(map(read_text, o.files)))
    else:
        learner = BasicTokenizer() if o.type == "basic" else RegexTokenizer(o.pattern)
        if o.vocab_size < (least := 256 + len(o.special)):
            special = f" and {len(o.special)} special tokens" if o.special else ""
            raise UserError(f"--vocab-size must be at least {least} for 256 bytes{special}, not {o.vocab_size}")
        size = o.vocab_size - len(o.special)  # special tokens come last, so that the whole is --vocab-size
        learner.register_special_tokens({token: max(size, 256) + i for i, token in enumerate(o.special)})
        learner.train_files(o.files, size, o.verbose)
        learner.register_special_tokens({})
        tokenizer = learner
    size = tokenizer.vocab_size
    tokenizer.register_special_tokens({token: size + i for i, token in enumerate(o.special)})
    tokenizer.save(o.out)
    print(f"{o.out}.model has {tokenizer.vocab_size:,} tokens; {o.out}.vocab lists them")


@dataclass
class EncodeOptions:
    file: str = option(REQUIRED, "a UTF-8 text file")
    tokenizer: str = option("gpt2", TOKENIZER)
    out: str | None = option(None, "a file of raw little-endian uint16 or, above 65,536 tokens, uint32")


def encode(argv: Sequence[str]) -> None:
    """turn a UTF-8 text file into ids: numbers on standard output, or a file"""
    o = parse(EncodeOptions, argv, "tokenizer.py encode", str(encode.__doc__), positional=("file", "FILE"))[0]
    tokenizer = open_tokenizer(o.tokenizer)
    if o.out:
        count = tokenizer.encode_file(o.file, o.out)
        size = Path(o.out).stat().st_size
        print(f"{o.out} has {count:,} ids of {size // count if count else 0} bytes")
        return
    for n, ids in enumerate(tokenizer.encode_blocks(read_text(o.file))):
        print(" " * bool(n) + " ".join(map(str, ids)), end="")
    print()


@dataclass
class DecodeOptions:
    ids: list[str] = option(REQUIRED, "a file that encode wrote, or numbers")
    tokenizer: str = option("gpt2", TOKENIZER)


def decode(argv: Sequence[str]) -> None:
    """turn ids back into text on standard output"""
    o = parse(DecodeOptions, argv, "tokenizer.py decode", str(decode.__doc__), positional=("ids", "IDS"))[0]
    tokenizer = open_tokenizer(o.tokenizer)
    try:
        if all(part.isdecimal() for part in o.ids):
            print(tokenizer.decode(map(int, o.ids)))
            return
        if len(o.ids) > 1:
            raise UserError("decode takes one file, or ids, which are numbers from 0 up")
        with Path(o.ids[0]).open("rb") as file:
            while data := file.read(text.BLOCK):
                sys.stdout.buffer.write(tokenizer.decode_bytes(unpack_ids(data, tokenizer.vocab_size)))
    except KeyError as error:
        raise UserError(f"the tokenizer {o.tokenizer} has no token with the id {error}") from error


@dataclass
class ShowOptions:
    text: str = option(REQUIRED, "the text to cut")
    tokenizer: str = option("gpt2", TOKENIZER)
    color: str = option("auto", "colours, or | between tokens", choices=("auto", "always", "never"))


def show(argv: Sequence[str]) -> None:
    """show how a text is cut into tokens, and their ids"""
    o = parse(ShowOptions, argv, "tokenizer.py show", str(show.__doc__), positional=("text", "TEXT"))[0]
    tokenizer = open_tokenizer(o.tokenizer)
    ids = list(tokenizer.encode_iterable([o.text], allowed_special="all"))
    tokens = [render(tokenizer.vocab[i]) for i in ids]
    if o.color == "always" or (o.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ):
        paint = [f"\x1b[30;{color}m" for color in (106, 103, 105, 102)]  # black on cyan, yellow, magenta, green
        print("".join(f"{paint[n % 4]}{token}" for n, token in enumerate(tokens)) + "\x1b[0m")
        print(" ".join(f"{paint[n % 4]}{i}\x1b[0m" for n, i in enumerate(ids)))
    else:
        print("|".join(tokens))
        print(" ".join(map(str, ids)))


@dataclass
class StatsOptions:
    file: str = option(REQUIRED, "a UTF-8 text file")
    tokenizer: str = option("gpt2", TOKENIZER)
    top: int = option(10, "how many tokens to list")


def stats(argv: Sequence[str]) -> None:
    """show how well a text file is compressed, and by which tokens"""
    o = parse(StatsOptions, argv, "tokenizer.py stats", str(stats.__doc__), positional=("file", "FILE"))[0]
    tokenizer = open_tokenizer(o.tokenizer)
    counts = count_tokens(tokenizer, o.file)
    n_tokens, vocab = counts.total(), tokenizer.vocab
    if not n_tokens:
        raise UserError(f"{o.file} is empty")
    n_bytes = sum(len(vocab[i]) * count for i, count in counts.items())
    print(f"{n_bytes:,} bytes are {n_tokens:,} tokens: {n_bytes / n_tokens:.3f} bytes per token")
    print(f"{len(counts):,} of {len(vocab):,} tokens are used: {len(counts) / len(vocab):.1%} of the vocabulary")
    print("\nlongest tokens used\n  bytes      count  token")
    for i in sorted(counts, key=lambda i: (-len(vocab[i]), i))[: o.top]:
        print(f"{len(vocab[i]):7,} {counts[i]:10,}  [{render(vocab[i])}]")
    print("\n   rank      count  of all tokens up to here  token")
    ranked, so_far, shown = counts.most_common(), 0, set(range(1, o.top + 1))
    shown |= {step * 10**power for step in (1, 2, 5) for power in range(len(str(len(ranked))))} | {len(ranked)}
    for rank, (i, count) in enumerate(ranked, 1):
        so_far += count
        if rank in shown:
            print(f"{rank:7,} {count:10,} {so_far / n_tokens:24.1%}  [{render(vocab[i])}]")


def count_tokens(tokenizer: Tokenizer, path: PathLike) -> Counter[int]:
    """How often each id occurs in a UTF-8 text file, special tokens included; the file is read in blocks."""
    counts: Counter[int] = Counter()
    for ids in tokenizer.encode_blocks(read_text(path)):
        counts.update(ids)
    return counts


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called gpt2, or the one in a .model file."""
    if name != "gpt2" and not Path(name).is_file():
        hint = f": did you mean {name}.model?" if Path(f"{name}.model").is_file() else ""
        raise UserError(f"--tokenizer {name} is neither gpt2 nor a file{hint}")
    return GPT2Tokenizer() if name == "gpt2" else load(name)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what a wrong file or value raises as a UserError, and print warnings as notes on stderr."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
        try:
            yield
        except BrokenPipeError:
            raise  # the reader, such as head, has seen enough
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
        except ValueError as error:
            raise UserError(str(error)) from error


VERBS = {"train": train, "encode": encode, "decode": decode, "show": show, "stats": stats}


def main(argv: Sequence[str]) -> None:
    """Run the verb that `argv` begins with. Raises UserError for a mistake that the user can put right."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if argv and argv[0] in ("-h", "--help"):
        print("usage: tokenizer.py VERB ...\n\nTrain, use and look at tokenizers; VERB --help lists its options.\n")
        print("\n".join(f"  {name:8}{verb.__doc__}" for name, verb in VERBS.items()))
    elif not argv or argv[0].startswith("-"):
        raise UserError(f"a verb comes first: {', '.join(VERBS)} (see tokenizer.py --help)")
    else:
        with plain_errors():
            dispatch(VERBS, argv)
