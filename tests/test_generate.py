"""Generation with the cache against a model without one, choices against their definitions, whole characters."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
from conftest import ENVIRONMENT, ROOT, TINY, perturbed
from tinygrad.nn.state import get_state_dict

from commands.gpt import main
from generate import Choice, Sampler, Text, stream
from gpt import GPT, GPTConfig
from runtime.compiled import jit
from tokenizer import CharTokenizer, GPT2Tokenizer

LETTERS = CharTokenizer("abcdefghijk")
PROMPTS = [[2, 0, 1], [5], [3, 3, 7, 10, 4]]


def uncached(model: GPT, prompt: list[int], new: int, keep: int | None = None) -> list[int]:
    """Greedy tokens of the double-precision model, which sees each text anew: the newest block_size tokens, or with
    `keep` a window that begins `keep` tokens back whenever it would grow beyond the block."""
    weights, T, nh = {k: p.numpy().astype(np.float64) for k, p in get_state_dict(model).items()}, 6, 2
    ids, start = list(prompt), 0
    for _ in range(new):
        if len(ids) - start > T:
            start = len(ids) - (keep or T)
        ids.append(int(reference.logits(weights, np.array([ids[start:]]), 2, nh)[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("keep", [None, 3, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_greedy_texts_are_those_without_a_cache_far_beyond_the_block(bias: bool, keep: int | None) -> None:
    """One text, and three that begin at different lengths: each is what it would be alone."""
    model = perturbed(GPT(GPTConfig(6, 11, 2, 2, 8, bias=bias)))
    for prompts in (PROMPTS[:1], PROMPTS):
        texts = ["" for _ in prompts]
        for i, piece in stream(model, LETTERS, prompts, 16, Choice(0), seeds=range(3), keep=keep):
            texts[i] += piece
        alone = [LETTERS.decode(uncached(model, prompt, 16, keep)) for prompt in prompts]
        if keep is None or len(prompts) == 1:
            assert texts == alone
        else:  # with fewer kept, the window of a text moves when the longest of them is full
            longest = max(range(3), key=lambda i: len(prompts[i]))
            assert texts[longest] == alone[longest]


def test_logits_of_every_step_equal_numpy_float64(small: GPT) -> None:
    weights = {k: p.numpy().astype(np.float64) for k, p in get_state_dict(small).items()}
    sampler, ids = Sampler(small, 3), [list(p) for p in PROMPTS]
    logits = sampler.prefill(ids)
    while True:
        for row, text in zip(logits, ids):
            assert np.abs(row - reference.logits(weights, np.array([text]), 2, 2)[0, -1]).max() < 1e-5
        if sampler.length == 6:
            break
        for i, text in enumerate(ids):
            text.append(i)
        logits = sampler.step([0, 1, 2])


def test_without_kernels_generation_is_the_same(small: GPT) -> None:
    """The formulas, in a process of their own."""
    program = """
from runtime.device import open_device
open_device("cpu")
from test_generate import *

model = perturbed(GPT(GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8)))
texts = ["", "", ""]
for i, piece in stream(model, LETTERS, PROMPTS, 9, Choice(0), seeds=range(3)):
    texts[i] += piece
print(texts == [LETTERS.decode(uncached(model, p, 9)) for p in PROMPTS])
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", program], env={**ENVIRONMENT, "KERNELS": "0", "PYTHONPATH": path},
                          capture_output=True, text=True, check=False)
    assert done.stdout == "True\n", done.stdout + done.stderr


def test_one_compiled_step_serves_every_position(small: GPT) -> None:
    sampler, traced = Sampler(small, 1), []
    sampler._step = jit(lambda *inputs: traced.append(inputs) or sampler._one(*inputs))  # type: ignore[func-returns-value]
    sampler.prefill([[1]])
    logits = [sampler.step([2]) for _ in range(5)]
    assert len(traced) == 1
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(logits, logits[1:]))  # it isn't one position over and over


def test_the_same_seed_generates_the_same_text_whatever_else_is_made_beside_it(small: GPT) -> None:
    def text(*seeds: int) -> str:
        pieces = stream(small, LETTERS, [[0]] * len(seeds), 30, Choice(1.0), seeds)
        return "".join(piece for i, piece in pieces if i == 0)

    assert text(1) == text(1) == text(1, 2) != text(2)


