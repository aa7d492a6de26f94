"""The verbs of `python gpt.py`."""

from collections.abc import Sequence

from commands.chat import chat
from commands.coherence import coherence
from commands.compare import compare
from commands.evaluate import evaluate
from commands.export import export
from commands.info import info
from commands.report import report
from commands.sample import sample
from commands.scaling import sweep
from commands.train import train
from runtime.cli import dispatch

VERBS = {"train": train, "sample": sample, "chat": chat, "eval": evaluate, "info": info, "export": export,
         "report": report, "compare": compare, "sweep": sweep, "coherence": coherence}


def main(argv: Sequence[str]) -> None:
    dispatch(VERBS, argv)
