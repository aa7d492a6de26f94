"""Loss against parameters, tokens and FLOPs: the runs of `python gpt.py sweep`, and the power laws fitted to them.

    python plots/scaling.py                 the results in runs/sweep
    python plots/scaling.py runs/stories    those of another folder, or a results.json

It prints the laws with 90 % intervals, how well runs that were held out were predicted, and whether to believe it.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from commands.results import SCALING, read_results
from plots import style
from plots.power_laws import (
    Law,
    Parabola,
    bootstrap,
    bootstrap_slope,
    fit_law,
    fit_parabolas,
    fit_power,
    interval,
    slope,
)
from runtime.cli import option, parse
from runtime.errors import UserError

# What was published, for large models on web text: the share a of compute that goes into parameters, N_opt ~ C^a, and
# the exponents of the law.
PUBLISHED = (
    ("Kaplan et al., arXiv:2001.08361", 0.73, 0.076, 0.095),
    ("Hoffmann et al., arXiv:2203.15556, parabolas", 0.49, None, None),
    ("Hoffmann et al., the law", 0.46, 0.34, 0.28),
    ("Besiroglu et al., arXiv:2404.10102, the law again", 0.51, 0.348, 0.366),
)
CLOSE = 0.02  # relative error of what was held out
NARROW = 0.5  # width of an exponent's interval beside the exponent


@dataclass
class Options:
    results: str = option("runs/sweep", "the folder of the runs, or its results.json")
    out: str = option("scaling.png", "the picture to write: png, svg, pdf or jpg")


@dataclass(frozen=True)
class Runs:
    """The runs of a sweep as arrays `(m,)`: parameters without positions, tokens, FLOPs, the level, and loss."""

    about: str
    by_compute: bool  # whether the levels are of compute and not of tokens
    n: np.ndarray
    d: np.ndarray
    flops: np.ndarray
    level: np.ndarray
    loss: np.ndarray
    epochs: np.ndarray

    def chosen(self, indices: np.ndarray) -> "Runs":
        """Some of the runs, by a mask or by their places."""
        parts = (self.n, self.d, self.flops, self.level, self.loss, self.epochs)
        return Runs(self.about, self.by_compute, *(part[indices] for part in parts))

    @property
    def two_ways(self) -> bool:
        """Whether sizes and tokens vary by themselves, so that a law of both can be fitted."""
        return len(np.unique(self.n)) > 2 and len(np.unique(self.d)) > 2 and len(self.n) > 6

    def fit(self) -> Law:
        """The law of these runs, of size alone where all read the same number of tokens."""
        return fit_law(self.n, self.d, self.loss) if self.two_ways else fit_power(self.n, self.loss)

    def predicted(self, law: Law) -> np.ndarray:
        return law.loss(self.n, self.d if self.two_ways else np.inf)


def read(path: Path) -> Runs:
    """A results file. Raises UserError when it isn't one, or has fewer than four sizes."""
    saved = read_results(path, SCALING, "sweep of sizes", "python gpt.py sweep")
    names = ("n", "tokens", "flops", "level", "val_loss", "epochs")
    columns = [np.array([float(run[name]) for run in saved["runs"]]) for name in names]
    by_compute = all(abs(r["flops"] / r["level"] - 1) < 0.1 for r in saved["runs"])
    found = Runs(saved["scaling"], by_compute, *columns)
    if len(np.unique(found.n)) < 4:
        raise UserError(f"{path} has {len(np.unique(found.n))} sizes, and a law takes at least four")
    return found


# ---- what is said of a fit ----


@dataclass(frozen=True)
class Findings:
    """A law with its bootstrap, the parabolas, and what was predicted of runs that were held out."""

    law: Law
    samples: list[Law]
    spread: float  # of the relative residuals, root of the mean square
    parabolas: list[Parabola]
    slopes: list[float]
    held_out: dict[str, np.ndarray]  # relative errors of predictions, by what was held out


def study(runs: Runs, times: int = 200) -> Findings:
    """Fit, draw so many samples, and predict the largest size and the largest amount from the others."""
    law = runs.fit()
    # The residuals of a bootstrap must come from a sample that can be fitted, so the whole decides the kind of law.
    fit: Callable[[np.ndarray], Law] = lambda i: (
        fit_law(runs.n[i], runs.d[i], runs.loss[i]) if runs.two_ways else fit_power(runs.n[i], runs.loss[i]))
    samples = bootstrap(fit, len(runs.n), times)
    residuals = runs.loss / runs.predicted(law) - 1
    parts = {"the largest size": runs.n == runs.n.max(), "the largest level": runs.level == runs.level.max()}
    held_out = {}
    for name, out in parts.items():
        rest = runs.chosen(~out)
        if out.any() and len(np.unique(rest.n)) >= 3 and rest.two_ways == runs.two_ways and len(rest.n) > 4:
            there = runs.chosen(out)
            d = there.d if runs.two_ways else np.inf
            held_out[name] = rest.fit().loss(there.n, d) / there.loss - 1
    levels = runs.level if runs.by_compute else runs.flops
    parabolas = fit_parabolas(levels, runs.n, runs.loss) if runs.by_compute else []
    slopes = bootstrap_slope(levels, runs.n, runs.loss, times) if len(parabolas) > 1 else []
    return Findings(law, samples, float(np.sqrt(np.mean(residuals**2))), parabolas, slopes, held_out)


