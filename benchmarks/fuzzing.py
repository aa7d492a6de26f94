"""What fuzz.py and fuzz_files.py share: an attempt, the programs' doors, and a place to try them in."""

from runtime.script import run_main

import contextlib
import gc
import importlib
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from engine import EngineError
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 20  # seconds of work, after which a program counts as hanging
SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "2",
         "--eval-batches", "1"]
SMALL_GROK = ["--p", "7", "--n-layer", "1", "--n-embd", "16", "--n-head", "2", "--frac", "0.5", "--batch", "0"]


# ---- one attempt ----


class Enough(BaseException):
    """The checks are over, and the work would begin."""


class Hang(BaseException):
    """An attempt took too long."""


def attempt(work: Callable[..., Any], *arguments: Any, codes: Sequence[int] = (0, 2, 130)) -> str:
    """Do it with its output thrown away: "" if it ended well or with a sentence, else the traceback."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    working = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)  # of work, as the machine may do something else
    signal.alarm(10 * LIMIT)  # and something may wait for ever
    try:
        said, nowhere = io.StringIO(), Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        with nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(said):
            work(*arguments)
    except Enough:
        pass
    except (UserError, EngineError):
        return "" if 2 in codes else traceback.format_exc()
    except SystemExit as end:
        return "" if (end.code or 0) in codes else f"exit code {end.code}: {said.getvalue()}"
    except BaseException:
        if sys.exc_info()[0] is KeyboardInterrupt:
            raise
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGPROF, working)
    return ""


def cause(trace: str) -> str:
    """The last line of a traceback and where it came from, to count faults of one kind once."""
    places = re.findall(rf'File "{re.escape(str(ROOT))}/([^"]+)", line (\d+)', trace)
    last = re.sub(r"0x\w+|\d+|'[^']*'", "_", trace.strip().splitlines()[-1][:200])
    return f"{':'.join(places[-1]) if places else ''} {last[:100]}"


# ---- the doors ----


@dataclass(frozen=True)
class Door:
    """A script with its verb, and the functions where its checks are over and its work begins."""

    command: tuple[str, ...]  # as it is typed
    module: str  # which has `main`
    stops: tuple[str, ...] = ()

    def call(self, argv: Sequence[str]) -> None:
        """What `python COMMAND ARGV` does, up to the first of the stops."""
        with contextlib.ExitStack() as stack:
            for name in self.stops:
                stack.enter_context(mock.patch(name, stop))
            stack.enter_context(mock.patch.object(sys, "argv", [*self.command, *argv]))
            run_main(importlib.import_module(self.module).main)


def stop(*arguments: Any, **_: Any) -> Any:
    """In place of the work. A model's numbers are checked still: those of an untrained one come from the options."""
    if arguments and hasattr(arguments[0], "check_lora"):
        arguments[0].config(65)
    raise Enough


DOORS = [
    Door(("gpt.py",), "commands.gpt", ("commands.train.prepare",)),
    Door(("gpt.py", "sample"), "commands.gpt", ("commands.sample.build",)),
    Door(("gpt.py", "chat"), "commands.gpt", ("commands.chat.build",)),
    Door(("gpt.py", "eval"), "commands.gpt", ("commands.evaluate.build",)),
    Door(("gpt.py", "info"), "commands.gpt", ("commands.info.compiling_for",)),
    Door(("gpt.py", "export"), "commands.gpt", ("commands.export.build", "commands.export.write_tokens")),
    Door(("gpt.py", "report"), "commands.gpt", ("commands.report.write_page",)),
    Door(("gpt.py", "compare"), "commands.gpt", ("commands.compare.run_all",)),
    Door(("gpt.py", "sweep"), "commands.gpt", ("commands.scaling.run_all",)),
    Door(("gpt.py", "coherence"), "commands.gpt", ("commands.coherence.build",)),
    Door(("bigram.py",), "bigram", ("bigram.open_text",)),
    Door(("grok.py",), "commands.grok", ("grok.make_model",)),
    Door(("grok.py", "sweep"), "commands.grok", ("grok.make_model",)),
    Door(("grok.py", "report"), "commands.grok", ("commands.report.write_page",)),
    Door(("engine.py", "train"), "engine", ("engine.train",)),
    Door(("engine.py", "sample"), "engine", ("engine.generate",)),
    *(Door(("tokenizer.py", verb), "commands.tokenizer") for verb in ("train", "encode", "decode", "show", "stats")),
    *(Door((f"plots/{name}.py",), f"plots.{name}", tuple(f"plots.{name}.{function}" for function in stops))
      for name, stops in (("ablation", ["measure"]), ("attention_maps", ["look_inside"]), ("embeddings", ["draw"]),
                          ("logit_lens", ["depth_losses", "look_inside"]), ("gpt2_drawing", ["draw"]),
                          ("graph", ["expression", "block_graph"]))),
    *(Door((f"plots/{name}.py",), f"plots.{name}", (f"plots.{name}.draw",)) for name in (
        "bigram_matrix", "grok_curves", "grok_mechanism", "grok_sweep", "loss_curves", "token_stats",
        "scaling", "coherence", "finetuning", "compare")),
]


# ---- the place ----


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Meanwhile a folder is the current one, and nothing of this process is kept outside it."""
    variables = {"HOME": str(folder), "DATA_DIR": str(folder / "data"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    not_a_script = mock.patch("runtime.signals.is_script", False)  # Ctrl-C stays Python's
    no_lock = mock.patch("runtime.run.Run.lock")  # this process is many, one after the other
    with contextlib.chdir(folder), mock.patch.dict(os.environ, variables), not_a_script, no_lock:
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile there are no warnings, and garbage is collected only where `gc.collect` is called.

    In tinygrad's worker thread a collection could wait for that very thread.
    """
    gc.disable()
    try:
        with warnings.catch_warnings(), mock.patch("gc.enable"):  # which a compiled step calls
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.collect()
        gc.enable()
