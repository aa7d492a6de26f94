"""Delayed generalisation: a small GPT learns its part of an addition table by heart, and long after that, to add.

    python grok.py --wd 1.0             train on 27.5 % of a + b mod 97; --preset fast is smaller still
    python plots/grok_curves.py         what happened
    python plots/grok_mechanism.py      how the network adds
    python grok.py sweep fraction       many runs: how much of the table it takes
    python grok.py sweep intervention   many runs: what brings generalisation about, and what doesn't

Power et al., "Grokking: Generalization Beyond Overfitting on Small Algorithmic Datasets" (arXiv:2201.02177). The model
is the GPT of gpt.py: it is asked `a b =` and graded on the one token that follows. Everything that the paper varied is
an option. In the shapes: n pairs in the table, B in a batch, T tokens in a prompt, V in the vocabulary, p numbers.

The clean validation pairs, `clean_val`, are those of a + b whose twin b + a isn't a training pair either.
"""

from runtime.script import run_main  # first: from here on Ctrl-C ends in one sentence

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from tinygrad import Tensor, dtypes
from tinygrad.nn.state import get_state_dict

from data.modular import OPERATIONS, PROMPTS, Split, Table, batch_indices, make_split, make_table
from gpt import GPT, Embedding, GPTConfig, attention, cross_entropy, dropout, dropout_seeds
from kernels import random_bits, training
from kernels.formulas import unchanged
from runtime.cli import option
from runtime.compiled import jit, zeros_on
from runtime.device import require_memory
from runtime.errors import UserError
from runtime.run import Run
from trainer import AdamW, Muon, Optimizer, Task, Trainer, TrainOptions, total_norm

BLOCK_SIZE = 8  # a prompt has 3 or 4 tokens; the rest of the position table is there and never used
GROKKED = 0.99  # the accuracy that counts as having learned it
EXTRA_STEPS = 200  # a run stops so many steps after clean validation has reached it in two evaluations in a row


# ---- options ----

PRESETS: dict[str, dict[str, Any]] = {"fast": {"n_layer": 1, "frac": 0.25}}


@dataclass
class Options:
    """The options of `python grok.py`."""

    op: str = option("+", "the operation, mod p", list(OPERATIONS))
    p: int = option(97, "the modulus, a prime where --op is /")
    prompt: str = option("a b =", "how it is asked", list(PROMPTS))
    frac: float = option(0.275, "share of all pairs to train on")
    preset: str | None = option(None, "fast: one layer, 25 % of the pairs; any other flag wins")
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
    wd: float = option(1.0, "decay of every parameter: in the step of adamw and muon, in the gradient of adam and sgd")
    wd_to: str = option("zero", "where decay pulls: to zero, or back to the initial weights", ("zero", "init"))
    dropout: float = option(0.0, "share dropped of the embeddings and of what each block adds to the residual stream")
    weight_noise: float = option(0.0, "spread of Gaussian noise on all weights in the forward pass (the paper: 0.01)")
    grokfast: bool = option(False, "add twice the gradient's moving average to it (Lee et al., arXiv:2405.20233)")
    stablemax: bool = option(False, "a softmax that can't saturate (Prieto et al., arXiv:2501.04697)")
    snapshots: bool = option(True, "keep the logits of all pairs, 2 MB some 30 times, for plots/grok_mechanism.py")
    out: str | None = option(None, "the run folder to make (default: a new one under runs/)")
    resume: str | None = option(None, "a run folder to go on with")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")

    CHANGEABLE: ClassVar = frozenset({"resume", "device", "steps"})  # when a run goes on

    def check(self) -> None:
        """Raise UserError for an invalid value; the table and the split check theirs."""
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
        """The two numbers in `--betas`. Raises UserError for anything else."""
        try:
            first, second = map(float, self.betas.split(","))
        except ValueError:
            raise UserError(f"--betas takes two numbers with a comma between them, not {self.betas!r}") from None
        if not (0 <= first < 1 and 0 <= second < 1):
            raise UserError(f"--betas must both be in [0, 1), not {self.betas}")
        return first, second

    def config(self, table: Table) -> GPTConfig:
        return GPTConfig(BLOCK_SIZE, len(table.vocabulary), self.n_layer, self.n_head, self.n_embd, self.dropout)

    def train_options(self) -> TrainOptions:
        """These options for the Trainer: a constant learning rate, no clipping."""
        beta1, beta2 = self.both_betas()
        return TrainOptions(
            seed=self.seed, steps=self.steps, batch_size=self.batch, lr=self.lr, min_lr=self.lr, warmup=self.warmup,
            beta1=beta1, beta2=beta2, weight_decay=self.wd, grad_clip=0.0, log_interval=100,
        )


