"""Delayed generalisation: a small GPT learns its part of an addition table by heart, and long after that, to add.

    python grok.py --wd 1.0             train on 27.5 % of a + b mod 97; --preset fast is smaller still
    python plots/grok_curves.py         what happened
    python plots/grok_mechanism.py      how the network adds
    python grok.py sweep fraction       many runs: how much of the table it takes
    python grok.py sweep intervention   many runs: what brings generalisation about, and what doesn't

Power et al., "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets" (arXiv:2201.02177). The model
is the GPT of gpt.py, asked `a b =` and graded on the one token that follows. All that the paper varied is a flag.
In the shapes: n pairs in the whole table, B in a batch, T tokens in a prompt, V in the vocabulary, p numbers.
"""

import copy
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import backend  # before tinygrad

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.nn.state import get_state_dict

import cli
from checkpoint import Run
from cli import Progress, UserError, option
from data.modular import OPERATIONS, PROMPTS, Split, Table, batch_indices, make_split, make_table
from gpt import GPT, Embedding, GPTConfig, dropout_seeds
from kernels import cross_entropy, linear, random_bits
from trainer import AdamW, Optimizer, Trainer, TrainOptions, jit, resumed

BLOCK_SIZE = 8  # a prompt has 3 or 4 tokens; the rest of the position table is there and never used
GROKKED = 0.99  # the accuracy that counts as having learned it
EXTRA_STEPS = 200  # that a run goes on for once clean validation has reached it twice in a row


# ---- options ----

PRESETS: dict[str, dict[str, Any]] = {"fast": {"n_layer": 1, "frac": 0.25}}


@dataclass
class Options:
    """The options of `python grok.py`."""

    op: str = option("+", "the operation, mod p", list(OPERATIONS))
    p: int = option(97, "the modulus, a prime where --op is /")
    prompt: str = option("a b =", "how it is asked", list(PROMPTS))
    frac: float = option(0.275, "share of all pairs to train on")
    preset: str | None = option(None, "fast: one layer, 25 % of the pairs; any flag beside it wins")
    seed: int = option(0, "of the split, the initial weights, the batches and the noise")
    n_layer: int = option(2, "blocks")
    n_head: int = option(4, "attention heads in a block")
    n_embd: int = option(128, "channels")
    tied: bool = option(False, "use the embedding table as the head, as GPT-2 does")
    init_scale: float = option(1.0, "a factor on GPT-2's initial matrices")
    steps: int = option(4000, "optimizer steps at most; it stops 200 after clean validation has reached 99 % twice")
    batch: int = option(512, "pairs per step; 0 for all of the training pairs")
    optimizer: str = option("adamw", "the update rule", ("adamw", "adam", "sgd", "muon"))
    lr: float = option(1e-3, "the learning rate after warm-up")
    betas: str = option("0.9,0.98", "Adam's two decays; sgd and muon take the first as their momentum")
    warmup: int = option(10, "steps of linear warm-up")
    wd: float = option(1.0, "decay of every parameter: beside adamw's and muon's step, in adam's and sgd's gradient")
    wd_to: str = option("zero", "where decay pulls: to zero, or back to the initial weights", ("zero", "init"))
    dropout: float = option(0.0, "share dropped of the embeddings and of what each block adds to the residual stream")
    weight_noise: float = option(0.0, "spread of Gaussian noise on all weights in the forward pass (the paper: 0.01)")
    grokfast: bool = option(False, "add twice the gradient's moving average to it (Lee et al., arXiv:2405.20233)")
    stablemax: bool = option(False, "a softmax that can't saturate (Prieto et al., arXiv:2501.04697)")
    snapshots: bool = option(True, "keep the logits of all pairs, 2 MB some 30 times, for plots/grok_mechanism.py")
    out: str | None = option(None, "the run folder to make (default: a new one under runs/)")
    resume: str | None = option(None, "a run folder to go on with")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")

    def check(self) -> None:
        """Raise UserError for a value that can't be meant; the table and the split check theirs."""
        if self.steps < 1 or self.batch < 0 or self.seed < 0 or self.warmup < 0:
            raise UserError("--steps must be at least 1, and --batch, --seed and --warmup at least 0")
        for name in ("lr", "wd", "weight_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} can't be {getattr(self, name)}")
        if not 0 < self.init_scale < math.inf:
            raise UserError(f"--init-scale must be above 0, not {self.init_scale}")
        if self.wd == 0 and self.wd_to != "zero":
            raise UserError("--wd-to init needs a --wd above 0")
        self.both_betas()

    def both_betas(self) -> tuple[float, float]:
        try:
            first, second = map(float, self.betas.split(","))
        except ValueError:
            raise UserError(f"--betas are two numbers with a comma between them, not {self.betas!r}") from None
        if not (0 <= first < 1 and 0 <= second < 1):
            raise UserError(f"--betas must both be in [0, 1), not {self.betas}")
        return first, second

    def config(self, table: Table) -> GPTConfig:
        return GPTConfig(BLOCK_SIZE, len(table.vocabulary), self.n_layer, self.n_head, self.n_embd, self.dropout)

    def train_options(self) -> TrainOptions:
        """The same for the Trainer: a constant rate, no clipping."""
        beta1, beta2 = self.both_betas()
        return TrainOptions(
            seed=self.seed, steps=self.steps, batch_size=self.batch, lr=self.lr, min_lr=self.lr, warmup=self.warmup,
            beta1=beta1, beta2=beta2, weight_decay=self.wd, grad_clip=0.0, log_interval=100,
        )  # fmt: skip


