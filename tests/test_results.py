"""The files that commands with many runs leave: each number that a picture takes is checked, and named when wrong."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fuzz_files import made_up_results
from commands.coherence import read_measures
from commands.results import FORMS, misfit, whole
from commands.sweeps import saved_results
from plots import compare, finetuning, grok_sweep, scaling
from runtime.errors import UserError

READERS: dict[str, Callable[[Path], Any]] = {
    "compared": compare.read, "scaled": scaling.read, "measures": read_measures,
    "fractions": grok_sweep.read, "interventions": grok_sweep.read, "tuned": finetuning.read}
MADE_UP = {str(path.parent): (path.name, results) for path, results in made_up_results().items()}


def parts(form: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value that a form has something to say of, in the last of each list."""
    if isinstance(form, dict):
        for name, part in form.items():
            yield from parts(part, (*at, name))
    elif isinstance(form, list):
        yield at
        yield from parts(form[0], (*at, -1))
    else:
        yield at


def holder(value: Any, at: tuple[Any, ...]) -> Any:
    """What the last step of a way goes into."""
    for step in at[:-1]:
        value = value[step]
    return value


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    holder(value, at)[at[-1]] = new
    return value


def without(value: Any, at: tuple[Any, ...]) -> Any:
    value = copy.deepcopy(value)
    del holder(value, at)[at[-1]]
    return value


@pytest.mark.parametrize("folder", READERS)
def test_a_results_file_with_something_wrong_in_it_is_refused_by_the_picture_which_says_what_and_how_to_make_one(
    folder: str, tmp_path: Path
) -> None:
    name, good = MADE_UP[folder]
    (tmp_path / name).write_text(json.dumps(good))
    READERS[folder](tmp_path)
    form = next((form for kind, form in FORMS.items() if next(iter(good)) == kind), {"runs": [{"tokens": whole}]})
    for at in parts(form):
        wrong: list[Any] = [[], "\ud800", 10**400, float("nan"), True]
        for new in wrong:
            (tmp_path / name).write_text(json.dumps(changed(good, at, new)))
            with pytest.raises(UserError, match=rf"holds no .*{at[-1]} is .*make one with `python ") as refused:
                READERS[folder](tmp_path)
            assert "\n" not in str(refused.value)
        if isinstance(at[-1], str):
            (tmp_path / name).write_text(json.dumps(without(good, at)))
            with pytest.raises(UserError, match=rf"holds no .* has no {at[-1]}\)"):
                READERS[folder](tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="doesn't exist: make it with `python "):
        READERS[folder](tmp_path)


@pytest.mark.parametrize("folder", sorted(set(READERS) - {"measures"}))
def test_a_command_that_goes_on_refuses_results_in_which_something_is_wrong(folder: str, tmp_path: Path) -> None:
    name, good = MADE_UP[folder]
    path, (kind, what) = tmp_path / name, next(iter(good.items()))
    path.write_text(json.dumps(good))
    assert saved_results(path, {kind: what}) == good["runs"]
    path.write_text(json.dumps({**good, "runs": []}))  # as they are when it begins
    assert saved_results(path, {kind: what}) == []
    for wrong in (changed(good, ("runs", -1, "seed"), []), changed(good, ("runs", -1), 7), {**good, kind: "other"}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=re.escape(f"{path} doesn't hold the results of {kind} {what}")):
            saved_results(path, {kind: what})


def test_what_is_wrong_is_named_by_its_place() -> None:
    form = {"runs": [{"seed": whole}]}
    assert misfit({"runs": [{"seed": 0}, {"seed": 1, "more": None}]}, form) == ""
    assert misfit({"runs": [{"seed": 0}, {"seed": -1}]}, form) == "runs[1].seed is -1"
    assert misfit({"runs": [{}]}, form) == "runs[0] has no seed"
    assert misfit({"runs": {}}, form) == "runs is {}" and misfit([], form) == "it is []"


def test_the_picture_of_grokking_sweeps_leaves_out_the_other_results_in_runs(script, tmp_path: Path) -> None:
    for path, results in made_up_results().items():
        (tmp_path / "runs" / path).parent.mkdir(parents=True)
        (tmp_path / "runs" / path).write_text(json.dumps(results))
    done = script("plots/grok_sweep.py")
    assert done.returncode == 0 and (tmp_path / "grok_sweep.png").stat().st_size > 20_000, done.stderr
