"""The GPU benchmark, as far as a machine without a GPU can tell: on the CPU, with a model made for it."""

import json
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT

from benchmarks import gpu
from commands.options import PRESETS
from commands.roofline import tensor_peak
from runtime.device import describe_device, open_device


def benchmark(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *args]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif("CUDA" in describe_device(open_device()), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    done = benchmark()
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no NVIDIA GPU" in done.stderr, done.stderr
    assert done.stdout == ""


def test_it_measures_ours_and_ends_with_a_table_and_a_line_of_json() -> None:
    done = benchmark("--device", "cpu", "--only", "tiny", "--rounds", "1", "--steps", "2", "--no-torch", "--beam", "1")
    assert done.returncode == 0, done.stderr
    *_, row, blank, last = done.stdout.splitlines()
    result = json.loads(last)
    assert blank == "" and "ours, --beam" in row and "tiny  ours " in done.stdout
    assert [r["side"] for r in result["rows"]] == ["ours", "ours, --beam"]
    assert result["driver"] is result["peak"] is None
    for r in result["rows"]:
        assert r["tokens_per_step"] == 32 and r["mfu"] is None
        assert r["tokens_per_s"] == pytest.approx(32_000 / r["ms"]) and 4 < r["first_loss"] < 4.4
        assert r["first_s"] > 0 and 4 * 4 * 4496 / 1e6 < r["memory_mb"] < 1  # parameters, gradients, two moments


def test_pytorch_takes_the_same_step() -> None:
    pytest.importorskip("torch", reason="PyTorch isn't installed")
    turns = [gpu.turn(gpu.Options("cpu", "tiny", steps=1, worker=side)) for side in ("ours", "eager")]
    assert turns[0]["loss"] == pytest.approx(turns[1]["loss"], abs=1e-5)


def test_a_program_that_fails_has_its_last_line_in_the_table_and_no_figures(tmp_path) -> None:
    failed = gpu.run(gpu.Options("nonsense"), "tiny", "ours", 0, 1, tmp_path)
    assert "--device nonsense isn't one of" in failed["error"]
    row = gpu.row("tiny", "ours", 0, [failed], 1e12)
    assert row["error"] == failed["error"] and "ms" not in row and failed["error"] in gpu.table([row])


def test_figures_of_a_row_follow_from_the_turns() -> None:
    turns = [{"seconds": s, "first": 9 - i, "loss": 4.0, "memory": m * 1e6} for i, (s, m) in
             enumerate([(0.1, 5), (0.2, 7), (0.9, 6)])]
    row = gpu.row("gpt2", "eager", 4, turns, 312e12)
    flops = (6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024) * 4 * 1024
    assert row["ms"] == 200 and row["tokens_per_s"] == 4096 / 0.2 and row["first_s"] == 9 and row["memory_mb"] == 7
    assert row["mfu"] == pytest.approx(flops / 0.2 / 312e12)
    assert "20,480" in gpu.table([row]) and "PyTorch" in gpu.table([row])


def test_the_largest_batch_is_the_first_that_fits(monkeypatch) -> None:
    answers = lambda o, work, side, batch, steps, cache: {"error": "out of memory"} if batch > 20 else {"loss": 1.0}
    monkeypatch.setattr(gpu, "run", answers)
    assert gpu.largest_batch(gpu.Options(), "gpt2", gpu.ROOT) == 16


def test_steps_are_as_large_as_the_presets_say() -> None:
    assert gpu.step_size("shakespeare-char", 0)[0] == 64 * 256
    assert gpu.step_size("gpt2", 5)[0] == 5 * 1024 and PRESETS["gpt2"]["batch_size"] == 12
    tokens, flops = gpu.step_size("grok", 0)
    assert tokens == 512 * 3
    # every matrix of 2 layers (196,608 each), 3 tokens: between all positions in one layer and in both
    assert 6 * 512 * 3 * 196_608 < flops < 6 * 512 * 3 * 2.5 * 196_608


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA GeForce RTX 4090", 165.2e12), ("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H200", 989.4e12), ("Tesla K80", None),
])
def test_a_device_has_its_published_peak_and_an_unknown_one_none(name: str, peak: float | None) -> None:
    assert tensor_peak(name) == peak
