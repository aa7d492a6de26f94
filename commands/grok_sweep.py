"""`python grok.py sweep`: many runs of the experiment, one for each setting and seed, and a table of their outcomes."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.sweeps import choose, jobs_option, parse_seeds, run_all, run_folder, stopped_run, train_quietly
from grok import Options, crossing, evaluations, last_step, prepare, summary
from runtime.cli import command, option, parse
from runtime.device import open_device
from runtime.errors import UserError

FRACTIONS = {f"{f:g}": {"frac": f} for f in (0.2, 0.225, 0.25, 0.275, 0.3, 0.35, 0.4, 0.5, 0.6)}
INTERVENTIONS: dict[str, dict[str, Any]] = {
    "wd 1": {"wd": 1.0},
    "wd 1 to init": {"wd": 1.0, "wd_to": "init"},
    "wd 1, full batch": {"wd": 1.0, "batch": 0},
    "wd 1, grokfast": {"wd": 1.0, "grokfast": True},
    "wd 1, muon": {"wd": 1.0, "optimizer": "muon"},
    "wd 1, tied head": {"wd": 1.0, "tied": True},
    "nothing": {"wd": 0.0},
    "dropout 0.1": {"wd": 0.0, "dropout": 0.1},
    "noise 0.01": {"wd": 0.0, "weight_noise": 0.01},
    "grokfast": {"wd": 0.0, "grokfast": True},
    "stablemax": {"wd": 0.0, "stablemax": True},
}
SWEEPS: dict[str, tuple[dict[str, dict[str, Any]], int]] = {  # the settings, and steps at most
    "fraction": (FRACTIONS, 4000),
    "intervention": (INTERVENTIONS, 3000),
}
STEPS_TO = {"train_99": "train_acc", "val_99": "val_acc", "clean_val_99": "clean_val_acc"}  # 99 % of these accuracies


@dataclass
class SweepOptions:
    what: str | None = option(None, "fraction (of the table, at wd 1) or intervention (at 30 % of the table)")
    values: str | None = option(None, "only these settings, with semicolons between: '0.25; 0.5' or 'wd 1; nothing'")
    seeds: str = option("0", "seeds to run each setting with, with commas between")
    steps: int | None = option(None, "optimizer steps at most (default: 4000 for fraction, 3000 for intervention)")
    n_layer: int = option(1, "blocks")
    jobs: int = jobs_option()
    out: str | None = option(None, "the folder of the runs and of results.json (default: runs/sweep-WHAT)")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")


def sweep(argv: Sequence[str]) -> None:
    """Train once for each setting and seed. Stopped at any moment, the same command goes on."""
    o, _ = parse(SweepOptions, argv, "grok.py sweep", str(sweep.__doc__), positional=("what", "WHAT"))
    if o.what not in SWEEPS:
        raise UserError(f"sweep what? one of {', '.join(SWEEPS)}" + (f", not {o.what!r}" if o.what else ""))
    folder = Path(o.out or Path("runs", f"sweep-{o.what}"))
    planned = plan(o)
    open_device(o.device)
    train = lambda name, options, _: train_setting(str(o.what), name, options, folder)
    runs = run_all(folder, {"sweep": o.what}, planned, list(SWEEPS[o.what][0]), train, o.jobs)
    if not o.jobs:
        return
    print_table(o.what, runs)
    plot, path = Path(sys.argv[0]).with_name("plots") / "grok_sweep.py", folder / "results.json"
    print(f"\nwrote {path}; now try  {command(plot, path)}")


def plan(o: SweepOptions) -> list[tuple[str, Options]]:
    """The runs to make: name of the setting, and options. Raises UserError for an unknown setting or a wrong seed."""
    settings, steps = SWEEPS[str(o.what)]
    base = {"n_layer": o.n_layer, "frac": 0.3}
    planned = [
        (name, replace(Options(steps=o.steps or steps, snapshots=False), **{**base, **settings[name], "seed": seed}))
        for name in choose(o.values, settings)
        for seed in parse_seeds(o.seeds)
    ]
    for _, options in planned:
        options.check()
    return planned


def train_setting(what: str, name: str, o: Options, folder: Path) -> tuple[dict[str, Any], str]:
    """Train one setting, or the rest of it if it was stopped; its entry in results.json, and a line for the user."""
    o.out = run_folder(folder, name, o.seed)
    head, run = f"{what} {name:<18} seed {o.seed}  ", stopped_run(o, "grok", set())
    lines = evaluations(run) if run else []
    last = last_step([(line["step"], line["clean_val_acc"]) for line in lines])
    if not lines or lines[-1]["step"] < min(o.steps, last):
        if run:
            run.lock()
        trainer = prepare(o, run)
        train_quietly(trainer, head)
        lines = evaluations(trainer.run)
    reached = {key: crossing(lines, accuracy) for key, accuracy in STEPS_TO.items()}
    final = {k: lines[-1][k] for k in ("step", "seconds", "train_acc", "val_acc", "clean_val_acc", "weight_norm")}
    result = {"setting": name, "seed": o.seed, "frac": o.frac, "n_layer": o.n_layer, **reached, **final, "run": o.out}
    return result, head + summary(lines)


def print_table(what: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """A line for each run: the steps to 99 %, and the accuracy at the end."""
    print(f"\n{what:<18}{'seed':>5}{'train 99 %':>12}{'val 99 %':>10}{'clean 99 %':>12}{'clean at the end':>18}")
    for r in runs:
        steps_to = "".join(f"{format(r[k], ',') if r[k] else '–':>{w}}" for k, w in zip(STEPS_TO, (12, 10, 12)))
        print(f"{r['setting']:<18}{r['seed']:>5}{steps_to}{100 * r['clean_val_acc']:>9.1f} % at {r['step']:,}")