# ---- the model ----


class UntiedGPT(GPT):
    """A GPT whose head has weights of its own. Tied to the embedding as in GPT-2, it generalises far later."""

    def __init__(self, config: GPTConfig, seed: int):
        super().__init__(config, seed)
        self.lm_head = Embedding(np.random.default_rng((seed, 4)), config.vocab_size, config.n_embd)  # (V, C), as wte

    @property
    def head_weight(self) -> Tensor:
        return self.lm_head.weight


def make_model(o: Options, config: GPTConfig) -> GPT:
    """The model with its initial weights. `--init-scale` is for the matrices: biases are 0, LayerNorms 1."""
    model = GPT(config, o.seed) if o.tied else UntiedGPT(config, o.seed)
    if o.init_scale != 1:
        for w in get_state_dict(model).values():
            if w.ndim >= 2:
                w.assign(w * o.init_scale)
    return model


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log of s(z_target) / sum s(z), `(B,)`, with s(z) = z + 1 from 0 up and 1 / (1 - z) below, for logits `(B, V)`.

    It grows as slowly as a line, so that a model can't drive its loss to exactly 0 by scaling its logits up.
    """
    s = (logits >= 0).where(logits + 1, 1 / (1 - logits.minimum(0)))
    hit = targets.unsqueeze(-1) == Tensor.arange(logits.shape[-1], device=logits.device)
    return s.sum(-1).log() - hit.where(s, 0).sum(-1).log()


def gaussian(count: int, seeds: Tensor) -> Tensor:
    """Standard normal numbers `(count,)` from two hashes by Box and Muller's formula; `seeds` `(2,)` uint32.

    Stateless like `gpt.dropout`: a resumed run draws the very same ones.
    """
    bits = [random_bits(Tensor.empty(count), seeds[i]) for i in (0, 1)]
    u, v = ((b >> 8).cast(dtypes.float32) * 2**-24 for b in bits)  # 24 bits each, exact in float32; u stays below 1
    return (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()


def mapped(part: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a model with f(tensor) for every tensor, in the order of its state dict."""
    if isinstance(part, Tensor):
        return f(part)
    if isinstance(part, list):
        return [mapped(p, f) for p in part]
    if isinstance(part, GPTConfig) or not hasattr(part, "__dict__"):
        return part
    new = copy.copy(part)
    vars(new).update({name: mapped(p, f) for name, p in vars(part).items()})
    return new


