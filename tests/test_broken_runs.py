"""Every script in plots/ that reads what a run left, and `report`, on run folders that are old, empty or broken."""

import contextlib
import functools
import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT, TINY
from matplotlib.figure import Figure
from test_plots import make_grok_run

from bigram import main as bigram_main
from commands import report
from commands.gpt import main as gpt_main
from runtime.errors import UserError

# Which kind of run each script reads, and which of its files.
WEIGHTS, TEXT, METRICS = "best.safetensors", "sample.txt", "metrics.jsonl"
SCRIPTS = {
    "ablation": ("gpt", [WEIGHTS]), "attention_maps": ("gpt", [WEIGHTS, TEXT]), "embeddings": ("gpt", [WEIGHTS]),
    "logit_lens": ("gpt", [WEIGHTS]), "loss_curves": ("gpt", [METRICS]), "report": ("gpt", [WEIGHTS, TEXT, METRICS]),
    "bigram_matrix": ("bigram", ["last.safetensors"]), "grok_curves": ("grok", [METRICS]),
    "grok_mechanism": ("grok", [METRICS, "000100.safetensors"]), "compare": ("compare", []),
    "grok_sweep": ("sweep", []),
}
QUICK = {"ablation": ["--windows", "4"], "logit_lens": ["--windows", "4"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Path]:
    """A folder with a good one of each kind, which is the working directory meanwhile."""
    folder = tmp_path_factory.mktemp("runs")
    with contextlib.chdir(folder):
        gpt_main(["--data", str(corpus), "--steps", "2", "--out", "gpt", *TINY])
        bigram_main(["--data", str(corpus), "--steps", "2", "--out", "bigram"])
        make_grok_run(folder / "grok")
        result = {"setting": "GPT-2", "seed": 0, "val_loss": 2.0, "tokens_per_s": 1.0, "frac": 0.3, "n_layer": 1,
                  "train_99": 100, "val_99": None, "step": 300, "clean_val_acc": 1.0, "clean_val_99": 200,
                  "parameters": 1, "steps": 2}
        for name, more in (("compare", {"compare": "x", "steps": 2}), ("sweep", {"sweep": "fraction"})):
            (folder / name).mkdir()
            (folder / name / "results.json").write_text(json.dumps({**more, "runs": [result]}))
        yield folder


def main_of(name: str) -> Callable[[list[str]], None]:
    return report.report if name == "report" else importlib.import_module(f"plots.{name}").main


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def without_new_names(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of an older version: without what later options are called, and with one that is gone."""
    kept = ("data", "seed", "steps", "n_layer", "n_head", "n_embd", "block_size", "op", "p", "frac", "wd", "prompt")
    config["options"] = {name: config["options"][name] for name in kept if name in config["options"]} | {"gone": 1}
    config["corpus"].pop("origin", None)
    return config


def damages(run: Path, names: list[str]) -> Iterator[Callable[[], object]]:
    """Ways in which a run folder's JSON, and the files of these names, can be wrong."""
    for path in sorted(p for p in run.rglob("*") if p.suffix == ".json" or p.name in names):
        data = path.read_bytes()
        wrong = [b"", data[: len(data) // 2], b"\xff\x00{]" + data]
        if path.suffix == ".json":
            saved = json.loads(data)
            values: tuple[Any, ...] = (7, {}, ["x"], {"n_layer": "4", "op": 3, "p": -1, "name": None})
            wrong += [b"[1]", *(json.dumps({**saved, name: value}).encode() for name, part in saved.items()
                                if isinstance(part, dict | list) for value in values)]
        if path.name == METRICS:
            lines = (b'{"step": "1"}', b'{"step": 3}', b"[]", b'{"step": 9, "val_loss": NaN}')
            wrong += [line + b"\n" + data for line in lines]
        yield path.unlink
        yield from (functools.partial(path.write_bytes, text) for text in wrong)


def touch(figure: Figure, path: str) -> None:
    plt.close(figure)
    Path(path).touch()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_folder_that_is_broken_in_any_file_ends_in_a_sentence_or_a_picture(
    runs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, names = SCRIPTS[name]
    out, run = runs / f"{name}.{'html' if name == 'report' else 'png'}", runs / f"{name}-broken"
    monkeypatch.setattr("plots.style.save", touch)
    monkeypatch.setattr("exchange.page.compiled_page", lambda: b"a program")
    monkeypatch.setattr("plots.attention_maps.head_kinds", lambda model: np.zeros((4, 1, 2)))
    main, refused = main_of(name), 0
    for i in range(len(list(damages(runs / kind, names)))):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(runs / kind, run)
        list(damages(run, names))[i]()
        out.unlink(missing_ok=True)
        try:
            main([str(run), *QUICK.get(name, []), "--out", str(out)])
            assert out.is_file()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error).strip() and not out.exists()
    assert refused >= 8


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_old_run_is_drawn_and_an_empty_or_a_foreign_folder_is_refused_by_its_name(
    runs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, _ = SCRIPTS[name]
    monkeypatch.setattr("exchange.page.compiled_page", lambda: b"a program")
    main, run = main_of(name), runs / f"{name}-old"
    out = runs / f"{name}.{'html' if name == 'report' else 'png'}"
    shutil.copytree(runs / kind, run)
    if (run / "config.json").is_file():
        change(run / "config.json", without_new_names)
    main([str(run), *QUICK.get(name, []), "--out", str(out)])
    assert out.stat().st_size > 1000
    (runs / "empty").mkdir(exist_ok=True)
    others = {"gpt": "grok", "grok": "gpt", "bigram": "gpt", "compare": "sweep", "sweep": "compare"}
    for path in ("empty", "nowhere") + ((others[kind],) if name != "report" else ()):
        with pytest.raises(UserError, match=path):
            main([str(runs / path)])


def test_no_script_that_opens_a_run_is_left_out() -> None:
    opening = [p.stem for p in (ROOT / "plots").glob("*.py") if re.search(r"Run\.open|open_subject\(o", p.read_text())]
    assert set(opening) - {"inside"} - set(SCRIPTS) == set()
