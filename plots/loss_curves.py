"""Train and validation loss of runs.

    python plots/loss_curves.py                 the newest run in runs/
    python plots/loss_curves.py RUN RUN ...     these runs, in one picture
    python plots/loss_curves.py --x tokens      against tokens read, or --x seconds, instead of steps
    python plots/loss_curves.py --smooth 20     the loss of single batches as a running mean of 20 logged ones

The band between the curves is the gap between the text that is trained on and the text that isn't. Where validation
stops improving while the loss on the training text still falls, the run has begun to learn its text by heart: that
point is marked with its value.
"""

from runtime.script import run_main

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError
from runtime.run import Run


@dataclass
class Options:
    runs: list[str] = option((), "run folders (default: the newest one)")
    x: str = option("step", "what to draw against", ("step", "tokens", "seconds"))
    smooth: int = option(1, "logged batches in the running mean of the training loss; 1: each as it was")
    out: str = option("loss_curves.png", "the picture to write: png, svg, pdf or jpg")


def divergence(train: Sequence[float], val: Sequence[float], margin: float = 0.01) -> int | None:
    """Index of the evaluation after which validation only got worse while train still fell, or None.

    It is the lowest validation loss, if validation ends more than `margin` nats above it (less is the noise of an
    evaluation on part of the text) and the training loss ends below its value there.
    """
    best = int(np.argmin(val))
    return best if val[-1] > val[best] + margin and train[-1] < train[best] else None


def running_mean(x: Sequence[float], n: int) -> np.ndarray:
    """The mean of each number of x and of the n - 1 before it; at the beginning, of as many as there are."""
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(x, np.float64)]))
    ends = np.arange(1, len(x) + 1)
    begins = np.maximum(ends - n, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def draw(runs: Sequence[Run], x: str, out: Path | str, smooth: int = 1) -> None:
    """Write the picture. Raises UserError for a run that hasn't logged anything yet."""
    style.use()
    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.8))
    for i, run in enumerate(runs):
        colors = (style.COLORS[0], style.COLORS[1]) if len(runs) == 1 else (style.COLORS[i % len(style.COLORS)],) * 2
        _draw_run(axes, run, x, smooth, colors, "" if len(runs) == 1 else f"{run.path.name}: ")
    axes.set_xlabel({"step": "optimizer steps", "tokens": "tokens read", "seconds": "seconds of training"}[x])
    axes.set_ylabel("cross-entropy, nats per token")
    axes.set_title("Training and validation loss" + (f": {runs[0].path.name}" if len(runs) == 1 else ""))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.02)
    axes.legend()
    style.save(figure, out)


def _draw_run(axes: Axes, run: Run, x: str, smooth: int, colors: tuple[str, str], name: str) -> None:
    """Draw one run: single batches, both evaluated losses with the gap between them, and where they part."""
    lines = run.metrics(x, "train_loss")
    if not lines:
        raise UserError(f"{run.path} has logged nothing yet: its metrics.jsonl is empty or missing")
    single = "single batches" if smooth == 1 else f"running mean of {smooth} logged batches"
    axes.plot([line[x] for line in lines], running_mean([line["train_loss"] for line in lines], smooth), alpha=0.25,
              color=colors[0], linewidth=0.8, label=f"{name}train, {single}")
    evaluated = run.metrics(x, "train_eval_loss", "val_loss")
    if not evaluated:
        return
    at = [line[x] for line in evaluated]
    train, val = ([line[key] for line in evaluated] for key in ("train_eval_loss", "val_loss"))
    axes.plot(at, train, color=colors[0], marker="o", markersize=3, label=f"{name}train, evaluated")
    axes.plot(at, val, color=colors[1], marker="o", markersize=4, linestyle="--" if name else "-",
              label=f"{name}validation, lowest {min(val):.4f}")
    axes.fill_between(at, train, val, color=colors[1], alpha=0.12, linewidth=0,
                      label=f"{name}gap, {val[-1] - train[-1]:.2f} at the end")
    if (turn := divergence(train, val)) is not None:
        axes.axvline(at[turn], color=colors[1], linewidth=1, linestyle=":")
        axes.annotate(f" lowest validation loss {val[turn]:.4f}\n at {x} {at[turn]:,.0f}: from here on it rises,\n"
                      " and the training loss still falls", (at[turn], val[turn]), xytext=(0, 30),
                      textcoords="offset points", fontsize=9, color=colors[1])


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/loss_curves.py", str(__doc__), positional=("runs", "RUN"))
    if o.smooth < 1:
        raise UserError(f"--smooth must be at least 1, not {o.smooth}")
    draw([Run.open(path, "gpt") for path in o.runs] or [Run.open(None, "gpt")], o.x, o.out, o.smooth)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
