"""How coherent models of a sweep write, against their size: what `python gpt.py coherence runs/sweep` measured.

    python plots/coherence.py                  the measures in runs/sweep
    python plots/coherence.py runs/stories     those of another folder, or a coherence.json

Each panel has a dot for each seed and a line through the means; real text with the band around it that counts as near,
and the bigram and 5-gram models below. Under them stands a text by a model of every size.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from commands.coherence import NEAR, by_size, read_measures
from plots import style
from runtime.cli import option, parse

ROWS = 3  # lines of a sample
LETTERS = 150  # in a line


@dataclass
class Options:
    results: str = option("runs/sweep", "the folder of the sweep, or its coherence.json")
    out: str = option("coherence.png", "the picture to write: png, svg, pdf or jpg")


def newest(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each size, those on the most text, smallest size first."""
    sizes: dict[str, list[dict[str, Any]]] = {}
    for name in by_size(runs):
        here = [r for r in runs if f"{r['n_layer']}x{r['n_embd']}" == name]
        most = max(r["tokens"] for r in here)
        sizes[name] = sorted((r for r in here if r["tokens"] == most), key=lambda r: r["seed"])
    return sizes


def draw(saved: dict[str, Any], out: Path | str) -> None:
    """Write the picture: a panel for each measure, and a sample of each size."""
    style.use()
    names = [name for name in saved["anchors"]["real text"] if name != "words in a text"]
    sizes, rows = newest(saved["runs"]), -(-len(names) // 3)
    text = 0.135 * (ROWS + 1) * len(sizes) + 0.3
    figure = plt.figure(figsize=(style.WIDTH, 2.5 * rows + text))
    grid = figure.add_gridspec(rows + 1, 3, height_ratios=[2.5] * rows + [text])
    for i, name in enumerate(names):
        draw_measure(figure.add_subplot(grid[i // 3, i % 3]), saved, sizes, name, legend=i == 1)
    draw_samples(figure.add_subplot(grid[rows, :]), sizes)
    style.save(figure, out)


def draw_measure(
    axes: Axes, saved: dict[str, Any], sizes: dict[str, list[dict[str, Any]]], name: str, legend: bool
) -> None:
    """One measure against parameters."""
    share, means = name != "bits per byte", by_size(saved["runs"])
    factor = 100 if share else 1
    points = [(r["parameters"], factor * r["measures"][name]) for group in sizes.values() for r in group
              if r["measures"][name] is not None]
    axes.scatter([x for x, _ in points], [y for _, y in points], color=style.COLORS[0], s=14, zorder=3)
    line = [(group[0]["parameters"], factor * value) for size, group in sizes.items()
            if (value := means[size][name]) is not None]
    axes.plot([x for x, _ in line], [y for _, y in line], color=style.COLORS[0], label="models")
    for (label, dashes), color in zip((("real text", "-"), ("5-gram", "--"), ("bigram", ":")), style.COLORS[2:]):
        value = saved["anchors"][label][name]
        if value is not None:
            axes.axhline(factor * value, color=color, linestyle=dashes, linewidth=1.4, label=label)
            if label == "real text":
                axes.axhspan(factor * (value - NEAR), factor * (value + NEAR), color=color, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(labelsize=8)
    axes.set_title(name + (", %" if share else ""), fontsize=10)
    axes.set_xlabel("parameters", fontsize=8)
    if legend:
        axes.legend(fontsize=7)


def draw_samples(axes: Axes, sizes: dict[str, list[dict[str, Any]]]) -> None:
    """The first text of the first seed of each size, some lines of it."""
    axes.axis("off")
    lines = []
    for name, group in sizes.items():
        wrapped = textwrap.wrap(" ".join(group[0]["sample"].split()), LETTERS)[:ROWS]
        lines.append(f"{group[0]['parameters']:,} parameters ({name})")
        lines += [f"  {line}" for line in wrapped] + [""] * (ROWS - len(wrapped))
    axes.text(0, 1, "\n".join(lines), family="monospace", fontsize=6.3, va="top", linespacing=1.35,
              transform=axes.transAxes)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/coherence.py", str(__doc__), positional=("results", "RESULTS"))
    draw(read_measures(Path(o.results)), o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
