"""`CUDA=1 python gpt.py` from the first line to the last, through tinygrad's own CUDA runtime.

It runs on the stand-in of cuda_driver.c, which fills memory with NaN, runs everything as late as a GPU may, and ends a
program that touches memory which isn't a buffer. The CPU's run is the oracle.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from cuda_losses import GPT, HARD, difference, launch, metrics, rows, run
from cuda_on_cpu import gpu, zig

pytestmark = pytest.mark.skipif(not zig(), reason="a driver that stands in for NVIDIA's needs ziglang, on Linux")
SMALL = ["gpt.py", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--block-size", "16", "--batch-size", "2"]
SMALL += ["--steps", "2", "--warmup", "0", "--log-interval", "1", "--eval-interval", "2", "--eval-batches", "2"]
SMALL += ["--dtype", "bfloat16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Callable[..., Path]:
    """The folder of a run; the same run is taken once."""
    known: dict[str, Path] = {}

    def at(command: list[str], device: str, **settings: object) -> Path:
        key = " ".join([*command, device, str(settings)])
        if key not in known:
            known[key] = run(command, folder, f"run{len(known)}", device, **settings)
        return known[key]

    return at


# Measured: see notes/cuda.md. The bound is some five times that.
BOUNDS = {"GPT, float32": 5e-6, "GPT, bfloat16": 2e-2, "GPT, float16": 3e-3, "grok.py": 5e-6, "bigram.py": 5e-5}
BOUNDS |= {"GPT, one and two GPUs, float32": 1e-6}


@pytest.mark.parametrize("name", BOUNDS)
def test_losses_are_those_of_the_cpu_and_of_one_device(name: str, corpus: Path, trained) -> None:
    """With accumulation and dropout. Two GPUs shuffle what they may, so that a missing wait shows."""
    first, second, devices = rows(corpus)[name]
    one, two = devices.split()
    shuffled = {"devices": 2, "seed": 3} if one == two else {}
    loss, norm = difference(trained(first, one), trained(second, two, **shuffled))
    print(f"| {name} | {loss:.1e} | {norm:.1e} |")
    assert loss < BOUNDS[name] and norm < max(1e-4, 4 * BOUNDS[name])


def test_any_order_that_a_gpu_may_choose_gives_the_same_bits(corpus: Path, trained) -> None:
    command = [*GPT, *HARD, "--data", str(corpus), "--dtype", "bfloat16"]
    a, b = trained(command, "cuda"), trained(command, "cuda", seed=7)
    assert metrics(a) == metrics(b) and (a / "last.safetensors").read_bytes() == (b / "last.safetensors").read_bytes()


def test_adapters_and_greedy_text_are_those_of_the_cpu(corpus: Path, trained, folder: Path) -> None:
    """LoRA on a run, and text written with the cache of keys and values."""
    command = [*GPT, *HARD, "--data", str(corpus), "--dtype", "float32"]
    base = trained(command, "cpu")
    lora = ["gpt.py", "--init-from", str(base), "--lora-rank", "2", "--data", str(corpus), "--batch-size", "2"]
    lora += ["--steps", "3", "--log-interval", "1", "--eval-interval", "3", "--eval-batches", "2", "--lr", "1e-2"]
    loss, norm = difference(trained(lora, "cpu"), trained([*lora, "--dtype", "float32"], "cuda"))
    assert loss < 5e-6 and norm < 1e-4
    sample = ["gpt.py", "sample", str(base), "--temperature", "0", "--max-new-tokens", "40", "--prompt", "the"]
    texts = [launch(sample, folder, device) for device in ("cpu", "cuda")]
    assert texts[0].returncode == texts[1].returncode == 0, texts[1].stderr
    assert texts[0].stdout == texts[1].stdout and len(texts[0].stdout) > 40


@pytest.fixture(scope="module")
def small(corpus: Path, folder: Path) -> tuple[str, dict[str, int]]:
    """What a small run printed, and what happened in the driver."""
    done = launch([*SMALL, "--data", str(corpus), "--out", "small"], folder, "cuda", log=folder / "small.json")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "small.json").read_text())


def test_a_run_says_what_it_runs_on_and_where_its_kernels_are_kept(small: tuple[str, dict[str, int]]) -> None:
    printed, happened = small
    assert "device   CUDA (sm_89)" in printed
    assert re.search("kernels  CUDA, for attention .* and AdamW\n", printed)
    assert f"the kernels are kept in {gpu()['CACHEDB']}\n" in printed
    assert happened["tensor_flops"] > 1e6 and happened["cuGraphLaunch"] >= 4


@pytest.mark.parametrize(("fail", "sentence"), [
    ("cuInit:100", "no NVIDIA GPU"),
    ("cuModuleLoadData:222", r"update the driver \(570 or later\), which knows CUDA 12.4 while libnvrtc is of 12.8, or "
                             r"`pip install 'nvidia-cuda-nvrtc-cu12==12.4.\*'`"),
    ("cuMemAlloc_v2:2:30", "memory.*smaller"),  # while the model is made
    ("cuMemAlloc_v2:2:{late}", "memory.*smaller"),  # while it evaluates or writes
    ("cuGraphLaunch:700:2", "CUDA error 700.*KERNELS=0"),
    ("cuGraphLaunch:701:2", "CUDA error 701.*KERNELS=0"),
])
def test_what_fails_on_a_gpu_is_one_sentence(fail: str, sentence: str, corpus: Path, folder: Path, small) -> None:
    fail = fail.format(late=small[1]["cuMemAlloc_v2"] - 4)
    done = launch([*SMALL, "--data", str(corpus), "--out", re.sub(r"\W", "", fail)], folder, "cuda", fail=fail)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert re.search(sentence, done.stderr), done.stderr


def python(program: str, folder: Path, **settings: object) -> str:
    """What a Python program of this project prints on a GPU."""
    (folder / "program.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{program}")
    done = launch([str(folder / "program.py")], folder, "cuda", **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


TIMED = """
import sys
from commands.gpt import main
from kernels import tuning
tuning.SMALLEST = 1 << 14  # a model as small as this one is in no need of it
main(sys.argv[1:])
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_gpu_with_a_name_times_its_products_and_trains_with_the_kernels(
    dtype: str, corpus: Path, folder: Path, small
) -> None:
    """As on every real GPU: the products are timed while the step is being captured."""
    (folder / "timed.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{TIMED}")
    command = [str(folder / "timed.py"), *SMALL[1:], "--dtype", dtype, "--data", str(corpus), "--out", f"timed-{dtype}"]
    settings = {"name": "NVIDIA of none", "cache": folder / "times"}
    done = launch(command, folder, "cuda", **settings)
    assert done.returncode == 0, done.stderr
    assert re.search("kernels  CUDA, for attention .* and AdamW\n", done.stdout)
    found = json.loads((folder / "times" / "llm-fundamentals" / "matmul.json").read_text())
    (key, times), = found.items()
    assert key.startswith("NVIDIA of none") and any(name.endswith(dtype) for name in times)
    assert all(len(by_tile) == 4 and min(by_tile.values()) > 0 for by_tile in times.values())  # tinygrad's and three
    if dtype == "bfloat16":
        losses = [[line["train_loss"] for line in metrics(folder / run)] for run in ("small", f"timed-{dtype}")]
        assert losses[1] == pytest.approx(losses[0], abs=5e-4)


