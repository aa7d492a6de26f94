"""The shortest time to a validation loss of 1.88 on Shakespeare's characters, beside GPT-2 and beside nanoGPT.

    python -m benchmarks.speedrun [--seeds 0,1,2] [--presets 'shakespeare-char-cpu; speedrun']
    python -m benchmarks.speedrun --nanogpt FOLDER      that program's own train.py in the same run

What counts are the seconds from the first step to the last, without the evaluations between them and without compiling,
which is shown beside them. The loss is that of the whole validation split, as `gpt.py eval` measures it, after the last
step. nanoGPT is trained with the flags that its README has for a CPU; it tells the loss of 20 random batches.

FOLDER is a copy of https://github.com/karpathy/nanoGPT with the text as data/shakespeare_char/input.txt, on which its
prepare.py was run. It needs PyTorch: pip install -e '.[bench]'
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from commands.evaluate import mean_loss
from commands.options import PRESETS
from commands.options import Options as GPTOptions
from commands.sweeps import parse_seeds
from commands.train import make_task, prepare
from runtime.cli import option, parse
from runtime.device import describe_device, open_device
from runtime.errors import UserError
from runtime.run import Run
from trainer import Trainer

GOAL = 1.88
STEPS = {"shakespeare-char-cpu": 2200}  # what GPT-2 needs for the goal: after 2,150 the mean is 1.8816
NANOGPT = [  # of the section for a computer without a GPU in its README
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1",
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0",
]


@dataclass
class Options:
    presets: str = option("shakespeare-char-cpu; speedrun", "presets of gpt.py to time, with semicolons between")
    seeds: str = option("0,1,2", "seeds, with commas between")
    steps: int | None = option(None, "optimizer steps (default: those of the preset, and 2,200 for GPT-2)")
    nanogpt: str | None = option(None, "a folder with nanoGPT and its prepared text, to be timed first")
    data_dir: str | None = option(None, "where corpora are kept (default: $DATA_DIR, else data/cache/ here)")


@dataclass(frozen=True)
class Outcome:
    """Of one training run."""

    steps: int
    seconds: float  # of all steps
    loss: float
    parameters: int
    compiling: float = 0.0  # seconds


def time_preset(preset: str, seed: int, o: Options) -> Outcome:
    """Train from scratch, without a run folder and without evaluations between the steps."""
    steps = o.steps or STEPS.get(preset, PRESETS[preset]["steps"])
    options = GPTOptions(**{**PRESETS[preset], "seed": seed, "data_dir": o.data_dir, "steps": steps})
    options.check()
    setup = prepare(options, None, set(), "CPU")
    trainer = Trainer(make_task(setup), options, Run("unused"))
    began = time.perf_counter()
    trainer.take_step()[0].item()  # compiles
    compiled = time.perf_counter()
    for _ in range(options.steps - 1):
        loss, _norm = trainer.take_step()
    loss.item()
    seconds = time.perf_counter() - compiled
    each = seconds / max(1, options.steps - 1)  # the first step took about as long, beside what it compiled
    value, _ = mean_loss(setup.losses, setup.text.val, options.batch_size, options.block_size)
    return Outcome(options.steps, seconds + each, value, setup.weights, compiled - began - each)


def time_nanogpt(folder: Path) -> Outcome:
    """Train nanoGPT by its own program. The steps in which it also evaluates count as much as the others."""
    if not (folder / "data" / "shakespeare_char" / "val.bin").is_file():
        raise UserError(f"{folder} has no data/shakespeare_char/val.bin: run nanoGPT's prepare.py first")
    command = [sys.executable, "train.py", *NANOGPT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"nanoGPT's train.py failed: {done.stderr.strip().splitlines()[-1]}")
    times = [float(ms) / 1e3 for ms in re.findall(r"^iter \d+: loss [\d.]+, time ([\d.]+)ms", done.stdout, re.M)][1:]
    losses = re.findall(r"^step \d+: train loss [\d.]+, val loss ([\d.]+)", done.stdout, re.M)
    millions = re.findall(r"number of parameters: ([\d.]+)M", done.stdout)
    return Outcome(2000, 2000 * statistics.median(times), float(losses[-1]), int(float(millions[0]) * 1e6))


def show(name: str, outcomes: Sequence[Outcome]) -> None:
    """A row of the table."""
    losses, first = [run.loss for run in outcomes], outcomes[0]
    mean, seconds = statistics.mean(losses), statistics.median(run.seconds for run in outcomes)
    text = f"mean {mean:.4f}" + (f", above {GOAL}" if mean > GOAL else "")
    print(f"{name:<22}{seconds:>7.1f} s{first.steps:>7,} steps{first.parameters:>11,} parameters   loss "
          f"{' '.join(f'{loss:.4f}' for loss in losses)}, {text}   compiling {first.compiling:.1f} s", flush=True)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.speedrun", str(__doc__))
    print(describe_device(open_device("cpu")), flush=True)
    presets = [name.strip() for name in o.presets.split(";")]
    if wrong := [name for name in presets if name not in PRESETS]:
        raise UserError(f"--presets {wrong[0]!r} is unknown: choose from {'; '.join(PRESETS)}")
    if o.nanogpt:
        show("nanoGPT's train.py", [time_nanogpt(Path(o.nanogpt).expanduser())])
    for preset in presets:
        show(preset, [time_preset(preset, seed, o) for seed in parse_seeds(o.seeds)])


if __name__ == "__main__":
    run_main(main)
