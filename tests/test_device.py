"""Which device and which compiler are chosen, and what a user reads when there is none."""

import importlib.machinery
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT
from cuda_on_cpu import gpu
from tinygrad import Tensor
from tinygrad.codegen.opt import search
from tinygrad.codegen.opt.heuristic import hand_coded_optimizations
from tinygrad.helpers import Context
from tinygrad.runtime.support.c import DLL

from runtime import device
from runtime.errors import UserError


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"CUDA": "1"}, {"DEV": "CUDA"}),
        ({"CUDA": "0"}, {}),
        ({"CUDA": ""}, {}),
        ({}, {}),
        ({"CUDA": "1", "DEV": "CPU"}, {"DEV": "CPU"}),  # tinygrad's own switch wins
        ({"DEV": "NV"}, {"DEV": "NV"}),
    ],
)
def test_cuda_switch_becomes_what_tinygrad_reads(before: dict[str, str], after: dict[str, str]) -> None:
    device.translate_cuda_switch(before)
    assert before == after


@pytest.mark.parametrize(("env", "chosen"), [({"CUDA": "1"}, "CUDA"), ({"CUDA": "1", "DEV": "CPU"}, "CPU"), ({}, "")])
def test_importing_the_device_after_tinygrad_is_early_enough(env: dict[str, str], chosen: str) -> None:
    program = "import os, tinygrad, runtime.device\nprint(tinygrad.helpers.DEV.device, 'CUDA' in os.environ)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env={**ENVIRONMENT, **env}, capture_output=True, text=True, check=True)
    assert done.stdout == f"{chosen} False\n"


