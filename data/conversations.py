"""Conversations: a .jsonl file as tokens with turns, and as windows in which several of them lie side by side.

A line is an object, either `{"messages": [{"role": "user", "content": "..."}, ...]}`, with the roles system, user and
assistant, or `{"prompt": "...", "completion": "..."}`, a question and its answer. What a message says is text like any
other: nobody can spell a token that ends a turn.
"""

import bisect
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import tokenizer as tk
from data.corpora import Corpus
from data.encoding import LEARN_FROM, LEARNED, Encoded, encode_corpus, learn_bpe
from data.sources import END, digest_of, read_bytes
from runtime.errors import UserError

ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}  # the token before a turn
END_OF_TURN = "<|end|>"  # and the one after it
Turn = tuple[str, str]  # role, content


# ---- tokens ----


def has_turns(tokenizer: tk.Tokenizer) -> bool:
    """Whether a tokenizer has the tokens of turns."""
    return set(tokenizer.special_tokens) >= {*ROLES.values(), END_OF_TURN}


def end_of_text(tokenizer: tk.Tokenizer) -> int | None:
    """The token at which a text ends by itself: that of a turn where there are turns, else that of a document."""
    return tokenizer.special_tokens.get(END_OF_TURN if has_turns(tokenizer) else END)


def with_turns(tokenizer: tk.Tokenizer) -> tk.Tokenizer:
    """A tokenizer with the tokens of turns too: those that it lacks come after all that it has."""
    known = dict(tokenizer.special_tokens)
    for token in (*ROLES.values(), END_OF_TURN):
        known.setdefault(token, max(tokenizer.vocab_size, *(i + 1 for i in known.values()), 0))
    other = tk.from_config(tokenizer.config())
    other.register_special_tokens(known)
    return other