def verdict(runs: Runs, f: Findings) -> list[tuple[bool, str]]:
    """The conditions under which to believe the law, and whether each holds."""
    said = [(f.spread < 0.01, f"the residuals are {f.spread:.2%} of the loss (root of the mean square); below 1 %")]
    for name in ("alpha", "beta") if runs.two_ways else ("alpha",):
        low, high = interval([getattr(law, name) for law in f.samples])
        width = (high - low) / getattr(f.law, name)
        said.append((width < NARROW, f"the interval of {name} is {width:.0%} of it wide; below {NARROW:.0%}"))
    low, high = interval([law.E for law in f.samples])
    said.append((low > 0, f"the irreducible loss E is from {low:.2f} to {high:.2f}; above 0"))
    for name, errors in f.held_out.items():
        worst = float(np.abs(errors).max())
        said.append((worst < CLOSE, f"{name}, held out, was predicted to {worst:.1%}; below {CLOSE:.0%}"))
    if runs.by_compute:
        good = sum(p.believable for p in f.parabolas)
        said.append((good >= 3, f"{good} of {len(f.parabolas)} parabolas have their lowest point among the sizes; 3"))
    return said


def report(runs: Runs, f: Findings) -> str:
    """All of it as text."""
    size = "E + A / N^alpha + B / D^beta" if runs.two_ways else "E + A / N^alpha"
    lines = [f"{runs.about}: {len(runs.n)} runs, {runs.n.min():,.0f} to {runs.n.max():,.0f} parameters (positions left "
             f"out), {runs.d.min():.3g} to {runs.d.max():.3g} tokens, at most {runs.epochs.max():.1f} epochs",
             f"L = {size}, with 90 % intervals of {len(f.samples)} bootstrap samples"]
    for name in ("E", "A", "alpha", "B", "beta") if runs.two_ways else ("E", "A", "alpha"):
        low, high = interval([getattr(law, name) for law in f.samples])
        lines.append(f"  {name:<6}{getattr(f.law, name):>10.4g}   {low:.4g} to {high:.4g}")
    lines.append("")
    if runs.two_ways:
        lines.append(f"{'N_opt ~ C^a':<52}{'a':>6}{'90 %':>16}{'alpha':>8}{'beta':>7}")
        low, high = interval([law.share for law in f.samples])
        lines.append(f"{'here, by the law':<52}{f.law.share:>6.2f}{f'{low:.2f} to {high:.2f}':>16}"
                     f"{f.law.alpha:>8.2f}{f.law.beta:>7.2f}")
        if f.slopes:
            low, high = interval(f.slopes)
            lines.append(f"{'here, by the parabolas':<52}{slope(f.parabolas):>6.2f}{f'{low:.2f} to {high:.2f}':>16}")
        for name, a, alpha, beta in PUBLISHED:
            exponents = f"{alpha:>8.2f}{beta:>7.2f}" if alpha and beta else ""
            lines.append(f"{name:<52}{a:>6.2f}{'':>16}{exponents}")
        lines.append("")
    for p in f.parabolas:
        where = f"{p.size:,.0f} parameters, loss {p.loss:.3f}" if p.believable else "no lowest point among the sizes"
        lines.append(f"best at {p.flops:.0e} FLOPs: {where}")
    for name, errors in f.held_out.items():
        shown = ", ".join(f"{100 * e:+.2f} %" for e in errors)
        lines.append(f"{name}, predicted from the others: {shown}")
    said = verdict(runs, f)
    good = all(ok for ok, _ in said)
    lines += ["", "the fit is good enough to believe within these sizes:" if good else
              "don't believe the fit beyond the runs that made it:"]
    lines += [f"  {'yes' if ok else 'NO '}  {text}" for ok, text in said]
    return "\n".join(lines)


# ---- the picture ----


def cost_per(runs: Runs) -> float:
    """The k in C = k N D, from the runs: 6, and the part of attention."""
    return float(np.median(runs.flops / (runs.n * runs.d)))


