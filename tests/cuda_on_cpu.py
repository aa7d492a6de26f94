"""An NVIDIA GPU for tests on a machine without one: tinygrad's own CUDA runtime on the stand-in of cuda_driver.c.

`gpu()` gives the environment in which `python gpt.py` finds it; `open_here` opens it in this process. The driver calls
this file to compile a kernel:

    python cuda_on_cpu.py zig kernel.cu kernel.so
"""

import functools
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = [HERE / name for name in ("cuda_driver.c", "cuda_on_cpu.h", "cuda_on_cpu.py")]


# ---- the driver ----


def zig() -> str | None:
    """The path of the compiler in the `ziglang` wheel."""
    spec = importlib.util.find_spec("ziglang")
    path = Path(spec.submodule_search_locations[0], "zig") if spec and spec.submodule_search_locations else None
    return str(path) if path and path.is_file() and sys.platform == "linux" else None


def cache(name: str, *made_of: Path) -> Path:
    """A folder in the user's cache folder, under a name that depends on what it is made of."""
    text = b"".join(path.read_bytes() for path in made_of) + str(zig()).encode() + platform.machine().encode()
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "llm-fundamentals")
    folder = user / f"{name}-{hashlib.sha256(text).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def driver() -> Path:
    """The folder with libcuda.so.1 and libnvrtc.so.12, made where it isn't there yet."""
    folder = cache("cuda-driver", SOURCES[0])
    library, new = folder / "libcuda.so.1", folder / f"libcuda.{os.getpid()}"
    if not (folder / "libnvrtc.so.12").exists():
        options = ["-O2", "-fPIC", "-shared", "-fno-sanitize=all", "-fvisibility=hidden", "-Wall"]
        subprocess.run([str(zig()), "cc", *options, str(SOURCES[0]), "-o", str(new)], check=True)
        new.replace(library)
        new.symlink_to(library.name)
        new.replace(folder / "libnvrtc.so.12")  # the same library
    return folder


def gpu(**settings: object) -> dict[str, str]:
    """The environment variables of `CUDA=1 python ...` on the stand-in; none where it can't be made.

    `settings` are those at the head of cuda_driver.c: `gpu(devices=2)` sets CUDA_TEST_DEVICES. With CUDA_TEST_REAL=1
    it is NVIDIA's own driver, and they change nothing.
    """
    if os.environ.get("CUDA_TEST_REAL") == "1":
        return {"CUDA": "1"}
    if not zig():
        return {}
    kernels = cache("cuda-kernels", *SOURCES[1:])
    return {
        "CUDA": "1",
        "LD_LIBRARY_PATH": str(driver()),
        "CACHEDB": str(kernels / "tinygrad.db"),  # what tinygrad keeps here is no code for a real GPU
        "CUDA_TEST_KERNELS": str(kernels),
        "CUDA_TEST_COMPILER": f"'{sys.executable}' -IS '{SOURCES[2]}' '{zig()}'",
        **{f"CUDA_TEST_{name.upper()}": str(value) for name, value in settings.items()},
    }


def open_here() -> bool:
    """Open tinygrad's device CUDA in this process: a real GPU, else the stand-in. Whether one could be opened."""
    from unittest.mock import patch

    from tinygrad import Device
    from tinygrad.device import Compiler
    from tinygrad.runtime.autogen import cuda

    if "cuda" not in cuda.dll._loaded_:
        if not (settings := gpu()):
            return False
        os.environ.update({k: v for k, v in settings.items() if k.startswith("CUDA_TEST_")})
        with patch.dict(os.environ, LD_LIBRARY_PATH=settings["LD_LIBRARY_PATH"], CUDA_PATH=""):
            type(cuda.dll).__init__(cuda.dll, "cuda", "cuda")  # it found no libcuda before
        # Not libnvrtc's name: what else compiles for a GPU in this process may need the real one.
        compiler = type("Source", (Compiler,), {"compile": lambda self, source: source.encode() + b"\0"})
        with patch("tinygrad.runtime.support.compiler_cuda.NVRTCCompiler", lambda *args, **options: compiler()):
            Device["CUDA"].renderer  # noqa: B018  (kept by the device)
    try:
        Device["CUDA"].synchronize()
    except Exception:  # a driver without a GPU
        return False
    return True


