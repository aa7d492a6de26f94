"""A slice of benchmarks/fuzz.py: random command lines, mutated files and whole processes, none with a traceback."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import fuzz, fuzz_files, fuzzing
from commands import gpt, grok, tokenizer
from runtime.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("fuzz") / "place"
    fuzz.make_place(folder)
    yield folder


def test_an_attempt_tells_a_sentence_from_a_traceback_and_from_an_odd_exit_code() -> None:
    def fail(error: BaseException) -> None:
        raise error

    assert fuzzing.attempt(fail, UserError("x")) == fuzzing.attempt(fail, SystemExit(2)) == ""
    assert "KeyError" in fuzzing.attempt(fail, KeyError("x")) and "exit code 1" in fuzzing.attempt(fail, SystemExit(1))


def test_a_file_that_nobody_named_counts_as_touched() -> None:
    before, after = {"mine": b"1", "out/x": b"1"}, {"mine": b"2", "out/x": b"2", "runs/new/y": b"", "stray": b""}
    assert fuzz.changed(before, after, ["--out=out"]) == ["mine", "stray"]


def test_every_script_and_verb_shows_its_options_to_the_fuzzer() -> None:
    verbs: dict[str, Iterable[str]] = {"gpt.py": gpt.VERBS, "grok.py": grok.VERBS, "tokenizer.py": tokenizer.VERBS}
    here = {path.relative_to(ROOT).as_posix() for folder in (ROOT, ROOT / "plots") for path in folder.glob("*.py")
            if "__main__" in path.read_text()}
    doors = {door.command for door in fuzzing.DOORS}
    assert {door[0] for door in doors} == here
    for name, those in verbs.items():
        assert {door[1] if len(door) > 1 else "train" for door in doors if door[0] == name} == set(those)
    for door in fuzzing.DOORS:
        assert fuzz.flags_of(door), door.command
    rng = random.Random(0)
    drawn = {flag for _ in range(300) for flag in fuzz.draw_line(fuzzing.DOORS[0], rng) if flag.startswith("--")}
    assert len(drawn) > 40


def test_random_command_lines_get_a_sentence(place: Path) -> None:
    assert not fuzz.fuzz_lines(250, 7, place)


def test_mutated_files_get_a_sentence(place: Path) -> None:
    assert not fuzz_files.fuzz_files(40, 7, place)


def test_whole_processes_get_a_sentence_and_touch_nothing_of_the_users(place: Path) -> None:
    assert not fuzz.fuzz_processes(2, 7, place)
