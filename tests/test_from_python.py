"""`import gpt` in a notebook: from another folder, with the package installed or on the path."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import ENVIRONMENT, ROOT, TINY

PROGRAM = """
import gpt
import numpy as np
from tinygrad import Tensor
ids = Tensor(np.array([[0, 1, 2]], np.int32))
logits = []
for path in ("run", "hf", "llmc"):
    model, tokenizer = gpt.load(path)
    logits.append(model(ids).numpy())
    assert logits[-1].shape == (1, 3, model.config.vocab_size)
    assert np.abs(logits[-1] - logits[0]).max() < 1e-5, path
text = gpt.generate(model, tokenizer, "king", max_new_tokens=20)
assert text.startswith("king") and len(text) == 24, text
print("works from", path)
"""


def test_models_of_three_formats_load_and_write_from_another_folder(script, corpus: Path, tmp_path: Path) -> None:
    assert script("gpt.py", "--data", corpus, *TINY, "--steps", 2, "--out", "run").returncode == 0
    for kind in ("hf", "llmc"):
        assert script("gpt.py", "export", "--to", kind, "run", kind).returncode == 0
    path = os.pathsep.join(p for p in (str(ROOT), ENVIRONMENT.get("PYTHONPATH", "")) if p)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**ENVIRONMENT, "PYTHONPATH": path},
                          capture_output=True, text=True, check=False)
    assert done.stdout == "works from llmc\n", done.stdout + done.stderr
