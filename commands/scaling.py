"""`python gpt.py sweep`: one loss for each size of model and each amount of training, for scaling laws.

By default each level of compute is spent on several sizes (IsoFLOP, Hoffmann et al., arXiv:2203.15556): a run of C
FLOPs reads C / flops_per_token tokens. `plots/scaling.py` fits what comes out.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from commands.evaluate import mean_loss
from commands.options import Options
from commands.sweeps import Result, jobs_option, parse_seeds, run_all, run_folder
from commands.train import train_of_sweep
from commands.weights import best_dtype, find_tokenizer
from data.conversations import encode_text
from data.corpora import find_corpus
from data.encoding import Encoded
from runtime.cli import command, option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.progress import counted

# Layers and channels, each size some two times the one before; heads of 32 channels, or one that is smaller.
SIZES = ((1, 8), (1, 16), (1, 24), (2, 24), (2, 32), (2, 48), (3, 64), (4, 96), (4, 128), (5, 160), (6, 192), (6, 256),
         (6, 384), (8, 512), (12, 768), (24, 1024), (36, 1280), (48, 1600))
TOKENS_PER_PARAMETER = (5, 5000)  # of a size that suits a level of compute
LEAST_STEPS = 100  # below, a loss says more about the warm-up than about the size
WINDOWS = 2000  # in the validation of a run, the same ones for every run


@dataclass
class SweepOptions(Options):
    """Options of training, for every run alike."""

    data: str = option("shakespeare-complete", "as in training: a corpus, a file, several, a folder, a pattern")
    batch_size: int = option(8, "windows per forward pass")
    lr: float = option(1e-3, "the highest learning rate (default: 0.25 / channels, at most 0.01)")
    compute: str = option("1e10,3e10,1e11,3e11,1e12", "FLOPs of a run; each level goes to several sizes")
    tokens: str | None = option(None, "instead of --compute: every size reads so many tokens; several with commas")
    sizes: str | None = option(None, "LAYERSxCHANNELS, like 2x32,4x128 (default: those that suit --compute)")
    budget: float = option(1.0, "so many times the compute, or the tokens: 1000 for a GPU")
    epochs: float = option(10.0, "a run reads the text at most so often")
    seeds: str = option("0", "seeds to train each size with, with commas between")
    jobs: int = jobs_option()


GIVEN_BY_SIZES = ("n_layer", "n_embd", "n_head", "n_inner", "n_kv_head", "steps", "seed", "resume", "init_from",
                  "lora_rank")


def sweep(argv: Sequence[str]) -> None:
    """Train models of several sizes on several amounts of text, and write their losses into one file.

    Stopped at any moment, the same command goes on. The options are those of training, and hold for every run.
    """
    o, given = parse(SweepOptions, argv, "gpt.py sweep", str(sweep.__doc__))
    if fixed := [name for name in GIVEN_BY_SIZES if name in given]:
        raise UserError(f"--{fixed[0].replace('_', '-')} isn't an option of sweep, which chooses it for every run: "
                        "see --sizes, --compute, --tokens and --seeds")
    device = open_device(o.device)
    text = encode_text(find_corpus(o.data, o.data_dir, o.val_data), find_tokenizer(o.tokenizer, None), o.data_dir)
    if not text.in_windows:
        raise UserError(f"sweep trains on a text, and --data {o.data} holds conversations")
    folder, planned = Path(o.out or Path("runs", "sweep")), plan(o, text, given, device)
    about = {"scaling": f"{Path(o.data).name} in {Path(o.tokenizer).name} tokens", "train_tokens": len(text.train),
             "block_size": o.block_size, "batch_size": o.batch_size}
    if o.jobs:
        flops = sum(flops_of(options, text) for _, options in planned)
        print(f"{counted(len(planned), 'run')} of {about['scaling']}, {flops:.2g} FLOPs in all, into {folder}",
              flush=True)
    train = lambda name, options, done: train_size(name, options, done, device)
    runs = run_all(folder, about, planned, list(dict.fromkeys(name for name, _ in planned)), train, o.jobs,
                   lambda options: cost(options, text))
    if not o.jobs:
        return
    print_table(runs)
    plot = Path(sys.argv[0]).with_name("plots") / "scaling.py"
    print(f"\nwrote {folder / 'results.json'}; now try  {command(plot, folder)}")


# ---- the grid ----


def parse_numbers(text: str, flag: str) -> list[float]:
    """Positive numbers with commas between. Raises UserError for anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < n < math.inf for n in numbers):
        raise UserError(f"{flag} takes numbers above 0 with commas between, like 1e10,3e10, not {text!r}")
    return numbers


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """`2x32,4x128` as layers and channels. Raises UserError for anything else."""
    try:
        sizes = [(int(layers), int(channels)) for layers, channels in (part.split("x") for part in text.split(","))]
    except ValueError:
        raise UserError(f"--sizes takes LAYERSxCHANNELS with commas between, like 2x32,4x128, not {text!r}") from None
    return sizes


def width_rule(channels: int) -> float:
    """The learning rate of a width: the wider, the lower, as in muP (Yang et al., arXiv:2203.03466); see
    notes/scaling-laws.md for how the factor was found."""
    return min(0.25 / channels, 0.01)


