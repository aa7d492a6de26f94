"""Which device runs the work, and which compiler makes its kernels.

`CUDA=1 python gpt.py` asks for an NVIDIA GPU; `--device cuda` and tinygrad's own `DEV=CUDA` do the same. Without any of
them tinygrad takes the best device that it finds. tinygrad reads these variables when it chooses a device, so importing
this file, after tinygrad and before any device is opened, translates them. The CPU backend compiles its kernels with
clang: `open_device` looks for one and falls back on the clang in the `ziglang` wheel, so that nothing has to be
installed by hand.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tinygrad import Device, Tensor, dtypes
from tinygrad.codegen.opt import search as tinygrad_search
from tinygrad.codegen.opt.heuristic import hand_coded_optimizations
from tinygrad.device import ALL_DEVICES
from tinygrad.helpers import ALLOW_TF32, CACHEDB, CACHELEVEL, DEV, Context
from tinygrad.renderer.cstyle import CUDARenderer
from tinygrad.runtime.support import compiler_cpu

from runtime.errors import UserError
from runtime.explain import explain
from runtime.files import atomic_write
from runtime.progress import counted

Environment = MutableMapping[str, str]
TESTED = "0.13.0"  # of tinygrad: what we use beyond its promises (here and in kernels/) is left alone in any other

# ---- what tinygrad reads from the environment ----


unclear: list[str] = []  # what `open_device` refuses: it was said before anything could be raised


def translate_cuda_switch(env: Environment) -> None:
    """`CUDA=1` becomes `DEV=CUDA` unless `DEV` is set; `CUDA=0` is removed. The same for `METAL=1` and the others.

    tinygrad 0.13 stops with an AssertionError at `CUDA=1`, so the variable never reaches it.
    """
    for name in ALL_DEVICES:
        value = env.pop(name, "0")
        if value not in ("", "0"):
            env.setdefault("DEV", name)
        if value not in ("", "0", "1"):
            unclear.append(f"{name}={value} isn't understood: set {name}=1, or leave it out")


def switched_on(name: str) -> bool:
    """Whether an environment variable is 1, which it is unless it is set. Raises UserError for anything but 0 and 1."""
    value = os.environ.get(name) or "1"
    if value not in ("0", "1"):
        raise UserError(f"{name}={value} isn't understood: set {name}=0 to turn it off, or {name}=1, or nothing")
    return value == "1"


SYSTEM_LIBRARIES = (
    "/usr/lib64", "/usr/lib", "/usr/local/lib", "/lib", "/lib64", "/usr/lib/wsl/lib",
    f"/lib/{sysconfig.get_config_var('MULTIARCH')}",
)
TOOLKITS = ("/usr/local/cuda", "/opt/cuda")


def find_nvrtc(env: Environment) -> dict[str, str]:
    """The variables that tell tinygrad where NVIDIA's compiler libnvrtc is; none where it finds it by itself.

    What the user named comes first: NVRTC_PATH, LD_LIBRARY_PATH or CUDA_PATH. Then come the wheels of the extra `cuda`
    in pyproject.toml, one with the library, the other with the headers of its half precision: a system's library may
    be too old for the GPU. Then come the system's, and a toolkit under /usr/local/cuda or, on Arch, /opt/cuda.
    """
    if env.get("NVRTC_PATH") or sys.platform != "linux":
        return {}
    if any(_nvrtc_in(Path(f)) for f in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if f):
        return {}
    toolkit = env.get("CUDA_PATH")
    if toolkit and (path := _nvrtc_in(Path(toolkit, "lib64"))):
        return {"NVRTC_PATH": str(path)}
    spec = importlib.util.find_spec("nvidia")
    for wheels in map(Path, (spec and spec.submodule_search_locations) or ()):
        if path := _nvrtc_in(wheels / "cuda_nvrtc" / "lib"):
            return {"NVRTC_PATH": str(path), "CUDA_PATH": toolkit or str(wheels / "cuda_runtime")}
    if any(_nvrtc_in(Path(f)) for f in SYSTEM_LIBRARIES):
        return {}
    return next(({"NVRTC_PATH": str(path)} for f in TOOLKITS if (path := _nvrtc_in(Path(f, "lib64")))), {})


def _nvrtc_in(folder: Path) -> Path | None:
    """The library in a folder, by a name that tinygrad takes: libnvrtc.so.11.2 alone isn't one."""
    paths = sorted(folder.glob("libnvrtc.so*"))
    return next((p for p in paths if re.fullmatch(r"libnvrtc\.so\.?\d*", p.name) and p.is_file()), None)


