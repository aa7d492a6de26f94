"""Several devices are one: two of the CPU's stand for two GPUs."""

import ctypes
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY

import lora
from commands.options import Options
from commands.train import take_rows
from gpt import GPT, GPTConfig, dropout_seeds
from runtime import ranks
from runtime.device import open_devices
from runtime.errors import UserError
from runtime.run import Run
from runtime.shares import Block, Share, Sum, address_of
from trainer import Task, Trainer

TWO = ("CPU", "CPU:1")


def trainer(devices: tuple[str, ...], folder: Path | str = "unused", accum: int = 1, dropout: float = 0.0) -> Trainer:
    config = GPTConfig(block_size=8, vocab_size=33, n_layer=1, n_head=2, n_embd=16, dropout=dropout)
    o = Options(steps=20, warmup=5, lr=1e-2, min_lr=1e-2, batch_size=4, grad_accum=accum)

    def batch(i: int) -> tuple[np.ndarray, ...]:
        x = np.random.default_rng((0, i)).integers(0, 33, (4, 8), dtype=np.int32)
        return (x, (x * 3 + 1) % 33, *([dropout_seeds(config, 0, i)] if dropout else []))

    share = functools.partial(take_rows, config)
    return Trainer(Task(GPT(config), GPT.loss, batch, dict, devices=devices, take_rows=share), o, Run(folder))


def steps(t: Trainer, count: int) -> np.ndarray:
    return np.array([[value.item() for value in t.take_step()] for _ in range(count)])


@pytest.mark.parametrize(("devices", "accum", "dropout"), [(2, 1, 0.0), (3, 2, 0.2)])
def test_devices_have_the_losses_and_gradients_of_one_at_the_same_batch(
    devices: int, accum: int, dropout: float
) -> None:
    one, more = (trainer(names, accum=accum, dropout=dropout) for names in ((), open_devices("CPU", devices)))
    a, b = steps(one, 12), steps(more, 12)
    assert a[-1, 0] < a[0, 0] - 0.3
    np.testing.assert_allclose(b[:, 0], a[:, 0], rtol=0, atol=1e-5)  # losses
    np.testing.assert_allclose(b[:, 1], a[:, 1], rtol=1e-4)  # norms of gradients
    assert len(more.compiled.copies) == devices - 1
    for i, copy in enumerate(more.compiled.copies, 1):
        for name, p in copy.params.items():
            assert p.device == f"CPU:{i}" and more.params[name].device == "CPU"
            assert np.array_equal(p.numpy(), more.params[name].numpy()), f"{name} isn't the same on all"


