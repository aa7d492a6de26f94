"""Training: the step (forward, backward, clip, AdamW) as formulas, and the loop around it.

A script describes what is trained as a `Task`; the `Trainer` takes the steps, evaluates, writes metrics and
checkpoints, and goes on after a stop. Batches depend on nothing but the seed and the step, so a run that was stopped
goes on with the very numbers of one that wasn't.

`hyper` is a small vector of what differs from step to step, such as the learning rate: an input of the compiled step.
"""

import contextlib
import errno
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, ClassVar, Protocol

import numpy as np
from tinygrad import Tensor
from tinygrad.helpers import CACHEDB
from tinygrad.nn.state import get_state_dict

from gpt import linear
from kernels import add_up, fast
from runtime.cli import command, option
from runtime.compiled import Inputs, jit, zeros_on
from runtime.device import beam_search
from runtime.errors import UserError
from runtime.progress import Progress, Waiting, counted, duration
from runtime.ranks import from_first, largest
from runtime.run import Run
from runtime.shares import Block, Share, Sum, copy_to, make_equal, shares, take_rows
from runtime.signals import handled_by, stop, when_stopped
from runtime.tensors import copy_into, number_in


@dataclass
class TrainOptions:
    """The options that every training script shares."""

    data: str = option("shakespeare", "shakespeare[-complete], tinystories[-full], or UTF-8 text: a file (also .gz or "
                                      ".zst), several with commas between, a folder, a pattern; - is standard input; "
                                      ".jsonl holds conversations")
    val_data: str | None = option(None, "a text to validate on, in place of the last tenth")
    data_dir: str | None = option(None, "where corpora are kept (default: $DATA_DIR, else data/cache/ here)")
    out: str | None = option(None, "the run folder to make (default: a new one under runs/)")
    resume: str | None = option(None, "a run folder to go on with")
    preset: str | None = option(None, "defaults that belong together; any flag beside it wins")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")
    seed: int = option(1337, "of the initial weights, the batches and dropout")
    steps: int = option(2000, "optimizer steps to take in all")
    batch_size: int = option(12, "windows per forward pass")
    grad_accum: int = option(1, "forward passes per optimizer step")
    lr: float = option(1e-3, "the highest learning rate")
    min_lr: float = option(1e-4, "where the cosine ends")
    warmup: int = option(100, "steps of linear warm-up")
    beta1: float = option(0.9, "AdamW's decay of the mean gradient")
    beta2: float = option(0.99, "AdamW's decay of the mean squared gradient")
    weight_decay: float = option(0.1, "AdamW's, on matrices only")
    grad_clip: float = option(1.0, "the highest norm of all gradients together; 0 for no limit")
    eval_interval: int = option(250, "steps between evaluations, which also write a checkpoint")
    eval_batches: int = option(20, "batches in an evaluation of each split")
    log_interval: int = option(10, "steps between lines of progress")
    patience: int = option(0, "stop after so many evaluations in a row without a better validation loss; 0 for never")
    beam: int = option(0, "try this many variants of every kernel at a time before the first step and keep the fastest:"
                          " 2 takes minutes on a GPU, seconds on a CPU, whose step is C already")
    beam_minutes: float = option(10.0, "how long --beam may search; kernels after that stay as they are without it")

    # What may change when a run goes on: where things are, what is reported when, --steps, which makes it longer, and
    # what is often changed by hand halfway.
    CHANGEABLE: ClassVar = frozenset({"resume", "device", "devices", "data", "val_data", "data_dir", "steps",
                                      "eval_interval", "log_interval", "beam", "beam_minutes", "patience", "lr",
                                      "min_lr", "weight_decay", "dropout"})

    def check(self) -> None:
        """Raise UserError for an invalid value."""
        if self.seed < 0:
            raise UserError(f"--seed can't be {self.seed}: seeds count from 0")
        for name in ("steps", "batch_size", "grad_accum", "eval_interval", "eval_batches", "log_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("beam", "patience"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} must be at least 0, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "grad_clip", "lr", "min_lr", "beam_minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} can't be {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} must be in [0, 1), not {getattr(self, name)}")


