"""What nobody would type, and files that nobody wrote: no program here may answer with a traceback.

    python -m benchmarks.fuzz                       all of it: hours on two cores
    python -m benchmarks.fuzz --lines 1000 --files 1000 --processes 20

`--lines` are command lines for every script and verb, drawn from the options of its `--help` with odd values. They go
through the parser and the checks in one process, up to where the work would begin. `--processes` are the same as whole
processes, with odd files and odd environments, on models of a few thousand parameters. `--files` are good files of
every format with a few bytes or values changed, each given to everything that reads it (benchmarks/fuzz_files.py).

A fault is a traceback, more than 20 seconds, an exit code other than 0, 2 and 130, and a file of the user's that has
changed. The same seed draws the same things.
"""

from runtime.script import run_main

import contextlib
import functools
import gc
import io
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmarks.fuzz_files import fuzz_files, make_files
from benchmarks.fuzzing import DOORS, LIMIT, ROOT, SMALL, SMALL_GROK, Door, attempt, cause, inside, quiet
from runtime.cli import option, parse
from runtime.errors import UserError

MEMORY = 6 << 30  # bytes of addresses: a model that is too large must be refused, and not end the machine


@dataclass
class Options:
    lines: int = option(100_000, "command lines through the parser and the checks in this process")
    files: int = option(10_000, "mutated files through everything that reads them")
    processes: int = option(2_000, "command lines as whole processes")
    seed: int = option(0, "of everything that is drawn")


# ---- what is typed ----


@functools.cache
def flags_of(door: Door) -> dict[str, list[str] | None]:
    """The options in a door's --help: their choices, [] for a switch, None for those that take anything."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        door.call(["--help"])
    flags: dict[str, list[str] | None] = {}
    for line in re.findall(r"^  (--.*?)(?:   .*)?$", shown.getvalue(), re.M):
        for name, value in re.findall(r"(--[\w-]+)(?: (\S+))?", line.split("  ")[0]):
            flags[name] = value[1:-1].split(",") if value.startswith("{") else None if value else []
    return flags


NUMBERS = ["0", "1", "2", "3", "5", "7", "8", "0.5", "1e-3", "-1", "-0.0", "1.5", "0x10", "1_0", "1e400", "nan", "inf",
           "-inf", "1e4", "007", "٣", "99999999999", "9" * 30, "9" * 5000, "1,2", "0.9,0.98", "+5", " 4 ", "1e-320"]
WORDS = ["", " ", "-", "--", "none", "True", "char", "gpt2", "shakespeare", "fraction", "intervention", "cpu", "null",
         "cuda:sm_89", "cuda:sm_999", "hello world", "<|endoftext|>", "a\nb", "é漢字😀", "\udcff", "\\w+", "(",
         "[a-", "(?P<a>", "*", "%s", "{}", "%", "c_attn", "c_attn,c_fc", ",", ";", "wd 1", "0.25; 0.5", "+", "/"]
PATHS = ["text.txt", "empty.txt", "bytes.bin", "runs/one", "runs/none", "m.model", "m", ".", "..", "/", "~",
         "~nobody/x", "/dev/null", "/proc/self/mem", "folder", "text.txt/x", "new/er", "x" * 300,
         "runs/one/best.safetensors", "runs/one/config.json", "new.png", "new.svg", "hf", "llmc", "ids.bin",
         "talks.jsonl", "items.jsonl", "talks.jsonl,text.txt"]
LONG = {"--steps", "--grad-accum", "--max-new-tokens", "--num-samples", "--beam", "--beam-minutes", "--eval-batches"}


def value_for(flag: str, choices: list[str] | None, rng: random.Random, whole: bool) -> str:
    """A value that may suit the flag, or none that could; for a `whole` process none that asks for hours of work."""
    if choices and rng.random() < 0.8:
        return rng.choice(choices)
    pool = rng.choice((NUMBERS, NUMBERS, WORDS, PATHS))
    value = rng.choice(pool)
    return rng.choice(("0", "-1", "1", "2", "x")) if whole and flag in LONG else value


def draw_line(door: Door, rng: random.Random, whole: bool = False) -> list[str]:
    """A random command line for a door."""
    flags = flags_of(door)
    argv: list[str] = []
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5))):
        kind = rng.random()
        if kind < 0.85:
            flag = rng.choice(list(flags))
            value = value_for(flag, flags[flag], rng, whole)
            typed = flag.replace("-", "_").replace("__", "--", 1) if rng.random() < 0.1 else flag
            typed = typed[: rng.randrange(3, len(typed) + 1)] if rng.random() < 0.05 else typed
            argv += rng.choice(([typed, value], [f"{typed}={value}"])) if flags[flag] != [] else [typed]
            if rng.random() < 0.03:
                argv.pop()
        else:
            argv.append(rng.choice(rng.choice((PATHS, PATHS, WORDS, NUMBERS))))
    return argv


# ---- the place ----


def make_place(folder: Path) -> None:
    """A folder as a user's: texts, a tokenizer, a run of each kind, exports, files of ours and of others."""
    folder.mkdir(parents=True)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog, and 12 more.\n" * 60)
    (folder / "talks.jsonl").write_text('{"prompt": "The dog", "completion": "jumps over"}\n' * 30)
    item = '{"context": "The", "endings": ["dog", "fox"], "answer": 1, "text": "The dog"}\n'
    (folder / "items.jsonl").write_text(item * 9)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "bytes.bin").write_bytes(bytes(range(256)))
    (folder / "folder").mkdir()
    (folder / "folder" / "mine.txt").write_text("keep me")
    make_files(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but those that a program may write unasked."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    names = {str(p.relative_to(folder)): p for p in files}
    ours = ("data/", "cache/", "relative/")  # the caches that the environment names
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(ours)}


