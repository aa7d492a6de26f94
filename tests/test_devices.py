"""Several devices are one: two of the CPU's stand for two GPUs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from commands.options import Options
from gpt import GPT, GPTConfig, dropout_seeds
from runtime.compiled import Inputs, buffers_of
from runtime.device import open_devices
from runtime.errors import UserError
from runtime.run import Run
from trainer import Task, Trainer

TWO = ("CPU", "CPU:1")


def trainer(devices: tuple[str, ...], folder: Path | str = "unused", accum: int = 1, dropout: float = 0.0) -> Trainer:
    config = GPTConfig(block_size=8, vocab_size=33, n_layer=1, n_head=2, n_embd=16, dropout=dropout)
    model = GPT(config)
    if devices:
        Tensor.realize(*[p.shard_(devices) for p in get_state_dict(model).values()])
    o = Options(steps=20, warmup=5, lr=1e-2, min_lr=1e-2, batch_size=4, grad_accum=accum)

    def batch(i: int) -> tuple[np.ndarray, ...]:
        x = np.random.default_rng((0, i)).integers(0, 33, (4, 8), dtype=np.int32)
        return (x, (x * 3 + 1) % 33, *([dropout_seeds(config, 0, i)] if dropout else []))

    return Trainer(Task(model, GPT.loss, batch, dict), o, Run(folder))


def steps(t: Trainer, count: int) -> np.ndarray:
    return np.array([[value.item() for value in t.take_step()] for _ in range(count)])


@pytest.mark.parametrize(("accum", "dropout"), [(1, 0.0), (2, 0.2)])
def test_two_devices_have_the_losses_and_gradients_of_one_at_the_same_batch(accum: int, dropout: float) -> None:
    one, two = (trainer(devices, accum=accum, dropout=dropout) for devices in ((), TWO))
    a, b = steps(one, 12), steps(two, 12)
    assert a[-1, 0] < a[0, 0] - 0.3
    np.testing.assert_allclose(b[:, 0], a[:, 0], rtol=0, atol=1e-5)  # losses
    np.testing.assert_allclose(b[:, 1], a[:, 1], rtol=1e-4)  # norms of gradients
    for name, p in two.params.items():
        assert p.device == TWO
        first, second = (np.frombuffer(buffer.as_memoryview(), np.float32) for buffer in buffers_of(p))
        assert np.array_equal(first, second), f"{name} isn't the same on both"


def test_each_device_holds_its_share_of_a_batch_and_all_of_a_vector() -> None:
    inputs = Inputs(TWO)
    for start in (0, 100):  # fresh tensors, then the same filled anew
        x, v = inputs(np.arange(start, start + 12, dtype=np.int32).reshape(4, 3), np.array([start, 7.0], np.float32))
        parts = [np.frombuffer(b.as_memoryview(), np.int32) - start for b in buffers_of(x)]
        assert [p.tolist() for p in parts] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
        for b in buffers_of(v):
            assert np.frombuffer(b.as_memoryview(), np.float32).tolist() == [start, 7]


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
    with pytest.raises(UserError, match="--batch-size 5 can't be shared equally by --devices 2"):
        Options(batch_size=5, devices=2).check()
    with pytest.raises(UserError, match="--devices 2: there is no CUDA(:1)? that can be used"):
        open_devices("CUDA", 2)
    assert open_devices("CPU:1", 2) == ("CPU:1", "CPU:2")


def test_the_command_line_trains_on_two_devices_and_writes_from_one(corpus: Path, script, tmp_path: Path) -> None:
    args = ["gpt.py", "--data", corpus, *TINY, "--steps", 3, "--eval-interval", 3, "--device", "cpu"]
    done = script(*args, "--devices", 2, "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "devices  CPU, CPU:1: 2 windows of a batch on each" in done.stdout
    assert "val_loss" in Run(tmp_path / "run").metrics()[-1]
    assert len((tmp_path / "run" / "sample.txt").read_text()) > 250


def test_what_devices_send_is_the_gradients_and_the_tables_twice() -> None:
    command = [sys.executable, "-m", "benchmarks.traffic", "--preset", "shakespeare-char-cpu", "--n-layer", "1"]
    done = subprocess.run([*command, "--dtype", "float32"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parameters = GPTConfig(64, 65, 1, 4, 128).parameters
    expected = 4 * (parameters + 65 * 128) / 1e6  # the table's gradient comes in two parts, embedding and head
    assert done.stdout.startswith(f"{parameters:,} parameters")
    assert float(done.stdout.split("sends ")[1].split()[0]) == pytest.approx(expected, abs=0.06)