# ---- a kernel for it ----


def end_of(text: str, start: int, stop: str) -> int:
    """Where one of the characters `stop` comes first from `start` on, outside of strings and brackets."""
    depth, i = 0, start
    while depth or text[i] not in stop:
        if text[i] == '"':
            i = text.index('"', i + 1)
        depth += (text[i] in "([{") - (text[i] in ")]}")
        i += 1
    return i


def without_asm(source: str) -> str:
    """asm [volatile]("PTX" : "=r"(x) : "r"(y) : "memory") becomes ptx("PTX", output(x), input(y), )."""
    out, done = [], 0
    for m in re.finditer(r"\basm\s*(?:volatile)?\s*\(", source):
        parts, at = [], m.end()
        while source[at - 1] != ")":
            end = end_of(source, at, ":)")
            parts.append(source[at:end])
            at = end + 1
        operands = ""
        for kind, part in zip(("output", "input"), parts[1:3]):
            begin = 0
            while begin < len(part):
                end = end_of(part + ",", begin, ",")
                if found := re.fullmatch(r'\s*"[^"]*"\s*(\(.*\))\s*', part[begin:end], re.S):
                    operands += f"{kind}{found[1]}, "
                begin = end + 1
        out += [source[done : m.start()], f"ptx({parts[0]}, {operands})"]
        done = at
    return "".join(out) + source[done:]


def for_cpu(source: str) -> str:
    """The C++ of a CUDA kernel, and what cuda_driver.c asks of it."""
    bounds, name = re.findall(r"__launch_bounds__\((\w+)\)\s*(\w+)\s*\(", source)[-1]
    together = "true" if re.search(r"__syncthreads|_sync\s*\(|\basm\b", source) else "false"
    stated = re.search(r"// (\d+) FLOPs in mma.sync", source)
    source = re.sub(r"#include <cuda_\w+\.h>", "", source)
    return f"""#include "{SOURCES[1]}"
{without_asm(source)}
#define TEXT(x) #x
#define NAME_OF(x) TEXT(x)
API const char* kernel_name; const char* kernel_name = NAME_OF({name});
API unsigned kernel_bounds; unsigned kernel_bounds = {bounds};
API long long kernel_stated; long long kernel_stated = {stated[1] if stated else -1};
API unsigned kernel_shared() {{ return SHARED; }}
API const char* kernel_run(const unsigned* grid, const unsigned* block, const char* p, size_t size, unsigned seed,
                           char* stacks) {{
  return launch({name}, grid, block, p, size, seed, stacks, {together});
}}
"""


def compile_for_cpu(zig: str, kernel: Path, library: Path) -> int:
    """Compile a kernel into a library that stands there whole or not at all. No header but the compiler's is needed."""
    cpp, made, new = (kernel.with_suffix(suffix) for suffix in (".cpp", ".o", ".new"))
    cpp.write_text(for_cpu(kernel.read_text()))
    options = ["-std=c++17", "-O1", "-march=native", "-w", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"]
    options += ["-ffp-contract=fast", "-fno-threadsafe-statics", "-fno-exceptions", "-fno-rtti", "-nostdinc"]
    options += [f"-isystem{Path(zig).parent / 'lib' / 'include'}", "-c", str(cpp), "-o", str(made)]
    for command in (["clang", "--driver-mode=g++", *options], ["ld.lld", "-shared", str(made), "-o", str(new)]):
        if wrong := subprocess.run([zig, *command], check=False).returncode:
            return wrong
    new.replace(library)
    for path in (kernel, cpp, made):
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(compile_for_cpu(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