translate_cuda_switch(os.environ)
if not DEV.device and os.environ.get("DEV"):  # tinygrad read DEV when it was imported, before CUDA=1 was translated
    DEV.value = os.environ["DEV"]
os.environ.update(find_nvrtc(os.environ))  # tinygrad reads it when it first compiles for a GPU

# ---- the compiler of the CPU's kernels ----


def find_compiler(env: Environment) -> list[str] | None:
    """The command of a clang, or None. The order is `CC`, `clang`, `clang-22` and down, the `ziglang` wheel."""
    command = shlex.split(env.get("CC", ""))
    if command and _is_clang(command):
        return command
    for name in ("clang", *(f"clang-{n}" for n in range(22, 13, -1))):
        if path := shutil.which(name, path=env.get("PATH")):
            return [path]
    spec = importlib.util.find_spec("ziglang")
    if spec and spec.submodule_search_locations:
        zig = Path(spec.submodule_search_locations[0], "zig")
        if zig.is_file():
            return [str(zig), "clang"]
    return None


def _is_clang(command: list[str]) -> bool:
    """gcc doesn't take the `--target` that tinygrad passes, and many systems set CC=gcc."""
    try:
        return "clang" in subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return False


def set_compiler(env: Environment) -> None:
    """Set `CC` to the one program, without arguments, that tinygrad runs to compile a kernel.

    A command with arguments is written as a two-line script into the user's cache folder, under a name that depends on
    its content: two environments never overwrite each other's. tinygrad passes -O2 -march=native; -O3, 512-bit vectors,
    unrolling and looser floating point changed the time of a training step by less than the noise, so we add no flag.
    Raises UserError when there is no clang.
    """
    command = find_compiler(env)
    if command is None:
        raise UserError("no clang is here to compile kernels for the CPU; `pip install ziglang` brings one")
    if len(command) == 1:
        env["CC"] = command[0]
        return
    script = f"#!/bin/sh\nexec {shlex.join(command)} \"$@\"\n"
    path = cache_folder(env) / f"cc-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    if not path.exists():
        with atomic_write(path) as new:
            new.write_text(script, encoding="utf-8")
            new.chmod(stat.S_IRWXU)
    env["CC"] = str(path)


def cache_folder(env: Mapping[str, str]) -> Path:
    """The folder of ours within the user's cache, or for temporary files if nothing can be written there."""
    folder = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache", "llm-fundamentals")
    if not writable(folder.parent):  # what is made anew by each program would be found in the second
        folder = Path(tempfile.gettempdir(), f"llm-fundamentals-{os.getuid() if hasattr(os, 'getuid') else ''}")
    return folder


def writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


if not writable(Path(CACHEDB).parent):  # tinygrad would end at the first kernel that it wants to keep
    CACHELEVEL.value = 0
    print(f"note: {Path(CACHEDB).parent} can't be written, so kernels are compiled anew each time; set XDG_CACHE_HOME "
          "to a folder that can be", file=sys.stderr)

if not os.environ.get("CC"):  # so that `import gpt` is enough in a notebook, and for the CPU beside a GPU
    with contextlib.suppress(UserError):
        set_compiler(os.environ)


def run_compiler(command: list[str], input: bytes) -> bytes:
    """What a compiler writes. Raises RuntimeError with what it says when it fails.

    tinygrad runs it in the process group of the terminal, where Ctrl-C ends it too, and with it the step or evaluation
    after which a run would be saved. Here it has a group of its own, and no terminal to write to after we have stopped.
    """
    done = subprocess.run(command, input=input, capture_output=True, process_group=0, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode(errors="replace").strip() or f"{command[0]} ended with {done.returncode}")
    return done.stdout


