"""`python grok.py sweep`: many runs of the experiment, one for each setting and seed, and a table of their outcomes."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from grok import Options, crossing, evaluations, last_step, prepare, summary
from runtime.cli import command, option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.files import atomic_write, read_json
from runtime.progress import Progress
from runtime.run import Run

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
    path, order = folder / "results.json", list(SWEEPS[o.what][0])
    saved = saved_results(o.what, path)  # of earlier commands too
    results = {(r["setting"], r["seed"]): r for r in saved}
    for name, options in planned:
        results[name, options.seed] = train_setting(o.what, name, options, folder)
        runs = sorted(results.values(), key=lambda r: (order.index(r["setting"]), r["seed"]))
        with atomic_write(path) as new:
            new.write_text(json.dumps({"sweep": o.what, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print_table(o.what, runs)
    plot = Path(sys.argv[0]).with_name("plots") / "grok_sweep.py"
    print(f"\nwrote {path}; now try  {command(plot, path)}")


def saved_results(what: str, path: Path) -> list[dict[str, Any]]:
    """The runs in results.json, if there is one. Raises UserError where the folder holds anything else."""
    if path.is_file():
        saved = read_json(path)
        if saved.get("sweep") != what or not isinstance(saved.get("runs"), list):
            raise UserError(f"{path} doesn't hold the results of sweep {what}: choose another folder with --out")
        return list(saved["runs"])
    others = [p for p in path.parent.glob("*") if not Run.holds_one(p)]
    if others:
        raise UserError(f"{path.parent} holds files already, such as {others[0].name}: choose a new folder with --out")
    return []


def plan(o: SweepOptions) -> list[tuple[str, Options]]:
    """The runs to make: name of the setting, and options. Raises UserError for an unknown setting or a wrong seed."""
    settings, steps = SWEEPS[str(o.what)]
    names = [name.strip() for name in o.values.split(";")] if o.values else list(settings)
    if wrong := [name for name in names if name not in settings]:
        raise UserError(f"--values {wrong[0]!r} is unknown: choose from {'; '.join(settings)}")
    try:
        seeds = [int(seed) for seed in o.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes whole numbers with commas between them, not {o.seeds!r}") from None
    base = {"n_layer": o.n_layer, "frac": 0.3}
    planned = [
        (name, replace(Options(steps=o.steps or steps, snapshots=False), **{**base, **settings[name], "seed": seed}))
        for name in names
        for seed in seeds
    ]
    for _, options in planned:
        options.check()
    return planned


class OneLine(Progress):
    """The progress of a run as one line of a terminal, which the next run overwrites; nothing in a log file or pipe."""

    def __init__(self, head: str):
        super().__init__()
        self.head = head

    def show(self, line: str) -> None:
        if self.live:
            super().show(f"{self.head}{line}")

    say = show


def train_setting(what: str, name: str, o: Options, folder: Path) -> dict[str, Any]:
    """Train one setting, or the rest of it if it was stopped; its entry in results.json."""
    o.out = str(folder / f"{name.replace(' ', '-').replace(',', '')}-seed{o.seed}")
    head, run = f"{what} {name:<18} seed {o.seed}  ", None
    if Path(o.out, "config.json").is_file():
        run = Run.open(o.out, "grok")
        ignored = {"out", "resume", "device", "preset", "steps"}
        was, now = ({k: v for k, v in d.items() if k not in ignored} for d in (run.config()["options"], asdict(o)))
        if was != now:
            raise UserError(f"{o.out} was run with other options: choose another --out, or remove it")
        o.resume = o.out
    lines = evaluations(run) if run else []
    last = last_step([(line["step"], line["clean_val_acc"]) for line in lines])
    if not lines or lines[-1]["step"] < min(o.steps, last):
        if run:
            run.lock()
        trainer = prepare(o, run)
        trainer.progress, run, trainer.again = OneLine(head), trainer.run, command(*sys.argv)
        try:
            trainer.train()
        except SystemExit:
            print("\nstopped, and saved; the same command goes on", flush=True)
            raise
        finally:
            run.unlock()
        trainer.progress.clear()
        lines = evaluations(run)
    print(f"{head}{summary(lines)}", flush=True)
    reached = {key: crossing(lines, accuracy) for key, accuracy in STEPS_TO.items()}
    final = {k: lines[-1][k] for k in ("step", "seconds", "train_acc", "val_acc", "clean_val_acc", "weight_norm")}
    return {"setting": name, "seed": o.seed, "frac": o.frac, "n_layer": o.n_layer, **reached, **final, "run": o.out}


def print_table(what: str, runs: Sequence[Mapping[str, Any]]) -> None:
    """A line for each run: the steps to 99 %, and the accuracy at the end."""
    print(f"\n{what:<18}{'seed':>5}{'train 99 %':>12}{'val 99 %':>10}{'clean 99 %':>12}{'clean at the end':>18}")
    for r in runs:
        steps_to = "".join(f"{format(r[k], ',') if r[k] else '–':>{w}}" for k, w in zip(STEPS_TO, (12, 10, 12)))
        print(f"{r['setting']:<18}{r['seed']:>5}{steps_to}{100 * r['clean_val_acc']:>9.1f} % at {r['step']:,}")
