"""What every script shares: options, errors, lines of progress, and files that are whole or not there.

A script declares its options once, as a dataclass whose fields carry a default and a help text (`option`); `parse`
derives argparse from it, so that `--help` lists every option with its default. A preset fills defaults and nothing
more: a flag that the user typed always wins.
"""

import argparse
import dataclasses
import os
import shutil
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar


class UserError(ValueError):
    """Something that the user can put right. Its text is one sentence: what was wrong, and what to do."""


def option(default: Any, help: str, choices: Sequence[Any] | None = None) -> Any:
    """A dataclass field with the text that `--help` shows for it."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse would print the whole usage before the one line that matters
        raise UserError(f"{message} (see {self.prog} --help)")


def _value_type(hint: Any) -> Callable[[str], Any]:
    """`int` for `int` and for `int | None`: None is a default, never something to type."""
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


Options = TypeVar("Options")


def parse(
    cls: type[Options],
    argv: Sequence[str],
    prog: str,
    description: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    default_preset: Callable[[Options], str | None] = lambda options: None,
    positional: tuple[str, str] | None = None,
) -> tuple[Options, set[str]]:
    """Turn `argv` into an instance of the dataclass `cls`, and say which options the user gave.

    `presets` maps the values of `--preset` to the defaults that they fill; `default_preset` names the one to use when
    none was asked for. `positional` is the `(field, help)` of an argument that stands without a dash.
    Raises UserError for an unknown option or a value of the wrong kind.
    """
    parser = _Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name == "preset" and not presets and not field.metadata["choices"]:
            continue  # a script without presets
        text = field.metadata["help"].replace("%", "%%")
        if field.default is not None and field.default != ():
            shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
            text += f" (default: {shown})"
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if positional and field.name == positional[0]:
            several = typing.get_origin(hints[field.name]) is list
            parser.add_argument(field.name, nargs="*" if several else "?", metavar=positional[1], **keywords)
            continue
        flag = "--" + field.name.replace("_", "-")
        if hints[field.name] is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords["type"] = _value_type(hints[field.name])
            keywords["choices"] = field.metadata["choices"] or (list(presets or {}) if field.name == "preset" else None)
            keywords["metavar"] = None if keywords["choices"] else field.name.upper()
        parser.add_argument(flag, **keywords)
    given = vars(parser.parse_args(argv))
    options = cls(**given)
    name = given.get("preset") or default_preset(options)
    if presets and name:
        filled = {"preset": name, **presets[name], **given}
        options = cls(**filled)
    return options, set(given)


def dispatch(verbs: Mapping[str, Callable[[Sequence[str]], None]], argv: Sequence[str]) -> None:
    """Call the verb that `argv` begins with, or the first of them if it begins with an option or is empty."""
    if argv and not argv[0].startswith("-"):
        if argv[0] not in verbs:
            raise UserError(f"there is no verb {argv[0]!r}: it is one of {', '.join(verbs)}")
        verbs[argv[0]](argv[1:])
    else:
        next(iter(verbs.values()))(argv)


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Call `main(argv)`; a UserError becomes one line on stderr and exit code 2, anything else keeps its traceback."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_complain(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # `python gpt.py sample | head`: the reader has gone, and that is not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _complain(error: UserError) -> int:
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    return 2


def command(script: str) -> str:
    """What to type to run a script, with the Python that runs this one: `python gpt.py`, `.venv/bin/python gpt.py`."""
    python = Path(sys.executable)
    if (found := shutil.which("python")) and Path(found) == python:
        return f"python {script}"
    return f"{python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python} {script}"


def duration(seconds: float) -> str:
    """A time for people: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


class Progress:
    """One line of progress: rewritten in place on a terminal, printed anew in a log file or a pipe."""

    def __init__(self, stream: typing.TextIO | None = None):
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.shown = time.perf_counter()  # when the last line was
        self.pending = 0  # width of the line that the next one must overwrite

    def show(self, line: str) -> None:
        """A passing state. On a terminal the next line takes its place."""
        self.shown = time.perf_counter()
        if self.live:
            line = line[: shutil.get_terminal_size().columns - 1]  # a line that wraps can't be taken back
            self.stream.write("\r" + line.ljust(self.pending))
            self.pending = len(line)
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """A line that stays."""
        self.shown = time.perf_counter()
        self.stream.write(("\r" + line.ljust(self.pending) if self.pending else line) + "\n")
        self.pending = 0
        self.stream.flush()

    def end(self) -> None:
        """Leave the last passing line where it is and go on below it."""
        if self.pending:
            self.stream.write("\n")
            self.pending = 0

    def clear(self) -> None:
        """Take the last passing line away."""
        if self.pending:
            self.stream.write("\r" + " " * self.pending + "\r")
            self.pending = 0
            self.stream.flush()


class Waiting:
    """Shows the seconds that pass while something runs that can't report by itself."""

    def __init__(self, progress: Progress, text: str):
        self.progress, self.text = progress, text
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        start = time.perf_counter()
        while not self.over.wait(1.0):
            self.progress.show(f"{self.text}  {duration(time.perf_counter() - start)}")

    def __enter__(self) -> None:
        self.progress.show(self.text)
        if self.progress.live:
            self.thread.start()

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        if self.progress.live:
            self.thread.join()
            self.progress.clear()


class whole:  # noqa: N801  (used like a function)
    """`with whole(path) as new:` gives another name in the same folder; at the end it is flushed and renamed to `path`.

    A full disk or a folder that can't be made is a UserError: there is nothing wrong with the program.
    """

    def __init__(self, path: Path):
        self.path = path
        self.new = path.with_name(f".{path.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path.parent} can't be made ({error.strerror})") from error
        return self.new

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                with self.new.open("rb+") as file:
                    os.fsync(file.fileno())
                self.new.replace(self.path)
            elif isinstance(error, OSError):
                raise error
        except OSError as failed:
            raise UserError(f"{self.path} can't be written ({failed.strerror or failed})") from failed
        finally:
            self.new.unlink(missing_ok=True)
