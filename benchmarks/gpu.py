"""A training step on a GPU: ours, ours with kernels found by --beam, and PyTorch's, taking turns in one run.

    python -m benchmarks.gpu [--beam 2] [--only gpt2] [--rounds 3] [--steps 20]

For `shakespeare-char`, `gpt2` at the largest batch that fits, and grok.py: tokens a second, milliseconds a step, the
first step with nothing cached, memory held in tensors, and the model's own FLOPs as a share of the device's published
peak (MFU, Chowdhery et al., arXiv:2204.02311). PyTorch, where it is installed, runs eager and compiled, with
autocast and flash attention as nanoGPT uses them. Neither side has dropout, as in benchmarks/train_step.py.

Every turn is a process of its own, so that none holds memory that the next one needs. Steps are timed together, as in
training: nothing waits for the device between them.
"""

from runtime.script import run_main

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tinygrad import GlobalCounters

from benchmarks import grok_step, train_step
from benchmarks.train_step import ROOT, batches, peak_mb
from commands.options import PRESETS
from commands.options import Options as GPTOptions
from commands.roofline import tensor_peak
from commands.weights import best_dtype
from gpt import GPT, GPTConfig
from grok import Experiment, GrokTrainer
from grok import Options as GrokOptions
from runtime.cli import option, parse
from runtime.device import beam_search, describe_device, open_device
from runtime.errors import UserError
from runtime.run import Run
from trainer import Task, Trainer

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 4}  # for the tests, on a CPU
WORK = ("shakespeare-char", "gpt2", "grok", "tiny")
SIDES = {"ours": "ours", "beam": "ours, --beam", "eager": "PyTorch", "compiled": "PyTorch compiled"}
SIZES = (128, 96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 2, 1)  # batches of gpt2 to try
WARM = 3  # steps before any is timed


@dataclass
class Options:
    device: str = option("cuda", "the device to measure")
    only: str | None = option(None, "one of them alone (tiny: a model for tests)", WORK)
    batch: int = option(0, "windows per step of gpt2 (0: the largest that fits ours)")
    rounds: int = option(3, "turns that each program takes")
    steps: int = option(20, "steps in a turn that are timed")
    beam: int = option(0, "ours once more, with this --beam of gpt.py")
    beam_minutes: float = option(10.0, "how long it may search")
    torch: bool = option(True, "PyTorch too, where it is installed")
    worker: str | None = option(None, "which side to run (used by the program itself)", ("look", *SIDES))


# ---- one turn, in a process of its own ----


def configuration(work: str, batch: int) -> tuple[GPTOptions, GPTConfig]:
    o = GPTOptions(**(TINY if work == "tiny" else PRESETS[work]))
    o.grad_accum, o.batch_size = 1, batch or o.batch_size
    return o, o.config(50257 if o.tokenizer == "gpt2" else 65)


def turn(o: Options) -> dict[str, Any]:
    """Take some steps: the time and the loss of the first, seconds of each of the others, bytes of memory."""
    assert o.only and o.worker
    ours = o.worker in ("ours", "beam")
    device = open_device(o.device if ours else "cpu")  # of the initial weights, for PyTorch
    step, memory = (tinygrad_step if ours else torch_step)(o, device)
    began = time.perf_counter()
    with beam_search(o.beam if o.worker == "beam" else 0, o.beam_minutes):
        loss = step().item()  # waits for the device
    first = time.perf_counter() - began
    for _ in range(WARM):
        step().item()
    began = time.perf_counter()
    for _ in range(o.steps):
        last = step()
    last.item()
    return {"first": first, "loss": loss, "seconds": (time.perf_counter() - began) / o.steps, "memory": memory()}


def tinygrad_step(o: Options, device: str) -> tuple[Callable[[], Any], Callable[[], float]]:
    assert o.only
    if o.only == "grok":
        trainer: Trainer = GrokTrainer(Experiment(GrokOptions()), Run("unused"))
    else:
        options, config = configuration(o.only, o.batch)
        model = GPT(config)
        model.dtype = best_dtype(device)
        trainer = Trainer(Task(model, GPT.loss, batches(options, config), dict), options, Run("unused"))
    return lambda: trainer.take_step()[0], lambda: GlobalCounters.mem_used


def torch_step(o: Options, device: str) -> tuple[Callable[[], Any], Callable[[], float]]:
    import torch

    where = o.device.lower().split(":")[0]
    compiled = o.worker == "compiled"
    if o.only == "grok":
        step = grok_step.torch_step(Experiment(GrokOptions()), 0, compiled, where)
    else:
        assert o.only
        options, config = configuration(o.only, o.batch)
        half = where == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
        step = train_step.torch_step(options, config, 0, compiled, where, half)
    return step, lambda: torch.cuda.max_memory_allocated() if where == "cuda" else peak_mb() * 1e6


# ---- all of them ----


def run(o: Options, work: str, side: str, batch: int, steps: int, cache: Path) -> dict[str, Any]:
    """A turn in a new process, or the last line of its error as `error`. What it compiles is kept in `cache`."""
    args = ["--device", o.device, "--worker", side, "--only", work, "--batch", str(batch), "--steps", str(steps)]
    args += ["--beam", str(o.beam), "--beam-minutes", str(o.beam_minutes)]
    own = cache / f"{work}-{batch}-{side}"
    caches = {"XDG_CACHE_HOME": own, "TORCHINDUCTOR_CACHE_DIR": own / "inductor", "TRITON_CACHE_DIR": own / "triton"}
    own.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **{k: str(v) for k, v in caches.items()}}
    command = [sys.executable, "-m", "benchmarks.gpu", *args]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def largest_batch(o: Options, work: str, cache: Path) -> int:
    """The first of SIZES that two steps of ours fit with. Raises UserError if none does."""
    for batch in SIZES:
        answer = run(o, work, "ours", batch, 2, cache)
        if "error" not in answer:
            return batch
        print(f"{work}: a batch of {batch} doesn't fit ({answer['error']})", flush=True)
    raise UserError(f"{work} can't take a step on {o.device}: {answer['error']}")


