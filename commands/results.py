"""What the commands that train many models leave in one file, for the pictures and for themselves when they go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.files import read_json

# A form says what a JSON value must be: {name: form} an object with these names, [form] a list of at least one, and a
# function whether it will do.
Form = dict[str, Any] | list[Any] | Callable[[Any], bool]


def number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and -1e30 < x < 1e30


def positive(x: Any) -> bool:
    return number(x) and x > 0


def whole(x: Any) -> bool:
    return number(x) and isinstance(x, int) and x >= 0


def text(x: Any) -> bool:
    """No surrogates, which can't be drawn."""
    return isinstance(x, str) and not any("\ud800" <= c <= "\udfff" for c in x)


def maybe(form: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: x is None or form(x)


def one_of(*names: str) -> Callable[[Any], bool]:
    return lambda x: text(x) and x in names


MEASURES: Form = lambda x: isinstance(x, dict) and all(map(maybe(number), x.values()))
RUN: dict[str, Any] = {"setting": text, "seed": whole}
SIZE: dict[str, Any] = {**RUN, "n_layer": whole, "n_embd": whole, "parameters": positive, "tokens": positive}
COMPARED: Form = {**RUN, "steps": whole, "parameters": positive, "val_loss": number, "tokens_per_s": maybe(positive)}
SCALED: Form = {**SIZE, "n": positive, "flops": positive, "level": positive, "epochs": positive, "steps": whole,
                "val_loss": positive, "bits_per_byte": positive, "run": text}
GROKKED: Form = {**RUN, "frac": positive, "n_layer": whole, "step": positive, "clean_val_acc": number,
                 "train_99": maybe(positive), "val_99": maybe(positive), "clean_val_99": maybe(positive)}
TUNED: Form = {**RUN, "method": text, "old": text, "new": text, "trained": whole, "steps": whole, "memory_mb": number,
               "seconds_per_step": number, "curve": [{"step": whole, "plays": number, "stories": number}]}

COMPARISON: Form = {"compare": maybe(text), "steps": positive, "runs": [COMPARED]}
SCALING: Form = {"scaling": text, "runs": [SCALED]}
GROKKING: Form = {"sweep": one_of("fraction", "intervention"), "runs": [GROKKED]}
FINETUNING: Form = {"finetuning": text, "runs": [TUNED]}
COHERENCE: Form = {"anchors": {"real text": MEASURES, "bigram": MEASURES, "5-gram": MEASURES},
                   "runs": [{**SIZE, "measures": MEASURES, "sample": text}]}
FORMS = {"compare": COMPARISON, "scaling": SCALING, "sweep": GROKKING, "finetuning": FINETUNING}  # by their first name


def misfit(value: Any, form: Form, name: str = "it") -> str:
    """What of a value doesn't have a form, like `runs[3].seed is 'x'`; "" if all of it does."""
    parts: list[tuple[Any, Form, str]] = []
    if isinstance(form, dict) and isinstance(value, dict):
        if missing := next((key for key in form if key not in value), ""):
            return f"{name} has no {missing}"
        parts = [(value[key], part, f"{name}.{key}".removeprefix("it.")) for key, part in form.items()]
    elif isinstance(form, list) and isinstance(value, list) and value:
        parts = [(item, form[0], f"{name}[{i}]") for i, item in enumerate(value)]
    elif isinstance(form, dict | list) or not form(value):
        return f"{name} is {repr(value)[:40]}"
    return next(filter(None, (misfit(*part) for part in parts)), "")


def read_results(path: Path, form: Form, what: str, maker: str, name: str = "results.json") -> dict[str, Any]:
    """What the file of that name in a folder, or `path` itself, holds. Raises UserError, which says `what` that should
    be and what makes it, unless it has the form."""
    path = path / name if path.is_dir() else path
    try:
        saved = read_json(path)
    except UserError as error:
        raise UserError(f"{error}: make it with `{maker}`") from error
    if wrong := misfit(saved, form):
        raise UserError(f"{path} holds no {what} ({wrong}): make one with `{maker}`")
    return saved