def program(folder: Path, name: str, output: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(stat.S_IRWXU)
    return path


def test_compilers_are_tried_in_the_order_cc_clang_versioned_clang_wheel(tmp_path: Path) -> None:
    path = {"PATH": str(tmp_path)}
    wheel = device.find_compiler(path)
    assert wheel is None or (wheel[0].endswith("zig") and wheel[1] == "clang")
    old, new = program(tmp_path, "clang-15", "clang"), program(tmp_path, "clang-19", "clang")
    assert device.find_compiler(path) == [str(new)]
    new.unlink()
    assert device.find_compiler(path) == [str(old)]
    clang = program(tmp_path, "clang", "clang")
    assert device.find_compiler(path) == [str(clang)]
    mine = program(tmp_path, "mycc", "Apple clang version 17")
    assert device.find_compiler(path | {"CC": f"{mine} -O3"}) == [str(mine), "-O3"]


def test_a_cc_that_is_not_a_clang_is_passed_over(tmp_path: Path) -> None:
    clang, gcc = program(tmp_path, "clang", "clang"), program(tmp_path, "gcc", "gcc (GCC) 12")
    assert device.find_compiler({"PATH": str(tmp_path), "CC": str(gcc)}) == [str(clang)]
    assert device.find_compiler({"PATH": str(tmp_path), "CC": "/no/such/cc"}) == [str(clang)]


def test_a_compiler_with_arguments_is_wrapped_in_the_cache_folder(tmp_path: Path) -> None:
    mine = program(tmp_path, "my cc", "clang")
    env = {"PATH": "/bin:/usr/bin", "CC": f"'{mine}' -O3 -g", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    mine.write_text('#!/bin/sh\necho clang "$@"\n')
    device.set_compiler(env)
    wrapper = Path(env["CC"])
    assert wrapper.parent == tmp_path / "cache" / "llm-fundamentals"
    assert subprocess.run([wrapper, "-x", "a b"], capture_output=True, text=True).stdout == "clang -O3 -g -x a b\n"
    again = {**env, "CC": f"'{mine}' -O3 -g"}
    device.set_compiler(again)
    assert again["CC"] == env["CC"] and len(list(wrapper.parent.iterdir())) == 1


def test_no_compiler_at_all_names_the_command_that_brings_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install ziglang"):
        device.set_compiler({"PATH": str(tmp_path)})


def test_a_device_that_was_found_is_the_same_the_next_time() -> None:
    with Context(DEV=""):
        name = device.open_device()
        assert device.DEV.device == name


def test_each_way_that_cuda_fails_says_what_is_missing() -> None:
    no_driver = AttributeError("failed to load library cuda: try setting CUDA_PATH?")
    no_nvrtc = AttributeError("failed to load library nvrtc: try setting NVRTC_PATH?")
    assert "no NVIDIA GPU" in device._explain("CUDA", no_driver)
    assert "pip install -e '.[cuda]'" in device._explain("CUDA", no_nvrtc)
    both = ExceptionGroup("No renderer", [no_nvrtc, RuntimeError("no nvcc")])
    assert "pip install -e '.[cuda]'" in device._explain("CUDA", both)
    assert "metal" not in device._explain("METAL", RuntimeError("x")) and "METAL" in device._explain("METAL", both)


def test_a_driver_without_its_compiler_names_the_extra_that_brings_it(script, tmp_path: Path) -> None:
    """With a libcuda that knows one GPU, and libnvrtc nowhere."""
    settings = gpu()
    if not settings or _has_nvrtc():
        pytest.skip("a driver can't be made here, or libnvrtc is where every program finds it")
    (tmp_path / "libcuda.so.1").symlink_to(Path(settings["LD_LIBRARY_PATH"], "libcuda.so.1"))
    settings |= {"LD_LIBRARY_PATH": str(tmp_path), "NVRTC_PATH": "/nowhere", "PATH": "/bin:/usr/bin"}
    done = script("gpt.py", "--steps", "1", **settings)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "libnvrtc" in done.stderr and "pip install -e '.[cuda]'" in done.stderr


def _has_nvrtc() -> bool:
    return bool(DLL.findlib("nvrtc", ["nvrtc"])) or bool(shutil.which("nvcc", path="/bin:/usr/bin"))


def test_the_wheels_compiler_is_found_and_comes_before_the_systems(tmp_path: Path, monkeypatch) -> None:
    files = ["cuda_nvrtc/lib/libnvrtc.so.12", "toolkit/lib64/libnvrtc.so.13", "mine/libnvrtc.so.12"]
    for name in [*files, "debian/libnvrtc.so", "odd/libnvrtc.so.11.2"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
    spec = importlib.machinery.ModuleSpec("nvidia", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(device, "SYSTEM_LIBRARIES", (str(tmp_path / "debian"),))
    monkeypatch.setattr(device, "TOOLKITS", ("/nowhere", str(tmp_path / "toolkit")))  # as /opt/cuda on Arch
    library, headers = str(tmp_path / "cuda_nvrtc/lib/libnvrtc.so.12"), str(tmp_path / "cuda_runtime")
    empty = {"CUDA_PATH": str(tmp_path)}
    assert device.find_nvrtc(empty) == {"NVRTC_PATH": library, "CUDA_PATH": str(tmp_path)}
    assert device.find_nvrtc({"CUDA_PATH": ""}) == {"NVRTC_PATH": library, "CUDA_PATH": headers}
    assert device.find_nvrtc({"LD_LIBRARY_PATH": str(tmp_path / "odd")})["NVRTC_PATH"] == library  # tinygrad's isn't it
    toolkit = str(tmp_path / "toolkit")
    assert device.find_nvrtc({"CUDA_PATH": toolkit}) == {"NVRTC_PATH": f"{toolkit}/lib64/libnvrtc.so.13"}
    assert device.find_nvrtc({"LD_LIBRARY_PATH": str(tmp_path / "mine")}) == {}
    assert device.find_nvrtc({"NVRTC_PATH": "mine"}) == {}
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    assert device.find_nvrtc(empty) == {}
    monkeypatch.setattr(device, "SYSTEM_LIBRARIES", (str(tmp_path / "odd"),))
    assert device.find_nvrtc(empty) == {"NVRTC_PATH": f"{toolkit}/lib64/libnvrtc.so.13"}


def test_a_kernel_search_ends_at_its_limit_and_leaves_tinygrad_as_it_was(monkeypatch) -> None:
    searched = []

    def recorded(kernel, rawbufs, width, *more):
        searched.append(width)
        return hand_coded_optimizations(kernel)

    monkeypatch.setattr(search, "beam_search", recorded)
    for n, (width, minutes, expected) in enumerate(((3, 1.0, [3]), (3, 0.0, []), (0, 1.0, []))):
        searched.clear()
        with device.beam_search(width, minutes):
            total = Tensor(np.arange(1013 + n, dtype=np.float32)).sum().item()  # a size of its own: not compiled before
        assert total == (1013 + n) * (1012 + n) / 2
        assert set(searched) == set(expected)
        assert search.beam_search is recorded
