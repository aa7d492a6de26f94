"""`python gpt.py compare`: what each choice of variants.py is worth, at the same budget."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from commands.options import PRESETS, Options
from commands.sweeps import Result, choose, jobs_option, parse_seeds, run_all, run_folder
from commands.train import train_of_sweep
from commands.weights import best_dtype
from runtime.cli import command, option, parse
from runtime.device import open_device
from runtime.errors import UserError

# Each is trained like GPT-2 but for this. The last two take together what modern models do.
SETTINGS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "sinusoidal positions": {"pos": "sinusoidal"},
    "no positions": {"pos": "none"},
    "RoPE": {"pos": "rope"},
    "grouped queries": {"n_kv_head": 2},
    "multi-query": {"n_kv_head": 1},
    "window of 16": {"window": 16},
    "QK norm": {"qk_norm": True},
    "RMSNorm": {"norm": "rmsnorm"},
    "post-norm": {"norm_at": "post"},
    "GPT-2, no warm-up": {"warmup": 0},
    "post-norm, no warm-up": {"norm_at": "post", "warmup": 0},
    "ReLU squared": {"mlp": "relu2"},
    "SwiGLU": {"mlp": "swiglu"},
    "untied head": {"tied": False},
    "no biases": {"bias": False},
    "Muon": {"optimizer": "muon"},
    "Llama": {"pos": "rope", "n_kv_head": 2, "norm": "rmsnorm", "mlp": "swiglu", "tied": False, "bias": False},
    "RoPE, QK norm, ReLU squared, Muon": {"pos": "rope", "qk_norm": True, "mlp": "relu2", "optimizer": "muon"},
}
HALF = {name: {**preset, "steps": preset["steps"] // 2} for name, preset in PRESETS.items()}


@dataclass
class CompareOptions(Options):
    """Options of training, for every run alike."""

    seeds: str = option("0,1,2", "seeds to train each setting with, with commas between")
    values: str | None = option(None, "only these settings, with semicolons between: 'GPT-2; RoPE'")
    jobs: int = jobs_option()


def compare(argv: Sequence[str]) -> None:
    """Train GPT-2 and each variant at the same budget, and print a table.

    Stopped at any moment, the same command goes on. The options are those of training, and hold for every run; a preset
    has half of its steps.
    """
    o, given = parse(CompareOptions, argv, "gpt.py compare", str(compare.__doc__), HALF, default_preset)
    if o.resume or o.init_from or "seed" in given:
        raise UserError("compare trains from scratch with --seeds, and goes on by itself: leave out --resume, "
                        "--init-from and --seed")
    device = open_device(o.device)
    folder, planned = Path(o.out or Path("runs", "compare")), plan(o, device)
    about = {"compare": o.preset, "steps": o.steps}
    train = lambda name, options, done: train_setting(name, options, done, device)
    runs = run_all(folder, about, planned, list(SETTINGS), train, o.jobs)
    if not o.jobs:
        return
    print_table(runs)
    plot = Path(sys.argv[0]).with_name("plots") / "compare.py"
    print(f"\nwrote {folder / 'results.json'}; now try  {command(plot, folder)}")


def default_preset(o: Options) -> str:
    """The CPU's preset on a CPU."""
    return "shakespeare-char-cpu" if open_device(o.device) == "CPU" else "shakespeare-char"


def plan(o: CompareOptions, device: str) -> list[tuple[str, Options]]:
    """The runs to make, each seed of every setting before the next seed. Raises UserError for an invalid value."""
    base = {field.name: getattr(o, field.name) for field in fields(Options)}
    base |= {"dtype": o.dtype or best_dtype(device), "eval_interval": o.steps}
    folder, planned = Path(o.out or Path("runs", "compare")), []
    for seed in parse_seeds(o.seeds):
        for name in choose(o.values, SETTINGS):
            options = Options(**{**base, **SETTINGS[name], "seed": seed, "out": run_folder(folder, name, seed)})
            options.check()
            planned.append((name, options))
    return planned


def train_setting(name: str, o: Options, done: Result | None, device: str) -> tuple[Result, str]:
    """Train one setting, or the rest of it if it was stopped; its entry in results.json, and a line for the user."""
    if done and done["steps"] == o.steps:
        return done, ""
    head = f"{name:<34} seed {o.seed}  "
    setup, trainer = train_of_sweep(o, device, head)
    loss = setup.mean_loss("val")
    speeds = [line["tokens_per_s"] for line in trainer.run.metrics() if line.get("tokens_per_s")]
    speed = statistics.median(speeds) if speeds else None
    result = {"setting": name, "seed": o.seed, "steps": o.steps, "val_loss": loss, "tokens_per_s": speed,
              "parameters": setup.weights, "run": o.out}
    return result, f"{head}loss {loss:.4f}" + (f"  {speed:,.0f} tokens/s" if speed else "")


def print_table(runs: Sequence[Result]) -> None:
    """A line for each setting: parameters, mean and spread of the loss, how far from GPT-2's, and speed."""
    print(f"\n{'':<34}{'parameters':>12}{'validation loss':>18}{'beside GPT-2':>14}{'tokens/s':>10}{'seeds':>7}")
    by_name: dict[str, list[Result]] = {}
    for r in runs:
        by_name.setdefault(r["setting"], []).append(r)
    gpt2 = [r["val_loss"] for r in by_name.get("GPT-2", [])]
    for name, entries in by_name.items():
        losses, speeds = [r["val_loss"] for r in entries], [r["tokens_per_s"] for r in entries if r["tokens_per_s"]]
        mean = statistics.mean(losses)
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        beside = f"{mean - statistics.mean(gpt2):+.4f}" if gpt2 else ""
        speed = f"{statistics.median(speeds):,.0f}" if speeds else ""
        print(f"{name:<34}{entries[0]['parameters']:>12,}{f'{mean:.4f}{spread}':>18}{beside:>14}{speed:>10}"
              f"{len(losses):>7}")