def test_shares_cover_a_batch_once_and_differ_by_a_row_at_most() -> None:
    for size, count in ((4, 3), (12, 5), (7, 7), (480, 64)):
        rows = [Share(i, count).rows(size) for i in range(count)]
        assert [i for r in rows for i in range(r.start, r.stop)] == list(range(size))
        assert {r.stop - r.start for r in rows} <= {size // count, size // count + 1}


def test_a_run_begun_on_one_device_goes_on_on_two(tmp_path: Path) -> None:
    one = trainer((), tmp_path)
    steps(one, 3)
    one.save()
    two = trainer(TWO, tmp_path)
    two.resume()
    np.testing.assert_allclose(steps(two, 3)[:, 0], steps(one, 3)[:, 0], rtol=0, atol=1e-5)
    two.save()
    # The gradient of the keys' biases is 0: AdamW makes steps of its rounding errors.
    assert all(np.abs(t.numpy() - one.params[k].numpy()).max() < 1e-4 for k, t in Run(tmp_path).load("last")[0].items())


def test_a_device_that_is_not_there_and_a_batch_that_cant_be_shared_are_refused(monkeypatch) -> None:
    with pytest.raises(UserError, match="--batch-size 1 can't be shared by --devices 2: each device"):
        Options(batch_size=1, devices=2).check()
    with pytest.raises(UserError, match="--devices 2: there is no CUDA(:1)? that can be used"):
        open_devices("CUDA", 2)
    assert open_devices("CPU:1", 2) == ("CPU:1", "CPU:2")


def test_the_command_line_trains_on_two_devices_and_writes_from_one(corpus: Path, script, tmp_path: Path) -> None:
    args = ["gpt.py", "--data", corpus, *TINY, "--steps", 3, "--eval-interval", 3, "--device", "cpu"]
    done = script(*args, "--devices", 2, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "devices  CPU, CPU:1\n" in done.stdout
    assert "val_loss" in Run(tmp_path / "run").metrics()[-1]
    assert len((tmp_path / "run" / "sample.txt").read_text()) > 250


def test_what_devices_send_is_the_gradients_once_a_step_whatever_is_accumulated() -> None:
    command = [sys.executable, "-m", "benchmarks.traffic", "--preset", "shakespeare-char-cpu", "--n-layer", "1"]
    done = subprocess.run([*command, "--grad-accum", "3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parameters = GPTConfig(64, 65, 1, 4, 128).parameters
    expected = 4 * parameters / 1e6  # of two devices each sends one half, and then the sum of the other
    assert done.stdout.startswith(f"{parameters:,} parameters")
    assert float(done.stdout.split("sends ")[1].split()[0]) == pytest.approx(expected, abs=0.06)


def test_alone_a_program_imports_no_mpi_and_takes_the_step_in_one_piece(corpus: Path, tmp_path: Path) -> None:
    program = """
import sys, runtime.script
from commands.gpt import main
main(sys.argv[1:])
print("mpi:", "mpi4py" in sys.modules)
"""
    args = [*TINY, "--data", str(corpus), "--steps", "2", "--out", str(tmp_path / "run"), "--device", "cpu"]
    env = {**os.environ, "PMI_SIZE": "1", "PMI_RANK": "0", "PYTHONPATH": str(ROOT), "DATA_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program, *args], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("mpi: False\n"), done.stderr
    assert "ranks" not in done.stdout
    alone = trainer(())
    steps(alone, 1)
    assert not alone.compiled.in_parts and not alone.compiled.sums  # no memory for sums, no second compiled part


def test_processes_without_mpi4py_or_of_another_mpi_are_refused_once(script) -> None:
    for rank, number in (("0", 1), ("1", 0)):
        done = script("gpt.py", "--steps", 1, PMI_SIZE="2", PMI_RANK=rank)
        assert done.returncode == 2 and done.stderr.strip().count("\n") == 0, done.stderr
        assert ("2 processes were started" in done.stderr) == bool(number), done.stderr


def test_cores_are_shared_out_unless_the_launcher_has_done_it() -> None:
    both, four = [0, 1], [2, 3, 6, 7]
    assert [ranks.share_cores([both, both], i) for i in (0, 1)] == [[0], [1]]
    assert [ranks.share_cores([both] * 3, i) for i in (0, 1, 2)] == [[0], [0], [1]]
    assert [ranks.share_cores([four, four], i) for i in (0, 1)] == [[2, 3], [6, 7]]
    assert [ranks.share_cores([[0], [1]], i) for i in (0, 1)] == [[0], [1]]


@pytest.mark.parametrize("aware", [False, True])
def test_a_gpus_gradients_are_added_up_over_the_ranks_where_mpi_reaches_them(
    aware: bool, on_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through page-locked memory, or in the GPU's own if MPI says that it can; here the other rank has the same."""
    block, places = Block({"a": (3,), "b": (2, 20)}, "CUDA"), list[int]()
    def add(address: int, count: int) -> None:
        places.append(address)
        numbers = np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))
        numbers *= 2

    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "reaches_gpus", lambda: aware)
    monkeypatch.setattr(ranks, "sum_in_place", add)
    total = Sum([block])
    for start in (1.0, 5.0):
        for t in block.tensors.values():
            t.assign(t * 0 + start).realize()
        total()
        assert all((t.numpy() == 2 * start).all() for t in block.tensors.values())
    assert places[0] == places[1] and (places[0] == address_of(block.memory)) == aware


def test_adapters_are_trained_on_copies_of_the_frozen_weights() -> None:
    """LoRA: what is trained is a part of the model, and the rest has to be on every device too."""
    def adapted(devices: tuple[str, ...]) -> Trainer:
        config = GPTConfig(block_size=8, vocab_size=33, n_layer=1, n_head=2, n_embd=16)
        model = GPT(config)
        params = lora.adapt(model, 2, 16.0, "c_attn,c_proj", 0)
        x = np.random.default_rng(0).integers(0, 33, (5, 8), dtype=np.int32)
        task = Task(model, GPT.loss, lambda i: (x, (x * 3 + 1) % 33), dict, params=params, devices=devices)
        return Trainer(task, Options(steps=20, warmup=0, lr=0.1, min_lr=0.1, batch_size=5), Run("unused"))

    one, two = adapted(()), adapted(TWO)
    a, b = steps(one, 8), steps(two, 8)
    assert a[-1, 0] < a[0, 0] - 0.03
    np.testing.assert_allclose(b[:, 0], a[:, 0], rtol=0, atol=1e-5)  # losses
    np.testing.assert_allclose(b[:, 1], a[:, 1], rtol=1e-3)  # norms of gradients
    copy = two.compiled.copies[0]
    assert set(copy.params) == set(two.params) and all("lora_" in name for name in copy.params)
