"""Which parts of a model are essential: its loss without each head, each attention, each MLP, and each block.

    python plots/ablation.py [RUN]                 on the run's validation text; the newest run by default
    python plots/ablation.py gpt2 --data FILE      a model of transformers or llm.c, on this text

A part is switched off by making what it adds to the residual stream 0. The interval of a difference is 1.96 standard
errors over windows: both losses are measured on the same ones.
"""

from runtime.script import run_main

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from plots import style
from plots.inside import Ablation, ModelOptions, open_subject
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.progress import Progress


@dataclass
class Options(ModelOptions):
    data: str | None = option(None, "a text to measure the loss on (default: the run's validation split)")
    windows: int = option(120, "windows of that text, spread evenly")
    out: str = option("ablation.png", "the picture to write: png, svg, pdf or jpg")


def parts_of(L: int, nh: int) -> dict[str, list[tuple[int, int]]]:
    """The name of each part, and the switches that are off without it."""
    parts: dict[str, list[tuple[int, int]]] = {}
    for i in range(L):
        parts |= {f"head {i}.{j}": [(i, j)] for j in range(nh)}
        parts |= {f"attention {i}": [(i, nh)], f"MLP {i}": [(i, nh + 1)], f"block {i}": [(i, nh), (i, nh + 1)]}
    return parts


def measure(ablation: Ablation, L: int, nh: int) -> tuple[float, dict[str, tuple[float, float]]]:
    """The loss of the whole model, and for each part how much it rises without it, with the half-width of a 95 %
    interval, in nats per token."""
    whole = ablation.losses()
    rises, parts = {}, parts_of(L, nh)
    progress = Progress(sys.stderr)
    for n, (name, off) in enumerate(parts.items()):
        if progress.live or time.perf_counter() - progress.shown > 10:
            progress.show(f"without {name}: {n + 1} of {len(parts)}")
        rise = ablation.losses(off) - whole
        rises[name] = float(rise.mean()), float(1.96 * rise.std(ddof=1) / np.sqrt(len(rise)))
    progress.clear()
    return float(whole.mean()), rises


def draw(whole: float, rises: dict[str, tuple[float, float]], L: int, nh: int, name: str, out: Path | str) -> None:
    """Write the picture of what `measure` gives."""
    style.use()
    columns = [*(f"head {j}" for j in range(nh)), "attention", "MLP", "block"]
    table = np.array([rises[part][0] for part in parts_of(L, nh)]).reshape(L, nh + 3)
    heights = (0.6 + 0.4 * L, 3.4)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(style.WIDTH, sum(heights) + 1.2), height_ratios=heights)
    top.grid(False)
    limit = max(np.abs(table).max(), 1e-6)
    image = top.imshow(np.sqrt(np.maximum(table, 0) / limit), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    for (i, j), x in np.ndenumerate(table):
        top.text(j, i, f"{x:+.3f}", ha="center", va="center", size=8 if nh <= 8 else 6,
                 color="white" if image.norm(np.sqrt(max(x, 0) / limit)) > 0.7 else "black")
    top.set_xticks(range(nh + 3), columns, size=9)
    top.set_yticks(range(L), [f"layer {i}" for i in range(L)])
    top.set_title(f"{name}: how much the loss of {whole:.4f} rises without a part, nats per token")
    order = sorted(rises, key=lambda part: -rises[part][0])[:30]
    colors = [style.COLORS[1 if "block" in p else 2 if "MLP" in p else 4 if "attention" in p else 0] for p in order]
    rise, half = zip(*(rises[part] for part in order))
    bottom.bar(range(len(order)), rise, yerr=half, color=colors)
    bottom.set_xticks(range(len(order)), order, rotation=90, size=8)
    bottom.set_ylabel("rise of the loss")
    bottom.set_yscale("symlog", linthresh=0.01)
    bottom.set_title(f"the parts in order: without {order[0]} it rises most")
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/ablation.py", str(__doc__), positional=("run", "RUN"))
    open_device()
    subject = open_subject(o.run)
    L, nh = subject.model.config.n_layer, subject.model.config.n_head
    ablation = Ablation(subject.model, subject.validation(o.data, o.data_dir), o.windows)
    whole, rises = measure(ablation, L, nh)
    print(f"the whole model: loss {whole:.4f} on {ablation.tokens:,} tokens")
    for part in sorted(rises, key=lambda part: -rises[part][0]):
        print(f"without {part:12}  {rises[part][0]:+.4f} ± {rises[part][1]:.4f}")
    draw(whole, rises, L, nh, subject.name, o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
