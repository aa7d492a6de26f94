"""GPT-2 in one file: the model, and the command line that trains it, samples from it and looks inside.

    python gpt.py                   train on Shakespeare; CUDA=1 python gpt.py on an NVIDIA GPU
    python gpt.py sample [RUN]      write text, as it comes
    python gpt.py eval [RUN]        loss, perplexity and bits per byte over the whole validation split
    python gpt.py info [RUN]        parameters, memory and FLOPs
    python gpt.py export [RUN] OUT --to hf|llmc|tokens      files for transformers and for llm.c

With `--init-from gpt2` (or gpt2-medium, -large, -xl, or the path of a checkpoint of ours, of transformers or of llm.c)
the weights come from there: to train on, to evaluate, to sample from.

The model is OpenAI's: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), with the layout
and the names of its checkpoints. In the shapes: B sequences of T tokens, C channels, nh heads of hs = C / nh channels,
V tokens to choose from.
"""

import itertools
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import backend  # before tinygrad

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import checkpoint as ck
import cli
import kernels
import lora
import roofline
from checkpoint import Checkpoint, Run, fill
from cli import UserError, option
from data import text
from generate import Choice, Sampler, encode_prompt, generate
from kernels import dropout, edge
from tokenizer import GPT2Tokenizer, Tokenizer, from_config
from tokenizer import load as load_tokenizer
from trainer import Trainer, TrainOptions, announce, jit, open_text, resumed, start_run

# ---- the model ----


@dataclass(frozen=True)
class GPTConfig:
    """The five numbers of a GPT-2, and two choices. The defaults are GPT-2's own, 124M parameters."""

    block_size: int = 1024  # T: the longest context
    vocab_size: int = 50257  # V
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C
    dropout: float = 0.0
    bias: bool = True  # in every linear layer and LayerNorm; without is nanoGPT's option, a little smaller

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise UserError(f"--n-embd {self.n_embd} can't be cut into --n-head {self.n_head} equal heads")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--dropout must be in [0, 1), not {self.dropout}")

    @property
    def parameters(self) -> int:
        """How many there are, by formula: embeddings, L blocks of attention (4 C^2) and MLP (8 C^2), LayerNorms."""
        V, T, L, C = self.vocab_size, self.block_size, self.n_layer, self.n_embd
        biases = L * 11 * C + C if self.bias else 0  # in a block: 3C + C and 4C + C of the matrices, 2C of LayerNorm
        return V * C + T * C + L * (12 * C * C + 2 * C) + C + biases

    @property
    def flops_per_token(self) -> int:
        """For a training step, forward and backward: 6 for each parameter that multiplies, and attention's T x T.

        Chowdhery et al., PaLM (arXiv:2204.02311), appendix B. The position table only adds, so it doesn't count.
        """
        L, C, T = self.n_layer, self.n_embd, self.block_size
        return 6 * (self.parameters - T * C) + 12 * L * C * T


Seeds = Tensor | Sequence[Tensor | None] | None  # of dropout, see dropout_seeds


def normal(rng: np.random.Generator | None, *shape: int, std: float = 0.02) -> Tensor:
    if rng is None:  # memory that a checkpoint will be copied into
        return Tensor.empty(*shape)
    return Tensor(rng.standard_normal(shape, dtype=np.float32) * np.float32(std))


def full(value: float, size: int) -> Tensor:
    return Tensor(np.full(size, value, np.float32))


class Embedding:
    def __init__(self, rng: np.random.Generator | None, rows: int, n_embd: int):
        self.weight = normal(rng, rows, n_embd)  # (rows, C)


class Linear:
    """y = x @ weight + bias, the weight `(in, out)` as in GPT-2's checkpoints."""

    def __init__(self, rng: np.random.Generator | None, n_in: int, n_out: int, bias: bool, std: float = 0.02):
        self.weight = normal(rng, n_in, n_out, std=std)
        self.bias = full(0, n_out) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.bias)


class LayerNorm:
    def __init__(self, n_embd: int, bias: bool):
        self.weight = full(1, n_embd)
        self.bias = full(0, n_embd) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return kernels.layernorm(x, self.weight, self.bias, eps=1e-5)


class Attention:
    """Causal self-attention (Vaswani et al., arXiv:1706.03762) with all heads' q, k and v in one matmul."""

    def __init__(self, rng: np.random.Generator | None, config: GPTConfig):
        C = config.n_embd
        self.config = config
        self.c_attn = Linear(rng, C, 3 * C, config.bias)
        # Each block adds to the residual stream twice; 1/sqrt(2 L) keeps its variance from growing with depth.
        self.c_proj = Linear(rng, C, C, config.bias, std=0.02 / math.sqrt(2 * config.n_layer))

    def __call__(self, x: Tensor, seeds: Sequence[Tensor | None], last: bool = False) -> Tensor:
        """`(B, T, C)`; with `last` the last position's alone, `(B, 1, C)`."""
        qkv = self.c_attn(x)  # (B, T, 3C)
        y = kernels.attention(qkv, self.config.n_head, self.config.dropout, seeds[0])  # (B, T, C)
        if last:
            y = y[:, -1:]  # (B, 1, C)
        return dropout(self.c_proj(y), self.config.dropout, seeds[1])


