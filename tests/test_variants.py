"""variants.py against NumPy in double precision, written from the papers, and against transformers' Llama."""

import itertools
import json
import math
import os
import re
import signal
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, perturbed
from test_kernels import check, mask
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import variants
from benchmarks import attention_memory
from commands.compare import SETTINGS
from commands.options import PRESETS, Options
from exchange.checkpoint import find_checkpoint
from exchange.huggingface import write_huggingface
from exchange.layout import GPT2_CHOICES, Checkpoint, shapes
from exchange.llama import CHOICES, write_tensors
from generate import Choice, stream
from gpt import GPTConfig, build
from kernels import training
from plots import compare as plot
from runtime.compiled import jit
from runtime.errors import UserError
from runtime.run import Run
from tokenizer import CharTokenizer
from trainer import Trainer
from variants import Variant, VariantConfig

Weights = dict[str, np.ndarray]

# ---- the model again, one text, one head and one query at a time ----


def norm(x: np.ndarray, w: Weights, name: str, c: VariantConfig) -> np.ndarray:
    if c.norm == "rmsnorm":
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * w[f"{name}.weight"]
    z = x - x.mean(-1, keepdims=True)
    return z / np.sqrt((z * z).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)


def turned(x: np.ndarray, position: int, c: VariantConfig) -> np.ndarray:
    """A query or key `(hs,)` as complex numbers, each times e^(i angle): RoPE as its paper derives it."""
    half = len(x) // 2
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * c.rope_theta ** (-2.0 * np.arange(half) / len(x)))
    return np.concatenate([z.real, z.imag])


def attention(x: np.ndarray, w: Weights, name: str, c: VariantConfig) -> np.ndarray:
    T, nh, nk = len(x), c.n_head, c.n_kv_head or c.n_head
    hs = c.n_embd // nh
    qkv = x @ w[f"{name}.c_attn.weight"] + w.get(f"{name}.c_attn.bias", 0.0)
    heads = qkv.reshape(T, nh + 2 * nk, hs).copy()
    for t, h in itertools.product(range(T), range(nh + nk)):
        if c.qk_norm:
            heads[t, h] /= np.sqrt((heads[t, h] ** 2).mean() + c.norm_eps)
        if c.pos == "rope":
            heads[t, h] = turned(heads[t, h], t, c)
    y = np.zeros((T, nh, hs))
    for t, h in itertools.product(range(T), range(nh)):
        seen = [s for s in range(t + 1) if not c.window or t - s < c.window]
        key = nh + h * nk // nh
        e = np.exp([heads[t, h] @ heads[s, key] / math.sqrt(hs) for s in seen])
        y[t, h] = sum(a * heads[s, key + nk] for a, s in zip(e / e.sum(), seen))
    return y.reshape(T, -1) @ w[f"{name}.c_proj.weight"] + w.get(f"{name}.c_proj.bias", 0.0)


def mlp(x: np.ndarray, w: Weights, name: str, c: VariantConfig) -> np.ndarray:
    x = x @ w[f"{name}.c_fc.weight"] + w.get(f"{name}.c_fc.bias", 0.0)
    if c.mlp == "swiglu":
        gate, up = np.split(x, 2, axis=-1)
        x = gate / (1 + np.exp(-gate)) * up
    elif c.mlp == "relu2":
        x = np.where(x > 0, x, 0) ** 2
    else:
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x @ w[f"{name}.c_proj.weight"] + w.get(f"{name}.c_proj.bias", 0.0)


