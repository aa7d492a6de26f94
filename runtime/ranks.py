"""Several processes that train one model, on one machine or many: the ranks of an MPI program.

    mpiexec -n 4 python gpt.py ...      (or srun, or a host file: all that starts MPI programs)

MPI, by mpi4py, is loaded only where a launcher has started more than one process: elsewhere a program is one rank alone
and nothing here costs anything. Rank 0 writes and prints; what the others print goes nowhere. Where one rank fails, the
sentence is said once and all of them end.

runtime/shares.py adds up gradients over the ranks. Between ranks go numbers, and JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from runtime import signals
from runtime.errors import UserError

Value = TypeVar("Value")

# What launchers tell a process: how many there are, and its number. MPICH and Intel MPI, Open MPI, Slurm's srun.
LAUNCHERS = (("PMI_SIZE", "PMI_RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
             ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"))
GRACE = 1.0  # seconds in which rank 0 says what all ranks would say

_mpi: Any = None  # mpi4py.MPI; None for a program alone
_world: Any = None  # all ranks
_apart = False  # whether each rank does work of its own
_neighbours: dict[int, int] = {}  # the process ids of the ranks on this machine
_leaving = False
_streams = (sys.stderr, 1)  # where the errors of this rank went before, and the number of its output


def launched(env: Mapping[str, str]) -> tuple[int, int]:
    """How many processes a launcher has started, and which of them this is; 1 and 0 without one."""
    for size, rank in LAUNCHERS:
        if env.get(size, "").isdecimal():
            return int(env[size]), int(env.get(rank) or 0)
    return 1, 0


def take_over() -> str:
    """Join the other ranks if a launcher has started some; what to say to the user where that can't be done.

    It comes before tinygrad is imported, which looks at how many cores there are.
    """
    global _mpi, _world, _streams
    size, rank = launched(os.environ)
    if size == 1:
        return ""
    say = lambda sentence: sentence if rank == 0 else " "
    if not find_spec("mpi4py"):
        return say(f"{size} processes were started to train together, which takes MPI: "
                   "`pip install -e '.[mpi]'` brings mpi4py and an mpiexec")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        return say(f"mpi4py can't be loaded ({' '.join(str(error).split())[:200]}); `pip install -e '.[mpi]'` brings "
                   "an MPI that fits it")
    if size != MPI.COMM_WORLD.size:
        library = MPI.Get_library_version().split("\n")[0].strip("\0 ")
        return say(f"{size} processes were started and mpi4py sees {MPI.COMM_WORLD.size}: start them with the mpiexec "
                   f"of the MPI that it is built on, which is {' '.join(library.split())[:60]}")
    _mpi, _world = MPI, MPI.COMM_WORLD
    here = _world.Split_type(MPI.COMM_TYPE_SHARED)
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, share_cores(exchange(mine, here), here.rank))
    _neighbours.update(dict(exchange([_world.rank, os.getpid()], here)))
    threading.Thread(target=_watch, daemon=True).start()
    sys.excepthook = _fail
    if _world.rank:
        signals.patience, signals.name = GRACE, f"rank {_world.rank}: "
        _streams = (sys.stderr, os.dup(1))
        _be_silent()
    return ""


def _be_silent() -> None:
    sys.stdout.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


def share_cores(cores: list[list[int]], rank: int) -> list[int]:
    """Which cores a rank of a machine uses. `cores` are those that each of its ranks may use: ranks that may use the
    same ones share them out, and what the launcher has bound to cores stays as it is."""
    same = [i for i, c in enumerate(cores) if c == cores[rank]]
    mine, n, k = cores[rank], len(same), same.index(rank)
    return mine[k * len(mine) // n : (k + 1) * len(mine) // n] or [mine[k % len(mine)]]


# ---- who is there ----


def size() -> int:
    """How many ranks work together: 1 for a program alone."""
    return 1 if _world is None or _apart else _world.size


def rank() -> int:
    """Which of them this is, from 0."""
    return 0 if _world is None or _apart else _world.rank


def first() -> bool:
    """Whether this is the rank that writes and prints."""
    return rank() == 0


def machines() -> int:
    """On how many machines the ranks are."""
    return sum(exchange(int(min(_neighbours) == rank()))) if size() > 1 else 1


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Meanwhile each rank works, writes and prints for itself."""
    global _apart
    if silent := not first():
        sys.stdout.flush()
        os.dup2(_streams[1], 1)
        sys.stderr = _streams[0]
    _apart = True
    try:
        yield
    finally:
        _apart = False
        if silent:
            _be_silent()