def changed(before: Mapping[str, bytes], after: Mapping[str, bytes], argv: Sequence[str]) -> list[str]:
    """The files that a command line changed, removed or made without having been told to.

    What it was told to write or to go on with is what its arguments name; unasked it may make a run and pictures.
    """
    named = {os.path.normpath(a.split("=", 1)[-1]) for a in argv} - {".", ""}
    allowed = lambda name: any(name == n or name.startswith((f"{n}/", f"{n}.")) for n in named)
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    folders = ("runs/", "encoded/") if any("data-dir" in a for a in argv) else ("runs/",)  # of `--data-dir .`
    picture = re.compile(r"[a-z0-9_]+\.png|report\.html")
    fresh = lambda name: name not in before and (name.startswith(folders) or picture.fullmatch(name))
    return sorted(name for name in touched if not allowed(name) and not fresh(name))


# ---- lines in this process ----


def fuzz_lines(count: int, seed: int, place: Path) -> Counter[str]:
    """Random command lines through the parser and the checks. The faults, by kind."""
    rng, faults, begin = random.Random(seed), Counter[str](), time.monotonic()
    with inside(place), mock.patch("runtime.device.set_compiler"), quiet():
        for n in range(count):
            door = rng.choice(DOORS)
            argv = draw_line(door, rng)
            if (trace := attempt(door.call, argv)) and (kind := cause(trace)) not in faults:
                shown = " ".join(a if len(a) < 80 else a[:20] + "..." for a in map(repr, argv))
                print(f"{kind}\n    {' '.join(door.command)} {shown}", flush=True)
            if trace:
                faults[kind] += 1
            if n % 500 == 0:
                gc.collect()
            if n % 10_000 == 9_999:
                print(f"{n + 1:,} lines, {time.monotonic() - begin:.0f} s, {len(faults)} faults", flush=True)
    return faults


# ---- whole processes ----

SMALL_FLAGS = {
    ("gpt.py",): ["--data", "text.txt", *SMALL], ("bigram.py",): ["--data", "text.txt"],
    ("gpt.py", "compare"): ["--data", "text.txt", "--values", "GPT-2", "--seeds", "0", *SMALL],
    ("gpt.py", "sweep"): ["--data", "text.txt", "--sizes", "1x8", "--tokens", "12800", "--epochs", "9", *SMALL[-6:]],
    ("gpt.py", "coherence"): ["--num-samples", "1", "--max-new-tokens", "8"],
    ("grok.py",): SMALL_GROK, ("grok.py", "sweep"): ["fraction", "--values", "0.5"],
    ("engine.py", "train"): ["--data", "text.txt"],
    ("gpt.py", "sample"): ["--max-new-tokens", "3"],
}
ENVIRONMENTS: list[dict[str, str]] = [
    {}, {}, {}, {}, {"LANG": "C", "LC_ALL": "C"}, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"},
    {"COLUMNS": "1"}, {"COLUMNS": "x"}, {"KERNELS": "0"}, {"KERNELS": "maybe"}, {"CUDA": "0"}, {"CUDA": "1"},
    {"DEV": "CPU"}, {"DEV": "toaster"}, {"METAL": "1"}, {"CPU": "1"}, {"JIT": "0"}, {"DEBUG": "x"}, {"BEAM": "-1"},
    {"CC": "gcc"}, {"CC": "/nonexistent"}, {"PATH": ""}, {"HOME": "/proc"}, {"HOME": ""}, {"XDG_CACHE_HOME": "/proc/x"},
    {"XDG_CACHE_HOME": "relative"}, {"DATA_DIR": "/proc/x"}, {"DATA_DIR": "text.txt"}, {"DATA_DIR": ""},
    {"TMPDIR": "/nonexistent"}, {"HF_ENDPOINT": "x"}, {"HF_ENDPOINT": "http://127.0.0.1:9/"}, {"NO_COLOR": "1"},
    {"TIKTOKEN_CACHE_DIR": "/proc/x"}, {"PYTHONUTF8": "0", "LC_ALL": "C"}, {"TERM": "dumb"},
]


