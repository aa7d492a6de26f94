"""Ctrl-C at random moments in a terminal: each time one sentence, exit code 130, and what it says to type works.

    python -m benchmarks.interrupts [--moments 30]

Each program runs in a pseudo-terminal and in a folder of its own. Every fifth time its kernels must be compiled again,
so that Ctrl-C also meets the compiler. A moment before the script's first import is Python's own (it starts, compiles
the script, and may drop a Ctrl-C), and one after the last line ends nothing: both are counted apart, and another moment
is drawn. A run that is taken up again must have the losses of one that wasn't stopped, to the last bit.
"""

from runtime.script import run_main

import contextlib
import errno
import fcntl
import os
import random
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.corpora import find_corpus
from runtime.cli import option, parse
from runtime.errors import UserError
from runtime.run import Run
from runtime.signals import SIGNALS

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 300  # seconds that a program may take
SMALL = [
    "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--block-size", "32", "--batch-size", "4",
    "--eval-batches", "2", "--eval-interval", "50",
]
PROGRAMS = {
    "gpt.py": ["gpt.py", "--out", "out", "--steps", "200", *SMALL],
    "grok.py": ["grok.py", "--out", "out", "--preset", "fast", "--steps", "50"],
    "bigram.py": ["bigram.py", "--out", "out", "--steps", "1500", "--eval-interval", "500"],
    "gpt.py sample": ["gpt.py", "sample", "trained", "--max-new-tokens", "300"],
    "gpt.py eval": ["gpt.py", "eval", "trained"],
    "tokenizer.py train": ["tokenizer.py", "train", "text.txt", "--out", "out"],
}


@dataclass
class Options:
    moments: int = option(30, "how often to stop each program")
    seed: int = option(0, "of the moments")
    only: str | None = option(None, "one of the programs", tuple(PROGRAMS))


@dataclass
class Ended:
    """How a program ended in a terminal."""

    code: int
    text: str
    seconds: float
    before_the_script: bool = False  # whether Ctrl-C came before the script's first import was done

    @property
    def last_line(self) -> str:
        """The last line as it stands on the screen."""
        lines = [line for line in re.split(r"[\r\n]+", self.text.rstrip()) if line.strip()]
        return lines[-1].strip() if lines else ""


def in_terminal(
    argv: Sequence[str], folder: Path, environment: dict[str, str], stop: float | str | None = None, close: bool = False
) -> Ended:
    """Run `python ARGV` in a terminal. After `stop` seconds, or once that text is there, type Ctrl-C or close it."""
    ours, theirs = os.openpty()
    began, text, early = time.perf_counter(), b"", False
    process = subprocess.Popen(
        [sys.executable, *argv], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=_take_the_terminal,
    )
    os.close(theirs)
    try:
        while time.perf_counter() - began < LONGEST:
            if stop is not None and (stop.encode() in text if isinstance(stop, str) else seconds_since(began) > stop):
                stop = None
                if close:
                    break
                early = process.poll() is None and not handles_signals(process.pid)
                os.write(ours, b"\x03")
            if select.select([ours], [], [], 0.005)[0]:
                try:
                    data = os.read(ours, 1 << 16)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise
                    break  # the last that had the terminal open has ended
                text += data
        else:
            process.kill()
            text += b"\n(it hung, and was killed)"
    finally:
        os.close(ours)
    return Ended(process.wait(LONGEST), text.decode(errors="replace"), seconds_since(began), early)


def handles_signals(process: int) -> bool:
    """Whether a script has come to its first import, which has it catch SIGTERM. True where the system doesn't say."""
    with contextlib.suppress(OSError):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text(encoding="utf-8"))
        return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
    return True


