"""The way of the data through GPT-2, from six characters to the loss and to the next character.

    python plots/gpt2_drawing.py                writes plots/pictures/gpt2.png
    python plots/gpt2_drawing.py --out FILE

Left: the whole model. Middle: one of its L blocks, with the residual stream as a straight line. Right: the attention
inside a block. Below: what the logits are for. Every arrow has the shape of what flows along it. Every box has the name
of the class or function that computes it, in blue: one of gpt.py where no other file is named.
"""

from runtime.script import run_main

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from plots import style
from runtime.cli import option, parse

PICTURE = Path(__file__).resolve().parent / "pictures" / "gpt2.png"
HEIGHT = 966  # of the drawing, in units of 1/100 inch; it is 900 wide, y runs downwards

TEXT = "ROMEO:"
IDS = [30, 27, 25, 17, 27, 10]  # of these characters among the 65 of tinyshakespeare

INK, QUIET, CODE = "#1f2328", "#5b6570", "#0b5cad"
CARD, PANEL, EDGE = "#ffffff", "#f5f7f9", "#c9d1d9"
ORANGE, GREEN, BLUE, PURPLE, YELLOW = "#ffe2c2", "#d5f0e3", "#dcebfa", "#f1dff0", "#fff3c4"  # fill of the boxes
STREAM = style.COLORS[0]  # the residual stream


@dataclass
class Options:
    out: str = option(str(PICTURE), "the picture to write")


class Canvas:
    """Boxes, arrows and words on a sheet of 900 x HEIGHT units."""

    def __init__(self, axes: Axes):
        self.axes = axes

    def words(self, x: float, y: float, text: str, size: float = 9, color: str = INK, align: str = "center",
              weight: str = "normal", mono: bool = False) -> None:
        family = "DejaVu Sans Mono" if mono else "DejaVu Sans"
        self.axes.text(x, y, text, size=size, color=color, ha=align, va="center_baseline", weight=weight, family=family)

    def code(self, x: float, y: float, name: str, align: str = "center") -> None:
        self.words(x, y, name, 8, CODE, align, mono=True)

    def shape(self, x: float, y: float, shape: str, align: str = "left") -> None:
        self.words(x, y, shape, 8, QUIET, align, mono=True)

    def frame(self, x: float, y: float, w: float, h: float, fill: str, edge: str = EDGE, round: float = 6,
              dashed: bool = False, z: float = 2) -> None:
        line = (0, (4, 3)) if dashed else "-"
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=f"round,pad=0,rounding_size={round}", facecolor=fill,
                                           edgecolor=edge, linewidth=0.9, linestyle=line, zorder=z))

    def box(self, x: float, y: float, w: float, h: float, title: str, code: str, fill: str) -> None:
        """A box around (x, y) with a title and, below it, the name in gpt.py."""
        self.frame(x - w / 2, y - h / 2, w, h, fill, "#8b949e")
        self.words(x, y - 8, title, weight="bold")
        self.code(x, y + 9, code)

    def arrow(self, *points: tuple[float, float], color: str = INK, width: float = 1.1, dashed: bool = False) -> None:
        """A line through the points with a head at the last one."""
        style_ = (0, (4, 3)) if dashed else "-"
        xs, ys = zip(*points)
        self.axes.plot(xs[:-1], ys[:-1], color=color, linewidth=width, linestyle=style_, zorder=1,
                       solid_capstyle="round", solid_joinstyle="round")
        self.axes.annotate("", points[-1], points[-2], zorder=1, arrowprops={
            "arrowstyle": "-|>,head_width=0.22,head_length=0.42", "color": color, "linewidth": width,
            "linestyle": style_, "shrinkA": 0, "shrinkB": 0})

    def plus(self, x: float, y: float, color: str = INK) -> None:
        self.axes.add_patch(Circle((x, y), 11, facecolor=CARD, edgecolor=color, linewidth=1.3, zorder=4))
        for dx, dy in ((5, 0), (0, 5)):
            self.axes.plot([x - dx, x + dx], [y - dy, y + dy], color=color, linewidth=1.5, zorder=5)

    def cells(self, x: float, y: float, values: Sequence[object], fill: str, size: float = 27) -> None:
        """A row of square cells around (x, y), one value in each."""
        left = x - size * len(values) / 2
        for i, value in enumerate(values):
            self.axes.add_patch(Rectangle((left + i * size, y - size / 2), size, size, facecolor=fill,
                                          edgecolor="#8b949e", linewidth=0.8, zorder=2))
            self.words(left + (i + 0.5) * size, y, str(value), 9, mono=True)

    def panel(self, x: float, y: float, w: float, h: float, title: str, code: str) -> None:
        self.frame(x, y, w, h, PANEL, EDGE, 10, z=0)
        self.words(x + 14, y + 19, title, 10.5, align="left", weight="bold")
        self.code(x + w - 12, y + 19, code, "right")


