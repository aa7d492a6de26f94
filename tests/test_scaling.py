"""Sweeps over size and compute: what they spend, that they go on, that processes share them; and the laws fitted."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad import Tensor

from commands.sweeps import claimed
from data.corpora import find_corpus
from data.encoding import encode_corpus
from gpt import GPTConfig
from runtime.errors import UserError
from trainer import Trainer

SWEEP = ["sweep", "--block-size", 8, "--batch-size", 2, "--compute", "3e7,6e7", "--sizes", "1x8,1x16", "--epochs", 99]


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text())["runs"]


def test_a_sweep_spends_each_level_of_compute_on_every_size_and_goes_on_where_it_was_stopped(
    gpt_py, corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    argv, original, taken = [*SWEEP, "--data", corpus, "--seeds", "0,1"], Trainer.take_step, []

    def take_step(self: Trainer) -> tuple[Tensor, Tensor]:
        taken.append(self.run.path.name)
        if len(taken) == 300:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Trainer, "take_step", take_step)
    with pytest.raises(SystemExit):
        gpt_py(*argv)
    printed = gpt_py(*argv)
    runs = results(tmp_path / "runs" / "sweep")
    assert len(runs) == 6 and len({r["setting"] for r in runs}) == 3  # 1x16 at 3e7 would take under 100 steps
    V = len(set(corpus.read_text()))
    for r in runs:
        config = GPTConfig(8, V, r["n_layer"], 1, r["n_embd"])
        assert r["parameters"] == config.parameters and r["n"] == config.parameters - 8 * r["n_embd"]
        assert r["flops"] == config.flops_per_token * r["tokens"] and r["tokens"] == 16 * r["steps"]
        assert r["flops"] == pytest.approx(r["level"], rel=0.01)
        assert taken.count(Path(r["run"]).name) == r["steps"]  # each step once, whatever was stopped
        assert r["val_loss"] < np.log(V) and Path(r["run"], "best.safetensors").is_file()
    assert printed.count(" left\n") >= 4 and printed.count("lowest") == 1
    gpt_py(*argv)
    assert len(taken) == sum(r["steps"] for r in runs)  # nothing is left to do


def test_processes_with_the_same_command_share_the_runs_and_each_is_made_once(
    script, corpus: Path, tmp_path: Path
) -> None:
    done = script("gpt.py", *SWEEP, "--data", corpus, "--jobs", 2, "--seeds", "0,1")
    assert done.returncode == 0, done.stderr
    runs = results(tmp_path / "runs" / "sweep")
    assert len(runs) == 6 and done.stdout.count("seed 1") == 3
    for r in runs:  # two trainings into one folder would have logged every step twice
        lines = Path(tmp_path, r["run"], "metrics.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in lines]
        assert steps == sorted(set(steps)) and steps[-1] == r["steps"]


def test_a_run_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "a", wait=False) as first, claimed(tmp_path / "a", wait=False) as second:
        assert first and not second
    with claimed(tmp_path / "a", wait=False) as free:
        assert free


@pytest.mark.parametrize(("flags", "says"), [
    (["--n-layer", 3], "--n-layer isn't an option of sweep"),
    (["--sizes", "3by4"], "LAYERSxCHANNELS"),
    (["--compute", "-1"], "--compute takes numbers above 0"),
    (["--compute", "1e3"], "no size suits"),
    (["--sizes", "1x0"], "--n-embd must be at least 1"),
    (["--tokenizer", "bpe-3"], "bpe-3 is too small"),
])
def test_a_sweep_that_makes_no_sense_is_one_sentence(flags: list[Any], says: str, gpt_py, corpus: Path) -> None:
    with pytest.raises(UserError, match=says):
        gpt_py("sweep", "--data", corpus, *flags)


def test_a_bpe_is_learned_from_the_training_part_and_ends_a_story_with_one_token(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("the cat sat.\n<|endoftext|>\n" * 90 + "zzzzzzzz\n<|endoftext|>\n" * 10)
    encoded = encode_corpus(find_corpus(str(path)), "bpe-280", tmp_path)
    assert encoded.tokenizer.decode(encoded.ids.tolist()) == path.read_text()
    assert (encoded.ids == encoded.tokenizer.special_tokens["<|endoftext|>"]).sum() == 100
    assert b" cat" in encoded.tokenizer.vocab.values() and b"zz" not in encoded.tokenizer.vocab.values()
    encoded.tokenizer.check_whole()
