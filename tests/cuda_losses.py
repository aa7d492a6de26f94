"""Losses of short runs on the CPU beside the same on CUDA, and on one device beside two:

    python tests/cuda_losses.py                      # on the stand-in of cuda_driver.c
    CUDA_TEST_REAL=1 python tests/cuda_losses.py     # on a GPU

Each run is a command line in a folder of its own. The table gives the largest difference of the losses, in training and
on the validation split, and of the norms of the gradients as a share of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from cuda_on_cpu import gpu

ROOT = Path(__file__).resolve().parent.parent
GPT = ["gpt.py", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", "16", "--batch-size", "4"]
GPT += ["--lr", "1e-2", "--warmup", "2", "--steps", "6", "--log-interval", "1", "--eval-interval", "6"]
GPT += ["--eval-batches", "2"]
HARD = ["--grad-accum", "2", "--dropout", "0.1"]
GROK = ["grok.py", "--p", "11", "--frac", "0.6", "--batch", "32", "--n-layer", "1", "--n-embd", "16", "--n-head", "2"]
GROK += ["--steps", "30"]
BIGRAM = ["bigram.py", "--steps", "40", "--lr", "3e-2", "--eval-interval", "20", "--eval-batches", "2"]


def launch(command: list[str], folder: Path, device: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """A script of this project, in a folder: on the CPU (`cpu`), or as `CUDA=1 python ...` (`cuda`)."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DEV", "CUDA", "CC", "LD_LIBRARY_PATH")}
    environment |= {"DATA_DIR": str(folder / "data")}
    if device == "cpu":
        environment["DEV"] = "CPU"
    else:
        cache = settings.pop("cache", None)  # the user's folder of kernels and times
        environment |= {"CUDA": "1", **gpu(**settings)} | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    command = [sys.executable, str(ROOT / command[0]), *command[1:]]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def run(command: list[str], folder: Path, name: str, device: str, **settings: object) -> Path:
    """Launch a training; its run folder. Raises RuntimeError if it fails."""
    done = launch([*command, "--out", name], folder, device, **settings)
    if done.returncode:
        raise RuntimeError(f"{command} on {device} ended with {done.returncode}: {done.stderr[-2000:]}")
    return folder / name


def metrics(path: Path) -> list[dict[str, float]]:
    """What a run logged, without what depends on the time."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds" and "_per_s" not in k} for line in lines]


def difference(first: Path, second: Path) -> tuple[float, float]:
    """The largest difference of two runs' losses, and of their gradients' norms relative to these."""
    a, b = metrics(first), metrics(second)
    assert [line["step"] for line in a] == [line["step"] for line in b]
    pairs = [(x[key], y[key]) for x, y in zip(a, b) for key in ("train_loss", "val_loss") if key in x]
    norms = [(x["grad_norm"], y["grad_norm"]) for x, y in zip(a, b)]
    (x, y), (u, v) = (np.array(p).T for p in (pairs, norms))
    return float(np.abs(x - y).max()), float((np.abs(u - v) / u).max())


def rows(text: Path) -> dict[str, tuple[list[str], list[str], str]]:
    """What is compared: {name: (a command on the first device, a command on the second, which devices)}."""
    data = ["--data", str(text)]
    out = {d: ([*GPT, *HARD, *data, "--dtype", d],) * 2 for d in ("float32", "bfloat16", "float16")}
    both = {f"GPT, {d}": (*commands, "cpu cuda") for d, commands in out.items()}
    two = [*GPT, *HARD, *data, "--dtype", "float32"]
    return {
        **both,
        "grok.py": (GROK, GROK, "cpu cuda"),
        "bigram.py": ([*BIGRAM, *data], [*BIGRAM, *data], "cpu cuda"),
        "GPT, one and two GPUs, float32": (two, [*two, "--devices", "2"], "cuda cuda"),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| | loss | gradient's norm |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        words = ["the", "king", "and", "queen", "of", "night", "sing", "to", "a", "cold", "bright", "star,", "never;"]
        (folder / "words.txt").write_text("\n".join(" ".join(rng.choice(words, size=6)) for _ in range(500)))
        compared = rows(folder / "words.txt")
        if os.environ.get("CUDA_TEST_REAL") == "1":
            del compared["GPT, one and two GPUs, float32"]  # there may be only one
        for i, (what, (first, second, devices)) in enumerate(compared.items()):
            sides = zip((first, second), devices.split(), "ab")
            runs = [run(command, folder, f"{side}{i}", device, devices=2) for command, device, side in sides]
            loss, norm = difference(*runs)
            print(f"| {what} | {loss:.1e} | {norm:.1e} |", flush=True)


if __name__ == "__main__":
    main()