def draw_model(c: Canvas) -> None:
    """The whole model, in the left panel."""
    x = 150
    c.panel(12, 12, 276, 692, "GPT-2", "GPT")
    c.cells(x, 64, TEXT, CARD)
    c.arrow((x, 79), (x, 117))
    c.code(x + 10, 98, "tokenizer.encode", "left")
    c.cells(x, 133, IDS, YELLOW)
    c.shape(x + 10, 163, "(B, T)")
    c.arrow((x, 148), (x, 176), (88, 176), (88, 193))
    c.arrow((x, 176), (212, 176), (212, 193))
    c.box(88, 218, 112, 46, "each token", "wte (V, C)", ORANGE)
    c.box(212, 218, 112, 46, "each position", "wpe (T, C)", ORANGE)
    c.arrow((88, 242), (88, 272), (x - 12, 272))
    c.arrow((212, 242), (212, 272), (x + 12, 272))
    c.plus(x, 272)
    c.code(x - 18, 294, "embed", "right")
    c.arrow((x, 284), (x, 322), color=STREAM, width=2.6)
    c.shape(x + 14, 300, "(B, T, C)")
    for i in (2, 1, 0):
        c.frame(58 + 7 * i, 338 - 7 * i, 170, 70, BLUE, "#6b8fb5", 8)
    c.words(143, 363, "Block", 11, weight="bold")
    c.words(143, 385, "L of them, one by one", 8, QUIET)
    c.arrow((x, 409), (x, 447), color=STREAM, width=2.6)
    c.shape(x + 14, 427, "(B, T, C)")
    c.box(x, 472, 176, 46, "ln_f", "LayerNorm", GREEN)
    c.arrow((x, 496), (x, 533))
    c.shape(x + 14, 514, "(B, T, C)")
    c.box(x, 558, 176, 46, "head: x @ wte.T", "GPT.head_weight", ORANGE)
    c.arrow((34, 218), (24, 218), (24, 558), (61, 558), color=style.COLORS[4], dashed=True)
    c.axes.text(36, 460, "the same table", size=8, color=style.COLORS[4], rotation=90, ha="center", va="center")
    c.arrow((x, 582), (x, 619))
    c.shape(x + 14, 600, "(B, T, V)")
    c.arrow((x, 678), (x, 771))
    c.axes.plot([x, 600], [716, 716], color=INK, linewidth=1.1, zorder=1)
    c.arrow((600, 716), (600, 771))
    c.words(x, 634, "logits", 10.5, weight="bold")
    c.words(x, 653, "at each position a number for every", 8, QUIET)
    c.words(x, 668, "token that could come next", 8, QUIET)


