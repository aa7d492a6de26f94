"""`python gpt.py info`: parameters, memory and FLOPs of a run or a preset."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from commands.options import DTYPES, PRESETS, Options
from commands.roofline import GPUS, TURN, Step, compile_step
from commands.weights import best_dtype
from exchange.checkpoint import model_of
from exchange.layout import make_model, read_config, shapes
from gpt import GPT, GPTConfig, dropout_seeds
from runtime.cli import option, parse
from runtime.device import compiling_for
from runtime.errors import UserError
from runtime.progress import Progress, Waiting
from runtime.run import Run
from trainer import OPTIMIZERS


@dataclass
class InfoOptions:
    run: str | None = option(None, "the run folder (default: the newest in runs/)")
    preset: str | None = option(None, "a model that was never trained, instead of a run")
    vocab_size: int | None = option(None, "its rows of the embedding table (default: 50257 for gpt2's tokens, else 65)")
    device: str | None = option(None, "cuda:sm_89: compile a step for that GPU, a 4090, and count what it would run")
    batch_size: int | None = option(None, "windows in that step (default: as many as the run or the preset takes)")
    dtype: str | None = option(None, "the numbers of that step (default: those of the run, else bfloat16)", DTYPES)


def info(argv: Sequence[str]) -> None:
    """`python gpt.py info`: parameters per tensor, memory and FLOPs, of a run or of a `--preset`."""
    names = {name: {"preset": name} for name in PRESETS}
    o, _ = parse(InfoOptions, argv, "gpt.py info", str(info.__doc__), names, positional=("run", "RUN"))
    if o.preset and o.run:
        raise UserError(f"info is of a run or of a preset: leave out {o.run} or --preset")
    what = o.preset
    if o.preset:
        chosen = Options(**PRESETS[o.preset])
        config = chosen.config((50257 if chosen.tokenizer == "gpt2" else 65) if o.vocab_size is None else o.vocab_size)
    else:
        run = Run.open(o.run, "gpt")
        config, chosen, what = read_config(model_of(run)), run.options(Options), str(run.path)
    print(what)
    print_parameters(config)
    if o.device:
        print()
        size, dtype = chosen.batch_size if o.batch_size is None else o.batch_size, o.dtype or chosen.dtype
        print_step(config, replace(chosen, grad_accum=1, batch_size=size, dtype=dtype), o.device)


def print_parameters(config: GPTConfig) -> None:
    """Every tensor, those of the equal blocks once, and the memory and the FLOPs of training."""
    print(f"{'tensor':<24}{'shape':>18}{'parameters':>16}")
    counted, L = 0, config.n_layer
    for name, shape in shapes(replace(config, n_layer=1)).items():
        times = L if name.startswith("h.") else 1
        counted += times * math.prod(shape)
        shown = name.replace("h.0.", "h.*.") if times > 1 else name
        print(f"{shown:<24}{' x '.join(map(str, shape)):>18}{math.prod(shape):>16,}" + f"   x {L} blocks" * (times > 1))
    head = "all, the head tied" if getattr(config, "tied", True) else "all, the head untied"
    print(f"{head:<24}{'':>18}{counted:>16,}   by formula {config.parameters:,}")
    mb = counted * 4 / 1e6
    print(f"memory   weights {mb:,.1f} MB, gradients {mb:,.1f} MB, AdamW {2 * mb:,.1f} MB in float32, and activations")
    print(f"FLOPs    {config.flops_per_token / 1e6:,.1f} million per token of training (6 N + 12 L C T), "
          f"a third of it forward")


def print_step(config: GPTConfig, o: Options, device: str) -> None:
    """What a training step would run on a GPU like `cuda:sm_89`, from what is compiled for it here.

    Raises UserError for another device, or where no compiler for it is.
    """
    kind, _, arch = device.partition(":")
    if kind != "cuda" or not arch:
        raise UserError(f"info --device {device}: name the architecture of an NVIDIA GPU, like cuda:sm_89 for a 4090")
    o.check()
    with compiling_for(arch) as name, Waiting(Progress(sys.stderr), f"compiling a step for {arch}"):
        o.dtype = o.dtype or best_dtype(name)
        step = compiled_step(config, o)
    tokens, expected = o.batch_size * config.block_size, config.flops_per_token * o.batch_size * config.block_size
    print(f"a step of {o.batch_size} x {config.block_size} tokens in {o.dtype}, compiled for {arch} and not run")
    print(f"kernels  {len(step.kernels):,}, of {len({k.source for k in step.kernels})} kinds")
    print(f"FLOPs    {step.flops / 1e9:,.1f} billion, {step.flops / expected:.2f} times 6 N + 12 L C T; "
          f"{step.tensor / step.flops:.1%} of them in tensor cores (mma.sync)")
    print(f"traffic  {step.bytes / 1e9:,.2f} GB, each buffer counted once for every kernel that reads or writes it")
    print(f"memory   {step.memory / 1e9:,.2f} GB planned: weights, gradients, AdamW and activations")
    for gpu in GPUS:
        seconds = step.estimate(gpu)
        fits = "" if step.memory < gpu.memory else ", and it doesn't fit"
        print(f"estimate {gpu.name}: no less than {1e3 * seconds:,.2f} ms a step, {tokens / seconds:,.0f} tokens/s, "
              f"if every kernel reached its published peaks{fits}")
        waiting = step.waiting(gpu)
        print(f"waiting  {gpu.name}: {1e3 * sum(waiting.values()):,.2f} ms more, guessed at {1e6 * TURN} us for each "
              "turn of a loop that reads memory")
    for kernel, wait in list(step.waiting(GPUS[0]).items())[:5]:
        print(f"         {1e3 * wait:,.2f} ms: {step.kernels.count(kernel)} x {kernel.name[:40]}, "
              f"{kernel.blocks:,} blocks of {kernel.threads} threads, {kernel.turns:,} turns")


def compiled_step(config: GPTConfig, o: Options) -> Step:
    """The step of `train`, on the device that `compiling_for` made the default one."""
    x = np.zeros((o.batch_size, config.block_size), np.int32)
    batch = (x, x.copy(), dropout_seeds(config, o.seed, 0)) if config.dropout else (x, x.copy())
    model: GPT = make_model(config, None)
    model.dtype = o.dtype or "float32"
    return compile_step(model, GPT.loss, batch, o, optimizer=OPTIMIZERS[o.optimizer],
                        loss_scaling=o.dtype == "float16")
