"""The run folder, which is the only thing that passes between training and everything after it:

    config.json         all that is needed to rebuild the model and the tokenizer
    metrics.jsonl       one line per log point
    last.safetensors    the newest weights; best.safetensors those with the lowest validation loss
    state.safetensors   all that is needed to go on: the step, the weights and AdamW's moments, in one file
    sample.txt          text of the finished model

Every file is written under a temporary name, flushed, then renamed, so that a run killed at any moment leaves the old
file or the new one. For that reason state.safetensors holds the weights a second time: two files can't be renamed at
once, and a step counter that disagrees with its weights would be a wrong continuation that looks right.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shlex
import sys
import time
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from tinygrad import Tensor

from runtime import ranks, signals
from runtime.cli import command
from runtime.errors import UserError
from runtime.files import atomic_write, read_json
from runtime.tensors import Stored, load_safetensors, save_safetensors
from runtime.text import repair_surrogates

Options = TypeVar("Options")

TEMPORARY = ".*.*.[0-9]*"  # what a killed `atomic_write` leaves


def _make(path: Path, exist_ok: bool) -> None:
    """Make a folder. Raises UserError when it can't be made; where it may not exist, FileExistsError if it does."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise UserError(f"{path} can't be made ({error.strerror}); choose another folder with --out") from error


def _make_free_folder(path: Path) -> Path:
    """Make the folder of that name, or with a number behind it where another process has it already."""
    for n in itertools.count(1):
        free = path if n == 1 else path.with_name(f"{path.name}-{n}")
        with contextlib.suppress(FileExistsError):
            _make(free, exist_ok=False)
            return free
    raise AssertionError


