"""kill -9 of one rank at random moments: the others end, nothing is damaged, and --resume has every loss.

    python -m benchmarks.kills [--moments 10] [--ranks 2]

Each time a run of several ranks loses one of them, anywhere from its first moment to its last. The time is measured
until the last process of the run is gone. Then the run goes on, or begins again where no step was saved, and its losses
are held to those of a run that nobody stopped, to the last bit.
"""

from runtime.script import run_main

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.corpora import find_corpus
from runtime.cli import option, parse
from runtime.errors import UserError
from runtime.run import Run

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--block-size", "32", "--batch-size", "4",
         "--log-interval", "1", "--eval-batches", "2", "--eval-interval", "20", "--steps", "400", "--dropout", "0.1",
         "--device", "cpu"]


@dataclass
class Options:
    moments: int = option(10, "how often to kill a rank")
    ranks: int = option(2, "how many there are")
    seed: int = option(0, "of the moments")


def ranks_of(mpiexec: int) -> dict[int, int]:
    """The processes under an mpiexec that are ranks of it: {rank: process id}."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            parents = [int(path.name)]
            for _ in range(2):
                parents.append(int(Path(f"/proc/{parents[-1]}/stat").read_text().rsplit(")", 1)[1].split()[1]))
            environment = dict(e.split("=", 1) for e in (path / "environ").read_text().split("\0") if "=" in e)
            if parents[2] == mpiexec:
                found[int(environment["PMI_RANK"])] = int(path.name)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended, though its parent may not know yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def start(o: Options, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    program = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not program:
        raise UserError("there is no mpiexec: pip install -e '.[mpi]'")
    command = [program, "-n", str(o.ranks), sys.executable, str(ROOT / "gpt.py"), *arguments]
    return subprocess.Popen(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: "subprocess.Popen[str]") -> None:
    """Wait for a run, which has to succeed."""
    out, _ = process.communicate(timeout=300)
    if process.returncode:
        raise AssertionError(out)


def losses(folder: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["train_loss"]) for line in Run(folder).metrics()]


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.kills", str(__doc__))
    rng, longest = random.Random(o.seed), 0.0
    text = str(find_corpus("shakespeare", None).path.resolve())
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        finish(start(o, folder, *SMALL, "--data", text, "--out", "whole"))
        whole, whole_seconds = losses(folder / "whole"), time.perf_counter() - began
        print(f"a whole run takes {whole_seconds:.1f} s, {len(whole)} steps", flush=True)
        for i in range(o.moments):
            process, moment, out = start(o, folder, *SMALL, "--data", text, "--out", f"{i}"), 0.0, folder / f"{i}"
            while len(ranks := ranks_of(process.pid)) < o.ranks:
                time.sleep(0.01)
            moment, victim = rng.uniform(0, whole_seconds - 0.5), rng.randrange(o.ranks)
            time.sleep(moment)
            with contextlib.suppress(ProcessLookupError):
                os.kill(ranks[victim], signal.SIGKILL)
            killed = time.perf_counter()
            while not all(map(gone, ranks.values())):
                time.sleep(0.01)
            taken = time.perf_counter() - killed
            longest = max(longest, taken)
            process.communicate()
            saved = Run(out).load("state")[1]["step"] if out.exists() and Run(out).has("state") else 0
            if (out / "config.json").exists():
                finish(start(o, folder, "--resume", f"{i}"))
            else:
                shutil.rmtree(out, ignore_errors=True)
                finish(start(o, folder, *SMALL, "--data", text, "--out", f"{i}"))
            same = losses(out) == whole
            print(f"rank {victim} killed after {moment:.1f} s: all gone in {taken:.2f} s, step {saved} was saved, "
                  f"losses {'the same' if same else 'DIFFER'}", flush=True)
            assert same
    print(f"{o.moments} kills: the others ended within {longest:.2f} s, and every loss is that of a whole run")


if __name__ == "__main__":
    run_main(main)