def draw(runs: Runs, f: Findings, out: Path | str) -> None:
    """Write the picture: loss against parameters, tokens and FLOPs, and the residuals."""
    style.use()
    figure, panels = plt.subplots(2, 2, figsize=(style.WIDTH, 7.6))
    levels = sorted(set(runs.level.tolist()))
    unit = "FLOPs" if runs.by_compute else "tokens"
    draw_sizes(panels[0, 0], runs, f, levels, unit)
    draw_tokens(panels[0, 1], runs, f)
    draw_flops(panels[1, 0], runs, f)
    draw_residuals(panels[1, 1], runs, f, levels)
    figure.suptitle(f"Scaling of {runs.about}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    style.save(figure, out)


def finish(axes: Axes, x: str, title: str) -> None:
    """Labels of a panel with a logarithmic axis."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(x)
    axes.set_ylabel("validation loss, nats per token")
    axes.set_title(title)


def draw_sizes(axes: Axes, runs: Runs, f: Findings, levels: Sequence[float], unit: str) -> None:
    """Loss against parameters, a colour for each level, with the law and the lowest points of the parabolas."""
    k = cost_per(runs)
    for i, level in enumerate(levels):
        here, color = runs.level == level, style.shade(i, len(levels))
        axes.scatter(runs.n[here], runs.loss[here], color=color, s=18, zorder=3, label=f"{level:.0e} {unit}")
        n = np.geomspace(runs.n[here].min() / 1.3, runs.n[here].max() * 1.3, 60)
        d = level / (k * n) if runs.by_compute else np.full(60, level)
        axes.plot(n, f.law.loss(n, d if runs.two_ways else np.inf), color=color, linewidth=1)
    good = [p for p in f.parabolas if p.believable]
    axes.scatter([p.size for p in good], [p.loss for p in good], marker="v", color=style.COLORS[4], s=40, zorder=4,
                 label="lowest point of a parabola" if good else None)
    finish(axes, "parameters, positions left out", "One level, several sizes; lines are the law")
    axes.legend(fontsize=7)


def draw_tokens(axes: Axes, runs: Runs, f: Findings) -> None:
    """Loss against tokens, a colour for each size, with the law."""
    sizes = sorted(set(runs.n.tolist()))
    for i, n in enumerate(sizes):
        here, color = runs.n == n, style.shade(i, len(sizes))
        axes.scatter(runs.d[here], runs.loss[here], color=color, s=18, zorder=3, label=f"{n:,.0f}")
        if runs.two_ways:
            d = np.geomspace(runs.d.min() / 1.3, runs.d.max() * 1.3, 60)
            axes.plot(d, f.law.loss(np.full(60, n), d), color=color, linewidth=1)
    finish(axes, "tokens read", "One size, more text")
    axes.legend(fontsize=7, title="parameters", title_fontsize=7)


def draw_flops(axes: Axes, runs: Runs, f: Findings) -> None:
    """Loss against FLOPs, with the frontier that the law has and that of the parabolas."""
    axes.scatter(runs.flops, runs.loss, color="#999999", s=14, label="runs")
    flops, k = np.geomspace(runs.flops.min(), runs.flops.max() * 3, 60), cost_per(runs)
    if runs.two_ways and f.law.A and f.law.B:
        curves = np.array([law.frontier(flops, k) for law in f.samples if law.A and law.B])
        band = np.quantile(curves, [0.05, 0.95], axis=0)
        axes.fill_between(flops, *band, color=style.COLORS[0], alpha=0.2, linewidth=0)
        axes.plot(flops, f.law.frontier(flops, k), color=style.COLORS[0], label="the law's frontier, 90 %")
    good = [p for p in f.parabolas if p.believable]
    if good:
        axes.scatter([p.flops for p in good], [p.loss for p in good], marker="v", color=style.COLORS[4], s=40, zorder=4,
                     label="lowest point of a parabola")
    finish(axes, "FLOPs of training", "What compute buys")
    axes.legend(fontsize=8)


def draw_residuals(axes: Axes, runs: Runs, f: Findings, levels: Sequence[float]) -> None:
    """What the law leaves over, in per cent of the loss."""
    left = 100 * (runs.loss / runs.predicted(f.law) - 1)
    for i, level in enumerate(levels):
        here = runs.level == level
        axes.scatter(runs.n[here], left[here], color=style.shade(i, len(levels)), s=18)
    axes.axhline(0, color="#444444", linewidth=1)
    finish(axes, "parameters, positions left out", f"What the law leaves over: {f.spread:.2%}")
    axes.set_ylabel("loss above the law, %")


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/scaling.py", str(__doc__), positional=("results", "RESULTS"))
    runs = read(Path(o.results))
    findings: Any = study(runs)
    print(report(runs, findings))
    draw(runs, findings, o.out)
    print(f"\nwrote {o.out}")


if __name__ == "__main__":
    run_main(main)
