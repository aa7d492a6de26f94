"""Where every head looks, and whether attention follows the likeness of what it looks at.

    python plots/attention_maps.py [RUN] --prompt TEXT             every head of every layer, and one head large
    python plots/attention_maps.py [RUN] --layer 2 --head 1        choose which one is large; both count from 0

RUN is a run folder (the newest by default), or a model of transformers or llm.c. The second row compares two matrices
of the large head's layer: how much each position looks at each earlier one, averaged over heads, and how alike the
two positions' vectors are where the layer reads them ("correlation maps").
"""

from runtime.script import run_main

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from plots import style
from plots.inside import (
    KINDS,
    Inside,
    ModelOptions,
    below_diagonal,
    correlations,
    entropy,
    head_kinds,
    look_inside,
    mean_distance,
    open_subject,
)
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError


@dataclass
class Options(ModelOptions):
    prompt: str | None = option(None, "the text that is read (default: the beginning of the run's sample.txt)")
    layer: int | None = option(None, "the layer of the large head (default: the head that is most of any kind)")
    head: int | None = option(None, "the large head in that layer")
    tokens: int = option(32, "read at most so many tokens of the text")
    out: str = option("attention_maps.png", "the picture to write: png, svg, pdf or jpg")


def name_of(kinds: np.ndarray) -> str:
    """What a head with these scores `(4,)` is called: its strongest kind, if more than half its weight goes there."""
    best = int(kinds.argmax())
    return KINDS[best] if kinds[best] > 0.5 else f"mostly {KINDS[best]}" if kinds[best] > 0.25 else ""


def followed(seen: Inside, layer: int) -> float:
    """Pearson's correlation, over all pairs of a position and an earlier one, between the weight with which the first
    looks at the second (mean of the layer's heads, times the number of positions it chooses among) and how alike
    their vectors are."""
    T = seen.weights.shape[-1]
    weight = seen.weights[layer].mean(0) * np.arange(1, T + 1)[:, None]  # so that equal weights are 1 in every row
    return float(np.corrcoef(below_diagonal(weight), below_diagonal(correlations(seen.stream[layer])))[0, 1])


def draw(
    seen: Inside, kinds: np.ndarray, labels: Sequence[str], large: tuple[int, int], name: str, out: Path | str
) -> None:
    """Write the picture, one head large: that of the layer and place `large`. `kinds` is `(4, L, nh)` of `head_kinds`,
    `labels` has the T tokens."""
    style.use()
    L, nh, T = seen.weights.shape[:3]
    height = min(9.0, 0.35 + L * max(0.8, 6.0 / nh))
    figure = plt.figure(figsize=(style.WIDTH, height + 8.4))
    top, middle, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=(height, 4.5, 3.9)).flat
    layer, head = large

    top.suptitle(f"{name}: where each head looks (row: the position that looks; column: what it looks at)", size=11)
    for (i, j), axes in np.ndenumerate(top.subplots(L, nh, squeeze=False)):
        _matrix(axes, np.sqrt(seen.weights[i, j]), "viridis", 0, 1)
        axes.set_xticks([])
        axes.set_yticks([])
        if nh <= 8:
            axes.set_title(f"{i}.{j} {name_of(kinds[:, i, j])}", size=7, weight="normal", pad=2)

    left, right = middle.subplots(1, 2, width_ratios=(1.25, 1))
    _matrix(left, np.sqrt(seen.weights[layer, head]), "viridis", 0, 1, labels)
    left.set_title(f"layer {layer}, head {head}: looks {mean_distance(seen.weights)[layer, head]:.1f} tokens back")
    scores = [f"{kind} {100 * score:.0f} %" for kind, score in zip(KINDS, kinds[:, layer, head])]
    left.set_xlabel(f"random tokens that come twice: {', '.join(scores[:2])},\n{', '.join(scores[2:])}", size=8)
    spread, distance = entropy(seen.weights), mean_distance(seen.weights)
    for i in range(L):
        right.scatter(distance[i], spread[i], label=f"layer {i}", s=30, color=style.shade(i, L))
    most = [divmod(int(k), nh) for k in kinds.reshape(4, -1).argmax(1)]
    for i, j in set(most):
        right.annotate(f"{i}.{j}", (distance[i, j], spread[i, j]), size=8, xytext=(4, 3), textcoords="offset points")
    right.set_title("every head")
    a, b, c, d = (f"{kind} {i}.{j}" for kind, (i, j) in zip(KINDS, most))
    right.set_xlabel(f"mean distance, tokens back\nhighest scores: {a}, {b},\n{c}, {d}", size=8)
    right.set_ylabel("entropy of its weights, 1: equal weights")
    right.set_ylim(-0.03, 1.08)
    if L <= 12:
        right.legend(fontsize=7)

    left, right = bottom.subplots(1, 2)
    _matrix(left, np.sqrt(seen.weights[layer].mean(0)), "viridis", 0, 1, labels)
    left.set_title(f"layer {layer}: mean attention of its heads")
    image = _matrix(right, correlations(seen.stream[layer]), "RdBu_r", -1, 1, labels)
    right.set_title("correlation of the vectors that it reads")
    right.set_xlabel(f"correlation of the two matrices below the diagonal: {followed(seen, layer):+.2f}", size=8)
    bottom.colorbar(image, ax=right, shrink=0.8)
    style.save(figure, out)


def _matrix(axes, values: np.ndarray, colors: str, low: float, high: float, labels: Sequence[str] = ()):
    axes.grid(False)
    image = axes.imshow(values, cmap=colors, vmin=low, vmax=high, interpolation="nearest")
    if labels:
        size = min(8.0, 230 / len(labels))
        axes.set_xticks(range(len(labels)), labels, fontsize=size, family="monospace", rotation=90)
        axes.set_yticks(range(len(labels)), labels, fontsize=size, family="monospace")
        axes.tick_params(length=0, pad=1)
    return image


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/attention_maps.py", str(__doc__), positional=("run", "RUN"))
    open_device()
    subject = open_subject(o.run)
    L, nh = subject.model.config.n_layer, subject.model.config.n_head
    for flag, value, count in (("--layer", o.layer, L), ("--head", o.head, nh)):
        if value is not None and not 0 <= value < count:
            raise UserError(f"{flag} must be from 0 to {count - 1}, not {value}")
    ids = subject.prompt(o.prompt, o.tokens)
    seen, kinds = look_inside(subject.model, ids), head_kinds(subject.model)
    ranked = [divmod(int(k), nh) for k in np.argsort(-kinds.max(0), axis=None)]
    layer, head = next((i, j) for i, j in ranked if o.layer in (None, i) and o.head in (None, j))
    print("head   tokens back  entropy  " + "  ".join(f"{kind:>14}" for kind in KINDS))
    for i, j in ranked:
        numbers = "  ".join(f"{x:14.2f}" for x in kinds[:, i, j])
        print(f"{i}.{j:<4} {mean_distance(seen.weights)[i, j]:11.1f}  {entropy(seen.weights)[i, j]:7.2f}  {numbers}")
    for i in range(L):
        print(f"layer {i}: attention and the correlation of what it reads: r = {followed(seen, i):+.2f}")
    draw(seen, kinds, subject.labels(ids), (layer, head), subject.name, o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
