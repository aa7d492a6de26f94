"""Many runs, one for each setting and seed: what `gpt.py sweep`, `gpt.py compare` and `grok.py sweep` share.

Stopped at any moment, the same command goes on: what is done is in results.json, and a run that was stopped resumes.

The same command may run several times at once, on one machine or on several that share the folder: each process takes
the next run that no other has, by a lock on a file. `--jobs` does no more than start it so many times, and so does
`mpiexec -n`.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from commands.results import FORMS, misfit
from runtime import ranks
from runtime.cli import command, option
from runtime.device import cores
from runtime.errors import UserError
from runtime.files import atomic_write, claimed, read_json
from runtime.progress import Progress, duration
from runtime.run import Run
from runtime.signals import handled_by, when_stopped
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
    others = [p for p in path.parent.glob("*") if not p.name.startswith(".") and not Run.holds_one(p)]
    if path.is_file():
        saved = read_json(path)
        wrong = misfit(saved, FORMS[kind]) if saved.get("runs") != [] else ""
        if saved.get(kind) != what or wrong:
            why = f" ({wrong})" if wrong else ""
            raise UserError(f"{path} doesn't hold the results of {kind} {what}{why}: choose another folder with --out")
        return list(saved["runs"])
    if others:
        raise UserError(f"{path.parent} holds files already, such as {others[0].name}: choose a new folder with --out")
    return []


def record(path: Path, about: Mapping[str, Any], order: Sequence[str], result: Result | None = None) -> list[Result]:
    """Add a result to results.json, which other processes write too; all of them, in the given order of settings."""
    place = {name: i for i, name in enumerate(order)}
    with claimed(path.parent / ".locks" / "results", wait=True):
        results = {(r["setting"], r["seed"]): r for r in saved_results(path, about)}
        if result:
            results[result["setting"], result["seed"]] = result
        runs = sorted(results.values(), key=lambda r: (place.get(r["setting"], len(place)), r["setting"], r["seed"]))
        with atomic_write(path) as new:
            new.write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    return runs


def run_all(
    folder: Path, about: Mapping[str, Any], planned: Sequence[tuple[str, Any]], order: Sequence[str],
    train: Callable[[str, Any, Result | None], tuple[Result, str]], jobs: int = 1,
    cost: Callable[[Any], float] = lambda o: 1.0,
) -> list[Result]:
    """Train each `(setting, options)` and write results.json after each: `about`, and all results so far.

    `train` is given the setting, its options and the result of an earlier command, if there is one; it gives the result
    and a line for the user. `cost` says how long a run takes beside the others, for the time left. Returns all results
    in the given order of settings, those of earlier commands too. With `jobs` other processes do the work.
    """
    path = folder / "results.json"
    saved_results(path, about)  # refuses a folder before anything is written into it
    when_stopped("stopped; what is done is in results.json, and the same command goes on")
    runs = record(path, about, order)
    if jobs > 1:
        if ranks.size() > 1:
            raise UserError("--jobs and mpiexec both start several processes: leave out one of them")
        run_copies(jobs)
        return record(path, about, order)
    with ranks.apart():  # under mpiexec each process takes runs, as with --jobs
        take_runs(folder, about, planned, order, train, TimeLeft(planned, runs, cost))
    return record(path, about, order)


def take_runs(
    folder: Path, about: Mapping[str, Any], planned: Sequence[tuple[str, Any]], order: Sequence[str],
    train: Callable[[str, Any, Result | None], tuple[Result, str]], left: "TimeLeft",
) -> None:
    """Train those of the planned runs that no other process has; see `run_all`."""
    path, waiting = folder / "results.json", list(planned)
    earlier = {(r["setting"], r["seed"]) for r in saved_results(path, about)}
    while waiting:
        held = []  # by other processes
        for name, o in waiting:
            with claimed(folder / ".locks" / Path(run_folder(folder, name, o.seed)).name, wait=False) as ours:
                if not ours:
                    held.append((name, o))
                    continue
                known = {(r["setting"], r["seed"]): r for r in saved_results(path, about)}
                if known.keys() - earlier >= {(name, o.seed)}:
                    continue  # another process has done it meanwhile
                result, line = train(name, o, known.get((name, o.seed)))
                runs = record(path, about, order, result)
                if line:
                    print(line + left.after(runs), flush=True)
        if len(held) == len(waiting):
            time.sleep(1)  # the others may stop, and leave us theirs
        waiting = held


class TimeLeft:
    """How long the runs that are left will take, from what those of this command took."""

    def __init__(self, planned: Sequence[tuple[str, Any]], runs: Sequence[Result], cost: Callable[[Any], float]):
        self.costs = {(name, o.seed): cost(o) for name, o in planned}
        for r in runs:
            self.costs.pop((r["setting"], r["seed"]), None)
        self.begin = time.perf_counter()

    def after(self, runs: Sequence[Result]) -> str:
        """The end of a line, `  5 min 03 s left`; nothing after the last run."""
        known = {(r["setting"], r["seed"]) for r in runs}
        done = sum(cost for key, cost in self.costs.items() if key in known)
        left = sum(cost for key, cost in self.costs.items() if key not in known)
        return f"  {duration((time.perf_counter() - self.begin) * left / done)} left" if left and done else ""


# ---- several at once ----

JOBS = "runs at once, each with its share of the cores or a GPU; 0 helps the same command that runs elsewhere"


def jobs_option() -> Any:
    """The option `--jobs`, which every sweep has."""
    return option(1, JOBS)


def share(i: int, jobs: int) -> dict[str, str]:
    """The variables that give the i-th of `jobs` processes its share of the cores, and a GPU if there are several."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(n) for n, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    share_of_cores = {"CPU_COUNT": str(max(1, cores() // jobs))}
    return share_of_cores | ({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if len(gpus) > 1 else {})


def run_copies(jobs: int) -> None:
    """Run this command in so many processes, and print their lines as they come. A signal is passed on to them.

    Raises SystemExit with the code of one that failed, which has said why.
    """
    again = [sys.executable, *sys.argv, "--jobs", "0"]
    copies = [subprocess.Popen(again, env={**os.environ, **share(i, jobs)}, stdout=subprocess.PIPE, text=True,
                               start_new_session=True) for i in range(jobs)]

    def relay(copy: "subprocess.Popen[str]") -> None:
        for line in copy.stdout or ():
            print(line, end="", flush=True)

    def pass_on(number: int, frame: FrameType | None) -> None:
        for copy in copies:
            copy.send_signal(number)

    with handled_by(pass_on):
        threads = [threading.Thread(target=relay, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread, copy in zip(threads, copies):
            thread.join()
            copy.wait()
    if failed := next((copy.returncode for copy in copies if copy.returncode), 0):
        raise SystemExit(failed if failed > 0 else 128 - failed)