def draw_block(c: Canvas) -> None:
    """One block, in the middle panel: the residual stream, and the two branches that add to it."""
    line, x, w = 330, 476, 176
    c.panel(300, 12, 284, 692, "One block", "Block")
    c.shape(line + 14, 58, "(B, T, C)")
    c.arrow((line, 48), (line, 692), color=STREAM, width=2.6)
    c.axes.text(line - 15, 365, "residual stream", size=8.5, color=STREAM, rotation=90, ha="center", va="center")

    c.arrow((line, 84), (x, 84), (x, 102))
    c.box(x, 126, w, 46, "ln_1", "LayerNorm", GREEN)
    c.arrow((x, 150), (x, 186))
    c.shape(x + 10, 167, "(B, T, C)")
    c.box(x, 211, w, 46, "attn", "CausalSelfAttention", PURPLE)
    c.arrow((x, 235), (x, 272), (line + 12, 272))
    c.shape(x + 10, 254, "(B, T, C)")
    c.plus(line, 272, STREAM)

    c.arrow((line, 312), (x, 312), (x, 330))
    c.box(x, 354, w, 46, "ln_2", "LayerNorm", GREEN)
    c.arrow((x, 378), (x, 432))
    c.shape(x + 10, 392, "(B, T, C)")
    c.frame(x - w / 2 - 10, 406, w + 20, 228, CARD, EDGE, 8, dashed=True, z=0.5)
    c.words(x - w / 2 - 2, 419, "mlp", 9, align="left", weight="bold")
    c.code(x + w / 2 + 2, 419, "MLP", "right")
    c.box(x, 454, w, 42, "c_fc: C to 4C", "Linear", ORANGE)
    c.arrow((x, 476), (x, 507))
    c.shape(x + 10, 491, "(B, T, 4C)")
    c.box(x, 529, w, 42, "GELU", "gelu", YELLOW)
    c.arrow((x, 551), (x, 582))
    c.shape(x + 10, 566, "(B, T, 4C)")
    c.box(x, 604, w, 42, "c_proj: 4C to C", "Linear", ORANGE)
    c.arrow((x, 626), (x, 652), (line + 12, 652))
    c.shape(x + 10, 643, "(B, T, C)")
    c.plus(line, 652, STREAM)
    c.shape(line + 14, 684, "(B, T, C)")


def draw_attention(c: Canvas) -> None:
    """What attention does, in the right panel, with the weights of one head as a triangle."""
    x, w = 742, 176
    c.panel(596, 12, 292, 692, "Attention", "CausalSelfAttention")
    c.arrow((x, 38), (x, 62))
    c.shape(x + 10, 48, "(B, T, C)")
    c.box(x, 84, w, 42, "c_attn: C to 3C", "Linear", ORANGE)
    c.frame(612, 128, 260, 460, CARD, EDGE, 8, dashed=True, z=0.5)
    c.code(864, 142, "attention", "right")
    c.arrow((x, 106), (x, 150))
    c.shape(x + 10, 119, "(B, T, 3C)")
    c.axes.plot([x - 78, x + 78], [150, 150], color=INK, linewidth=1.1, zorder=1)
    for dx, name in ((-78, "query"), (0, "key"), (78, "value")):
        c.arrow((x + dx, 150), (x + dx, 163))
        c.frame(x + dx - 34, 163, 68, 26, YELLOW, "#8b949e")
        c.words(x + dx, 176, name, weight="bold")
    c.axes.plot([664, 664, 742, 742], [189, 200, 200, 189], color=INK, linewidth=1.1, zorder=1)
    c.arrow((703, 200), (703, 231))
    c.shape(711, 214, "(B, nh, T, hs)")
    c.frame(622, 232, 162, 26, YELLOW, "#8b949e")
    c.words(703, 245, "q @ k.T / sqrt(hs)", 8.5, mono=True)
    c.arrow((703, 258), (703, 288))
    c.shape(713, 270, "(B, nh, T, T)")
    draw_weights(c, 649, 304, 18)
    c.words(703, 425, "each row adds up to 1, and", 8, QUIET)
    c.words(703, 439, "no position sees the future", 8, QUIET)
    c.arrow((703, 450), (703, 476))
    c.shape(713, 461, "(B, nh, T, T)")
    c.arrow((820, 189), (820, 476))
    c.frame(634, 476, 216, 30, YELLOW, "#8b949e")
    c.words(x, 491, "weights @ value", 8.5, mono=True)
    c.arrow((x, 506), (x, 534))
    c.shape(x + 10, 519, "(B, nh, T, hs)")
    c.frame(634, 534, 216, 30, YELLOW, "#8b949e")
    c.words(x, 549, "the heads side by side", weight="bold")
    c.arrow((x, 564), (x, 606))
    c.shape(x + 10, 594, "(B, T, C)")
    c.box(x, 628, w, 42, "c_proj: C to C", "Linear", ORANGE)
    c.arrow((x, 650), (x, 682))
    c.shape(x + 10, 665, "(B, T, C)")