def run_process(door: Door, argv: Sequence[str], env: Mapping[str, str], place: Path) -> tuple[int, str, float]:
    """A command line as a process of its own: exit code, what it printed, seconds of work."""
    variables = {k: v for k, v in os.environ.items() if k not in ("DEV", "CUDA", "CC", "PYTHONPATH")}
    variables |= {"PYTHONPATH": str(ROOT), "DATA_DIR": str(place / "data"), "HF_ENDPOINT": "http://127.0.0.1:9", **env}
    limits = lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    command = [sys.executable, str(ROOT / door.command[0]), *door.command[1:], *argv]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(command, cwd=place, env=variables, capture_output=True, stdin=subprocess.DEVNULL,
                              timeout=5 * LIMIT, preexec_fn=limits, check=False)
        code, printed = done.returncode, (done.stderr + done.stdout).decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        code, printed = -signal.SIGKILL, ((error.stderr or b"") + (error.stdout or b"")).decode(errors="replace")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return code, printed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def fuzz_processes(count: int, seed: int, place: Path) -> Counter[str]:
    """Random command lines as whole processes. The faults, by kind."""
    rng, faults, codes, begin = random.Random(seed), Counter[str](), Counter[int](), time.monotonic()
    original, before = place.with_name("original"), contents(place)
    shutil.copytree(place, original, symlinks=True)
    for n in range(count):
        door, env = rng.choice(DOORS), rng.choice(ENVIRONMENTS)
        argv = [*SMALL_FLAGS.get(door.command, []), *draw_line(door, rng, whole=True)]
        argv += ["--steps", "1"] if "--steps" in flags_of(door) else []
        code, printed, seconds = run_process(door, argv, env, place)
        codes[code] += 1
        after = contents(place)
        what = f"{env} {' '.join(door.command)} {argv!r}"
        touched = changed(before, after, argv)
        for wrong, text in (
            ("Traceback" in printed, printed.strip().splitlines()[-1][:200] if printed.strip() else ""),
            (code not in (0, 2, 130), f"exit code {code}: {printed.strip()[-200:]}"),
            (seconds > LIMIT, f"{seconds:.0f} s of work"),
            (bool(touched), f"touched {touched[:4]}"),
        ):
            if wrong:
                faults[f"{what}\n    {text}"] += 1
                print(f"{what}\n    {text}", flush=True)
        if after != before:
            kept = place / "data"
            for path in place.iterdir():
                if path != kept:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            shutil.copytree(original, place, symlinks=True, dirs_exist_ok=True)
        if n % 20 == 19 or n + 1 == count:
            print(f"{n + 1:,} processes, {time.monotonic() - begin:.0f} s, exit codes {dict(codes)}, "
                  f"{len(faults)} faults", flush=True)
    return faults


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.fuzz", str(__doc__))
    if min(o.lines, o.files, o.processes, o.seed) < 0:
        raise UserError("--lines, --files, --processes and --seed must be at least 0")
    faults = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "place")
        make_place(place)
        resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY, resource.RLIM_INFINITY))
        for count, fuzz in ((o.lines, fuzz_lines), (o.files, fuzz_files), (o.processes, fuzz_processes)):
            faults += fuzz(count, o.seed, place) if count else Counter()
    for what, times in faults.most_common():
        print(f"\n{times} times: {what}")
    print(f"\n{o.lines:,} lines, {o.files:,} files, {o.processes:,} processes of seed {o.seed}: {len(faults)} faults")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
