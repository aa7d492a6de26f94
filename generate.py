"""Text out of a model: one token at a time, with the keys and values of the tokens before it kept.

A position's keys and values don't depend on what follows, so a step computes one position and looks the others up (the
cache of Pope et al., arXiv:2211.05102). The prompt goes through the model at once; after it one compiled step serves
every position, because the position is a variable of the step and the cache a buffer of fixed size.

The prompt and the steps run the model's own blocks. Attention is the one operation that looks at other positions, and
the embedding (or a rotation, in variants.py) the one that knows where a token stands: only these are replaced, for a
while (`instead`). In a model that you have changed other operations may do so too; therefore the first step is compared
with the model's own pass over the whole text. A short text gets more tokens for that, as a change may look far back.

When the text outgrows the model's context the oldest tokens fall out of the window. GPT-2 numbers positions from the
beginning of the window, so everything in the cache was computed for other positions: the window goes through the model
again. Keeping fewer tokens (`keep`) makes that rarer.
"""

import codecs
import contextlib
import copy
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.uop.ops import UOp

from gpt import GPT, attention, embed, softmax
from kernels import fast, fused, instead
from runtime.compiled import Inputs, jit, require_tokens
from runtime.errors import UserError
from tokenizer import Tokenizer

# ---- choosing a token ----


@dataclass(frozen=True)
class Choice:
    """How the next token is drawn from the logits. Raises UserError for an invalid value."""

    temperature: float = 0.8  # 0: always the likeliest token
    top_k: int = 200  # choose among the k likeliest; 0: among all
    top_p: float = 1.0  # nucleus sampling (Holtzman et al., arXiv:1904.09751)
    repetition_penalty: float = 1.0  # above 1: tokens of the text so far become rarer (Keskar et al., arXiv:1909.05858)

    def __post_init__(self) -> None:
        warm = self.temperature == 0 or 1e-4 <= self.temperature < math.inf
        if not warm or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError("--temperature must be 0 or at least 0.0001, --top-k 0 or more, and --top-p in (0, 1]")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError("--repetition-penalty must be above 0")

    def draw(self, logits: np.ndarray, seen: Sequence[int], rng: np.random.Generator) -> int:
        """A token from logits `(V,)`, after the tokens in `seen`."""
        if self.repetition_penalty != 1:
            known = np.unique(np.asarray(seen, np.int64))
            logits = logits.copy()
            z = logits[known]
            logits[known] = np.where(z > 0, z / self.repetition_penalty, z * self.repetition_penalty)
        if self.temperature == 0:
            return int(logits.argmax())
        k = self.top_k or len(logits)
        order = np.arange(len(logits))
        if k < len(logits):  # pick k and then sort only those: 0.4 ms instead of 4 with GPT-2's vocabulary
            order = np.argpartition(-logits, k - 1)[:k]
        order = order[np.lexsort((order, -logits[order]))]  # the likeliest first
        z = logits[order].astype(np.float64) / self.temperature
        p = np.exp(z - z[0])
        p /= p.sum()
        if self.top_p < 1:
            keep = int(np.searchsorted(np.cumsum(p), self.top_p)) + 1  # up to and with the token that reaches top_p
            order, p = order[:keep], p[:keep] / p[:keep].sum()
        return int(rng.choice(order, p=p))


# ---- the cache: keys and values (B, nk, N, hs) of every block, N positions long, nk heads each ----
#
# The texts end at the same position of the cache, so a shorter one begins later: text b at position first[b].


@fast
def remember(qkv: Tensor, keys: Tensor, values: Tensor, first: Tensor) -> bool:
    """Write the keys and values in qkv `(B, T, W)` into the cache in place, those of text b from first[b] `(B,)` on.

    True, as a kernel of this name returns: None would mean that there is none.
    """
    (B, T, W), (nk, N, hs) = (int(n) for n in qkv.shape), (int(n) for n in keys.shape[1:])
    # Position n of the cache takes token n - first[b]; where there is no such token it takes one that nobody reads.
    source = (Tensor.arange(N, device=qkv.device).reshape(1, 1, N, 1) - first.reshape(B, 1, 1, 1)).clip(0, T - 1)
    both = qkv[:, :, W - 2 * nk * hs :].reshape(B, T, 2, nk, hs).permute(2, 0, 3, 1, 4)  # (2, B, nk, T, hs)
    for i, cache in enumerate((keys, values)):
        cache.assign(both[i].gather(2, source.expand(*cache.shape)).contiguous())
    Tensor.realize(keys, values)
    return True


