"""How the network adds: on a few circles, by trigonometry, and since when.

    python plots/grok_mechanism.py [RUN] [--out FILE.png]      the newest run of grok.py by default

Nanda et al., "Progress measures for grokking via mechanistic interpretability" (arXiv:2301.05217): a network that adds
mod p has its numbers on circles, as cos(2 pi k a / p) and sin(2 pi k a / p) for a few frequencies k, and computes from
them cos(2 pi k (a + b - c) / p), whose sum has its peak at the right answer c. In the shapes: C channels of the
embedding, n pairs in the table, K key frequencies.
"""

from runtime.script import run_main

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from data.modular import Split, Table, make_split, make_table
from data.waves import circle, fourier_power, key_frequencies, waves
from grok import Options as GrokOptions
from grok import evaluations
from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors, number_in, require_shapes


@dataclass
class Options:
    run: str | None = option(None, "the run folder (default: the newest grok run)")
    out: str = option("grok_mechanism.png", "the picture to write: png, svg, pdf or jpg")


# ---- what is measured ----


def gini(shares: np.ndarray) -> float:
    """Gini coefficient: 0 where all are equal, nearly 1 where one has everything."""
    x = np.sort(shares)
    n = len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * x.sum()))


def trigonometric_part(logits: np.ndarray, table: Table, frequencies: Sequence[int]) -> np.ndarray:
    """The part of all pairs' logits `(n, p)` that is a wave of a + b (or a - b) of one of these frequencies."""
    a, b = table.pairs.T
    argument = a - b if table.op == "-" else a + b
    basis = np.concatenate([waves(table.p, k, argument) for k in frequencies], 1)  # (n, 2 K)
    basis = basis[:, np.linalg.norm(basis, axis=0) > 1e-6]  # for an even p the last sine is zero everywhere
    basis /= np.linalg.norm(basis, axis=0)  # the columns are orthogonal: every a + b occurs as often as any other
    return basis @ (basis.T @ logits)


def mean_loss(logits: np.ndarray, answers: np.ndarray) -> float:
    """Cross-entropy in nats, for logits `(n, p)`."""
    z = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), answers]).mean())


def progress_measures(
    logits: np.ndarray, table: Table, split: Split, frequencies: Sequence[int]
) -> tuple[float, float]:
    """Restricted loss (on clean validation pairs) and excluded loss (on training pairs), Nanda et al. section 5.1.

    Restricted: the logits have only the waves of the key frequencies. Excluded: they have everything else.
    """
    part = trigonometric_part(logits, table, frequencies)
    only, without = logits.mean(0) + part, logits - part
    return (
        mean_loss(only[split.clean], table.answers[split.clean]),
        mean_loss(without[split.train], table.answers[split.train]),
    )


# ---- what it says ----

ENOUGH = 0.4  # the share of the embedding that key frequencies have at least in a network that adds; noise has 0.03


def roundness(wte: np.ndarray, k: int) -> float:
    """Spread of the numbers' distances from the centre of `circle`, as a share of their mean: 0 on a perfect circle."""
    radius = np.linalg.norm(circle(wte, k)[0], axis=1)
    return float(radius.std() / radius.mean())


def first_below(steps: Sequence[int], losses: Sequence[float], level: float) -> float:
    """The first of the steps at which the loss is below the level; infinity for none."""
    return min((step for step, loss in zip(steps, losses) if loss < level), default=np.inf)


def titles(wte: np.ndarray, keys: Sequence[int], restricted: float, validation: float) -> tuple[str, str, str]:
    """What the first three parts of the picture show: of an embedding `(p, C)`, its key frequencies, and the steps at
    which the restricted and the clean validation loss fell below half of a guess's."""
    power = fourier_power(wte)
    share = power[[k - 1 for k in keys]].sum()
    if share < ENOUGH:
        spectrum = f"The strongest of {len(power)} frequencies is {100 * power.max():.0f} % of the embedding"
    else:
        spectrum = f"Of {len(power)} frequencies the embedding keeps {len(keys)}, which are {100 * share:.0f} % of it"
    seen = "Seen along a key frequency's cosine and sine, the embedding of the numbers is"
    is_circle = share >= ENOUGH and all(roundness(wte, k) < 0.3 for k in keys[:4])
    if restricted < validation < np.inf:
        works = "The circles work before validation shows it"
    elif restricted < np.inf:
        works = "The circles work, and validation shows it" + ("" if validation < np.inf else " not yet")
    else:
        works = "The circles don't answer anything yet"
    return (f"1  {spectrum}", f"2  {seen} {'a circle' if is_circle else 'no circle'}",
            f"3  {works} (key frequencies: the final model's)")


# ---- the picture ----


