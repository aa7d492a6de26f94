"""All comparisons of this folder except the tokenizer's, one after the other, and one table at the end.

    pip install -e '.[bench,parity]'
    python -m benchmarks [--rounds 8] [--no-compiled]

It takes half an hour on two cores, and the numbers are only worth reading if nothing else runs on them. Each line is
from one run in which the programs took turns; ratios are of medians, below 1 where ours is faster.
"""

from runtime.script import run_main

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from benchmarks import engine, generate, grok_step, roofline, startup, train_step
from benchmarks.train_step import Side
from runtime.cli import option, parse
from runtime.device import describe_device, open_device
from runtime.errors import UserError


@dataclass
class Options:
    rounds: int = option(8, "turns that each program takes")
    compiled: bool = option(True, "PyTorch a second time, compiled (needs a C++ compiler)")


def row(what: str, sides: dict[str, Side]) -> list[str]:
    """A line of the table: what was measured, medians, ratios, memory."""
    ours, eager, compiled = sides["ours"], sides["eager"], sides.get("compiled")
    cells = [what, f"{ours.median * 1e3:,.1f} ms", f"{eager.median * 1e3:,.1f} ms", f"{ours.median / eager.median:.2f}"]
    cells += [f"{compiled.median * 1e3:,.1f} ms", f"{ours.median / compiled.median:.2f}"] if compiled else ["", ""]
    return [*cells, f"{ours.peak:,.0f} / {eager.peak:,.0f} MB"]


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks", str(__doc__))
    if missing := [name for name in ("torch", "transformers") if not find_spec(name)]:
        raise UserError(f"{missing[0]} isn't installed: `pip install -e '.[bench,parity]'` brings it")
    title = lambda text: print(f"\n---- {text}", flush=True)
    title("roofline")
    roofs = roofline.measure()
    print(f"matmul {roofs['matmul'] / 1e9:,.0f} GFLOPS, memory {roofs['memory'] / 1e9:,.1f} GB/s", flush=True)
    rows = []
    for preset, steps in (("shakespeare-char-cpu", 10), ("tinystories", 2)):
        title(f"training step, {preset}")
        options = train_step.Options(preset=preset, rounds=o.rounds, steps=steps, compiled=o.compiled)
        rows.append(row(f"step, {preset}", train_step.compare(options)))
    title("training step, engine.py")
    rows.append(row("step, engine.py", engine.compare(engine.Options(rounds=o.rounds))))
    title("training step, grok.py")
    rows.append(row("step, grok.py", grok_step.compare(grok_step.Options(rounds=o.rounds, compiled=o.compiled))))
    title("from the command line to the first step")
    for script in ("gpt.py", "grok.py"):
        cold, warm = startup.measure(script, 5)
        rows.append([f"{script} to its first step", f"{cold:.1f} s cold, {statistics.median(warm):.1f} s warm"])
        print("  ".join(rows[-1]), flush=True)
    for preset in ("shakespeare-char-cpu", "gpt2"):
        title(f"generating text, {preset}")
        speeds = generate.compare(generate.Options(preset=preset, rounds=o.rounds, prompt=16, tokens=40, slow_tokens=8))
        theirs = max(speeds["transformers"], speeds["transformers-1"])
        cells = [f"{speeds['cache']:,.1f} tokens/s", f"{theirs:,.1f} tokens/s", f"{theirs / speeds['cache']:.2f}"]
        rows.append([f"text, {preset}", *cells])

    head = ["", "ours", "PyTorch eager", "ratio", "compiled", "ratio", "peak memory"]
    table = [line + [""] * (len(head) - len(line)) for line in [head, *rows]]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    print(f"\n{describe_device(open_device('cpu'))}, roofs {roofs['matmul'] / 1e9:,.0f} GFLOPS and "
          f"{roofs['memory'] / 1e9:,.1f} GB/s; text: compared with transformers, its cache on")
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    by_flops = roofs["flops"] / roofs["matmul"]
    print(f"the CPU preset's step is {roofs['flops'] / 1e9:.2f} GFLOP: {by_flops * 1e3:.1f} ms at the matmul's roof; "
          f"its fastest took {roofs['seconds'] * 1e3:.1f} ms")


if __name__ == "__main__":
    run_main(main)