def draw_weights(c: Canvas, x: float, y: float, size: float) -> None:
    """The attention weights of one head, T x T, from the corner (x, y): a triangle. The values are made up."""
    T = len(TEXT)
    scores = np.random.default_rng(3).normal(0, 1.3, (T, T))
    weights = np.exp(np.where(np.tri(T, dtype=bool), scores, -np.inf))
    weights /= weights.sum(1, keepdims=True)
    for i in range(T):
        c.words(x - 10, y + (i + 0.5) * size, TEXT[i], 8, mono=True)
        c.words(x + (i + 0.5) * size, y - 9, TEXT[i], 8, mono=True)
        for j in range(T):
            if j <= i:
                color = plt.get_cmap("Purples")(0.12 + 0.75 * weights[i, j])
                c.axes.add_patch(Rectangle((x + j * size, y + i * size), size, size, facecolor=color, edgecolor=EDGE,
                                           linewidth=0.7, zorder=2))
    c.axes.add_patch(Rectangle((x, y), T * size, T * size, fill=False, edgecolor=EDGE, linewidth=0.9, zorder=2))
    c.code(x + 5.7 * size, y + 1.3 * size, "softmax", "right")


def draw_uses(c: Canvas) -> None:
    """What the logits are for: the next token, and the loss."""
    c.panel(12, 728, 432, 198, "To write", "generate")
    x = 150
    c.shape(x + 10, 759, "(B, V), of the last position")
    c.box(x, 795, 116, 46, "probabilities", "softmax", YELLOW)
    c.arrow((210, 795), (262, 795))
    c.shape(214, 782, "(B, V)")
    c.axes.plot([268, 414], [819, 819], color=INK, linewidth=0.9, zorder=2)
    for i, (token, height) in enumerate(zip("\u21b5 TIAO", (44, 9, 4, 6, 13, 3))):
        c.axes.add_patch(Rectangle((273 + 24 * i, 819 - height), 16, height, linewidth=0, zorder=2,
                                   facecolor=style.COLORS[2] if i == 0 else "#aab4be"))
        c.words(281 + 24 * i, 829, {" ": "\u2423"}.get(token, token), 8, mono=True)
    c.arrow((281, 840), (281, 879))
    c.words(294, 860, "draw one, append it, and", 8, QUIET, "left")
    c.words(294, 874, "read the longer text", 8, QUIET, "left")
    c.cells(x - 13, 894, TEXT, CARD)
    c.cells(281, 894, ["\u21b5"], GREEN)
    c.arrow((266, 894), (220, 894))

    x = 600
    c.panel(456, 728, 432, 198, "To train", "GPT.losses")
    c.shape(x + 10, 759, "(B, T, V)")
    c.box(x, 795, 128, 46, "cross-entropy", "cross_entropy", YELLOW)
    c.arrow((666, 795), (734, 795))
    c.shape(675, 782, "(B, T)")
    c.box(800, 795, 128, 46, "mean loss: ()", "Tensor.mean", YELLOW)
    c.arrow((800, 819), (800, 871))
    c.words(790, 838, "gradients: how the loss", 8, QUIET, "right")
    c.words(790, 852, "changes with each weight", 8, QUIET, "right")
    c.box(800, 895, 128, 46, "new weights", "trainer.AdamW", GREEN)
    c.arrow((x, 875), (x, 820))
    c.shape(x - 10, 848, "(B, T)", "right")
    c.cells(x - 10, 890, [*TEXT[1:], "\u21b5"], YELLOW)
    c.words(x - 10, 913, "the targets: the same text, one token on", 8, QUIET)


def draw() -> Figure:
    style.use()
    plt.rcParams["figure.constrained_layout.use"] = False
    figure = plt.figure(figsize=(style.WIDTH, HEIGHT / 100))
    figure.patch.set_alpha(0)  # round corners on any background; the card below is opaque
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 900), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    canvas = Canvas(axes)
    canvas.frame(1, 1, 898, HEIGHT - 2, CARD, EDGE, 14, z=-1)
    draw_model(canvas)
    draw_block(canvas)
    draw_attention(canvas)
    draw_uses(canvas)
    canvas.words(450, 946, "B texts at a time (here 1), T tokens in each (here 6), C channels, L blocks, nh heads of "
                 "hs = C / nh channels, V tokens in the vocabulary", 8, QUIET)
    return figure


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/gpt2_drawing.py", str(__doc__))
    style.save(draw(), o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
