"""`python gpt.py eval`: loss, perplexity and bits per byte."""

import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from answers import answer_losses
from commands.options import Options, RunOptions
from commands.questions import format_perplexity, print_choices, print_last_words
from commands.weights import find_tokenizer, load_weights
from data.batches import even_starts, windows
from data.conversations import Conversations, encode_text
from data.corpora import find_corpus, is_gone
from data.encoding import Encoded
from exchange.quantize import quantize_model
from gpt import build
from runtime.cli import option, parse
from runtime.compiled import Inputs, jit
from runtime.device import open_device
from runtime.errors import UserError
from runtime.progress import Progress, Waiting
from runtime.run import Run


@dataclass
class EvalOptions(RunOptions):
    split: str | None = option(None, "the part of the text, train or val (default: val of the run's own text, all of "
                                     "another)", ("train", "val"))
    data: str | None = option(None, "another text than the run's own, or its new place: a corpus or a file")
    choices: str | None = option(None, "instead of a text: hellaswag, or a .jsonl file of contexts and endings")
    last_word: str | None = option(None, "instead of a text: lambada, or a file of passages whose last word is asked")
    batch_size: int = option(12, "windows per forward pass")


def evaluate(argv: Sequence[str]) -> None:
    """`python gpt.py eval`: loss, perplexity and bits per byte over the whole split, every token of it once."""
    o, _ = parse(EvalOptions, argv, "gpt.py eval", str(evaluate.__doc__), positional=("run", "RUN"))
    if o.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {o.batch_size}")
    asked = o.choices or o.last_word
    if o.init_from and not o.data and not asked:
        raise UserError("eval --init-from needs a text: name it with --data")
    if asked and (o.data or o.split):
        raise UserError("--choices and --last-word bring their own texts: leave out --data and --split")
    open_device(o.device)
    checkpoint, run = load_weights(o, o.run)
    tokenizer = checkpoint.known_tokenizer()
    model = build(checkpoint)
    if asked:
        quantize_model(model, o.dtype)
        for name, show in ((o.choices, print_choices), (o.last_word, print_last_words)):
            if name:
                show(model, tokenizer, name, o.batch_size, o.data_dir)
        return
    if o.data:
        text, split, what = encode_text(find_corpus(o.data, o.data_dir), tokenizer, o.data_dir), o.split, str(o.data)
    else:
        assert run
        text, split, what = text_of_run(run, o.data_dir), o.split or "val", run.saved("corpus", "name", str)
    ids, what = (getattr(text, split), f"{split} split of {what}") if split else (text.ids, what)
    if len(ids) < 2:
        raise UserError(f"the {what} has {len(ids)} tokens; a loss needs two")
    if text.tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(f"{checkpoint.path} was never trained on turns: begin with it and train on conversations, "
                        f"--init-from {shlex.join([str(run.path if run else o.init_from), '--data', str(o.data)])}")
    results = []  # the loss in float32, and in the numbers that --dtype asks for
    B, T = o.batch_size, model.config.block_size
    for dtype in dict.fromkeys(("float32", o.dtype)):
        quantize_model(model, dtype)
        with Waiting(Progress(sys.stderr), f"evaluating on {len(ids):,} tokens in {dtype}"):
            if isinstance(text, Conversations):
                losses = jit(lambda x, y, first: answer_losses(model, x, y, first).realize())
                loss, tokens = mean_answer_loss(losses, text.evaluation(split, T, B))
            else:
                losses = jit(lambda x, y: model.losses(x, y).realize())
                loss, tokens = mean_loss(losses, ids, B, T)
        results.append((loss, f"   {dtype}" if o.dtype != "float32" else ""))
    predicted = text.answers(split) if isinstance(text, Conversations) else ids[1:]
    size = len(tokenizer.decode_bytes(predicted.tolist()))  # of the predicted tokens' text
    print(f"{what}: {tokens:,} tokens{'' if text.in_windows else ' of answers'}, {size:,} bytes, {checkpoint.path}")
    for loss, numbers in results:
        print(f"loss {loss:.4f} nats per token  perplexity {format_perplexity(loss)}  "
              f"bits per byte {loss * tokens / math.log(2) / size:.4f}{numbers}")


def mean_loss(
    losses: Any, ids: np.ndarray, B: int, T: int, count: int | None = None
) -> tuple[float, int]:
    """Mean loss in nats, and over how many tokens: of `count` even windows, or of every token but the first.

    The windows don't overlap, so that each token counts once, with from 1 to T tokens of context.
    """
    starts, inputs = even_starts(ids, T, count or len(ids)), Inputs()
    total, tokens = 0.0, 0
    for i in range(0, len(starts), B):
        chosen = starts[i : i + B]
        padded = np.concatenate([chosen, np.repeat(chosen[:1], B - len(chosen))])  # the compiled step has one shape
        total += losses(*inputs(*windows(ids, padded, T))).numpy()[: len(chosen)].sum(dtype=np.float64)
        tokens += len(chosen) * T
    rest = (len(ids) - 1) % T
    if count is None and rest:  # the end of the text, shorter than a window
        last = windows(ids, np.array([len(ids) - 1 - rest]), rest)
        padding = [np.pad(np.repeat(a, B, axis=0), ((0, 0), (0, T - rest))) for a in last]
        total += losses(*inputs(*padding)).numpy()[0, :rest].sum(dtype=np.float64)
        tokens += rest
    return total / tokens, tokens


def mean_answer_loss(
    losses: Any, batches: Iterable[tuple[np.ndarray, ...]]
) -> tuple[float, int]:
    """Mean loss in nats over the targets that count in packed batches (see answers.py), and how many they are."""
    inputs, total, tokens = Inputs(), 0.0, 0
    for batch in batches:
        total += losses(*inputs(*batch)).numpy().sum(dtype=np.float64)
        tokens += int((batch[1] >= 0).sum())
    return total / tokens, tokens


def text_of_run(run: Run, data_dir: str | None) -> Encoded:
    """The text that a run was made from. Raises UserError if it isn't the same any more."""
    source = run.options(Options)
    folder = data_dir or source.data_dir
    if is_gone(source.data):
        raise UserError(f"{source.data}, the text of {run.path}, is gone: eval takes its new place as --data FILE "
                        "--split val, and --resume as --data FILE")
    if source.val_data and is_gone(source.val_data):
        raise UserError(f"{source.val_data}, the text that {run.path} is validated on, is gone: eval takes its new "
                        "place as --data FILE, and --resume as --val-data FILE")
    corpus = find_corpus(source.data, folder, source.val_data)
    text = encode_text(corpus, find_tokenizer(source.tokenizer, run), folder)
    text.require_same(run)
    return text
