"""The command line that every script shares: options, verbs, and errors as one sentence.

A script declares its options once, as a dataclass whose fields carry a default and a help text (`option`); `parse`
derives argparse from it, so that `--help` lists every option with its default. A preset only fills defaults: a flag
that the user typed always wins.
"""

import argparse
import contextlib
import dataclasses
import re
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
    typed: Sequence[str] = ()  # by the user

    def error(self, message: str) -> NoReturn:  # argparse would print its long usage before this one line
        if flag := re.match("argument (--[a-z-]+): expected one argument", message):
            message += f"; one that begins with a dash is written {flag[1]}='-...'"
        elif re.match("unrecognized arguments: -[^-]|the following arguments are required: [A-Z]+$", message) and any(
            re.match("-[^-]", word) for word in self.typed
        ):
            message += "; what begins with a dash and is no option comes last, behind a --"
        raise UserError(f"{message} (see {self.prog} --help)")


def _value_type(hint: Any) -> Callable[[str], Any]:
    """`int` for `int`, for `list[int]` and for `int | None`: None is a default, and nobody types it."""
    if typing.get_origin(hint) is list:
        return typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType):
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    return whole_number if hint is int else hint


def whole_number(text: str) -> int:
    """`10000`, `10_000` or `1e4`. Raises ArgumentTypeError for anything but a whole number of at most 64 bits."""
    for parse_number in (int, float):
        with contextlib.suppress(ValueError, OverflowError):
            if (number := int(value := parse_number(text))) == value and abs(number) < 2**63:
                return number
    raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number")


NANOGPT = {  # what nanoGPT calls an option, and what it is here
    "max_iters": "steps", "learning_rate": "lr", "warmup_iters": "warmup", "eval_iters": "eval_batches",
    "gradient_accumulation_steps": "grad_accum", "out_dir": "out", "dataset": "data", "start": "prompt",
}


def _as_argparse_has_it(argv: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """`--batch_size 8` as `--batch-size 8`, `--bias=False` and `--bias False` as `--no-bias`, `--prompt -x` as
    `--prompt=-x`. `hints` are the types of the options by name. Raises UserError for nanoGPT's name of an option."""
    rest, out = list(argv), list[str]()
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if word == "--":
            return [*out, word, *rest]
        if not word.startswith("--"):
            out.append(word)
            continue
        if name not in hints and NANOGPT.get(name) in hints:
            raise UserError(f"nanoGPT's {flag} is --{NANOGPT[name].replace('_', '-')} here")
        following = rest[0] if rest and name in hints and not equals else ""
        if following in ("True", "False") if hints.get(name) is bool else re.match("-[^-]", following):
            equals, value = "=", rest.pop(0)
        switch = hints.get(name.removeprefix("no_")) is bool
        if switch and equals and (name not in hints or value.lower() not in ("true", "false")):
            switch_on = name.removeprefix("no_").replace("_", "-")
            raise UserError(f"{word}: --{switch_on} turns it on and --no-{switch_on} off, or --{switch_on}=False")
        if hints.get(name) is bool and value.lower() in ("true", "false"):
            name, equals, value = name if value.lower() == "true" else f"no_{name}", "", ""
        out.append(f"--{name.replace('_', '-')}{equals}{value}")
    return out


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
    parser.typed = _as_argparse_has_it(argv, hints)
    given = vars(parser.parse_args(parser.typed))
    for key, value in given.items():  # argparse makes [] of --stop=--
        if [] in (value, *(value if isinstance(value, list) else ())) and key != (positional or [""])[0]:
            if _value_type(hints[key]) is not str:
                parser.error(f"argument --{key.replace('_', '-')}: '--' isn't a value for it")
            given[key] = [v or "--" for v in value] if value else "--"
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
    words = (f"./{a}" if isinstance(a, Path) and str(a).startswith("-") else str(a) for a in arguments)
    return shlex.join((str(python), str(script), *words))