class Run:
    """A run folder, `runs/NAME`. Of the ranks that train one model together only the first writes into it."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    @classmethod
    def new(cls, path: Path | str | None, kind: str) -> "Run":
        """Make the folder `path`, or `runs/KIND-DATE-TIME`, which nobody has yet: else with -2, -3, ... behind it.

        Raises UserError if `path` holds anything already, and when the folder can't be made.
        """
        return cls(ranks.from_first(lambda: str(cls._make_new(path, kind))))

    @classmethod
    def _make_new(cls, path: Path | str | None, kind: str) -> Path:
        if path is None:
            return _make_free_folder(Path("runs", f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"))
        run = cls(path)
        if cls.holds_one(path):
            name = shlex.quote(str(run.path))
            raise UserError(f"{name} already holds a run: go on with --resume {name} or choose another --out")
        _make(run.path, exist_ok=True)
        if there := sorted(p.name for p in run.path.iterdir() if not p.match(TEMPORARY)):
            raise UserError(f"{run.path} holds files already, such as {there[0]}: choose a new folder with --out")
        return run.path

    @classmethod
    def open(cls, path: Path | str | None, kind: str) -> "Run":
        """The run in `path`, or the newest of its kind in `runs/`. Raises UserError when there is none of that kind."""
        if path is not None:
            run = cls(path)
            if not (run.path / "config.json").is_file():
                if run.path.is_file() and cls.holds_one(run.path.parent):
                    raise UserError(f"{path} is a file of a run: name its folder, {run.path.parent}")
                raise UserError(f"{path} is not a run folder: it has no config.json")
            if "model_type" in read_json(run.path / "config.json"):  # of transformers
                raise UserError(f"{path} is not a run folder but a model of another program: gpt.py begins with its "
                                f"weights, --init-from {shlex.quote(str(path))}")
            if (saved := run.config()["kind"]) != kind:
                raise UserError(f"{path} holds a {saved} run, not one of {kind}.py")
            return run
        runs = newest_runs(kind)
        if not runs:
            raise UserError(f"there is no run in {Path('runs').resolve()} yet: make one with `python {kind}.py`")
        return runs[0]

    @staticmethod
    def holds_one(path: Path | str) -> bool:
        """Whether a folder is a run folder."""
        try:
            return "kind" in read_json(Path(path, "config.json"))
        except UserError:
            return False

    # ---- config.json ----

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json: from then on the folder holds a run, which a stop says how to resume.

        Raises UserError when it can't be written.
        """
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        if repair_surrogates(text) != text:  # a file's name that isn't UTF-8, which JSON has as escapes
            text = json.dumps(config, indent=2) + "\n"
        with signals.held():
            self.write_text("config.json", text)
            signals.when_stopped(f"stopped; go on with: {command(sys.argv[0], '--resume', self.path)}")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of that name into the folder. Raises UserError when it can't be written."""
        if not ranks.first():
            return
        with atomic_write(self._to_write(name)) as new:
            new.write_text(text, encoding="utf-8")

    def _to_write(self, name: str) -> Path:
        """The path of a file. Raises UserError where the folder is gone: it would come back without its config.json."""
        if not self.path.is_dir():
            raise UserError(f"{self.path / name} can't be written (No such file or directory)")
        return self.path / name

    def config(self) -> dict[str, Any]:
        """What config.json holds: kind, options, model, tokenizer and corpus. Raises UserError if it is damaged."""
        saved = read_json(self.path / "config.json")
        if missing := {"kind", "options", "model", "tokenizer", "corpus"} - set(saved):
            raise UserError(f"{self.path / 'config.json'} is damaged (it has no {min(missing)})")
        for part in ("options", "model", "tokenizer", "corpus"):
            if not isinstance(saved[part], dict):
                raise UserError(f"{self.path / 'config.json'} is damaged ({part} isn't an object)")
        return saved

    def saved(self, part: str, name: str, *kinds: type) -> Any:
        """What config.json has as `name` in `part`, like "corpus" or "options", of one of these types.

        Raises UserError, saying what there is instead.
        """
        return self._typed(f"{part}.{name}", self.config()[part].get(name), kinds)

    def _typed(self, name: str, value: Any, kinds: tuple[type, ...]) -> Any:
        """A value of config.json, if it is of one of these types. To Python True is a whole number; here it isn't."""
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"{self.path / 'config.json'} is damaged ({name} is {repr(value)[:60]})")
        return value

    def options(self, cls: type[Options]) -> Options:
        """The options that the run was trained with, as the dataclass `cls`; those that it lacks have their defaults.

        Raises UserError for a value of another type than the option's.
        """
        saved, hints, values = self.config()["options"], typing.get_type_hints(cls), {}
        for name in (field.name for field in dataclasses.fields(cls) if field.name in saved):  # type: ignore[arg-type]
            kinds = typing.get_args(hints[name]) or (hints[name],)
            values[name] = self._typed(f"options.{name}", saved[name], kinds + ((int,) if float in kinds else ()))
        return cls(**values)

    def sample(self) -> str | None:
        """The text of sample.txt; None where the run has none. Raises UserError if it isn't text."""
        path = self.path / "sample.txt"
        try:
            return path.read_text(encoding="utf-8") if path.is_file() else None
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be read as text: {error}") from error

    # ---- one process at a time ----

    def lock(self) -> None:
        """Keep other processes from training into this folder until this one ends. Raises UserError if one does."""
        try:
            import fcntl
        except ImportError:
            return  # Windows has none
        if not ranks.first():
            return
        self.locked = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(self.locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is training into {self.path}: wait for it, or stop it") from error

    def unlock(self) -> None:
        """Let other processes train into it, before this process ends."""
        if hasattr(self, "locked"):
            os.close(self.locked)
            del self.locked

    # ---- metrics.jsonl ----

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl. A kill can leave half a line: `metrics` and `forget_after` drop it.

        Raises UserError when it can't be written, as on a full disk.
        """
        path = self.path / "metrics.jsonl"
        if not ranks.first():
            return
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}); what was saved before stays") from error

    def metrics(self, *names: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first; with `names` those that have a number under each of them.

        Raises UserError, with its number, for a line that isn't an object of numbers, a step among them.
        """
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        found = []
        for n, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # what follows the last newline was cut short
            try:
                line = json.loads(text)
                if not isinstance(line["step"], int) or line["step"] < 0:
                    raise ValueError(f"its step is {line['step']!r}")
                numbers = {name for name, value in line.items() if value is not None and math.isfinite(value)}
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise UserError(f"{path} is damaged: line {n} isn't numbers and their step ({error})") from error
            if numbers.issuperset(names):
                found.append(line)
        return found

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps: a resumed run takes those steps again, and logs them again."""
        kept = [line for line in self.metrics() if line["step"] <= step]
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def sweep(self) -> None:
        """Remove the temporary files of a killed process."""
        for path in self.path.glob(TEMPORARY) if ranks.first() else ():
            path.unlink(missing_ok=True)

    # ---- weights and state ----

    def save(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], dtype: str = "F32") -> None:
        """Write `NAME.safetensors` with `metadata`, which are JSON values. Raises UserError when it can't be written.

        They stand as JSON under the key `about`: safetensors allows text alone as metadata.
        """
        if not ranks.first():
            return
        save_safetensors(self._to_write(f"{name}.safetensors"), tensors, {"about": json.dumps(metadata)}, dtype)

    def load(self, name: str) -> tuple[dict[str, Stored], dict[str, Any]]:
        """The tensors of `NAME.safetensors`, still on disk, and their metadata. Raises UserError if it is damaged."""
        return load_safetensors(self.path / f"{name}.safetensors")

    def has(self, name: str) -> bool:
        """Whether there is a `NAME.safetensors`."""
        return (self.path / f"{name}.safetensors").is_file()

    def require_state(self) -> None:
        """Raise UserError if the run has got further than its state.safetensors, which is gone: it would begin again.

        A run that was stopped before its first evaluation has none, and nothing that the same steps wouldn't give.
        """
        if not self.has("state") and (
            self.has("best") or self.has("last") or any("val_loss" in line for line in self.metrics())
        ):
            raise UserError(f"{self.path} can't go on without its state.safetensors: it would begin again and "
                            "overwrite what is there; put that file back, or begin a new run with another --out")

    def require(self, name: str) -> None:
        """Raise UserError unless there is a `NAME.safetensors`."""
        if not self.has(name):
            other = "use --checkpoint last" if self.has("last") else "let the run reach its first evaluation"
            raise UserError(f"{self.path} has no {name}.safetensors yet: {other}")


def newest_runs(kind: str, folder: Path | str = "runs") -> list[Run]:
    """The runs of one kind (`gpt`, `bigram`) in a folder, newest first."""
    runs = []
    for path in Path(folder).glob("*/config.json"):
        try:
            if read_json(path).get("kind") == kind:
                runs.append((path.stat().st_mtime_ns, Run(path.parent)))
        except (OSError, UserError):
            continue  # a folder that isn't ours, or a run that died while its config was being written
    return [run for _, run in sorted(runs, key=lambda pair: pair[0], reverse=True)]


def resume_options(options: Any, given: set[str], kind: str) -> tuple[Any, Run]:
    """The options of the run in `options.resume`, under those of `given` that may change, and that run, locked.

    `options` is a dataclass; its class attribute `CHANGEABLE` is the set of names that may change when a run goes on.
    Raises UserError for any other that differs, when there is no such run, and when another process trains into it.
    """
    run = Run.open(options.resume, kind)
    saved = run.options(type(options))
    fixed = sorted(n for n in given - options.CHANGEABLE if getattr(options, n) != getattr(saved, n))
    if fixed:
        raise UserError(f"--{fixed[0].replace('_', '-')} can't change when a run goes on: start a new run for it")
    run.require_state()
    run.lock()
    return dataclasses.replace(saved, **{name: getattr(options, name) for name in given}), run
