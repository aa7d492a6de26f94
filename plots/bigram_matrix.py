"""The table that `python bigram.py` learned and the one that counting gives, as heat maps side by side.

    python plots/bigram_matrix.py [RUN] [--out FILE.png]      the newest bigram run by default
"""

from runtime.script import run_main

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from bigram import Bigram, count_pairs, log_probabilities, softmax_table
from bigram import Options as BigramOptions
from data.corpora import find_corpus, is_gone
from data.encoding import encode_corpus
from exchange.checkpoint import tokenizer_of
from plots import style
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import copy_into
from tokenizer import render


@dataclass
class Options:
    run: str | None = option(None, "the run folder (default: the newest bigram run)")
    out: str = option("bigram_matrix.png", "the picture to write: png, svg, pdf or jpg")


def draw(
    learned: np.ndarray, counted: np.ndarray, names: Sequence[str], out: Path | str, title: str = "counted"
) -> None:
    """Draw two `(V, V)` tables of probabilities: row i has those of the token after i. `names` are the tokens', and
    `title` the second table's."""
    style.use()
    figure, both = plt.subplots(1, 2, figsize=(style.WIDTH, 4.6))
    size = min(6.0, 290 / len(names))  # points: as high as a row
    for axes, table, name in zip(both, (learned, counted), ("learned by gradient descent", title)):
        axes.grid(False)
        image = axes.imshow(np.maximum(table, 1e-4), norm=LogNorm(1e-4, 1), cmap="viridis", interpolation="nearest")
        axes.set_title(name)
        axes.set_xlabel("next character")
        axes.set_xticks(range(len(names)), names, fontsize=size, family="monospace")
        axes.set_yticks(range(len(names)), names, fontsize=size, family="monospace")
        axes.tick_params(length=0, pad=1)
    both[0].set_ylabel("character")
    figure.colorbar(image, ax=both, label="probability", shrink=0.8, extend="min")
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/bigram_matrix.py", str(__doc__), positional=("run", "RUN"))
    open_device()
    run = Run.open(o.run, "bigram")
    if not run.has("last"):
        raise UserError(f"{run.path} has no weights yet: let the run reach its first evaluation")
    tokenizer = tokenizer_of(run)
    model = Bigram(tokenizer.vocab_size)
    copy_into({"weight": model.weight}, run.load("last")[0], str(run.path))
    options = run.options(BigramOptions)
    if is_gone(options.data):
        raise UserError(f"{options.data}, the text of {run.path}, is gone: bring it back, or name its new place with "
                        f"bigram.py --resume {shlex.quote(str(run.path))} --data FILE")
    encoded = encode_corpus(find_corpus(options.data, options.data_dir))
    encoded.require_same(run)
    counts = count_pairs(encoded.train, tokenizer.vocab_size)
    signs = {" ": "␣", "\\n": "↵"}
    names = [signs.get(c := render(tokenizer.vocab[i]), c) for i in range(tokenizer.vocab_size)]
    names = [style.drawable(name) for name in names]
    k = options.add_k
    draw(np.exp(softmax_table(model)), np.exp(log_probabilities(counts, k)), names, o.out, f"counted, {k:g} added")
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
