"""A training step of grok.py and the same step in PyTorch, on this machine, taking turns in one run.

    pip install -e '.[bench]'
    python -m benchmarks.grok_step [--preset fast] [--rounds 8]

It measures as benchmarks/train_step.py does: same weights, same pairs, AdamW with decay on every parameter, logits at
the last position only. PyTorch's table is in memory too; its batches are gathered by index.
"""

from runtime.script import run_main

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.train_step import Side, serve, take_turns
from grok import PRESETS, Experiment, GrokTrainer
from grok import Options as GrokOptions
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.run import Run


@dataclass
class Options:
    preset: str = option("default", "the configuration of grok.py to measure", ["default", *PRESETS])
    rounds: int = option(8, "turns that each program takes")
    steps: int = option(20, "steps in a turn")
    threads: int = option(0, "PyTorch's threads (0: its default)")
    compiled: bool = option(False, "PyTorch a second time, compiled (needs a C++ compiler)")
    worker: str | None = option(None, "which side to run (used by the program itself)", ("ours", "eager", "compiled"))


def tinygrad_step(e: Experiment) -> Callable[[], float]:
    """One call takes one step and returns its loss, through the trainer that grok.py uses."""
    trainer = GrokTrainer(e, Run("unused"))
    return lambda: trainer.take_step()[0].item()


def torch_step(e: Experiment, threads: int, compiled: bool, device: str = "cpu") -> Callable[[], Any]:
    """The same model written for PyTorch as one would: fused attention, fused AdamW.

    One call takes one step and returns its loss, still on the device.
    """
    try:
        import torch
        import torch.nn.functional as F
    except ImportError as error:
        raise UserError("PyTorch isn't installed: `pip install -e '.[bench]'` brings it") from error

    if threads:
        torch.set_num_threads(threads)
    o, nh, C = e.o, e.config.n_head, e.config.n_embd
    w = {name: torch.nn.Parameter(torch.tensor(t.numpy()).to(device)) for name, t in e.params.items()}
    prompts, answers = (torch.tensor(a).long().to(device) for a in (e.table.prompts, e.table.answers))
    adamw = torch.optim.AdamW(w.values(), lr=o.lr, betas=o.both_betas(), weight_decay=o.wd, fused=True)

    def norm(x, name):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):  # addmm takes our (in, out) weights as they are
        y = torch.addmm(w[f"{name}.bias"], x.reshape(-1, x.shape[-1]), w[f"{name}.weight"])
        return y.view(*x.shape[:-1], -1)

    def plain_loss(idx, targets):
        B, T = idx.shape
        x = F.embedding(idx, w["wte.weight"]) + w["wpe.weight"][:T]
        for i in range(o.n_layer):
            q, k, v = (
                t.view(B, T, nh, C // nh).transpose(1, 2)
                for t in linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").split(C, -1)
            )
            if i == o.n_layer - 1:  # only the last position goes on, and it may look at every other
                y, x = F.scaled_dot_product_attention(q[:, :, -1:], k, v), x[:, -1:]
            else:
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + linear(y.transpose(1, 2).reshape(B, -1, C), f"h.{i}.attn.c_proj")
            h = F.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"), approximate="tanh")
            x = x + linear(h, f"h.{i}.mlp.c_proj")
        return F.cross_entropy(F.linear(norm(x, "ln_f")[:, 0], w["lm_head.weight"]), targets)

    count, loss_of = 0, torch.compile(plain_loss) if compiled else plain_loss

    def step() -> Any:
        nonlocal count
        adamw.param_groups[0]["lr"] = o.lr * min(1.0, (count + 1) / o.warmup)
        index = torch.from_numpy(e.batch(count)[0].astype(np.int64)).to(device)
        loss = loss_of(prompts[index], answers[index])
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        adamw.step()
        count += 1
        return loss.detach()

    return step


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.grok_step", str(__doc__))
    if not o.worker:
        compare(o)
        return
    open_device(None if o.worker == "ours" else "cpu")
    experiment = Experiment(GrokOptions(**PRESETS.get(o.preset, {})))
    if o.worker == "ours":
        serve(tinygrad_step(experiment))
    else:
        step = torch_step(experiment, o.threads, compiled=o.worker == "compiled")
        serve(lambda: step().item())


def compare(o: Options) -> dict[str, Side]:
    args = ("benchmarks.grok_step", "--preset", o.preset, "--threads", str(o.threads), "--worker")
    names = ["ours", "eager", *["compiled"] * o.compiled]
    return take_turns({name: Side(*args, name) for name in names}, o.rounds, o.steps, f"grok.py, {o.preset}")


if __name__ == "__main__":
    run_main(main)
