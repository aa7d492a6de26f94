"""The bytes that `gpt.py --devices N` sends between devices in a step, counted on tinygrad's NULL devices.

    python -m benchmarks.traffic [--devices 4] [--preset gpt2] [--dtype bfloat16]

A NULL device computes nothing. The bytes are those of the gradients, so they don't depend on the batch, which is small
here to be quick.
"""

from runtime.script import run_main

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tinygrad.helpers import Context
from tinygrad.nn.state import get_state_dict
from tinygrad.runtime.ops_null import NullAllocator

from commands.options import DTYPES, PRESETS
from commands.options import Options as GPTOptions
from gpt import GPT
from runtime.cli import option, parse
from runtime.device import open_device, open_devices
from runtime.errors import UserError
from runtime.run import Run
from trainer import Task, Trainer


@dataclass
class Options:
    devices: int = option(2, "how many there are")
    preset: str = option("gpt2", "the preset of gpt.py", list(PRESETS))
    dtype: str = option("bfloat16", "the numbers of activations and matmuls", DTYPES)
    grad_accum: int = option(1, "forward passes per step, which change nothing")
    n_layer: int = option(0, "another number of blocks than the preset's")


def count(o: Options) -> tuple[int, dict[str, int]]:
    """The model's parameters, and the bytes that each device sends to others in a step."""
    open_device("null")
    options = GPTOptions(**PRESETS[o.preset])
    options.batch_size, options.block_size = o.devices, min(64, options.block_size)
    options.grad_accum = o.grad_accum
    options.n_layer = o.n_layer or options.n_layer
    model = GPT(options.config(50257 if options.tokenizer == "gpt2" else 65), None)
    model.dtype = o.dtype
    params = get_state_dict(model)
    xy = np.zeros((2, o.devices, options.block_size), np.int32)
    task = Task(model, GPT.loss, lambda i: (xy[0], xy[1]), dict, devices=open_devices("NULL", o.devices))
    trainer = Trainer(task, options, Run("unused"))
    sent: Counter[str] = Counter()

    def transfer(self, dest, src, size, src_dev, dest_dev):
        sent[src_dev.device] += size

    for _ in range(2):  # the first also sends what only a first step does
        sent.clear()
        NullAllocator._transfer = transfer  # type: ignore[method-assign]
        with Context(JIT=0):  # the copies of a compiled step wouldn't be counted
            trainer.take_step()
    return sum(int(p.numel()) for p in params.values()), dict(sent)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.traffic", str(__doc__))
    if o.devices < 2:
        raise UserError(f"--devices must be at least 2, not {o.devices}: one device has none to send to")
    parameters, sent = count(o)
    print(f"{parameters:,} parameters, {parameters * 4 / 1e6:,.1f} MB in float32; {o.devices} devices, {o.dtype}: "
          f"each sends {max(sent.values()) / 1e6:,.1f} MB a step")


if __name__ == "__main__":
    run_main(main)