def fit_warmup(o: Any, given: set[str]) -> str:
    """Where the warm-up of `o` would take all of its steps: make it a tenth of them, or leave it as the user typed it
    (`given` names what was typed). Returns what to tell the user, if anything."""
    if not o.warmup or o.warmup < o.steps:
        return ""
    if "warmup" in given:
        return f"note: --warmup {o.warmup} takes all {o.steps} steps, so the learning rate only rises\n"
    usual, o.warmup = o.warmup, o.steps // 10
    return f"note: the warm-up is {o.warmup} of {o.steps} steps, as the usual {usual} would take all of them\n"


# ---- one step ----


def learning_rate(step: int, o: TrainOptions) -> float:
    """Linear warm-up to `lr` at step `warmup - 1`, then a cosine down to `min_lr` at step `steps` (counted from 0).

    It never rises after the warm-up: an `lr` below `min_lr` stays as it is.
    """
    low = min(o.lr, o.min_lr)
    if step < o.warmup:
        return o.lr * (step + 1) / o.warmup
    if step >= o.steps:
        return low
    done = (step - o.warmup) / (o.steps - o.warmup)
    return low + 0.5 * (1 + math.cos(math.pi * done)) * (o.lr - low)


@fast
def adamw(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], m: Mapping[str, Tensor], v: Mapping[str, Tensor],
    hyper: Tensor, decay: Mapping[str, float], betas: tuple[float, float], eps: float, clip: float,
) -> Tensor:
    """One step of AdamW (Loshchilov & Hutter, arXiv:1711.05101) in place; the gradient's norm before clipping, `()`.

    `hyper` is `(3,)`: the learning rate and 1 / (1 - beta^t) for both betas. `clip` is the highest norm of all
    gradients together (math.inf for none). Gradients whose norm isn't finite change nothing.
    """
    norm = add_up([g.square().sum() for g in grads.values()]).sqrt()
    scale, good = (clip / (norm + 1e-6)).minimum(1.0), norm < math.inf
    Tensor.realize(norm, scale, good)  # compute them now, once for all parameters
    lr, correct1, correct2 = hyper[0], hyper[1], hyper[2]
    for name, p in params.items():
        g = grads[name] * scale
        m[name].assign(good.where(betas[0] * m[name] + (1 - betas[0]) * g, m[name]))  # mean of the gradient
        v[name].assign(good.where(betas[1] * v[name] + (1 - betas[1]) * g.square(), v[name]))  # and of its square
        step = (m[name] * correct1) / ((v[name] * correct2).sqrt() + eps) + decay[name] * p.detach()
        p.assign(p.detach() - good.where(lr * step, 0))
    Tensor.realize(*params.values(), *m.values(), *v.values())
    return norm