# ---- the model ----


class UntiedGPT(GPT):
    """A GPT whose head has weights of its own. Tied to the embedding as in GPT-2, it generalises far later."""

    def __init__(self, config: GPTConfig, seed: int):
        super().__init__(config, seed)
        self.lm_head = Embedding(np.random.default_rng((seed, 4)), config.vocab_size, config.n_embd)  # (V, C), as wte
        self.lm_head.weight.realize()

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


def last_logits(model: GPT, idx: Tensor) -> Tensor:
    """Tokens `(B, T)` -> logits `(B, V)` of the token after the last, as `model(idx)[:, -1]`.

    After the last attention no other position has an influence on them, so the last block goes on with this one alone.
    """
    *blocks, block = model.h
    shortened = (type(model).__call__, type(model).hidden, type(block).__call__, type(block.attn).__call__)
    if not all(unchanged(f, "all positions go through the last block now, which is slower") for f in shortened):
        return model(idx)[:, -1]
    x = model.embed(idx)
    for earlier in blocks:
        x = earlier(x)  # (B, T, C)
    a = block.attn
    y = attention(a.c_attn(block.ln_1(x)), a.n_head, a.p)[:, -1:]  # (B, T, C) -> (B, 1, C)
    x = x[:, -1:] + dropout(a.c_proj(y), a.p)  # (B, 1, C)
    x = x + block.mlp(block.ln_2(x))
    return model.head(model.ln_f(x)).squeeze(1)  # (B, 1, V) -> (B, V)


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log of s(z_target) / sum s(z), `(B,)`, for logits z `(B, V)`; s(z) is z + 1 from 0 up, and 1 / (1 - z) below 0.

    s grows as slowly as a line, so a model can't drive its loss to exactly 0 by scaling its logits up.
    """
    s = (logits >= 0).where(logits + 1, 1 / (1 - logits.minimum(0)))
    one_hot = targets.unsqueeze(-1) == Tensor.arange(logits.shape[-1], device=logits.device)  # (B, V)
    return s.sum(-1).log() - one_hot.where(s, 0).sum(-1).log()


def gaussian(count: int, seeds: Tensor) -> Tensor:
    """Standard normal numbers `(count,)` from two hashes by Box and Muller's formula; `seeds` is `(2,)` uint32.

    They depend on the seeds alone, as in `gpt.dropout`, so a resumed run draws the same ones.
    """
    bits = [random_bits(Tensor.empty(count), seeds[i]) for i in (0, 1)]
    u, v = ((b >> 8).cast(dtypes.float32) * 2**-24 for b in bits)  # 24 bits each, exact in float32; u stays below 1
    return (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()


def map_tensors(part: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a model with f(tensor) for every tensor, in the order of its state dict."""
    if isinstance(part, Tensor):
        return f(part)
    if isinstance(part, list):
        return [map_tensors(p, f) for p in part]
    if isinstance(part, GPTConfig) or not hasattr(part, "__dict__"):
        return part
    new = copy.copy(part)
    vars(new).update({name: map_tensors(p, f) for name, p in vars(part).items()})
    return new


def add_noise(model: GPT, spread: float, seeds: Tensor) -> GPT:
    """A copy of the model with Gaussian noise added to every weight. `seeds` is `(2,)`.

    The noise is a constant, so gradients pass through the copy to the model's own weights.
    """
    ends = np.cumsum([0, *(w.numel() for w in get_state_dict(model).values())]).tolist()
    noise = gaussian(ends[-1], seeds).contiguous()  # in one kernel: its logarithm and cosine take long to compile
    place = iter(zip(ends, ends[1:]))

    def add(w: Tensor) -> Tensor:
        a, b = next(place)
        return (w + spread * noise[a:b].reshape(w.shape)).contiguous()

    return map_tensors(model, add)


# ---- the update ----