def test_choices_follow_temperature_top_k_and_top_p() -> None:
    z, rng = np.log(np.array([0.15, 0.5, 0.05, 0.3])), np.random.default_rng(0)

    def draw(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
        choice = Choice(temperature, top_k, top_p)
        return np.bincount([choice.draw(z, [], rng) for _ in range(4000)], minlength=4) / 4000

    assert np.abs(draw() - [0.15, 0.5, 0.05, 0.3]).max() < 0.03
    assert np.abs(draw(temperature=0.5) - np.array([0.0225, 0.25, 0.0025, 0.09]) / 0.365).max() < 0.03
    assert np.abs(draw(top_k=2) - [0, 0.625, 0, 0.375]).max() < 0.03
    assert np.abs(draw(top_p=0.75) - [0, 0.625, 0, 0.375]).max() < 0.03  # 0.5 + 0.3 reaches 0.75
    assert draw(top_p=0.01)[1] == draw(temperature=0)[1] == draw(top_k=1)[1] == 1


def test_the_repetition_penalty_makes_what_was_said_less_likely_on_either_side_of_zero() -> None:
    z, rng = np.array([2.0, -1.0, 1.5, -1.5], np.float32), np.random.default_rng(0)
    greedy = lambda seen, penalty: Choice(0, repetition_penalty=penalty).draw(z, seen, rng)
    assert greedy([0], 1.0) == 0 and greedy([0], 1.3) == 0 and greedy([0, 0], 1.4) == 2  # 2 / 1.4 < 1.5
    assert greedy([0, 2], 100.0) == 2 or z[0] / 100 > z[2] / 100
    assert greedy([0, 1, 2, 3], 2.0) == 0 and Choice(0, repetition_penalty=1e6).draw(z[[1, 3]], [0], rng) == 1
    assert z.tolist() == [2.0, -1.0, 1.5, -1.5]  # the caller's logits are left alone


def test_no_piece_of_text_ends_in_half_a_character() -> None:
    tokenizer, shown = GPT2Tokenizer(), Text(GPT2Tokenizer())
    ids = tokenizer.encode("a€😀é\u200d👍🏽 Ж")
    pieces = [shown.add(i) for i in ids] + [shown.add(None)]
    assert "".join(pieces) == tokenizer.decode(ids) and "\ufffd" not in "".join(pieces)
    assert len(ids) > sum(map(bool, pieces))  # some tokens are half a character
    half = Text(tokenizer)
    assert half.add(tokenizer.encode("😀")[0]) == "" and half.add(None) == "\ufffd"


@pytest.mark.parametrize("stop", ["ab", "aab", "k", "abab"])
def test_nothing_of_the_stop_string_is_ever_shown(stop: str) -> None:
    for text in ("caababab", "aaabk", "abaabb", "cccaa"):
        shown, out = Text(LETTERS, stop), ""
        for token in [*LETTERS.encode(text), None]:
            if not shown.stopped:
                out += shown.add(token)
                assert stop not in out
        assert out == text.split(stop)[0] and shown.stopped == (stop in text)


# ---- the command line ----


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    command = [sys.executable, str(ROOT / "gpt.py"), "--data", str(corpus), "--out", "run", "--steps", "2", *TINY]
    subprocess.run(command, cwd=folder, env={**ENVIRONMENT, "DATA_DIR": str(folder / "data")}, check=True)
    return folder / "run"


def sample(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, str]:
    capsys.readouterr()
    main(["sample", *map(str, args)])
    out, err = capsys.readouterr()
    return out, err


def test_prompts_of_a_file_are_answered_together_as_each_would_be_alone(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "prompts").write_text("king\n\nthe queen of\na\n")
    common = [trained, "--max-new-tokens", 20, "--temperature", 0]
    out, err = sample(capsys, *common, "--prompts", tmp_path / "prompts", "--batch-size", 2)
    texts = out.removesuffix("\n").split("\n--------\n")
    assert [t[:-20] for t in texts] == ["king", "the queen of", "a"]
    for text in texts:
        assert sample(capsys, *common, "--prompt", text[:-20])[0] == text + "\n"
    assert err.count("16 tokens at a time") == 1


def test_a_text_ends_before_the_stop_string(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [trained, "--max-new-tokens", 60, "--prompt", "king", "--seed", 5]
    whole = sample(capsys, *common)[0]
    stop = whole[24:26]
    assert sample(capsys, *common, "--stop", stop)[0] == whole[:4] + whole[4:].split(stop)[0] + "\n"