class Step:
    """One optimizer step of a task: forward, backward, update."""

    def __init__(self, task: "Task", options: TrainOptions):
        self.task = task
        self.params = get_state_dict(task.model) if task.params is None else dict(task.params)
        self.optimizer = task.optimizer(self.params, options)
        self.loss_scale = LossScale(next(iter(self.params.values()))) if task.loss_scaling else None

    def gradients(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Forward and backward: the loss, and by how much it changes with each parameter."""
        loss = self.task.loss(self.task.model, *batch)
        scaled = self.loss_scale
        grads = scaled.gradients(loss, self.params) if scaled else loss.gradient(*self.params.values())
        Tensor.realize(loss, *grads)  # now: a loss left lazy would be computed from the parameters after the update
        return loss, dict(zip(self.params, grads))

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        """Move each parameter against its gradient; the norm of the gradient, `()`."""
        norm = self.optimizer.update(grads, hyper)
        if self.loss_scale:
            self.loss_scale.update(norm)
        return norm

    def take(self, hyper: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """The whole step; the loss and the norm of the gradient, both `()`."""
        loss, grads = self.gradients(*batch)
        return loss, self.update(grads, hyper)


class CompiledStep(Step):
    """A step whose parts are compiled. Called with `hyper` and the step's batches, as many as are accumulated; gives
    the loss and the norm of the gradient, both `()` and still on the device."""

    def __init__(self, task: "Task", options: TrainOptions, share: Share | None = None):
        super().__init__(task, options)
        own, *others = shares(max(1, len(task.devices)))
        self.accum, self.share = options.grad_accum, share or own
        self.copies = [CompiledStep(copy_to(d, task), options, other) for d, other in zip(task.devices[1:], others)]
        device = str(next(iter(self.params.values())).device)
        self.inputs, self.hyper = Inputs(device), Inputs(device)
        # Accumulation runs one part for each batch and one at the end: in one piece it would take long to compile.
        self.whole, self.part, self.end = jit(self.take), jit(self._accumulate), jit(self._apply)
        self.in_parts = self.accum > 1 or self.share.count > 1
        shapes = {name: p.shape for name, p in self.params.items() if self.in_parts}
        self.block = Block({"": (1,), **shapes}, device)
        self.total, self.sums = self.block.tensors.pop(""), self.block.tensors  # of the losses, and of the gradients
        self.sum_over_ranks = Sum([self.block, *(c.block for c in self.copies)])  # and over the devices of each

    def __call__(self, hyper: np.ndarray, batches: Iterator[tuple[np.ndarray, ...]]) -> tuple[Tensor, Tensor]:
        if not self.in_parts:
            return self.whole(*self.inputs(hyper, *next(batches)))
        for i, batch in enumerate(batches):
            for device in (self, *self.copies):
                device.add_batch(i, batch)
        self.sum_over_ranks()  # now each has the loss and the gradients of the whole batch, and takes the same step
        norm, *_ = [device.end(*device.hyper(hyper)) for device in (self, *self.copies)]
        return self.total, norm

    def add_batch(self, i: int, batch: Sequence[np.ndarray]) -> None:
        """Forward and backward for this device's rows of the i-th batch of a step."""
        rows = self.share.rows(len(batch[0]))
        how = np.array([min(i, 1), (rows.stop - rows.start) / len(batch[0]) / self.accum], np.float32)
        self.part(*self.inputs(how, *self.task.take_rows(batch, rows)))

    def _accumulate(self, how: Tensor, *batch: Tensor) -> None:
        """Add a batch's part to the loss and the gradients. `how` `(2,)` says how much of the sum before to keep, 0 for
        the first batch and 1 after it, and how much the mean over these rows counts."""
        loss, grads = self.gradients(*batch)
        keep, weight = how[0] > 0, how[1]  # not a factor of 0: what has overflowed would be 0 times infinity
        self.total.assign(keep.where(self.total, 0) + loss * weight)
        for name, g in grads.items():
            self.sums[name].assign(keep.where(self.sums[name], 0) + g * weight)
        Tensor.realize(self.total, *self.sums.values())

    def _apply(self, hyper: Tensor) -> Tensor:
        return self.update(self.sums, hyper)

    def make_equal(self) -> None:
        """Give all ranks and devices the parameters and moments of the first."""
        make_equal(self.state(), *(c.state() for c in self.copies))

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, by the names of state.safetensors."""
        scale = self.loss_scale.state() if self.loss_scale else {}
        return {f"model.{name}": t for name, t in self.params.items()} | self.optimizer.state() | scale


class AdamW:
    """`adamw` with its moments, and decay on matrices only: biases and LayerNorm's vectors are left alone, as GPT-2 and
    nanoGPT are trained. `decay_all` is for an experiment that wants it on everything."""

    def __init__(self, params: Mapping[str, Tensor], o: TrainOptions, decay_all: bool = False):
        self.params = dict(params)
        zeros = lambda: {k: zeros_on(p, p.shape) for k, p in self.params.items()}
        self.m, self.v = zeros(), zeros()
        self.betas, self.clip = (o.beta1, o.beta2), o.grad_clip or math.inf
        self.decay = {k: o.weight_decay if decay_all or p.ndim >= 2 else 0.0 for k, p in self.params.items()}
        Tensor.realize(*self.params.values(), *self.m.values(), *self.v.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        """What changes from step to step, as an input of the compiled step: `(3,)` float32.

        Both bias corrections are computed here in double precision: in single, 1 - 0.99**1 loses two of seven digits.
        """
        return np.array([lr, *(1 / (1 - beta ** (step + 1)) for beta in self.betas)], np.float32)

    def state(self) -> dict[str, Tensor]:
        """What it remembers between steps, by the names of state.safetensors."""
        return {f"{part}.{name}": t for part, ts in (("m", self.m), ("v", self.v)) for name, t in ts.items()}

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        """Write new parameters and moments in place; return the norm of the gradient before clipping, `()`."""
        return adamw(self.params, grads, self.m, self.v, hyper, self.decay, self.betas, 1e-8, self.clip)


@fast
def total_norm(grads: Mapping[str, Tensor]) -> Tensor:
    """The norm of all gradients together, `()`."""
    return add_up([g.square().sum() for g in grads.values()]).sqrt()


def orthogonalize(g: Tensor) -> Tensor:
    """Five steps of Newton and Schulz's iteration: singular values near 1, the same singular vectors, `(m, n)`."""
    x = (g / (g.square().sum().sqrt() + 1e-7)).contiguous()
    if tall := g.shape[0] > g.shape[1]:
        x = x.T.contiguous()
    for _ in range(5):
        a = linear(x, x, transposed=True)  # x x^T, (m, m), m the smaller side
        x = (3.4445 * x + linear((-4.7750 * a + 2.0315 * linear(a, a)).contiguous(), x)).contiguous()
    return x.T if tall else x


@fast
def muon(
    params: Mapping[str, Tensor], grads: Mapping[str, Tensor], m: Mapping[str, Tensor], hyper: Tensor, beta: float,
    decay: float,
) -> bool:
    """One step of Muon (Jordan et al., kellerjordan.github.io/posts/muon) for matrices, in place.

    The step of a matrix is, nearly, the orthogonal matrix closest to its momentum: it moves equally far in every
    direction. Its size is scaled to that of an AdamW step (Liu et al., arXiv:2502.16982), so that --lr means the same.
    True, as a kernel of this name returns: None would mean that there is none.
    """
    for name, p in params.items():
        g = grads[name]
        m[name].assign(beta * m[name] + g)
        step = orthogonalize(g + beta * m[name]) * (0.2 * math.sqrt(max(p.shape)))  # Nesterov's momentum
        p.assign(p.detach() - hyper[0] * (step + decay * p.detach()))
    Tensor.realize(*params.values(), *m.values())
    return True


class Muon:
    """`muon` for the blocks' matrices, AdamW for everything else: embeddings, the head, vectors."""

    def __init__(self, params: Mapping[str, Tensor], o: TrainOptions, decay_all: bool = False):
        self.params = {k: p for k, p in params.items() if k.startswith("h.") and p.ndim == 2}
        self.others = AdamW({k: p for k, p in params.items() if k not in self.params}, o, decay_all)
        self.m = {k: zeros_on(p, p.shape) for k, p in self.params.items()}
        self.beta, self.weight_decay = o.beta1, o.weight_decay
        Tensor.realize(*self.params.values(), *self.m.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        return self.others.hyper(step, lr)

    def state(self) -> dict[str, Tensor]:
        return {f"muon.{name}": t for name, t in self.m.items()} | self.others.state()

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        norm = total_norm(grads).realize()
        muon(self.params, grads, self.m, hyper, self.beta, self.weight_decay)
        self.others.update({name: grads[name] for name in self.others.params}, hyper)
        return norm


OPTIMIZERS: dict[str, Callable[[Mapping[str, Tensor], TrainOptions], "Optimizer"]] = {"adamw": AdamW, "muon": Muon}


class LossScale:
    """The factor on a float16 model's loss that keeps small gradients from becoming 0; it is adjusted while training.

    When a gradient overflows it halves, and the step changes nothing else. After 1,000 good steps it doubles
    (Micikevicius et al., arXiv:1710.03740). A step that changes nothing still counts, for the schedule and for AdamW's
    bias corrections.
    """

    START, GROW = 2.0**12, 1000

    def __init__(self, other: Tensor) -> None:
        """On the device of another tensor."""
        self.now = Tensor(np.array([self.START, 0], np.float32), device=other.device).realize()  # factor, good steps

    def state(self) -> dict[str, Tensor]:
        return {"loss_scale": self.now}

    def gradients(self, loss: Tensor, params: Mapping[str, Tensor]) -> list[Tensor]:
        """Those of the loss, computed from the loss times the factor."""
        factor = self.now[0]
        return [g / factor for g in (loss * factor).gradient(*params.values())]

    def update(self, norm: Tensor) -> None:
        """After a step with this norm of the gradient, `()`."""
        scale, steps = self.now[0], self.now[1] + 1
        good, enough = norm < math.inf, steps >= self.GROW
        scale = good.where(enough.where(scale * 2, scale), scale / 2).clip(1, 2.0**24)
        self.now.assign(Tensor.stack(scale, (good & ~enough).where(steps, 0))).realize()


# ---- what is trained ----


class Optimizer(Protocol):
    """What a step asks of an optimizer; AdamW is one. It is given the parameters, by name, when it is made."""

    def hyper(self, step: int, lr: float) -> np.ndarray:
        """What changes from step to step, as float32."""

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        """Write new parameters and state in place and realize them; return the gradient's norm, `()`."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers between steps, by name."""


@dataclass
class Task:
    """What is trained, on what, and how it is judged.

    Each of `devices`, of which the first has the model, takes its rows of a batch, and so does each rank of MPI. The
    loss is a mean over rows.
    """

    model: Any  # any object that holds its parameters as tinygrad tensors
    loss: Callable[..., Tensor]  # loss(model, *batch): `()`
    batch: Callable[[int], tuple[np.ndarray, ...]]  # the i-th batch, the same arrays whenever it is asked for
    evaluate: Callable[[], dict[str, float]]  # numbers by name, `val_loss` among them
    tokens_per_batch: int | None = None  # None: speed is counted in steps
    params: Mapping[str, Tensor] | None = None  # what is trained and saved; None: all of the model's
    optimizer: Callable[[Mapping[str, Tensor], TrainOptions], Optimizer] = AdamW
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what every file of weights says of itself
    loss_scaling: bool = False  # for float16
    devices: Sequence[str] = ()  # where there are several
    take_rows: Callable[[Sequence[np.ndarray], slice], tuple[np.ndarray, ...]] = take_rows  # some rows of a batch


# ---- the loop ----


class Trainer:
    """Trains a task into a run folder. When it evaluates, when it is done and how it shows what it measured are methods
    that a subclass may replace."""

    def __init__(self, task: Task, options: TrainOptions, run: Run):
        self.task, self.options, self.run = task, options, run
        self.compiled = CompiledStep(task, options)
        self.params, self.optimizer = self.compiled.params, self.compiled.optimizer
        self.tokens_per_step = (task.tokens_per_batch or 0) * options.grad_accum
        self.step, self.seconds, self.best = 0, 0.0, math.inf  # steps done, time spent on them, lowest val_loss
        self.worse = 0  # evaluations in a row that weren't better
        self.progress = Progress()
        self._stop = 0  # the number of the signal that asked to stop; 0 for none
        self.again = command(sys.argv[0], "--resume", run.path)  # what to type to go on after a stop
        self._mark = (0.0, 0)  # time and step of the last report
        self._rates = (0, 0.0)  # steps and the seconds they took, since this process compiled the step
        self._saved(0)
        make_equal(self.compiled.state())  # on all ranks, whatever each has read

    def take_step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step; the loss and the norm of the gradient, still on the device."""
        o = self.options
        hyper = self.optimizer.hyper(self.step, learning_rate(self.step, o))
        batches = (self.task.batch(i) for i in range(self.step * o.grad_accum, (self.step + 1) * o.grad_accum))
        result = self.compiled(hyper, batches)
        self.step += 1
        return result

    def train(self) -> None:
        """Take the steps that are left.

        Ctrl-C, SIGTERM or a closed terminal saves, says how to go on, and exits with 128 + signal. While the first step
        is compiled nothing is new, so it stops at once.
        """
        if self.done():
            more = "; a larger --steps goes on" if self.step >= self.options.steps else ""
            patient = f"{self.worse} evaluations in a row were no better; a larger --patience goes on"
            out = self.step < self.options.steps and self.options.patience
            self.progress.say(patient if out else f"done: {counted(self.step, 'step')}{more}")
            return
        self._saved(self.saved)  # `again` may be another command by now
        first = self._first_step()
        with handled_by(self._on_signal):
            try:
                self._loop(*first)
            except BrokenPipeError:  # `| head`: the reader of our progress has gone
                self.save()
                raise
        when_stopped(f"stopped; {counted(self.step, 'step')} done and saved in {self.run.path}")

    def due(self) -> bool:
        """Whether to evaluate at this step; at the last one it is done in any case."""
        return self.step % self.options.eval_interval == 0

    def done(self) -> bool:
        """Whether this step is the last."""
        return self.step >= self.options.steps or 0 < self.options.patience <= self.worse

    def shown(self, measured: Mapping[str, float]) -> str:
        """What an evaluation measured, for the line of progress."""
        return "".join(f"  {name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())

    def _loop(self, loss: Tensor, norm: Tensor) -> None:
        o, progress = self.options, self.progress
        while True:
            evaluating = self.due() or self.done()
            if evaluating or self.step % o.log_interval == 0 or self.step == 1:
                self._report(loss, norm, evaluating)
            elif progress.live and time.perf_counter() - progress.shown > 1:  # a slow step is no reason to be silent
                steps, spent = self.step - self._mark[1], time.perf_counter() - self._mark[0]
                progress.show(self._line_of_progress(loss.item(), steps, spent))
            asked = largest(self._stop)  # by any rank: a signal may have reached one, and another may come meanwhile
            if asked:
                self._require_finite(loss.item())
                self.save()
                when_stopped("")
                progress.say(f"stopped at step {self.step} and saved; go on with: {self.again}")
                raise SystemExit(128 + asked)
            if self.done():
                if self.step < o.steps and o.patience:
                    progress.say(f"stopped: {self.worse} evaluations in a row were no better than {self.best:.4f}")
                return progress.end()
            loss, norm = self.take_step()

    def _first_step(self) -> tuple[Tensor, Tensor]:
        """Take the first step of this process, which compiles it."""
        o, progress, start = self.options, self.progress, time.perf_counter()
        text = "searching for fast kernels, and taking" if o.beam else "compiling, and taking"
        with Waiting(progress, f"{text} the first step"), beam_search(o.beam, o.beam_minutes):
            try:
                loss, norm = self.take_step()
                loss.item()  # waits for the device
            except (MemoryError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                    raise
                raise UserError("there isn't enough memory for a step: try a smaller batch or model") from error
        taken = time.perf_counter() - start
        self.seconds += taken
        progress.say(f"compiled in {duration(taken)}; the kernels are kept in {CACHEDB}")
        self._mark, self._rates = (time.perf_counter(), self.step), (0, 0.0)
        return loss, norm

    def _report(self, loss: Tensor, norm: Tensor, evaluating: bool) -> None:
        """Log a step, show it, and evaluate and save where that is due."""
        value = loss.item()
        self._require_finite(value)
        # Speed since the last report, which `seconds` counts too; the time left from the speed since the start.
        steps, spent = self.step - self._mark[1], time.perf_counter() - self._mark[0]
        self.seconds += spent
        self._rates = (self._rates[0] + steps, self._rates[1] + spent)
        line, text = self._metrics(value, norm.item(), steps, spent), self._line_of_progress(value, steps, spent)
        if evaluating:
            # In a file or a pipe the line would stand there twice.
            with Waiting(self.progress, f"{text}  evaluating") if self.progress.live else contextlib.nullcontext():
                measured = from_first(self.task.evaluate)
            self._require_finite(measured["val_loss"])
            line |= measured
        self.run.log(line)
        if not evaluating:
            self.progress.show(text)
        else:
            self.worse += 1
            if measured["val_loss"] < self.best:
                self.best, self.worse = measured["val_loss"], 0
                self.run.save("best", self.params, {"step": self.step, "val_loss": self.best, **self.task.metadata})
            self.save()
            self.progress.say(text + self.shown(measured))
        self._mark = (time.perf_counter(), self.step)

    def _metrics(self, loss: float, norm: float, steps: int, spent: float) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        line: dict[str, Any] = {"step": self.step}
        if self.tokens_per_step:
            line["tokens"] = self.step * self.tokens_per_step
        line |= {
            "seconds": round(self.seconds, 3),
            "train_loss": loss,
            "lr": learning_rate(self.step - 1, self.options),
            "grad_norm": norm if math.isfinite(norm) else None,  # JSON has no infinity
        }
        if self.tokens_per_step:
            return line | {"tokens_per_s": round(steps * self.tokens_per_step / spent, 1) if steps else None}
        return line | {"steps_per_s": round(steps / spent, 2) if steps else None}

    def _line_of_progress(self, loss: float, steps: int, spent: float) -> str:
        """A step's loss, and what `steps` in `spent` seconds say of the speed and the time left."""
        o = self.options
        text = f"step {self.step:>{len(str(o.steps))}}/{o.steps}  train loss {loss:.4f}"
        if steps:
            per_step = self._rates[1] / self._rates[0] if self._rates[0] else spent / steps
            left = (o.steps - self.step) * per_step
            speed, unit = steps / spent * (self.tokens_per_step or 1), "tokens/s" if self.tokens_per_step else "steps/s"
            text += f"  {speed:,.{0 if speed >= 100 else 1}f} {unit}  {duration(left)} left"
        return text

    def _require_finite(self, value: float) -> None:
        if not math.isfinite(value):
            good = next((n for n in ("last", "best") if self.run.has(n)), None)
            kept = f"the last good one is {self.run.path / good}.safetensors" if good else "no checkpoint was saved"
            raise UserError(f"the loss became {value} at step {self.step}; {kept}; try a lower --lr")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop:  # asked twice: now
            stop(number)
        self._stop = number
        self.progress.show("stopping after this step; once more stops at once")

    # ---- going on after a stop ----

    def save(self) -> None:
        """Write state.safetensors and last.safetensors."""
        self.compiled.make_equal()
        best = self.best if self.best < math.inf else None  # JSON has no infinity
        metadata = {"step": self.step, "seconds": round(self.seconds, 3), "best": best, "worse": self.worse,
                    **self.task.metadata}
        self.run.save("state", self.compiled.state(), metadata)
        self.run.save("last", self.params, {"step": self.step, **self.task.metadata})
        self._saved(self.step)

    def _saved(self, step: int) -> None:
        """Note the newest step on the disk, 0 for none: a stop that can't save any more says it."""
        self.saved = step
        kept = f"step {step} is saved, go on" if step else "no step was saved, begin again"
        there = self.run.path.is_dir()  # a benchmark has none
        when_stopped(f"stopped; {kept} with: {self.again}" if there else "stopped; nothing was saved")

    def resume(self) -> None:
        """Go on from state.safetensors; a run that was stopped before it wrote one starts again from its seed."""
        self.run.require_state()
        if self.run.has("state"):
            tensors, metadata = self.run.load("state")
            copy_into(self.compiled.state(), tensors, str(self.run.path / "state.safetensors"))
            self.compiled.make_equal()
            number = lambda name: number_in(metadata, name, self.run.path / "state.safetensors")
            self.step, self.seconds = int(number("step")), number("seconds")
            self.best = math.inf if metadata.get("best") is None else number("best")
            self.worse = int(number("worse")) if "worse" in metadata else 0
            self._saved(self.step)
        self.run.forget_after(self.step)
        self.run.sweep()
