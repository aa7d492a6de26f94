"""The one training loop: a jitted step, AdamW, a schedule, evaluation, metrics, checkpoints, and going on after a stop.

A script gives it a model (any object that holds its parameters as tinygrad tensors), a `loss(model, *batch)`, a
function `batch(i)` that returns the same arrays whenever it is asked for the same i, and an `evaluate()`. As batches
depend on nothing but the seed and the step, a run that was stopped goes on with the very numbers of one that wasn't.
"""

import contextlib
import dataclasses
import errno
import gc
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import backend  # before tinygrad

import numpy as np
from tinygrad import Tensor, TinyJit
from tinygrad.helpers import cache_dir
from tinygrad.nn.state import get_state_dict

import cli
import kernels
from checkpoint import Run, fill
from cli import Progress, UserError, Waiting, duration, option
from data.text import NAMES, Corpus, Encoded, encode_corpus, find_corpus, require_block
from tokenizer import Tokenizer


@dataclass
class TrainOptions:
    """The options that every training script shares."""

    data: str = option("shakespeare", "shakespeare[-complete], tinystories[-full], or a UTF-8 text file")
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
    beam: int = option(0, "try variants of every kernel before the first step, this many at a time: 2 takes minutes on "
                          "a GPU, seconds on a CPU, whose step is C already; what it finds is kept")  # fmt: skip
    beam_minutes: float = option(10.0, "how long --beam may search; kernels that it didn't come to are as without it")

    # What may change when a run goes on: where things are, what is reported when, and --steps, which makes it longer.
    CHANGEABLE = frozenset({"resume", "device", "devices", "data", "data_dir", "steps", "eval_interval", "log_interval",
                            "beam", "beam_minutes"})  # fmt: skip

    def check(self) -> None:
        """Raise UserError for a value that can't be meant."""
        if self.seed < 0:
            raise UserError(f"--seed can't be {self.seed}: seeds count from 0")
        for name in ("steps", "batch_size", "grad_accum", "eval_interval", "eval_batches", "log_interval"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.beam < 0:
            raise UserError(f"--beam must be at least 0, not {self.beam}")
        for name in ("warmup", "weight_decay", "grad_clip", "lr", "min_lr", "beam_minutes"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} can't be {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} must be in [0, 1), not {getattr(self, name)}")


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


class AdamW:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101), with the norm of the whole gradient clipped first.

    Decay applies to matrices only: biases and LayerNorm's vectors are left alone, as in GPT-2's and nanoGPT's training.
    `decay_all` is for an experiment that wants it on everything.
    """

    def __init__(self, params: Mapping[str, Tensor], o: TrainOptions, decay_all: bool = False):
        self.params = dict(params)
        zeros = lambda: {k: backend.beside(np.zeros(p.shape, np.float32), p) for k, p in self.params.items()}
        self.m, self.v = zeros(), zeros()
        self.beta1, self.beta2, self.eps, self.grad_clip = o.beta1, o.beta2, 1e-8, o.grad_clip
        self.weight_decay = {k: o.weight_decay if decay_all or p.ndim >= 2 else 0.0 for k, p in self.params.items()}
        Tensor.realize(*self.params.values(), *self.m.values(), *self.v.values())

    def hyper(self, step: int, lr: float) -> np.ndarray:
        """What changes from step to step, as an input of the compiled step: `(3,)` float32.

        Both bias corrections are worked out here in double precision: 1 - 0.99**1 keeps two digits in single.
        """
        return np.array([lr, 1 / (1 - self.beta1 ** (step + 1)), 1 / (1 - self.beta2 ** (step + 1))], np.float32)

    def state(self) -> dict[str, Tensor]:
        """What it remembers between steps, by the names of state.safetensors."""
        return {f"{part}.{name}": t for part, ts in (("m", self.m), ("v", self.v)) for name, t in ts.items()}

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        """Write new parameters and moments in place; return the norm of the gradient before clipping, `()`."""
        o = self
        return kernels.adamw(
            o.params, grads, o.m, o.v, hyper, o.weight_decay, (o.beta1, o.beta2), o.eps, o.grad_clip or math.inf
        )


class LossScale:
    """The factor on a float16 model's loss that keeps small gradients from becoming 0, found while training.

    Half of it when a gradient overflows, in a step that then changes nothing; twice of it after 1,000 good steps
    (Micikevicius et al., arXiv:1710.03740). A step without a change still counts, for the schedule and for AdamW's bias
    corrections.
    """

    START, GROW = 2.0**12, 1000

    def __init__(self, other: Tensor) -> None:
        """On the device, or the devices, of another tensor."""
        self.now = backend.beside(np.array([self.START, 0], np.float32), other).realize()  # the factor, good steps

    def state(self) -> dict[str, Tensor]:
        return {"loss_scale": self.now}

    def update(self, norm: Tensor) -> None:
        """After a step with this norm of the gradient, `()`."""
        scale, steps = self.now[0], self.now[1] + 1
        good, enough = norm < math.inf, steps >= self.GROW
        scale = good.where(enough.where(scale * 2, scale), scale / 2).clip(1, 2.0**24)
        self.now.assign(Tensor.stack(scale, (good & ~enough).where(steps, 0))).realize()


class Optimizer(Protocol):
    """What the Trainer asks of an optimizer; AdamW is one. It is made of the parameters, by name, and keeps them."""

    def hyper(self, step: int, lr: float) -> np.ndarray:
        """What changes from step to step, as float32."""

    def update(self, grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
        """Write new parameters and state in place and realize them; return the gradient's norm, `()`."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers between steps, by name."""


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """A TinyJit that captures on its first call, and quickly.

    By itself it runs the function once uncaptured, so that lazily made buffers exist before it captures; ours all do,
    and scheduling the step twice would double the time to the first line of progress. Python's garbage collector, which
    would walk the graph's million objects over and over, rests meanwhile: a seventh of that time.
    """
    compiled: TinyJit = TinyJit(function)
    compiled.cnt = 1

    def call(*inputs: Tensor) -> Any:
        if compiled.captured is not None:
            return compiled(*inputs)
        gc.disable()
        try:
            return compiled(*inputs)
        finally:
            gc.enable()

    return call


