"""Several ranks of MPI train the model that one process trains, and end together."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY

from benchmarks.kills import gone, ranks_of
from runtime.run import Run

pytest.importorskip("mpi4py", reason="mpi4py isn't installed: pip install -e '.[mpi]'")
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
if not MPIEXEC:
    pytest.skip("there is no mpiexec: pip install -e '.[mpi]'", allow_module_level=True)


@pytest.fixture
def mpiexec(corpus: Path, tmp_path: Path):
    """Start `mpiexec -n N python gpt.py ARGS` on a small text, in an empty folder."""

    def start(count: int, *args: object, script: str = "gpt.py") -> subprocess.Popen[str]:
        head = [str(MPIEXEC), "-n", str(count)] if count else []
        tail = [] if script != "gpt.py" or "--resume" in args else ["--data", str(corpus), *TINY, "--device", "cpu"]
        env = {**ENVIRONMENT, "DATA_DIR": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}
        command = [*head, sys.executable, str(ROOT / script), *tail, *map(str, args)]
        return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    return start


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, (out, err)
    return out, err


def losses(folder: Path) -> np.ndarray:
    """The loss of every step."""
    lines = Run(folder).metrics("train_loss")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([line["train_loss"] for line in lines])


def val_losses(folder: Path) -> np.ndarray:
    return np.array([line["val_loss"] for line in Run(folder).metrics("val_loss")])


def test_two_and_three_ranks_have_the_losses_of_one_also_with_accumulation_dropout_and_a_batch_that_they_dont_divide(
    mpiexec, tmp_path: Path
) -> None:
    common = ["--steps", 100, "--eval-interval", 50, "--dropout", 0.1, "--grad-accum", 2, "--lr", 1e-2]
    out, err = finish(mpiexec(0, *common, "--out", "one"))
    one = losses(tmp_path / "one")
    assert one[-1] < one[0] - 0.3 and "ranks" not in out
    for count in (2, 3):  # 4 windows: 2 and 2, or 1, 1 and 2
        out, err = finish(mpiexec(count, *common, "--out", f"{count}"))
        assert f"ranks    {count}, on machines: 1" in out
        assert out.count("best validation loss") == 1 and err.count("warm-up") == 1  # one rank speaks
        np.testing.assert_allclose(losses(tmp_path / f"{count}"), one, rtol=0, atol=1e-6)
        np.testing.assert_allclose(val_losses(tmp_path / f"{count}"), val_losses(tmp_path / "one"), rtol=0, atol=1e-7)


def hold_together(
    mpiexec, folder: Path, *arguments: object, learned: float, counts: tuple[int, ...] = (2, 3)
) -> None:
    """The losses of so many ranks are those of one process, in which something is learned."""
    for count in (0, *counts):
        finish(mpiexec(count, *arguments, "--out", f"{count}"))
    one = losses(folder / "0")
    assert one[-1] < one[0] - learned
    for count in counts:
        np.testing.assert_allclose(losses(folder / f"{count}"), one, rtol=0, atol=1e-6)
        np.testing.assert_allclose(val_losses(folder / f"{count}"), val_losses(folder / "0"), rtol=0, atol=1e-7)
        shutil.rmtree(folder / f"{count}")
    shutil.rmtree(folder / "0")


def test_adapters_learn_the_same_on_any_number_of_ranks(mpiexec, tmp_path: Path) -> None:
    finish(mpiexec(0, "--steps", 20, "--eval-interval", 20, "--out", "base"))
    hold_together(mpiexec, tmp_path, "--init-from", "base", "--lora-rank", 4, "--steps", 40, "--eval-interval", 40,
                  "--dropout", 0.1, "--lr", 1e-2, learned=0.01)


def test_answers_of_all_lengths_weigh_the_same_on_any_number_of_ranks_and_in_any_of_the_batches_added_up(
    mpiexec, tmp_path: Path
) -> None:
    """A share's mean over its own targets would count those of a share with few of them more."""
    turns = lambda i: [{"role": "user", "content": "abcdefgh"[: i % 8 + 1]}, {"role": "assistant", "content": "ba" * i}]
    lines = [json.dumps({"messages": turns(i)}) for i in range(1, 12)] * 8
    (tmp_path / "talk.jsonl").write_text("\n".join(lines), encoding="utf-8")
    common = ["--data", "talk.jsonl", "--tokenizer", "char", "--steps", 20, "--eval-interval", 20, "--lr", 1e-2]
    hold_together(mpiexec, tmp_path, *common, learned=0.1)
    hold_together(mpiexec, tmp_path, *common, "--grad-accum", 3, learned=0.1, counts=(2,))


