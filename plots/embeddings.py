"""What the tables of a model hold: which tokens lie close together, and how positions do.

    python plots/embeddings.py [RUN]                          the newest run; also a model of transformers or llm.c
    python plots/embeddings.py gpt2 --words ' king, Paris'    the neighbours of these tokens; commas part them

The neighbours of a token are those with the largest cosine. The map on the left shows the two directions in which the
tokens' vectors differ most (principal components); of a large vocabulary only its first tokens.
"""

from runtime.script import run_main

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from plots import style
from plots.inside import ModelOptions, open_subject
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError


@dataclass
class Options(ModelOptions):
    words: str | None = option(None, "tokens whose neighbours are listed, with commas (default: some of the map's)")
    tokens: int = option(120, "how many tokens the map shows")
    out: str = option("embeddings.png", "the picture to write: png, svg, pdf or jpg")


def cosines(table: np.ndarray) -> np.ndarray:
    """The cosine of the angle between every two rows, the mean row taken off first: `(V, C)` -> `(V, V)`."""
    z = table - table.mean(0)
    z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return z @ z.T


def neighbours(table: np.ndarray, token: int, count: int = 5) -> list[tuple[int, float]]:
    """The `count` rows of `(V, C)` with the largest cosine with row `token`, and those cosines, largest first."""
    z = table - table.mean(0)
    cosine = z @ z[token] / np.maximum(np.linalg.norm(z, axis=1) * np.linalg.norm(z[token]), 1e-12)
    order = [int(i) for i in np.argsort(-cosine, kind="stable") if i != token]
    return [(i, float(cosine[i])) for i in order[:count]]


def principal_components(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row's place `(V, 2)` on the two orthogonal directions in which the rows vary most, and the shares `(2,)` of
    the variance that these explain."""
    z = table - table.mean(0)
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    power = s**2 / (s**2).sum()
    if len(s) < 2:  # one channel
        return np.stack([u[:, 0] * s[0], np.zeros(len(z))], 1), np.array([power[0], 0.0])
    return u[:, :2] * s[:2], power[:2]


def draw(
    wte: np.ndarray, wpe: np.ndarray | None, labels: Sequence[str], chosen: Sequence[int], most: int, name: str,
    out: Path | str,
) -> None:
    """Write the picture of `wte` `(V, C)`, whose rows `labels` names: a map of its first rows, at most `most`, and the
    neighbours of the tokens `chosen`; and of `wpe` `(T, C)` if the model has such a table."""
    style.use()
    figure = plt.figure(figsize=(style.WIDTH, 8.2))
    axes = figure.subplot_mosaic([["map", "map"], ["table", "positions"]], height_ratios=(1.25, 1))
    shown = min(len(labels), most)
    places, shares = principal_components(wte)
    kinds = [_kind(label) for label in labels[:shown]]
    for i, kind in enumerate(dict.fromkeys(kinds)):
        rows = [n for n, k in enumerate(kinds) if k == kind]
        axes["map"].scatter(places[rows, 0], places[rows, 1], s=6, color=style.COLORS[i % 6], label=kind)
        for n in rows:
            axes["map"].annotate(labels[n], places[n], xytext=(2, 2), textcoords="offset points", size=8,
                                 family="monospace", color=style.COLORS[i % 6])
    axes["map"].legend()
    axes["map"].set_title(f"{name}: token embeddings, {100 * shares.sum():.0f} % of their variance in two directions")
    axes["map"].set_xlabel("first principal component")
    axes["map"].set_ylabel("second")
    axes["table"].axis("off")
    axes["table"].set_title("nearest neighbours, by cosine")
    for n, t in enumerate(chosen):
        near = "  ".join(f"{labels[i]} {c:.2f}" for i, c in neighbours(wte, t))
        height = 1 - (n + 1) / (len(chosen) + 1)
        axes["table"].text(0.0, height, f"{labels[t]:>8}  {near}", family="monospace", size=7.5)
    if wpe is None:
        axes["positions"].axis("off")
        axes["positions"].set_title("no table of positions")
    else:
        axes["positions"].grid(False)
        image = axes["positions"].imshow(cosines(wpe), cmap="RdBu_r", vmin=-1, vmax=1)
        axes["positions"].set_title("cosine between positions")
        figure.colorbar(image, ax=axes["positions"])
    style.save(figure, out)


def _kind(label: str) -> str:
    bare = label.replace("␣", "")
    if bare and bare in "aeiouAEIOU":
        return "vowel"
    if bare.islower():
        return "lower case"
    return "capital" if bare[:1].isupper() else "digit" if bare.isdigit() else "sign"


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/embeddings.py", str(__doc__), positional=("run", "RUN"))
    open_device()
    subject = open_subject(o.run)
    V = subject.tokenizer.vocab_size
    if o.tokens < 1:
        raise UserError(f"--tokens must be at least 1, not {o.tokens}")
    wte = subject.model.wte.weight.numpy()[:V]
    wpe = getattr(subject.model, "wpe", None)
    labels = subject.labels(range(V))
    chosen = list(range(min(V, o.tokens)))[:: max(1, min(V, o.tokens) // 12)][:12]
    if o.words:
        chosen = []
        for word in o.words.split(","):
            try:
                ids = subject.tokenizer.encode(word)
            except ValueError as error:
                raise UserError(f"--words: {error}") from error
            if len(ids) != 1:
                raise UserError(f"--words: {word!r} is {len(ids)} tokens; its neighbours are those of one token")
            chosen.append(ids[0])
    for t in chosen:
        print(f"{labels[t]:>10}  " + "  ".join(f"{labels[i]} {c:.2f}" for i, c in neighbours(wte, t)))
    draw(wte, None if wpe is None else wpe.weight.numpy(), labels, chosen, o.tokens, subject.name, o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
