"""What each variant is worth: the results of `python gpt.py compare`, seed by seed, beside GPT-2's.

    python plots/compare.py                     the results in runs/compare
    python plots/compare.py runs/compare        those of another folder, or a results.json
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from commands.results import COMPARISON, read_results
from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError


@dataclass
class Options:
    results: str = option("runs/compare", "the folder of the runs, or its results.json")
    out: str = option("compare.png", "the picture to write")


def read(path: Path) -> dict[str, Any]:
    """A results file. Raises UserError when it isn't one, or has no GPT-2 to compare with."""
    saved = read_results(path, COMPARISON, "comparison with GPT-2", "python gpt.py compare")
    if not any(run["setting"] == "GPT-2" for run in saved["runs"]):
        raise UserError(f"{path} holds no run of GPT-2 to compare with: `python gpt.py compare` makes one")
    return saved


def draw(saved: dict[str, Any], out: Path | str) -> None:
    """Write the picture: a dot for each seed and a bar at their mean, the best variant on top; beside it the speed."""
    style.use()
    by_name: dict[str, list[dict[str, Any]]] = {}
    for run in saved["runs"]:
        by_name.setdefault(run["setting"], []).append(run)
    means = {name: statistics.mean(r["val_loss"] for r in runs) for name, runs in by_name.items()}
    speeds = {name: statistics.median(r["tokens_per_s"] or 0 for r in runs) for name, runs in by_name.items()}
    names = sorted(means, key=lambda name: means[name], reverse=True)
    figure, (left, right) = plt.subplots(1, 2, sharey=True, figsize=(style.WIDTH, 1.4 + 0.27 * len(names)),
                                         width_ratios=[3, 1])
    for y, name in enumerate(names):
        color = style.COLORS[4] if name == "GPT-2" else style.COLORS[0]
        left.scatter([r["val_loss"] for r in by_name[name]], [y] * len(by_name[name]), color=color, s=18, zorder=3)
        left.plot([means[name]] * 2, [y - 0.3, y + 0.3], color=color, linewidth=2)
        if speeds["GPT-2"]:
            right.barh(y, speeds[name] / speeds["GPT-2"], 0.6, color=color)
    left.axvline(means["GPT-2"], color=style.COLORS[4], linewidth=1, linestyle=":")
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("validation loss, nats per token")
    seeds = len({run["seed"] for run in saved["runs"]})
    left.set_title(f"After {saved['steps']:,} steps of {saved['compare']}, {seeds} seed{'s' * (seeds > 1)}")
    right.set_xlabel("tokens/s, GPT-2 = 1")
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/compare.py", str(__doc__), positional=("results", "RESULTS"))
    draw(read(Path(o.results)), o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
