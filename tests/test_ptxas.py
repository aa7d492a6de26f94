"""NVIDIA's assembler on every CUDA kernel of kernels/ that a training step launches: no error, and no register spilled.

It needs ptxas (in the CUDA toolkit, or in the wheel nvidia-cuda-nvcc-cu12), and libnvrtc or nvcc; no GPU. What it said
of a kernel is kept in the user's cache folder by the hash of the kernel: a kernel is assembled once. nvcc takes seconds
for each of some hundred, so a run takes on 24 new ones; PTXAS_NEW=1000 takes on all.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tinygrad import Device, Tensor, dtypes

from commands.options import PRESETS, Options
from gpt import GPT
from kernels import graph, matmul
from kernels.tiles import TILES, Product
from runtime.device import compiling_for
from runtime.errors import UserError
from runtime.files import atomic_write
from trainer import Step, Task

ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_120")


def ptxas() -> str | None:
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(folder, "cuda_nvcc", "bin") for folder in (spec and spec.submodule_search_locations) or ()]
    path = os.pathsep.join(map(str, (os.environ.get("PATH", ""), "/usr/local/cuda/bin", *wheels)))
    return shutil.which("ptxas", path=path)


@pytest.fixture
def sources(monkeypatch) -> dict[str, str]:
    """The kernels of what is built meanwhile, by name. Nothing is scheduled, let alone run."""
    found: dict[str, str] = {}
    program = graph._program

    def recorded(device, name, text, *rest):
        found[name] = text
        return program(device, name, text, *rest)

    monkeypatch.setattr(graph, "_program", recorded)
    monkeypatch.setattr(Tensor, "realize", lambda self, *others, **options: self)
    return found


def build_step(preset: str, dtype: str) -> None:
    o = replace(Options(**PRESETS[preset]), dtype=dtype, n_layer=1, dropout=0.1 if dtype == "float16" else 0.0)
    config = o.config(50257 if o.tokenizer == "gpt2" else 65)
    model = GPT(config, seed=None)
    model.dtype = dtype
    x = Tensor.empty(o.batch_size, config.block_size, dtype=dtypes.int32)
    seeds = (Tensor.empty(4, dtype=dtypes.uint32),) if config.dropout else ()
    step = Step(Task(model, GPT.loss, lambda i: (np.zeros(1),), dict), o)
    step.take(Tensor.empty(3), x, x, *seeds)


def build_tiles() -> None:
    """Products with all that may be taken in, in every tile that a GPU may choose."""
    m, n, k = 12288, 3072, 768
    for tile in TILES:
        for kind, a, b in (("nn", (m, k), (k, n)), ("nt", (m, k), (n, k)), ("tn", (k, m), (k, n))):
            x, y, like = (Tensor.empty(*shape, dtype=dtypes.bfloat16) for shape in (a, b, (m, n)))
            p = Product(kind, m, n, k, "bfloat16", kind == "tn")
            taken_in = {"bias": Tensor.empty(n), "gelu": True, "add": like} if kind == "nn" else {"before": like}
            matmul.multiply(p, tile, x, y, **({} if kind == "tn" else taken_in))


def assembled(source: str, compiler: str, new: list[str]) -> dict[str, str]:
    """What is wrong with a kernel on each architecture; nothing where all is well, or where it would be one more in
    the list `new` than this run takes on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    name = hashlib.sha256((version + source).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "llm-fundamentals", "ptxas")
    kept, text = folder / f"{name}.json", folder / f"{name}.ptx"
    if kept.exists():
        return json.loads(kept.read_text())
    new.append(name)
    if len(new) > int(os.environ.get("PTXAS_NEW", "24")):
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    made = Device["NULL"].renderer.compiler.compile(source)
    if b".version" in made:  # libnvrtc's
        text.write_bytes(made.rstrip(b"\0"))
    else:  # nvcc has assembled it
        text.with_suffix(".cu").write_text(source)
        command = ["nvcc", "-arch=sm_80", "-ptx", "-o", str(text), str(text.with_suffix(".cu"))]
        subprocess.run(command, check=True, capture_output=True)
        text.with_suffix(".cu").unlink()
    wrong = {}
    for arch in ARCHITECTURES:
        command = [compiler, "-v", f"-arch={arch}", str(text), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "is not defined for option" in done.stderr:  # an older one
            continue
        spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
        if done.returncode or not spilled or any(int(n) for n in spilled):
            wrong[arch] = done.stderr
    text.unlink()
    with atomic_write(kept) as file:
        file.write_text(json.dumps(wrong))
    return wrong


def test_no_kernel_is_refused_by_ptxas_or_spills_registers(sources: dict[str, str]) -> None:
    if not (compiler := ptxas()):
        pytest.skip("there is no ptxas")
    try:
        with compiling_for("sm_80"):
            for preset, dtype in (("shakespeare-char", "float16"), ("tinystories", "float32"), ("gpt2", "bfloat16")):
                build_step(preset, dtype)
            build_tiles()
            assert {name.split("_")[0] for name in sources} >= {
                "adamw", "attention", "columns", "cross", "embed", "gradient", "layernorm", "matmul", "matmul32",
                "squares",
            }
            new: list[str] = []
            wrong = {name: problem for name, text in sources.items() if (problem := assembled(text, compiler, new))}
    except UserError as error:
        pytest.skip(str(error))
    assert not wrong
