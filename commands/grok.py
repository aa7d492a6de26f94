"""The verbs of `python grok.py`: `train`, which is also what it does without a verb, `sweep` and `report`."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import grok
from commands.grok_sweep import sweep
from commands.report import report
from grok import PRESETS, GrokTrainer, Options, evaluations, prepare, summary, task_name
from kernels import describe_kernels
from runtime import ranks
from runtime.cli import command, dispatch, parse
from runtime.device import describe_device, open_device
from runtime.errors import UserError
from runtime.progress import Waiting, counted
from runtime.run import resume_options
from trainer import fit_warmup


def train(argv: Sequence[str]) -> None:
    """`python grok.py`: train into a run folder, or go on with one."""
    asked, given = parse(Options, argv, "grok.py", str(grok.__doc__), PRESETS)
    device = open_device(asked.device)
    if ranks.size() > 1:
        raise UserError("a run of grok.py is for one process: start it without mpiexec, or `grok.py sweep` with it")
    o, run = resume_options(asked, given, "grok") if asked.resume else (asked, None)
    o.check()
    note = "" if run else fit_warmup(o, given)
    trainer = prepare(o, run)
    sys.stderr.write(note)
    print_header(trainer, device)
    if trainer.step == 0 and o.snapshots:
        with Waiting(trainer.progress, "compiling the evaluation, and a first one"):
            trainer.measure()
    trainer.train()
    print(f"\n{summary(evaluations(trainer.run))}; now try")
    for name in ("grok_curves.py", "grok_mechanism.py")[: 2 if o.snapshots else 1]:
        print(f"  {command(Path(sys.argv[0]).with_name('plots') / name, trainer.run.path)}")
    print(f"  {command(sys.argv[0], 'report', trainer.run.path)}")


def print_header(trainer: GrokTrainer, device: str) -> None:
    """What a run is, before its first step."""
    e = trainer.experiment
    c, s, o, n = e.config, e.split, e.o, len(e.table)
    print(f"device   {describe_device(device)}, tinygrad {version('tinygrad')}")
    print(f"kernels  {describe_kernels(device)}")
    example = e.table.text((n // 3 + 7) % n)
    print(f"task     {task_name(e.table)}, `{example}`: {n:,} pairs, {len(s.train):,} to train on, "
          f"{len(s.val):,} to validate on, {len(s.clean):,} of them without a twin")
    head = "the head tied to the embedding" if o.tied else "the head untied"
    parameters = sum(int(w.numel()) for w in e.params.values())
    print(f"model    {counted(c.n_layer, 'layer')}, {counted(c.n_head, 'head')}, {counted(c.n_embd, 'channel')}, "
          f"block {c.block_size}, vocabulary {c.vocab_size}, {head}: {parameters:,} parameters")
    print(f"run      {trainer.run.path}" + (f", from step {trainer.step}" if trainer.step else ""), flush=True)


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train, "sweep": sweep, "report": partial(report, kind="grok")}


def main(argv: Sequence[str]) -> None:
    dispatch(VERBS, argv)
