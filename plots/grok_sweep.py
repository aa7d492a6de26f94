"""The results of grok.py's sweeps: steps to 99 % for each training fraction, and what each intervention does.

    python plots/grok_sweep.py                          all sweeps in runs/
    python plots/grok_sweep.py runs/sweep-fraction      one of them; a folder or its results.json
"""

from runtime.script import run_main

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from commands.results import GROKKING, read_results
from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError
from runtime.files import read_json

Results = list[dict[str, Any]]
MAKER = "python grok.py sweep fraction"


@dataclass
class Options:
    results: list[str] = option((), "folders of sweeps, or their results.json (default: all in runs/)")
    out: str = option("grok_sweep.png", "the picture to write: png, svg, pdf or jpg")


def read(path: Path) -> dict[str, Any]:
    """A results file. Raises UserError when it isn't one."""
    return read_results(path, GROKKING, "sweep of grok.py", MAKER)


def describe(runs: Results) -> str:
    """What the runs have in common, in a few words."""
    layers, seeds = runs[0]["n_layer"], sorted({run["seed"] for run in runs})
    return f"{layers} layer{'s' * (layers > 1)}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def fraction_title(runs: Results) -> str:
    """What the runs show: that a smaller share of the table takes longer, or only what was measured."""
    steps = {f: [r["clean_val_99"] or np.inf for r in runs if r["frac"] == f] for f in {r["frac"] for r in runs}}
    means = [np.mean(steps[f]) for f in sorted(steps)]
    falls = len(means) > 2 and means[-1] < np.inf and all(a >= b for a, b in zip(means, means[1:]))
    return "The less of the table, the later" if falls else "Steps to 99 % by the share of the table"


def draw_fraction(axes: Axes, runs: Results) -> None:
    """Draw the steps to 99 %, training and clean validation, with a line through the means of the runs that reached it.

    The other runs are open triangles, and the best accuracy among them stands above.
    """
    for key, name, color in (
        ("train_99", "training pairs", style.COLORS[0]),
        ("clean_val_99", "validation, clean of twins", style.COLORS[2]),
    ):
        there = [run for run in runs if run[key]]
        axes.scatter([r["frac"] for r in there], [r[key] for r in there], color=color, s=26, zorder=3)
        not_there = [run for run in runs if not run[key]]
        axes.scatter([r["frac"] for r in not_there], [r["step"] for r in not_there], facecolors="white", s=34,
                     edgecolors=color, marker="^", zorder=3)
        for frac in sorted({r["frac"] for r in not_there}):
            best = max((r for r in not_there if r["frac"] == frac), key=lambda r: r["clean_val_acc"])
            axes.annotate(f"{100 * best['clean_val_acc']:.0f} %", (frac, best["step"]), xytext=(0, 6), color=color,
                          textcoords="offset points", fontsize=9, ha="center")
        fractions = sorted({run["frac"] for run in there})
        means = [[run[key] for run in there if run["frac"] == f] for f in fractions]
        axes.plot(fractions, [sum(m) / len(m) for m in means], color=color, label=name)
    axes.set_yscale("log")
    axes.set_ylim(100, 1.4 * max(run["step"] for run in runs))
    axes.set_yticks([100, 200, 500, 1000, 2000, 4000])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("steps to 99 %")
    axes.set_xlabel("share of the table trained on")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_title(f"{fraction_title(runs)}: {describe(runs)}")
    axes.legend()


def draw_intervention(axes: Axes, runs: Results) -> None:
    """Draw a bar up to 99 % clean validation for each setting; a pale one, with the accuracy, if it wasn't reached."""
    names = list(dict.fromkeys(run["setting"] for run in runs))
    seeds = sorted({run["seed"] for run in runs})
    height = 0.8 / len(seeds)
    for run in runs:
        y = names.index(run["setting"]) + (seeds.index(run["seed"]) - (len(seeds) - 1) / 2) * height
        there = run["clean_val_99"]
        color = style.COLORS[2] if there else "#d9d9d9"
        axes.barh(y, there or run["step"], 0.92 * height, color=color)
        text = f"{there:,}" if there else f"{100 * run['clean_val_acc']:.1f} % at {run['step']:,}"
        axes.annotate(text, (there or run["step"], y), xytext=(4, 0), textcoords="offset points", va="center",
                      fontsize=9, color="#333333")
        if run["train_99"]:
            axes.plot([run["train_99"]] * 2, [y - 0.46 * height, y + 0.46 * height], color=style.COLORS[0], linewidth=2)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.18 * max(run["step"] for run in runs))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("steps to 99 % clean validation (green), to 99 % training (blue); grey: not reached")
    axes.set_title(f"Steps to generalisation, at {100 * runs[0]['frac']:g} % of the table: {describe(runs)}")


PANELS = {"fraction": draw_fraction, "intervention": draw_intervention}


def draw(sweeps: Sequence[dict[str, Any]], out: Path | str) -> None:
    """Write the picture: a panel for each sweep."""
    style.use()
    heights = [3.9 if sweep["sweep"] == "fraction" else 1.2 + 0.33 * len(sweep["runs"]) for sweep in sweeps]
    figure, panels = plt.subplots(
        len(sweeps), 1, figsize=(style.WIDTH, sum(heights)), height_ratios=heights, squeeze=False
    )
    for axes, sweep in zip(panels[:, 0], sweeps):
        PANELS[sweep["sweep"]](axes, sweep["runs"])
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/grok_sweep.py", str(__doc__), positional=("results", "RESULTS"))
    paths = [Path(path) for path in o.results]
    paths = paths or [path for path in sorted(Path("runs").glob("*/results.json")) if "sweep" in read_json(path)]
    if not paths:
        raise UserError(f"there is no sweep of grok.py in {Path('runs').resolve()} yet: `{MAKER}` makes one")
    draw([read(path) for path in paths], o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
