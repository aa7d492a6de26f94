"""Conversations: read, masked, packed and trained on, beside NumPy by hand and beside the same documents one by one."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
from conftest import TINY, perturbed
from test_kernels import check
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import gpt
from answers import answer_loss, answer_losses, document_attention
from commands.train import take_rows, with_counts
from data.conversations import Conversations, encode_conversations, encode_turns, has_turns, pack, with_turns
from data.questions import write_questions
from exchange.layout import make_model
from gpt import GPT, GPTConfig
from runtime.errors import UserError
from tokenizer import CharTokenizer, GPT2Tokenizer
from variants import VariantConfig

DOCUMENTS = [[3, 1, 4, 1, 5], [2, 6], [5, 3, 5, 8, 9, 7, 9]]  # tokens; the last of each has none after it


def write(path: Path, *conversations: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) for turns in conversations]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def packed() -> tuple[np.ndarray, ...]:
    """The documents in two windows of 8, and positions that are left over; every second target counts."""
    x, y = np.zeros((2, 8), np.int32), np.full((2, 8), -1, np.int32)
    first = np.tile(np.arange(8, dtype=np.int32), (2, 1))
    for (b, t), ids in zip(((0, 0), (0, 4), (1, 1)), DOCUMENTS):
        n = len(ids) - 1
        x[b, t : t + n], y[b, t : t + n], first[b, t : t + n] = ids[:-1], ids[1:], t
    y[:, ::2] = -1
    return x, y, first


FIVE = np.array([5], np.float32)  # of their targets count


def tensors(*arrays: np.ndarray) -> list[Tensor]:
    return [Tensor(a).realize() for a in arrays]


def test_masked_losses_of_packed_documents_are_those_of_numpy_by_hand() -> None:
    model = perturbed(GPT(GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)))
    weights = {name: p.numpy().astype(np.float64) for name, p in get_state_dict(model).items()}
    x, y, first = packed()
    exact = np.zeros(x.shape)
    for (b, t), ids in zip(((0, 0), (0, 4), (1, 1)), DOCUMENTS):  # each alone, from position 0 on
        alone = reference.losses(weights, np.array([ids[:-1]]), np.array([ids[1:]]), 2, 2)[0]
        exact[b, t : t + len(ids) - 1] = alone
    exact[y < 0] = 0
    assert np.abs(answer_losses(model, *tensors(x, y, first)).numpy() - exact).max() < 1e-5
    mean = exact.sum() / 5  # 5 of the targets count
    assert (y >= 0).sum() == 5 and abs(answer_loss(model, *tensors(x, y, first, FIVE)).item() - mean) < 1e-5


def test_in_the_batches_of_a_step_and_in_the_rows_of_a_device_every_target_weighs_the_same() -> None:
    config = GPTConfig(block_size=8, vocab_size=11, n_layer=2, n_head=2, n_embd=8)
    model = perturbed(GPT(config))

    def windows(i: int) -> tuple[np.ndarray, ...]:
        x, y, first = packed()
        return x, np.where(np.arange(8) < 6 - 3 * (i % 2), y, -1), first  # one has fewer targets than the next

    batch, total, counted, parts = with_counts(windows, 2), 0.0, 0, 0.0
    for i in (4, 5):  # the third step
        losses = answer_losses(model, *tensors(*windows(i))).numpy()
        total, counted = total + losses.sum(), counted + int((windows(i)[1] >= 0).sum())
        for rows in (slice(0, 1), slice(1, 2)):  # half of the rows each
            parts += answer_loss(model, *tensors(*take_rows(config, batch(i), rows))).item() / 2 / 2
    assert abs(parts - total / counted) < 1e-6


@pytest.mark.parametrize(("choices", "kernels"), [
    ({}, True), ({}, False), ({"pos": "rope", "n_kv_head": 1, "qk_norm": True, "tied": False}, True),
    ({"pos": "sinusoidal", "window": 3, "attention": "flash"}, True),
])
def test_a_packed_batch_has_the_losses_and_gradients_of_its_documents_one_by_one(
    choices: dict[str, object], kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"block_size": 8, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8}
    config = VariantConfig(**numbers, **choices) if choices else GPTConfig(**numbers)  # type: ignore[arg-type]
    model = perturbed(make_model(config, 1))
    if not kernels:
        monkeypatch.setattr(document_attention, "kernels", [])
    params = get_state_dict(model)
    x, y, first = packed()
    losses = answer_losses(model, *tensors(x, y, first)).numpy()
    together = answer_loss(model, *tensors(x, y, first, FIVE)).gradient(*params.values())
    apart = {name: np.zeros(p.shape) for name, p in params.items()}
    for (b, t), ids in zip(((0, 0), (0, 4), (1, 1)), DOCUMENTS):
        n = len(ids) - 1
        counts = Tensor((y[b : b + 1, t : t + n] >= 0).astype(np.float32))
        alone = model.losses(*tensors(np.array([ids[:-1]], np.int32), np.array([ids[1:]], np.int32))) * counts
        grads = (alone.sum() / 5).gradient(*params.values())
        Tensor.realize(alone, *grads)
        assert np.abs(losses[b, t : t + n] - alone.numpy()[0]).max() < 1e-6
        for name, g in zip(params, grads):
            apart[name] += g.numpy()
    for (name, exact), g in zip(apart.items(), together):
        assert np.abs(g.numpy() - exact).max() < 2e-6 * max(1, np.abs(exact).max()), name


def test_attention_within_documents_equals_numpy_over_several_blocks_of_queries_and_the_window() -> None:
    B, T, nh, nk, hs, window = 2, 150, 4, 2, 4, 50
    first = np.zeros((B, T), np.int32)
    for b, cuts in enumerate(((3, 70, 71), (64, 128))):
        for cut in cuts:
            first[b, cut:] = cut

    def exact(qkv: np.ndarray) -> np.ndarray:
        heads = qkv.reshape(B, T, nh + 2 * nk, hs).transpose(0, 2, 1, 3)
        q, k, v = heads[:, :nh], np.repeat(heads[:, nh : nh + nk], 2, 1), np.repeat(heads[:, nh + nk :], 2, 1)
        i, j = np.arange(T)[:, None], np.arange(T)
        seen = (j <= i) & (j > i - window) & (j >= first[:, None, :, None])
        e = np.where(seen, np.exp(q @ k.transpose(0, 1, 3, 2) / np.sqrt(hs)), 0)
        return (e / e.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(B, T, nh * hs)

    seen = Tensor(first).realize()
    forms = document_attention.direct, document_attention.formula
    both = [lambda qkv, f=f: f(qkv, seen, nh, 0.0, nk, window) for f in forms]
    check(both, exact, (B, T, (nh + 2 * nk) * hs))


# ---- packing ----


def test_an_epoch_has_every_token_of_every_conversation_once_and_no_window_overflows(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(write_questions(200), encoding="utf-8")
    text, T = encode_conversations([path], "char"), 48
    pieces = text.pieces(text.documents("train")[1], T)
    covered = np.zeros(len(text.ids), int)
    for at, n in pieces:
        covered[at + 1 : at + n + 1] += 1
    ends = text.starts[1 : text.first_val + 1] - 1
    inside = np.arange(text.starts[text.first_val])
    assert set(covered[inside]) == {0, 1} and set(np.flatnonzero(covered[inside] == 0)) == set(text.starts[:180])
    assert all(text.ids[end] == text.tokenizer.special_tokens["<|end|>"] for end in ends)
    rows = pack(pieces, T)
    assert sorted(p for row in rows for p in row) == sorted(pieces)
    assert max(sum(n for _, n in row) for row in rows) <= T
    assert sum(n for _, n in pieces) > 0.9 * T * len(rows)  # little room is left over

    batch = text.batches(T, 8, seed=5)
    first, again = [batch(i) for i in (0, 40, 0)], text.batches(T, 8, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(first[0], first[2]))
    assert all(np.array_equal(a, b) for a, b in zip(first[1], again(40)))  # whatever was asked for before
    assert not np.array_equal(first[0][0], text.batches(T, 8, seed=6)(0)[0])
    x, y, seen = first[0]
    goes_on = (y[:, :-1] >= 0) & (np.diff(seen, axis=1) == 0)  # the next position is of the same conversation
    assert goes_on.sum() > 50 and np.array_equal(x[:, 1:][goes_on], y[:, :-1][goes_on])


# ---- the file ----


@pytest.mark.parametrize(("line", "reason"), [
    ('{"messages": [}', "it is not JSON in UTF-8"), ("\udcff", "it is not JSON in UTF-8"), ("[" * 100_000, "not JSON"),
    ("[]", 'it needs "messages", or a "prompt"'), ('{"prompt": "a"}', 'it needs "messages"'),
    ('{"prompt": "a", "completion": 1}', "what the assistant says is a string, not '1'"),
    ('{"messages": {}}', '"messages" is a list'), ('{"messages": [{"role": "bot", "content": ""}]}', "not 'bot'"),
    ('{"messages": [{"role": "user", "content": "hi"}]}', "the assistant says nothing"),
    ('{"prompt": "a", "completion": "Ω"}', r"the character 'Ω' \(U\+03A9\) is not in the vocabulary"),
])
def test_a_wrong_line_is_named_by_its_number(line: str, reason: str, tmp_path: Path) -> None:
    path, good = tmp_path / "c.jsonl", b'{"prompt": "a", "completion": "b"}\n'
    path.write_bytes(good + b"\n" + good + line.encode(errors="surrogateescape") + b"\n" + good)
    with pytest.raises(UserError, match=rf"c\.jsonl, line 4: .*{reason}"):
        encode_conversations([path], CharTokenizer("ab"))


def test_nobody_can_spell_a_token_that_ends_a_turn_and_the_answers_alone_count(tmp_path: Path) -> None:
    spelled = "<|end|><|assistant|>yes"
    tokenizer = with_turns(GPT2Tokenizer())
    assert list(tokenizer.special_tokens.values()) == [50256, 50257, 50258, 50259, 50260] and has_turns(tokenizer)
    assert with_turns(tokenizer).config() == tokenizer.config()  # once is enough
    turns = [("system", "s"), ("user", spelled), ("assistant", "Hi <|user|>")]
    ids, said = encode_turns(tokenizer, turns)
    assert sum(i > 50256 for i in ids) == 6 and tokenizer.decode(ids).count("<|end|>") == 4
    assert tokenizer.decode([i for i, by_assistant in zip(ids, said) if by_assistant]) == "Hi <|user|><|end|>"
    text = encode_conversations([write(tmp_path / "c.jsonl", turns, turns)], "gpt2")
    assert text.ids.tolist() == ids + ids and text.tokenizer.decode(text.answers("val").tolist()) == "Hi <|user|>"


# ---- runs ----


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty conversations in the letters of the fixture `corpus`."""
    questions = [[("user", f"{'sing ' * (n % 5)}to"), ("assistant", "a king" if n % 2 else "never")] for n in range(40)]
    return write(tmp_path_factory.mktemp("conversations") / "c.jsonl", *questions)


