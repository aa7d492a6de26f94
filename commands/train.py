"""`python gpt.py`: train into a run folder, or go on with one."""

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import gpt
import lora
from answers import answer_loss, answer_losses, require_known_attention
from commands.evaluate import mean_answer_loss, mean_loss
from commands.options import PRESETS, Options
from commands.sweeps import stopped_run, train_quietly
from commands.weights import best_dtype, find_tokenizer, load_base, note_other_tokens
from data.batches import random_batch
from data.conversations import END_OF_TURN, Conversations, encode_text
from data.corpora import Corpus
from data.encoding import Encoded, open_text, print_header, start_run
from exchange.adapters import adapter_metadata, require_base
from exchange.cfile import model_numbers
from exchange.layout import Checkpoint, departures, make_model
from generate import encode_prompt, stream
from gpt import GPT, GPTConfig, build, dropout_seeds
from runtime import ranks
from runtime.cli import command, parse
from runtime.compiled import jit
from runtime.device import open_device, open_devices, require_memory
from runtime.errors import UserError
from runtime.progress import counted
from runtime.run import Run, resume_options
from trainer import OPTIMIZERS, Task, Trainer, fit_warmup

OPENINGS = {"shakespeare": " --prompt 'ROMEO:'", "tinystories": " --prompt 'Once upon a time'"}
NUMBERS = {
    "float32": "float32",
    "bfloat16": "bfloat16 in activations and matmuls; weights, LayerNorms, softmax and loss are float32",
    "float16": "float16 in activations and matmuls, losses scaled; weights, LayerNorms, softmax and loss are float32",
}


@dataclass
class Setup:
    """All that a run is made of, before its first step."""

    options: Options
    device: str
    devices: tuple[str, ...]  # several GPUs, or none
    corpus: Corpus
    text: Encoded
    model: GPT
    adapters: dict[str, Tensor] | None  # what is trained in place of all weights
    metadata: dict[str, Any]  # of the adapters
    weights: int  # how many numbers the model has, without adapters

    @functools.cached_property
    def losses(self) -> Callable[..., Tensor]:
        """The losses of every position of a batch, compiled."""
        losses = GPT.losses if self.text.in_windows else answer_losses
        return jit(lambda *batch: losses(self.model, *batch).realize())

    def mean_loss(self, split: str, count: int | None = None) -> float:
        """The mean loss in nats over `count` windows of a split, or over all of it."""
        o, text = self.options, self.text
        if isinstance(text, Conversations):
            return mean_answer_loss(self.losses, text.evaluation(split, o.block_size, o.batch_size, count))[0]
        ids = text.train if split == "train" else text.val
        return mean_loss(self.losses, ids, o.batch_size, o.block_size, count)[0]


def train(argv: Sequence[str]) -> None:
    """`python gpt.py`: train into a run folder, or go on with one."""
    asked, given = parse(Options, argv, "gpt.py", str(gpt.__doc__), PRESETS, default_preset)
    device = open_device(asked.device)
    o, run = resume_options(asked, given, "gpt") if asked.resume else (asked, None)
    o.check()
    o.check_lora(given)
    note = "" if run else fit_warmup(o, given)
    setup, trainer = make_trainer(o, run, set() if run else given, device)
    sys.stderr.write(note)
    print_header(device, setup.corpus, setup.text, describe(setup, trainer), trainer.run, trainer.step)
    trainer.train()
    finish(setup, trainer)


def default_preset(o: Options) -> str:
    """The preset for a command line without one: by what is trained, and where."""
    if o.init_from:
        return "lora" if o.lora_rank else "finetune"
    return "shakespeare-char-cpu" if open_device(o.device) == "CPU" else "shakespeare-char"


def make_trainer(o: Options, run: Run | None, given: set[str], device: str) -> tuple[Setup, Trainer]:
    """The trainer of a new run, or of `run` where it stopped. `given` are the options that the user typed."""
    setup = prepare(o, run, given, device)
    run = start_run(o, "gpt", run, asdict(setup.model.config), setup.corpus, setup.text)
    trainer = Trainer(make_task(setup), o, run)
    if o.resume:
        trainer.resume()
    return setup, trainer


