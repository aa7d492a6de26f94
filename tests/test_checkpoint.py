"""Files that survive a kill, and files that are refused because they didn't."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tinygrad import Tensor

from checkpoint import Run, fill, load_safetensors, newest_runs, whole
from cli import UserError

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5], np.float32)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.new(tmp_path / "run", "gpt")
    run.save("last", {k: Tensor(v) for k, v in WEIGHTS.items()}, {"step": 3, "best": None})
    return run


def test_what_is_saved_is_loaded_to_the_last_bit(run: Run) -> None:
    tensors, about = run.load("last")
    assert about == {"step": 3, "best": None}
    assert all(np.array_equal(tensors[k].numpy(), v) for k, v in WEIGHTS.items()) and len(tensors) == 2


def test_the_file_is_a_safetensors_file_of_the_published_layout(run: Run) -> None:
    """8 bytes of header length, JSON, then the data: read here without tinygrad."""
    data = (run.path / "last.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    assert all(isinstance(v, str) for v in header["__metadata__"].values())  # as the format demands
    for name, value in WEIGHTS.items():
        assert header[name]["dtype"] == "F32" and header[name]["shape"] == list(value.shape)
        start, end = header[name]["data_offsets"]
        assert data[8 + n + start : 8 + n + end] == value.tobytes()


@pytest.mark.parametrize("size", [0, 5, 40, -1, 3])
def test_a_file_cut_short_or_too_long_is_refused(run: Run, size: int) -> None:
    path = run.path / "last.safetensors"
    data = path.read_bytes()
    path.write_bytes(data + b"xyz" if size == 3 else data[:size])
    with pytest.raises(UserError, match=r"last\.safetensors is damaged: .* byte \d+"):
        load_safetensors(path)


def test_a_header_that_is_not_json_is_refused(run: Run) -> None:
    path = run.path / "last.safetensors"
    data = bytearray(path.read_bytes())
    data[8:12] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        load_safetensors(path)


def test_tensors_that_do_not_fit_are_named_and_nothing_is_changed() -> None:
    into = {"a": Tensor.zeros(2, 3).contiguous().realize(), "b": Tensor.zeros(1).contiguous().realize()}
    with pytest.raises(UserError, match=r"b \(1,\) is missing; c \(1,\) is unknown; a is \(3, 2\) .* \(2, 3\)"):
        fill(into, {"a": Tensor.ones(3, 2), "c": Tensor.ones(1)}, "x")
    assert not into["a"].numpy().any()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole(path) as new:
        new.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(UserError, match="can't be written"), whole(path) as new:
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
