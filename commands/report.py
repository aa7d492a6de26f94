"""`python gpt.py report`: a run as one HTML file, in which its model writes."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import grok
from commands.options import PACKED, WeightOptions
from commands.train import OPENINGS
from commands.weights import load_weights
from data.conversations import end_of_text
from data.modular import make_split, make_table
from data.waves import circle, fourier_power, key_frequencies
from exchange.layout import shapes
from exchange.page import model_blobs, tokenizer_blobs, write_page
from exchange.reader import require_formulas
from gpt import build
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors, number_in, require_shapes
from tokenizer import BasicTokenizer
from tokenizer import load as load_tokenizer

MOST_LINES = 1000  # of metrics: a curve of 700 pixels has no room for more


@dataclass
class ReportOptions(WeightOptions):
    run: str | None = option(None, "a run folder, or a .model file of tokenizer.py (default: the newest run in runs/)")
    dtype: str | None = option(None, "the numbers of the weights (default: float32; int8 above 5 million)", PACKED)
    out: str = option("report.html", "the file to write")


def report(argv: Sequence[str], kind: str = "gpt") -> None:
    """`python gpt.py report`: one HTML file that needs no network, for you to look at or to send.

    Of a model: it writes in the page, and you see each choice, where every head looks, and what a layer would say; you
    switch heads off. With it the curves, a sample and the options of the run.
    Of a run of grok.py: the curves, the circles, and the table of all pairs at each snapshot.
    Of a .model file: text, coloured by token as you type it.
    """
    o, given = parse(ReportOptions, argv, f"{kind}.py report", str(report.__doc__), positional=("run", "RUN"))
    out, path = Path(o.out), Path(o.run) if o.run else None
    is_run = path is not None and Run.holds_one(path)
    if path and path.is_file() and not o.init_from:
        refuse(given - {"run", "out"}, "a tokenizer")
        report_tokenizer(path, out)
    elif (kind == "grok" and not is_run) or (path and is_run and Run(path).config()["kind"] == "grok"):
        refuse(given - {"run", "out"}, "a run of grok.py")
        report_grok(Run.open(path, "grok"), out)
    else:
        report_model(o, out)
    print(f"{out}: {out.stat().st_size:,} bytes; open it in a browser")


def refuse(given: set[str], what: str) -> None:
    """Raise UserError for options about weights where there are none."""
    if given:
        raise UserError(f"--{min(given).replace('_', '-')} is about a model's weights, and this is a report of {what}")


def environment() -> dict[str, str]:
    """What the page was made with."""
    return {"python": platform.python_version(), "tinygrad": version("tinygrad"), "numpy": np.__version__,
            "machine": f"{platform.system()} {platform.machine()}"}


def thinned(lines: Sequence[Mapping[str, Any]], *names: str) -> list[list[float]]:
    """Some of the numbers in at most MOST_LINES lines of metrics, the last one among them."""
    every = -(-len(lines) // MOST_LINES) or 1
    return [[line[name] for name in names] for line in lines[::-1][::every][::-1]]


# ---- a model ----


def report_model(o: ReportOptions, out: Path) -> None:
    """Write the page of a model. Raises UserError when there is none, or one that a page can't compute."""
    open_device(o.device or "cpu")
    checkpoint, run = load_weights(o, o.run)
    require_formulas(build(checkpoint))  # the page computes as the C file does
    blobs, dtype = model_blobs(checkpoint, o.dtype)
    numbers = checkpoint.model
    name = run.path.resolve().name if run else str(o.init_from)
    data: dict[str, Any] = {
        "name": name, "dtype": dtype, "model": numbers,
        "end": end_of_text(checkpoint.known_tokenizer()),
        "parameters": sum(map(math.prod, shapes(numbers).values())), "environment": environment(),
    }
    if run:
        data |= about_run(run)
    write_page(out, "gpt", name, data, blobs)


def about_run(run: Run) -> dict[str, Any]:
    """What the page of a model says of its run: curves, a sample, the options, and how a prompt may begin."""
    corpus = run.config()["corpus"]
    opening = next((p for name, p in OPENINGS.items() if str(corpus.get("name")).startswith(name)), "")
    return {
        "batches": thinned(run.metrics("train_loss"), "step", "train_loss"),
        "evaluations": thinned(run.metrics("train_eval_loss", "val_loss"), "step", "train_eval_loss", "val_loss"),
        "seconds": max((line["seconds"] for line in run.metrics("seconds")), default=None),
        "sample": run.sample(),
        "options": run.config()["options"], "corpus": corpus, "prompt": opening.partition("'")[2].rstrip("'"),
    }


# ---- a grokking run ----


def report_grok(run: Run, out: Path) -> None:
    """Write the page of a run of grok.py. Raises UserError for one that has evaluated nothing yet."""
    o = run.options(grok.Options)
    table = make_table(o.op, o.p, o.prompt)
    split, lines = make_split(table, o.frac, o.seed), grok.evaluations(run)
    if not lines:
        raise UserError(f"{run.path} has evaluated nothing yet: let it reach step 25")
    part = np.zeros(len(table), np.uint8)  # of each pair: 0 training, 1 validation with a trained twin, 2 without one
    part[split.val], part[split.clean] = 1, 2
    rows = np.concatenate([table.pairs, table.answers[:, None], part[:, None]], 1).astype(np.uint8)  # (n, 4)
    kept = []
    for path in sorted((run.path / "snapshots").glob("[0-9]*.safetensors")):
        tensors, metadata = load_safetensors(path)
        expected = {"logits": (len(table), table.p), "wte": (table.p, o.n_embd)}
        require_shapes(expected, {name: t.shape for name, t in tensors.items()}, str(path))
        logits, wte = tensors["logits"].numpy(), tensors["wte"].numpy()
        kept.append((number_in(metadata, "step", path), logits.argmax(1).astype(np.uint8), wte))
    keys = key_frequencies(fourier_power(kept[-1][2]))[:4] if kept and o.op in ("+", "-") else []
    circles = [[circle(wte, k) for k in keys] for *_, wte in kept]
    names = ("step", "train_acc", "val_acc", "clean_val_acc", *map(grok.loss_key, ("train", "val", "clean_val")),
             "weight_norm")
    name = run.path.resolve().name
    data = {
        "name": name, "task": grok.task_name(table), "p": table.p, "op": table.op, "summary": grok.summary(lines),
        "names": names, "evaluations": thinned(lines, *names), "options": run.config()["options"],
        "model": run.config()["model"], "environment": environment(), "steps": [step for step, *_ in kept],
        "keys": keys, "shares": [[share for _, share in snapshot] for snapshot in circles],
    }
    blobs = {"table": rows.tobytes(), "answers": b"".join(answers.tobytes() for _, answers, _ in kept)}
    blobs["circles"] = b"".join(seen.astype("<f4").tobytes() for snapshot in circles for seen, _ in snapshot)
    write_page(out, "grok", name, data, blobs)


# ---- a tokenizer ----


def report_tokenizer(path: Path, out: Path) -> None:
    """Write the page of a tokenizer. Raises UserError when the file isn't one."""
    try:
        tokenizer = load_tokenizer(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is neither a run folder nor a tokenizer's .model file: {error}") from error
    merges = len(tokenizer.merges) if isinstance(tokenizer, BasicTokenizer) else 0
    data = {"name": path.name, "tokens": tokenizer.vocab_size, "merges": merges, "environment": environment(),
            "special": list(tokenizer.special_tokens)}
    write_page(out, "tokenizer", path.name, data, tokenizer_blobs(tokenizer, path))
