"""What the tests share: a small text, a way to run a script as a user does, a model small enough to check by hand."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest
from tinygrad import Tensor
from tinygrad.helpers import Context
from tinygrad.nn.state import get_state_dict

from commands.gpt import main
from gpt import GPT, GPTConfig
from runtime.device import open_device

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts into the background without it

# As the user has it: without the compiler that importing runtime.device sets.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("DEV", "CUDA", "CC")}
ROOT = Path(__file__).resolve().parent.parent
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"  # used where it lies beside the checkout


@pytest.fixture(scope="session", autouse=True)
def device() -> str:
    return open_device()


@pytest.fixture
def on_cuda() -> Iterator[None]:
    """Tensors are made on an NVIDIA GPU meanwhile, or on the stand-in of cuda_driver.c."""
    if not cuda_on_cpu.open_here():
        pytest.skip("there is no GPU, and no ziglang for one that stands in")
    with Context(DEV="CUDA"):
        yield


@pytest.fixture
def small() -> GPT:
    """Two layers and two heads of four channels: 1,992 parameters, all moved off their initial values."""
    return perturbed(GPT(GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8)))


def perturbed(model: GPT) -> GPT:
    """Add noise to every parameter: a bias that is zero or a LayerNorm weight that is one hides mistakes."""
    rng = np.random.default_rng(7)
    for p in get_state_dict(model).values():
        p.assign(Tensor(p.numpy() + 0.2 * rng.standard_normal(p.shape).astype(np.float32))).realize()
    return model


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 20,000 characters with words to learn, the same on every machine."""
    rng = np.random.default_rng(0)
    words = ["the", "king", "and", "queen", "of", "night", "sing", "to", "a", "cold", "bright", "star,", "never;", "O"]
    lines = [" ".join(rng.choice(words, size=rng.integers(3, 9))) for _ in range(600)]
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n".join(lines)[:20_000], encoding="utf-8")
    return path


@pytest.fixture
def script(tmp_path: Path):
    """Run `python SCRIPT ARGS` in an empty folder; the finished process, with its output."""

    def run(*args: object, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / str(args[0])), *map(str, args[1:])]
        environment = {**ENVIRONMENT, "DATA_DIR": str(tmp_path / "data"), **env}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture
def gpt_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`python gpt.py ARGS` in an empty folder, but within this process: what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "data"))

    def call(*args: object) -> str:
        capsys.readouterr()
        main([str(a) for a in args])
        return capsys.readouterr().out

    return call


# Options of a model that trains 20 steps in a blink.
TINY = [
    "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "4",
    "--eval-batches", "2", "--log-interval", "1",
]