def train_of_sweep(o: Options, device: str, head: str) -> tuple[Setup, Trainer]:
    """Train a run of a sweep, or the rest of it if it was stopped, in one line of progress that begins with `head`."""
    run = stopped_run(o, "gpt", {"data", "val_data", "data_dir", "eval_interval"})
    if run:
        run.lock()
    setup, trainer = make_trainer(o, run, set(), device)
    train_quietly(trainer, head)
    return setup, trainer


def prepare(o: Options, run: Run | None, given: set[str], device: str) -> Setup:
    """Text and model, new or from a checkpoint, with adapters, on one device or several."""
    # A run that goes on has its weights in state.safetensors, unless they are adapters of others.
    needs_base = o.init_from and (o.lora_rank or not (run and run.has("state")))
    base = load_base(o, given) if needs_base else None
    corpus, text = open_text(o, find_tokenizer(o.tokenizer, run, base), encode_text)
    if base and not run:
        note_other_tokens(base, text.tokenizer, o.tokenizer)
    if base and not text.in_windows:
        base = base.grown(text.tokenizer.vocab_size)
        o.vocab_size = base.model["vocab_size"]
    config = o.config(text.tokenizer.vocab_size)
    if not base:
        require_memory(config.parameters)
    if base:  # how attention is computed is the one choice that is left
        base = replace(base, model={**base.model, **({"attention": o.attention} if o.attention != "full" else {})})
    model: GPT = build(base.cropped(config.block_size), config.dropout) if base else make_model(config, o.seed)
    model.dtype = o.dtype = o.dtype or best_dtype(device)
    weights = sum(int(p.numel()) for p in get_state_dict(model).values())
    adapters, metadata = adapt(o, run, base, model) if o.lora_rank and base else (None, {})
    devices = open_devices(device, o.devices) if o.devices > 1 else ()
    return Setup(o, device, devices, corpus, text, model, adapters, metadata, weights)


