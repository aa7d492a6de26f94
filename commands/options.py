"""The options of `python gpt.py` and of its verbs, and the presets that fill them."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from exchange.huggingface import HUB
from exchange.layout import CHOICES, GPT2_CHOICES
from generate import Choice
from gpt import GPTConfig
from lora import TARGETS, parse_targets
from runtime.cli import option
from runtime.errors import UserError
from runtime.shares import require_rows
from trainer import OPTIMIZERS, TrainOptions
from variants import VariantConfig

_GPT2 = {
    "tokenizer": "gpt2", "block_size": 1024, "dropout": 0.0, "batch_size": 12, "grad_accum": 40, "steps": 600_000,
    "lr": 6e-4, "min_lr": 6e-5, "warmup": 2000, "beta2": 0.95, "eval_interval": 1000,
}
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
    # To go on from a pretrained model: few steps, small ones, and windows that are short enough for a CPU.
    "finetune": {
        "tokenizer": "gpt2", "block_size": 256, "dropout": 0.0, "batch_size": 4, "steps": 200, "lr": 5e-5,
        "min_lr": 5e-6, "warmup": 20, "beta2": 0.99, "eval_interval": 50, "eval_batches": 5,
    },
    "lora": {
        "tokenizer": "gpt2", "block_size": 256, "dropout": 0.0, "batch_size": 4, "steps": 200, "lr": 1e-3,
        "min_lr": 1e-4, "warmup": 20, "beta2": 0.99, "weight_decay": 0.0, "eval_interval": 50, "eval_batches": 5,
    },
    # Conversations that a small model learns in minutes; then python gpt.py chat.
    "chat": {
        "data": "questions", "n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 128, "dropout": 0.0,
        "batch_size": 12, "steps": 800, "lr": 3e-3, "min_lr": 3e-4, "warmup": 50, "beta2": 0.99, "eval_interval": 200,
    },
    "llama": {
        "n_layer": 4, "n_head": 4, "n_kv_head": 2, "n_embd": 128, "block_size": 64, "dropout": 0.0, "batch_size": 12,
        "steps": 2000, "lr": 1e-3, "min_lr": 1e-4, "warmup": 100, "beta2": 0.99, "eval_interval": 250,
        "pos": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "tied": False,
    },
    # The shortest time to a validation loss of 1.88 on two cores: notes/speedrun.md.
    "speedrun": {
        "n_layer": 2, "n_head": 2, "n_embd": 128, "block_size": 64, "dropout": 0.0, "batch_size": 24, "steps": 205,
        "lr": 8e-3, "min_lr": 0.0, "warmup": 8, "beta1": 0.8, "beta2": 0.95, "eval_interval": 205,
        "optimizer": "muon", "pos": "rope", "qk_norm": True, "mlp": "relu2", "norm": "rmsnorm", "bias": False,
    },
    "gpt2": {**_GPT2, "n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {**_GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {**_GPT2, "n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {**_GPT2, "n_layer": 48, "n_head": 25, "n_embd": 1600},
}

FORMATS: tuple[str, ...] = ("hf", "c", "llmc", "tokens", "peft")
DTYPES: tuple[str, ...] = ("float32", "bfloat16", "float16")
PACKED: tuple[str, ...] = ("float32", "bfloat16", "int8")  # what exchange/cfile.py and kernels/words.c know
INIT_FROM = f"{', '.join(HUB)} or OWNER/NAME (from Hugging Face's hub), or a checkpoint's path"


@dataclass
class Options(TrainOptions):
    """The options of `python gpt.py`."""

    init_from: str | None = option(None, f"begin with these weights: {INIT_FROM}")
    lora_rank: int = option(0, "train adapters of this rank beside the weights, and not the weights; 0 for none")
    lora_alpha: float = option(16.0, "the adapters count alpha / rank times")
    lora_targets: str = option("c_attn,c_proj", f"the matrices that have adapters, of {', '.join(TARGETS)}")
    tokenizer: str = option("char", "char (the text's own), bpe-2048 (so many, learned from the text), gpt2 "
                                   "(OpenAI's), or a .model file of tokenizer.py")
    n_layer: int = option(4, "blocks")
    n_head: int = option(4, "attention heads in a block")
    n_embd: int = option(128, "channels")
    block_size: int = option(64, "tokens of context")
    vocab_size: int | None = option(None, "rows of the embedding table (default: as many as the tokenizer has tokens)")
    dropout: float = option(0.0, "share of activations dropped while training")
    bias: bool = option(True, "biases in linear layers and LayerNorms, as GPT-2 has them")
    pos: str = option("learned", "positions: a learned table, rotated queries and keys, waves, or none", CHOICES["pos"])
    rope_theta: float = option(10000.0, "the base of the frequencies of --pos rope")
    n_kv_head: int = option(0, "heads of keys and values, shared by the queries; 0 for as many as --n-head")
    qk_norm: bool = option(False, "divide every query and key by the root of its mean square")
    window: int = option(0, "how many positions attention looks back on; 0 for all")
    norm: str = option("layernorm", "the norm before each part of a block", CHOICES["norm"])
    norm_at: str = option("pre", "normalise what a part reads, or the sum after it", CHOICES["norm_at"])
    norm_eps: float = option(1e-5, "added to the mean square by rmsnorm and --qk-norm")
    mlp: str = option("gelu", "the activation of the MLP", CHOICES["mlp"])
    n_inner: int = option(0, "channels within the MLP; 0 for 4 times --n-embd, some 8/3 times for swiglu")
    tied: bool = option(True, "use the embedding table as the head, as GPT-2 does")
    attention: str = option("full", "flash: in blocks of keys, its memory linear in --block-size", CHOICES["attention"])
    optimizer: str = option("adamw", "muon: for the blocks' matrices, with --beta1 as its momentum", list(OPTIMIZERS))
    dtype: str | None = option(None, "the numbers of activations and matmuls (default: bfloat16 on an NVIDIA GPU from "
                                     "sm_80 up, else float32)", DTYPES)
    devices: int = option(1, "how many GPUs of this machine share each batch, from --device on")

    CHANGEABLE: ClassVar = TrainOptions.CHANGEABLE | {"init_from"}  # adapters know their base by its SHA-256

    def check(self) -> None:
        super().check()
        if self.optimizer == "muon" and self.dtype == "float16":
            raise UserError("--optimizer muon has no use for the scaled losses of float16: choose --dtype bfloat16")
        require_rows(self.batch_size, self.devices)

    def config(self, tokens: int) -> GPTConfig:
        """The model's configuration for a tokenizer of that many tokens. Raises UserError if they don't fit."""
        if self.init_from and self.vocab_size is not None and self.vocab_size < tokens:
            raise UserError(f"--tokenizer {self.tokenizer} has {tokens:,} tokens, and {self.init_from} has rows for "
                            f"{self.vocab_size:,}: leave out --tokenizer to use the one that it was trained with")
        if self.vocab_size is not None and self.vocab_size < tokens:
            raise UserError(f"--vocab-size {self.vocab_size} is less than the tokenizer's {tokens:,} tokens")
        numbers = (self.block_size, self.vocab_size or tokens, self.n_layer, self.n_head, self.n_embd, self.dropout,
                   self.bias)
        choices = {name: getattr(self, name) for name in GPT2_CHOICES}
        return GPTConfig(*numbers) if choices == GPT2_CHOICES else VariantConfig(*numbers, **choices)

    def check_lora(self, given: set[str]) -> None:
        """Raise UserError for options of adapters that don't go together; `given` are those that the user typed."""
        if self.lora_rank < 0 or not 0 < self.lora_alpha < math.inf:
            raise UserError("--lora-rank must be at least 0 and --lora-alpha above 0")
        if self.lora_rank and not self.init_from:
            raise UserError("--lora-rank adapts a model that is trained already: name it with --init-from")
        if self.preset in ("finetune", "lora") and not self.init_from:
            raise UserError(f"--preset {self.preset} trains a model further: name it with --init-from")
        if self.preset == "lora" and not self.lora_rank:
            raise UserError("--preset lora trains adapters: choose their --lora-rank, 8 for example")
        if not self.lora_rank and (unused := given & {"lora_alpha", "lora_targets"}):
            raise UserError(f"--{min(unused).replace('_', '-')} needs --lora-rank: without it there are no adapters")
        parse_targets(self.lora_targets)