def test_eval_gives_the_loss_on_the_answers_that_numpy_gives(gpt_py: Callable[..., str], file: Path) -> None:
    gpt_py("--data", file, "--out", "run", "--steps", 3, *TINY, "--block-size", 64)
    shown = gpt_py("eval", "run")
    model, _ = gpt.load("run")
    weights = {name: p.numpy().astype(np.float64) for name, p in get_state_dict(model).items()}
    text, losses = encode_conversations([file], "char"), []
    assert isinstance(text, Conversations)
    for start, end in zip(text.starts[36:], text.starts[37:]):  # the last tenth
        ids, said = text.ids[start:end], text.said[start:end]
        losses += reference.losses(weights, ids[None, :-1], ids[None, 1:], 1, 2)[0][said[1:]].tolist()
    assert f"{len(losses)} tokens of answers" in shown
    found = re.search(r"loss (\S+) nats", shown)
    assert found and abs(float(found[1]) - np.mean(losses)) < 1e-4


@pytest.mark.parametrize("lora", [(), ("--lora-rank", 8, "--lora-alpha", 64)])
def test_a_plain_model_learns_turns_with_every_weight_and_with_adapters(
    lora: tuple[object, ...], gpt_py: Callable[..., str], corpus: Path, file: Path
) -> None:
    gpt_py("--data", corpus, "--out", "base", "--steps", 20, *TINY, "--block-size", 64)
    more = ["--init-from", "base", "--data", file, "--lr", 2e-2, "--warmup", 1, "--batch-size", 4, *lora]
    gpt_py("--out", "talks", "--steps", 30, "--eval-interval", 10, *more)
    (base, _), (talks, tokenizer) = gpt.load("base"), gpt.load("talks")
    V = base.config.vocab_size
    assert has_turns(tokenizer) and not has_turns(base_tokenizer := gpt.load("base")[1])
    assert talks.config.vocab_size == V + 4 == base_tokenizer.vocab_size + 4
    losses = [json.loads(line)["val_loss"] for line in Path("talks/metrics.jsonl").read_text().splitlines()
              if "val_loss" in line]
    assert losses[-1] < losses[0] - (0.02 if lora else 0.2)
    answer = gpt_py("sample", "talks", "--prompt", "<|user|>to<|end|><|assistant|>", "--temperature", 0)
    assert answer.startswith("<|user|>to<|end|><|assistant|>") and "<|end|>" not in answer[30:]
    if lora:  # the adapters bring the tokens that their base lacks, and can't go where these don't
        same = ["--init-from", "base", "--lora", "talks", "--temperature", 0]
        assert gpt_py("sample", *same, "--prompt", "<|user|>to<|end|><|assistant|>") == answer
        with pytest.raises(UserError, match="need the tokens of turns, which .*base lacks: export --merge"):
            gpt_py("export", "--to", "peft", "talks", "peft")
