"""The pictures of what is inside a model: their data against the model itself, NumPy, and models with parts removed."""

import math
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from tinygrad import Tensor

import bigram
import gpt
from commands import tokenizer as tokenizer_commands
from gpt import GPT
from plots import (
    ablation,
    attention_maps,
    bigram_matrix,
    embeddings,
    inside,
    logit_lens,
    loss_curves,
    token_stats,
)
from runtime.errors import UserError

IDS = [3, 1, 4, 1, 5, 9]


def test_each_row_of_attention_weights_sums_to_one_and_none_looks_ahead(small: GPT) -> None:
    weights = inside.look_inside(small, IDS).weights
    assert weights.shape == (2, 2, 6, 6) and np.allclose(weights.sum(-1), 1, atol=1e-6)
    assert (np.triu(weights, 1) == 0).all() and (weights >= 0).all()


def test_the_weights_reproduce_what_every_block_adds_to_the_residual_stream(small: GPT) -> None:
    seen = inside.look_inside(small, IDS)
    for layer, block in enumerate(small.h):
        x = Tensor(seen.stream[layer : layer + 1])
        qkv = block.attn.c_attn(block.ln_1(x)).numpy()[0].reshape(6, 3, 2, 4)  # (T, 3, nh, hs)
        mixed = np.einsum("hij,jhd->ihd", seen.weights[layer], qkv[:, 2]).reshape(1, 6, 8).astype(np.float32)
        x = x + block.attn.c_proj(Tensor(mixed))
        assert np.allclose((x + block.mlp(block.ln_2(x))).numpy()[0], seen.stream[layer + 1], atol=1e-5)


def test_the_last_logits_are_the_models_and_the_first_those_of_the_embedding_alone(small: GPT) -> None:
    seen = inside.look_inside(small, IDS)
    assert np.allclose(seen.logits[-1], small(Tensor([IDS])).numpy()[0], atol=1e-5)
    x = small.wte.weight.numpy()[IDS] + small.wpe.weight.numpy()[:6]
    assert np.allclose(seen.stream[0], x, atol=1e-6)
    assert np.allclose(seen.logits[0], small.head(small.ln_f(Tensor(x[None]))).numpy()[0], atol=1e-5)


def test_distance_and_entropy_of_heads_that_look_at_one_token_or_at_all_alike() -> None:
    T = 5
    same, equal = np.eye(T), np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
    previous = np.eye(T, k=-1) + np.diag([1.0, 0, 0, 0, 0])
    assert inside.mean_distance(np.stack([same, previous, equal])) == pytest.approx([0, 4 / 5, (0.5 + 1 + 1.5 + 2) / 5])
    assert inside.entropy(np.stack([same, previous, equal])) == pytest.approx([0, 0, 1])


@pytest.mark.parametrize("kind, back", list(enumerate([1, None, 4, 3])))
def test_a_head_that_always_looks_at_one_place_is_given_its_name(
    small: GPT, monkeypatch: pytest.MonkeyPatch, kind: int, back: int | None
) -> None:
    small.config = gpt.GPTConfig(block_size=8, vocab_size=11, n_layer=1, n_head=1, n_embd=8)
    asked = []

    def look(model: GPT, ids: list[int]) -> inside.Inside:
        asked.append(ids)
        weights = np.zeros((1, 1, 8, 8))
        for i in range(8):
            weights[0, 0, i, 0 if back is None else max(i - back, 0)] = 1
        return inside.Inside(weights, np.zeros(0), np.zeros(0))

    monkeypatch.setattr(inside, "look_inside", look)
    kinds = inside.head_kinds(small)[:, 0, 0]
    assert all(ids[:4] == ids[4:] for ids in asked)  # tokens that come twice
    assert kinds[kind] == 1 and attention_maps.name_of(kinds) == inside.KINDS[kind]


def test_correlations_are_pearsons_and_a_head_that_follows_them_is_seen(small: GPT) -> None:
    stream = np.random.default_rng(0).standard_normal((7, 12))
    r = inside.correlations(stream)
    assert np.allclose(r, np.corrcoef(stream))
    weights = np.tril(r + 1.5) / np.arange(1, 8)[:, None]
    seen = inside.Inside(weights[None, None], stream[None], np.zeros(0))
    assert attention_maps.followed(seen, 0) == pytest.approx(1)


def batch() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 11, 6 * 8 + 1).astype(np.uint16)


@pytest.mark.parametrize("part", ["head 1.0", "attention 0", "MLP 1", "block 1"])
def test_the_loss_without_a_part_is_that_of_a_model_whose_weights_for_it_are_zero(small: GPT, part: str) -> None:
    measured = inside.Ablation(small, batch(), 8, B=4).losses(ablation.parts_of(2, 2)[part])
    layer = small.h[int(part.split(" ")[1][0])]
    zero = lambda t: t.assign(Tensor.zeros(*t.shape)).realize()
    if "head" in part:
        rows = np.ones((8, 1), np.float32)
        rows[0:4] = 0  # head 0 has the first four channels
        layer.attn.c_proj.weight.assign(layer.attn.c_proj.weight * Tensor(rows)).realize()
    for attn in [layer.attn] * ("attention" in part or "block" in part):
        zero(attn.c_proj.weight), zero(attn.c_proj.bias)
    for mlp in [layer.mlp] * ("MLP" in part or "block" in part):
        zero(mlp.c_proj.weight), zero(mlp.c_proj.bias)
    x, y = (w.astype(np.int32) for w in inside.windows(batch(), np.arange(8) * 6, 6))
    assert np.allclose(measured, small.losses(Tensor(x), Tensor(y)).mean(-1).numpy(), atol=1e-5)


