"""What goes wrong on a device, as one sentence for the user: what it is, and what to do."""

from __future__ import annotations

import re

DRIVER = "the NVIDIA driver is older than the kernel compiler libnvrtc: update the driver"
MEMORY = "there is too little memory for this: choose a smaller model or smaller batches"
KERNEL = "set KERNELS=0 to run without our kernels, and if that helps, please report it"
CUDA = {
    2: MEMORY,
    100: "there is no NVIDIA GPU here: choose --device cpu",
    209: "libnvrtc doesn't compile for this GPU: `pip install -e '.[cuda]'` brings a newer one",
    218: "libnvrtc doesn't compile for this GPU: `pip install -e '.[cuda]'` brings a newer one",
    222: DRIVER,
    700: f"a kernel touched memory that isn't its own (CUDA error 700): {KERNEL}",
    701: f"a kernel asked for more than this GPU has (CUDA error 701): {KERNEL}",
    719: f"a kernel failed on the GPU (CUDA error 719): {KERNEL}",
    803: "the NVIDIA driver doesn't fit the running system (CUDA error 803): restart the computer",
    804: "the NVIDIA driver doesn't fit this GPU (CUDA error 804): update the driver",
}


def explain(error: BaseException) -> str | None:
    """The sentence for an error of a device; None for any other error."""
    text = " ".join(str(e) for e in getattr(error, "exceptions", [error]))  # tinygrad groups those of its compilers
    if isinstance(error, MemoryError) or "CUDA_ERROR_OUT_OF_MEMORY" in text:
        return MEMORY
    if "Nvrtc Error" in text and "gpu-architecture" in text:
        return CUDA[209]
    found = re.search(r"CUDA Error (\d+)|module load failed with status code (\d+)", text)
    if not found or not isinstance(error, RuntimeError):
        return None
    code = int(found[1] or found[2])
    if code == 222:
        return CUDA[222] + _versions()
    return CUDA.get(code, f"the NVIDIA driver reports error {code} ({text[:200]}): {KERNEL}")


def _versions() -> str:
    """What to install where the driver is older than the compiler."""
    import ctypes

    from tinygrad.runtime.autogen import cuda, nvrtc

    driver, major, minor = (ctypes.c_int32() for _ in range(3))
    try:
        cuda.cuDriverGetVersion(ctypes.byref(driver))
        nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    except AttributeError:  # the compiler is nvcc
        return ""
    knows, needs = f"{driver.value // 1000}.{driver.value % 1000 // 10}", f"{major.value}.{minor.value}"
    older = f", or `pip install 'nvidia-cuda-nvrtc-cu12=={knows}.*'`" if knows.startswith("12.") else ""
    newest = " (570 or later)" if needs == "12.8" else ""
    return f"{newest}, which knows CUDA {knows} while libnvrtc is of {needs}{older}"