def test_opening_a_device_waits_for_it(folder: Path) -> None:
    program = """
from runtime.device import open_device
from runtime.errors import UserError
try:
    open_device("cuda")
except UserError as error:
    print(error)
"""
    assert "CUDA error 719" in python(program, folder, fail="cuCtxSynchronize:719")


def test_cuda_is_chosen_before_tinygrads_own_driver_for_which_there_are_no_kernels(folder: Path) -> None:
    program = """
import os
del os.environ["CUDA"]
import tinygrad.runtime.ops_cuda as cuda, tinygrad.runtime.ops_nv as nv
nv.NVDevice = type("NVDevice", (cuda.CUDADevice,), {})  # as if it worked here
from runtime.device import open_device
print(open_device())
"""
    assert python(program, folder) == "CUDA\n"


PRESET = """
import os
from kernels import describe_kernels
from runtime.device import open_device
device = open_device()
assert describe_kernels(device).startswith("CUDA"), describe_kernels(device)
os.environ["CUDA_TEST_SKIP"] = "1"  # from here on
from commands.options import PRESETS, Options
from commands.train import make_task, prepare
from runtime.run import Run
from trainer import Trainer
o = Options(**{**PRESETS[PRESET], "grad_accum": 1, "eval_batches": 1, "data": TEXT})
setup = prepare(o, None, set(), device)
trainer = Trainer(make_task(setup), o, Run("unused"))
trainer.take_step()[0].item()
trainer.task.evaluate()
print(sum(int(p.numel()) for p in trainer.params.values()))
"""


def test_gpt2_fits_a_4090_in_legal_launches_and_pins_little_memory(corpus: Path, folder: Path) -> None:
    """In its full size, of which no kernel runs; the driver refuses what a GPU would refuse."""
    (folder / "long.txt").write_text(corpus.read_text() * 40)
    program = f"PRESET, TEXT = 'gpt2', {str(folder / 'long.txt')!r}\n{PRESET}"
    parameters = int(python(program, folder, log=folder / "preset.json").split()[-1])
    happened = json.loads((folder / "preset.json").read_text())
    assert 16 * parameters < happened["memory"] < 24e9
    assert happened["pinned"] < 1.2 * 4 * parameters
    assert happened["arguments"] <= 4096