class SGD:
    """Gradient descent with momentum, as in PyTorch: m = beta m + g, p = p - lr m."""

    def __init__(self, params: Mapping[str, Tensor], o: TrainOptions):
        self.params, self.beta = dict(params), o.beta1
        self.m = {k: zeros_on(p, p.shape) for k, p in self.params.items()}
        Tensor.realize(*self.params.values(), *self.m.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        return np.array([lr], np.float32)

    def state(self) -> dict[str, Tensor]:
        return {f"m.{name}": t for name, t in self.m.items()}

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        norm = total_norm(grads)
        for name, p in self.params.items():
            m = self.m[name].assign(self.beta * self.m[name] + grads[name])
            p.assign(p.detach() - hyper[0] * m)
        Tensor.realize(norm, *self.params.values(), *self.m.values())
        return norm


class GrokOptimizer:
    """The experiment's optimizer: Grokfast's filter of the gradients, then an update rule with its weight decay.

    Decoupled weight decay (adamw, muon) shrinks the weights in the step; else (adam, sgd) it is part of the gradient.
    """

    ALPHA, LAMB = 0.98, 2.0  # Grokfast's for modular arithmetic: the moving average's decay, and the factor on it

    def __init__(self, params: Mapping[str, Tensor], t: TrainOptions, o: Options):
        self.params, self.wd = dict(params), o.wd
        self.decoupled = o.optimizer in ("adamw", "muon")
        t = replace(t, weight_decay=o.wd if self.decoupled else 0.0)
        rules: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "muon": lambda p, t: Muon(p, t, decay_all=True)}
        adam = lambda params, t: AdamW(params, t, decay_all=True)
        self.rule = rules.get(o.optimizer, adam)(params, t)
        self.start = {k: Tensor(p.numpy()) for k, p in self.params.items() if o.wd_to == "init"}
        # Grokfast's moving averages of the gradients
        self.slow = {k: zeros_on(p, p.shape) for k, p in self.params.items() if o.grokfast}
        Tensor.realize(*self.params.values(), *self.start.values(), *self.slow.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        """The rule's own numbers, and the moving average's decay, which is 0 at the first step."""
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
    """The table on the device, and the three functions that a Task needs: a batch, its loss, an evaluation."""

    def __init__(self, o: Options):
        self.o = o
        self.table = make_table(o.op, o.p, o.prompt)
        self.split: Split = make_split(self.table, o.frac, o.seed)
        train, n = len(self.split.train), len(self.table)
        if o.batch > train:
            raise UserError(f"--batch {o.batch:,} is more than {train:,} training pairs: choose less, or 0 for all")
        self.config = o.config(self.table)
        require_memory(self.config.parameters)
        self.model = make_model(o, self.config)
        self.params = get_state_dict(self.model)
        self.prompts, self.answers = Tensor(self.table.prompts), Tensor(self.table.answers)
        parts = (self.split.train, self.split.val, self.split.clean)
        members = np.zeros((3, n), np.float32)  # 1 for each pair that is in train, in val, in clean val
        for row, part in zip(members, parts):
            row[part] = 1
        self.members, self.sizes = Tensor(members), np.array([len(part) for part in parts])
        Tensor.realize(self.prompts, self.answers, self.members, *self.params.values())
        self.logits: Tensor | None = None  # (n, p) float16, of the newest evaluation
        self._measure = jit(self._all_pairs)

    def batch(self, step: int) -> tuple[np.ndarray, ...]:
        """The indices of a step's pairs, and the seeds of its noise: nothing else goes to the device."""
        o, train = self.o, self.split.train
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
        seeds_left = iter(seeds)
        drop: list[Tensor | None] | None = None
        if self.o.dropout:  # of the embeddings and of a block's two sums (Vaswani et al.), not of attention's weights
            s = next(seeds_left)
            drop = [None if i % 3 == 1 else s[i] for i in range(3 * self.o.n_layer + 1)]
        if self.o.weight_noise:
            model = add_noise(model, self.o.weight_noise, next(seeds_left))
        with training(drop):
            logits = last_logits(model, self.prompts[index].contiguous())  # (B, V)
        return self.losses(logits, self.answers[index]).mean()

    def _all_pairs(self) -> tuple[Tensor, Tensor]:
        """A forward pass over all pairs: seven sums in one tensor, and logits `(n, p)` in float16."""
        logits = last_logits(self.model, self.prompts).contiguous()  # (n, V)
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
    """The lines of a run's metrics that have an evaluation, oldest first."""
    parts = ("train", "val", "clean_val")
    names = [f"{part}_acc" for part in parts] + [loss_key(part) for part in parts] + ["weight_norm"]
    return run.metrics(*names)


def loss_key(part: str) -> str:
    """The name of a part's evaluated loss: `train_loss` is that of a step's batch."""
    return "train_eval_loss" if part == "train" else f"{part}_loss"


def last_step(accuracies: Sequence[tuple[int, float]]) -> float:
    """The step to stop at, given the step and the clean validation accuracy of each evaluation; infinity for none."""
    for (_, before), (step, accuracy) in zip(accuracies, accuracies[1:]):
        if min(before, accuracy) >= GROKKED:
            return step + EXTRA_STEPS
    return math.inf


def evaluation_due(step: int) -> bool:
    """Whether to evaluate at this step."""
    return step % 25 == 0 and (step <= 400 or step % 100 == 0)


def snapshot_due(step: int) -> bool:
    """Whether to keep a snapshot: some thirty in a run. A model changes with the logarithm of the step, and each takes
    2 MB."""
    return step % 50 == 0 and (step <= 400 or step % 100 == 0)


class GrokTrainer(Trainer):
    """The Trainer with this experiment's schedule of evaluations, and an end that depends on their accuracies."""

    def __init__(self, e: Experiment, run: Run):
        optimizer = lambda params, t: GrokOptimizer(params, t, e.o)
        super().__init__(Task(e.model, e.loss, e.batch, self.measure, optimizer=optimizer), e.o.train_options(), run)
        self.experiment = e
        self.accuracies: list[tuple[int, float]] = []  # step and clean validation accuracy of each evaluation
        self.last = math.inf  # the step to stop at

    def measure(self) -> dict[str, float]:
        """Evaluate; keep a snapshot where one is due."""
        measured = self.experiment.evaluate()
        self.record(self.step, measured["clean_val_acc"])
        if self.experiment.o.snapshots and (snapshot_due(self.step) or self.done()):
            self.run.save(f"snapshots/{self.step:06d}", self.experiment.snapshot(), {"step": self.step}, "F16")
        return measured

    def record(self, step: int, clean_val_acc: float) -> None:
        """Note an evaluation's accuracy, on which the last step depends."""
        self.accuracies.append((step, clean_val_acc))
        self.last = last_step(self.accuracies)

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
        self.last = last_step(self.accuracies)


def task_name(table: Table) -> str:
    """`a + b mod 97`, `x^2+xy+y^2 mod 97`."""
    return f"{table.op if len(table.op) > 1 else f'a {table.op} b'} mod {table.p}"


def prepare(o: Options, run: Run | None = None) -> GrokTrainer:
    """The trainer of an experiment, in a new run folder or, with `o.resume`, where `run` stopped."""
    experiment = Experiment(o)
    if run is None:
        run = Run.new(o.out, "grok")
        run.lock()
    table, split = experiment.table, experiment.split
    pairs = {"pairs": len(table), "train": len(split.train), "val": len(split.val), "clean_val": len(split.clean)}
    run.write_config({
        "kind": "grok", "options": asdict(o), "model": {**asdict(experiment.config), "tied": o.tied},
        "tokenizer": {"kind": "words", "vocabulary": table.vocabulary}, "corpus": {"name": task_name(table), **pairs},
    })
    trainer = GrokTrainer(experiment, run)
    if o.resume:
        trainer.resume()
    return trainer


def summary(evaluated: Sequence[Mapping[str, Any]]) -> str:
    """The outcome of a run in a sentence, from its evaluations."""
    a, b = crossing(evaluated, "train_acc"), crossing(evaluated, "clean_val_acc")
    last = evaluated[-1]
    if a is None:
        return f"the training pairs weren't learned: {100 * last['train_acc']:.1f} % at step {last['step']:,}"
    learned = f"training pairs 99 % at step {a:,}"
    if b is None:
        return f"{learned}; clean validation pairs {100 * last['clean_val_acc']:.1f} % at step {last['step']:,}"
    return f"{learned}, clean validation pairs 99 % at step {b:,}: {b / a:.1f} times as many"


if __name__ == "__main__":
    from commands.grok import main

    run_main(main)