def logits(w: Weights, ids: Any, c: VariantConfig) -> np.ndarray:
    """`(T, V)` for one text."""
    T, C = len(ids), c.n_embd
    x = w["wte.weight"][np.asarray(ids)]
    if c.pos == "learned":
        x = x + w["wpe.weight"][:T]
    if c.pos == "sinusoidal":
        angle = np.arange(T)[:, None] / 10000 ** (2 * np.arange(C // 2) / C)
        x = x + 0.02 * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    for i in range(c.n_layer):
        name = f"h.{i}"
        if c.norm_at == "post":
            x = norm(x + attention(x, w, f"{name}.attn", c), w, f"{name}.ln_1", c)
            x = norm(x + mlp(x, w, f"{name}.mlp", c), w, f"{name}.ln_2", c)
        else:
            x = x + attention(norm(x, w, f"{name}.ln_1", c), w, f"{name}.attn", c)
            x = x + mlp(norm(x, w, f"{name}.ln_2", c), w, f"{name}.mlp", c)
    x = norm(x, w, "ln_f", c) if c.norm_at == "pre" else x
    return x @ w["wte.weight" if c.tied else "lm_head.weight"].T


def loss(w: Weights, idx: np.ndarray, targets: np.ndarray, c: VariantConfig) -> float:
    total = 0.0
    for text, wanted in zip(idx, targets):
        z = logits(w, text, c)
        total += sum(math.log(np.exp(row - row[y]).sum()) for row, y in zip(z, wanted))
    return total / idx.size


# ---- every pair of choices meets in one of these ----

VALUES: dict[str, tuple[Any, ...]] = {
    "pos": ("learned", "rope", "sinusoidal", "none"), "n_kv_head": (0, 2, 1), "mlp": ("gelu", "relu2", "swiglu"),
    "norm": ("layernorm", "rmsnorm"), "norm_at": ("pre", "post"), "qk_norm": (False, True), "window": (0, 3),
    "tied": (True, False), "attention": ("full", "flash"), "bias": (True, False),
}


def pairs(row: dict[str, Any]) -> set[tuple[Any, ...]]:
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(VALUES, 2)}


def pairwise() -> list[dict[str, Any]]:
    """Rows of choices in which every two values of two flags occur together: greedily, the best of some random rows."""
    rng, rows = np.random.default_rng(0), []
    draw = lambda: {name: values[rng.integers(len(values))] for name, values in VALUES.items()}
    missing = set().union(*(pairs(dict(zip(VALUES, row))) for row in itertools.product(*VALUES.values())))
    while missing:
        row = max((draw() for _ in range(300)), key=lambda r: len(pairs(r) & missing))
        rows.append(row)
        missing -= pairs(row)
    return rows


NAMES = CharTokenizer("abcdefghijk")
PROMPTS = [[2, 0, 1], [5], [3, 3, 7, 10, 4]]
ROWS = pairwise()


def model_of(**choices: Any) -> tuple[Variant, Weights]:
    model = perturbed(Variant(VariantConfig(8, 11, 2, 4, 16, **choices)))
    return model, {name: p.numpy().astype(np.float64) for name, p in get_state_dict(model).items()}


@pytest.mark.parametrize("choices", ROWS, ids=lambda row: "-".join(str(v) for v in row.values()))
def test_a_variant_equals_numpy_forward_backward_and_with_the_cache(choices: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setattr(variants, "BLOCK", 3)
    model, w = model_of(**choices)
    c = model.config
    assert {name: p.shape for name, p in w.items()} == shapes(c) and c.parameters == sum(p.size for p in w.values())
    rng = np.random.default_rng(1)
    idx, targets = rng.integers(0, 11, (2, 2, 8), dtype=np.int32)

    forward = jit(lambda x: model(x).realize())
    got = forward(Tensor(idx).realize()).numpy()
    for row, text in zip(got, idx):
        np.testing.assert_allclose(row, logits(w, text, c), rtol=1e-4, atol=1e-4)
    other = idx.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    assert np.array_equal(forward(Tensor(other).realize()).numpy()[:, :5], got[:, :5])  # no look at what comes

    params = get_state_dict(model)
    value = model.loss(Tensor(idx).realize(), Tensor(targets).realize())
    grads = value.gradient(*params.values())
    Tensor.realize(value, *grads)
    assert abs(value.item() - loss(w, idx, targets, c)) < 1e-5
    for name, g in zip(params, grads):
        d, h = rng.standard_normal(w[name].shape), 1e-5
        up, down = (loss({**w, name: w[name] + s * h * d}, idx, targets, c) for s in (1, -1))
        assert abs((g.numpy() * d).sum() - (up - down) / (2 * h)) < 1e-4, name

    texts = ["", "", ""]
    for i, piece in stream(model, NAMES, PROMPTS, 9, Choice(0), seeds=range(3)):
        texts[i] += piece
    for text, prompt in zip(texts, PROMPTS):
        ids = list(prompt)
        for _ in range(9):  # past the end of the block, where the window slides
            ids.append(int(logits(w, ids[-8:], c)[-1].argmax()))
        assert text == NAMES.decode(ids[len(prompt) :])


def test_the_choices_of_gpt2_are_written_the_same_in_all_three_places() -> None:
    numbers, options = asdict(VariantConfig()), Options()
    assert {name: numbers[name] for name in GPT2_CHOICES} == GPT2_CHOICES
    assert {name: getattr(options, name) for name in GPT2_CHOICES} == GPT2_CHOICES
    assert set(numbers) - set(GPT2_CHOICES) == set(asdict(GPTConfig()))


# ---- the operations, and their kernels ----


def grouped(qkv: np.ndarray, nh: int, nk: int, window: int, p: float, seed: int) -> np.ndarray:
    B, T, W = qkv.shape
    hs = W // (nh + 2 * nk)
    heads, y = qkv.reshape(B, T, -1, hs), np.zeros((B, T, nh, hs))
    for b, t, h in itertools.product(range(B), range(T), range(nh)):
        seen, key = np.arange(max(0, t - window + 1) if window else 0, t + 1), nh + h * nk // nh
        s = heads[b, seen, key] @ heads[b, t, h] / math.sqrt(hs)
        e = np.exp(s - s.max())
        kept = np.array([mask(((b * nh + h) * T + t) * T + int(j), seed, p) for j in seen]) if p else 1.0
        y[b, t, h] = (e / e.sum() * kept) @ heads[b, seen, key + nk]
    return y.reshape(B, T, nh * hs)


@pytest.mark.parametrize(("T", "nh", "nk", "hs", "window", "p"), [
    (5, 4, 2, 3, 0, 0.3), (5, 6, 1, 4, 2, 0.3), (70, 2, 1, 5, 3, 0.0), (140, 2, 2, 4, 70, 0.0),
])
def test_grouped_and_flash_attention_equal_numpy(T: int, nh: int, nk: int, hs: int, window: int, p: float) -> None:
    """Across blocks of queries in the kernel, and of keys in flash's formula."""
    seed = Tensor(np.array([4_000_000_000], np.uint32)).realize()

    def trained(f: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with training([seed]):
                return f(x, nh, p, nk, window)

        return run

    full, flash = variants.grouped_attention, variants.flash_attention
    exact = lambda x: grouped(x, nh, nk, window, p, 4_000_000_000)
    check([trained(full), trained(full.formula)], exact, (2 if T < 10 else 1, T, (nh + 2 * nk) * hs))
    if not p:
        check([trained(flash), trained(flash.formula)], exact, (1, T, (nh + 2 * nk) * hs))


def test_flash_equals_full_attention_within_1e_5_forward_and_backward(monkeypatch) -> None:
    monkeypatch.setattr(variants, "BLOCK", 16)
    rng = np.random.default_rng(0)
    x, g = (Tensor(rng.standard_normal((1, 50, n)).astype(np.float32)).realize() for n in (48, 32))
    results = []
    for f in (variants.grouped_attention.formula, variants.flash_attention.formula):
        y = f(x, 4, 0.0, 1, 0)
        d = y.gradient(x, gradient=g)[0]
        Tensor.realize(y, d)
        results.append((y.numpy(), d.numpy()))
    for a, b in zip(*results):
        assert np.abs(a - b).max() < 1e-5


def test_rotated_normalised_and_gated_equal_numpy() -> None:
    """Each as a kernel and as a formula; in qkv there are three heads of six channels to change, and one to leave."""
    c = VariantConfig(n_embd=6, n_head=1, rope_theta=100.0)
    table = Tensor(variants.turns(9, 6, 100.0).astype(np.float32)).realize()
    own = Tensor(variants.turns(9, 6, 100.0)[[[4], [2]]].astype(np.float32)).realize()  # each text at its own position

    def rotate(x: np.ndarray, at: Callable[[int, int], int]) -> np.ndarray:
        y = x.copy()
        for b, t, h in itertools.product(*map(range, x.shape[:2]), range(3)):
            y[b, t, h * 6 : h * 6 + 6] = turned(x[b, t, h * 6 : h * 6 + 6], at(b, t), c)
        return y

    def normalise(x: np.ndarray) -> np.ndarray:
        z = x.reshape(*x.shape[:2], 4, 6).copy()
        z[:, :, :3] /= np.sqrt((z[:, :, :3] ** 2).mean(-1, keepdims=True) + 1e-5)
        return z.reshape(x.shape)

    both = lambda op, *more: [lambda *x, f=f: f(*x, *more) for f in (op, op.formula)]
    check(both(variants.rotate, table, 3), lambda x: rotate(x, lambda b, t: t), (2, 5, 24))
    check(both(variants.rotate, own, 3), lambda x: rotate(x, lambda b, t: (4, 2)[b]), (2, 1, 24))
    check(both(variants.normalise_heads, 3, 6), normalise, (2, 5, 24))
    check(variants.rmsnorm, lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w, (7, 37), (37,))
    check(variants.relu2, lambda x: np.where(x > 0, x, 0) ** 2, (3, 37))
    check(variants.swiglu, lambda x: x[:, :19] / (1 + np.exp(-x[:, :19])) * x[:, 19:], (3, 38))


# ---- Llama, as transformers has it ----


def random_llama(folder: Path, kv_heads: int, tied: bool, shard: str) -> Any:
    """A `LlamaForCausalLM` whose weights are all moved off their initial values, saved in a folder."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(kv_heads)
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=16, rms_norm_eps=1e-6, tie_word_embeddings=tied,
        bos_token_id=None, eos_token_id=None, rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.2 * torch.randn_like(p)
    theirs.save_pretrained(folder, max_shard_size=shard)
    return theirs


@pytest.mark.parametrize(("kv_heads", "tied", "shard"), [(2, False, "5KB"), (1, True, "1GB")])
def test_a_llama_of_transformers_has_the_same_logits_loss_gradients_and_greedy_text(
    kv_heads: int, tied: bool, shard: str, tmp_path: Path
) -> None:
    theirs = random_llama(tmp_path / "llama", kv_heads, tied, shard)
    torch = pytest.importorskip("torch")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) == (1 if tied else 7)
    checkpoint = find_checkpoint(str(tmp_path / "llama"))
    model = build(checkpoint)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 11, (2, 3, 16), dtype=np.int32)
    wanted = theirs(torch.from_numpy(x).long()).logits
    their_loss = torch.nn.functional.cross_entropy(wanted.view(-1, 11), torch.from_numpy(y).long().view(-1))
    their_loss.backward()
    params = get_state_dict(model)
    ours, value = model(Tensor(x).realize()), model.loss(Tensor(x).realize(), Tensor(y).realize())
    grads = value.gradient(*params.values())
    Tensor.realize(ours, value, *grads)
    assert np.abs(ours.numpy() - wanted.detach().numpy()).max() < 1e-4
    assert abs(value.item() - their_loss.item()) < 1e-4
    theirs_by_name = {name: p.grad for name, p in theirs.named_parameters()}
    ours_by_name = write_tensors(checkpoint.model, dict(zip(params, grads)))
    assert set(ours_by_name) == set(theirs_by_name)
    for name, g in theirs_by_name.items():
        assert np.abs(ours_by_name[name].numpy() - g.numpy()).max() < 1e-4, name
    text = "".join(piece for _, piece in stream(model, NAMES, [PROMPTS[2]], 11, Choice(0)))
    made = theirs.generate(torch.tensor([PROMPTS[2]]), max_new_tokens=11, do_sample=False, use_cache=True)
    assert NAMES.encode(text) == made[0, 5:].tolist()

    write_huggingface(tmp_path / "out", replace(checkpoint, tokenizer=NAMES))  # and back again
    transformers = pytest.importorskip("transformers")
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again(torch.from_numpy(x).long()).logits, wanted)


@pytest.mark.parametrize(("change", "says"), [
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"attention_bias": True}, "attention_bias = True"),
    ({"head_dim": 8}, "head_dim = 8"),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "scales RoPE"),
    ({"num_hidden_layers": 3}, "model.layers.1.input_layernorm.weight is missing"),
    ({"intermediate_size": None}, "no number intermediate_size"),
])
def test_a_llama_that_is_not_built_here_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    model = {**asdict(VariantConfig(8, 11, 1, 4, 16)), **CHOICES}
    tensors = {name: Tensor.zeros(*shape) for name, shape in shapes(model).items()}
    write_huggingface(tmp_path, Checkpoint(tmp_path, model, tensors, NAMES))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=says):
        find_checkpoint(str(tmp_path))


# ---- the command line ----


def test_a_variant_trains_resumes_samples_evaluates_tunes_and_exports_from_the_command_line(
    gpt_py, script, corpus: Path
) -> None:
    chosen = ["--preset", "llama", "--n-kv-head", 1, "--window", 8, "--qk-norm", "--optimizer", "muon"]
    common = ["--data", corpus, "--eval-interval", 2, *TINY]
    done = script("gpt.py", *chosen, *common, "--steps", 2, "--out", "run")
    assert done.returncode == 0 and "n_kv_head 1" in done.stdout, done.stderr
    saved = Run("run").config()["model"]
    assert (saved["pos"], saved["n_kv_head"], saved["window"], saved["tied"]) == ("rope", 1, 8, False)
    gpt_py("--resume", "run", "--steps", 4)
    assert Run("run").metrics()[-1]["step"] == 4 and Run("run").config()["model"] == saved
    with pytest.raises(UserError, match="--pos can't change"):
        gpt_py("--resume", "run", "--pos", "none")
    assert len(gpt_py("sample", "run", "--prompt", "king", "--max-new-tokens", 30)) == 35
    assert "perplexity" in gpt_py("eval", "run")
    assert f"by formula {shapes_total(saved):,}" in gpt_py("info", "run")
    with pytest.raises(UserError, match="qk_norm = True"):
        gpt_py("export", "--to", "hf", "run", "hf")
    with pytest.raises(UserError, match=r"llm\.c's files hold GPT-2s alone"):
        gpt_py("export", "--to", "llmc", "run", "llmc")
    tuned = ["--init-from", "run", "--lora-rank", 2, *common[:4], "--steps", 2, "--batch-size", 2, "--eval-batches", 1]
    gpt_py(*tuned, "--out", "tuned")
    with pytest.raises(UserError, match="--mlp can't be gelu"):
        gpt_py(*tuned, "--mlp", "gelu", "--out", "other")
    assert len(gpt_py("sample", "tuned", "--prompt", "king", "--max-new-tokens", 5)) == 10


def shapes_total(model: dict[str, Any]) -> int:
    return sum(math.prod(shape) for shape in shapes(model).values())


@pytest.mark.parametrize(("flags", "says"), [
    (["--n-kv-head", 3], "--n-kv-head 3"),
    (["--pos", "rope", "--n-embd", 12, "--n-head", 4], "--pos rope"),
    (["--window", -1], "--window"),
    (["--attention", "flash", "--dropout", 0.1], "--dropout 0"),
    (["--mlp", "relu"], "--mlp"),
    (["--optimizer", "muon", "--dtype", "float16"], "float16"),
    (["--patience", -1], "--patience"),
])
def test_choices_that_do_not_go_together_are_one_sentence(flags: list[Any], says: str, gpt_py, corpus: Path) -> None:
    with pytest.raises(UserError, match=says):
        gpt_py("--data", corpus, *flags)


def test_a_comparison_goes_on_where_it_was_stopped_and_is_drawn(gpt_py, corpus: Path, monkeypatch, tmp_path) -> None:
    argv = ["compare", "--data", corpus, *TINY, "--steps", 4, "--seeds", "0,1", "--values", "GPT-2; RoPE"]
    original, taken = Trainer.take_step, []

    def take_step(self: Trainer) -> tuple[Tensor, Tensor]:
        taken.append(self.options.pos)  # type: ignore[attr-defined]
        if len(taken) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self)

    monkeypatch.setattr(Trainer, "take_step", take_step)
    with pytest.raises(SystemExit):
        gpt_py(*argv)
    printed = gpt_py(*argv)
    assert taken == ["learned"] * 4 + ["rope"] * 4 + ["learned"] * 4 + ["rope"] * 4
    saved = json.loads((tmp_path / "runs" / "compare" / "results.json").read_text())
    assert [(r["setting"], r["seed"]) for r in saved["runs"]] == [("GPT-2", 0), ("GPT-2", 1), ("RoPE", 0), ("RoPE", 1)]
    gpt2, rope = (statistics.mean(r["val_loss"] for r in saved["runs"] if r["setting"] == s) for s in ("GPT-2", "RoPE"))
    row = next(line for line in printed.splitlines() if re.match(r"RoPE +[\d,]+ ", line))
    assert f"{rope:.4f} ±" in row and f"{rope - gpt2:+.4f}" in row
    gpt_py(*argv)
    assert len(taken) == 16  # nothing is left to do
    evaluated = gpt_py("eval", saved["runs"][0]["run"], "--checkpoint", "last", "--batch-size", 4)
    assert f"loss {saved['runs'][0]['val_loss']:.4f} " in evaluated  # over the whole split
    plot.draw(plot.read(tmp_path / "runs" / "compare"), tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="other options"):
        gpt_py(*argv, "--lr", 0.5, "--steps", 5)
    with pytest.raises(UserError, match="'alibi' is unknown"):
        gpt_py(*argv[:-1], "alibi")


def test_every_setting_of_the_comparison_is_a_valid_model() -> None:
    for settings in SETTINGS.values():
        o = Options(**settings)
        o.check()
        assert o.config(65).parameters > 700_000


def test_the_speedrun_keeps_its_rules_and_flash_attention_takes_memory_linear_in_the_text(monkeypatch) -> None:
    """At most a million parameters and 64 tokens of context. Twice the text takes twice the memory, and full attention
    four times."""
    config = Options(**PRESETS["speedrun"]).config(65)
    assert config.parameters <= 1_000_000 and config.block_size == 64
    monkeypatch.setattr(variants, "BLOCK", 16)
    full, flash = ([attention_memory.measure(f, T, 1)[0] for T in (64, 128)]
                   for f in (variants.grouped_attention, variants.flash_attention))
    assert flash[1] < 2.5 * flash[0] and full[1] > 3 * full[0]