@dataclass
class WeightOptions:
    """Which weights a verb works with."""

    checkpoint: str = option("best", "which of the run's weights", ("best", "last"))
    init_from: str | None = option(None, f"instead of a run: {INIT_FROM}")
    lora: str | None = option(None, "adapters to add: of a run with --lora-rank, of a file in it, or a folder of PEFT")
    data_dir: str | None = option(None, "where corpora are kept (default: $DATA_DIR, else data/cache/ here)")
    device: str | None = option(None, "cpu, cuda, metal, ... (default: $DEV, else the best there is)")


@dataclass
class RunOptions(WeightOptions):
    """What `eval` and `sample` take."""

    run: str | None = option(None, "the run folder (default: the newest in runs/)")
    dtype: str = option("float32", "the numbers that matrices are stored and multiplied in", PACKED)


@dataclass
class WriteOptions(RunOptions):
    """How `sample` and `chat` choose tokens."""

    temperature: float = option(0.8, "below 1 bolder choices become rarer; 0 always takes the likeliest token")
    top_k: int = option(200, "choose among the k likeliest tokens; 0 for all")
    top_p: float = option(1.0, "choose among the likeliest tokens that make up this much probability")
    repetition_penalty: float = option(1.0, "above 1 tokens that the text has already become rarer")

    def choice(self) -> Choice:
        """How tokens are chosen. Raises UserError for an invalid value."""
        return Choice(self.temperature, self.top_k, self.top_p, self.repetition_penalty)