class MLP:
    def __init__(self, rng: np.random.Generator | None, config: GPTConfig):
        C = config.n_embd
        self.config = config
        self.c_fc = Linear(rng, C, 4 * C, config.bias)
        self.c_proj = Linear(rng, 4 * C, C, config.bias, std=0.02 / math.sqrt(2 * config.n_layer))

    def __call__(self, x: Tensor, seed: Tensor | None) -> Tensor:
        h = kernels.gelu(self.c_fc(x))  # (B, T, 4C)
        return dropout(self.c_proj(h), self.config.dropout, seed)


class Block:
    def __init__(self, rng: np.random.Generator | None, config: GPTConfig):
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = Attention(rng, config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(rng, config)

    def __call__(self, x: Tensor, seeds: Sequence[Tensor | None], last: bool = False) -> Tensor:
        y = self.attn(self.ln_1(x), seeds[:2], last)
        x = edge((x[:, -1:] if last else x) + y)
        return edge(x + self.mlp(self.ln_2(x), seeds[2]))


class GPT:
    """GPT-2. Its state dict has the names and layouts of OpenAI's checkpoint on Hugging Face, the head tied to wte.

    With `seed` None the weights are whatever was in memory, for `checkpoint.fill` to overwrite.
    """

    def __init__(self, config: GPTConfig, seed: int | None = 1337):
        rng = None if seed is None else np.random.default_rng(seed)
        self.config = config
        self.dtype = "float32"  # of activations and matmuls; the weights are float32 whatever it is
        self.wte = Embedding(rng, config.vocab_size, config.n_embd)
        self.wpe = Embedding(rng, config.block_size, config.n_embd)
        self.h = [Block(rng, config) for _ in range(config.n_layer)]
        self.ln_f = LayerNorm(config.n_embd, config.bias)

    def hidden(self, idx: Tensor, seeds: Seeds = None, last: bool = False) -> Tensor:
        """The last LayerNorm's output `(B, T, C)` for tokens `(B, T)`; with `last` the last position's, `(B, 1, C)`.

        `seeds` as `dropout_seeds` makes them, or one for each of those places, None where nothing is to be dropped.
        """
        L = self.config.n_layer
        s = [None] * (3 * L + 1) if seeds is None else [seeds[i] for i in range(3 * L + 1)]
        x = kernels.embed(self.wte.weight, idx, self.wpe.weight)  # (B, T, C)
        x = edge(dropout(x, self.config.dropout, s[-1]).cast(self.dtype))
        for i, block in enumerate(self.h):
            x = block(x, s[3 * i : 3 * i + 3], last and i == L - 1)
        return self.ln_f(x)

    @property
    def head_weight(self) -> Tensor:
        """The head's weights `(V, C)`: GPT-2 uses the embedding table once more."""
        return self.wte.weight

    def head(self, x: Tensor) -> Tensor:
        """Logits `(..., V)`, float32, of hidden states `(..., C)`."""
        return kernels.linear(x, self.head_weight, transposed=True).float()

    def __call__(self, idx: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Logits `(B, T, V)` for tokens `(B, T)`, T at most block_size."""
        return self.head(self.hidden(idx, seeds))

    def losses(self, idx: Tensor, targets: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Cross-entropy of every position `(B, T)`, in nats, for tokens and the tokens after them, both `(B, T)`."""
        return kernels.head_loss(self.hidden(idx, seeds), self.head_weight, targets)

    def loss(self, idx: Tensor, targets: Tensor, seeds: Tensor | None = None) -> Tensor:
        """The mean of `losses`, `()`."""
        return self.losses(idx, targets, seeds).mean()

    def last_logits(self, idx: Tensor, seeds: Seeds = None) -> Tensor:
        """Logits `(B, V)` at the last position. Behind the last attention no other is computed, T times less work."""
        return self.head(self.hidden(idx, seeds, last=True)).squeeze(1)

    def next_logits(self, idx: Tensor, position: Tensor) -> Tensor:
        """Logits `(B, V)` of the token after `position` `(1,)`; whatever stands behind it has no influence."""
        x = self.hidden(idx)  # (B, T, C)
        here = (Tensor.arange(idx.shape[1], device=idx.device) == position).reshape(1, -1, 1)
        return self.head(here.where(x, 0).sum(1))


def dropout_seeds(config: GPTConfig, seed: int, step: int) -> np.ndarray:
    """A random 32-bit number for each place that has dropout: three in a block, one behind the embeddings."""
    return np.random.default_rng((seed, 1, step)).integers(0, 2**32, 3 * config.n_layer + 1, dtype=np.uint32)


# ---- options ----

_GPT2 = {
    "tokenizer": "gpt2", "block_size": 1024, "dropout": 0.0, "batch_size": 12, "grad_accum": 40, "steps": 600_000,
    "lr": 6e-4, "min_lr": 6e-5, "warmup": 2000, "beta2": 0.95, "eval_interval": 1000,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "shakespeare-char-cpu": {
        "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.0, "batch_size": 12,
        "steps": 2000, "lr": 1e-3, "min_lr": 1e-4, "warmup": 100, "beta2": 0.99, "eval_interval": 250,
    },
    "shakespeare-char": {
        "n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "dropout": 0.2, "batch_size": 64,
        "steps": 5000, "lr": 1e-3, "min_lr": 1e-4, "warmup": 100, "beta2": 0.99, "eval_interval": 250,
    },
    "tinystories": {
        "data": "tinystories", "tokenizer": "gpt2", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256,
        "dropout": 0.0, "batch_size": 12, "steps": 5000, "lr": 1e-3, "min_lr": 1e-4, "warmup": 100, "beta2": 0.99,
        "eval_interval": 500,
    },
    # To go on from a pretrained model: few steps, small ones, and windows that a CPU has the patience for.
    "finetune": {
        "tokenizer": "gpt2", "block_size": 256, "dropout": 0.0, "batch_size": 4, "steps": 200, "lr": 5e-5,
        "min_lr": 5e-6, "warmup": 20, "beta2": 0.99, "eval_interval": 50, "eval_batches": 5,
    },
    "lora": {
        "tokenizer": "gpt2", "block_size": 256, "dropout": 0.0, "batch_size": 4, "steps": 200, "lr": 1e-3,
        "min_lr": 1e-4, "warmup": 20, "beta2": 0.99, "weight_decay": 0.0, "eval_interval": 50, "eval_batches": 5,
    },
    "gpt2": {**_GPT2, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {**_GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {**_GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {**_GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600},
}  # fmt: skip

FORMATS = ("hf", "llmc", "tokens")
DTYPES = ("float32", "bfloat16", "float16")
INIT_FROM = f"{', '.join(ck.HUB)} (from Hugging Face's hub), or a checkpoint's path"


@dataclass
class Options(TrainOptions):
    """The options of `python gpt.py`."""

    init_from: str | None = option(None, f"begin with these weights: {INIT_FROM}")
    lora_rank: int = option(0, "train adapters of this rank beside the weights, and not the weights; 0 for none")
    lora_alpha: float = option(16.0, "the adapters count alpha / rank times")
    lora_targets: str = option("c_attn,c_proj", f"the matrices that have adapters, of {', '.join(lora.TARGETS)}")
    tokenizer: str = option("char", "char (the text's own), gpt2 (OpenAI's), or a .model file of tokenizer.py")
    n_layer: int = option(4, "blocks")
    n_head: int = option(4, "attention heads in a block")
    n_embd: int = option(128, "channels")
    block_size: int = option(64, "tokens of context")
    vocab_size: int | None = option(None, "rows of the embedding table (default: as many as the tokenizer has tokens)")
    dropout: float = option(0.0, "share of activations dropped while training")
    bias: bool = option(True, "biases in linear layers and LayerNorms, as GPT-2 has them")
    dtype: str | None = option(None, "the numbers of activations and matmuls (default: bfloat16 on an NVIDIA GPU from "
                                     "sm_80 up, else float32)", DTYPES)  # fmt: skip
    devices: int = option(1, "how many GPUs of this machine share each batch, from --device on")

    def check(self) -> None:
        super().check()
        if self.devices < 1 or self.batch_size % self.devices:
            raise UserError(f"--batch-size {self.batch_size} can't be shared equally by --devices {self.devices}")

    def config(self, tokens: int) -> GPTConfig:
        """The model's configuration for a tokenizer of that many tokens."""
        if self.vocab_size is not None and self.vocab_size < tokens:
            raise UserError(f"--vocab-size {self.vocab_size} is less than the tokenizer's {tokens:,} tokens")
        return GPTConfig(
            self.block_size, self.vocab_size or tokens, self.n_layer, self.n_head, self.n_embd, self.dropout, self.bias
        )

    def check_lora(self, given: set[str]) -> None:
        if self.lora_rank < 0 or not 0 < self.lora_alpha < math.inf:
            raise UserError("--lora-rank must be at least 0 and --lora-alpha above 0")
        if self.lora_rank and not self.init_from:
            raise UserError("--lora-rank corrects a model that is trained already: name it with --init-from")
        if self.preset in ("finetune", "lora") and not self.init_from:
            raise UserError(f"--preset {self.preset} is for going on with a model: name it with --init-from")
        if self.preset == "lora" and not self.lora_rank:
            raise UserError("--preset lora trains adapters: choose their --lora-rank, 8 for example")
        if not self.lora_rank and (unused := given & {"lora_alpha", "lora_targets"}):
            raise UserError(f"--{min(unused).replace('_', '-')} means something beside --lora-rank alone")
        lora.parse_targets(self.lora_targets)


@dataclass
class ExportOptions:
    paths: list[str] = option((), "the run folder (default: the newest in runs/), and the folder to write")
    to: str | None = option(None, "the program to write for (for tokens: the run's text as llm.c reads it)", FORMATS)
    merge: bool = option(False, "add adapters to the weights that they are for")
    dtype: str = option("float32", "the numbers of the weights", ("float32", "bfloat16"))
    checkpoint: str = option("best", "which of the run's weights", ("best", "last"))
    init_from: str | None = option(None, f"instead of a run: {INIT_FROM}")
    lora: str | None = option(None, "adapters to add to the weights: best.safetensors of a run with --lora-rank")
    data_dir: str | None = option(None, "where corpora are kept (default: $DATA_DIR, else data/cache/ here)")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")


@dataclass
class InfoOptions:
    run: str | None = option(None, "the run folder (default: the newest in runs/)")
    preset: str | None = option(None, "a model that was never trained, instead of a run")
    vocab_size: int | None = option(None, "its rows of the embedding table (default: 50257 for gpt2's tokens, else 65)")
    device: str | None = option(None, "cuda:sm_89: compile a step for that GPU, a 4090, and count what it would run")
    batch_size: int | None = option(None, "windows in that step (default: as many as the run or the preset takes)")
    dtype: str | None = option(None, "the numbers of that step (default: those of the run, else bfloat16)", DTYPES)


@dataclass
class RunOptions:
    """What `eval` and `sample` take."""

    run: str | None = option(None, "the run folder (default: the newest in runs/)")
    checkpoint: str = option("best", "which of the run's weights", ("best", "last"))
    init_from: str | None = option(None, f"instead of a run: {INIT_FROM}")
    lora: str | None = option(None, "adapters to add to the weights: best.safetensors of a run with --lora-rank")
    data_dir: str | None = option(None, "where corpora are kept (default: $DATA_DIR, else data/cache/ here)")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")


@dataclass
class EvalOptions(RunOptions):
    split: str | None = option(None, "the part of the run's text, train or val (default: val)", ("train", "val"))
    data: str | None = option(None, "another text than the run's own: a corpus or a file, all of it")
    batch_size: int = option(12, "windows per forward pass")


@dataclass
class SampleOptions(RunOptions):
    prompt: str | None = option(None, "the text to go on from (default: a new line)")
    prompts: str | None = option(None, "a file with a prompt in each line, instead of one prompt")
    num_samples: int = option(1, "how many texts to write for a prompt")
    batch_size: int = option(8, "texts that are made together")
    max_new_tokens: int = option(500, "tokens to add to the prompt")
    temperature: float = option(0.8, "below 1 bolder choices become rarer; 0 always takes the likeliest token")
    top_k: int = option(200, "choose among the k likeliest tokens; 0 for all")
    top_p: float = option(1.0, "choose among the likeliest tokens that make up this much probability")
    repetition_penalty: float = option(1.0, "above 1 tokens that the text has already become rarer")
    stop: str | None = option(None, "end a text before this string")
    keep: int | None = option(None, "tokens kept when the context is full: fewer are faster (default: all but one)")
    seed: int = option(1337, "of the choices; each further text has the next one")


OPENINGS = {"shakespeare": " --prompt 'ROMEO:'", "tinystories": " --prompt 'Once upon a time'"}

# ---- verbs ----


def train(argv: Sequence[str]) -> None:
    """`python gpt.py`: train into a run folder, or go on with one."""

    def default(options: Options) -> str:
        if options.init_from:
            return "lora" if options.lora_rank else "finetune"
        return "shakespeare-char-cpu" if backend.start(options.device) == "CPU" else "shakespeare-char"

    asked, given = cli.parse(Options, argv, "gpt.py", str(__doc__), PRESETS, default)
    device = backend.start(asked.device)
    o, run = resumed(asked, given, "gpt") if asked.resume else (asked, None)
    o.check()
    o.check_lora(given)
    begins = o.init_from and (o.lora_rank or not (run and run.has("state")))  # else what was saved holds the weights
    base = begin_with(o, set() if run else given) if begins else None
    corpus, encoded = open_text(o, tokenizer_of(o.tokenizer, run, base))
    config = o.config(encoded.tokenizer.vocab_size)
    model = build(base.cropped(config.block_size), config.dropout) if base else GPT(config, o.seed)
    model.dtype = o.dtype = o.dtype or best_dtype(device)
    counted = sum(int(p.numel()) for p in get_state_dict(model).values())
    adapters, said = None, {}
    if o.lora_rank:
        assert base
        said = lora.about(base, o.lora_rank, o.lora_alpha)
        adapters = lora.adapt(model, o.lora_rank, o.lora_alpha, o.lora_targets, o.seed)
        if run and run.has("state"):
            lora.require_base(base, run.load("state")[1], run.path)
    devices = backend.several(device, o.devices) if o.devices > 1 else ()
    if devices:
        Tensor.realize(*[p.shard_(devices) for p in get_state_dict(model).values()])

    run = start_run(o, "gpt", run, asdict(config), corpus, encoded)

    def batch(i: int) -> tuple[np.ndarray, ...]:
        xy = text.random_batch(encoded.train, o.batch_size, o.block_size, np.random.default_rng((o.seed, 0, i)))
        return (*xy, dropout_seeds(config, o.seed, i)) if config.dropout else xy

    losses = jit(lambda x, y: model.losses(x, y).realize())

    def evaluate() -> dict[str, float]:
        return {
            name: mean_loss(losses, ids, o.batch_size, o.block_size, o.eval_batches * o.batch_size, devices)[0]
            for name, ids in (("train_eval_loss", encoded.train), ("val_loss", encoded.val))
        }

    trainer = Trainer(
        model, GPT.loss, batch, evaluate, o, run, o.batch_size * o.block_size,
        params=adapters, about=said, loss_scaling=o.dtype == "float16",
    )  # fmt: skip
    if o.resume:
        trainer.resume()

    V, T, L, C = config.vocab_size, config.block_size, config.n_layer, config.n_embd
    about = f"{L} layers, {config.n_head} heads, {C} channels, block {T}: {counted:,} parameters"
    if config.bias:
        about += f"\n         V*C + T*C + L*(12*C^2 + 13*C) + 2*C = {V}*{C} + {T}*{C} + {L}*(12*{C}^2 + 13*{C})"
        about += f" + 2*{C} = {config.parameters:,}"
    if o.init_from:
        trained = sum(int(p.numel()) for p in trainer.params.values())
        every = counted + (trained if adapters else 0)
        about += f"\ntrained  {trained:,} of {every:,} parameters, {trained / every:.2%}, from {o.init_from}"
    about += f"\nnumbers  {NUMBERS[o.dtype]}"
    if devices:
        about += f"\ndevices  {', '.join(devices)}: {o.batch_size // o.devices} windows of a batch on each"
    announce(device, corpus, encoded, about, run, trainer)
    trainer.train()
    if devices:
        Tensor.realize(*[p.to_(device) for p in get_state_dict(model).values()])
    lora.merge(model)
    sample = ""
    for _, piece in generate(model, encoded.tokenizer, [encode_prompt(encoded.tokenizer, None)], 310, seeds=[o.seed]):
        sample = (sample + piece).lstrip("\n")[:300]
        if len(sample) == 300:
            break
    run.write_text("sample.txt", sample)
    opening = next((p for name, p in OPENINGS.items() if corpus.name.startswith(name)), "")
    print(f"\n{sample}\n\nbest validation loss {trainer.best:.4f}; now try")
    gpt, plot = cli.command(sys.argv[0]), cli.command(str(Path(sys.argv[0]).with_name("plots") / "loss_curves.py"))
    print(f"  {gpt} sample {run.path}{opening}\n  {gpt} eval {run.path}\n  {plot} {run.path}")


NUMBERS = {
    "float32": "float32",
    "bfloat16": "bfloat16 in activations and matmuls; weights, LayerNorms, softmax and loss are float32",
    "float16": "float16 in activations and matmuls, losses scaled; weights, LayerNorms, softmax and loss are float32",
}


def best_dtype(device: str) -> str:
    """What `--dtype` is when it isn't given: bfloat16 has float32's range, so that nothing else need be changed for it,
    and NVIDIA's tensor cores multiply it from sm_80 up."""
    return "bfloat16" if backend.compute_capability(device) >= 80 else "float32"


def begin_with(o: Options, given: set[str]) -> Checkpoint:
    """The checkpoint that `--init-from` names, and its numbers as those of the options.

    Raises UserError for a flag that asks for another model; only its context may be made shorter.
    """
    assert o.init_from
    base = ck.find_checkpoint(o.init_from, o.data_dir)
    if Path(o.init_from).expanduser().exists() and o.init_from not in ck.HUB:
        o.init_from = str(Path(o.init_from).expanduser().resolve())  # so that the run can go on from any folder
    numbers = {"bias": True} | dict(base.model)
    for name in ("n_layer", "n_head", "n_embd", "vocab_size", "bias"):
        if name in given and getattr(o, name) != numbers[name]:
            raise UserError(f"--{name.replace('_', '-')} can't be {getattr(o, name)}: {base.path} has {numbers[name]}")
        setattr(o, name, numbers[name])
    if "block_size" not in given:
        o.block_size = min(o.block_size, numbers["block_size"])
    if o.block_size > numbers["block_size"]:
        raise UserError(f"--block-size can't be {o.block_size}: {base.path} has positions for {numbers['block_size']}")
    if "tokenizer" not in given and not isinstance(base.tokenizer, GPT2Tokenizer):
        o.tokenizer = CHECKPOINTS
    return base


CHECKPOINTS = "checkpoint"  # what stands for --tokenizer in a run whose tokenizer came with --init-from


def build(found: Checkpoint, dropout: float = 0.0) -> GPT:
    """The model of a checkpoint. Raises UserError naming the tensors that don't fit, and what both shapes are."""
    model = GPT(GPTConfig(**{**found.model, "dropout": dropout}), seed=None)
    fill(get_state_dict(model), found.tensors, str(found.path))
    return model


def tokenizer_of(name: str, run: Run | None, base: Checkpoint | None = None) -> str | Tokenizer:
    """What `--tokenizer` means to `text.encode_corpus`. A run holds its tokenizer, whatever became of the file."""
    if name == CHECKPOINTS and base and not run:
        return known_tokenizer(base)
    if name in ("char", "gpt2"):
        return name
    if run:
        return from_config(run.config()["tokenizer"])
    try:
        return load_tokenizer(name)
    except OSError as error:
        raise UserError(f"--tokenizer {name} is neither char nor gpt2 nor a file that can be read") from error
    except ValueError as error:
        raise UserError(f"--tokenizer: {error}") from error


def mean_loss(
    losses: Any, ids: np.ndarray, B: int, T: int, count: int | None = None, devices: Sequence[str] = ()
) -> tuple[float, int]:
    """Mean loss in nats, and over how many tokens: of `count` even windows, or of every token but the first.

    The windows don't overlap, so that each token counts once, with from 1 to T tokens of context.
    """
    starts, inputs = text.even_starts(ids, T, count or len(ids)), backend.Inputs(devices)
    total, tokens = 0.0, 0
    for i in range(0, len(starts), B):
        chosen = starts[i : i + B]
        padded = np.concatenate([chosen, np.repeat(chosen[:1], B - len(chosen))])  # the compiled step has one shape
        total += losses(*inputs(*text.windows(ids, padded, T))).numpy()[: len(chosen)].sum(dtype=np.float64)
        tokens += len(chosen) * T
    rest = (len(ids) - 1) % T
    if count is None and rest:  # the end of the text, shorter than a window
        last = text.windows(ids, np.array([len(ids) - 1 - rest]), rest)
        padding = [np.pad(np.repeat(a, B, axis=0), ((0, 0), (0, T - rest))) for a in last]
        total += losses(*inputs(*padding)).numpy()[0, :rest].sum(dtype=np.float64)
        tokens += rest
    return total / tokens, tokens


def load(o: RunOptions | ExportOptions, run: str | None) -> tuple[Checkpoint, Run | None]:
    """The checkpoint that `--init-from` names, or that of a run folder, with its adapters, and that folder."""
    if o.init_from:
        if run:
            raise UserError(f"the weights are those of a run or of --init-from: leave out {run} or --init-from")
        found, folder = ck.find_checkpoint(o.init_from, o.data_dir), None
    else:
        folder = Run.open(run, "gpt")
        found = load_adapted(folder, o) if adapted(folder) else ck.read_run(folder, o.checkpoint)
    return (lora.apply(found, Path(o.lora)) if o.lora else found), folder


def adapted(run: Run) -> bool:
    """Whether a run's weights are adapters."""
    return bool(run.config()["options"].get("lora_rank"))


def load_adapted(run: Run, o: RunOptions | ExportOptions) -> Checkpoint:
    """The model that the adapters of a run make of the model that they were trained on."""
    saved = run.config()
    base = ck.find_checkpoint(saved["options"]["init_from"], o.data_dir or saved["options"]["data_dir"])
    run.require(o.checkpoint)
    whole = lora.apply(base.cropped(saved["model"]["block_size"]), run.path / f"{o.checkpoint}.safetensors")
    return replace(whole, path=run.path / f"{o.checkpoint}.safetensors", tokenizer=from_config(saved["tokenizer"]))


def known_tokenizer(found: Checkpoint) -> Tokenizer:
    if found.tokenizer is None:
        raise UserError(f"{found.path} has no tokenizer: put its vocab.json and merges.txt beside it")
    if found.tokenizer.vocab_size > found.model["vocab_size"]:
        raise UserError(f"the tokenizer of {found.path} has {found.tokenizer.vocab_size:,} tokens and the model only "
                        f"{found.model['vocab_size']:,}")  # fmt: skip
    return found.tokenizer


def sample(argv: Sequence[str]) -> None:
    """`python gpt.py sample`: write text, as it comes."""
    o, _ = cli.parse(SampleOptions, argv, "gpt.py sample", str(sample.__doc__), positional=("run", "RUN"))
    if not (o.temperature == 0 or 1e-4 <= o.temperature < math.inf) or o.top_k < 0 or not 0 < o.top_p <= 1:
        raise UserError("--temperature must be 0 or at least 0.0001, --top-k 0 or more, and --top-p in (0, 1]")
    if o.seed < 0 or o.num_samples < 1 or o.max_new_tokens < 1 or o.batch_size < 1:
        raise UserError("--seed must be at least 0, --num-samples, --max-new-tokens and --batch-size at least 1")
    if not 0 < o.repetition_penalty < math.inf or o.stop == "":
        raise UserError("--repetition-penalty must be above 0, and --stop a string of at least one character")
    if o.prompt is not None and o.prompts is not None:
        raise UserError("a prompt is one --prompt or a line of the file --prompts: leave one of them out")
    backend.start(o.device)
    found, _ = load(o, o.run)
    tokenizer, T = known_tokenizer(found), found.model["block_size"]
    if o.keep is not None and not 0 < o.keep <= T:
        raise UserError(f"--keep must be from 1 to the model's {T} tokens of context, not {o.keep}")
    prompts = read_prompts(o.prompts) if o.prompts is not None else [o.prompt]
    begins = [(prompt, encode_prompt(tokenizer, prompt)) for prompt in prompts for _ in range(o.num_samples)]
    model, progress = build(found), cli.Progress(sys.stderr)
    if max(len(ids) for _, ids in begins) + o.max_new_tokens > T:
        progress.say(f"the model sees {T} tokens at a time: of a longer text only the newest")
    B = min(o.batch_size, len(begins))
    sampler = Sampler(model, B)
    choice = Choice(o.temperature, o.top_k, o.top_p, o.repetition_penalty)
    for at in range(0, len(begins), B):
        group = begins[at : at + B]
        ids = [ids for _, ids in group]
        ids += ids[-1:] * (B - len(group))  # the compiled step has one shape
        seeds = [o.seed + at + i for i in range(B)]
        pieces = generate(model, tokenizer, ids, o.max_new_tokens, choice, seeds, o.stop, o.keep, sampler)
        texts = [prompt or "" for prompt, _ in group]
        with cli.Waiting(progress, "compiling the model for one token"):
            first = next(pieces, (0, ""))
        print("\n" + "-" * 8 + "\n" if at else "", texts[0], sep="", end="", flush=True)
        for i, piece in itertools.chain([first], pieces):
            if i == 0:  # the first text of a group is shown as it comes, the others when it is complete
                print(piece, end="", flush=True)
            elif i < len(group):
                texts[i] += piece
        for other in texts[1:]:
            print("\n" + "-" * 8 + "\n" + other, end="", flush=True)
    print()


def read_prompts(path: str) -> list[str | None]:
    """The lines of a file that have something in them."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} can't be read as text: {error}") from error
    prompts: list[str | None] = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts {path} has no line with a prompt")
    return prompts


def evaluate(argv: Sequence[str]) -> None:
    """`python gpt.py eval`: loss, perplexity and bits per byte over the whole split, every token of it once."""
    o, _ = cli.parse(EvalOptions, argv, "gpt.py eval", str(evaluate.__doc__), positional=("run", "RUN"))
    if o.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {o.batch_size}")
    if o.data and o.split:
        raise UserError("--split is a part of the run's own text: leave it out beside --data, which is read whole")
    if o.init_from and not o.data:
        raise UserError("eval --init-from needs a text: name it with --data")
    backend.start(o.device)
    found, run = load(o, o.run)
    tokenizer = known_tokenizer(found)
    model = build(found)
    if o.data:
        encoded = text.encode_corpus(text.find_corpus(o.data, o.data_dir), tokenizer, o.data_dir)
        ids, what = encoded.ids, o.data
    else:
        assert run
        encoded, split = text_of(run, o.data_dir), o.split or "val"
        ids, what = getattr(encoded, split), f"{split} split of {run.config()['corpus']['name']}"
    if len(ids) < 2:
        raise UserError(f"the {what} has {len(ids)} tokens; a loss needs two")
    losses = jit(lambda x, y: model.losses(x, y).realize())
    with cli.Waiting(cli.Progress(sys.stderr), f"evaluating on {len(ids):,} tokens"):
        loss, tokens = mean_loss(losses, ids, o.batch_size, model.config.block_size)
    size = len(tokenizer.decode_bytes(ids[1:].tolist()))  # of the predicted tokens' text
    print(f"{what}: {tokens:,} tokens, {size:,} bytes, {found.path}")
    print(f"loss {loss:.4f} nats per token  perplexity {math.exp(loss):.3f}  "
          f"bits per byte {loss * tokens / math.log(2) / size:.4f}")  # fmt: skip


def text_of(run: Run, data_dir: str | None) -> text.Encoded:
    """The text that a run was made from. Raises UserError if it isn't the same any more."""
    saved = run.config()
    source = saved["options"]
    folder = data_dir or source["data_dir"]
    corpus = text.find_corpus(source["data"], folder)
    encoded = text.encode_corpus(corpus, tokenizer_of(source["tokenizer"], run), folder)
    encoded.require_same(saved)
    return encoded


def export(argv: Sequence[str]) -> None:
    """`python gpt.py export`: write a model, or the text of a run as tokens, as other programs read them.

    --to hf      a folder that transformers loads
    --to llmc    a model, its tokenizer and a debug state under the names that train_gpt2 and test_gpt2 of llm.c open
    --to tokens  the two splits of the run's text as token files of llm.c, which --data also takes
    """
    o, given = cli.parse(ExportOptions, argv, "gpt.py export", str(export.__doc__), positional=("paths", "[RUN] OUT"))
    if not o.to or len(o.paths) not in (1, 2):
        raise UserError("export writes --to hf, llmc or tokens, from a run folder into another: python gpt.py export "
                        "--to hf RUN OUT")  # fmt: skip
    out, run_path = Path(o.paths[-1]), o.paths[0] if len(o.paths) == 2 else None
    if o.to == "tokens":
        if unused := given & {"dtype", "checkpoint", "init_from", "lora", "merge"}:
            raise UserError(f"--{min(unused).replace('_', '-')} is about weights, and --to tokens writes a run's text")
        run = Run.open(run_path, "gpt")
        encoded, name = text_of(run, o.data_dir), run.config()["corpus"]["name"]
        for split, ids in (("train", encoded.train), ("val", encoded.val)):
            text.write_tokens(out / f"{name}_{split}.bin", ids)
            print(f"{out / f'{name}_{split}.bin'}: {len(ids):,} tokens")
        return
    if Run.holds_one(out):
        raise UserError(f"{out} is a run folder, and what is exported would take the place of its files: name another")
    backend.start(o.device)
    found, run_folder = load(o, run_path)
    if o.merge != bool(o.lora or (run_folder and adapted(run_folder))):
        raise UserError("these are adapters and the model that they are for: --merge writes them as one model"
                        if not o.merge else "there are no adapters to --merge: leave it out, or name them with --lora")
    found = found.with_biases()
    model = build(found)  # refuses tensors that don't fit before anything is written
    began = time.time_ns()
    dtype = {"float32": "F32", "bfloat16": "BF16"}[o.dtype]
    if o.to == "hf":
        ck.write_huggingface(out, found, dtype)
    else:
        ck.write_llmc(out / ck.LLMC_NAMES["model"], found, dtype)
        if found.tokenizer:
            ck.write_llmc_tokenizer(out / ck.LLMC_NAMES["tokenizer"], found.tokenizer)
        ck.write_llmc_state(out / ck.LLMC_NAMES["state"], found.model, debug_state(model))
    for path in sorted(filter(Path.is_file, out.iterdir())):
        if path.stat().st_mtime_ns >= began - 10**9:  # what else lies there isn't ours
            print(f"{path}: {path.stat().st_size:,} bytes")


def debug_state(model: GPT, B: int = 4, T: int = 64) -> ck.DebugState:
    """Logits, loss and gradients of a model on random tokens, for llm.c's test_gpt2 to compare its own with."""
    shape = (2, B, min(T, model.config.block_size))
    x, y = np.random.default_rng(0).integers(0, model.config.vocab_size, shape, dtype=np.int32)
    params = get_state_dict(model)
    logits = model(Tensor(x))
    loss = model.loss(Tensor(x), Tensor(y))
    grads = dict(zip(params, loss.gradient(*params.values())))
    Tensor.realize(logits, loss, *grads.values())
    return ck.DebugState(x, y, logits.numpy(), loss.item(), grads)


def info(argv: Sequence[str]) -> None:
    """`python gpt.py info`: parameters per tensor, memory and FLOPs, of a run or of a `--preset`."""
    names = {name: {"preset": name} for name in PRESETS}
    o, _ = cli.parse(InfoOptions, argv, "gpt.py info", str(info.__doc__), names, positional=("run", "RUN"))
    if o.preset and o.run:
        raise UserError(f"info is of a run or of a preset: leave out {o.run} or --preset")
    if o.preset:
        chosen = Options(**PRESETS[o.preset])
        config = chosen.config(o.vocab_size or (50257 if chosen.tokenizer == "gpt2" else 65))
    else:
        saved = Run.open(o.run, "gpt").config()
        config, known = GPTConfig(**saved["model"]), {field.name for field in fields(Options)}
        chosen = Options(**{name: value for name, value in saved["options"].items() if name in known})
    print(f"{'tensor':<24}{'shape':>18}{'parameters':>16}")
    counted = 0
    for name, shape in shapes(config).items():
        counted += math.prod(shape)
        print(f"{name:<24}{' x '.join(map(str, shape)):>18}{math.prod(shape):>16,}")
    print(f"{'all, the head tied':<24}{'':>18}{counted:>16,}   by formula {config.parameters:,}")
    mb = counted * 4 / 1e6
    print(f"memory   weights {mb:,.1f} MB, gradients {mb:,.1f} MB, AdamW {2 * mb:,.1f} MB in float32, and activations")
    print(f"FLOPs    {config.flops_per_token / 1e6:,.1f} million per token of training (6 N + 12 L C T), "
          f"a third of it forward")  # fmt: skip
    if o.device:
        print()
        size, dtype = chosen.batch_size if o.batch_size is None else o.batch_size, o.dtype or chosen.dtype
        print_step(config, replace(chosen, grad_accum=1, batch_size=size, dtype=dtype), o.device)


def print_step(config: GPTConfig, o: Options, device: str) -> None:
    """What a step of training would run on a GPU like `cuda:sm_89`, from what is compiled for it here."""
    kind, _, arch = device.partition(":")
    if kind != "cuda":
        raise UserError(f"info --device {device}: steps are counted for NVIDIA GPUs, like cuda:sm_89 for a 4090")
    o.check()
    with backend.compiling_for(arch) as name, cli.Waiting(cli.Progress(sys.stderr), f"compiling a step for {arch}"):
        o.dtype = o.dtype or best_dtype(name)
        step = compiled_step(config, o)
    tokens, expected = o.batch_size * config.block_size, config.flops_per_token * o.batch_size * config.block_size
    print(f"a step of {o.batch_size} x {config.block_size} tokens in {o.dtype}, compiled for {arch} and not run")
    print(f"kernels  {len(step.kernels):,}, of {len({k.source for k in step.kernels})} kinds")
    print(f"FLOPs    {step.flops / 1e9:,.1f} billion, {step.flops / expected:.2f} times 6 N + 12 L C T; "
          f"{step.tensor / step.flops:.1%} of them in tensor cores (mma.sync)")  # fmt: skip
    print(f"traffic  {step.bytes / 1e9:,.2f} GB, each buffer counted once for every kernel that reads or writes it")
    print(f"memory   {step.memory / 1e9:,.2f} GB planned: weights, gradients, AdamW and activations")
    for gpu in roofline.GPUS:
        seconds = step.estimate(gpu)
        fits = "" if step.memory < gpu.memory else ", and it doesn't fit"
        print(f"estimate {gpu.name}: no less than {1e3 * seconds:,.2f} ms a step, {tokens / seconds:,.0f} tokens/s, "
              f"were every kernel to reach its published peaks{fits}")  # fmt: skip


def compiled_step(config: GPTConfig, o: Options) -> roofline.Step:
    """The step of `train`, on the device that `backend.compiling_for` made the default one."""
    x = np.zeros((o.batch_size, config.block_size), np.int32)
    batch = (x, x.copy(), dropout_seeds(config, o.seed, 0)) if config.dropout else (x, x.copy())
    model = GPT(config, seed=None)
    model.dtype = o.dtype or "float32"
    return roofline.compile_step(model, GPT.loss, batch, o, loss_scaling=o.dtype == "float16")


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the state dict, without making the model."""
    C = config.n_embd
    out: dict[str, tuple[int, ...]] = {"wte.weight": (config.vocab_size, C), "wpe.weight": (config.block_size, C)}
    linear = {"attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C)}
    for i in range(config.n_layer):
        for name in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
            shape: tuple[int, ...] = linear.get(name) or (C,)
            out[f"h.{i}.{name}.weight"] = shape
            if config.bias:
                out[f"h.{i}.{name}.bias"] = shape[-1:]
    return out | {"ln_f.weight": (C,)} | ({"ln_f.bias": (C,)} if config.bias else {})


VERBS = {"train": train, "sample": sample, "eval": evaluate, "info": info, "export": export}


def main(argv: Sequence[str]) -> None:
    cli.dispatch(VERBS, argv)


if __name__ == "__main__":
    cli.run(main)
