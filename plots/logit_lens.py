"""What a model would predict after each of its layers ("the logit lens": nostalgebraist, 2020).

    python plots/logit_lens.py [RUN] --prompt TEXT      the newest run; also a model of transformers or llm.c
    python plots/logit_lens.py gpt2 --data FILE         its loss by depth on this text

The head is made to read the residual stream before each block, not only after the last. A cell shows the likeliest
next token there, its colour how likely the true one is. On the right: the loss by depth on the validation text.
"""

from runtime.script import run_main

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from plots import style
from plots.inside import Inside, ModelOptions, Subject, depth_losses, look_inside, open_subject
from runtime.cli import option, parse
from runtime.device import open_device


@dataclass
class Options(ModelOptions):
    prompt: str | None = option(None, "the text that is read (default: the beginning of the run's sample.txt)")
    tokens: int = option(24, "read at most so many tokens of the text")
    data: str | None = option(None, "a text for the loss by depth (default: the run's validation split)")
    windows: int = option(120, "windows of that text, spread evenly")
    out: str = option("logit_lens.png", "the picture to write: png, svg, pdf or jpg")


def lens(seen: Inside, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """For each depth and position: the likeliest next token `(L + 1, T)`, and the probability of the true one
    `(L + 1, T - 1)`, which the last position doesn't have."""
    z = seen.logits.astype(np.float64)
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return z.argmax(-1), p[:, np.arange(len(ids) - 1), ids[1:]]


def draw(
    subject: Subject, seen: Inside, ids: Sequence[int], losses: np.ndarray | None, out: Path | str
) -> None:
    """Write the picture of a text of T `ids`, and of `losses` `(L + 1,)`, the loss by depth."""
    style.use()
    L, T = len(seen.logits) - 1, len(ids)
    size = (style.WIDTH, 1.6 + 0.42 * (L + 1))
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(4, 1), sharey=True)
    likeliest, true = lens(seen, ids)
    labels = subject.labels(ids)
    guesses = [subject.labels(row.clip(0, subject.tokenizer.vocab_size - 1).tolist()) for row in likeliest]
    true = np.concatenate([true, np.full((L + 1, 1), np.nan)], 1)
    image = left.imshow(true, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    left.grid(False)
    longest = max(len(guess) for row in guesses for guess in row)
    for (depth, t), p in np.ndenumerate(true):
        left.text(t, depth, guesses[depth][t], ha="center", va="center", family="monospace",
                  size=min(9, 190 / T / longest**0.5), color="white" if p > 0.6 else "black")
    left.set_xticks(range(T), labels, family="monospace", size=8, rotation=90 if max(map(len, labels)) > 2 else 0)
    left.set_yticks(range(L + 1), ["embedding", *(f"after block {i}" for i in range(L))])
    left.set_xlabel("the text that was read")
    left.set_title(f"{subject.name}: the likeliest next token at each depth")
    figure.colorbar(image, ax=left, label="probability of the true one", shrink=0.9, location="left")
    if losses is None:
        right.axis("off")
    else:
        right.plot(losses, range(L + 1), marker="o")
        for depth, loss in enumerate(losses):
            right.annotate(f" {loss:.2f}", (loss, depth), size=8)
        right.set_title("loss by depth")
        right.set_xlabel("nats per token")
        right.margins(x=0.3)
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/logit_lens.py", str(__doc__), positional=("run", "RUN"))
    open_device()
    subject = open_subject(o.run)
    ids = subject.prompt(o.prompt, o.tokens)
    losses = None
    if subject.run or o.data:
        losses = depth_losses(subject.model, subject.validation(o.data, o.data_dir), o.windows)
        for depth, loss in enumerate(losses):
            print(f"{'the embedding' if not depth else f'after block {depth - 1}':15}  loss {loss:.4f}")
    seen = look_inside(subject.model, ids)
    draw(subject, seen, ids, losses, o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