def snapshots(run: Run, expected: Mapping[str, tuple[int, ...]]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(step, logits `(n, p)`, embedding `(p, C)`) of each, oldest first.

    Raises UserError when there aren't two, and for one without tensors of the `expected` shapes.
    """
    kept = []
    for path in sorted((run.path / "snapshots").glob("[0-9]*.safetensors")):
        tensors, metadata = load_safetensors(path)
        require_shapes(expected, {name: t.shape for name, t in tensors.items()}, str(path))
        kept.append((number_in(metadata, "step", path), tensors["logits"].numpy(), tensors["wte"].numpy()))
    if len(kept) < 2:
        raise UserError(f"{run.path} has too few snapshots: train with --snapshots, and let it reach step 50")
    return kept


def draw(run: Run, out: Path | str) -> None:
    """Write the picture. Raises UserError for an operation without waves of a + b, or a run without snapshots."""
    o = run.options(GrokOptions)
    if o.op not in ("+", "-"):
        raise UserError(f"{run.path} learned {o.op}: this picture is of + and -, whose answers are waves of a + b")
    table = make_table(o.op, o.p, o.prompt)
    split = make_split(table, o.frac, o.seed)
    kept = snapshots(run, {"logits": (len(table), table.p), "wte": (table.p, o.n_embd)})
    p, wte = table.p, kept[-1][2]
    start, end = fourier_power(kept[0][2]), fourier_power(wte)
    keys = key_frequencies(end)
    if not (lines := evaluations(run)):
        raise UserError(f"{run.path} has evaluated nothing yet: let it reach step 25")
    measures = [progress_measures(logits, table, split, keys) for step, logits, _ in kept]
    at, half = [max(step, 1) for step, *_ in kept], np.log(p) / 2
    validation = [line["clean_val_loss"] for line in lines]
    texts = titles(wte, keys, first_below(at, [m[0] for m in measures], half),
                   first_below([line["step"] for line in lines], validation, half))

    style.use()
    figure = plt.figure(figsize=(style.WIDTH, 10.2))
    rows: Any = figure.subfigures(4, 1, height_ratios=(1, 1.1, 1.25, 0.85))

    axes = rows[0].subplots()
    k = np.arange(1, len(end) + 1)
    axes.bar(k - 0.2, 100 * start, 0.4, color="#bbbbbb", label=f"at step {kept[0][0]}")
    colors = [style.COLORS[keys.index(int(i)) % len(style.COLORS)] if i in keys[:4] else "#555555" for i in k]
    axes.bar(k + 0.2, 100 * end, 0.4, color=colors, label=f"at step {kept[-1][0]:,}")
    for i in keys:
        axes.annotate(str(i), (i + 0.2, 100 * end[i - 1]), xytext=(0, 2), textcoords="offset points", ha="center",
                      fontsize=9)
    axes.set_title(texts[0])
    axes.set_xlabel("frequency k", labelpad=1)
    axes.set_ylabel("share of the embedding")
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.01, y=0.12)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)
    axes.get_legend().legend_handles[1].set_color("#555555")

    rows[1].suptitle(texts[1], x=0.012, ha="left", fontsize=11, weight="bold")
    many = rows[1].subplots(1, 4)
    for i, axes in enumerate(many):
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        if i >= len(keys):
            continue
        seen, share = circle(wte, keys[i])
        # A line from each number to the one that is next to it on the circle: from a to a + s, where s k = 1 mod p
        around = np.arange(p + 1) * pow(keys[i], -1, p) % p if np.gcd(keys[i], p) == 1 else np.arange(0)
        axes.plot(*seen[around].T, color="#dddddd", linewidth=1, zorder=1)
        axes.scatter(*seen.T, color=style.COLORS[i], s=10, zorder=2)
        radius = np.abs(seen).max()
        for a in (0, 1, 2):
            towards = seen[a] / np.linalg.norm(seen[a])
            axes.annotate(str(a), seen[a], xytext=1.28 * radius * towards, fontsize=9, ha="center", va="center",
                          arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.6})
        axes.set_xlim(-1.42 * radius, 1.42 * radius)
        axes.set_ylim(-1.42 * radius, 1.42 * radius)
        axes.set_title(
            f"k = {keys[i]}, {100 * share:.0f} % of it", color=style.COLORS[i], loc="center", fontsize=10, pad=0
        )

    axes = rows[2].subplots()
    steps = [line["step"] for line in lines]
    for name, key, color in (("training loss", "train_eval_loss", 0), ("clean validation loss", "clean_val_loss", 2)):
        axes.plot(steps, [line[key] for line in lines], color=style.COLORS[color], label=name, alpha=0.8)
    axes.plot(at, [m[0] for m in measures], color=style.COLORS[3], marker="o", markersize=3.5,
              label="restricted: key frequencies only, on clean validation pairs")
    axes.plot(at, [m[1] for m in measures], color=style.COLORS[4], marker="s", markersize=3.5,
              label="excluded: all but them, on training pairs")
    axes.axhline(np.log(p), color="#888888", linewidth=1, linestyle=(0, (4, 3)))
    axes.text(
        0.003, np.log(p), "a guess", transform=axes.get_yaxis_transform(), va="bottom", fontsize=9, color="#666666"
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("loss, nats per answer")
    axes.set_title(texts[2])
    axes.legend(loc="lower left")
    axes_over_time = [axes]

    left, right = rows[3].subplots(1, 2)
    left.plot(at, [gini(fourier_power(e)) for *_, e in kept], color=style.COLORS[5], marker="o", markersize=3.5)
    left.set_title("4  Gini coefficient of the spectrum")
    left.set_ylim(0, 1)
    right.plot(steps, [line["weight_norm"] for line in lines], color="#444444", marker="o", markersize=3)
    right.set_title("5  Norm of all weights")
    for axes in (*axes_over_time, left, right):
        axes.set_xscale("log")
        axes.set_xlim(20, 1.06 * steps[-1])
        axes.set_xticks([x for x in (25, 50, 100, 200, 400, 1000, 2000, 4000, 10_000) if x <= steps[-1]])
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("optimizer steps", labelpad=1)
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/grok_mechanism.py", str(__doc__), positional=("run", "RUN"))
    draw(Run.open(o.run, "grok"), o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