def encode_turns(tokenizer: tk.Tokenizer, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and of each whether the assistant says it: its turns and the end of each.

    Raises ValueError for a character that the vocabulary lacks.
    """
    ids: list[int] = []
    said: list[bool] = []
    for role, content in turns:
        body = [*tokenizer.encode(content, disallowed_special=()), tokenizer.special_tokens[END_OF_TURN]]
        ids += [tokenizer.special_tokens[ROLES[role]], *body]
        said += [False] + [role == "assistant"] * len(body)
    return ids, said


def opening(tokenizer: tk.Tokenizer, turns: Sequence[Turn]) -> list[int]:
    """The tokens of these turns, and the one with which the assistant's begins: an answer comes next."""
    return [*encode_turns(tokenizer, turns)[0], tokenizer.special_tokens[ROLES["assistant"]]]


# ---- the file ----


def is_conversations(path: Path) -> bool:
    """Whether a file's name says that it holds conversations: `.jsonl`, perhaps compressed."""
    return path.suffixes[-2:] in ([".jsonl", ".gz"], [".jsonl", ".zst"]) or path.suffix == ".jsonl"


def read_turns(files: Sequence[Path]) -> dict[str, list[Turn]]:
    """The conversations of .jsonl files by their places, `FILE, line N`. Raises UserError, with the place, for one of
    another form, and for a file that can't be read."""
    found = {}
    for path in files:
        for n, line in enumerate(b"".join(data for _, data in read_bytes([path])).split(b"\n"), 1):
            if not line.strip():
                continue
            place = f"{path}, line {n}"
            try:
                found[place] = parse_turns(json.loads(line.decode("utf-8-sig" if n == 1 else "utf-8")))
            except (ValueError, RecursionError) as error:
                not_json = isinstance(error, UnicodeDecodeError | json.JSONDecodeError | RecursionError)
                raise UserError(f"{place}: {'it is not JSON in UTF-8' if not_json else error}") from error
    return found


def parse_turns(line: Any) -> list[Turn]:
    """The turns of a line. Raises ValueError for one of another form, or without an answer."""
    pair = {"prompt": "user", "completion": "assistant"}
    if isinstance(line, dict) and set(pair) <= set(line):
        messages: Any = [{"role": role, "content": line[name]} for name, role in pair.items()]
    elif isinstance(line, dict) and "messages" in line:
        messages = line["messages"]
    else:
        raise ValueError('it needs "messages", or a "prompt" and its "completion"')
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError('"messages" is a list of {"role": ..., "content": ...}')
    turns = [(m.get("role"), m.get("content")) for m in messages]
    for role, content in turns:
        if role not in ROLES:
            raise ValueError(f"a role is one of {', '.join(ROLES)}, not {role!r}")
        if not isinstance(content, str):
            raise ValueError(f"what the {role} says is a string, not {str(content)[:40]!r}")
    if not any(role == "assistant" for role, _ in turns):
        raise ValueError("the assistant says nothing in it: there is no answer to learn")
    return turns


# ---- the text of a run ----


@dataclass(frozen=True)
class Conversations(Encoded):
    """Conversations one after the other; the last tenth of them, one at least, is for validation, unless there are
    others for it."""

    in_windows: ClassVar[bool] = False
    said: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # of each id, whether the assistant says it
    starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))  # where each begins, and the end of all

    @property
    def first_val(self) -> int:
        """The first conversation that is kept for validation."""
        count = len(self.starts) - 1
        return count if self.val_text else min(int(0.9 * count), count - 1)

    @property
    def train(self) -> np.ndarray:
        return self.ids[: self.starts[self.first_val]]

    @property
    def val(self) -> np.ndarray:
        return self.val_text.ids if self.val_text else self.ids[self.starts[self.first_val] :]

    def documents(self, split: str | None) -> tuple["Conversations", range]:
        """The conversations of a split, or all, by their numbers in a text."""
        if split == "val" and isinstance(self.val_text, Conversations):
            return self.val_text.documents(None)
        count = len(self.starts) - 1
        return self, range(self.first_val if split == "val" else 0, self.first_val if split == "train" else count)

    def answers(self, split: str | None) -> np.ndarray:
        """The tokens that the assistant says in a split, or in all, without those that end its turns."""
        text, documents = self.documents(split)
        span = slice(text.starts[documents.start], text.starts[documents.stop])
        ids = text.ids[span][text.said[span]]
        return ids[ids != self.tokenizer.special_tokens[END_OF_TURN]]

    def first_question(self) -> list[int]:
        """The beginning of the first conversation for validation, up to where the answer comes."""
        text, documents = self.documents("val")
        start, end = text.starts[documents.start : documents.start + 2]
        return text.ids[start : start + int(np.argmax(text.said[start:end]))].tolist()

    def pieces(self, documents: Sequence[int], T: int) -> list[tuple[int, int]]:
        """Documents as (place of the first token, how many of them have one after them): at most T in a piece."""
        return [(at, min(T, end - at)) for d in documents for start, end in [self.starts[d : d + 2] - (0, 1)]
                for at in range(int(start), int(end), T)]

    def windows(self, packed: Sequence[Sequence[tuple[int, int]]], T: int) -> tuple[np.ndarray, ...]:
        """Windows of these pieces: tokens, the tokens after them or -1 where the loss doesn't count, and the first
        position that each may see; all `(B, T)` int32. A position that is left over sees itself and counts nothing."""
        x, y = np.zeros((len(packed), T), np.int32), np.full((len(packed), T), -1, np.int32)
        first = np.broadcast_to(np.arange(T, dtype=np.int32), x.shape).copy()
        for b, row in enumerate(packed):
            t = 0
            for at, n in row:
                x[b, t : t + n] = self.ids[at : at + n]
                y[b, t : t + n] = np.where(self.said[at + 1 : at + n + 1], self.ids[at + 1 : at + n + 1], -1)
                first[b, t : t + n] = t
                t += n
        return x, y, first

    def batches(self, T: int, B: int, seed: int) -> Callable[[int], tuple[np.ndarray, ...]]:
        """The i-th batch of B windows: every epoch has all conversations in another order, packed anew."""
        packed: dict[int, list[list[tuple[int, int]]]] = {}  # of the newest epoch
        pieces = self.pieces(self.documents("train")[1], T)

        def epoch(n: int) -> list[list[tuple[int, int]]]:
            if n not in packed:
                packed.clear()
                rng = np.random.default_rng((seed, 0, n))
                rows = pack([pieces[i] for i in rng.permutation(len(pieces))], T)
                packed[n] = [rows[i] for i in rng.permutation(len(rows))]
            return packed[n]

        # An epoch is as many windows as the tokens fill: what packs less tightly comes in another order next time.
        count = max(1, sum(n for _, n in pieces) // T)

        def batch(i: int) -> tuple[np.ndarray, ...]:
            places = [divmod(j, count) for j in range(i * B, (i + 1) * B)]
            return self.windows([epoch(n)[j] for n, j in places], T)

        return batch

    def evaluation(
        self, split: str | None, T: int, B: int, count: int | None = None
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Batches of B windows with all conversations of a split, or with as many as about `count` windows hold."""
        text, documents = self.documents(split)
        rows = pack(text.pieces(documents, T), T)[:count]
        for i in range(0, len(rows), B):
            chosen = rows[i : i + B]
            yield text.windows(chosen + [[]] * (B - len(chosen)), T)  # a compiled step has one shape


def pack(pieces: Sequence[tuple[int, int]], T: int) -> list[list[tuple[int, int]]]:
    """Pieces in windows of T positions, each in the window with the least room that is enough (best fit)."""
    rows: list[list[tuple[int, int]]] = []
    rooms: list[tuple[int, int]] = []  # (room, row) of the windows that aren't full, sorted
    for piece in pieces:
        i = bisect.bisect_left(rooms, (piece[1], 0))
        room, row = rooms.pop(i) if i < len(rooms) else (T, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(piece)
        if left := room - piece[1]:
            bisect.insort(rooms, (left, row))
    return rows


def encode_text(
    corpus: Corpus, tokenizer: str | tk.Tokenizer = "char", data_dir: Path | str | None = None
) -> Encoded:
    """The tokens of a corpus, with turns if it is of .jsonl files of conversations: else those of `encode_corpus`.

    Raises UserError for a corpus of both.
    """
    files = (*corpus.files, *(corpus.val.files if corpus.val else ()))
    if not any(map(is_conversations, files)):
        return encode_corpus(corpus, tokenizer, data_dir)
    if other := next((path for path in files if not is_conversations(path)), None):
        raise UserError(f"{other} holds no conversations, and other files do: train on one kind at a time")
    text = encode_conversations(corpus.files, tokenizer, 1 if corpus.val else 2)
    return replace(text, val_text=encode_conversations(corpus.val.files, text.tokenizer, 1)) if corpus.val else text


def encode_conversations(files: Sequence[Path], tokenizer: str | tk.Tokenizer, least: int = 2) -> Conversations:
    """The conversations of .jsonl files as tokens, at least so many; `tokenizer` is as in `encode_corpus`.

    Raises UserError, with the file and the line's number, for what can't be read or encoded.
    """
    conversations = read_turns(files)
    if len(conversations) < least:
        raise UserError(f"{files[0]} has {len(conversations)} conversations: it takes one to train on and one to "
                        "validate on")
    contents = [content for turns in conversations.values() for _, content in turns]
    if tokenizer == "char":
        tokenizer = tk.CharTokenizer.train(contents)
    elif isinstance(tokenizer, str) and (learned := LEARNED.fullmatch(tokenizer)):
        tokenizer = learn_bpe(["\n".join(contents[: 9 * len(contents) // 10])[:LEARN_FROM]], int(learned[1]))
    elif isinstance(tokenizer, str):
        tokenizer = tk.GPT2Tokenizer()
    tokenizer = with_turns(tokenizer)
    ids: list[int] = []
    said: list[bool] = []
    starts = [0]
    for place, turns in conversations.items():
        try:
            tokens, by_assistant = encode_turns(tokenizer, turns)
        except ValueError as error:
            raise UserError(f"{place}: {error}") from error
        ids += tokens
        said += by_assistant
        starts.append(len(ids))
    sha256, size = digest_of(files)
    return Conversations(np.array(ids, np.int32), tokenizer, size, sha256, None, np.array(said), np.array(starts))