def measure(o: Options, work: str, peak: float | None, cache: Path) -> list[dict[str, Any]]:
    """Rows of the table: what each program reached at this work."""
    batch = o.batch
    if work == "gpt2" and not batch:
        batch = largest_batch(o, work, cache / "search")
    sides = ["ours", *["beam"] * bool(o.beam), *["eager", "compiled"] * bool(o.torch and find_spec("torch"))]
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for i in range(o.rounds):
        for side in sides if i % 2 == 0 else sides[::-1]:
            if not any("error" in a for a in answers[side]):
                answers[side].append(run(o, work, side, batch, o.steps, cache))
                print(f"{work}, turn {i + 1}, {SIDES[side]}: {json.dumps(answers[side][-1])}", flush=True)
    return [row(work, side, batch, turns, peak) for side, turns in answers.items()]


def row(work: str, side: str, batch: int, turns: list[dict[str, Any]], peak: float | None) -> dict[str, Any]:
    """Medians of the turns, and what follows from them."""
    tokens, flops = step_size(work, batch)
    what = {"work": work, "side": SIDES[side], "tokens_per_step": tokens}
    if errors := [t["error"] for t in turns if "error" in t]:
        return what | {"error": errors[0]}
    seconds = statistics.median(t["seconds"] for t in turns)
    return what | {
        "ms": seconds * 1e3,
        "tokens_per_s": tokens / seconds,
        "steps_per_s": 1 / seconds,
        "first_s": turns[0]["first"],
        "first_loss": turns[0]["loss"],
        "memory_mb": max(t["memory"] for t in turns) / 1e6,
        "mfu": flops / seconds / peak if peak else None,
    }


def step_size(work: str, batch: int) -> tuple[int, float]:
    """Tokens and FLOPs, forward and backward, of a step."""
    if work != "grok":
        o, config = configuration(work, batch)
        tokens = o.batch_size * config.block_size
        return tokens, float(config.flops_per_token * tokens)
    e = GrokOptions()
    L, C, T, V = e.n_layer, e.n_embd, 3, e.p + 4  # a prompt `a b =`; the answer is read at its last position
    blocks = 12 * C * C * T * (L - 1)  # after the last block's attention only that position goes on
    return e.batch * T, e.batch * (6.0 * (blocks + 3 * C * C * T + 9 * C * C + V * C) + 12 * L * C * T * T)


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["", "", "ms/step", "tokens/s", "steps/s", "first step", "memory", "MFU"]
    lines = [head]
    for r in rows:
        if "error" in r:
            lines.append([r["work"], r["side"], r["error"]] + [""] * 5)
            continue
        share = "" if r["mfu"] is None else f"{r['mfu']:.1%}"
        speeds = [f"{r['ms']:,.2f}", f"{r['tokens_per_s']:,.0f}", f"{r['steps_per_s']:,.1f}"]
        lines.append([r["work"], r["side"], *speeds, f"{r['first_s']:.1f} s", f"{r['memory_mb']:,.0f} MB", share])
    widths = [max(len(line[i]) for line in lines if len(line[2]) < 20) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def device_info(o: Options) -> dict[str, Any]:
    """Name, driver and memory as nvidia-smi has them, and what tinygrad calls the device. Ends if there is none."""
    look = [sys.executable, "-m", "benchmarks.gpu", "--device", o.device, "--worker", "look"]
    done = subprocess.run(look, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        raise SystemExit(done.returncode)
    info = {"device": done.stdout.strip(), "name": done.stdout.strip(), "driver": None}
    if done.stdout.startswith(("CUDA", "NV")):
        ask = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(ask, capture_output=True, text=True, check=False).stdout
        fields = [part.strip() for part in (answer.splitlines() or ["unknown, unknown, unknown"])[0].split(",")]
        info |= dict(zip(("name", "driver", "memory"), fields))
    return info


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.gpu", str(__doc__))
    if o.worker == "look":
        print(describe_device(open_device(o.device)))
        return
    if o.worker:
        print(json.dumps(turn(o)))
        return
    if min(o.rounds, o.steps) < 1 or min(o.batch, o.beam) < 0:
        raise UserError("--rounds and --steps must be at least 1, --batch and --beam at least 0")
    info = device_info(o)
    peak = tensor_peak(info["name"])
    info |= {"peak": peak, "date": time.strftime("%Y-%m-%d"), "command": f"python -m benchmarks.gpu {' '.join(argv)}"}
    print(f"device   {info['name']}, {info['device']}, driver {info['driver'] or 'none'}")
    print(f"peak     {peak / 1e12:,.1f} TFLOPS, 16-bit numbers, dense, as published" if peak else
          "peak     unknown here, so there is no MFU", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        works = [o.only] if o.only else ["shakespeare-char", "gpt2", "grok"]
        rows = [r for work in works for r in measure(o, work, peak, Path(cache))]
    losses = {(r["work"], r["first_loss"]) for r in rows if "error" not in r}
    for work in works:
        these = [loss for name, loss in losses if name == work]
        if these and max(these) - min(these) > 0.02 * max(these):  # else two different things were timed
            raise SystemExit(f"the programs disagree on {work}: their first losses are {sorted(these)}")
    print(f"\n{table(rows)}\n")
    print(json.dumps(info | {"rows": rows}))


if __name__ == "__main__":
    run_main(main)