@fast
def attend(qkv: Tensor, keys: Tensor, values: Tensor, first: Tensor, now: UOp, window: int = 0) -> Tensor:
    """Attention `(B, 1, C)` of one more position of every text, whose q, k and v are `(B, 1, W)` side by side.

    Its key and value go into the cache at `now`, a bound variable, so that one compiled step serves every position; it
    looks at the positions of text b from first[b] `(B,)` to its own, or at the newest `window` of them.
    """
    B, nk, N, hs = (int(n) for n in keys.shape)
    nh = int(qkv.shape[-1]) // hs - 2 * nk  # as many as nk, or more if they share keys
    heads = qkv.reshape(B, nh + 2 * nk, 1, hs)
    q, k, v = heads[:, :nh].reshape(B, nk, nh // nk, hs), heads[:, nh : nh + nk], heads[:, nh + nk :]
    seen = []  # (B, nk, now + 1, hs)
    for cache, new in ((keys, k), (values, v)):
        # cache[:, :, now] = new, as a node of tinygrad's graph; `written` is the cache after it
        written = cache.uop.after(cache[:, :, now : now + 1].uop.store(new.contiguous().uop))
        seen.append(Tensor(written)[:, :, : now + 1])
    scores = (q @ seen[0].transpose(-2, -1)) * hs**-0.5  # (B, nk, nh / nk, now + 1)
    place = Tensor.arange(N, device=qkv.device)[: now + 1].reshape(1, 1, 1, now + 1)
    known = place >= first.reshape(B, 1, 1, 1)
    if window:
        known = known & (place > Tensor(now) - window)
    weights = softmax(known.where(scores, -1e30))  # (B, nk, nh / nk, now + 1)
    return (weights @ seen[1]).reshape(B, 1, nh * hs)


ATTENTIONS = ("attention", "grouped_attention", "flash_attention")  # gpt.py's, and those of variants.py
TRIED = 15  # tokens of the text that a model's first step is tried on, at least


class Sampler:
    """A model with a cache for B texts, and its two compiled steps: a prompt of any length, and one token more.

    Where the cache doesn't follow the model, every step reads the whole texts again, which is slower; a line says so.
    """

    def __init__(self, model: GPT, B: int = 1):
        c = model.config
        self.model, self.B = model, B
        shape = (B, getattr(c, "n_kv_head", 0) or c.n_head, c.block_size, c.n_embd // c.n_head)  # (B, nk, N, hs)
        zeros = lambda: Tensor.zeros(*shape).contiguous().realize()
        self.cache = [(zeros(), zeros()) for _ in range(c.n_layer)]
        # Whether steps use the cache: `attend` below must be the model's attention, and the first step come out right.
        self.follows, self.tried = attention.known, False
        self.texts: list[list[int]] = []  # the tokens in the cache
        self.length = 0  # positions of the cache that are in use
        self.lengths = np.zeros(B, np.int32)  # tokens of each text: a shorter one begins later in the cache
        # A compiled step for each length of the padded prompts, with and without filling the cache.
        self._prefill: dict[tuple[int, bool], tuple[Callable[..., Any], Inputs]] = {}
        self._step: Callable[..., Any] = jit(self._one)
        self._inputs = Inputs()

    def prefill(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """Empty the cache and read these tokens, at most block_size of each text; the logits after them `(B, V)`.

        The prompts are padded to a power of two, so that a few compiled steps serve prompts of every length.
        Raises UserError for a text that is empty or too long, and for a token that the model doesn't have.
        """
        self.begin(texts)
        T = min(max(16, 1 << self.length.bit_length()), self.model.config.block_size)
        idx = np.zeros((self.B, T), np.int32)
        for row, text in zip(idx, texts):
            row[: len(text)] = text
        # a full cache has no room for a step to read it
        fill = self.follows and self.length < self.model.config.block_size
        if (T, fill) not in self._prefill:
            self._prefill[T, fill] = jit(functools.partial(self._whole, fill)), Inputs()
        step, inputs = self._prefill[T, fill]
        try:
            return step(*inputs(idx, self.lengths - 1, self.length - self.lengths)).numpy()
        except Exception:  # a changed model may fail in many ways to fill this cache
            if self.tried or not fill:
                raise
            self.follows = False
            return self.prefill(texts)

    def begin(self, texts: Sequence[Sequence[int]]) -> None:
        """These texts are now in the cache. Raises UserError as `prefill` does."""
        for text in texts:
            require_tokens(np.array([text], np.int64), self.model.config.vocab_size, self.model.config.block_size)
        self.texts = [list(text) for text in texts]
        self.lengths = np.array([len(text) for text in texts], np.int32)
        self.length = int(self.lengths.max())

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """Read one more token of each text; the logits after it `(B, V)`.

        Raises UserError where the texts are as long as the model's context: go on with `prefill`.
        """
        texts = self.longer(tokens)
        if self.tried:
            self.texts = texts
            return self._cached(tokens) if self.follows else self.prefill(texts)
        trial = self.lengthened(texts)
        if self.follows and trial != texts:
            self.prefill([text[:-1] for text in trial])
        logits = self._first([text[-1] for text in trial]) if self.follows else None
        whole, self.tried = self.prefill(trial), True
        if logits is None or not self.equal(logits, whole):
            self.follows = False
            print("note: the cache doesn't follow this model, so every token takes a pass over the whole text: slower",
                  file=sys.stderr)
        return whole if trial == texts else self.prefill(texts)

    def lengthened(self, texts: Sequence[Sequence[int]]) -> list[list[int]]:
        """The texts with random tokens behind them, if the longest has fewer than TRIED, or than the model sees."""
        c = self.model.config
        more = max(0, min(TRIED, c.block_size) - max(map(len, texts)))
        return [[*text, *np.random.default_rng(0).integers(0, c.vocab_size, more).tolist()] for text in texts]

    def longer(self, tokens: Sequence[int]) -> list[list[int]]:
        """The texts with one more token each. Raises UserError as `step` does."""
        require_tokens(np.array(tokens)[None], self.model.config.vocab_size, self.B)
        if self.length == self.model.config.block_size:
            raise UserError(f"the cache is full: {self.length} tokens are all that the model sees")
        return [[*text, int(token)] for text, token in zip(self.texts, tokens, strict=True)]

    def equal(self, logits: np.ndarray, others: np.ndarray) -> bool:
        """Whether logits are the same numbers, added up in another order."""
        exact = self.model.dtype == "float32" and self.model.wte.weight.dtype in (dtypes.float32, "float32")
        return bool(np.abs(logits - others).max() <= (1e-4 if exact else 0.05) * np.abs(others).max())

    def _first(self, tokens: Sequence[int]) -> np.ndarray | None:
        """A first step with the cache; None where the model can't take it."""
        try:
            return self._cached(tokens)
        except Exception:  # as in `prefill`
            return None

    def _cached(self, tokens: Sequence[int]) -> np.ndarray:
        """A step with the cache."""
        now = UOp.variable("now", 0, self.model.config.block_size - 1).bind(self.length)
        first = self.length - self.lengths  # where each text begins in the cache
        inputs = self._inputs(np.array(tokens, np.int32)[:, None], self.lengths[:, None], first)
        self.length, self.lengths = self.length + 1, self.lengths + 1
        return self._step(*inputs, now).numpy()

    def _whole(self, fill: bool, idx: Tensor, last: Tensor, first: Tensor) -> Tensor:
        """Logits `(B, V)` after the token `last` `(B,)` of each row of `idx` `(B, T)`."""
        layers, model = iter(self.cache), copy.copy(self.model)
        is_last = Tensor.arange(idx.shape[1], device=idx.device).reshape(1, -1) == last.reshape(-1, 1)  # (B, T)

        def only_last(x: Tensor) -> Tensor:  # (B, T, ...) -> (B, 1, ...): row last[b] of text b, plus zeros
            return x if x.shape[1] == 1 else is_last.unsqueeze(-1).where(x, 0).sum(1, keepdim=True)

        def attention_that_is_kept(operation: fast, qkv: Tensor, *options: Any) -> Tensor:
            remember(qkv, *next(layers), first)
            return operation.direct(qkv, *options)

        vars(model)["head"] = lambda x: self.model.head(only_last(x))  # no logits of the other positions
        kept = instead(**dict.fromkeys(ATTENTIONS, attention_that_is_kept))
        with fused(), kept if fill else contextlib.nullcontext():
            return only_last(model(idx)).squeeze(1).realize()  # (B, V)

    def _one(self, idx: Tensor, position: Tensor, first: Tensor, now: UOp) -> Tensor:
        """Logits `(B, V)` after one more token of each text: `idx` `(B, 1)`, with `position` `(B, 1)` in its text and
        `now` in the cache."""
        layers = iter(self.cache)

        def attention_to_cache(_: fast, qkv: Tensor, n_head: int, p: float = 0, nk: int = 0, window: int = 0) -> Tensor:
            return attend(qkv, *next(layers), first, now, window)

        def embed_here(_: fast, table: Tensor, idx: Tensor, positions: Tensor | None = None) -> Tensor:
            x = embed.direct(table, idx)
            return x if positions is None else x + embed.direct(positions, position)

        def rotate_here(operation: fast, qkv: Tensor, turns: Tensor, heads: int) -> Tensor:
            return operation.direct(qkv, embed.direct(turns, position), heads)

        attentions = dict.fromkeys(ATTENTIONS, attention_to_cache)
        with fused(), instead(embed=embed_here, rotate=rotate_here, **attentions):
            return self.model(idx).realize().squeeze(1)


# ---- texts ----


class Text:
    """The text that grows out of tokens: whole characters only, and nothing from the stop string on."""

    def __init__(self, tokenizer: Tokenizer, stop: str | None = None):
        self.tokenizer, self.stop = tokenizer, stop
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")  # holds back half a character
        self.held = ""  # what may be the beginning of the stop string
        self.stopped = False

    def add(self, token: int | None) -> str:
        """What can be shown now that this token has come; None says that none will come."""
        data = b"" if token is None else self.tokenizer.decode_bytes([token])
        text = self.held + self.decoder.decode(data, final=token is None)
        self.held = ""
        if not self.stop:
            return text
        if (at := text.find(self.stop)) >= 0:
            self.stopped = True
            return text[:at]
        if token is not None:
            n = next(n for n in range(len(self.stop) - 1, -1, -1) if text.endswith(self.stop[:n]))
            text, self.held = text[: len(text) - n], text[len(text) - n :]
        return text


def stream(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    choice: Choice | None = None,
    seeds: Sequence[int] | None = None,
    stop: str | None = None,
    keep: int | None = None,
    sampler: Sampler | None = None,
    end: int | None = None,
) -> Iterator[tuple[int, str]]:
    """Texts that go on from the ids in `prompts`, together: yields (which prompt, piece of text), a piece for each
    token that completes a character. Each text has its own seed (default: 1337, 1338, ...).

    A model sees at most the newest `block_size` tokens of a text. When one text outgrows them, every text goes on with
    the newest `keep` of its own (default: all `block_size`, so that the window slides by one token at a time). A
    `sampler` of the same model and number of texts saves compiling it again. A text ends before the token `end`.
    """
    choice, sampler = choice or Choice(), sampler or Sampler(model, len(prompts))
    T, V = model.config.block_size, tokenizer.vocab_size
    rngs = [np.random.default_rng(seed) for seed in seeds or range(1337, 1337 + len(prompts))]
    ids, texts = [list(prompt) for prompt in prompts], [Text(tokenizer, stop) for _ in prompts]
    starts = [max(0, len(text) - T) for text in ids]  # where each text's window begins
    logits = sampler.prefill([text[start:] for text, start in zip(ids, starts)])
    for n in range(max_new_tokens):
        if n:
            if sampler.length < T:
                logits = sampler.step([text[-1] for text in ids])
            else:
                starts = [max(start, len(text) - (keep or T)) for text, start in zip(ids, starts)]
                logits = sampler.prefill([text[start:] for text, start in zip(ids, starts)])
        for i, text in enumerate(texts):
            token = choice.draw(logits[i, :V], ids[i], rngs[i])
            ids[i].append(token)
            if token == end and not text.stopped:
                rest, text.stopped = text.add(None), True
                if rest:
                    yield i, rest
            if not text.stopped and (piece := text.add(token)):
                yield i, piece
        if all(text.stopped for text in texts):
            break
    for i, text in enumerate(texts):
        if not text.stopped and (piece := text.add(None)):
            yield i, piece


def encode_prompt(tokenizer: Tokenizer, prompt: str | None, source: str = "--prompt") -> list[int]:
    """The ids of a prompt; for None those of a new line, or the first id where the vocabulary has no new line.

    Raises UserError, which names the `source` of the prompt, for a character that the vocabulary lacks.
    """
    text = "\n" if prompt is None else prompt.removeprefix("\ufeff")  # a byte-order mark isn't part of a text
    try:
        ids = list(tokenizer.encode_iterable([text], allowed_special="all"))
    except ValueError as error:
        if prompt is not None:
            raise UserError(f"{source}: {error}") from error
        return [0]
    if not ids:
        raise UserError(f"{source} needs at least one character")
    return ids
