"""Tensors in files: of the published format, the same to the last bit when they are read, and refused if damaged."""

import json
from pathlib import Path

import numpy as np
import pytest
from tinygrad import Tensor

from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import copy_into, load_safetensors, number_in

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5], np.float32)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.new(tmp_path / "run", "gpt")
    run.save("last", {k: Tensor(v) for k, v in WEIGHTS.items()}, {"step": 3, "best": None})
    return run


def test_what_is_saved_is_loaded_to_the_last_bit(run: Run) -> None:
    tensors, metadata = run.load("last")
    assert metadata == {"step": 3, "best": None}
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
        copy_into(into, {"a": Tensor.ones(3, 2), "c": Tensor.ones(1)}, "x")
    assert not into["a"].numpy().any()


@pytest.mark.parametrize("value", [10**400, float("nan"), float("-inf"), True, "4", None, [4]])
def test_metadata_that_are_no_number_are_named_and_refused(value: object) -> None:
    assert number_in({"alpha": 4}, "alpha", Path("x")) == 4 and number_in({"alpha": -0.5}, "alpha", Path("x")) == -0.5
    with pytest.raises(UserError, match="the alpha in its metadata is"):
        number_in({"alpha": value}, "alpha", Path("x"))
