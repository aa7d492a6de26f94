"""What several devices or machines send in a step, how long it takes, and how long it would take with more of them.

    python -m benchmarks.traffic [--devices 4] [--preset gpt2]          bytes, counted on tinygrad's NULL devices
    mpiexec -n 2 python -m benchmarks.traffic [--preset gpt2] ...       time, measured between the ranks of MPI
    python -m benchmarks.traffic --machines 8,64 --gflops 200 --gbits 1 --latency-us 200     time, by the model alone

A NULL device computes nothing. The bytes are those of the gradients, so they don't depend on the batch, which is small
there to be quick.

The model: a step of N machines takes as long as one machine computes for its rows, and for adding up the gradients
2 log2(N) latencies, and 2 (N - 1) / N of their bytes at the link's speed (Thakur et al., "Optimization of Collective
Communication Operations in MPICH", 2005). Between ranks latency and speed are measured first, on numbers alone, and
the model's time for a step is printed beside the measured one.
"""

from runtime.script import run_main

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tinygrad import Device
from tinygrad.helpers import DEV, Context
from tinygrad.nn.state import get_state_dict
from tinygrad.runtime.ops_null import NullAllocator

from commands.options import DTYPES, PRESETS
from commands.options import Options as GPTOptions
from gpt import GPT
from runtime import ranks
from runtime.cli import option, parse
from runtime.device import open_device, open_devices
from runtime.errors import UserError
from runtime.run import Run
from trainer import Task, Trainer


@dataclass
class Options:
    devices: int = option(2, "how many there are")
    preset: str = option("gpt2", "the preset of gpt.py", list(PRESETS))
    dtype: str = option("float32", "the numbers of activations and matmuls", DTYPES)
    grad_accum: int = option(1, "forward passes per step, which change nothing in what is sent")
    n_layer: int = option(0, "another number of blocks than the preset's")
    batch_size: int = option(0, "another number of windows per forward pass than the preset's")
    block_size: int = option(64, "tokens of a window")
    steps: int = option(10, "steps to measure between ranks")
    machines: str | None = option(None, "instead: the model for so many machines, with commas between")
    gflops: float = option(200.0, "of the model: GFLOP/s that a machine computes with")
    gbits: float = option(1.0, "of the model: Gbit/s of the link")
    latency_us: float = option(200.0, "of the model: microseconds of a message")


def make_trainer(o: Options, batch_size: int, devices: tuple[str, ...] = ()) -> Trainer:
    """A trainer of the preset's model on text that is all zeros."""
    options = GPTOptions(**PRESETS[o.preset])
    options.batch_size, options.block_size = batch_size, min(o.block_size, options.block_size)
    options.grad_accum, options.n_layer = o.grad_accum, o.n_layer or options.n_layer
    config = options.config(50257 if options.tokenizer == "gpt2" else 65)
    model = GPT(config, None if devices else 0)
    model.dtype = o.dtype
    xy = np.zeros((2, batch_size, options.block_size), np.int32)
    task = Task(model, GPT.loss, lambda i: (xy[0], xy[1]), dict, devices=devices)
    return Trainer(task, options, Run("unused"))


# ---- bytes between devices ----


def count(o: Options) -> tuple[int, dict[str, int]]:
    """The model's parameters, and the bytes that each device sends to others in a step."""
    DEV.value = "NULL"  # it compiles kernels and runs none
    trainer = make_trainer(o, o.devices, open_devices("NULL", o.devices))
    sent: Counter[str] = Counter()

    def transfer(self, dest, src, size, src_dev, dest_dev):
        sent[src_dev.device] += size

    for _ in range(2):  # the first also sends what only a first step does
        sent.clear()
        NullAllocator._transfer = transfer  # type: ignore[method-assign]
        with Context(JIT=0):  # the copies of a compiled step wouldn't be counted
            trainer.take_step()
    return sum(int(p.numel()) for p in get_state_dict(trainer.task.model).values()), dict(sent)


# ---- time between ranks ----


def seconds(function: Callable[[], object], times: int) -> float:
    """The median time of a function, which all ranks begin together."""
    taken = []
    for _ in range(times):
        ranks.largest(0)
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def model_seconds(machines: int, nbytes: float, latency: float, bytes_per_second: float) -> float:
    """How long `machines` take to add up `nbytes`, for a message's latency in seconds and the speed of a link."""
    return 2 * math.log2(machines) * latency + 2 * (machines - 1) / machines * nbytes / bytes_per_second


