"""What happens inside a model: attention weights, the residual stream, and the loss with parts of it switched off.

The numbers come from the model's own code in gpt.py. Attention runs as its formula, whose softmax is watched; a part is
switched off by a factor of 0 on what it adds. attention_maps.py, logit_lens.py, embeddings.py and ablation.py draw it.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor

import gpt
from commands.evaluate import text_of_run
from data.batches import even_starts, windows
from data.corpora import find_corpus
from data.encoding import encode_corpus
from generate import ATTENTIONS
from gpt import GPT, linear
from kernels import fast, instead
from plots import style
from runtime.cli import option
from runtime.compiled import Inputs, jit
from runtime.errors import UserError
from runtime.run import Run
from tokenizer import Tokenizer, render
from variants import grouped_attention

# ---- which model, which text ----


@dataclass
class ModelOptions:
    run: str | None = option(None, "a run folder, or a model of transformers or llm.c (default: the newest run)")
    data_dir: str | None = option(None, "where texts are kept (default: the environment variable DATA_DIR)")


@dataclass(frozen=True)
class Subject:
    """A model to look into, its tokenizer, and the run folder if it lies in one."""

    model: GPT
    tokenizer: Tokenizer
    name: str
    run: Run | None

    def prompt(self, text: str | None, most: int) -> list[int]:
        """The ids of `text`, or of the beginning of the run's sample.txt; at most `most` of them, and the context.

        Raises UserError for a text that the vocabulary doesn't have, and when there is none.
        """
        if most < 2:
            raise UserError(f"--tokens must be at least 2, not {most}")
        if text is None:
            text = self.run.sample() if self.run else None
            if text is None:
                raise UserError(f"{self.name} has no sample.txt to show: give a text with --prompt")
            text = text.strip()
        try:
            ids = self.tokenizer.encode(text)
        except ValueError as error:
            raise UserError(f"--prompt: {error}") from error
        if len(ids) < 2:
            raise UserError("--prompt needs at least two tokens")
        return ids[: min(most, self.model.config.block_size)]

    def labels(self, ids: Sequence[int]) -> list[str]:
        """Each token as people read it; a space and a new line as signs."""
        names = (render(self.tokenizer.vocab[i]).replace(" ", "␣").replace("\\n", "↵") for i in ids)
        return [style.drawable(name) for name in names]

    def validation(self, data: str | None, data_dir: str | None) -> np.ndarray:
        """The ids of the run's validation split, or of the text that `--data` names.

        Raises UserError when there is neither, or it is shorter than two windows.
        """
        if data:
            ids = encode_corpus(find_corpus(data, data_dir), self.tokenizer, data_dir).ids
        elif self.run:
            ids = text_of_run(self.run, data_dir).val
        else:
            raise UserError(f"{self.name} isn't a run folder and has no validation text: name a text with --data")
        if len(ids) <= 2 * self.model.config.block_size:
            raise UserError(f"the text has {len(ids)} tokens, fewer than two windows of {self.model.config.block_size}")
        return ids


def open_subject(path: str | None) -> Subject:
    """The model in `path`, by default that of the newest run. Raises UserError when there is none."""
    run = Run.open(path, "gpt") if path is None or Run.holds_one(path) else None
    model, tokenizer = gpt.load(run.path if run else str(path))
    return Subject(model, tokenizer, run.path.name if run else Path(str(path)).name, run)


# ---- the weights of attention, and the residual stream ----


@dataclass(frozen=True)
class Inside:
    """What a model computes for T tokens. L layers, nh heads, C channels, V tokens to choose from."""

    weights: np.ndarray  # (L, nh, T, T): row i has the weights with which position i looks at those up to its own
    stream: np.ndarray  # (L + 1, T, C): the residual stream before each block, and after the last
    logits: np.ndarray  # (L + 1, T, V): what the head makes of each of them; the last ones are the model's


def look_inside(model: GPT, ids: Sequence[int]) -> Inside:
    """Run a model on T `ids` and keep what it computes."""
    kept: list[Tensor] = []

    def watched(operation: fast, scores: Tensor) -> Tensor:
        kept.append(operation.direct(scores))
        return kept[-1]

    def in_full(operation: fast, *arguments: Any) -> Tensor:  # flash attention never has the weights of a whole row
        return (grouped_attention if operation.name == "flash_attention" else operation).formula(*arguments)

    with instead(softmax=watched, **dict.fromkeys(ATTENTIONS, in_full)):
        stream = [model.embed(Tensor([list(ids)]))]
        for block in model.h:
            stream.append(block(stream[-1]))
    logits = [model.head(model.ln_f(x)) for x in stream]
    Tensor.realize(*kept, *stream, *logits)
    weights, streams, all_logits = (np.stack([x.numpy()[0] for x in xs]) for xs in (kept, stream, logits))
    return Inside(weights, streams, all_logits)


def mean_distance(weights: np.ndarray) -> np.ndarray:
    """How many tokens back a head looks on average: `(..., T, T)` -> `(...)`, the mean over positions."""
    T = weights.shape[-1]
    back = np.arange(T)[:, None] - np.arange(T)
    return (weights * back).sum(-1).mean(-1)


def entropy(weights: np.ndarray) -> np.ndarray:
    """Of each row of weights, as a share of what equal weights have, averaged over the positions after the first: 0 for
    a head that looks at one token, 1 for one that looks at all alike. `(..., T, T)` -> `(...)`."""
    bits = -(weights * np.log(np.maximum(weights, 1e-30))).sum(-1)[..., 1:]
    return (bits / np.log(np.arange(2, weights.shape[-1] + 1))).mean(-1)


KINDS = ("previous token", "first token", "same token", "induction")


def head_kinds(model: GPT, seed: int = 0, texts: int = 8) -> np.ndarray:
    """How much each head is of each of `KINDS`, `(4, L, nh)`, from 0 to 1: the mean weight on the one position that it
    is named after, in the second half of random tokens that come twice.

    In a text of two equal halves of N tokens, position i looks at i - 1 (previous), at 0 (first), at i - N, where the
    same token stood, or at i - N + 1, the token that followed it then: an induction head (Olsson et al.,
    arXiv:2209.11895) finds there what comes next.
    """
    rng = np.random.default_rng(seed)
    N = model.config.block_size // 2
    if N < 2:
        return np.zeros((4, model.config.n_layer, model.config.n_head))
    i = np.arange(N, 2 * N)
    scores = []
    for _ in range(texts):
        half = rng.integers(0, model.config.vocab_size, N).tolist()
        weights = look_inside(model, half + half).weights
        scores.append([weights[:, :, i, at].mean(-1) for at in (i - 1, np.zeros_like(i), i - N, i - N + 1)])
    return np.mean(scores, 0)


def correlations(stream: np.ndarray) -> np.ndarray:
    """Pearson's correlation between the vectors of every two positions: `(T, C)` -> `(T, T)`."""
    z = stream - stream.mean(-1, keepdims=True)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    return z @ z.T


