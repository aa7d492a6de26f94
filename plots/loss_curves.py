"""Train and validation loss of runs.

    python plots/loss_curves.py                 the newest run in runs/
    python plots/loss_curves.py RUN RUN ...     these runs, in one picture
    python plots/loss_curves.py --x tokens      against tokens read instead of steps

Where validation stops improving while the loss on the training text still falls, the run has begun to learn its text by
heart: that point is marked.
"""

from runtime.script import run_main

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError
from runtime.run import Run


@dataclass
class Options:
    runs: list[str] = option((), "run folders (default: the newest one)")
    x: str = option("step", "what to draw against", ("step", "tokens"))
    out: str = option("loss_curves.png", "the picture to write: png, svg, pdf or jpg")


def divergence(train: Sequence[float], val: Sequence[float], margin: float = 0.01) -> int | None:
    """Index of the evaluation after which validation only got worse while train still fell, or None.

    It is the lowest validation loss, if validation ends more than `margin` nats above it (less is the noise of an
    evaluation on part of the text) and the training loss ends below its value there.
    """
    best = int(np.argmin(val))
    return best if val[-1] > val[best] + margin and train[-1] < train[best] else None


def draw(runs: Sequence[Run], x: str, out: Path | str) -> None:
    """Write the picture. Raises UserError for a run that hasn't logged anything yet."""
    style.use()
    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.8))
    for i, run in enumerate(runs):
        lines = run.metrics(x, "train_loss")
        if not lines:
            raise UserError(f"{run.path} has logged nothing yet: its metrics.jsonl is empty or missing")
        one = len(runs) == 1
        color, name = style.COLORS[i % len(style.COLORS)], "" if one else f"{run.path.name}: "
        axes.plot([line[x] for line in lines], [line["train_loss"] for line in lines], color=color, alpha=0.25,
                  linewidth=0.8, label=f"{name}train, single batches")
        evaluated = run.metrics(x, "train_eval_loss", "val_loss")
        if not evaluated:
            continue
        at = [line[x] for line in evaluated]
        train, val = ([line[key] for line in evaluated] for key in ("train_eval_loss", "val_loss"))
        axes.plot(at, train, color=color, marker="o", markersize=3, label=f"{name}train, evaluated")
        turn = divergence(train, val)
        color = style.COLORS[1] if one else color
        axes.plot(at, val, color=color, marker="o", markersize=4, linestyle="-" if one else "--",
                  label=f"{name}validation, lowest {min(val):.4f}")
        if turn is not None:
            axes.axvline(at[turn], color=color, linewidth=1, linestyle=":")
            axes.annotate(" from here on validation\n gets worse, train better", (at[turn], val[turn]), xytext=(0, 30),
                          textcoords="offset points", fontsize=9, color=color)
    axes.set_xlabel("optimizer steps" if x == "step" else "tokens read")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_title("Training and validation loss" + (f": {runs[0].path.name}" if len(runs) == 1 else ""))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.02)
    axes.legend()
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/loss_curves.py", str(__doc__), positional=("runs", "RUN"))
    draw([Run.open(path, "gpt") for path in o.runs] or [Run.open(None, "gpt")], o.x, o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