# ---- what they tell each other ----


def exchange(value: Any, group: Any = None) -> list[Any]:
    """The values of all ranks, in their order; each is anything that JSON has."""
    group = group or _world
    text = json.dumps(value).encode()
    sizes = (ctypes.c_longlong * group.size)()
    group.Allgather([ctypes.c_longlong(len(text)), _mpi.INT64_T], [sizes, _mpi.INT64_T])
    got = bytearray(sum(sizes))
    group.Allgatherv([text, _mpi.BYTE], [got, list(sizes), _mpi.BYTE])
    ends = [sum(sizes[: i + 1]) for i in range(group.size)]
    return [json.loads(got[end - n : end]) for end, n in zip(ends, sizes)]


def from_first(make: Callable[[], Value]) -> Value:
    """What make() returns on rank 0, which alone calls it; anything that JSON has."""
    if size() == 1:
        return make()
    return exchange(make() if first() else None)[0]


@contextlib.contextmanager
def first_before_the_others() -> Iterator[None]:
    """Rank 0 does this before the other ranks do: they find the files that it makes."""
    if size() > 1 and not first():
        _world.Barrier()
    yield
    if size() > 1 and first():
        _world.Barrier()


def largest(number: int) -> int:
    """The largest of the ranks' numbers."""
    if size() == 1:
        return number
    value = ctypes.c_longlong(number)
    with _answering():
        _world.Allreduce(_mpi.IN_PLACE, [value, _mpi.INT64_T], _mpi.MAX)
    return value.value


def sum_in_place(address: int, count: int) -> None:
    """Add up `count` float32 numbers at an address over all ranks, in place: each then has the sum."""
    with _answering():
        memory = _mpi.buffer.fromaddress(address, 4 * count)
        _world.Allreduce(_mpi.IN_PLACE, [memory, _mpi.FLOAT], _mpi.SUM)


@functools.lru_cache
def reaches_gpus() -> bool:
    """Whether this MPI says that it reads and writes the memory of NVIDIA's GPUs by itself."""
    with contextlib.suppress(OSError):  # its library is loaded already; Open MPI and MPICH both have this function
        lines = Path("/proc/self/maps").read_text().splitlines()
        for library in {line.split()[-1] for line in lines if "/libmpi" in line}:
            if ask := getattr(ctypes.CDLL(library), "MPIX_Query_cuda_support", None):
                return bool(ask())
    return False


def copy_from_first(address: int, nbytes: int) -> None:
    """Give all ranks what rank 0 has at an address of its memory."""
    with _answering():
        _world.Bcast([_mpi.buffer.fromaddress(address, nbytes), _mpi.BYTE])


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """A rank that is gone is an error which the user can't help."""
    try:
        yield
    except _mpi.Exception as error:
        raise UserError(f"another rank doesn't answer any more ({error})") from error


# ---- how they end ----


def _watch() -> None:
    """Look after the ranks of this machine. Most launchers end all ranks when one dies; srun without -K doesn't."""
    while True:
        time.sleep(0.5)
        for number, pid in _neighbours.items():
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                if not _leaving:
                    gone = f"rank {number} died; go on with --resume, with as many ranks or another number"
                    end(1, gone, GRACE * sorted(set(_neighbours) - {number}).index(_world.rank))
            except OSError:
                pass


def end(code: int, sentence: str = "", wait: float | None = None) -> NoReturn:
    """End every rank at once: with a sentence, if this rank is the first to say it."""
    if sentence:
        time.sleep(signals.patience if wait is None else wait)  # as a rule rank 0 says the same, and ends this one
        name = os.path.basename(sys.argv[0])  # noqa: PTH119
        os.write(2, f"{name}: {signals.name}{sentence}\n".encode(errors="backslashreplace"))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    time.sleep(0.2)  # a launcher may drop what it hasn't passed on when it ends the ranks
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # MPI would add lines of its own
    _world.Abort(code)
    os._exit(code)


def leave() -> None:
    """Wait for the other ranks at the end of the program, which all of them reach."""
    global _leaving
    if _world is not None:
        _leaving = True
        _world.Barrier()


def _fail(kind: Any, error: Any, trace: Any) -> None:
    """A bug in one rank: its traceback, and the end of all."""
    sys.stderr = _streams[0] if _world.rank else sys.stderr
    sys.__excepthook__(kind, error, trace)
    end(1)


def together() -> bool:
    """Whether this is one of several ranks, also while each works apart."""
    return _world is not None