def measure_link(nbytes: int) -> tuple[float, float]:
    """Latency and bytes per second of the link between ranks, from adding up 4 bytes, which takes log2(N) messages one
    after the other, and `nbytes`."""
    n, numbers = ranks.size(), np.zeros(nbytes // 4, np.float32)

    def twenty() -> None:
        for _ in range(20):
            ranks.sum_in_place(numbers.ctypes.data, 1)

    few = seconds(twenty, 3) / 20
    many = seconds(lambda: ranks.sum_in_place(numbers.ctypes.data, len(numbers)), 3)
    return few / math.log2(n), 2 * (n - 1) / n * nbytes / (many - 2 * few)


def take_apart(trainer: Trainer) -> tuple[float, float, float]:
    """Seconds of a step: computing, waiting for the slowest rank, and adding up."""
    step, device = trainer.compiled, Device[Device.DEFAULT]
    marks = [time.perf_counter()]

    def mark() -> None:
        device.synchronize()
        marks.append(time.perf_counter())

    for i in range(step.accum):
        step.add_batch(i, trainer.task.batch(i))
    mark()
    ranks.largest(0)
    mark()
    step.sum_over_ranks()
    mark()
    step.end(*step.hyper(trainer.optimizer.hyper(1, 1e-4)))
    mark()
    first, wait, adding, last = (b - a for a, b in zip(marks, marks[1:]))
    return first + last, wait, adding


def measure(o: Options) -> str:
    """Measure steps of this rank alone and of all ranks, in turns; what rank 0 prints."""
    open_device("cpu")
    batch_size = o.batch_size or PRESETS[o.preset]["batch_size"]
    with ranks.apart():
        alone = make_trainer(o, batch_size)
    trainer, n = make_trainer(o, batch_size), ranks.size()
    nbytes = 4 * int(trainer.compiled.block.whole.numel())
    one, parts, links = [], [], []
    for i in range(o.steps + 2):
        if ranks.first():
            began = time.perf_counter()
            alone.take_step()[0].item()
            one.append(time.perf_counter() - began)
        ranks.largest(0)
        parts.append(take_apart(trainer))
        if i % 3 == 0:
            links.append(measure_link(nbytes))
    alone_step = statistics.median(one[2:]) if one else 0.0
    computing, waiting, adding = (statistics.median(column) for column in zip(*parts[2:]))
    step = statistics.median(sum(p) for p in parts[2:])
    latency, speed = (statistics.median(column) for column in zip(*links))
    model = computing + model_seconds(n, nbytes, latency, speed)
    return (
        f"{nbytes / 1e6:,.1f} MB of gradients, {n} ranks on {ranks.machines()} machines, {batch_size} windows of "
        f"{o.block_size} tokens, {o.grad_accum} times a step\n"
        f"link     {latency * 1e6:,.0f} us, {speed * 8 / 1e9:.2f} Gbit/s\n"
        f"alone    {alone_step:.3f} s a step\n"
        f"together {step:.3f} s: {computing:.3f} computing, {waiting:.3f} waiting for the other rank, {adding:.3f} "
        f"adding up; efficiency {alone_step / n / step:.0%}\n"
        f"model    {model:.3f} s, {model / step - 1:+.0%}"
    )


# ---- time on paper ----


def table(o: Options) -> str:
    """The model's time of a step for each number of machines, of the preset's batch."""
    preset = PRESETS[o.preset]
    options = GPTOptions(**preset)
    config = options.config(50257 if options.tokenizer == "gpt2" else 65)
    tokens = options.batch_size * options.grad_accum * options.block_size
    work, nbytes = config.flops_per_token * tokens / (o.gflops * 1e9), 4 * config.parameters
    lines = [f"{o.preset}: {config.parameters:,} parameters, {tokens:,} tokens a step, {work:,.0f} s on one machine"]
    for n in map(int, str(o.machines).split(",")):
        adding = model_seconds(n, nbytes, o.latency_us / 1e6, o.gbits * 1e9 / 8)
        lines.append(f"{n:>6} machines: {work / n:9.2f} s computing, {adding:7.2f} s adding up, "
                     f"efficiency {work / n / (work / n + adding):.0%}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.traffic", str(__doc__))
    if o.machines:
        print(table(o))
    elif ranks.size() > 1:
        print(measure(o))
    elif o.devices < 2:
        raise UserError(f"--devices must be at least 2, not {o.devices}: one device has none to send to")
    else:
        parameters, sent = count(o)
        print(f"{parameters:,} parameters, {parameters * 4 / 1e6:,.1f} MB in float32; {o.devices} devices, {o.dtype}: "
              f"each sends {max(sent.values()) / 1e6:,.1f} MB a step")


if __name__ == "__main__":
    run_main(main)
