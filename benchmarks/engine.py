"""engine.py's training step and the same step in PyTorch, on this machine, taking turns in one run.

    pip install -e '.[bench]'
    python -m benchmarks.engine [--rounds 8] [--threads 1] [--torch-threads 0]

Both have the same model, batches, clipping and AdamW; see benchmarks/train_step.py for how they take turns. Where other
programs use the machine too, compare one thread with one: several threads wait for each other.
"""

from runtime.script import run_main

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import engine
from benchmarks.train_step import Side, batches, serve, take_turns
from commands.options import PRESETS
from commands.options import Options as GPTOptions
from gpt import GPTConfig
from runtime.cli import option, parse

PRESET = "shakespeare-char-cpu"


@dataclass
class Options:
    rounds: int = option(8, "turns that each program takes")
    steps: int = option(10, "steps in a turn")
    threads: int = option(1, "engine.py's threads in a matrix product: 1 as `python engine.py` has, 0 for NumPy's own")
    torch_threads: int = option(0, "PyTorch's threads (0: its default)")
    worker: bool = option(False, "run engine.py's side (used by the program itself)")


def engine_step() -> Callable[[], float]:
    """One call takes one step and returns its loss."""
    engine.keep_memory()
    config = engine.GPTConfig()
    model = engine.GPT(config)
    o = GPTOptions(**PRESETS[PRESET])
    recipe, draw, count = SimpleNamespace(**vars(o)), batches(o, GPTConfig(**asdict(config))), 0
    optimizer = engine.AdamW(model.parameters(), (o.beta1, o.beta2), o.weight_decay)

    def step() -> float:
        nonlocal count
        count += 1
        lr = engine.learning_rate(count - 1, recipe)
        return engine.train_step(model, optimizer, draw(count - 1), lr, o.grad_clip)[0]

    return step


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.engine", str(__doc__))
    if o.worker:
        serve(engine_step())
    else:
        compare(o)


def compare(o: Options) -> dict[str, Side]:
    threads = {"OPENBLAS_NUM_THREADS": str(o.threads)} if o.threads else {}
    ours = Side("benchmarks.engine", "--worker", **threads)
    eager = Side("benchmarks.train_step", "--preset", PRESET, "--threads", str(o.torch_threads), "--worker", "eager")
    return take_turns({"ours": ours, "eager": eager}, o.rounds, o.steps, f"engine.py, {PRESET}")


if __name__ == "__main__":
    run_main(main)
