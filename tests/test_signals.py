"""Ctrl-C, a closed terminal, a full disk, a folder that is gone: one sentence, the right exit code, nothing lost."""

from runtime.script import run_main

import ast
import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY
from test_trainer import options, trainer
from tinygrad import Tensor

from benchmarks.interrupts import Ended, fault, goes_on, in_terminal
from runtime import signals
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**ENVIRONMENT, "DATA_DIR": str(tmp_path / "data"), "COLUMNS": "200"}


def run_tiny(corpus: Path, steps: int, every: int) -> list[str]:
    """The command line of a run that takes a second after it is compiled."""
    numbers = ["--steps", str(steps), "--eval-interval", str(every)]
    return [str(ROOT / "gpt.py"), "--data", str(corpus), "--out", "out", *TINY, *numbers]


# ---- Ctrl-C ----


@pytest.mark.parametrize("script", ["gpt.py", "tokenizer.py"])
def test_ctrl_c_while_a_script_still_imports_is_one_sentence_and_the_same_command_works(
    script: str, corpus: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    argv = run_tiny(corpus, 2, 2)
    if script == "tokenizer.py":  # on a text of no words, which takes it seconds
        letters = np.random.default_rng(0).choice(list("etaoinshrdlu"), 400_000)
        (tmp_path / "letters.txt").write_text("".join(letters), encoding="utf-8")
        argv = [str(ROOT / script), "train", "letters.txt", "--vocab-size", "3000", "--out", "out"]
    for moment in np.arange(0.02, 5, 0.02):
        ended = in_terminal(argv, tmp_path, environment, moment)
        if not ended.before_the_script:
            break
        shutil.rmtree(tmp_path / "out", ignore_errors=True)  # Python drops some, and the program goes on
        for path in tmp_path.glob("out.*"):
            path.unlink()
    assert not fault(ended), ended
    assert not goes_on(ended, argv, tmp_path, environment)


def test_ctrl_c_while_the_first_step_compiles_stops_at_once_and_the_run_goes_on(
    corpus: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    argv = run_tiny(corpus, 2, 2)
    ended = in_terminal(argv, tmp_path, {**environment, "XDG_CACHE_HOME": str(tmp_path / "cold")}, "compiling")
    assert not fault(ended) and "no step was saved, begin again with" in ended.last_line, ended
    assert not goes_on(ended, argv, tmp_path, environment)
    assert [line["step"] for line in Run(tmp_path / "out").metrics()] == [1, 2]


def test_ctrl_c_does_not_reach_the_compiler_of_an_evaluation_after_which_the_run_is_saved(
    corpus: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    cold = {**environment, "XDG_CACHE_HOME": str(tmp_path / "cold")}
    ended = in_terminal(run_tiny(corpus, 50, 1), tmp_path, cold, "evaluating")
    assert not fault(Ended(ended.code, ended.text.replace("stopping", ""), 0)), ended
    assert "stopped at step 1 and saved" in ended.last_line
    assert load_safetensors(tmp_path / "out" / "state.safetensors")[1]["step"] == 1


def test_once_a_folder_holds_a_run_a_stop_says_how_to_resume_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes while config.json is being written: nothing is lost, and the sentence is the new one."""
    monkeypatch.setattr(signals, "_sentence", "the same command begins again")
    run, write = Run.new(tmp_path / "a run", "gpt"), Run.write_text

    def interrupted(run: Run, name: str, text: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(run, name, text)

    monkeypatch.setattr(Run, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.write_config({"kind": "gpt"})
    assert Run.holds_one(run.path) and signals._sentence.startswith("stopped; go on with: ")
    assert signals._sentence.endswith(f"--resume '{run.path}'")


# ---- the terminal is closed ----


def without_hangup(argv: Sequence[str]) -> list[str]:
    """The program as `nohup` starts it."""
    ignore = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    return ["-c", ignore + "os.execv(sys.argv[1], sys.argv[1:])", *argv]


def test_a_closed_terminal_saves_the_run(corpus: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    ended = in_terminal(run_tiny(corpus, 100_000, 100_000), tmp_path, environment, "step     20/", close=True)
    assert ended.code == 128 + signal.SIGHUP, ended
    assert load_safetensors(tmp_path / "out" / "state.safetensors")[1]["step"] >= 20


def test_a_run_that_ignores_hangups_survives_its_terminal(
    corpus: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    argv = without_hangup([sys.executable, *run_tiny(corpus, 300, 300)])
    ended = in_terminal(argv, tmp_path, environment, "compiling", close=True)
    assert ended.code == 0 and (tmp_path / "out" / "sample.txt").is_file(), ended


# ---- who takes over the signals ----


def test_elsewhere_than_in_a_script_ctrl_c_stays_pythons_own() -> None:
    assert not signals.is_script and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signals.stop(signal.SIGINT)


def test_every_script_takes_over_the_signals_before_any_other_import() -> None:
    paths = [p for folder in (ROOT, ROOT / "plots", ROOT / "benchmarks") for p in folder.glob("*.py")]
    scripts = [p for p in paths if "\n    run_main(main)" in p.read_text(encoding="utf-8")]
    assert {"gpt.py", "grok.py", "bigram.py", "tokenizer.py"} <= {p.name for p in scripts}
    for path in scripts:
        imports = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        first = [ast.unparse(n) for n in imports if "__future__" not in ast.unparse(n)][0]
        assert first == "from runtime.script import run_main", path


# ---- disks and folders ----


def test_a_full_disk_under_the_metrics_is_one_sentence(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options())
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl can't be written \(No space left on device\)"):
        t.train()


def test_a_full_disk_under_the_output_is_one_sentence(
    corpus: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, str(ROOT / "tokenizer.py"), "encode", str(corpus)]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True,
                              check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "No space left on device" in done.stderr, done


def test_a_full_disk_under_the_cache_of_kernels_is_one_sentence(
    corpus: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    limited = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); "
    argv = [sys.executable, "-c", limited + "os.execv(sys.argv[1], sys.argv[1:])", sys.executable]
    done = subprocess.run([*argv, *run_tiny(corpus, 2, 2)], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={**environment, "XDG_CACHE_HOME": str(tmp_path / "cold")})
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("gpt.py: the cache of kernels"), done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_folder_that_is_removed_while_it_trains_is_one_sentence(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options())
    original = t.take_step

    def take_step() -> tuple[Tensor, Tensor]:
        if t.step == 5:
            shutil.rmtree(tmp_path / "run")
        return original()

    t.take_step = take_step
    with pytest.raises(UserError, match=r"metrics\.jsonl can't be written \(No such file or directory\)"):
        t.train()


def test_a_run_folder_that_is_gone_does_not_come_back_without_its_config(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options())
    shutil.rmtree(tmp_path / "run")
    for write in (t.save, lambda: t.run.write_text("sample.txt", ""), lambda: t.run.save("snapshots/000001", {}, {})):
        with pytest.raises(UserError, match="can't be written .No such file or directory"):
            write()
    assert not (tmp_path / "run").exists()


def test_a_current_folder_that_is_gone_is_one_sentence(environment: dict[str, str]) -> None:
    program = "cd $(mktemp -d) && rmdir $PWD && exec " + shlex.join([sys.executable, str(ROOT / "gpt.py"), "sample"])
    done = subprocess.run(["sh", "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "is gone" in done.stderr, done.stderr


@pytest.mark.parametrize("number", [errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT])
def test_a_file_that_cannot_be_read_is_one_sentence_whoever_opens_it(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str]) -> None:
        raise OSError(number, os.strerror(number), "some/file")

    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2 and capsys.readouterr().err.endswith(f": some/file: {os.strerror(number)}\n")


def test_a_reader_of_the_progress_that_ends_early_loses_no_step(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", options(steps=9, eval_interval=9))

    def show(line: str) -> None:
        if t.step == 7:
            raise BrokenPipeError

    t.progress.show = show
    with pytest.raises(BrokenPipeError):
        t.train()
    assert t.run.load("state")[1]["step"] == 7


# ---- several at once ----


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda format: "now")
    paths = [Run.new(None, "gpt").path for _ in range(3)]
    assert [str(path) for path in paths] == ["runs/gpt-now", "runs/gpt-now-2", "runs/gpt-now-3"]
    assert all(path.is_dir() for path in paths)