def adapt(o: Options, run: Run | None, base: Checkpoint, model: GPT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Adapters around the model's matrices, and what their files say of themselves."""
    metadata = adapter_metadata(base, o.lora_rank, o.lora_alpha)
    if run and run.has("state"):
        require_base(base, run.load("state")[1], run.path)
    return lora.adapt(model, o.lora_rank, o.lora_alpha, o.lora_targets, o.seed), metadata


def make_task(s: Setup) -> Task:
    """The language model's task: windows of the text at random places, or packed conversations, and their loss on both
    splits."""
    o, config, text = s.options, s.model.config, s.text
    windows: Callable[[int], tuple[np.ndarray, ...]] = lambda i: random_batch(
        text.train, o.batch_size, o.block_size, np.random.default_rng((o.seed, 0, i)))
    if isinstance(text, Conversations):
        require_known_attention()
        windows = with_counts(text.batches(o.block_size, o.batch_size, o.seed), o.grad_accum)

    def batch(i: int) -> tuple[np.ndarray, ...]:
        return (*windows(i), dropout_seeds(config, o.seed, i)) if config.dropout else windows(i)

    def evaluate() -> dict[str, float]:
        count = o.eval_batches * o.batch_size
        return {"train_eval_loss": s.mean_loss("train", count), "val_loss": s.mean_loss("val", count)}

    loss = GPT.loss if text.in_windows else answer_loss
    return Task(s.model, loss, batch, evaluate, o.batch_size * o.block_size, s.adapters, metadata=s.metadata,
                devices=s.devices, optimizer=OPTIMIZERS[o.optimizer], loss_scaling=o.dtype == "float16",
                take_rows=functools.partial(take_rows, config))


def with_counts(
    windows: Callable[[int], tuple[np.ndarray, ...]], accumulated: int
) -> Callable[[int], tuple[np.ndarray, ...]]:
    """Batches with how many targets count, `(1,)`, on average in the batches of their step."""
    windows = functools.lru_cache(maxsize=accumulated)(windows)

    def batch(i: int) -> tuple[np.ndarray, ...]:
        step = range(i - i % accumulated, i - i % accumulated + accumulated)
        count = sum(int((windows(j)[1] >= 0).sum()) for j in step) / accumulated
        return (*windows(i), np.array([max(1, count)], np.float32))

    return batch


def take_rows(config: GPTConfig, batch: Sequence[np.ndarray], rows: slice) -> tuple[np.ndarray, ...]:
    """Some rows of a batch's matrices, their share of the targets that count, and perhaps dropout's seeds, which give
    them the masks that they have in it.

    A mask is a hash of a seed plus an element's index, which counts the elements of all rows before.
    """
    T = batch[0].shape[1]
    embedded = T * config.n_embd  # elements of a row: of a block's output, and of its weights
    elements = np.array([embedded, *[config.n_head * T * T, embedded, embedded] * config.n_layer], np.uint32)
    share = np.float32((rows.stop - rows.start) / len(batch[0]))
    vector = lambda a: a * share if a.dtype == np.float32 else a + np.uint32(rows.start) * elements
    return tuple(a[rows] if a.ndim > 1 else vector(a) for a in batch)


def describe(s: Setup, trainer: Trainer) -> str:
    """The model, in the lines that a run begins with."""
    o, c = s.options, s.model.config
    V, T, L, C = c.vocab_size, c.block_size, c.n_layer, c.n_embd
    text = f"{counted(L, 'layer')}, {counted(c.n_head, 'head')}, {counted(C, 'channel')}, "
    text += f"block {T}: {s.weights:,} parameters"
    if others := departures(asdict(c)):
        text += f"\n         not as GPT-2: {', '.join(f'{name} {value}' for name, value in others.items())}"
    elif c.bias:
        text += f"\n         V*C + T*C + L*(12*C^2 + 13*C) + 2*C = {V}*{C} + {T}*{C} + {L}*(12*{C}^2 + 13*{C})"
        text += f" + 2*{C} = {c.parameters:,}"
    if o.init_from:
        trained = sum(int(p.numel()) for p in trainer.params.values())
        every = s.weights + (trained if s.adapters else 0)
        text += f"\ntrained  {trained:,} of {every:,} parameters, {trained / every:.2%}, from {o.init_from}"
    if isinstance(s.text, Conversations):
        count = len(s.text.starts) - 1
        text += f"\nanswers  {s.text.said.sum():,} tokens in {counted(count, 'conversation')}; the loss is theirs alone"
        if s.device.split(":")[0] != "CPU":
            text += "\n         attention within conversations has no kernel here: its formula runs, which is slower"
    text += f"\nnumbers  {NUMBERS[str(o.dtype)]}"
    if s.devices:
        text += f"\ndevices  {', '.join(s.devices)}"
    if ranks.size() > 1:
        text += f"\nranks    {ranks.size()}, on machines: {ranks.machines()}"
    return text


def finish(s: Setup, trainer: Trainer) -> None:
    """Write sample.txt, and say what to do next."""
    run, tokenizer = trainer.run, s.text.tokenizer
    lora.merge(s.model)
    s.model.dtype = "float32"  # as `sample` will read it from the run folder
    prompt, sample, end = encode_prompt(tokenizer, None), "", None
    if isinstance(s.text, Conversations):  # the first question that it wasn't trained on
        prompt, end = s.text.first_question()[-s.options.block_size :], tokenizer.special_tokens[END_OF_TURN]
        sample = tokenizer.decode(prompt)
    for _, piece in stream(s.model, tokenizer, [prompt], 310, seeds=[s.options.seed], end=end):
        sample = (sample + piece).lstrip("\n")[:300]
        if len(sample) == 300:
            break
    run.write_text("sample.txt", sample)
    opening = next((p for name, p in OPENINGS.items() if s.corpus.name.startswith(name)), "")
    print(f"\n{sample}\n\nbest validation loss {trainer.best:.4f}; now try")
    script, plots = sys.argv[0], Path(sys.argv[0]).with_name("plots")
    verb = "sample" if s.text.in_windows else "chat"
    print(f"  {command(script, verb, run.path)}{opening}\n  {command(script, 'eval', run.path)}")
    print(f"  {command(plots / 'loss_curves.py', run.path)}")
    with contextlib.suppress(UserError):  # a model that model.c doesn't compute has no page
        model_numbers(asdict(s.model.config))
        print(f"  {command(script, 'report', run.path)}")