if version("tinygrad") == TESTED:
    compiler_cpu.subprocess = SimpleNamespace(check_output=run_compiler)  # type: ignore[assignment]


# ---- the device ----


def open_device(device: str | None = None) -> str:
    """Open the device and run one small kernel on it; its name as tinygrad writes it, like `CPU` or `CUDA`.

    `device` is the `--device` option: it wins over `DEV`, which wins over `CUDA=1`. If none of them names a device it
    is CUDA where there is an NVIDIA GPU, which tinygrad would use by its own NV, for which there are no kernels here.
    When the device can't be used it raises UserError, which says what is missing and the command that brings it.
    """
    if unclear:
        raise UserError(unclear[0])
    for switch in ("KERNELS", "TUNE"):
        switched_on(switch)  # a value that isn't understood is refused here, before anything is made
    if device:
        if device.split(":")[0].upper() not in ALL_DEVICES:
            raise UserError(f"--device {device} isn't one of {', '.join(name.lower() for name in ALL_DEVICES)}")
        DEV.value = device.upper() if device.count(":") == 0 else device
    if not DEV.device:
        with contextlib.suppress(Exception):
            Device["CUDA"].synchronize()
            os.environ["DEV"] = DEV.value = "CUDA"  # for children too, as tinygrad does
    if DEV.device in ("", "CPU"):
        try:
            set_compiler(os.environ)
        except UserError:
            if DEV.device == "CPU":
                raise  # if the user named no device, a GPU may still be there
    try:
        name = Device.DEFAULT
        if name == "NULL":
            raise RuntimeError("it compiles kernels and runs none")
        renderer = Device[name].renderer  # opens the device's compiler, which fails if a library is missing
        if name == "CUDA" and not DEV.renderer and not isinstance(renderer, CUDARenderer):
            if not shutil.which("nvcc"):
                raise RuntimeError("no libnvrtc")  # tinygrad would go on with assembly that it writes itself
            DEV.value = "CUDA:NVCC"
        Tensor([1.0]).add(1).realize()
        Device[name].synchronize()  # else an error of the kernel would come later
        if not DEV.device:
            DEV.value = name  # the same device the next time
    except Exception as error:  # every backend fails in its own way: AttributeError, RuntimeError, OSError, ...
        raise UserError(_explain(DEV.device, error)) from error
    return name


def _explain(device: str, error: Exception) -> str:
    """One sentence for a device that doesn't work: what is missing and what to do."""
    reasons = [str(e) for e in getattr(error, "exceptions", [error])]  # tinygrad collects one error for each compiler
    text = " ".join(" ".join(reasons).split())
    if device == "CUDA" and (sentence := explain(error)):
        return sentence
    if device == "CUDA" and "nvrtc" in text.lower():
        return "the NVIDIA driver is here, its kernel compiler libnvrtc is not; `pip install -e '.[cuda]'` brings it"
    if device == "CUDA":
        return "no NVIDIA GPU can be used (libcuda is missing or sees no device); install its driver or choose cpu"
    if device in ("", "CPU") and not DEV.renderer:
        return f"no device can run kernels ({text[:200]}); `pip install ziglang` brings a compiler for the CPU"
    return (f"the device {device} can't be used ({text[:200]}); leave out --device, DEV and {device}=1 to use the best "
            "one here")


def open_devices(device: str, count: int) -> tuple[str, ...]:
    """The names of `count` devices from this one on, each tried. Raises UserError naming one that can't be used."""
    kind, _, first = device.partition(":")
    names = tuple(Device.canonicalize(f"{kind}:{int(first or 0) + i}") for i in range(count))
    for name in names:
        try:
            Tensor([1.0], device=name).add(1).realize()
            Device[name].synchronize()
            # tinygrad's copy from GPU to GPU doesn't wait for what still reads the memory that it goes to; by way of
            # the host it does. The compiled step copies inside its graph, which knows what depends on what.
            if kind == "CUDA":
                Device[name].allocator.supports_transfer = False
        except Exception as error:
            raise UserError(f"--devices {count}: there is no {name} that can be used; choose fewer") from error
    return names


