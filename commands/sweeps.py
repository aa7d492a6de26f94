"""Many runs, one for each setting and seed: what `gpt.py compare` and `grok.py sweep` share.

Stopped at any moment, the same command goes on: what is done is in results.json, and a run that was stopped resumes.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runtime.cli import command
from runtime.errors import UserError
from runtime.files import atomic_write, read_json
from runtime.progress import Progress
from runtime.run import Run
from trainer import Trainer

Result = dict[str, Any]  # of one run; it has `setting` and `seed`


def parse_seeds(text: str) -> list[int]:
    """The numbers in `--seeds`. Raises UserError for anything else."""
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes whole numbers with commas between them, not {text!r}") from None


def choose(values: str | None, settings: Mapping[str, Any]) -> list[str]:
    """The settings named in `--values`, with semicolons between, or all. Raises UserError for an unknown one."""
    names = [name.strip() for name in values.split(";")] if values else list(settings)
    if wrong := [name for name in names if name not in settings]:
        raise UserError(f"--values {wrong[0]!r} is unknown: choose from {'; '.join(settings)}")
    return names


def run_folder(folder: Path, name: str, seed: int) -> str:
    """The run folder of a setting and seed."""
    return str(folder / f"{name.replace(' ', '-').replace(',', '')}-seed{seed}")


def stopped_run(o: Any, kind: str, ignored: set[str]) -> Run | None:
    """The run in `o.out` if there is one; `o.resume` is then set, so that it goes on.

    Raises UserError if it was made with other options, but for those in `ignored` and where things are.
    """
    if not Path(o.out, "config.json").is_file():
        return None
    run, ignored = Run.open(o.out, kind), ignored | {"out", "resume", "device", "preset", "steps"}
    was, now = ({k: v for k, v in d.items() if k not in ignored} for d in (run.config()["options"], asdict(o)))
    if was != now:
        raise UserError(f"{o.out} was run with other options: choose another --out, or remove it")
    o.resume = o.out
    return run


class OneLine(Progress):
    """The progress of a run as one line of a terminal, which the next run overwrites; nothing in a log file or pipe."""

    def __init__(self, head: str):
        super().__init__()
        self.head = head

    def show(self, line: str) -> None:
        if self.live:
            super().show(f"{self.head}{line}")

    say = show


def train_quietly(trainer: Trainer, head: str) -> None:
    """Take the steps that are left, in one line of progress that begins with `head`."""
    trainer.progress, trainer.again = OneLine(head), command(*sys.argv)
    try:
        trainer.train()
    except SystemExit:
        print("\nstopped, and saved; the same command goes on", flush=True)
        raise
    finally:
        trainer.run.unlock()
    trainer.progress.clear()


def saved_results(path: Path, about: Mapping[str, Any]) -> list[Result]:
    """The runs in results.json, if there is one. Raises UserError where the folder holds anything else.

    `about` begins with what is swept, which has to be the same.
    """
    kind, what = next(iter(about.items()))
    if path.is_file():
        saved = read_json(path)
        if saved.get(kind) != what or not isinstance(saved.get("runs"), list):
            raise UserError(f"{path} doesn't hold the results of {kind} {what}: choose another folder with --out")
        return list(saved["runs"])
    others = [p for p in path.parent.glob("*") if not Run.holds_one(p)]
    if others:
        raise UserError(f"{path.parent} holds files already, such as {others[0].name}: choose a new folder with --out")
    return []


def run_all(
    folder: Path, about: Mapping[str, Any], planned: Sequence[tuple[str, Any]], order: Sequence[str],
    train: Callable[[str, Any, Result | None], Result],
) -> list[Result]:
    """Train each `(setting, options)` and write results.json after each: `about`, and all results so far.

    `train` is given the setting, its options and the result of an earlier command, if there is one. Returns all
    results in the given order of settings, those of earlier commands too.
    """
    path = folder / "results.json"
    results = {(r["setting"], r["seed"]): r for r in saved_results(path, about)}
    runs: list[Result] = []
    for name, o in planned:
        results[name, o.seed] = train(name, o, results.get((name, o.seed)))
        runs = sorted(results.values(), key=lambda r: (order.index(r["setting"]), r["seed"]))
        with atomic_write(path) as new:
            new.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    return runs
