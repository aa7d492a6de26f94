"""Which weights and which tokenizer the options name."""

import sys
from pathlib import Path

from commands.options import Options, WeightOptions
from data.conversations import has_turns
from data.encoding import LEARNED
from exchange.adapters import apply_adapters, read_adapted_run
from exchange.checkpoint import find_checkpoint, read_run, tokenizer_of
from exchange.huggingface import HUB
from exchange.layout import GPT2_CHOICES, Checkpoint
from runtime import ranks
from runtime.device import compute_capability
from runtime.errors import UserError
from runtime.run import Run
from tokenizer import GPT2Tokenizer, Tokenizer
from tokenizer import load as load_tokenizer

FROM_CHECKPOINT = "checkpoint"  # --tokenizer of a run whose tokenizer came with --init-from


def load_weights(o: WeightOptions, run: str | None) -> tuple[Checkpoint, Run | None]:
    """The checkpoint that `--init-from` names, or that of a run folder, with its adapters, and that folder.

    Raises UserError when there is none, or when both were named.
    """
    if o.init_from:
        if run:
            raise UserError(f"the weights are those of a run or of --init-from: leave out {run} or --init-from")
        checkpoint, folder = find_checkpoint(o.init_from, o.data_dir), None
    else:
        folder = Run.open(run, "gpt")
        if is_adapted(folder):
            checkpoint = read_adapted_run(folder, o.checkpoint, o.data_dir)
        else:
            checkpoint = read_run(folder, o.checkpoint)
    return (apply_adapters(checkpoint, Path(o.lora)) if o.lora else checkpoint), folder


def is_adapted(run: Run) -> bool:
    """Whether a run's weights are adapters."""
    return bool(run.config()["options"].get("lora_rank"))


def load_base(o: Options, given: set[str]) -> Checkpoint:
    """The checkpoint that `--init-from` names; the options take over the numbers of its model.

    Raises UserError for a flag of `given` that asks for another model; only its context may be made shorter.
    """
    assert o.init_from
    if o.resume and Path(o.init_from).is_absolute() and not Path(o.init_from).exists():
        raise UserError(f"{o.init_from}, which {o.resume} began with, is gone: name its new place with --init-from")
    base = find_checkpoint(o.init_from, o.data_dir)
    if o.init_from not in HUB and Path(o.init_from).expanduser().exists():
        o.init_from = str(Path(o.init_from).expanduser().resolve())  # so that the run can go on from any folder
    numbers = {"bias": True} | GPT2_CHOICES | dict(base.model)
    model = (name for name in GPT2_CHOICES if name != "attention")  # which doesn't change what is computed
    for name in ("n_layer", "n_head", "n_embd", "vocab_size", "bias", *model):
        if name in given and getattr(o, name) != numbers[name]:
            raise UserError(f"--{name.replace('_', '-')} can't be {getattr(o, name)}: {base.path} has {numbers[name]}")
        setattr(o, name, numbers[name])
    if "block_size" not in given:
        o.block_size = min(o.block_size, numbers["block_size"])
    if o.block_size > numbers["block_size"]:
        raise UserError(f"--block-size can't be {o.block_size}: {base.path} has positions for {numbers['block_size']}")
    if "tokenizer" not in given and not (isinstance(base.tokenizer, GPT2Tokenizer) and not has_turns(base.tokenizer)):
        o.tokenizer = FROM_CHECKPOINT
    return base


def find_tokenizer(name: str, run: Run | None, base: Checkpoint | None = None) -> str | Tokenizer:
    """What `--tokenizer` means to `encode_corpus`. A run holds its tokenizer, whatever became of the file.

    Raises UserError for a file that can't be read.
    """
    if name == FROM_CHECKPOINT and base and not run:
        return base.known_tokenizer()
    if name == "gpt2":
        return name
    if run:
        return tokenizer_of(run)
    if name == "char" or LEARNED.fullmatch(name):
        return name
    try:
        return load_tokenizer(name)
    except OSError as error:
        hint = f": did you mean {name}.model?" if Path(f"{name}.model").is_file() else ""
        raise UserError(f"--tokenizer {name} is neither char nor gpt2 nor bpe-SIZE nor a file that can be read"
                        f"{hint}") from error
    except ValueError as error:
        raise UserError(f"--tokenizer: {error}") from error


def note_other_tokens(base: Checkpoint, tokenizer: Tokenizer, name: str) -> None:
    """Say on stderr where a model is to go on with other tokens than it has learned."""
    if base.tokenizer and base.tokenizer.ordinary_vocab() != tokenizer.ordinary_vocab() and ranks.first():
        print(f"note: {base.path} has learned other tokens than those of --tokenizer {name}, so its weights for a "
              "token are those of another one", file=sys.stderr)


def best_dtype(device: str) -> str:
    """The default of `--dtype`: bfloat16 has float32's range, so nothing else need be changed for it, and NVIDIA's
    tensor cores multiply it from sm_80 up."""
    return "bfloat16" if compute_capability(device) >= 80 else "float32"
