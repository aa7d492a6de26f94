"""Lines of progress: one line that changes on a terminal, a list of lines in a log file or a pipe."""

import errno
import os
import shutil
import sys
import threading
import time
from typing import Any, TextIO


def counted(n: int, noun: str) -> str:
    """`1 layer`, `2,000 layers`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time for people: `8 s`, `3 min 05 s`, `2 h 10 min`."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


class Progress:
    """One line of progress: rewritten in place on a terminal, printed anew in a log file or a pipe."""

    def __init__(self, stream: TextIO | None = None):
        """Write to `stream`, by default to the standard output."""
        self.stream = stream or sys.stdout
        self.live = self.stream.isatty()
        self.shown = time.perf_counter()  # the time of the last line
        self.pending = 0  # width of the line that the next one must overwrite

    def show(self, line: str) -> None:
        """Show a passing state. On a terminal the next line takes its place."""
        self.shown = time.perf_counter()
        if self.live:
            line = line[: shutil.get_terminal_size().columns - 1]  # a line that wraps can't be overwritten
            self._write("\r" + line.ljust(self.pending))
            self.pending = len(line)
        else:
            self._write(line + "\n")

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self.shown = time.perf_counter()
        self._write(("\r" + line.ljust(self.pending) if self.pending else line) + "\n")
        self.pending = 0

    def end(self) -> None:
        """Leave the last passing line where it is and go on below it."""
        if self.pending:
            self._write("\n")
            self.pending = 0

    def clear(self) -> None:
        """Remove the last passing line."""
        if self.pending:
            self._write("\r" + " " * self.pending + "\r")
            self.pending = 0

    def _write(self, text: str) -> None:
        """Write and flush. If the terminal was closed, what follows goes nowhere: the work goes on."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


class Waiting:
    """`with Waiting(progress, text):` shows the seconds that pass while something runs that can't report by itself."""

    def __init__(self, progress: Progress, text: str):
        self.progress, self.text = progress, text
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        start = time.perf_counter()
        while not self.over.wait(1.0):
            self.progress.show(f"{self.text}  {duration(time.perf_counter() - start)}")

    def __enter__(self) -> None:
        self.progress.show(self.text)
        if self.progress.live:
            self.thread.start()

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        if self.progress.live:
            self.thread.join()
            self.progress.clear()
