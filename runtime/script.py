"""How a script runs: signals, errors and exit codes.

A script imports `run_main` from here before anything else, as NumPy and tinygrad take a second to import: from then on
Ctrl-C ends it in one sentence. Before that Ctrl-C is Python's own, which may drop it while it imports a module.
"""

from __future__ import annotations  # so that an older Python gets as far as the sentence for it

from runtime import signals  # first, as it takes Ctrl-C over, and what is below takes 10 ms

# isort: split
import errno
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

from runtime import ranks
from runtime.errors import UserError
from runtime.explain import explain

NEEDS = ("numpy", "tinygrad", "regex")  # what every script imports next


def check_python(version: tuple[int, ...], missing: Sequence[str]) -> str:
    """What to say to the user of a Python that can't run this; nothing if it can."""
    if version < (3, 11):
        return (f"this is Python {version[0]}.{version[1]} ({sys.executable}), and it takes 3.11 or newer: "
                "use python3.11 -m venv .venv")
    if missing:
        return (f"{missing[0]} isn't installed for this Python ({sys.executable}): type .venv/bin/python in its place, "
                "or make that with python3 -m venv .venv && .venv/bin/pip install -e '.[test]'")
    return ""


# Those of tinygrad's that a user may set. It stops with a traceback at one that isn't a number.
NUMBERS = ("DEBUG", "BEAM", "JIT", "JITBEAM", "NOOPT", "CACHELEVEL", "PROFILE", "VIZ", "TC", "CPU_COUNT", "PARALLEL",
           "CCACHE", "TRACEMETA", "IMAGE", "FLOAT16")


def check_variables(env: Mapping[str, str]) -> str:
    """What to say to the user of a variable that tinygrad can't read; nothing if there is none."""
    wrong = next((name for name in NUMBERS if not env.get(name, "0").strip().lstrip("+-").isdecimal()), None)
    return f"{wrong}={env[wrong]} isn't a number, which tinygrad wants there: unset {wrong}" if wrong else ""


if signals.is_script and (
    _wrong := check_python(sys.version_info[:2], [n for n in NEEDS if not find_spec(n)])
    or check_variables(os.environ)
    or ranks.take_over()
):
    if not _wrong.isspace():  # another rank says it
        print(f"{os.path.basename(sys.argv[0])}: {_wrong}", file=sys.stderr)  # noqa: PTH119
    sys.exit(2)


def run_main(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Call `main` with the arguments of the command line, and exit.

    A UserError becomes one line on stderr and exit code 2, and so do a file that can't be read or written and a device
    that fails. Any other error keeps its traceback. A character that the terminal's encoding lacks is written as an
    escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code: Any = 0
    failed: BaseException | None = None  # what a device said
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        code, failed = _refuse(str(error)), error.__cause__
    except SystemExit as stopped:
        code = stopped.code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # `python gpt.py sample | head`: the reader has gone, and that is not an error
        _drop_output()
    except OSError as error:
        if error.filename:
            code = _refuse(f"{os.fsdecode(error.filename)}: {error.strerror}")
        elif error.errno == errno.ENOENT:  # os.getcwd, which names no file
            code = _refuse("the folder that this is started in is gone: change to another")
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            _drop_output()
            code = _refuse(f"the output can't be written: {error.strerror}")
        else:
            raise
    except (MemoryError, RuntimeError) as error:
        if not (sentence := explain(error)):
            raise
        code, failed = _refuse(sentence), error
    except Exception as error:
        if type(error).__module__ != "sqlite3":  # which tinygrad keeps compiled kernels with
            raise
        code = _refuse(f"the cache of kernels can't be used ({error}); free some space, or set XDG_CACHE_HOME")
    if failed and explain(failed):  # end without tinygrad's clean-up, which would ask the device for all that it frees
        sys.stdout.flush()
        os._exit(code)
    if signals.is_script:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but the end of Python itself
    ranks.leave()
    sys.exit(code)


def _refuse(sentence: str) -> int:
    if ranks.together():
        ranks.end(2, sentence)
    print(f"{os.path.basename(sys.argv[0])}: {sentence}", file=sys.stderr)  # noqa: PTH119  (pathlib is slow to import)
    return 2


def _drop_output() -> None:
    """Send what is still to be written nowhere, so that Python doesn't try again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
