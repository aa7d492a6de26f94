"""A training step of each variant beside GPT-2's at the same size, taking turns in one run.

    python -m benchmarks.variants [--rounds 8] [--steps 5] [--values 'RoPE; Llama']

The programs of all variants are in one process and take turns of a few steps, because a shared machine's speed drifts
by more than the difference that is measured. The result is the ratio of the medians.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.train_step import batches
from commands.compare import SETTINGS
from commands.options import PRESETS
from commands.options import Options as GPTOptions
from commands.sweeps import choose
from exchange.layout import make_model
from gpt import GPT
from runtime.cli import option, parse
from runtime.device import describe_device, open_device
from runtime.run import Run
from trainer import OPTIMIZERS, Task, Trainer


@dataclass
class Options:
    preset: str = option("shakespeare-char-cpu", "the preset of gpt.py that is varied", list(PRESETS))
    rounds: int = option(8, "turns that each variant takes")
    steps: int = option(5, "steps in a turn")
    values: str | None = option(None, "only these variants, with semicolons between: 'GPT-2; RoPE'")


def make_trainer(preset: str, **settings: object) -> Trainer:
    """The Trainer of `gpt.py` on random tokens."""
    o = GPTOptions(**{**PRESETS[preset], "grad_accum": 1, **settings})
    config = o.config(50257 if o.tokenizer == "gpt2" else 65)
    model: GPT = make_model(config, 1337)
    return Trainer(Task(model, GPT.loss, batches(o, config), dict, optimizer=OPTIMIZERS[o.optimizer]), o, Run("unused"))


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.variants", str(__doc__))
    print(describe_device(open_device()), flush=True)
    settings = {name: s for name, s in SETTINGS.items() if "warmup" not in s}
    settings["flash attention"] = {"attention": "flash"}
    names = ["GPT-2", *(name for name in choose(o.values, settings) if name != "GPT-2")]
    trainers = {name: make_trainer(o.preset, **settings[name]) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for trainer in trainers.values():
        trainer.take_step()[0].item()  # compiles
    for turn in range(o.rounds + 1):
        for name in names if turn % 2 else reversed(names):
            for _ in range(o.steps):
                began = time.perf_counter()
                trainers[name].take_step()[0].item()
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - began)
    print(f"{'':<34}{'median':>10}{'ratio to GPT-2':>16}{'ratio of fastest tenths':>25}{'parameters':>12}")
    tenth = lambda times: sorted(times)[len(times) // 10]
    for name in names:
        ratio = statistics.median(seconds[name]) / statistics.median(seconds["GPT-2"])
        quick = tenth(seconds[name]) / tenth(seconds["GPT-2"])
        print(f"{name:<34}{statistics.median(seconds[name]) * 1e3:>7.1f} ms{ratio:>16.2f}{quick:>25.2f}"
              f"{trainers[name].task.model.config.parameters:>12,}")


if __name__ == "__main__":
    run_main(main)
