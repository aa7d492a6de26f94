"""Run folders: found, locked, never overwritten, and complete files in them after a failure."""

import os
import time
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.run import Run, newest_runs


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.new(tmp_path / "run", "gpt")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as new:
        new.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(UserError, match="can't be written"), atomic_write(path) as new:
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_new_run_never_overwrites_another(run: Run) -> None:
    run.write_config({"kind": "gpt"})
    with pytest.raises(UserError, match="already holds a run"):
        Run.new(run.path, "gpt")


def test_the_newest_run_of_a_kind_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"python gpt\.py"):
        Run.open(None, "gpt")
    for i, (name, kind) in enumerate([("old", "gpt"), ("new", "gpt"), ("other", "grok")]):
        Run.new(Path("runs", name), kind).write_config({"kind": kind})
        os.utime(Path("runs", name, "config.json"), (time.time(), time.time() + i))
    Path("runs/broken").mkdir()
    Path("runs/broken/config.json").write_text("{")
    assert Run.open(None, "gpt").path.name == "new"
    assert [r.path.name for r in newest_runs("gpt")] == ["new", "old"]
    with pytest.raises(UserError, match="is not a run folder"):
        Run.open("runs", "gpt")


def test_a_run_of_another_kind_is_refused(run: Run) -> None:
    run.write_config({"kind": "bigram", "options": {}, "model": {}, "tokenizer": {}, "corpus": {}})
    assert Run.open(run.path, "bigram").path == run.path
    with pytest.raises(UserError, match=r"holds a bigram run, not one of gpt\.py"):
        Run.open(run.path, "gpt")


def test_two_processes_never_train_into_one_folder(run: Run) -> None:
    """Opened twice, a folder is locked like by two processes."""
    run.lock()
    with pytest.raises(UserError, match="another process"):
        Run(run.path).lock()


def test_metrics_after_a_step_are_forgotten(run: Run) -> None:
    for step in (1, 2, 3):
        run.log({"step": step})
    run.forget_after(2)
    assert [line["step"] for line in run.metrics()] == [1, 2]
