"""Accuracy and loss of grokking runs at each step, and how much later than learning generalisation came.

    python plots/grok_curves.py                 the newest run of grok.py in runs/
    python plots/grok_curves.py RUN RUN ...     these runs, in one picture

`clean` is validation without the pairs whose twin (b, a) was trained on, which can be answered without any arithmetic.
"""

from runtime.script import run_main

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from grok import GROKKED, crossing, evaluations, loss_key
from grok import Options as GrokOptions
from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError
from runtime.run import Run

CURVES: tuple[tuple[str, Any], ...] = (("train", "-"), ("val", ":"), ("clean_val", "--"))
NAMES = {"train": "training pairs", "val": "validation pairs", "clean_val": "validation, clean of twins"}


@dataclass
class Options:
    runs: list[str] = option((), "run folders (default: the newest one)")
    out: str = option("grok_curves.png", "the picture to write: png, svg, pdf or jpg")


def mark_delay(axes: Axes, learned: int, generalised: int, y: float, color: str) -> None:
    """Draw an arrow from one 99 % crossing to the other, and write their distance next to it."""
    for x in (learned, generalised):
        axes.plot([x, x], [0, GROKKED], color=color, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.plot(x, GROKKED, "o", color=color, markersize=5, zorder=3)
    if generalised > learned:
        axes.annotate("", (generalised, y), xytext=(learned, y),
                      arrowprops={"arrowstyle": "<->", "color": color, "shrinkA": 0, "shrinkB": 0})
    text = f"{generalised - learned:,} steps later, {generalised / learned:.1f} times as many"
    axes.text(1.06 * learned, y + 0.015, text, color=color, va="bottom", fontsize=9)


def title(runs: Sequence[Sequence[dict[str, Any]]]) -> str:
    """What the evaluations of these runs show."""
    learned, generalised = ([crossing(lines, key) for lines in runs] for key in ("train_acc", "clean_val_acc"))
    if not all(learned):
        return "Accuracy and loss: the training pairs aren't learned yet" if not any(learned) else "Accuracy and loss"
    if not any(generalised):
        return "Learned by heart, and not understood yet"
    if not all(generalised):
        return "Learned by heart, and not understood by all yet"
    late = all(b and a and b > 2 * a for a, b in zip(learned, generalised))
    return "Learned by heart, and long after that understood" if late else "Learned and understood"


def draw(runs: Sequence[Run], out: Path | str) -> None:
    """Write the picture. Raises UserError for a run that hasn't evaluated anything yet."""
    style.use()
    o = runs[0].options(GrokOptions)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(style.WIDTH, 6.6), sharex=True, height_ratios=(1.15, 1))
    one = len(runs) == 1
    for i, run in enumerate(runs):
        lines = evaluations(run)
        if not lines:
            raise UserError(f"{run.path} has evaluated nothing yet: let it reach step 25")
        steps = [line["step"] for line in lines]
        for j, (name, dashes) in enumerate(CURVES):
            look = {"color": style.COLORS[(j if one else i) % len(style.COLORS)], "linestyle": "-" if one else dashes}
            top.plot(steps, [line[f"{name}_acc"] for line in lines], **look)
            bottom.plot(steps, [line[loss_key(name)] for line in lines], **look)
        learned, generalised = crossing(lines, "train_acc"), crossing(lines, "clean_val_acc")
        color = "#444444" if one else style.COLORS[i % len(style.COLORS)]
        if learned and generalised:
            y = 0.24 if one else 0.6 - 0.5 * i / len(runs)
            mark_delay(top, learned, generalised, y, color)
        elif learned:
            top.plot(learned, GROKKED, "o", color=color, markersize=5, zorder=3)
    if one:
        handles = [Line2D([], [], color=style.COLORS[j], label=NAMES[name]) for j, (name, _) in enumerate(CURVES)]
        subtitle = f"{runs[0].saved('corpus', 'name', str)}, {100 * o.frac:g} % of the table, weight decay {o.wd:g}"
    else:
        handles = [Line2D([], [], color="#444444", linestyle=dashes, label=NAMES[name]) for name, dashes in CURVES]
        handles += [
            Line2D([], [], color=style.COLORS[i % len(style.COLORS)], label=run.path.name) for i, run in enumerate(runs)
        ]
        subtitle = f"{len(runs)} runs"
    figure.suptitle(title([evaluations(run) for run in runs]), x=0.01, ha="left", fontsize=12, weight="bold")
    top.set_title(subtitle, weight="normal")
    top.set_ylabel("answers right")
    top.set_ylim(0, 1.03)
    top.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    top.legend(handles=handles, loc="upper left")
    bottom.set_ylabel("loss, nats per answer")
    bottom.set_yscale("log")
    bottom.set_xscale("log")
    bottom.set_xlabel("optimizer steps")
    first, last = bottom.get_xlim()
    bottom.set_xticks([x for x in (1, 10, 25, 50, 100, 200, 400, 1000, 2000, 4000, 10_000) if first <= x <= last])
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    bottom.xaxis.set_minor_formatter("")
    bottom.yaxis.set_major_formatter("{x:g}")
    bottom.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # where there is less than a decade
    guess = math.log(o.p)  # the loss of p equal probabilities
    bottom.axhline(guess, color="#888888", linewidth=1, linestyle=(0, (4, 3)))
    bottom.text(0.995, guess, "a guess", transform=bottom.get_yaxis_transform(), ha="right", va="bottom",
                fontsize=9, color="#666666")
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/grok_curves.py", str(__doc__), positional=("runs", "RUN"))
    draw([Run.open(path, "grok") for path in o.runs] or [Run.open(None, "grok")], o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
