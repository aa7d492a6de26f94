"""What each part of GPT-2 is worth, and what each setting of the training does: the same short run with one changed.

    python -m benchmarks.parts [--steps 500] [--seeds 1] [--n-layer 4] [--only NAME ...]
    python -m benchmarks.parts --settings

Each is the CPU preset of gpt.py on Shakespeare's characters, in a process of its own, with one of the changes below
made to the classes and operations of gpt.py, or with other flags. The table has the validation loss at the end, its
mean and spread over seeds.
"""

from runtime.script import run_main

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor

from commands.train import train
from gpt import MLP, Block, CausalSelfAttention, Linear
from kernels import fast, instead
from runtime.cli import option, parse
from runtime.errors import UserError

changed = contextlib.ExitStack()  # stays open as long as the process


@dataclass
class Options:
    steps: int = option(500, "optimizer steps of each run")
    seeds: int = option(1, "runs of each, with the seeds 1337, 1338, ...")
    n_layer: int = option(4, "blocks")
    data: str = option("shakespeare", "the text, as gpt.py --data takes it")
    settings: bool = option(False, "change the settings of the training, not the parts of the model")
    only: list[str] = option((), "just these changes (default: all)")


def block(call: Callable[[Block, Tensor], Tensor]) -> Callable[[], None]:
    """A change of what a block computes."""
    return lambda: setattr(Block, "__call__", call)


def operation(name: str, function: Callable[..., Any]) -> Callable[[], None]:
    """A change of an operation, for the rest of the process. The function takes the operation and its arguments."""
    return lambda: changed.enter_context(instead(**{name: function}))


def without_scaling() -> None:
    build = Linear.__init__
    Linear.__init__ = lambda self, rng, n_in, n_out, bias, std=0.02: build(self, rng, n_in, n_out, bias)  # type: ignore


def post_ln(self: Block, x: Tensor) -> Tensor:
    x = self.ln_1(x + self.attn(x))
    return self.ln_2(x + self.mlp(x))


def symmetric(operation: fast, qkv: Tensor, n_head: int, p: float = 0.0) -> Tensor:
    """Attention whose scores are those of the queries among themselves, as likeness would have it."""
    q, _, v = qkv.chunk(3, dim=-1)  # (B, T, C) each
    return operation.direct(q.cat(q, v, dim=-1), n_head, p)


def one_head() -> None:
    build = CausalSelfAttention.__init__

    def with_one(self: CausalSelfAttention, *arguments: Any) -> None:
        build(self, *arguments)
        self.n_head = 1

    CausalSelfAttention.__init__ = with_one  # type: ignore


def nothing(layer: type[MLP] | type[CausalSelfAttention]) -> Callable[[], None]:
    """A layer that adds nothing; its weights stay, with a gradient of 0."""
    call = layer.__call__
    return lambda: setattr(layer, "__call__", lambda self, x: call(self, x) * 0)


CHANGES: dict[str, Callable[[], None]] = {
    "GPT-2": lambda: None,
    "no attention": nothing(CausalSelfAttention),
    "no MLP": nothing(MLP),
    "no positions": operation("embed", lambda op, table, idx, wpe: op.direct(table, idx) + wpe[:1] * 0),
    "keys are the queries": operation("attention", symmetric),
    "one head instead of four": one_head,
    "no GELU": operation("gelu", lambda op, x: x),
    "no residual": block(lambda self, x: self.mlp(self.ln_2(self.attn(self.ln_1(x))))),
    "no LayerNorm": operation("layernorm", lambda op, x, weight, bias, eps=1e-5: x + 0 * (weight + bias)),
    "LayerNorm after (post-LN)": block(post_ln),
    "no 1/sqrt(2L)": without_scaling,
}

SETTINGS = [
    "", "--lr 1e-4", "--lr 3e-4", "--lr 3e-3", "--lr 1e-2", "--lr 1e-2 --warmup 0", "--warmup 0", "--min-lr 1e-3",
    "--batch-size 3", "--batch-size 48", "--weight-decay 0", "--weight-decay 1", "--beta2 0.9", "--beta2 0.999",
    "--grad-clip 0", "--grad-clip 0.1", "--dropout 0.2",
]


def run(o: Options, change: str, seed: int) -> list[dict[str, Any]]:
    """The evaluations of one training with one change, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        part, flags = ("GPT-2", change.split()) if o.settings else (change, [])
        command = [sys.executable, "-m", "benchmarks.parts", "--one", part, "--data", o.data, "--steps", str(o.steps),
                   "--seed", str(seed), "--n-layer", str(o.n_layer), "--out", f"{folder}/run",
                   "--eval-interval", str(max(1, o.steps // 5)), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{change}: {(done.stderr.strip().splitlines() or ['it failed'])[-1]}")
        lines = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [line for line in lines if "val_loss" in line]


def main(argv: Sequence[str]) -> None:
    if argv[:1] == ["--one"]:  # the process of one run
        CHANGES[argv[1]]()
        train([*argv[2:], "--preset", "shakespeare-char-cpu", "--device", "cpu"])
        return
    o, _ = parse(Options, argv, "python -m benchmarks.parts", str(__doc__))
    changes = SETTINGS if o.settings else list(CHANGES)
    if unknown := set(o.only) - set(changes):
        raise UserError(f"--only {min(unknown)} isn't one of {', '.join(changes)}")
    print(f"{o.steps} steps, {o.n_layer} layers, {o.seeds} seeds: validation loss, nats per character")
    for change in o.only or changes:
        losses = np.array([[e["val_loss"] for e in run(o, change, 1337 + i)] for i in range(o.seeds)])  # (seeds, 5)
        spread = f" ± {losses[:, -1].std(ddof=1):.3f}" if o.seeds > 1 else ""
        road = "  ".join(f"{x:.3f}" for x in losses.mean(0))
        print(f"{change or 'as it is':28} {losses[:, -1].mean():.3f}{spread}   on the way {road}", flush=True)


if __name__ == "__main__":
    run_main(main)