@contextlib.contextmanager
def compiling_for(arch: str) -> Iterator[str]:
    """Meanwhile the default device compiles for an NVIDIA GPU, like sm_89 (a 4090), and runs nothing.

    It is tinygrad's NULL with the compiler of CUDA: libnvrtc, or nvcc where there is only that. Gives the device's
    name. Raises UserError when neither is here, and for an `arch` that isn't one.
    """
    if not (found := re.fullmatch(r"sm_(\d{2,3})", arch)) or not 50 <= int(found[1]) <= 121:  # Maxwell to Blackwell
        raise UserError(f"{arch} isn't the architecture of an NVIDIA GPU, like sm_89 for a 4090 or sm_90 for an H100")
    errors = []
    for compiler in ("CUDA", "NVCC"):  # libnvrtc in this process, or nvcc, a process for each kernel
        with Context(DEV=f"NULL:{compiler}:{arch}"):
            try:
                renderer = Device["NULL"].renderer
                renderer.compiler.compile('extern "C" __global__ void nothing() {}')
            except Exception as error:  # no library, no program, or one that doesn't know the architecture
                errors.append(" ".join(str(error).split())[:100])
                continue
            # On a real GPU tinygrad keeps float32 as it is; it doesn't take NULL for one, and would round it to TF32.
            renderer.tensor_cores = [t for t in renderer.tensor_cores if t.dtype_in != dtypes.float32 or ALLOW_TF32]
            yield "NULL"
            return
    raise UserError(f"no CUDA compiler for {arch} is here ({'; '.join(errors)}); `pip install -e '.[cuda]'` brings one")


@contextlib.contextmanager
def beam_search(width: int, minutes: float) -> Iterator[None]:
    """Meanwhile tinygrad tries variants of every kernel that it compiles (its BEAM), for so many minutes at most.

    tinygrad keeps the best in its cache. After the limit kernels are compiled without a search, and searched the next
    time. tinygrad has no limit of its own: its search is replaced by one that looks at the clock before each kernel,
    only in the version that this was tested with. A `width` of 0 searches nothing.
    """
    if not width:
        yield
        return
    original, end = tinygrad_search.beam_search, time.monotonic() + 60 * minutes

    def limited(kernel: Any, *args: Any) -> Any:
        return original(kernel, *args) if time.monotonic() < end else hand_coded_optimizations(kernel)

    if version("tinygrad") == TESTED:
        tinygrad_search.beam_search = limited  # type: ignore[assignment]
    try:
        with Context(BEAM=width):
            yield
    finally:
        tinygrad_search.beam_search = original


# ---- what the device is ----


def cores() -> int:
    """How many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_memory(parameters: int) -> None:
    """Raise UserError for a model that this machine can't train, before it is made: each weight needs 16 bytes, for
    itself, its gradient and AdamW's two moments."""
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return  # Windows
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 16 * parameters > here:
        raise UserError(f"a model of {parameters:,} parameters takes {16 * parameters / 1e9:,.0f} GB to train, and "
                        f"this machine has {here / 1e9:,.0f} GB: choose a smaller one")


def compute_capability(device: str) -> int:
    """89 for an NVIDIA GPU of sm_89, 0 for any other device."""
    arch = getattr(getattr(Device[device].renderer, "target", None), "arch", "")
    return int(arch.removeprefix("sm_").rstrip("a")) if arch.startswith("sm_") else 0


def describe_device(name: str) -> str:
    """The device for the first line of a run: `CPU (2 cores)`, `CUDA (sm_89)`."""
    if name == "CPU":
        return f"CPU ({counted(cores(), 'core')})"
    arch = getattr(Device[name], "arch", None)
    return f"{name} ({arch})" if arch else name
