"""Runs the CUDA kernels of kernels/ on the CPU, inside tinygrad's graph: for tests without a GPU.

The source is compiled for the CPU as it is, but for mma.cuh, whose three instructions cuda_on_cpu.h emulates
from NVIDIA's description of them. tinygrad believes that these kernels are the CPU's own.
"""

import ctypes
import hashlib
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tinygrad import Device

from kernels import cuda, graph

HEADER = Path(__file__).with_name("cuda_on_cpu.h")
MARK = b"CUDA on the CPU: "


def compiler() -> list[str] | None:
    """The command of a C++ compiler that brings its headers: zig's from the wheel, else the system's."""
    spec = importlib.util.find_spec("ziglang")
    if spec and spec.submodule_search_locations:
        zig = Path(spec.submodule_search_locations[0], "zig")
        if zig.is_file():
            return [str(zig), "c++"]
    found = shutil.which("clang++") or shutil.which("g++")
    return [found] if found else None


def compile_for_cpu(source: str, folder: Path) -> Path:
    """A shared library with `run(x, y, z, buffers)` for the one kernel of a source."""
    command = compiler()
    assert command
    function = re.search(r"__launch_bounds__\(THREADS\)\s+(\w+)\(", source)[1]  # type: ignore[index]
    name, threads = (re.search(rf"#define {word} (\w+)", source)[1] for word in (function, "THREADS"))  # type: ignore
    mma = graph.read_source("mma.cuh")
    kind = re.search(r'#define KIND ("\w+")', source)
    assert source.count(mma) == (1 if kind else 0)
    text = f"#define THREADS {threads}\n#define KIND {kind[1] if kind else chr(34) * 2}\n" + HEADER.read_text()
    text += source.replace(mma, "")
    stated = re.search(r"// (\d+) FLOPs in mma.sync", source)
    assert stated
    text += f'extern "C" {{ long long stated = {stated[1]}; }}\n'
    text += f"static void** given;\nstatic void block() {{ apply({name}, given); }}\n"
    text += 'extern "C" void run(unsigned x, unsigned y, unsigned z, void** a) { given = a; run_blocks(x, y, z); }\n'
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.so"
    if not path.exists():
        file = path.with_suffix(".cpp")
        file.write_text(text)
        options = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-nostdinc++", "-nostdlib++"]
        done = subprocess.run([*command, *options, file, "-o", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return path


class Program:
    """What tinygrad calls instead of a kernel of its own."""

    launches: list[tuple[str, int, int]] = []  # names, and the FLOPs in mma.sync that each did and says that it does

    def __init__(self, name: str, path: str):
        self.name, self.library = name, ctypes.CDLL(path)
        self.products, self.stated = (ctypes.c_longlong.in_dll(self.library, name) for name in ("products", "stated"))

    def __call__(self, *buffers: Any, global_size: tuple[int, ...], **other: Any) -> None:
        Device["CPU"].synchronize()
        self.products.value = 0
        self.library.run(*global_size, (ctypes.c_void_p * len(buffers))(*[b.va_addr for b in buffers]))
        self.launches.append((self.name, self.products.value * 2 * 16 * 8 * 16, self.stated.value))


@pytest.fixture
def cuda_on_cpu(monkeypatch, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, int]]:
    """The CUDA kernels run on the CPU meanwhile; the list that their launches are noted in."""
    if not compiler():
        pytest.skip("no C++ compiler is here to run CUDA's source on the CPU")
    cpu, folder = Device["CPU"], tmp_path_factory.getbasetemp()
    compile_cached, runtime = cpu.renderer.compiler.compile_cached, cpu.runtime

    def compiled(source: str) -> bytes:
        return MARK + bytes(compile_for_cpu(source, folder)) if "__global__" in source else compile_cached(source)

    def loaded(name: str, library: bytes, *args: Any, **more: Any) -> Any:
        if library.startswith(MARK):
            return Program(name, library.removeprefix(MARK).decode())
        return runtime(name, library, *args, **more)

    monkeypatch.setattr(cpu.renderer.compiler, "compile_cached", compiled)
    monkeypatch.setattr(cpu, "runtime", loaded)
    monkeypatch.setattr(cuda, "takes", lambda *tensors: True)
    monkeypatch.setattr(Program, "launches", [])
    return Program.launches
