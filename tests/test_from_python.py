"""The lines that the README shows under "From Python", in a process and a folder of their own, and with other files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY

NAMED = "runs/NAME"  # the run in the README's lines


def python(folder: Path, *args: object) -> str:
    """What `python ARGS` prints in a folder from which nothing of this repository can be seen."""
    path = os.pathsep.join(filter(None, [str(ROOT), ENVIRONMENT.get("PYTHONPATH")]))
    environment = {**ENVIRONMENT, "PYTHONPATH": path, "DATA_DIR": str(folder / "data")}
    done = subprocess.run(
        [sys.executable, *map(str, args)], cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of a tiny model, on a text in which "ROMEO:" occurs, and the same model in other formats."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "play.txt").write_text("ROMEO: O night, sing to the cold bright star.\n" * 300, encoding="utf-8")
    python(folder, ROOT / "gpt.py", "--data", "play.txt", "--steps", 20, "--out", NAMED, *TINY)
    for to in ("hf", "llmc"):
        python(folder, ROOT / "gpt.py", "export", "--to", to, NAMED, to)
    return folder


def lines_of_the_readme() -> str:
    (lines,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    assert NAMED in lines
    return lines


def test_the_lines_of_the_readme_load_a_run_read_tokens_and_write_text(folder: Path) -> None:
    more = """
assert logits.shape == (1, 6, tokenizer.vocab_size), logits.shape
two = Tensor([tokenizer.encode("ROMEO: O"), tokenizer.encode("the star")])
assert model(two).numpy().shape == (2, 8, tokenizer.vocab_size)
short = [gpt.generate(model, tokenizer, "ROMEO:", max_new_tokens=5) for _ in range(2)]
assert short[0] == short[1] and len(short[0]) == 6 + 5 and short[0].startswith("ROMEO:"), short
"""
    (folder / "lines.py").write_text(lines_of_the_readme() + more, encoding="utf-8")
    printed = python(folder, "lines.py")
    assert printed.startswith("ROMEO:")
    assert len(printed) == 6 + 200 + 1


def test_exported_files_give_the_same_logits_and_the_same_text_as_the_run(folder: Path) -> None:
    lines = """
import sys
import gpt
import numpy as np
from tinygrad import Tensor

for i, source in enumerate(sys.argv[1:]):
    model, tokenizer = gpt.load(source)
    np.save(f"{i}.npy", model(Tensor([tokenizer.encode("ROMEO:")])).numpy())
    print(repr(gpt.generate(model, tokenizer, "ROMEO:", max_new_tokens=20)))
"""
    (folder / "three.py").write_text(lines, encoding="utf-8")
    texts = python(folder, "three.py", NAMED, "hf", "llmc/gpt2_124M.bin").splitlines()
    assert len(texts) == 3 and len(set(texts)) == 1
    run, hf, llmc = (np.load(folder / f"{i}.npy") for i in range(3))
    assert run.shape[:2] == (1, 6) and run.std() > 0
    assert np.array_equal(run, hf) and np.array_equal(run, llmc)