def noisy(model: GPT, spread: float, seeds: Tensor) -> GPT:
    """The model with Gaussian noise on every weight; its gradients are those of the weights without. `seeds` `(2,)`."""
    ends = np.cumsum([0, *(w.numel() for w in get_state_dict(model).values())]).tolist()
    noise = gaussian(ends[-1], seeds).contiguous()  # in one kernel: its logarithm and cosine take long to compile
    place = iter(zip(ends, ends[1:]))

    def add(w: Tensor) -> Tensor:
        a, b = next(place)
        return (w + spread * noise[a:b].reshape(w.shape)).contiguous()

    return mapped(model, add)


# ---- the update ----


class SGD:
    """Gradient descent with momentum, m = beta m + g, as PyTorch has it."""

    def __init__(self, params: Mapping[str, Tensor], o: TrainOptions):
        self.params, self.beta = dict(params), o.beta1
        self.m = {k: Tensor(np.zeros(p.shape, np.float32)) for k, p in self.params.items()}
        Tensor.realize(*self.params.values(), *self.m.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        return np.array([lr], np.float32)

    def state(self) -> dict[str, Tensor]:
        return {f"m.{name}": t for name, t in self.m.items()}

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        norm = gradient_norm(grads)
        for name, p in self.params.items():
            m = self.m[name].assign(self.beta * self.m[name] + grads[name])
            p.assign(p.detach() - hyper[0] * m)
        Tensor.realize(norm, *self.params.values(), *self.m.values())
        return norm


def gradient_norm(grads: Mapping[str, Tensor]) -> Tensor:
    return Tensor.stack(*[g.square().sum() for g in grads.values()]).sum().sqrt()


class Muon:
    """Muon for the blocks' matrices (Jordan et al., kellerjordan.github.io/posts/muon), AdamW for everything else.

    The momentum of a matrix, pushed towards the nearest orthogonal one, is the step: each direction moves as far as any
    other. Its size is scaled to be that of an AdamW step (Liu et al., arXiv:2502.16982), so that --lr means the same.
    """

    def __init__(self, params: Mapping[str, Tensor], o: TrainOptions):
        self.params = {k: p for k, p in params.items() if k.startswith("h.") and p.ndim == 2}
        self.others = AdamW({k: p for k, p in params.items() if k not in self.params}, o, decay_all=True)
        self.m = {k: Tensor(np.zeros(p.shape, np.float32)) for k, p in self.params.items()}
        self.beta, self.weight_decay = o.beta1, o.weight_decay
        Tensor.realize(*self.params.values(), *self.m.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        return self.others.hyper(step, lr)

    def state(self) -> dict[str, Tensor]:
        return {f"muon.{name}": t for name, t in self.m.items()} | self.others.state()

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        norm = gradient_norm(grads).realize()
        for name, p in self.params.items():
            g = grads[name]
            m = self.m[name].assign(self.beta * self.m[name] + g)
            step = orthogonalized(g + self.beta * m) * (0.2 * math.sqrt(max(p.shape)))  # Nesterov's momentum
            p.assign(p.detach() - hyper[0] * (step + self.weight_decay * p.detach()))
        Tensor.realize(*self.params.values(), *self.m.values())
        self.others.update({name: grads[name] for name in self.others.params}, hyper)
        return norm


def orthogonalized(g: Tensor) -> Tensor:
    """Five steps of Newton and Schulz's iteration: singular values near 1, the same singular vectors, `(m, n)`."""
    x = (g / (g.square().sum().sqrt() + 1e-7)).contiguous()
    if tall := g.shape[0] > g.shape[1]:
        x = x.T.contiguous()
    for _ in range(5):
        a = linear(x, x, transposed=True)  # x x^T, (m, m), m the smaller side
        x = (3.4445 * x + linear((-4.7750 * a + 2.0315 * linear(a, a)).contiguous(), x)).contiguous()
    return x.T if tall else x


class Levers:
    """An update rule with what the experiment does around it: Grokfast's filter before, the pull of decay with it."""

    ALPHA, LAMB = 0.98, 2.0  # Grokfast's for modular arithmetic: of the moving average, and the factor on it

    def __init__(self, params: Mapping[str, Tensor], t: TrainOptions, o: Options):
        self.params, self.wd = dict(params), o.wd
        self.decoupled = o.optimizer in ("adamw", "muon")
        t = replace(t, weight_decay=o.wd if self.decoupled else 0.0)
        rules: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "muon": Muon}
        adam = lambda params, t: AdamW(params, t, decay_all=True)
        self.rule = rules.get(o.optimizer, adam)(params, t)
        self.start = {k: Tensor(p.numpy()) for k, p in self.params.items() if o.wd_to == "init"}
        self.slow = {k: Tensor(np.zeros(p.shape, np.float32)) for k, p in self.params.items() if o.grokfast}
        Tensor.realize(*self.params.values(), *self.start.values(), *self.slow.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        """The rule's own, and what the moving average keeps of itself: nothing at the first step."""
        hyper = self.rule.hyper(step, lr)
        return np.append(hyper, np.float32(self.ALPHA if step else 0)) if self.slow else hyper

    def state(self) -> dict[str, Tensor]:
        return self.rule.state() | {f"slow.{name}": t for name, t in self.slow.items()}

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        grads = dict(grads)
        if self.slow:
            keep, hyper = hyper[-1], hyper[:-1].contiguous()
            for name, g in grads.items():
                slow = self.slow[name].assign(self.slow[name] * keep + g * (1 - keep))
                grads[name] = g + self.LAMB * slow
            Tensor.realize(hyper, *self.slow.values(), *grads.values())
        if self.wd and not self.decoupled:  # the gradient of wd/2 |p - target|^2
            for name, p in self.params.items():
                pull = p.detach() - self.start[name] if self.start else p.detach()
                grads[name] = (grads[name] + self.wd * pull).contiguous()
            Tensor.realize(*grads.values())
        norm = self.rule.update(grads, hyper)
        if self.start and self.decoupled:  # the rule has pulled to zero: p - lr wd p. This makes p - lr wd (p - start)
            for name, p in self.params.items():
                p.assign(p.detach() + hyper[0] * self.wd * self.start[name])
            Tensor.realize(*self.params.values())
        return norm


# ---- the experiment ----


class Experiment:
    """The table on the device, and the three functions that the Trainer needs: a batch, its loss, an evaluation."""

    def __init__(self, o: Options):
        self.o = o
        self.table = make_table(o.op, o.p, o.prompt)
        self.split: Split = make_split(self.table, o.frac, o.seed)
        train, n = len(self.split.train), len(self.table)
        if o.batch > train:
            raise UserError(f"--batch {o.batch:,} is more than {train:,} training pairs: choose less, or 0 for all")
        self.config = o.config(self.table)
        self.model = make_model(o, self.config)
        self.params = get_state_dict(self.model)
        self.prompts, self.answers = Tensor(self.table.prompts), Tensor(self.table.answers)
        members = np.zeros((3, n), np.float32)  # which pairs are in train, val, clean val
        self.sizes = np.array([len(part) for part in (self.split.train, self.split.val, self.split.clean)])
        for row, part in zip(members, (self.split.train, self.split.val, self.split.clean)):
            row[part] = 1
        self.members = Tensor(members)
        Tensor.realize(self.prompts, self.answers, self.members, *self.params.values())
        self.logits: Tensor | None = None  # (n, p) float16, of the newest evaluation
        self._measure = jit(self._all_pairs)

    def batch(self, step: int) -> tuple[np.ndarray, ...]:
        """The indices of the pairs of a step, and the seeds that its noise needs: nothing else goes to the device."""
        o = self.o
        train = self.split.train
        arrays = [batch_indices(train, o.batch, o.seed, step) if o.batch else train.astype(np.int32)]
        if o.dropout:
            arrays.append(dropout_seeds(self.config, o.seed, step))
        if o.weight_noise:
            rng = np.random.default_rng((o.seed, 5, step))
            arrays.append(rng.integers(0, 2**32, 2, dtype=np.uint32))
        return tuple(arrays)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`(B,)`, for logits `(B, V)` and answers `(B,)`."""
        return (stablemax_cross_entropy if self.o.stablemax else cross_entropy)(logits, targets)

    def loss(self, model: GPT, index: Tensor, *seeds: Tensor) -> Tensor:
        """Mean loss on the answers of the pairs `index` `(B,)`, `()`."""
        more = iter(seeds)
        drop: list[Tensor | None] | None = None
        if self.o.dropout:  # residual dropout (Vaswani et al.): embeddings and a block's two sums, not its attention
            s = next(more)
            drop = [None if i % 3 == 0 and i < 3 * self.o.n_layer else s[i] for i in range(3 * self.o.n_layer + 1)]
        if self.o.weight_noise:
            model = noisy(model, self.o.weight_noise, next(more))
        logits = model.last_logits(self.prompts[index].contiguous(), drop)  # (B, V)
        return self.losses(logits, self.answers[index]).mean()

    def _all_pairs(self) -> tuple[Tensor, Tensor]:
        """One forward pass over the whole table: seven sums in one tensor, and logits `(n, p)` in float16."""
        logits = self.model.last_logits(self.prompts).contiguous()  # (n, V)
        hit = (logits.argmax(-1) == self.answers).cast(dtypes.float32)
        losses = self.losses(logits, self.answers)
        square = Tensor.stack(*[w.square().sum() for w in self.params.values()]).sum()
        sums = (self.members * losses).sum(1).cat((self.members * hit).sum(1), square.reshape(1))  # (7,)
        return sums.realize(), logits[:, : self.table.p].cast(dtypes.float16).contiguous().realize()

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy over all pairs of each part, and the norm of all weights together."""
        sums, self.logits = self._measure()
        values = sums.numpy().astype(np.float64)
        names = ("train_eval", "val", "clean_val")
        measured = {f"{name}_loss": float(v) for name, v in zip(names, values[:3] / self.sizes)}
        measured |= {f"{name}_acc": float(v) for name, v in zip(("train", *names[1:]), values[3:6] / self.sizes)}
        return measured | {"weight_norm": math.sqrt(values[6])}

    def snapshot(self) -> dict[str, Tensor]:
        """The logits of the newest evaluation `(n, p)` float16, and the numbers' embedding `(p, C)`."""
        assert self.logits is not None
        return {"logits": self.logits, "wte": self.model.wte.weight[: self.table.p].contiguous()}


def crossing(lines: Sequence[Mapping[str, Any]], key: str, level: float = GROKKED) -> int | None:
    """The first evaluated step at which `key` had reached the level, or None."""
    return next((line["step"] for line in lines if line.get(key, -1) >= level), None)


def evaluations(run: Run) -> list[dict[str, Any]]:
    """The lines of a run's metrics that have accuracies, oldest first."""
    return [line for line in run.metrics() if "clean_val_acc" in line]


def end_of(accuracies: Sequence[tuple[int, float]]) -> float:
    """The step to stop at, given the step and the clean validation accuracy of each evaluation; infinity for none."""
    for (_, before), (step, accuracy) in zip(accuracies, accuracies[1:]):
        if min(before, accuracy) >= GROKKED:
            return step + EXTRA_STEPS
    return math.inf


def evaluation_due(step: int) -> bool:
    return step % 25 == 0 and (step <= 400 or step % 100 == 0)


def snapshot_due(step: int) -> bool:
    """Some thirty in a run: training changes by the logarithm of the step, and each takes 2 MB."""
    return step % 50 == 0 and (step <= 400 or step % 100 == 0)


class GrokTrainer(Trainer):
    """The Trainer with this experiment's calendar, and an end that depends on what is measured."""

    def __init__(self, e: Experiment, run: Run):
        t = e.o.train_options()
        super().__init__(e.model, e.loss, e.batch, self.measure, t, run, optimizer=lambda p, t: Levers(p, t, e.o))
        self.experiment = e
        self.accuracies: list[tuple[int, float]] = []  # step and clean validation accuracy of each evaluation
        self.last = math.inf  # the step to stop at

    def measure(self) -> dict[str, float]:
        measured = self.experiment.evaluate()
        self.judge(self.step, measured["clean_val_acc"])
        if self.experiment.o.snapshots and (snapshot_due(self.step) or self.done()):
            self.keep_snapshot()
        return measured

    def keep_snapshot(self) -> None:
        self.run.save(f"snapshots/{self.step:06d}", self.experiment.snapshot(), {"step": self.step}, "F16")

    def judge(self, step: int, clean_val_acc: float) -> None:
        self.accuracies.append((step, clean_val_acc))
        self.last = end_of(self.accuracies)

    def due(self) -> bool:
        return evaluation_due(self.step)

    def done(self) -> bool:
        return self.step >= min(self.options.steps, self.last)

    def shown(self, measured: Mapping[str, float]) -> str:
        parts = (("train", "train_acc"), ("val", "val_acc"), ("clean val", "clean_val_acc"))
        return "".join(f"  {name} {100 * measured[key]:.1f} %" for name, key in parts)

    def resume(self) -> None:
        super().resume()
        self.accuracies = [(line["step"], line["clean_val_acc"]) for line in evaluations(self.run)]
        self.last = end_of(self.accuracies)


def prepare(o: Options, run: Run | None) -> tuple[Experiment, GrokTrainer]:
    """The experiment and its trainer, in a new run folder or where that one stopped."""
    experiment = Experiment(o)
    if run is None:
        run = Run.new(o.out, "grok")
        run.lock()
    table, split = experiment.table, experiment.split
    pairs = {"pairs": len(table), "train": len(split.train), "val": len(split.val), "clean_val": len(split.clean)}
    run.write_config({
        "kind": "grok", "options": asdict(o), "model": {**asdict(experiment.config), "tied": o.tied},
        "tokenizer": {"kind": "words", "vocabulary": table.vocabulary}, "corpus": {"name": task(table), **pairs},
    })  # fmt: skip
    trainer = GrokTrainer(experiment, run)
    if o.resume:
        trainer.resume()
    return experiment, trainer


def task(table: Table) -> str:
    """`a + b mod 97`, `x^2+xy+y^2 mod 97`."""
    return f"{table.op if len(table.op) > 1 else f'a {table.op} b'} mod {table.p}"


def announce(e: Experiment, trainer: GrokTrainer, device: str) -> None:
    """What a run is, before its first step."""
    c, s, o = e.config, e.split, e.o
    head = "the head tied to the embedding" if o.tied else "the head untied"
    counted = sum(int(w.numel()) for w in e.params.values())
    print(f"device   {backend.describe(device)}, tinygrad {version('tinygrad')}")
    n, example = len(e.table), e.table.text((len(e.table) // 3 + 7) % len(e.table))
    print(f"task     {task(e.table)}, `{example}`: {n:,} pairs, {len(s.train):,} to train on, "
          f"{len(s.val):,} to validate on, {len(s.clean):,} of them without a twin")  # fmt: skip
    print(f"model    {c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, block {c.block_size}, vocabulary "
          f"{c.vocab_size}, {head}: {counted:,} parameters")  # fmt: skip
    print(f"run      {trainer.run.path}" + (f", from step {trainer.step}" if trainer.step else ""), flush=True)


def verdict(evaluated: Sequence[Mapping[str, Any]]) -> str:
    """What came of a run, in a sentence."""
    a, b = crossing(evaluated, "train_acc"), crossing(evaluated, "clean_val_acc")
    last = evaluated[-1]
    if a is None:
        return f"the training pairs weren't learned: {100 * last['train_acc']:.1f} % at step {last['step']:,}"
    learned = f"training pairs 99 % at step {a:,}"
    if b is None:
        return f"{learned}; clean validation pairs {100 * last['clean_val_acc']:.1f} % at step {last['step']:,}"
    return f"{learned}, clean validation pairs 99 % at step {b:,}: {b / a:.1f} times as many"


def train(argv: Sequence[str]) -> None:
    """`python grok.py`: train into a run folder, or go on with one."""
    asked, given = cli.parse(Options, argv, "grok.py", str(__doc__), PRESETS)
    device = backend.start(asked.device)
    o, run = resumed(asked, given, "grok") if asked.resume else (asked, None)
    o.check()
    experiment, trainer = prepare(o, run)
    announce(experiment, trainer, device)
    if trainer.step == 0 and o.snapshots:
        with cli.Waiting(trainer.progress, "compiling the evaluation, and a first one"):
            trainer.measure()
    trainer.train()
    print(f"\n{verdict(evaluations(trainer.run))}; now try")
    for name in ("grok_curves", "grok_mechanism")[: 2 if o.snapshots else 1]:
        print(f"  {plot_command(name)} {trainer.run.path}")


def plot_command(name: str) -> str:
    return cli.command(str(Path(sys.argv[0]).with_name("plots") / f"{name}.py"))


# ---- many runs ----

FRACTIONS = {f"{f:g}": {"frac": f} for f in (0.2, 0.225, 0.25, 0.275, 0.3, 0.35, 0.4, 0.5, 0.6)}
INTERVENTIONS: dict[str, dict[str, Any]] = {
    "wd 1": {"wd": 1.0},
    "wd 1 to init": {"wd": 1.0, "wd_to": "init"},
    "wd 1, full batch": {"wd": 1.0, "batch": 0},
    "wd 1, grokfast": {"wd": 1.0, "grokfast": True},
    "wd 1, muon": {"wd": 1.0, "optimizer": "muon"},
    "wd 1, tied head": {"wd": 1.0, "tied": True},
    "nothing": {"wd": 0.0},
    "dropout 0.1": {"wd": 0.0, "dropout": 0.1},
    "noise 0.01": {"wd": 0.0, "weight_noise": 0.01},
    "grokfast": {"wd": 0.0, "grokfast": True},
    "stablemax": {"wd": 0.0, "stablemax": True},
}
SWEEPS: dict[str, tuple[dict[str, dict[str, Any]], int]] = {  # what is varied, and steps at most
    "fraction": (FRACTIONS, 4000),
    "intervention": (INTERVENTIONS, 3000),
}


@dataclass
class SweepOptions:
    what: str | None = option(None, "fraction (of the table, at wd 1) or intervention (at 30 % of the table)")
    values: str | None = option(None, "only these settings, with semicolons between: '0.25; 0.5' or 'wd 1; nothing'")
    seeds: str = option("0", "seeds to run each setting with, with commas between")
    steps: int | None = option(None, "optimizer steps at most (default: 4000 for fraction, 3000 for intervention)")
    n_layer: int = option(1, "blocks")
    out: str | None = option(None, "the folder of the runs and of results.json (default: runs/sweep-WHAT)")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")


class OneLine(Progress):
    """All that a run has to say, in one line of a terminal that the next run overwrites."""

    def __init__(self, head: str):
        super().__init__()
        self.head = head

    def show(self, line: str) -> None:
        if self.live:
            super().show(f"{self.head}{line}")

    say = show


def sweep(argv: Sequence[str]) -> None:
    """Train once for each setting and seed. Stopped at any moment, the same command goes on."""
    o, _ = cli.parse(SweepOptions, argv, "grok.py sweep", str(sweep.__doc__), positional=("what", "WHAT"))
    if o.what not in SWEEPS:
        raise UserError(f"sweep what? one of {', '.join(SWEEPS)}" + (f", not {o.what!r}" if o.what else ""))
    settings, steps = SWEEPS[o.what]
    names = [name.strip() for name in o.values.split(";")] if o.values else list(settings)
    if wrong := [name for name in names if name not in settings]:
        raise UserError(f"--values {wrong[0]!r} is unknown: they are {'; '.join(settings)}")
    try:
        seeds = [int(seed) for seed in o.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds are whole numbers with commas between them, not {o.seeds!r}") from None
    folder, common = Path(o.out or Path("runs", f"sweep-{o.what}")), {"n_layer": o.n_layer, "frac": 0.3}
    backend.start(o.device)
    wanted = [
        (name, replace(Options(steps=o.steps or steps, snapshots=False), **{**common, **settings[name], "seed": seed}))
        for name in names
        for seed in seeds
    ]
    for _, options in wanted:
        options.check()
    path = folder / "results.json"
    saved = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []  # of earlier commands too
    results = {(r["setting"], r["seed"]): r for r in saved}
    for name, options in wanted:
        results[name, options.seed] = run_of_sweep(o.what, name, options, folder)
        runs = sorted(results.values(), key=lambda r: (list(settings).index(r["setting"]), r["seed"]))
        with cli.whole(path) as new:
            new.write_text(json.dumps({"sweep": o.what, "runs": runs}, indent=1) + "\n", encoding="utf-8")
    print(f"\n{o.what:<18}{'seed':>5}{'train 99 %':>12}{'val 99 %':>10}{'clean 99 %':>12}{'clean at the end':>18}")
    for r in runs:
        steps_to = "".join(f"{format(r[k], ',') if r[k] else '–':>{w}}" for k, w in zip(STEPS_TO, (12, 10, 12)))
        print(f"{r['setting']:<18}{r['seed']:>5}{steps_to}{100 * r['clean_val_acc']:>9.1f} % at {r['step']:,}")
    print(f"\nwrote {path}; now try  {plot_command('grok_sweep')} {path}")


STEPS_TO = {"train_99": "train_acc", "val_99": "val_acc", "clean_val_99": "clean_val_acc"}


def run_of_sweep(what: str, name: str, o: Options, folder: Path) -> dict[str, Any]:
    """Run one setting, or what is left of it; its line of results."""
    o.out = str(folder / f"{name.replace(' ', '-').replace(',', '')}-seed{o.seed}")
    head, run = f"{what} {name:<18} seed {o.seed}  ", None
    if Path(o.out, "config.json").is_file():
        run = Run.open(o.out, "grok")
        ignored = {"out", "resume", "device", "preset", "steps"}
        was, now = ({k: v for k, v in d.items() if k not in ignored} for d in (run.config()["options"], asdict(o)))
        if was != now:
            raise UserError(f"{o.out} was run with other options: choose another --out, or remove it")
        o.resume = o.out
    lines = evaluations(run) if run else []
    last = end_of([(line["step"], line["clean_val_acc"]) for line in lines])
    if not lines or lines[-1]["step"] < min(o.steps, last):
        if run:
            run.lock()
        _, trainer = prepare(o, run)
        trainer.progress, run = OneLine(head), trainer.run
        try:
            trainer.train()
        except SystemExit:
            print("\nstopped, and saved; the same command goes on", flush=True)
            raise
        finally:
            run.unlock()
        trainer.progress.clear()
        lines = evaluations(run)
    print(f"{head}{verdict(lines)}", flush=True)
    reached = {key: crossing(lines, accuracy) for key, accuracy in STEPS_TO.items()}
    final = {k: lines[-1][k] for k in ("step", "seconds", "train_acc", "val_acc", "clean_val_acc", "weight_norm")}
    return {"setting": name, "seed": o.seed, "frac": o.frac, "n_layer": o.n_layer, **reached, **final, "run": o.out}


VERBS: dict[str, Callable[[Sequence[str]], None]] = {"train": train, "sweep": sweep}


def main(argv: Sequence[str]) -> None:
    cli.dispatch(VERBS, argv)


if __name__ == "__main__":
    cli.run(main)
