"""The pictures show what the run folders hold."""

from pathlib import Path

import pytest

from checkpoint import Run
from cli import UserError
from plots import loss_curves


def make_run(folder: Path, evaluations: bool = True) -> Run:
    run = Run.new(folder, "gpt")
    run.write_config({"kind": "gpt", "options": {}, "model": {}, "tokenizer": {}, "corpus": {}})
    for step in range(1, 41):
        line = {"step": step, "tokens": 10 * step, "train_loss": 4 / step}
        if evaluations and step % 10 == 0:
            line |= {"train_eval_loss": 4 / step, "val_loss": [3.0, 2.0, 2.5, 3.0][step // 10 - 1]}
        run.log(line)
    return run


@pytest.mark.parametrize("x", ["step", "tokens"])
def test_loss_curves_of_one_and_of_two_runs_are_written(tmp_path: Path, x: str) -> None:
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", evaluations=False)]
    for n in (1, 2):
        out = tmp_path / f"{n}.png"
        loss_curves.draw(runs[:n], x, out)
        assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 10_000


def test_a_run_without_metrics_is_refused(tmp_path: Path) -> None:
    run = Run.new(tmp_path / "empty", "gpt")
    with pytest.raises(UserError, match="has logged nothing yet"):
        loss_curves.draw([run], "step", tmp_path / "x.png")


def test_divergence_is_where_validation_turns_up_while_train_still_falls() -> None:
    assert loss_curves.divergence([4, 3, 2, 1], [4, 3, 3.5, 4]) == 1
    assert loss_curves.divergence([4, 3, 2, 1], [4, 3, 2.5, 2.4]) is None  # still getting better
    assert loss_curves.divergence([4, 3, 3, 3], [4, 3, 3.5, 4]) is None  # train doesn't fall any more
    assert loss_curves.divergence([4, 3, 2, 1], [4, 3, 3.005, 3.009]) is None  # no more than noise


def test_the_script_runs_from_any_folder_and_says_how_to_make_a_run(script, tmp_path: Path) -> None:
    done = script("plots/loss_curves.py")
    assert done.returncode == 2 and "python gpt.py" in done.stderr and "Traceback" not in done.stderr
    make_run(tmp_path / "runs" / "one")
    assert script("plots/loss_curves.py", "--out", "a.png").returncode == 0 and (tmp_path / "a.png").is_file()