class Trainer:
    """Trains a model into a run folder. See the module's first lines for what each argument must be.

    `evaluate()` returns numbers by name, `val_loss` among them. Without `tokens_per_batch` speed is counted in steps.
    When it evaluates, when it is done and how it shows what it measured are methods that a subclass may replace.
    `params` are the tensors to train and save, by default all of the model's, and `about` is what every file of weights
    says of itself beside its step. Where the parameters lie on several devices each takes its share of a batch: arrays
    of two or more axes are cut along the first, and vectors go to every device.
    """

    def __init__(
        self,
        model: Any,
        loss: Callable[..., Tensor],
        batch: Callable[[int], tuple[np.ndarray, ...]],
        evaluate: Callable[[], dict[str, float]],
        options: TrainOptions,
        run: Run,
        tokens_per_batch: int | None = None,
        optimizer: Callable[[Mapping[str, Tensor], TrainOptions], Optimizer] = AdamW,
        params: Mapping[str, Tensor] | None = None,
        about: Mapping[str, Any] | None = None,
        loss_scaling: bool = False,
    ):
        # What an earlier trainer of this process compiled is freed here and not at a moment of the garbage collector's
        # choice: in tinygrad's worker thread on the CPU, freeing it would wait for that very thread, for ever.
        gc.collect()
        self.options, self.run, self.batch, self.evaluate = options, run, batch, evaluate
        self.tokens_per_step = (tokens_per_batch or 0) * options.grad_accum
        self.params = get_state_dict(model) if params is None else dict(params)
        self.about = dict(about or {})
        self.optimizer = optimizer(self.params, options)
        one = next(iter(self.params.values()))
        self.loss_scale = LossScale(one) if loss_scaling else None
        self.step, self.seconds, self.best = 0, 0.0, math.inf  # steps done, time spent on them, lowest val_loss
        self.progress = Progress()
        self._stop = 0  # the signal that asked for it
        self._mark = (0.0, 0)  # time and step of the last report
        self._rates = (0, 0.0)  # steps and the seconds they took, since this process compiled the step

        def gradients(*inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            value = loss(model, *inputs)
            if self.loss_scale:
                factor = self.loss_scale.now[0]
                grads = [g / factor for g in (value * factor).gradient(*self.params.values())]
            else:
                grads = value.gradient(*self.params.values())
            # Now, before any parameter is written: a loss left lazy would be computed from the new ones. It also keeps
            # the graph small that tinygrad checks every in-place write against: 6.6 s to the first step instead of 8.1.
            Tensor.realize(value, *grads)
            return value, dict(zip(self.params, grads))

        def update(grads: Mapping[str, Tensor], hyper: Tensor) -> Tensor:
            norm = self.optimizer.update(grads, hyper)
            if self.loss_scale:
                self.loss_scale.update(norm)
            return norm

        @jit
        def whole_step(hyper: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            value, grads = gradients(*inputs)
            return value, update(grads, hyper)

        # With accumulation the same in two parts, run grad_accum times and once: unrolled into one they would take
        # grad_accum times as long to compile.
        k = options.grad_accum
        sums = {n: backend.beside(np.zeros(p.shape, np.float32), p) for n, p in self.params.items() if k > 1}
        total = backend.beside(np.zeros(1, np.float32), one)
        Tensor.realize(total, *sums.values())

        @jit
        def accumulate(keep: Tensor, *inputs: Tensor) -> None:
            value, grads = gradients(*inputs)
            total.assign(total * keep + value / k)
            for name, g in grads.items():
                sums[name].assign(sums[name] * keep + g / k)
            Tensor.realize(total, *sums.values())

        @jit
        def apply(hyper: Tensor) -> Tensor:
            return update(sums, hyper)

        def many_batches(hyper: np.ndarray, batches: Iterator[tuple[np.ndarray, ...]]) -> tuple[Tensor, Tensor]:
            for i, arrays in enumerate(batches):
                accumulate(*inputs(np.array([min(i, 1)], np.float32), *arrays))  # the first starts from zero
            return total, apply(*hyper_input(hyper))

        devices = one.device if isinstance(one.device, tuple) else ()
        inputs, hyper_input = backend.Inputs(devices), backend.Inputs(devices)
        self._one_batch = lambda hyper, batches: whole_step(*inputs(hyper, *next(batches)))
        self._many_batches = many_batches

    # ---- one step ----

    def take_step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step; the loss and the norm of the gradient, still on the device."""
        o = self.options
        hyper = self.optimizer.hyper(self.step, learning_rate(self.step, o))
        batches = (self.batch(i) for i in range(self.step * o.grad_accum, (self.step + 1) * o.grad_accum))
        result = (self._one_batch if o.grad_accum == 1 else self._many_batches)(hyper, batches)
        self.step += 1
        return result

    # ---- going on after a stop ----

    def save(self) -> None:
        """Write state.safetensors and last.safetensors."""
        best = self.best if self.best < math.inf else None  # JSON has no infinity
        about = {"step": self.step, "seconds": round(self.seconds, 3), "best": best, **self.about}
        self.run.save("state", self._state(), about)
        self.run.save("last", self.params, {"step": self.step, **self.about})

    def resume(self) -> None:
        """Go on from state.safetensors; a run that was stopped before it wrote one starts again from its seed."""
        if self.run.has("state"):
            tensors, about = self.run.load("state")
            fill(self._state(), tensors, str(self.run.path / "state.safetensors"))
            self.step, self.seconds = about["step"], about["seconds"]
            self.best = math.inf if about["best"] is None else about["best"]
        self.run.forget_after(self.step)
        self.run.sweep()

    def _state(self) -> dict[str, Tensor]:
        scale = self.loss_scale.state() if self.loss_scale else {}
        return {f"model.{name}": t for name, t in self.params.items()} | self.optimizer.state() | scale

    # ---- the loop ----

    def train(self) -> None:
        """Take the steps that are left. Ctrl-C or SIGTERM saves, says how to go on, and exits with 128 + signal."""
        previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _loop(self) -> None:
        o, progress = self.options, self.progress
        if self.done():
            more = "; a larger --steps goes on" if self.step >= o.steps else ""
            return progress.say(f"all {self.step} steps are done{more}")
        began = time.perf_counter()
        doing = "searching for fast kernels, and taking" if o.beam else "compiling, and taking"
        with Waiting(progress, f"{doing} the first step"), backend.search(o.beam, o.beam_minutes):
            try:
                loss, norm = self.take_step()
                loss.item()  # waits for the device
            except (MemoryError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENOMEM:
                    raise
                raise UserError("there isn't enough memory for a step: try a smaller batch or model") from error
        taken = time.perf_counter() - began
        self.seconds += taken
        progress.say(f"compiled in {duration(taken)}; the kernels are kept in {cache_dir}")
        self._mark, self._rates = (time.perf_counter(), self.step), (0, 0.0)
        while True:
            evaluating = self.due() or self.done()
            if evaluating or self.step % o.log_interval == 0 or self.step == 1:
                self._report(progress, loss, norm, evaluating)
            elif progress.live and time.perf_counter() - progress.shown > 1:  # a slow step is no reason to be silent
                progress.show(self._text(loss.item(), self.step - self._mark[1], time.perf_counter() - self._mark[0]))
            if self._stop:
                self._require_finite(loss.item())
                self.save()
                again = f"{cli.command(sys.argv[0])} --resume {self.run.path}"
                progress.say(f"stopped at step {self.step} and saved; go on with: {again}")
                raise SystemExit(128 + self._stop)
            if self.done():
                return progress.end()
            loss, norm = self.take_step()

    def due(self) -> bool:
        """Whether to evaluate at this step; at the last one it is done in any case."""
        return self.step % self.options.eval_interval == 0

    def done(self) -> bool:
        """Whether this step is the last."""
        return self.step >= self.options.steps

    def shown(self, measured: Mapping[str, float]) -> str:
        """What an evaluation found, for the line of progress."""
        return "".join(f"  {name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())

    def _report(self, progress: Progress, loss: Tensor, norm: Tensor, evaluating: bool) -> None:
        """Log a step, show it, and evaluate and save where that is due."""
        o, value = self.options, loss.item()
        self._require_finite(value)
        # Speed since the last report, which `seconds` counts too; the time left from the speed since the start.
        steps, spent = self.step - self._mark[1], time.perf_counter() - self._mark[0]
        self.seconds += spent
        self._rates = (self._rates[0] + steps, self._rates[1] + spent)
        line = {
            "step": self.step,
            "tokens": self.step * self.tokens_per_step,
            "seconds": round(self.seconds, 3),
            "train_loss": value,
            "lr": learning_rate(self.step - 1, o),
            "grad_norm": size if math.isfinite(size := norm.item()) else None,  # JSON has no infinity
            "tokens_per_s": round(steps * self.tokens_per_step / spent, 1) if steps else None,
        }
        if not self.tokens_per_step:
            line = {k: v for k, v in line.items() if "tokens" not in k}
            line["steps_per_s"] = round(steps / spent, 2) if steps else None
        text = self._text(value, steps, spent)
        if evaluating:
            # In a file or a pipe the line would stand there twice.
            with Waiting(progress, f"{text}  evaluating") if progress.live else contextlib.nullcontext():
                measured = self.evaluate()
            self._require_finite(measured["val_loss"])
            line |= measured
        self.run.log(line)
        if not evaluating:
            progress.show(text)
        else:
            if measured["val_loss"] < self.best:
                self.best = measured["val_loss"]
                self.run.save("best", self.params, {"step": self.step, "val_loss": self.best, **self.about})
            self.save()
            progress.say(text + self.shown(measured))
        self._mark = (time.perf_counter(), self.step)

    def _text(self, value: float, steps: int, spent: float) -> str:
        """The line of a step: its loss, and what `steps` in `spent` seconds say of the speed and the time left."""
        o = self.options
        text = f"step {self.step:>{len(str(o.steps))}}/{o.steps}  train loss {value:.4f}"
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
            raise KeyboardInterrupt
        self._stop = number
        self.progress.say("stopping after this step; once more stops at once")


def announce(device: str, corpus: Corpus, encoded: Encoded, model: str, run: Run, trainer: Trainer) -> None:
    """What a run is, before its first step."""
    print(f"device   {backend.describe(device)}, tinygrad {version('tinygrad')}")
    print(f"corpus   {corpus.name} ({corpus.origin}): {encoded.bytes:,} bytes, {len(encoded.ids):,} tokens of "
          f"{encoded.tokenizer.vocab_size:,} kinds, {len(encoded.val):,} kept for validation")  # fmt: skip
    print(f"model    {model}")
    print(f"run      {run.path}" + (f", from step {trainer.step}" if trainer.step else ""), flush=True)


def resumed(options: Any, given: set[str], kind: str) -> tuple[Any, Run]:
    """The options that a run was made with, under those of `given` that may change. Raises UserError for any other.

    The run folder is told of the changes: it goes on with them next time.
    """
    run = Run.open(options.resume, kind)
    config = run.config()
    fixed = sorted(n for n in given - TrainOptions.CHANGEABLE if getattr(options, n) != config["options"].get(n))
    if fixed:
        raise UserError(f"--{fixed[0].replace('_', '-')} can't change when a run goes on: start a new run for it")
    run.lock()
    merged = {**config["options"], **{name: getattr(options, name) for name in given}}
    known = {field.name for field in dataclasses.fields(options)}
    return type(options)(**{name: value for name, value in merged.items() if name in known}), run


def open_text(o: Any, tokenizer: str | Tokenizer) -> tuple[Corpus, Encoded]:
    """The text that the options name, encoded. Paths in the options become absolute, so that a run can go on from
    any current folder."""
    corpus = find_corpus(o.data, o.data_dir)
    if o.data not in NAMES:
        o.data = str(corpus.path.resolve())
    if o.data_dir:
        o.data_dir = str(Path(o.data_dir).resolve())
    encoded = encode_corpus(corpus, tokenizer, o.data_dir)
    require_block(encoded, o.block_size)
    return corpus, encoded


def start_run(o: Any, kind: str, run: Run | None, model: dict[str, Any], corpus: Corpus, encoded: Encoded) -> Run:
    """A new run folder with its config.json, or the one that goes on, if the text is still the one it began with."""
    if run is None:
        run = Run.new(o.out, kind)
        run.lock()
    else:
        encoded.require_same(run.config())
    about = {"kind": kind, "options": dataclasses.asdict(o), "model": model, **encoded.about(corpus)}
    run.write_config(about)
    return run
