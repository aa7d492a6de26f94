"""The smallest language model: a table. Row i holds the logits of whatever follows token i.

    python bigram.py                train it, and compare it with the exact answer
    python bigram.py --lr 1e-2      at another learning rate; --help lists every option

Everything that trains a GPT is here already: tokens, batches, cross-entropy, gradients, AdamW, a validation split,
sampling. But the best possible table is known without training: count how often each token follows each other one, and
divide. So this first lesson can say how near gradient descent came to it.

What it imports is for later: `embed` and `cross_entropy` are formulas of gpt.py, the Trainer takes the steps in
trainer.py, and `Choice` in generate.py draws a token. The other imports open the text and the run folder.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tinygrad import Tensor

from data.batches import random_batch
from data.encoding import open_text, print_header, start_run
from generate import Choice
from gpt import cross_entropy, embed
from runtime.cli import command, option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.progress import counted
from runtime.run import resume_options
from trainer import Task, Trainer, TrainOptions, fit_warmup


class Bigram:
    """V x V logits: row i for the token after i. It sees one token at a time, so B x T tokens are B * T examples."""

    def __init__(self, vocab_size: int):
        self.weight = Tensor(np.zeros((vocab_size, vocab_size), np.float32)).realize()  # all equally likely at first

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy, `()`, for tokens and the tokens after them, both `(B, T)`."""
        return cross_entropy(embed(self.weight, idx), targets).mean()  # (B, T, V) -> (B, T) -> ()


@dataclass
class Options(TrainOptions):
    """The options of `python bigram.py`."""

    steps: int = option(10_000, "optimizer steps to take in all")
    batch_size: int = option(32, "windows per step")
    block_size: int = option(8, "tokens per window; a bigram looks at one at a time, so 32 x 8 is a batch of 256 pairs")
    lr: float = option(1e-3, "the learning rate")
    min_lr: float = option(1e-3, "where the cosine ends; unless it is given, at --lr: a constant rate")
    warmup: int = option(0, "steps of linear warm-up")
    weight_decay: float = option(0.0, "AdamW's: it would pull the table away from the counts")
    grad_clip: float = option(0.0, "the highest norm of the gradient; 0 for no limit")
    eval_interval: int = option(1000, "steps between evaluations, which also write a checkpoint")
    log_interval: int = option(100, "steps between lines of progress")
    add_k: float = option(0.5, "pairs added to every count, so that one that was never seen isn't impossible")

    def check(self) -> None:
        super().check()
        if self.block_size < 1 or not 0 < self.add_k < math.inf:
            raise UserError("--block-size must be at least 1 and --add-k above 0")


# ---- the exact answer ----


def count_pairs(ids: np.ndarray, V: int) -> np.ndarray:
    """How often token j follows token i: `(V, V)`."""
    pairs = ids[:-1].astype(np.int64) * V + ids[1:]
    return np.bincount(pairs, minlength=V * V).reshape(V, V)


def log_probabilities(counts: np.ndarray, k: float) -> np.ndarray:
    """The best table for these counts `(V, V)` plus `k` of every pair, as logs: -inf for 0 pairs."""
    smoothed = counts + k
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(smoothed) - np.log(smoothed.sum(1, keepdims=True))


def table_loss(log_p: np.ndarray, counts: np.ndarray) -> float:
    """Mean cross-entropy in nats of a table of log-probabilities `(V, V)` over all pairs of a text, given as counts."""
    seen = counts > 0  # the other pairs would be 0 * -inf
    return float(-(counts[seen] * log_p[seen]).sum() / counts.sum())


def softmax_table(model: Bigram) -> np.ndarray:
    """The model's log-probabilities `(V, V)`, in double precision."""
    z = model.weight.numpy().astype(np.float64)
    z -= z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


# ---- the experiment ----


def main(argv: Sequence[str]) -> None:
    asked, given = parse(Options, argv, "bigram.py", str(__doc__))
    device = open_device(asked.device)
    if "min_lr" not in given:
        asked.min_lr = asked.lr
    o, run = resume_options(asked, given, "bigram") if asked.resume else (asked, None)
    o.check()
    note = "" if run else fit_warmup(o, given)
    corpus, encoded = open_text(o, "char")
    V = encoded.tokenizer.vocab_size
    if V > 4096:
        raise UserError(f"a table of {V:,} x {V:,} is too large for this lesson: use a text with fewer characters")
    model = Bigram(V)
    run = start_run(o, "bigram", run, {"vocab_size": V}, corpus, encoded)
    sys.stderr.write(note)
    train, val = count_pairs(encoded.train, V), count_pairs(encoded.val, V)

    def batch(i: int) -> tuple[np.ndarray, np.ndarray]:  # tokens and the tokens after them, both (B, T)
        return random_batch(encoded.train, o.batch_size, o.block_size, np.random.default_rng((o.seed, 0, i)))

    def evaluate() -> dict[str, float]:
        log_p = softmax_table(model)
        return {"train_eval_loss": table_loss(log_p, train), "val_loss": table_loss(log_p, val)}

    trainer = Trainer(Task(model, Bigram.loss, batch, evaluate, o.batch_size * o.block_size), o, run)
    if o.resume:
        trainer.resume()
    print_header(device, corpus, encoded, f"a table of {V} x {V} = {V * V:,} parameters", run, trainer.step)
    trainer.train()

    learned, best = softmax_table(model), log_probabilities(train, 0)
    print(f"\n{'':34}{'train':>8}{'validation':>12}")
    for name, log_p in (
        (f"learned in {counted(trainer.step, 'step')}", learned),
        (f"counted, {o.add_k:g} added to every pair", log_probabilities(train, o.add_k)),
        ("counted, the lowest there can be", best),
    ):
        print(f"{name:34}{table_loss(log_p, train):8.4f}{table_loss(log_p, val):12.4f}")
    apart = table_loss(learned, train) - table_loss(best, train)
    print(f"gradient descent came within {apart:.4f} nats of the best table")

    rng, z = np.random.default_rng(o.seed), model.weight.numpy()
    ids = [int(encoded.train[0])]
    while len(ids) < 301:
        ids.append(Choice(temperature=1.0, top_k=0).draw(z[ids[-1]], ids, rng))
    sample = encoded.tokenizer.decode(ids[1:])
    run.write_text("sample.txt", sample)
    plot = Path(sys.argv[0]).with_name("plots") / "bigram_matrix.py"
    print(f"\n{sample}\n\nnow try  {command(plot, run.path)}")


if __name__ == "__main__":
    run_main(main)
