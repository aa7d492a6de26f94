"""Fine-tuning measured: what is learned of a new text and what is forgotten of the old one, by what is trained.

    python -m benchmarks.finetuning [--seeds 0,1,2] [--stories FILE] [--out FOLDER]
    python -m benchmarks.finetuning --times --steps 50         what a step takes beside one that trains every weight

A small GPT-2 is trained on one of two texts: Shakespeare's plays but for the nine of tinyshakespeare, or the first
2 MiB of TinyStories. Then it goes on with the other: with every weight, with adapters of ranks 1 to 64, or with its
head alone. Both texts share one tokenizer, BPE of 512 tokens that is learned from both, and one model.

The losses are those of each text's last tenth, which is never trained on. "The head" is a copy of the embedding table
that makes the logits; the table itself stays. Stopped at any moment, the same command goes on: what is done is in
results.json. `python plots/finetuning.py` draws it.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import lora
from benchmarks.attention_memory import peak_memory
from commands.evaluate import mean_loss
from commands.sweeps import Result, choose, parse_seeds, run_all
from data.batches import random_batch
from data.corpora import find_corpus
from data.plays import render_others
from exchange.layout import make_model
from gpt import GPT, GPTConfig
from runtime.cli import command, option, parse
from runtime.compiled import jit
from runtime.device import describe_device, open_device
from runtime.errors import UserError
from runtime.tensors import copy_into, load_safetensors, save_safetensors
from tokenizer import RegexTokenizer
from trainer import AdamW, CompiledStep, Muon, Task, TrainOptions, learning_rate
from variants import VariantConfig


@dataclass(frozen=True)
class Method:
    """What is trained, and with which learning rate: notes/finetuning.md says how it was chosen."""

    lr: float
    rank: int = 0  # of adapters; 0: none
    targets: str = "c_attn,c_proj"
    head: bool = False  # a head of its own, and no other weight but the adapters
    pretrained: bool = True
    muon: bool = False  # for the matrices of the blocks


CONFIG = GPTConfig(block_size=64, vocab_size=512, n_layer=4, n_head=4, n_embd=64)
STORIES = 1 << 21  # bytes of TinyStories
PRETRAINING = Method(5e-3, pretrained=False, muon=True)
WINDOWS = 240  # of 64 tokens, evenly over a text's last tenth
METHODS = {
    "every weight": Method(3e-3),
    "every weight, gently": Method(3e-4),
    **{f"LoRA, rank {rank}": Method(1e-2, rank) for rank in (1, 4, 16, 64)},
    "LoRA, rank 8, every matrix": Method(1e-2, 8, "c_attn,c_proj,c_fc"),
    "LoRA, rank 8, and the head": Method(1e-2, 8, head=True),
    "the head alone": Method(1e-2, head=True),
    "from scratch": Method(1e-3, pretrained=False),
}
DIRECTIONS = (("plays", "stories"), ("stories", "plays"))
BASE = "base"


@dataclass
class Options:
    seeds: str = option("0,1,2", "seeds, with commas between: each has bases of its own")
    values: str | None = option(None, "only these methods, with semicolons between: 'every weight; LoRA, rank 8'")
    stories: str = option("tinystories", "the text whose first 2 MiB are the stories: a corpus or a file")
    data_dir: str | None = option(None, "where corpora are kept (default: $DATA_DIR, else data/cache/ here)")
    times: bool = option(False, "only how long a step takes: the methods take turns")
    steps: int = option(200, "optimizer steps of adapting; pretraining takes three times as many")
    out: str = option("runs/finetuning", "the folder of the bases and of results.json")


@dataclass(frozen=True)
class Planned:
    """A run: from the text `old`, whose base it is or begins with, to the text `new`."""

    method: str
    old: str
    new: str
    seed: int

    @property
    def setting(self) -> str:
        """Its name in results.json."""
        return f"{BASE}: {self.old}" if self.method == BASE else f"{self.old} to {self.new}: {self.method}"


@dataclass(frozen=True)
class Texts:
    """Both texts as ids, by name."""

    ids: dict[str, np.ndarray]
    tokens_per_byte: dict[str, float]

    def train(self, name: str) -> np.ndarray:
        """The first nine tenths."""
        return self.ids[name][: int(0.9 * len(self.ids[name]))]

    def val(self, name: str) -> np.ndarray:
        """The last tenth."""
        return self.ids[name][int(0.9 * len(self.ids[name])) :]


def read_texts(o: Options) -> Texts:
    """The two texts, in the tokens that both together give."""
    with find_corpus(o.stories, o.data_dir).path.open("rb") as file:
        stories = file.read(STORIES).decode(errors="ignore")
    if len(stories) < 10_000:
        raise UserError(f"--stories {o.stories} is too short")
    texts = {"plays": render_others(), "stories": stories}
    tokenizer = RegexTokenizer("gpt2")
    tokenizer.train(list(texts.values()), CONFIG.vocab_size)
    ids = {name: np.array(tokenizer.encode_ordinary(text), "<u2") for name, text in texts.items()}
    return Texts(ids, {name: len(ids[name]) / len(text.encode()) for name, text in texts.items()})


def plan(o: Options) -> list[tuple[str, Planned]]:
    """The runs to make: of each seed the two bases, then every method in both directions."""
    methods = choose(o.values, METHODS)
    runs = []
    for seed in parse_seeds(o.seeds):
        runs += [Planned(BASE, old, "", seed) for old, _ in DIRECTIONS]
        runs += [Planned(method, old, new, seed) for old, new in DIRECTIONS for method in methods]
    return [(run.setting, run) for run in runs]


def prepare(method: Method, base: Path, seed: int) -> tuple[GPT, dict[str, Tensor]]:
    """The model that a method begins with, and the parameters that it trains."""
    config = VariantConfig(**asdict(CONFIG), tied=False) if method.head else CONFIG
    model: GPT = make_model(config, None if method.pretrained else seed)
    if method.pretrained:
        tensors, _ = load_safetensors(base)
        if method.head:
            tensors["lm_head.weight"] = tensors["wte.weight"]
        copy_into(get_state_dict(model), tensors, str(base))
    params = get_state_dict(model)
    if method.rank or method.head:
        params = {"lm_head.weight": params["lm_head.weight"]} if method.head else {}
    return model, params | (lora.adapt(model, method.rank, 16.0, method.targets, seed) if method.rank else {})


def compile_step(
    method: Method, model: GPT, params: dict[str, Tensor], ids: np.ndarray, steps: int, seed: tuple[int, int]
) -> Callable[[int], float]:
    """A function that takes the i-th of some steps on random windows of a text, and gives the seconds that it took."""
    few = method.rank or method.head  # weights that have no need to stay small
    options = TrainOptions(steps=steps, lr=method.lr, min_lr=method.lr / 10, warmup=steps // 20, seed=seed[0],
                           beta2=0.95 if method.muon else 0.99, weight_decay=0.0 if few else 0.1)
    batch = lambda i: random_batch(ids, options.batch_size, CONFIG.block_size, np.random.default_rng((*seed, i)))
    step = CompiledStep(Task(model, GPT.loss, batch, dict, params=params, optimizer=Muon if method.muon else AdamW),
                        options)

    def take_step(i: int) -> float:
        start = time.perf_counter()
        loss, _ = step(step.optimizer.hyper(i, learning_rate(i, options)), iter([batch(i)]))
        loss.item()
        return time.perf_counter() - start

    return take_step


def print_times(texts: Texts, methods: Sequence[str], rounds: int) -> None:
    """How long a step of each method takes, and beside that of the first: medians of steps that take turns."""
    steps = {}
    for name in methods:
        method = replace(METHODS[name], pretrained=False)  # which takes as long
        model, params = prepare(method, Path(), 0)
        steps[name] = compile_step(method, model, params, texts.train("plays"), rounds + 1, (0, 0))
        steps[name](0)  # compiles
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds):
        for name, take_step in steps.items():
            times[name].append(take_step(i + 1))
    first = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name:<30}{1e3 * median:>8.1f} ms{median / first:>8.2f}")


def train_one(o: Options, texts: Texts, run: Planned, earlier: Result | None) -> tuple[Result, str]:
    """Pretrain or adapt one model; its entry in results.json, and a line for the user."""
    base = lambda name: Path(o.out, f"{name}-seed{run.seed}.safetensors")
    pretraining = run.method == BASE
    method, steps = PRETRAINING if pretraining else METHODS[run.method], (3 if pretraining else 1) * o.steps
    if earlier and earlier["steps"] == steps and (base(run.old).is_file() or not pretraining):
        return earlier, ""
    gc.collect()
    began = time.perf_counter()
    with peak_memory() as memory:
        model, params = prepare(method, base(run.old), run.seed)
        ids = texts.train(run.old if pretraining else run.new)
        take_step = compile_step(method, model, params, ids, steps, (run.seed, int(pretraining)))
        losses = jit(lambda x, y: model.losses(x, y).realize())
        curve, speeds = [], []
        at = {steps} if pretraining else {0, steps // 4, steps // 2, steps}
        for i in range(steps + 1):
            if i in at:
                curve.append({"step": i, **{name: measure(losses, texts.val(name)) for name in texts.ids}})
            if i == steps:
                break
            speeds.append(take_step(i))
    if pretraining:
        save_safetensors(base(run.old), params, {})
    result = {"setting": run.setting, "seed": run.seed, **asdict(run), "steps": steps, "lr": method.lr,
              "trained": sum(int(p.numel()) for p in params.values()), "memory_mb": round(memory[0], 1),
              "seconds_per_step": statistics.median(speeds[1:]), "curve": curve}
    last = "  ".join(f"{name} {curve[-1][name]:.3f}" for name in texts.ids)
    return result, f"{run.setting:<44} seed {run.seed}  {last}  {time.perf_counter() - began:.0f} s"


def measure(losses: Any, ids: np.ndarray) -> float:
    """The mean loss in nats per token of a text's last tenth."""
    return float(mean_loss(losses, ids, 12, CONFIG.block_size, WINDOWS)[0])