def plan(o: SweepOptions, text: Encoded, given: set[str], device: str) -> list[tuple[str, Options]]:
    """The runs to make, each seed of every setting before the next seed. Raises UserError for an invalid value, and
    when no size suits."""
    if not 0 < o.budget < math.inf or not 0 < o.epochs < math.inf or o.jobs < 0:
        raise UserError("--budget and --epochs must be above 0, and --jobs at least 0")
    o.check()
    amounts = parse_numbers(o.tokens or o.compute, "--tokens" if o.tokens else "--compute")
    planned = []
    for seed in parse_seeds(o.seeds):
        for amount in amounts:
            for layers, channels in parse_sizes(o.sizes) if o.sizes else SIZES:
                options = one_run(o, text, given, device, amount * o.budget, layers, channels)
                if options:
                    name = f"{layers}x{channels} {amount * o.budget:.3g}{' tokens' if o.tokens else ''}"
                    out = run_folder(Path(o.out or Path("runs", "sweep")), name, seed)
                    planned.append((name, replace(options, seed=seed, out=out)))
    if not planned:
        raise UserError(f"no size suits: a run takes at least {LEAST_STEPS} steps and reads the text at most "
                        f"{o.epochs:g} times; choose --compute, --sizes or --epochs")
    for _, options in planned:
        options.check()
    return planned


def one_run(
    o: SweepOptions, text: Encoded, given: set[str], device: str, amount: float, layers: int, channels: int
) -> Options | None:
    """The options of one size at one amount of compute, or of tokens; None where it doesn't suit."""
    base = {field.name: getattr(o, field.name) for field in fields(Options)}
    heads = next(n for n in range(max(1, channels // 32), 0, -1) if channels % n == 0)
    base |= {"n_layer": layers, "n_embd": channels, "n_head": heads, "dtype": o.dtype or best_dtype(device)}
    options = Options(**base)
    config = options.config(text.tokenizer.vocab_size)
    tokens = amount if o.tokens else amount / config.flops_per_token
    ratio, steps = tokens / config.parameters, round(tokens / (o.batch_size * o.block_size * o.grad_accum))
    low, high = TOKENS_PER_PARAMETER
    if steps < LEAST_STEPS or tokens > o.epochs * len(text.train) or not (o.sizes or low <= ratio <= high):
        return None
    lr = o.lr if "lr" in given else width_rule(channels)
    return replace(options, steps=steps, lr=lr, min_lr=o.min_lr if "min_lr" in given else lr / 10, eval_interval=steps,
                   warmup=o.warmup if "warmup" in given else min(100, steps // 10))


def tokens_of(o: Options) -> int:
    """How many tokens a run reads."""
    return o.steps * o.batch_size * o.block_size * o.grad_accum


def flops_of(o: Options, text: Encoded) -> float:
    """The FLOPs of a run."""
    return float(tokens_of(o) * o.config(text.tokenizer.vocab_size).flops_per_token)


def cost(o: Options, text: Encoded) -> float:
    """How long a run takes beside the others, in seconds of an imagined machine: starting, single steps, FLOPs."""
    return 4 + 1.5e-3 * o.steps + flops_of(o, text) / 50e9


# ---- one run ----


def train_size(name: str, o: Options, done: Result | None, device: str) -> tuple[Result, str]:
    """Train one run, or the rest of it if it was stopped; its entry in results.json, and a line for the user."""
    if done and done["steps"] == o.steps:
        return done, ""
    head = f"{name:<14} seed {o.seed}  "
    setup, trainer = train_of_sweep(o, device, head)
    config, text, tokens = setup.model.config, setup.text, tokens_of(o)
    loss, _ = mean_loss(setup.losses, text.val, o.batch_size, o.block_size, WINDOWS)
    last = trainer.run.metrics("train_eval_loss", "seconds")[-1]
    positions = config.n_embd * config.block_size if o.pos == "learned" else 0
    result = {
        "setting": name, "seed": o.seed, "n_layer": o.n_layer, "n_embd": o.n_embd, "parameters": setup.weights,
        "n": setup.weights - positions, "embedding": config.vocab_size * o.n_embd, "tokens": tokens,
        "flops": tokens * config.flops_per_token, "level": float(name.split()[1]), "steps": o.steps, "lr": o.lr,
        "epochs": tokens / len(text.train), "val_loss": loss, "train_loss": last["train_eval_loss"],
        "bits_per_byte": loss / math.log(2) / bytes_per_token(text), "seconds": last["seconds"], "run": o.out,
    }
    speed = tokens / last["seconds"]
    return result, (f"{head}{setup.weights:>11,} parameters  {tokens:>11,} tokens  loss {loss:.4f}  "
                    f"{speed:>9,.0f} tokens/s")


def bytes_per_token(text: Encoded) -> float:
    """How long the validation text's tokens are."""
    ids = np.asarray(text.val[: 1 << 20])
    return len(text.tokenizer.decode_bytes(ids.tolist())) / len(ids)


def print_table(runs: Sequence[Result]) -> None:
    """For each amount of compute or tokens the sizes, with the mean loss over the seeds; the lowest is marked."""
    levels: dict[float, dict[str, list[Result]]] = {}
    for r in runs:
        levels.setdefault(r["level"], {}).setdefault(r["setting"], []).append(r)
    print(f"\n{'':<14}{'parameters':>12}{'tokens':>14}{'epochs':>8}{'FLOPs':>10}{'loss':>9}{'bits/byte':>11}{'seeds':>7}")
    for level in sorted(levels):
        mean: Any = {name: float(np.mean([r["val_loss"] for r in group])) for name, group in levels[level].items()}
        for name, group in levels[level].items():
            r, bits = group[0], np.mean([r["bits_per_byte"] for r in group])
            mark = " lowest" if mean[name] == min(mean.values()) and len(mean) > 1 else ""
            print(f"{name:<14}{r['parameters']:>12,}{r['tokens']:>14,}{r['epochs']:>8.2f}{r['flops']:>10.2g}"
                  f"{mean[name]:>9.4f}{bits:>11.4f}{len(group):>7}{mark}")