def _take_the_terminal() -> None:
    """In the child: make its input the terminal that Ctrl-C comes from. A shell's `&` has us ignore Ctrl-C: undo it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def seconds_since(began: float) -> float:
    return time.perf_counter() - began


def fault(ended: Ended) -> str:
    """What is wrong with how a stopped program ended; nothing if all is right."""
    if ended.code != 130:
        return f"exit code {ended.code}"
    if "Traceback" in ended.text or "Exception ignored" in ended.text:
        return "a traceback"
    if not ended.last_line.startswith("stopped") or ended.text.count("stopped") != 1:
        return "not one sentence at the end"
    return ""


def goes_on(ended: Ended, argv: Sequence[str], folder: Path, environment: dict[str, str]) -> str:
    """Type what the sentence says, and see it run to its end. What went wrong; nothing if all is right."""
    if "--resume" in ended.last_line:
        argv = shlex.split(ended.last_line.split(": ", 1)[1])[1:]
    elif "same command" not in ended.last_line:
        return "" if "done and saved" in ended.last_line else "the sentence doesn't say how to go on"
    done = subprocess.run([sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True,
                          check=False, timeout=LONGEST)
    return f"{shlex.join(argv)}: {done.stderr.strip()[-300:]}" if done.returncode else ""


class Place:
    """A folder for the programs, with a text, a trained run and a cache of kernels."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.copy(find_corpus("shakespeare").path, folder / "text.txt")
        (folder / "text.txt").write_bytes((folder / "text.txt").read_bytes()[:200_000])
        self.environment = {
            **os.environ, "DATA_DIR": str(folder / "data"), "XDG_CACHE_HOME": str(folder / "cache"), "TERM": "xterm",
        }
        self.whole: dict[str, list[float]] = {}  # the losses of a run that wasn't stopped, by program
        subprocess.run([sys.executable, *self.argv("gpt.py"), "--out", "trained"], cwd=folder, env=self.environment,
                       check=True, capture_output=True)

    def argv(self, program: str) -> list[str]:
        """The program with its full path; texts that are trained on are our short one."""
        script, *rest = PROGRAMS[program]
        return [str(ROOT / script), *rest, *(["--data", "text.txt"] if program in ("gpt.py", "bigram.py") else [])]

    def cold(self) -> dict[str, str]:
        """The environment with an empty cache of kernels."""
        shutil.rmtree(self.folder / "cold", ignore_errors=True)
        return {**self.environment, "XDG_CACHE_HOME": str(self.folder / "cold")}

    def clear(self) -> None:
        """Remove what a program wrote."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        for path in self.folder.glob("out.*"):
            path.unlink()

    def losses(self) -> list[float]:
        """The losses of the run in `out`, step by step."""
        return [line["train_loss"] for line in Run(self.folder / "out").metrics()]

    def left_over(self) -> str:
        """A temporary file that was left in the folder, where no run would sweep it away."""
        return ", ".join(path.name for path in self.folder.glob(".out*"))

    def stop(self, program: str, moment: float, cold: bool) -> tuple[str, str]:
        """Stop a program at a moment: a word for how it ended, and what is wrong with that."""
        self.clear()
        environment = self.cold() if cold else self.environment
        ended = in_terminal(self.argv(program), self.folder, environment, moment)
        if ended.before_the_script:
            return "before the script", ""
        if ended.code == 0:  # nothing may come after the ^C that the terminal shows
            lost = "^C" in ended.text and ended.text.rpartition("^C")[2].strip()
            return "after the end", f"Ctrl-C was lost\n{ended.text[-1500:]}" if lost else ""
        wrong = fault(ended) or self.left_over() or goes_on(ended, self.argv(program), self.folder, environment)
        if not wrong and program in self.whole and self.losses() != self.whole[program]:
            wrong = "the run that went on has other losses"
        return "stopped", f"{wrong}\n{ended.text[-1500:]}" if wrong else ""


def measure(place: Place, program: str, moments: int, rng: random.Random) -> Counter[str]:
    """Stop a program that often. How the attempts ended. Raises UserError at the first that ended wrongly."""
    counted: Counter[str] = Counter()
    seconds = {}
    for cold in (True, False):
        place.clear()
        ended = in_terminal(place.argv(program), place.folder, place.cold() if cold else place.environment)
        if ended.code:
            raise UserError(f"{program} doesn't run: {ended.text[-500:]}")
        seconds[cold] = ended.seconds
    if (place.folder / "out" / "metrics.jsonl").is_file():
        place.whole[program] = place.losses()
    while counted["stopped"] < moments:
        cold = counted["stopped"] % 5 == 4
        moment = rng.uniform(0.05, 0.05 + rng.choice((0.25, 1.0)) * seconds[cold])  # every other one in the first part
        how, wrong = place.stop(program, moment, cold)
        counted[how] += 1
        if wrong:
            raise UserError(f"{program} after {moment:.2f} s{', cold' * cold}: {wrong}")
    return counted


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "benchmarks.interrupts", str(__doc__))
    rng = random.Random(o.seed)
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name))
        for program in [o.only] if o.only else PROGRAMS:
            counted = measure(place, program, o.moments, rng)
            apart = "".join(f", {n} {how}" for how, n in counted.items() if how != "stopped")
            print(f"{program:<20}{counted['stopped']} stopped in a sentence, code 130, and went on{apart}", flush=True)


if __name__ == "__main__":
    run_main(main)