def started(process: subprocess.Popen[str], text: str) -> str:
    """What the program has printed once this text is there."""
    out = ""
    while text not in out:
        line = process.stdout.readline()  # type: ignore[union-attr]
        assert line, (out, process.communicate(timeout=20))
        out += line
    return out


def sentences(err: str) -> list[str]:
    """What we say, and not mpiexec."""
    launchers = ("[mpiexec", "=", "YOUR APPLICATION", "This typically", "Please see the FAQ")
    return [line for line in err.splitlines() if line.strip() and not line.startswith(launchers)]


CONSTANT = ["--warmup", 0, "--min-lr", 1e-3]
ENDLESS = [*CONSTANT, "--steps", 100_000, "--eval-interval", 100_000, "--out", "run"]


def test_ctrl_c_saves_once_and_another_number_of_ranks_goes_on_and_a_signal_to_one_rank_stops_all(
    mpiexec, tmp_path: Path
) -> None:
    process = mpiexec(2, *ENDLESS)
    started(process, "step      5/")
    process.send_signal(signal.SIGINT)  # mpiexec passes it on to all, as it does with Ctrl-C
    out, err = finish(process, 128 + signal.SIGINT)
    assert out.count("and saved; go on with:") == 1 and not sentences(err), (out, err)

    process = mpiexec(3, "--resume", "run")
    started(process, f"step {len(losses(tmp_path / 'run')) + 20:>6}/")
    os.kill(ranks_of(process.pid)[1], signal.SIGTERM)
    out, err = finish(process, 128 + signal.SIGTERM)
    assert out.count("and saved; go on with:") == 1 and not sentences(err), (out, err)

    got = losses(tmp_path / "run")
    finish(mpiexec(0, *CONSTANT, "--steps", len(got), "--eval-interval", 100_000, "--out", "whole"))
    np.testing.assert_allclose(got, losses(tmp_path / "whole"), rtol=0, atol=1e-6)


def test_a_mistake_is_said_once_and_ends_all_ranks(mpiexec) -> None:
    for args in (["--batch-size", 2], ["--nonsense"]):
        out, err = finish(mpiexec(3, *args, "--out", "run"), 2)
        assert len(sentences(err)) == 1 and sentences(err)[0].startswith("gpt.py: "), err


def test_kill_9_of_a_rank_ends_the_others_and_resume_has_the_losses_of_an_unbroken_run(mpiexec, tmp_path: Path) -> None:
    process = mpiexec(2, *CONSTANT, "--steps", 100_000, "--eval-interval", 20, "--out", "run")
    started(process, "step     47/")
    pids = ranks_of(process.pid)
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    while not all(map(gone, pids.values())):
        assert time.monotonic() - began < 10, "a rank goes on"
        time.sleep(0.05)
    process.communicate(timeout=20)
    finish(mpiexec(2, "--resume", "run", "--steps", 60))
    finish(mpiexec(2, *CONSTANT, "--steps", 60, "--eval-interval", 20, "--out", "whole"))
    assert np.array_equal(losses(tmp_path / "run"), losses(tmp_path / "whole"))


def test_a_sweep_hands_its_runs_to_the_ranks_each_once(mpiexec, tmp_path: Path) -> None:
    args = ["sweep", "fraction", "--values", "0.5; 0.6", "--steps", 3, "--seeds", "0,1", "--out", "sweep"]
    out, _ = finish(mpiexec(2, *args, "--device", "cpu", script="grok.py"))
    assert out.count("weren't learned") == 4 and out.count("clean at the end") == 1, out
    runs = json.loads((tmp_path / "sweep" / "results.json").read_text())["runs"]
    assert [(r["setting"], r["seed"]) for r in runs] == [("0.5", 0), ("0.5", 1), ("0.6", 0), ("0.6", 1)]


def test_a_mistake_or_a_bug_of_one_rank_is_told_and_ends_all_ranks(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    mistake, bug = ("UserError('no text')", 2, "program.py: rank 1: no text\n"), ("ValueError(7)", 1, "ValueError: 7\n")
    for error, code, told in (mistake, bug):
        program.write_text(f"""
from runtime.script import run_main
from runtime import ranks
from runtime.errors import UserError
def main(argv):
    if ranks.rank() == 1:
        raise {error}
    ranks.largest(1)  # waits for the other
if __name__ == "__main__":
    run_main(main)
""")
        process = subprocess.Popen([str(MPIEXEC), "-n", "2", sys.executable, str(program)], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)})
        _, err = finish(process, code)
        assert err.endswith(told) and ("Traceback" in err) == (code == 1), err