def print_table(runs: Sequence[Result]) -> None:
    """For each direction a line for each method: means over the seeds, with the spread of the new text's loss."""
    bases = {(r["old"], r["seed"]): r for r in runs if r["method"] == BASE}
    for old, new in DIRECTIONS:
        mean = lambda name, rows: statistics.mean(r["curve"][-1][name] for r in rows)
        rows = [r for (text, _), r in bases.items() if text == old]
        print(f"\nfrom the {old} to the {new}{'parameters':>22}{'memory':>10}{'a step':>9}{new:>19}{old:>19}")
        print(f"{'before':<50}{'':>17}{mean(new, rows):>12.3f}{mean(old, rows):>19.3f}")
        for method in METHODS:
            if not (rows := [r for r in runs if (r["method"], r["old"]) == (method, old)]):
                continue
            cells = []
            for name in (new, old):
                values = [r["curve"][-1][name] for r in rows]
                cells.append(f"{mean(name, rows):.3f}"
                             + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""))
            ms = 1e3 * statistics.median(r["seconds_per_step"] for r in rows)
            print(f"{method:<30}{rows[0]['trained']:>20,}{rows[0]['memory_mb']:>7.1f} MB{ms:>6.1f} ms"
                  f"{cells[0]:>19}{cells[1]:>19}")


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.finetuning", str(__doc__))
    print(describe_device(open_device("cpu")), flush=True)
    planned = plan(o)
    texts = read_texts(o)
    if o.times:
        print_times(texts, choose(o.values, METHODS), o.steps)
        return
    order = [setting for setting, _ in plan(replace(o, values=None))]
    train = functools.partial(train_one, o, texts)
    runs = run_all(Path(o.out), {"finetuning": json.dumps(asdict(CONFIG)), "steps": o.steps}, planned, order,
                   lambda _, run, earlier: train(run, earlier))
    print_table(runs)
    plot = command(Path(__file__).parent.parent / "plots" / "finetuning.py", o.out)
    print(f"\nwrote {Path(o.out, 'results.json')}; now try  {plot}")


if __name__ == "__main__":
    run_main(main)
