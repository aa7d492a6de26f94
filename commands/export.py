"""`python gpt.py export`: files for other programs."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from commands.evaluate import text_of_run
from commands.options import FORMATS, PACKED, WeightOptions
from commands.weights import is_adapted, load_weights
from data.tokens import write_tokens
from exchange.adapters import write_peft
from exchange.cfile import TARGETS, build_model, c_files, write_model
from exchange.huggingface import hf_files, write_huggingface
from exchange.llmc import LLMC_NAMES, DebugState, write_llmc, write_llmc_state, write_llmc_tokenizer
from exchange.reader import require_formulas
from exchange.tokenizer_json import why_not
from gpt import GPT, build
from runtime.cli import command, option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.run import Run
from runtime.signals import when_stopped
from tokenizer import GPT2Tokenizer


@dataclass
class ExportOptions(WeightOptions):
    paths: list[str] = option((), "the run folder (default: the newest in runs/), and the folder to write")
    to: str | None = option(None, "the program to write for (for tokens: the run's text as llm.c reads it)", FORMATS)
    merge: bool = option(False, "add adapters to the weights that they are for")
    dtype: str = option("float32", "the numbers of the weights; int8 is for --to c", PACKED)
    embed: bool = option(False, "with --to c: put the weights into the C file")
    build: str | None = option(None, "with --to c: compile it for this machine or another", tuple(TARGETS))


def export(argv: Sequence[str]) -> None:
    """`python gpt.py export`: write a model, or the text of a run as tokens, as other programs read them.

    --to hf      a folder that transformers loads
    --to c       one C file that writes text, and model.bin with its weights and tokenizer (notes/c.md)
    --to llmc    a model, its tokenizer and a debug state under the names that train_gpt2 and test_gpt2 of llm.c open
    --to peft    the adapters of a run with --lora-rank, as Hugging Face's PEFT loads them
    --to tokens  the two splits of the run's text as token files of llm.c, which --data also takes
    """
    o, given = parse(ExportOptions, argv, "gpt.py export", str(export.__doc__), positional=("paths", "[RUN] OUT"))
    if not o.to or len(o.paths) not in (1, 2):
        raise UserError("export writes --to hf, c, llmc, peft or tokens, from a run folder into another: python gpt.py "
                        "export --to hf RUN OUT")
    out, run_path = Path(o.paths[-1]), o.paths[0] if len(o.paths) == 2 else None
    if o.to != "c" and (o.dtype == "int8" or o.embed or o.build):
        raise UserError("--dtype int8, --embed and --build are for --to c")
    if not run_path and Run.holds_one(out):
        raise UserError(f"where to? name a new folder behind {out}: "
                        + command("gpt.py", "export", "--to", o.to, out, "OUT"))
    when_stopped(f"stopped; {out} isn't complete: remove it, and give the same command again")
    if o.to == "tokens":
        if unused := given & {"dtype", "checkpoint", "init_from", "lora", "merge"}:
            raise UserError(f"--{min(unused).replace('_', '-')} is about weights, and --to tokens writes a run's text")
        export_tokens(Run.open(run_path, "gpt"), out, o.data_dir)
    elif o.to == "peft":
        if unused := given & {"dtype", "init_from", "lora", "merge"}:
            raise UserError(f"--{min(unused).replace('_', '-')} is for models, and --to peft writes a run's adapters")
        require_free(out, [out / "adapter_config.json", out / "adapter_model.safetensors"])
        print_sizes(write_peft(Run.open(run_path, "gpt"), o.checkpoint, out, o.data_dir))
    else:
        export_model(o, run_path, out)


def export_tokens(run: Run, out: Path, data_dir: str | None) -> None:
    """Write both splits of a run's text as llm.c's token files, and its tokenizer where it isn't GPT-2's."""
    text, name = text_of_run(run, data_dir), run.saved("corpus", "name", str)
    splits = {out / f"{name}_{split}.bin": ids for split, ids in (("train", text.train), ("val", text.val))}
    known = isinstance(text.tokenizer, GPT2Tokenizer)
    require_free(out, [*splits, *([] if known else [out / f"{name}.model", out / f"{name}.vocab"])])
    for path, ids in splits.items():
        write_tokens(path, ids, text.tokenizer)
        print(f"{path}: {len(ids):,} tokens")
    if not known:
        text.tokenizer.save(out / name)
        print(f"{out / name}.model: their tokenizer, for --tokenizer")


def require_free(out: Path, paths: Iterable[Path]) -> None:
    """Raise UserError where an export into the folder `out` would overwrite one of these files, or add to a run's."""
    if Run.holds_one(out):
        raise UserError(f"{out} is a run folder: name another folder")
    if there := [path for path in paths if path.exists()]:
        raise UserError(f"{there[0]} is there already: name another folder, or remove it")


def export_model(o: ExportOptions, run_path: str | None, out: Path) -> None:
    """Write a model for transformers, for llm.c or as a C file. Raises UserError before anything is written."""
    names = {"hf": hf_files(out), "c": c_files(out, o.embed, o.build)}
    require_free(out, names.get(str(o.to), [out / name for name in LLMC_NAMES.values()]))
    open_device(o.device or "cpu")  # where `require_formulas` can tell
    checkpoint, run = load_weights(o, run_path)
    if o.merge != bool(o.lora or (run and is_adapted(run))):
        raise UserError("there are no adapters to --merge: leave it out, or name them with --lora" if o.merge else
                        "the weights are a model and adapters for it: add --merge to write them as one model")
    if o.to == "c":
        require_formulas(build(checkpoint))
        written = write_model(out, checkpoint, o.dtype, o.embed)
        written += [build_model(out, o.build)] if o.build else []
        print_sizes(written)
        return
    if o.to == "llmc":
        checkpoint = checkpoint.with_biases()
    model = build(checkpoint)  # refuses tensors that don't fit before anything is written
    state = debug_state(model) if o.to == "llmc" else None
    require_formulas(model)
    dtype = {"float32": "F32", "bfloat16": "BF16"}[o.dtype]
    if not state:
        written = write_huggingface(out, checkpoint, dtype)
        if checkpoint.tokenizer and (why := why_not(checkpoint.tokenizer)):
            print(f"note: transformers gets no tokenizer, because {why}; this program finds it in config.json",
                  file=sys.stderr)
    else:
        written = write_llmc(out / LLMC_NAMES["model"], checkpoint, dtype)
        if checkpoint.tokenizer:
            written += write_llmc_tokenizer(out / LLMC_NAMES["tokenizer"], checkpoint.tokenizer)
        written += write_llmc_state(out / LLMC_NAMES["state"], checkpoint.model, state)
    print_sizes(written)


def print_sizes(paths: Sequence[Path]) -> None:
    """A line for each file that was written."""
    for path in sorted(paths):
        print(f"{path}: {path.stat().st_size:,} bytes")


def debug_state(model: GPT, B: int = 4, T: int = 64) -> DebugState:
    """Logits, loss and gradients of a model on random tokens, for llm.c's test_gpt2 to compare its own with."""
    shape = (2, B, min(T, model.config.block_size))
    x, y = np.random.default_rng(0).integers(0, model.config.vocab_size, shape, dtype=np.int32)
    params = get_state_dict(model)
    logits = model(Tensor(x))
    loss = model.loss(Tensor(x), Tensor(y))
    grads = dict(zip(params, loss.gradient(*params.values())))
    Tensor.realize(logits, loss, *grads.values())
    return DebugState(x, y, logits.numpy(), loss.item(), grads)
