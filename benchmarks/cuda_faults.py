"""Faults planted in the CUDA kernels, one at a time, and whether the tests notice.

    python -m benchmarks.cuda_faults [--only 3]

Each is a change of a line or less, in a temporary copy of the repository: a barrier that is missing, a bound, a
fragment of a matrix, a stride, the size of a launch. The tests that hold that kernel to NumPy then run there, on a GPU
or on the stand-in of tests/cuda_driver.c. A fault that no test notices is listed with the reason in notes/cuda.md.
"""

from runtime.script import run_main

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.cli import option, parse
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Fault:
    """`right` becomes `wrong` where it first stands in a file; `tests` are what `pytest -k` chooses from TESTS."""

    what: str
    file: str
    right: str
    wrong: str
    tests: str


TESTS = ("tests/test_matmul.py", "tests/test_kernels_cuda.py")
PRODUCT, SPLIT, MLP, ATTENTION = "every_tile", "sum_in_parts", "an_mlp", "attention_and_its_gradient"
FAULTS = (
    Fault("barrier: before a piece is multiplied", "matmul.cu", "__syncthreads(); /* and what", "/* and what", PRODUCT),
    Fault("barrier: one piece too few is waited for", "matmul.py", "{tile.stages - 2}", "{tile.stages - 1}", PRODUCT),
    Fault("bound: rows behind the result are written", "matmul.cu", "row >= M || column", "column", PRODUCT),
    Fault("bound: rows behind an operand are read", "matmul.cu",
          " && (height % rows == 0 || row + r + down < height)", "", PRODUCT),
    Fault("fragment: the columns of turned matrices", "matmul.cu", "turned_c = lane / 8 % 2", "turned_c = lane / 16",
          PRODUCT),
    Fault("fragment: the right half of B twice", "matmul.cu", "j % 2 * 2);", "2);", PRODUCT),
    Fault("stride: banks of shared memory collide", "matmul.cu", "width == 32 ? row / 2 % 4 : row % 8", "0", PRODUCT),
    Fault("stride: parts of a sum on top of each other", "matmul.cu", "(long long)blockIdx.z * M * N", "0", SPLIT),
    Fault("launch: one part of a sum for all", "matmul.py", "(tiles, 1, split), outs", "(tiles, 1, 1), outs", SPLIT),
    Fault("order: the last rows of tiles", "matmul.cu", "min(ACROSS, TILES_M - before)", "ACROSS",
          f"{PRODUCT} or rows_of_tiles"),
    Fault("epilogue: both columns take the slope of one", "matmul.cu", "y *= slope(z.y)", "y *= slope(z.x)", MLP),
    Fault("barrier: the sum of a block", "sums.cuh", "__syncthreads();", "", "norm_of_gradients"),
    Fault("barrier: before warps add their columns", "columns.cuh", "threadIdx.x] = sum;\n  __syncthreads();",
          "threadIdx.x] = sum;", "sums_over_rows"),
    Fault("barrier: between two sums of columns", "columns.cuh", "  __syncthreads();\n  part", "  part",
          "layernorm_and"),
    Fault("launch: the last rows of LayerNorm", "cuda.py", "(-(-m // (THREADS // 32)), 1, 1)",
          "(max(m // (THREADS // 32), 1), 1, 1)", "layernorm_and"),
    Fault("barrier: before the highest logit is read", "cross_entropy.cu", "__syncthreads();", "", "cross_entropy"),
    Fault("bound: a logit behind the vocabulary", "cross_entropy_dx.cu", "c + 1 < V ?", "c < V ?", "cross_entropy"),
    Fault("parts of the norm that nobody sets to 0", "squares.cu", "if (FIRST && blockIdx.x == 0)", "if (0)",
          "norm_of_gradients"),
    Fault("barrier: before keys are read or replaced", "attention.cu", "__syncthreads(); /* these", "/* these",
          ATTENTION),
    Fault("wait: for the next keys", "flash.cuh", '"cp.async.wait_all;"', '""', ATTENTION),
    Fault("bound: keys behind the text", "flash.cuh", "first + row < T && col < D", "col < D", ATTENTION),
    Fault("bound: queries behind the text", "attention_dkv.cu", "key <= query && query < T", "key <= query", ATTENTION),
    Fault("barrier: before marks are replaced", "embed_dw.cu", "    __syncthreads();\n    if", "    if", "embed_and"),
    Fault("launch: the last numbers of AdamW", "cuda.py", "(-(-n // (4 * THREADS)), 1, 1)",
          "(max(n // (4 * THREADS), 1), 1, 1)", "adamw_equals"),
)


@dataclass
class Options:
    only: int | None = option(None, "plant this fault alone, counted from 1")


def notices(fault: Fault, copy: Path) -> bool:
    """Whether a test fails in a copy of the repository that has the fault."""
    path = copy / "kernels" / fault.file
    text = path.read_text(encoding="utf-8")
    if fault.right not in text:
        raise UserError(f"kernels/{fault.file} has no {fault.right!r} any more: change the fault with it")
    path.write_text(text.replace(fault.right, fault.wrong, 1), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-n", "0", "-qx", "-p", "no:cacheprovider", *TESTS, "-k", fault.tests]
    env = {**os.environ, "PYTHONPATH": str(copy)}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False)
    path.write_text(text, encoding="utf-8")
    if done.returncode in (2, 3, 4, 5):  # pytest was stopped, or found no test
        raise UserError(f"the tests couldn't run: {done.stdout[-300:]} {done.stderr[-300:]}")
    return done.returncode != 0


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.cuda_faults", str(__doc__))
    noticed = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "copy")
        leave_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "cache", "*.egg-info")
        shutil.copytree(ROOT, copy, ignore=leave_out)
        for number, fault in enumerate(FAULTS, 1):
            if o.only in (None, number):
                noticed.append(notices(fault, copy))
                print(f"{number:3} {'noticed' if noticed[-1] else 'NOT    '}  {fault.file:20} {fault.what}", flush=True)
    print(f"{sum(noticed)} of {len(noticed)} noticed")


if __name__ == "__main__":
    run_main(main)
