"""One kernel for the whole model: its logits, and that `gpt.py sample` reads with it what it says it reads."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY
from test_cfile import LETTERS, checkpoint, trained_bpe, variant_logits
from test_changed_models import far_neighbours, post_layernorm
from tinygrad import Tensor

import variants  # noqa: F401  (its models are known from here on)
from commands.sample import sample
from commands.sampler import make_sampler
from exchange.layout import Checkpoint
from exchange.reader import Reader, make_reader
from generate import Choice, stream
from gpt import Block, build
from kernels import cpu
from kernels.graph import CORES, cpu_cores
from runtime.device import open_device

pytestmark = pytest.mark.skipif(bool(cpu.problem()), reason="there are no C kernels here")
GPT2 = {"pos": "learned", "n_kv_head": 4, "norm": "layernorm", "norm_eps": 1e-5, "mlp": "gelu", "qk_norm": False,
        "rope_theta": 1e4, "tied": True}
LLAMA = {"pos": "rope", "n_kv_head": 2, "norm": "rmsnorm", "mlp": "swiglu", "tied": False, "norm_eps": 1e-3,
         "n_inner": 36, "bias": False}


def small_model(T: int, C: int = 40, **more: Any) -> Checkpoint:
    """Two layers and four heads, with random weights everywhere."""
    return checkpoint(trained_bpe(), T, 2, 4, C, **more)


def float64_logits(saved: Checkpoint, ids: Sequence[int]) -> np.ndarray:
    weights = {name: t.numpy().astype(np.float64) for name, t in saved.tensors.items()}
    return variant_logits(weights, {**GPT2, **saved.model}, list(ids))


@pytest.mark.parametrize("more", [
    {}, {"bias": False}, {"C": 200}, LLAMA, {"pos": "none", "n_kv_head": 1, "norm": "rmsnorm"},
    {"pos": "rope", "qk_norm": True, "mlp": "relu2", "rope_theta": 100.0},
], ids=["gpt2", "no-bias", "two-cores", "llama", "none-multi-query", "qk-norm-relu2"])
def test_a_long_prompt_and_the_steps_after_it_are_numpys(more: dict[str, Any]) -> None:
    """The prompt is longer than the 128 positions that go through the model together; other tokens were read before."""
    saved = small_model(**{"T": 150, **more})
    reader = make_reader(build(saved), "float32")
    assert reader and cpu_cores(reader.flops) == min(CORES, 2 if more.get("C") == 200 else 1)
    ids = np.random.default_rng(0).integers(0, saved.model["vocab_size"], 145).tolist()
    reader.read(ids[5:9], 0)
    for n in (140, 141, 142):
        logits = reader.read(ids[:140], 0) if n == 140 else reader.read([ids[n - 1]], n - 1)
        expected = float64_logits(saved, ids[:n])
        assert np.abs(logits[0] - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype, most", [("bfloat16", 0.02), ("int8", 0.05)])
def test_fewer_bits_are_those_of_the_models_own_pass(dtype: str, most: float) -> None:
    saved = small_model(60, C=64)
    model, ids = build(saved), [5, 7, 30, 41, 2, 9]
    reader = make_reader(model, dtype)
    assert reader
    logits, whole = reader.read(ids, 0)[0], model(Tensor([ids])).numpy()[0, -1]
    exact = float64_logits(saved, ids)
    assert np.abs(logits - whole).max() < 0.01 * np.abs(exact).max()
    assert 1e-4 < np.abs(logits - exact).max() / np.abs(exact).max() < most


def test_a_model_that_model_c_does_not_know_is_left_as_it_is() -> None:
    model = build(checkpoint(LETTERS, 8, 1, 2, 8, window=4, norm="rmsnorm", pos="none"))
    assert make_reader(model, "float32") is None and isinstance(model.wte.weight, Tensor)


@pytest.mark.parametrize(
    "prompt, change", [([1], post_layernorm), ([2, 0, 1, 7], post_layernorm), ([1], far_neighbours)]
)
def test_a_changed_model_is_not_read_by_the_kernel_of_another(
    prompt: list[int], change: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = checkpoint(LETTERS, 16, 2, 2, 8)
    monkeypatch.setattr(Block, "__call__", change)
    plain, model, ids = build(saved), build(saved), list(prompt)
    text = "".join(piece for _, piece in stream(model, LETTERS, [ids], 20, Choice(0),
                                                sampler=make_sampler(model, "float32")))
    for _ in range(20):
        ids.append(int(plain(Tensor([ids[-16:]])).numpy()[0, -1].argmax()))
    assert text == LETTERS.decode(ids[len(prompt) :])
    assert capsys.readouterr().err.count("the kernel for a whole model doesn't follow this one") == 1


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("reader") / "run"
    command = [sys.executable, ROOT / "gpt.py", "--data", corpus, "--out", folder, *TINY, "--steps", "30"]
    subprocess.run([*map(str, command), "--eval-interval", "30"], env=ENVIRONMENT, check=True, capture_output=True)
    return folder


def test_sample_reads_by_the_one_kernel_and_writes_the_text_of_the_formulas(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also beyond the context, where each token takes a pass over the whole window."""
    open_device("cpu")
    argv = [str(run_folder), "--prompt", "the ", "--max-new-tokens", "60", "--temperature", "0"]
    read, calls = Reader.read, list[int]()

    def counted(reader: Reader, ids: Sequence[int], start: int) -> np.ndarray:
        calls.append(len(ids))
        return read(reader, ids, start)

    monkeypatch.setattr(Reader, "read", counted)
    sample(argv)
    text = capsys.readouterr().out
    assert len(calls) == 61 and max(calls) > 1 and calls[2] == 1  # the first is the one that is compared
    command = [sys.executable, str(ROOT / "gpt.py"), "sample", *argv]
    done = subprocess.run(command, env={**ENVIRONMENT, "KERNELS": "0"}, check=True, capture_output=True, text=True)
    assert re.sub(r"\s+$", "", done.stdout) == re.sub(r"\s+$", "", text)


def test_without_tinygrads_jit_a_token_still_takes_one_position(run_folder: Path) -> None:
    """Kernels of ours learn their variables where a step is captured."""
    command = [sys.executable, str(ROOT / "gpt.py"), "sample", str(run_folder), "--max-new-tokens", "5"]
    with_jit, without = (
        subprocess.run(command, env={**ENVIRONMENT, "JIT": jit}, check=True, capture_output=True, text=True)
        for jit in ("1", "0")
    )
    assert without.stdout == with_jit.stdout and "slower" not in without.stderr