def test_a_model_is_whole_again_after_its_parts_were_switched_off(small: GPT) -> None:
    before = [(block.attn, block.mlp) for block in small.h]
    with pytest.raises(KeyError), inside.switches(small, Tensor.zeros(2, 4)):
        raise KeyError
    assert [(block.attn, block.mlp) for block in small.h] == before


def test_the_loss_by_depth_ends_at_the_models_and_starts_at_the_embeddings(small: GPT) -> None:
    losses = inside.depth_losses(small, batch(), 8, B=4)
    x, y = (w.astype(np.int32) for w in inside.windows(batch(), np.arange(8) * 6, 6))
    assert losses[-1] == pytest.approx(small.losses(Tensor(x), Tensor(y)).mean().item(), abs=1e-5)
    logits = small.head(small.ln_f(small.embed(Tensor(x)))).numpy().astype(np.float64)
    chosen = np.take_along_axis(logits, y[..., None], -1)[..., 0]
    assert losses[0] == pytest.approx((np.log(np.exp(logits).sum(-1)) - chosen).mean(), abs=1e-5)


def test_the_lens_gives_each_depths_likeliest_token_and_the_true_ones_probability() -> None:
    logits = np.log(np.array([[[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]], [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]]))
    likeliest, true = logit_lens.lens(inside.Inside(np.zeros(0), np.zeros(0), logits), [0, 2])
    assert likeliest.tolist() == [[0, 2], [1, 2]] and np.allclose(true, [[0.1], [0.3]])


def test_neighbours_and_principal_components_of_a_table_that_is_known() -> None:
    angles = np.array([0.0, 0.1, 2.0, 2.3, 4.2])
    table = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1) * [5, 5, 1]
    near = embeddings.neighbours(table, 2, 2)
    z = table - table.mean(0)
    cosine = z @ z[2] / (np.linalg.norm(z, axis=1) * np.linalg.norm(z[2]))
    assert near[0] == (3, pytest.approx(cosine[3])) and near[0][1] > near[1][1]
    places, shares = embeddings.principal_components(table)
    assert shares.sum() == pytest.approx(1) and np.allclose(  # a flat table keeps all its distances
        np.linalg.norm(places[:, None] - places, axis=-1), np.linalg.norm(table[:, None] - table, axis=-1))


@pytest.mark.filterwarnings("error")
def test_tokens_that_the_font_lacks_are_drawn_without_a_warning_in_every_picture_of_tokens(
    gpt_py, tmp_path: Path
) -> None:
    (tmp_path / "中.txt").write_text("天地玄黃宇宙洪荒，日月盈昃辰宿列張。\n" * 80, encoding="utf-8")
    gpt_py("--data", "中.txt", "--steps", 2, "--out", "run中", *TINY)
    bigram.main(["--data", "中.txt", "--steps", "2", "--out", "bigram中"])
    tokenizer_commands.main(["train", "中.txt", "--vocab-size", "280", "--out", "m中"])
    for module, run in ((attention_maps, "run中"), (embeddings, "run中"), (logit_lens, "run中"), (ablation, "run中"),
                        (loss_curves, "run中"), (bigram_matrix, "bigram中"), (token_stats, "m中.model")):
        windows = ["--windows", "4"] if module in (logit_lens, ablation) else []
        text = ["--data", "中.txt"] if module is token_stats else []
        module.main([run, *windows, *text, "--out", "x.png"])
        assert (tmp_path / "x.png").stat().st_size > 10_000
        (tmp_path / "x.png").unlink()


def test_every_script_draws_a_run_and_refuses_what_it_cannot_show(
    gpt_py, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt_py("--data", corpus, "--steps", 2, "--out", "run", *TINY)
    for module, size in ((attention_maps, 60_000), (embeddings, 30_000), (logit_lens, 15_000), (ablation, 20_000)):
        name = module.__name__.split(".")[1]
        windows = ["--windows", "12"] if module in (logit_lens, ablation) else []
        module.main(["run", *windows, "--out", f"{name}.png"])
        assert (tmp_path / f"{name}.png").stat().st_size > size
        for path, message in ((tmp_path / "nowhere", "nowhere"), (corpus.parent, "config.json")):
            with pytest.raises(UserError, match=message):
                module.main([str(path)])
    capsys.readouterr()
    ablation.main(["run", "--windows", "12"])
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 2 + 3 + 1 and all(math.isfinite(float(line.split()[3])) for line in printed[1:-1])
    with pytest.raises(UserError, match="--windows must be at least 2, not -1"):
        ablation.main(["run", "--windows=-1"])
    for arguments, message in ((["--layer", "9"], "--layer must be from 0 to 0"), (["--tokens", "0"], "at least 2"),
                               (["--prompt", "é"], "--prompt"),
                               (["--prompt", "a"], "two tokens")):
        with pytest.raises(UserError, match=message):
            attention_maps.main(["run", *arguments])
