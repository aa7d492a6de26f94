"""What makes a model that goes on with text into one that answers: turns, loss on the answers alone, packed texts.

A conversation is a row of tokens, in which tokens of their own say whose turn it is:

    <|user|>What is 2 + 2?<|end|><|assistant|>4<|end|>

The model is trained on such rows like on any text, but for three things. Only what the assistant says counts: nobody
needs a model of the questions. Conversations are short and of all lengths, so several lie in one window of T tokens,
and none sees another. Each begins at position 0, where it will stand when the model is asked.

The data say all of it in three arrays `(B, T)`: the tokens, the tokens after them (-1 where the loss doesn't count),
and for every position the first one that it may see.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from tinygrad import Tensor, dtypes

from gpt import GPT, attention, dropout, embed, softmax
from kernels import edge, fast, instead, training
from variants import grouped_attention, split_heads, visible


@fast
def document_attention(
    qkv: Tensor, first: Tensor, n_head: int, p: float = 0.0, n_kv_head: int = 0, window: int = 0
) -> Tensor:
    """gpt.attention of qkv `(B, T, W)` where position t of text b sees those from first[b, t] to its own."""
    q, k, v = split_heads(qkv, n_head, n_kv_head)
    B, nh, T, hs = (int(n) for n in q.shape)
    scores = edge(q.matmul(k.transpose(-2, -1), dtype=dtypes.float32) * hs**-0.5)  # (B, nh, T, T)
    same = Tensor.arange(T, device=qkv.device) >= first.reshape(B, 1, T, 1)  # (B, 1, T, T): not of an earlier document
    weights = softmax((visible(T, T, window, qkv.device) & same).where(scores, -1e30))
    y = edge(dropout(weights, p).cast(v.dtype) @ v)  # (B, nh, T, hs)
    return y.transpose(1, 2).reshape(B, T, nh * hs)


@contextlib.contextmanager
def within_documents(first: Tensor) -> Iterator[None]:
    """While this is active, documents that share a window don't see each other, and each counts positions from its own
    beginning. Document by document the model gives the same numbers. `first` is `(B, T)`, int32."""
    place = (Tensor.arange(first.shape[1], device=first.device) - first).contiguous()  # (B, T), in its document

    def attention_within(_: fast, qkv: Tensor, n_head: int, p: float = 0.0, nk: int = 0, window: int = 0) -> Tensor:
        return document_attention(qkv, first, n_head, p, nk, window)

    def embed_within(operation: fast, table: Tensor, idx: Tensor, positions: Tensor | None = None) -> Tensor:
        x = operation.direct(table, idx)
        return x if positions is None else x + operation.direct(positions, place)

    def rotate_within(operation: fast, qkv: Tensor, turns: Tensor, heads: int) -> Any:
        return operation.direct(qkv, embed.direct(turns, place), heads)

    attentions = dict.fromkeys(("attention", "grouped_attention", "flash_attention"), attention_within)
    with instead(embed=embed_within, rotate=rotate_within, **attentions):
        yield


def answer_losses(model: GPT, idx: Tensor, targets: Tensor, first: Tensor) -> Tensor:
    """Cross-entropy `(B, T)` in nats, 0 where the target is -1."""
    with within_documents(first):
        return (targets >= 0).where(model.losses(idx, targets.maximum(0)), 0)


def answer_loss(
    model: GPT, idx: Tensor, targets: Tensor, first: Tensor, count: Tensor, seeds: Tensor | None = None
) -> Tensor:
    """Their mean over the targets that count, `()`. Dropout happens only with `seeds` from `gpt.dropout_seeds`.

    How many count is told, `(1,)`, and not seen here: where a step adds up several batches, or several devices share
    one, each target must weigh the same, and the parts have more and fewer of them.
    """
    with training(seeds):
        return (answer_losses(model, idx, targets, first).sum(0).sum() / count).reshape(())


def require_known_attention() -> None:
    """Say on stderr, once, that a changed attention of gpt.py or variants.py isn't used where documents are packed."""
    if not (attention.known and grouped_attention.known):
        print("note: conversations are packed with answers.document_attention: change that one too", file=sys.stderr)
