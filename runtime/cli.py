"""The command line that every script shares: options, verbs, and errors as one sentence.

A script declares its options once, as a dataclass whose fields carry a default and a help text (`option`); `parse`
derives argparse from it, so that `--help` lists every option with its default. A preset only fills defaults: a flag
that the user typed always wins.
"""

import argparse
import dataclasses
import shlex
import shutil
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from runtime.errors import UserError

Options = TypeVar("Options")

REQUIRED = dataclasses.MISSING  # the default of an option that the user must give


def option(default: Any, help: str, choices: Sequence[Any] | None = None) -> Any:
    """A dataclass field with the text that `--help` shows for it. A field of type list is an option to repeat."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # argparse would print its long usage before this one line
        raise UserError(f"{message} (see {self.prog} --help)")


def _value_type(hint: Any) -> Callable[[str], Any]:
    """`int` for `int`, for `list[int]` and for `int | None`: None is a default, and nobody types it."""
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    return hint


def parse(
    cls: type[Options],
    argv: Sequence[str],
    prog: str,
    description: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    default_preset: Callable[[Options], str | None] = lambda options: None,
    positional: tuple[str, str] | None = None,
) -> tuple[Options, set[str]]:
    """`argv` as an instance of the dataclass `cls`, and the names of the options that the user typed.

    `presets` maps the values of `--preset` to the defaults that they fill; `default_preset` names the one to use when
    the user named none. `positional` is the `(field, name in the help)` of an argument without a dash.
    Raises UserError for an unknown option or a value of the wrong kind.
    """
    parser = _Parser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name == "preset" and not presets and not field.metadata["choices"]:
            continue  # a script without presets
        text = field.metadata["help"].replace("%", "%%")
        required = field.default is REQUIRED
        if not required and field.default is not None and field.default != ():
            shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
            text += f" (default: {shown})"
        keywords: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        several = typing.get_origin(hints[field.name]) is list
        if positional and field.name == positional[0]:
            nargs = ("+" if required else "*") if several else (None if required else "?")
            parser.add_argument(field.name, nargs=nargs, metavar=positional[1], **keywords)
            continue
        keywords["required"] = required
        if hints[field.name] is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            if several:
                keywords["action"] = "append"
            keywords["type"] = _value_type(hints[field.name])
            keywords["choices"] = field.metadata["choices"] or (list(presets or {}) if field.name == "preset" else None)
            keywords["metavar"] = None if keywords["choices"] else field.name.upper()
        parser.add_argument("--" + field.name.replace("_", "-"), **keywords)
    given = vars(parser.parse_args(argv))
    for option_name, value in given.items():  # argparse takes `--name=--` for no value at all
        if value == [] and typing.get_origin(hints[option_name]) is not list:
            raise UserError(f"--{option_name.replace('_', '-')} needs a value (see {prog} --help)")
    options = cls(**given)
    name = given.get("preset") or default_preset(options)
    if presets and name:
        options = cls(**{"preset": name, **presets[name], **given})
    return options, set(given)


def dispatch(verbs: Mapping[str, Callable[[Sequence[str]], None]], argv: Sequence[str]) -> None:
    """Call the verb that `argv` begins with, or the first of `verbs` if `argv` is empty or begins with an option.

    Raises UserError for an unknown verb.
    """
    if argv and not argv[0].startswith("-"):
        if argv[0] not in verbs:
            raise UserError(f"there is no verb {argv[0]!r}: choose one of {', '.join(verbs)}")
        verbs[argv[0]](argv[1:])
    else:
        next(iter(verbs.values()))(argv)


def command(script: Path | str, *arguments: object) -> str:
    """What to type to run a script, with the Python that runs this one: `python gpt.py`, `.venv/bin/python gpt.py`."""
    python = Path(sys.executable)
    if (first := shutil.which("python")) and Path(first) == python:
        python = Path("python")
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join(map(str, (python, script, *arguments)))
