"""The inputs of a compiled step: always the newest arrays, and only of the shape that it was compiled for."""

import numpy as np
import pytest
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
