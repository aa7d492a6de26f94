"""The measurement of fine-tuning: every way begins with the very base, trains what it says, and is done only once."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from tinygrad.nn.state import get_state_dict

from benchmarks import finetuning
from data.plays import NINE_PLAYS, read_plays, render_others, render_play
from gpt import GPTConfig
from plots import finetuning as picture
from runtime.errors import UserError

METHODS = ("LoRA, rank 8, and the head", "from scratch")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of a tiny model on tiny texts."""
    folder = tmp_path_factory.mktemp("finetuning")
    (folder / "stories.txt").write_text("Once upon a time a cat sat on a mat. " * 400, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "CONFIG", GPTConfig(16, 300, 1, 2, 16))
        patch.setattr(finetuning, "WINDOWS", 12)
        patch.setattr(finetuning, "render_others", lambda: "KING:\nWhat say you, cousin, of the bloody war?\n\n" * 400)
        command = ["--seeds", "0", "--steps", "4", "--values", "; ".join(METHODS), "--stories",
                   str(folder / "stories.txt"), "--out", str(folder / "out")]
        finetuning.main(command)
        before = (folder / "out" / "results.json").read_bytes()
        patch.setattr(finetuning, "prepare", None)  # nothing is trained a second time
        finetuning.main(command)
        assert (folder / "out" / "results.json").read_bytes() == before
    return folder / "out"


def test_every_way_begins_with_the_losses_of_its_base_and_trains_what_it_says(results: Path) -> None:
    runs = json.loads((results / "results.json").read_text())["runs"]
    bases = {run["old"]: run["curve"][-1] for run in runs if run["method"] == finetuning.BASE}
    ways = [run for run in runs if run["method"] != finetuning.BASE]
    assert len(ways) == 2 * len(METHODS) and set(bases) == {"plays", "stories"}
    for run in ways:
        assert [point["step"] for point in run["curve"]] == [0, 1, 2, 4]
        for text in bases:
            same = run["curve"][0][text] == pytest.approx(bases[run["old"]][text], abs=1e-5)
            assert same == (run["method"] != "from scratch")
    table = 300 * 16
    trained = {run["method"]: run["trained"] for run in ways}
    assert trained["LoRA, rank 8, and the head"] == table + 8 * (16 + 48) + 8 * (16 + 16) + 8 * (64 + 16)
    assert trained["from scratch"] == GPTConfig(16, 300, 1, 2, 16).parameters
    assert all(run["memory_mb"] > 0 and run["seconds_per_step"] > 0 for run in runs)


def test_the_head_alone_leaves_the_embedding_as_it_is(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "CONFIG", GPTConfig(16, 300, 1, 2, 16))
    model, params = finetuning.prepare(finetuning.METHODS["the head alone"], results / "plays-seed0.safetensors", 0)
    whole = get_state_dict(model)
    assert list(params) == ["lm_head.weight"] and params["lm_head.weight"] is whole["lm_head.weight"]
    head, table = params["lm_head.weight"], whole["wte.weight"]
    assert head.uop is not table.uop and np.array_equal(head.numpy(), table.numpy())


def test_the_picture_has_the_mean_losses_of_every_way(results: Path, tmp_path: Path, drawn: list[Figure]) -> None:
    picture.draw(picture.read(results), tmp_path / "f.png")
    runs = {(r["old"], r["method"]): r for r in picture.read(results)}
    upper, _, lower, _ = drawn[-1].axes
    assert upper.get_title(loc="left") == "From the plays to the stories" and len(upper.lines) == len(METHODS) - 1
    lines = {line.get_label(): line for line in lower.lines}
    assert set(lines) == set(METHODS)
    for method, line in lines.items():
        curve = runs["plays", method]["curve"]
        assert np.allclose(line.get_ydata(), [point["stories"] for point in curve])
    with pytest.raises(UserError, match="benchmarks.finetuning"):
        picture.read(tmp_path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(picture.style, "save", lambda figure, out: figures.append(figure))
    return figures


def test_the_other_plays_are_all_but_the_nine_of_tinyshakespeare() -> None:
    others, plays = render_others(), read_plays()
    assert len(plays) == 38 and "To be, or not to be: that is the question:" in others
    nine = [render_play(plays[name]) for name in NINE_PLAYS]
    assert all(text not in others for text in nine)
    assert len(others) == sum(len(render_play(text)) + 1 for name, text in plays.items() if name not in NINE_PLAYS) - 1
