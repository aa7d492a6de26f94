"""The graph that engine.py remembers: of an expression with its values and gradients, or of a block with its shapes.

    python plots/graph.py               micrograd's expression, 30 numbers
    python plots/graph.py block         one block of a GPT

Time goes downwards: a box stands below all that it was computed from, and backward() goes up. Blue boxes are where the
graph begins: inputs and parameters.
"""

from runtime.script import run_main

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from engine import Block, GPTConfig, Tensor, expression
from plots import style
from runtime.cli import option, parse


@dataclass
class Options:
    what: str = option("expression", "the graph to draw", ("expression", "block"))
    out: str = option("graph.png", "the picture to write")


@dataclass(eq=False)
class Node:
    """A box of the picture, or with an empty text a bend of a line that passes other boxes."""

    lines: list[str]
    inputs: list["Node"] = field(default_factory=list)
    begins: bool = False  # it wasn't computed from anything
    row: int = 0  # from the top
    x: float = 0.0


def nodes_of(result: Tensor, names: Mapping[Tensor, str]) -> list[Node]:
    """A node for every tensor that led to `result`, the oldest first, after its backward(keep=True).

    A node's text is its name or its operation, with the numbers that aren't tensors; then the value and the gradient of
    a single number, or else the shape and the length of the gradient, which is as large as the tensor.
    """
    nodes: dict[Tensor, Node] = {}
    for x in reversed(result.graph()):
        numbers = " ".join(f"{n:g}" for n in x.inputs if isinstance(n, int | float) and n is not False)
        title = " ".join(filter(None, (names.get(x, ""), x.op, numbers)))
        lines = [title] if title else []
        if x.data.size == 1:
            lines.append(f"{x.item():.4f}")
            lines += [] if x.grad is None else [f"gradient {float(x.grad):.4f}"]
        else:
            lines.append(" x ".join(map(str, x.shape)))
            lines += [] if x.grad is None else [f"|gradient| {np.linalg.norm(x.grad):.3g}"]
        inputs = list(dict.fromkeys(nodes[y] for y in x.inputs if isinstance(y, Tensor) and y in nodes))
        nodes[x] = Node(lines, inputs, begins=not x.inputs)
    return list(nodes.values())


def arrange(nodes: Sequence[Node], sweeps: int = 24) -> list[list[Node]]:
    """Rows of nodes, each below its inputs, with bends where a line passes a row; sets `row` and `x` of each.

    A node goes to the mean place of its neighbours in the row above, and then in the row below, in turns (Sugiyama et
    al., 1981), as far as the others in its row leave it room: 1 for each. Nodes are given with inputs first.
    """
    for node in nodes:
        node.row = 1 + max((y.row for y in node.inputs), default=-1)
    for node in reversed(nodes):  # what begins stands just above its first use
        users = [z.row for z in nodes if node in z.inputs]
        node.row = min(users) - 1 if node.begins and users else node.row
    rows: list[list[Node]] = [[] for _ in range(1 + max(node.row for node in nodes))]
    for node in nodes:
        rows[node.row].append(node)
        for i, above in enumerate(node.inputs):
            while above.row < node.row - 1:
                above = Node([], [above], row=above.row + 1)
                rows[above.row].append(above)
            node.inputs[i] = above
    below: dict[Node, list[Node]] = {node: [] for row in rows for node in row}
    for node in list(below):
        for above in node.inputs:
            below[above].append(node)
    for row in rows:
        for i, node in enumerate(row):
            node.x = i - (len(row) - 1) / 2
    for sweep in range(sweeps):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = {z: float(np.mean([y.x for y in (below[z] if sweep % 2 else z.inputs)] or [z.x])) for z in row}
            row.sort(key=wanted.__getitem__)
            give_room(row, [wanted[node] for node in row])
    return rows


def give_room(row: Sequence[Node], wanted: Sequence[float]) -> None:
    """Set `x` of each near the place that it wants, in this order and at least 1 apart.

    It is half way between two solutions: one pushes to the right where two are too near, the other one to the left.
    """
    offsets = np.arange(len(row))
    right = np.maximum.accumulate(wanted - offsets) + offsets
    left = np.minimum.accumulate((wanted - offsets)[::-1])[::-1] + offsets
    for node, x in zip(row, (left + right) / 2):
        node.x = float(x)


def draw(rows: Sequence[Sequence[Node]], title: str) -> Figure:
    """The picture of arranged nodes."""
    style.use()
    left, right = (side(node.x for row in rows for node in row) for side in (min, max))
    figure, axes = plt.subplots(figsize=(max(style.WIDTH, 1.5 * (right - left + 1)), 0.85 * len(rows) + 0.6))
    for row in rows:
        for node in row:
            for above in node.inputs:
                axes.plot([above.x, node.x], [-above.row, -node.row], color="#999999", linewidth=1, zorder=1)
            if node.lines:
                color = style.COLORS[0] if node.begins else "#444444"
                box = {"boxstyle": "round", "facecolor": "white", "edgecolor": color, "pad": 0.3}
                axes.text(node.x, -node.row, "\n".join(node.lines), ha="center", va="center", fontsize=8, bbox=box,
                          zorder=2, color=color, linespacing=1.15)
    axes.set_xlim(left - 0.5, right + 0.5)
    axes.set_ylim(0.6 - len(rows), 0.6)
    axes.set_axis_off()
    axes.set_title(title)
    return figure


def block_graph() -> tuple[Tensor, dict[Tensor, str]]:
    """A block of the CPU preset with an input (12, 64, 128), and a number that depends on all of its output."""
    config, rng = GPTConfig(), np.random.default_rng(0)
    block = Block(rng, config)
    x = Tensor(rng.standard_normal((12, config.block_size, config.n_embd), np.float32), requires_grad=True)
    y = block(x)
    loss = (y * y).sum()
    loss.backward(keep=True)
    return loss, {x: "x", y: "y", loss: "loss", **{p: name for name, p in block.parameters().items()}}


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/graph.py", str(__doc__), positional=("what", "WHAT"))
    result, names = expression() if o.what == "expression" else block_graph()
    title = "An expression, its values and gradients" if o.what == "expression" else "A block, its shapes and gradients"
    style.save(draw(arrange(nodes_of(result, names)), title), Path(o.out))
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
