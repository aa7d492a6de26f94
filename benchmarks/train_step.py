"""Our training step and the same step in PyTorch, on this machine, taking turns in one run.

    pip install -e '.[bench]'
    python -m benchmarks.train_step [--preset shakespeare-char-cpu] [--rounds 8] [--compiled]

Both programs hold the same model (the weights are copied over), take the same batches, clip, and use AdamW. Each runs
in a process of its own, so that their threads don't wait for each other; they take turns of a few steps, because a
shared machine's speed drifts by more than the difference that is measured. The result is the ratio of the medians.
"""

from runtime.script import run_main

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad.nn.state import get_state_dict

from commands.options import PRESETS
from commands.options import Options as GPTOptions
from exchange.layout import make_model
from gpt import GPT, GPTConfig
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.run import Run
from trainer import Task, Trainer, learning_rate

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Options:
    preset: str = option("shakespeare-char-cpu", "the preset of gpt.py to measure", list(PRESETS))
    rounds: int = option(8, "turns that each program takes")
    steps: int = option(10, "steps in a turn")
    threads: int = option(0, "PyTorch's threads (0: its default)")
    compiled: bool = option(False, "PyTorch a second time, compiled (needs a C++ compiler)")
    worker: str | None = option(None, "which side to run (used by the program itself)", ("ours", "eager", "compiled"))


def batches(o: GPTOptions, config: GPTConfig) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    def batch(i: int) -> tuple[np.ndarray, np.ndarray]:
        shape = (2, o.batch_size, config.block_size)
        xy = np.random.default_rng(i).integers(0, config.vocab_size, shape, dtype=np.int32)
        return xy[0], xy[1]

    return batch


def tinygrad_step(o: GPTOptions, config: GPTConfig) -> Callable[[], float]:
    """One call takes one step and returns its loss, through the Trainer that gpt.py uses."""
    open_device()
    model: GPT = make_model(config, 1337)
    trainer = Trainer(Task(model, GPT.loss, batches(o, config), dict), o, Run("unused"))
    return lambda: trainer.take_step()[0].item()


def torch_step(
    o: GPTOptions, config: GPTConfig, threads: int, compiled: bool, device: str = "cpu", half: bool = False
) -> Callable[[], Any]:
    """The same model written for PyTorch as one would: nn.Module, fused attention, fused AdamW; `half` is autocast.

    One call takes one step and returns its loss, still on the device.
    """
    try:
        import torch
        import torch.nn.functional as F
    except ImportError as error:
        raise UserError("PyTorch isn't installed: `pip install -e '.[bench]'` brings it") from error
    open_device("cpu")
    start = {name: torch.tensor(p.numpy()).to(device) for name, p in get_state_dict(GPT(config)).items()}
    if threads:
        torch.set_num_threads(threads)
    nh, C = config.n_head, config.n_embd

    class Twin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.ParameterDict({k.replace(".", "/"): torch.nn.Parameter(v) for k, v in start.items()})

        def norm(self, x, name):
            return F.layer_norm(x, (C,), self.p[f"{name}/weight"], self.p[f"{name}/bias"])

        def linear(self, x, name):  # addmm takes our (in, out) weights as they are
            y = torch.addmm(self.p[f"{name}/bias"], x.reshape(-1, x.shape[-1]), self.p[f"{name}/weight"])
            return y.view(*x.shape[:-1], -1)

        def forward(self, idx, targets):
            B, T = idx.shape
            x = F.embedding(idx, self.p["wte/weight"]) + self.p["wpe/weight"][:T]
            for i in range(config.n_layer):
                qkv = self.linear(self.norm(x, f"h/{i}/ln_1"), f"h/{i}/attn/c_attn")
                q, k, v = (t.view(B, T, nh, C // nh).transpose(1, 2) for t in qkv.split(C, -1))
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
                x = x + self.linear(y, f"h/{i}/attn/c_proj")
                h = F.gelu(self.linear(self.norm(x, f"h/{i}/ln_2"), f"h/{i}/mlp/c_fc"), approximate="tanh")
                x = x + self.linear(h, f"h/{i}/mlp/c_proj")
            logits = F.linear(self.norm(x, "ln_f"), self.p["wte/weight"])
            return F.cross_entropy(logits.view(-1, config.vocab_size), targets.view(-1))

    twin, draw, count = Twin(), batches(o, config), 0
    matrices = [p for p in twin.parameters() if p.ndim >= 2]
    vectors = [p for p in twin.parameters() if p.ndim < 2]
    loss_of = torch.compile(twin) if compiled else twin
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=o.lr, betas=(o.beta1, o.beta2), fused=True)

    def step() -> Any:
        nonlocal count
        for group in adamw.param_groups:
            group["lr"] = learning_rate(count, o)
        x, y = (torch.from_numpy(a).long().to(device) for a in draw(count))
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = loss_of(x, y)
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), o.grad_clip)
        adamw.step()
        count += 1
        return loss.detach()

    return step


