"""What fine-tuning learns and what it forgets: the results of `python -m benchmarks.finetuning`.

    python plots/finetuning.py                      the results in runs/finetuning
    python plots/finetuning.py runs/finetuning      those of another folder, or a results.json

Above, each line is a way of training on its way: to the right it forgets the old text, downwards it learns the new one.
Below, the loss on the new text step by step. Lines are means over the seeds; a dot is one seed at the end.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from commands.results import FINETUNING, read_results
from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError

DIRECTIONS = (("plays", "stories"), ("stories", "plays"))  # from, to
SCRATCH = "from scratch"  # begins with no base, so it has nothing to forget


@dataclass
class Options:
    results: str = option("runs/finetuning", "the folder of the runs, or its results.json")
    out: str = option("finetuning.png", "the picture to write: png, svg, pdf or jpg")


def read(path: Path) -> list[dict[str, Any]]:
    """The runs of a results file. Raises UserError when it isn't one of `benchmarks.finetuning`, or has no run yet."""
    maker = "python -m benchmarks.finetuning"
    runs = [run for run in read_results(path, FINETUNING, "fine-tuning", maker)["runs"] if run["new"]]
    if not runs or any(steps_of(run) != steps_of(runs[0]) for run in runs):
        raise UserError(f"{path} holds no fine-tuning at the same steps yet: `{maker}` makes one")
    return runs


def steps_of(run: dict[str, Any]) -> list[int]:
    """When its losses were measured."""
    return [point["step"] for point in run["curve"]]


def colors(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A colour for each method, in the order of the runs; ranks of the same adapters are shades."""
    methods = list(dict.fromkeys(run["method"] for run in runs))
    ranks = [name for name in methods if re.fullmatch(r"LoRA, rank \d+", name)]
    others = itertools.cycle(style.COLORS[i] for i in (4, 1, 0, 5, 3))
    shades = {name: style.shade(i, len(ranks)) for i, name in enumerate(ranks)}
    return {name: "#999999" if name == SCRATCH else shades.get(name) or next(others) for name in methods}


def curves(runs: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps `(m,)`, and the losses of every seed on a text `(seeds, m)`."""
    return np.array(steps_of(runs[0])), np.array([[point[name] for point in run["curve"]] for run in runs])


def draw_direction(upper: Axes, lower: Axes, runs: Sequence[dict[str, Any]], old: str, new: str) -> None:
    """Both panels of a direction."""
    for method, color in colors(runs).items():
        chosen = [run for run in runs if (run["method"], run["old"]) == (method, old)]
        if not chosen:
            continue
        (steps, y), (_, x) = curves(chosen, new), curves(chosen, old)
        lower.plot(steps, y.mean(0), color=color, label=method)
        if method != SCRATCH:
            upper.plot(x.mean(0), y.mean(0), color=color, linewidth=1.2)
            upper.scatter(x[:, -1], y[:, -1], color=color, s=16, zorder=3)
    upper.set_title(f"From the {old} to the {new}")
    upper.set_xlabel(f"loss on the {old}, the old text: what is forgotten")
    upper.set_ylabel(f"loss on the {new}")
    lower.set_xlabel("steps")
    lower.set_ylabel(f"loss on the {new}")


def draw(runs: Sequence[dict[str, Any]], out: Path | str) -> None:
    """Write the picture."""
    style.use()
    figure, axes = plt.subplots(2, 2, figsize=(style.WIDTH, 8.2))
    for (upper, lower), (old, new) in zip(axes.T, DIRECTIONS):
        draw_direction(upper, lower, runs, old, new)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/finetuning.py", str(__doc__), positional=("results", "RESULTS"))
    draw(read(Path(o.results)), o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
