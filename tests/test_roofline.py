"""What is counted in a step that is compiled for a GPU, and bounds on what GPT-2's step may take there.

They need CUDA's compiler (libnvrtc or nvcc) and no GPU.
"""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from test_cli import refused
from tinygrad import Tensor, dtypes
from tinygrad.helpers import Context

from commands import info, roofline
from commands.info import compiled_step
from commands.options import Options
from gpt import GPTConfig
from runtime.compiled import jit
from runtime.device import compiling_for
from runtime.errors import UserError


@pytest.fixture(scope="module")
def compiling() -> Iterator[None]:
    try:
        with compiling_for("sm_89"):
            yield
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("dtype", [dtypes.half, dtypes.float32])
def test_a_matmul_is_counted_with_its_flops_its_bytes_and_its_tensor_cores(dtype, compiling) -> None:
    n = 256
    a, b = (Tensor(np.zeros((n, n), np.float16 if dtype == dtypes.half else np.float32)).realize() for _ in "ab")
    with roofline.recorded() as steps:
        jit(lambda a, b: (a @ b).contiguous().realize())(a, b)
    step = roofline.count(steps)
    assert len(step.kernels) == 1
    assert step.tensor == (2 * n**3 if dtype == dtypes.half else 0)
    assert 2 * n**3 <= step.flops < 2.1 * n**3
    assert step.bytes == step.memory == 3 * n * n * dtype.itemsize


def test_an_estimate_is_the_longer_of_arithmetic_and_traffic_of_each_kernel() -> None:
    gpu = roofline.GPU("test", tensor=100.0, plain=10.0, bandwidth=5.0, memory=1.0, processors=4)
    busy = roofline.Kernel("busy", flops=220.0, tensor=200.0, bytes=5.0, source="", blocks=4)  # 2 s, 2 s and 1 s
    moving = roofline.Kernel("moving", flops=10.0, tensor=0.0, bytes=15.0, source="", blocks=4)  # 1 s and 3 s
    assert roofline.Step([busy, moving], 0).estimate(gpu) == 4.0 + 3.0


def test_a_kernel_of_few_blocks_has_a_share_of_the_gpu_and_one_of_long_loops_waits() -> None:
    gpu = roofline.GPU("test", tensor=100.0, plain=10.0, bandwidth=5.0, memory=1.0, processors=4)
    alone = roofline.Kernel("alone", flops=20.0, tensor=0.0, bytes=0.0, source="", blocks=1)
    assert alone.seconds(gpu) == 2.0 * 4
    long = roofline.Kernel("long", flops=0.0, tensor=0.0, bytes=5.0, source="", turns=round(4 / roofline.TURN))
    waiting = roofline.Step([alone, long, long], 0).waiting(gpu)
    assert list(waiting) == [long] and waiting[long] == pytest.approx(2 * (4 - 1))


def test_turns_are_those_of_loops_that_read_memory_one_inside_another(compiling) -> None:
    """(4, 4096) summed over rows and columns to one number: a thread of tinygrad's kernel goes through all in turn."""
    x = Tensor(np.zeros((4, 4096), np.float32)).realize()
    with Context(NOOPT=1), roofline.recorded() as steps:
        jit(lambda x: x.sum().realize())(x)
    kernel, = roofline.count(steps).kernels
    assert (kernel.blocks, kernel.threads, kernel.turns) == (1, 1, 4 * 4096)


@pytest.fixture(scope="module")
def step(compiling) -> tuple[roofline.Step, int]:
    """A small GPT-2's step in bfloat16, and the FLOPs that the formula gives for it. Its tokens fill no whole tiles."""
    config = GPTConfig(block_size=256, vocab_size=2041, n_layer=2, n_head=4, n_embd=256)
    options = Options(batch_size=4, block_size=256, dtype="bfloat16")
    return compiled_step(config, options), config.flops_per_token * 4 * 256


def test_a_step_multiplies_in_tensor_cores_and_computes_little_twice(step) -> None:
    counted, formula = step
    assert counted.tensor / counted.flops > 0.95
    assert 0.8 < counted.flops / formula < 1.15
    names = {k.name for k in counted.kernels if not k.name.startswith(("r_", "E_"))}
    kinds = {"attention", "embed", "adamw", "matmul", "layernorm", "columns", "cross", "squares", "gradient"}
    assert {name.split("_")[0] for name in names} == kinds
    for taken_in in ("bias", "bias_gelu", "bias_add", "slope"):  # by the kernel of a product
        assert any(re.match(rf"matmul_\w+x\d+_{taken_in}$", name) for name in names)
    assert not any("mma.sync" in k.source and k.name.startswith("r_") for k in counted.kernels)


def test_no_kernel_of_few_threads_goes_through_long_loops(step) -> None:
    """The norm of the gradient, the mean of the losses, sums over all tokens: tinygrad gives some 16 threads."""
    counted, _ = step
    long = {k.name: (k.blocks, k.threads, k.turns) for k in counted.kernels if k.turns > 64}
    assert all(blocks * threads > 4096 for blocks, threads, _ in long.values()), long


BYTES, MEMORY, KERNELS = 304e6, 58e6, 163  # counted with these kernels; less is welcome, and then these change


def test_a_step_moves_no_more_than_it_did(step) -> None:
    counted, _ = step
    assert BYTES / 1.15 < counted.bytes < BYTES * 1.15
    assert MEMORY / 1.15 < counted.memory < MEMORY * 1.15
    assert len(counted.kernels) < KERNELS * 1.15


def test_info_prints_what_was_counted_and_calls_an_estimate_one(step, monkeypatch, capsys) -> None:
    counted, _ = step
    monkeypatch.setattr(info, "compiled_step", lambda config, options: counted)
    info.info(["--preset", "shakespeare-char", "--device", "cuda:sm_89", "--batch-size", "7"])
    lines = capsys.readouterr().out.splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("a step of")) :]
    words = ["a", "kernels", "FLOPs", "traffic", "memory", "estimate", "waiting", "estimate", "waiting"]
    assert [line.split()[0] for line in lines[:9]] == words
    assert "7 x 256 tokens in bfloat16, compiled for sm_89 and not run" in lines[0]
    assert f"{len(counted.kernels)}, of " in lines[1] and f"{counted.tensor / counted.flops:.1%} of them" in lines[2]
    assert f"{counted.bytes / 1e9:.2f} GB" in lines[3] and f"{counted.memory / 1e9:.2f} GB" in lines[4]
    for gpu, line, waiting in zip(roofline.GPUS, lines[5:9:2], lines[6:9:2]):
        assert gpu.name in line and f"no less than {1e3 * counted.estimate(gpu):.2f} ms" in line
        assert gpu.name in waiting and f"{1e3 * sum(counted.waiting(gpu).values()):.2f} ms more" in waiting
    worst = next(iter(counted.waiting(roofline.GPUS[0])))
    assert f"{worst.blocks:,} blocks of {worst.threads} threads, {worst.turns:,} turns" in lines[9]


def test_only_an_architecture_of_nvidias_can_be_asked_for(script) -> None:
    for device in ("cuda", "cuda:4090", "cpu", "metal:sm_89"):
        refused(script("gpt.py", "info", "--preset", "gpt2", "--device", device), "sm_89")