def work(o: Options) -> None:
    """Run one side."""
    options = GPTOptions(**PRESETS[o.preset])
    options.grad_accum = 1
    config = options.config(50257 if options.tokenizer == "gpt2" else 65)
    if o.worker == "ours":
        serve(tinygrad_step(options, config))
    else:
        step = torch_step(options, config, o.threads, compiled=o.worker == "compiled")
        serve(lambda: step().item())


def serve(step: Callable[[], float]) -> None:
    """For each line on stdin take a turn of that many steps; answer with losses, seconds and the peak memory."""
    for line in sys.stdin:
        losses, seconds = [], []
        for _ in range(int(line)):
            began = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"losses": losses, "seconds": seconds, "peak_mb": peak_mb()}), flush=True)


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux. Its getrusage would count what the parent had before this program began
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


class Side:
    """A worker process, and the times of its steps."""

    def __init__(self, module: str, *args: str, **environment: str):
        self.process = subprocess.Popen([sys.executable, "-m", module, *args], cwd=ROOT, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.seconds: list[float] = []
        self.peak = 0.0  # MB

    def close(self) -> None:
        """Let the process end, so that it doesn't disturb what is timed after it."""
        self.process.communicate()

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def turn(self, steps: int) -> dict[str, Any]:
        """Let it take steps (or write tokens); what it answers: their losses and seconds, the peak memory."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(self.process.wait())  # it has printed why
        result = json.loads(answer)
        self.peak = result["peak_mb"]
        return result


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.train_step", str(__doc__))
    if o.worker:
        work(o)
    else:
        compare(o)


def compare(o: Options) -> dict[str, Side]:
    args = ("benchmarks.train_step", "--preset", o.preset, "--threads", str(o.threads), "--worker")
    names = ["ours", "eager", *["compiled"] * o.compiled]
    return take_turns({name: Side(*args, name) for name in names}, o.rounds, o.steps, o.preset)


LABELS = {"ours": "ours", "eager": "PyTorch", "compiled": "compiled"}


def take_turns(sides: dict[str, Side], rounds: int, steps: int, what: str) -> dict[str, Side]:
    """Let the programs take steps, turn by turn, and print the results. Ends if their first losses disagree."""
    first = {}
    for name, side in sides.items():
        answer = side.turn(3)  # compiles, and warms up
        first[name] = answer["losses"]
        print(f"{LABELS[name]:8} first step {answer['seconds'][0]:6.2f} s   losses {answer['losses']}")
        apart = max(abs(a - b) for a, b in zip(first["ours"], first[name]))
        if not apart < 1e-3:  # else two different things would be timed
            raise SystemExit(f"the programs disagree: their first losses are {apart} apart")
    order = list(sides.values())
    for i in range(rounds):
        for side in order if i % 2 else reversed(order):
            side.seconds += side.turn(steps)["seconds"]
    for side in order:
        side.close()
    for name, side in sides.items():
        quick = sorted(side.seconds)[math.floor(len(side.seconds) / 10)]
        print(f"{LABELS[name]:8} median {side.median * 1e3:7.1f} ms   fastest tenth {quick * 1e3:7.1f} ms   "
              f"peak memory {side.peak:,.0f} MB")
    for name, side in list(sides.items())[1:]:
        print(f"ratio of medians {sides['ours'].median / side.median:.2f} to {LABELS[name]}   "
              f"({what}, {rounds} turns of {steps} steps each)")
    return sides


if __name__ == "__main__":
    run_main(main)
