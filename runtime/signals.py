"""What stops a program: Ctrl-C (SIGINT), SIGTERM, and a closed terminal (SIGHUP).

A script (see script.py) ends in one sentence, what `when_stopped` said last, and with exit code 128 + signal, once it
has imported this module. In a notebook, a test or a program of somebody else Python's own way stays: KeyboardInterrupt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
unfinished: set[str] = set()  # files that are being written under a temporary name: a stop removes them

_sentence = "stopped before it was done; nothing was saved, and the same command begins again"
is_script = _stopping = False
patience, name = 0.0, ""  # of a rank that isn't the first: how long it lets that one speak, and what it is called


def when_stopped(sentence: str) -> None:
    """What the user reads if the script is stopped from here on; nothing for an empty sentence."""
    global _sentence
    _sentence = sentence


def stop(number: int, frame: FrameType | None = None) -> None:
    """The handler of a signal: end the script at once. Elsewhere than in a script, raise KeyboardInterrupt.

    It raises nothing in a script, because Python drops an exception that comes while an object is freed.
    """
    global _stopping
    if not is_script:
        raise KeyboardInterrupt
    if not _stopping:  # the second time something below waits, like a pipe that nobody reads
        _stopping = True
        for path in list(unfinished):
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108  (pathlib is not imported yet)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # RuntimeError: it was just being written to
                stream.flush()
        time.sleep(patience)
        text = f"{name}{_sentence}\n" if _sentence else ""
        with contextlib.suppress(OSError):  # the terminal may be closed
            os.write(2, (("\n" if text and os.isatty(2) else "") + text).encode(errors="backslashreplace"))
    os._exit(128 + number)


@contextlib.contextmanager
def handled_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Meanwhile this function handles the signals that stop a program, but for those that its parent has it ignore."""
    previous = {n: signal.signal(n, handler) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A signal that comes meanwhile stops the program afterwards."""
    came: list[int] = []
    try:
        with handled_by(lambda number, frame: came.append(number)):
            yield
    finally:
        if came:
            stop(came[0])


def _take_over() -> None:
    """Take over the signals if the program is a script that ends with `run_main`."""
    global is_script
    file = getattr(sys.modules["__main__"], "__file__", None)
    with contextlib.suppress(OSError, ValueError):
        if file and "run_main(main)" in open(file, encoding="utf-8").read():  # noqa: PTH123, SIM115
            is_script = True
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as `nohup` and `&` in a shell script have it
                    signal.signal(number, stop)


_take_over()
