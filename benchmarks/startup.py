"""The time from the command line to the first printed step: with empty caches, and again with full ones.

    python -m benchmarks.startup [--warm 5] [SCRIPT ARGS ...]

A cold start has an empty folder for tinygrad's compiled kernels and for our own files; Python's files may be in memory.
"""

from runtime.script import run_main

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.corpora import find_corpus
from data.encoding import encode_corpus
from runtime.cli import option, parse
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Options:
    script: str = option("gpt.py", "the script to start", ("gpt.py", "bigram.py", "grok.py"))
    warm: int = option(5, "how many warm starts to take the median of")


def first_step(script: str, folder: Path, run: str) -> float:
    """Seconds until the script prints the line of its first step. It is stopped there."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "DATA_DIR": str(folder / "data")}
    environment.pop("CACHEDB", None)
    command = [sys.executable, str(ROOT / script), "--out", str(folder / run)]
    began = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    with process:
        for line in process.stdout:
            if line.startswith("step"):
                break
        else:
            raise UserError(f"{script} ended without a step: {process.stderr.read().strip()[-300:]}")
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


def measure(script: str, warm: int) -> tuple[float, list[float]]:
    """Seconds of a cold start, and of as many warm ones. The text is rendered or fetched before."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if script != "grok.py":
            encode_corpus(find_corpus("shakespeare", str(folder / "data")), "char", str(folder / "data"))
        cold = first_step(script, folder, "cold")
        return cold, [first_step(script, folder, f"warm{i}") for i in range(warm)]


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.startup", str(__doc__))
    if o.warm < 1:
        raise UserError("--warm must be at least 1")
    cold, warm = measure(o.script, o.warm)
    every = ", ".join(f"{s:.1f}" for s in warm)
    print(f"{o.script}: first step after {cold:.1f} s cold; warm after {statistics.median(warm):.1f} s ({every})")


if __name__ == "__main__":
    run_main(main)
