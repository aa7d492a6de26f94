"""A model that the user has changed: its text, its kernels and its checks follow it; and what no model takes."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY, perturbed
from tinygrad import Tensor

import answers
import generate
import gpt
import grok
import trainer
import variants
from generate import Choice, Sampler, stream
from gpt import GPT, MLP, Block, CausalSelfAttention, GPTConfig, attention, embed
from kernels import fast, formulas
from runtime.compiled import jit
from runtime.errors import UserError
from tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghijk")
PROMPTS = [[2, 0, 1], [5], [3, 3, 7, 10, 4, 1, 2, 8, 9]]
CONFIG = GPTConfig(block_size=24, vocab_size=11, n_layer=2, n_head=2, n_embd=8)
plain_attention = attention


# ---- what a user may do to gpt.py ----


def post_layernorm(block: Block, x: Tensor) -> Tensor:
    x = block.ln_1(x + block.attn(x))
    return block.ln_2(x + block.mlp(x))


def squared_relu(mlp: MLP, x: Tensor) -> Tensor:
    return mlp.c_proj(mlp.c_fc(x).relu().square())


def capped(model: GPT, idx: Tensor) -> Tensor:
    return 2 * (model.head(model.hidden(idx)) / 2).tanh()


def no_positions(model: GPT, idx: Tensor) -> Tensor:
    return embed(model.wte.weight, idx).cast(model.dtype)


def rotated(qkv: Tensor, n_head: int) -> Tensor:
    """Queries and keys turned by their positions (Su et al., arXiv:2104.09864); values as they are."""
    B, T, C = int(qkv.shape[0]), int(qkv.shape[1]), int(qkv.shape[2]) // 3
    hs = C // n_head
    x = qkv.reshape(B, T, 3, n_head, hs // 2, 2)
    angle = Tensor.arange(T).reshape(T, 1) * Tensor([10.0 ** (-2 * i / hs) for i in range(hs // 2)])  # (T, hs / 2)
    cos, sin = (f.reshape(1, T, 1, 1, hs // 2) for f in (angle.cos(), angle.sin()))
    a, b = x[..., 0], x[..., 1]
    turned = Tensor.stack(a * cos - b * sin, a * sin + b * cos, dim=-1)[:, :, :2]
    return turned.cat(x[:, :, 2:], dim=2).reshape(B, T, 3 * C)


def rope(attn: CausalSelfAttention, x: Tensor) -> Tensor:
    return attn.c_proj(attention(rotated(attn.c_attn(x), attn.n_head), attn.n_head))


def attention_twice(attn: CausalSelfAttention, x: Tensor) -> Tensor:
    qkv = attn.c_attn(x)
    return attn.c_proj(attention(qkv, attn.n_head) + attention(2 * qkv, attn.n_head))


def attention_by_hand(attn: CausalSelfAttention, x: Tensor) -> Tensor:
    return attn.c_proj(plain_attention.body(attn.c_attn(x), attn.n_head))


def neighbours(block: Block, x: Tensor) -> Tensor:
    """Each position sees half of the one before it, outside attention."""
    x = x + 0.5 * x.pad((None, (1, 0), None))[:, :-1]
    x = x + block.attn(block.ln_1(x))
    return x + block.mlp(block.ln_2(x))


def far_neighbours(block: Block, x: Tensor) -> Tensor:
    """Each position sees half of the one twelve before it, which no short text has."""
    x = x + 0.5 * x.pad((None, (12, 0), None))[:, : int(x.shape[1])]
    x = x + block.attn(block.ln_1(x))
    return x + block.mlp(block.ln_2(x))


CHANGES: list[tuple[type, str, Callable, bool]] = [  # where, what, and whether the cache can follow it
    (Block, "__call__", post_layernorm, True),
    (MLP, "__call__", squared_relu, True),
    (GPT, "__call__", capped, True),
    (GPT, "embed", no_positions, True),
    (CausalSelfAttention, "__call__", rope, False),
    (CausalSelfAttention, "__call__", attention_twice, False),
    (CausalSelfAttention, "__call__", attention_by_hand, False),
    (Block, "__call__", neighbours, False),
    (Block, "__call__", far_neighbours, False),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[2].__name__)
def test_the_text_of_a_changed_model_is_that_of_the_plain_loop(
    change: tuple[type, str, Callable, bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, name, function, follows = change
    monkeypatch.setattr(where, name, function)
    model, T = perturbed(GPT(CONFIG)), CONFIG.block_size
    forward = jit(lambda idx: model(idx).realize())

    def logits_after(texts: list[list[int]]) -> np.ndarray:
        """Of whole texts, without any cache: the newest T tokens of each."""
        idx = np.zeros((3, T), np.int32)
        for row, text in zip(idx, texts):
            row[: len(text[-T:])] = text[-T:]
        return forward(Tensor(idx).realize()).numpy()[range(3), [len(text[-T:]) - 1 for text in texts]]

    texts, sampler = [list(prompt) for prompt in PROMPTS], Sampler(model, 3)
    logits = sampler.prefill(texts)
    for _ in range(4):
        assert np.abs(logits - logits_after(texts)).max() < 1e-5
        texts = [[*text, int(token)] for text, token in zip(texts, logits.argmax(1))]
        logits = sampler.step([text[-1] for text in texts])
    assert sampler.follows is follows
    assert capsys.readouterr().err.count("every token takes a pass over the whole text") == (not follows)

    written, texts = [""] * 3, [list(prompt) for prompt in PROMPTS]
    for i, piece in stream(model, LETTERS, PROMPTS, 30, Choice(0), seeds=range(3), sampler=sampler):
        written[i] += piece
    for _ in range(30):  # which is past the end of the block
        texts = [[*text, int(token)] for text, token in zip(texts, logits_after(texts).argmax(1))]
    assert written == [LETTERS.decode(text[len(prompt) :]) for text, prompt in zip(texts, PROMPTS)]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[2].__name__)
def test_a_changed_model_is_not_exported_to_programs_that_have_the_usual_formulas(
    change: tuple[type, str, Callable, bool], monkeypatch: pytest.MonkeyPatch, gpt_py: Callable, corpus: Path,
    tmp_path: Path,
) -> None:
    gpt_py("--data", corpus, "--out", "run", "--steps", 2, "--lr", 0.1, *TINY)
    where, name, function, _ = change
    monkeypatch.setattr(where, name, function)
    commands = [("export", "--to", to, "run", "out") for to in ("c", "hf", "llmc")] + [("report", "run")]
    for command in commands:
        if function is attention_by_hand:  # the same numbers
            assert "bytes" in gpt_py(*command, *(["--out", "x.html"] if command[0] == "report" else []))
            shutil.rmtree("out", ignore_errors=True)
        else:
            with pytest.raises(UserError, match="was changed: its logits differ by .* undo the change to export"):
                gpt_py(*command)
    assert not Path("out").exists() and not Path("report.html").exists()


def test_the_last_position_of_a_changed_block_is_that_of_the_whole_model(
    small: GPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    idx = Tensor([[1, 2, 3, 4], [10, 9, 8, 7]])
    usual = grok.last_logits(small, idx).numpy()
    assert np.abs(usual - small(idx)[:, -1].numpy()).max() < 1e-5
    monkeypatch.setattr(Block, "__call__", post_layernorm)
    changed = grok.last_logits(small, idx).numpy()
    assert np.abs(changed - small(idx)[:, -1].numpy()).max() < 1e-5 and np.abs(changed - usual).max() > 0.1
    assert "all positions go through the last block now" in capsys.readouterr().err


# ---- a changed formula ----


def test_the_digests_are_those_of_the_formulas() -> None:
    lessons = [value for module in (answers, gpt, generate, trainer, variants) for value in vars(module).values()]
    functions: list[Callable] = [f.body for f in lessons if isinstance(f, fast)]
    functions += [GPT.__call__, GPT.hidden, Block.__call__, CausalSelfAttention.__call__]
    found = {f.__qualname__: formulas.digest(f) for f in functions}
    expected = {name: found.get(name) for name in formulas.DIGESTS}
    assert expected == formulas.DIGESTS, f"with its kernel changed too, a formula's digest is {expected}"


def test_a_formula_that_was_changed_runs_in_place_of_its_kernel(tmp_path: Path) -> None:
    """Three edits of a copy of gpt.py: of a formula, of one inside attention, and of one inside the head's loss."""
    text = (ROOT / "gpt.py").read_text(encoding="utf-8")
    for old, new in (
        ("return (0.5 * z * (1 +", "return (0.4 * z * (1 +"),
        ("return e / e.sum(-1, keepdim=True)", "return e / (1 + e.sum(-1, keepdim=True))"),
        ("return log_sum - one_hot.where(logits, 0).sum(-1)", "return log_sum - 2 * one_hot.where(logits, 0).sum(-1)"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (tmp_path / "gpt.py").write_text(text, encoding="utf-8")
    program = f"""
import sys
sys.path[:0] = sys.argv[1:] + [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from runtime.device import open_device
open_device("cpu")
from conftest import perturbed
from gpt import GPT, GPTConfig
from tinygrad import Tensor
model = perturbed(GPT(GPTConfig(6, 11, 1, 2, 8)))
print(model.loss(Tensor([[1, 2, 3, 4]]), Tensor([[2, 3, 4, 5]])).item())
"""

    def loss(*first: object, **environment: str) -> tuple[float, str]:
        done = subprocess.run([sys.executable, "-c", program, *map(str, first)], env={**ENVIRONMENT, **environment},
                              capture_output=True, text=True, check=True)
        return float(done.stdout), done.stderr

    (changed, said), (formula, _), (usual, silent) = loss(tmp_path), loss(tmp_path, KERNELS="0"), loss()
    assert changed == pytest.approx(formula, abs=1e-5) and abs(changed - usual) > 0.1
    for name in ("gelu", "attention", "head_loss"):
        assert f"note: {name} isn't as it was" in said
    assert "linear isn't" not in said and silent == ""


def test_a_fresh_model_is_the_same_in_a_compiled_step_and_after_it() -> None:
    model, idx = GPT(CONFIG), Tensor([[1, 2, 3]]).realize()
    expected, forward = GPT(CONFIG)(idx).numpy(), jit(model)
    for call in (forward, forward, model):
        assert np.abs(call(idx).numpy() - expected).max() < 1e-6


# ---- what no model takes ----

WRONG: list[tuple[Callable[[GPT], object], str]] = [
    (lambda m: m(Tensor([[1] * 7])), "sees 6 tokens at a time, and these texts have 7"),
    (lambda m: m(Tensor([[1] * 1000])), "sees 6 tokens"),
    (lambda m: jit(m)(Tensor(np.ones((1, 7), np.int32)).realize()), "sees 6 tokens"),
    (lambda m: m(Tensor([[1, 300]])), "there is no token 300: the model has 11"),
    (lambda m: m(Tensor([[1, -1]])), "there is no token -1"),
    (lambda m: m(Tensor([[1, 11]])), "there is no token 11"),
    (lambda m: m(Tensor([1, 2])), r"given as \(B, T\)"),
    (lambda m: m(Tensor([[[1]]])), r"given as \(B, T\)"),
    (lambda m: m(Tensor(np.zeros((1, 0), np.int32))), "at least one token"),
    (lambda m: m(Tensor([[1.5, 2.0]])), "whole numbers"),
    (lambda m: m.hidden(Tensor([[11]])), "there is no token 11"),
    (lambda m: m.losses(Tensor([[1, 2]]), Tensor([[1]])), "each token needs the one after it"),
    (lambda m: m.loss(Tensor([[1, 2]]), Tensor([[1, 11]])), "there is no token 11"),
    (lambda m: m.loss(Tensor([[1, 2]]), Tensor([[1, -1]])), "there is no token -1"),
    (lambda m: gpt.generate(m, LETTERS, ""), "at least one token"),
    (lambda m: gpt.generate(m, CharTokenizer("abcdefghijkl"), "l"), "there is no token 11"),
    (lambda m: Sampler(m).prefill([[]]), "at least one token"),
    (lambda m: Sampler(m).prefill([[1] * 7]), "sees 6 tokens"),
    (lambda m: Sampler(m).prefill([[1, 11]]), "there is no token 11"),
    (lambda m: next(stream(m, LETTERS, [[]], 5)), "at least one token"),
    (lambda m: next(stream(m, LETTERS, [[12]], 5)), "there is no token 12"),
    (lambda m: Choice(temperature=-1), "--temperature"),
    (lambda m: Choice(top_p=0), "--top-p"),
    (lambda m: Choice(top_k=-1), "--top-k"),
    (lambda m: Choice(repetition_penalty=0), "--repetition-penalty"),
]


@pytest.mark.parametrize(("call", "says"), WRONG, ids=range(len(WRONG)))
def test_tokens_that_the_model_does_not_have_are_one_sentence(
    call: Callable[[GPT], object], says: str, small: GPT
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        call(small)
    assert "\n" not in str(caught.value)


def test_a_full_cache_and_a_wrong_token_of_a_step_are_one_sentence(small: GPT) -> None:
    sampler = Sampler(small)
    sampler.prefill([[1] * 5])
    with pytest.raises(UserError, match="there is no token 11"):
        sampler.step([11])
    sampler.step([1])
    with pytest.raises(UserError, match="the cache is full"):
        sampler.step([1])
