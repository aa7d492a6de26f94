"""The inputs of a compiled step: always the newest arrays, and only of the shape that it was compiled for."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT
from tinygrad import TinyJit

from runtime.compiled import Inputs


def test_inputs_hold_the_newest_arrays_even_while_a_step_still_reads_the_old_ones() -> None:
    inputs = Inputs()
    step = TinyJit(lambda x, y: (x.float() @ x.float().T + y).sum(0).contiguous().realize())
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, 9, (200, 200), dtype=np.int32)[:, ::2], rng.standard_normal(200).astype(np.float32)
        result = step(*inputs(x, y))
        inputs(np.zeros_like(x), np.zeros_like(y))  # without waiting for the result
        assert np.allclose(result.numpy(), (x.astype(np.float64) @ x.T + y).sum(0), rtol=1e-5)


def test_inputs_refuse_another_shape_or_dtype() -> None:
    inputs = Inputs()
    inputs(np.zeros((2, 3), np.float32))
    for other in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.int32)):
        with pytest.raises(AssertionError, match="one shape"):
            inputs(other)


DROPPED = """
import gc, threading
from tinygrad import Device, Tensor
from runtime.compiled import jit

x = Tensor.ones(4, 4).contiguous().realize()
step = jit(lambda x: ((x + 1).contiguous() @ x).contiguous().sum().realize())
for _ in range(3):
    step(x).item()
go = threading.Event()
Device["CPU"].tasks.put([lambda thread: (go.wait(), gc.collect()), 1, 0])  # the collector runs in the worker thread,
step(x)  # while there is work of a step left to do
gc.disable()
ring = [step]
ring.append(ring)  # only the collector can free it
del step, ring
go.set()
Device["CPU"].synchronize()
print((Tensor.ones(3).contiguous() + 1).tolist())
"""


def test_a_dropped_step_that_is_freed_in_the_worker_thread_does_not_hang() -> None:
    """Without `_outside_workers` in runtime/compiled.py it waits for itself for ever."""
    done = subprocess.run([sys.executable, "-c", DROPPED], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.stdout == "[2.0, 2.0, 2.0]\n", done.stderr