def below_diagonal(a: np.ndarray) -> np.ndarray:
    """The entries of a `(T, T)` matrix where a position looks at an earlier one."""
    return a[np.tril_indices(len(a), -1)]


# ---- the loss without a part ----


@contextlib.contextmanager
def switches(model: GPT, on: Tensor) -> Iterator[None]:
    """While this is active, everything that a block adds is multiplied by `on` `(L, nh + 2)`: in a row the factor of
    each head, of all that attention adds, and of what the MLP adds. 0 switches a part off."""
    nh, parts = model.config.n_head, [(block, block.attn, block.mlp) for block in model.h]

    def switched(layer: int, column: int, part: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def heads(operation: fast, qkv: Tensor, *options: Any) -> Tensor:
            y = operation.direct(qkv, *options)  # (B, T, C)
            B, T, C = y.shape
            return (y.reshape(B, T, nh, C // nh) * on[layer, :nh].reshape(nh, 1)).reshape(B, T, C)

        def call(x: Tensor) -> Tensor:
            with instead(**dict.fromkeys(ATTENTIONS, heads)):
                return part(x) * on[layer, column]

        return call

    try:
        for layer, (block, attn, mlp) in enumerate(parts):
            block.attn, block.mlp = switched(layer, nh, attn), switched(layer, nh + 1, mlp)  # type: ignore[assignment]
        yield
    finally:
        for block, attn, mlp in parts:
            block.attn, block.mlp = attn, mlp


def whole_batches(ids: np.ndarray, T: int, count: int, B: int) -> np.ndarray:
    """The starts of `count` windows, spread evenly, without those that don't fill a batch of B.

    Raises UserError for a count below 2, which has no spread.
    """
    if count < 2:
        raise UserError(f"--windows must be at least 2, not {count}")
    starts = even_starts(ids, T, count)
    return starts[: max(len(starts) // B, 1) * B]


class Ablation:
    """The losses of a model on fixed windows of a text, with any parts switched off. It is compiled once."""

    def __init__(self, model: GPT, ids: np.ndarray, count: int, B: int = 12):
        self.model, T = model, model.config.block_size
        starts = whole_batches(ids, T, count, B)
        self.batches = [windows(ids, starts[i : i + B], T) for i in range(0, len(starts), B)]
        self.tokens = len(starts) * T
        self.inputs = Inputs()
        self.step = jit(self._step)

    def _step(self, x: Tensor, y: Tensor, on: Tensor) -> Tensor:
        with switches(self.model, on):
            return self.model.losses(x, y).mean(-1).realize()

    def losses(self, off: Sequence[tuple[int, int]] = ()) -> np.ndarray:
        """The mean loss of each window, in nats, without the parts `off`: layers and columns of `switches`."""
        on = np.ones((self.model.config.n_layer, self.model.config.n_head + 2), np.float32)
        for layer, column in off:
            on[layer, column] = 0
        return np.concatenate([self.step(*self.inputs(x, y, on)).numpy() for x, y in self.batches])


def depth_losses(model: GPT, ids: np.ndarray, count: int, B: int = 12) -> np.ndarray:
    """The mean loss, in nats, if the head read the residual stream before each block and after the last: `(L + 1,)`."""
    T = model.config.block_size
    starts = whole_batches(ids, T, count, B)

    def losses(x: Tensor, y: Tensor) -> Tensor:
        stream = [model.embed(x)]
        for block in model.h:
            stream.append(block(stream[-1]))
        each = [gpt.cross_entropy(linear(model.ln_f(s), model.head_weight, transposed=True).float(), y) for s in stream]
        return Tensor.stack(*[loss.mean() for loss in each]).realize()

    step, inputs = jit(losses), Inputs()
    parts = [step(*inputs(*windows(ids, starts[i : i + B], T))).numpy() for i in range(0, len(starts), B)]
    return np.mean(parts, 0)
