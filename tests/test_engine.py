"""engine.py: its gradients against differences, its GPT against gpt.py, its files in both directions, its mistakes."""

import ast
import itertools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
from conftest import ROOT, perturbed
from matplotlib.image import imread
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import engine
import gpt
from commands.options import PRESETS, Options
from engine import EngineError
from plots import graph, loss_curves
from runtime.run import Run
from trainer import Task, Trainer


def test_it_imports_numpy_and_the_standard_library_alone() -> None:
    tree = ast.parse((ROOT / "engine.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"numpy"}
    assert not {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & {"__import__", "importlib"}


# ---- every operation ----

Arrays = list[np.ndarray]


def positive(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.uniform(0.5, 2, shape)


def apart(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers that differ by more than the step of a difference: a maximum isn't smooth where two are equal."""
    return np.asarray(rng.permutation(math.prod(shape)).reshape(shape) - math.prod(shape) / 2 + 0.3) * 0.1


def broadcastable(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to this one: some axes of length 1, some of the first ones not there."""
    kept = tuple(1 if rng.random() < 0.4 else n for n in shape)
    return kept[rng.integers(0, len(shape) + 1) :]


def any_shape(rng: np.random.Generator, least: int = 0) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, 5, rng.integers(least, 4)))


def pair(rng: np.random.Generator) -> Arrays:
    shape = any_shape(rng)
    arrays = [rng.standard_normal(shape), rng.standard_normal(broadcastable(rng, shape))]
    return arrays if rng.random() < 0.5 else arrays[::-1]


def product(rng: np.random.Generator) -> Arrays:
    n, k, m = rng.integers(1, 5, 3)
    batch = any_shape(rng)
    return [rng.standard_normal((*batch, n, k)), rng.standard_normal((*broadcastable(rng, batch), k, m))]


def reduction(name: str) -> Any:
    def case(rng: np.random.Generator) -> tuple[Any, Arrays]:
        shape, keep = any_shape(rng, 1), bool(rng.random() < 0.5)
        axis = None if rng.random() < 0.3 else int(rng.integers(-len(shape), len(shape)))
        keep = keep and axis is not None
        return lambda x: getattr(x, name)(axis, keep), [apart(rng, *shape)]

    return case


def slicing(rng: np.random.Generator) -> tuple[Any, Arrays]:
    keys = [1, slice(1, None), slice(None, None, 2), (slice(None), 0), (..., -1), np.array([0, 2, 0]), (0, [1, 1])]
    key = keys[rng.integers(len(keys))]
    return lambda x: x[key], [rng.standard_normal((3, 4))]


def rows(rng: np.random.Generator) -> tuple[Any, Arrays]:
    idx = rng.integers(0, 4, any_shape(rng, 1))
    return lambda table: engine.embed(table, idx), [rng.standard_normal((4, 3))]


def normed(rng: np.random.Generator) -> tuple[Any, Arrays]:
    C = int(rng.integers(3, 7))
    return engine.layernorm, [rng.standard_normal((*any_shape(rng), C)), rng.standard_normal(C), rng.standard_normal(C)]


def lines(rng: np.random.Generator) -> tuple[Any, Arrays]:
    n, m = rng.integers(1, 6, 2)
    shapes = [(*any_shape(rng), n), (n, m), (m,)]
    return engine.linear, [rng.standard_normal(shape) for shape in shapes]


def heads(rng: np.random.Generator) -> tuple[Any, Arrays]:
    B, T, nh, hs = rng.integers(1, 5, 4)
    return lambda qkv: engine.attention(qkv, nh), [rng.standard_normal((B, T, 3 * nh * hs))]


def guesses(rng: np.random.Generator) -> tuple[Any, Arrays]:
    shape, V = any_shape(rng, 1), int(rng.integers(2, 6))
    targets = rng.integers(0, V, shape)
    return lambda logits: engine.cross_entropy(logits, targets), [3 * rng.standard_normal((*shape, V))]


def reshaping(rng: np.random.Generator) -> tuple[Any, Arrays]:
    shape = any_shape(rng)
    to = (-1,) if rng.random() < 0.5 else shape[::-1]
    return lambda x: x.reshape(*to), [rng.standard_normal(shape)]


def swapping(rng: np.random.Generator) -> tuple[Any, Arrays]:
    shape = any_shape(rng, 2)
    i, j = (int(n) for n in rng.integers(-len(shape), len(shape), 2))
    return lambda x: x.transpose(i, j), [rng.standard_normal(shape)]


CASES: dict[str, Any] = {  # an operation, and arrays to try it with
    "add": lambda r: (lambda a, b: a + b, pair(r)),
    "mul": lambda r: (lambda a, b: a * b, pair(r)),
    "pow": lambda r: (lambda x: x**3 + x**-1 + x**0.5, [positive(r, *any_shape(r))]),
    "exp": lambda r: (lambda x: x.exp(), [r.standard_normal(any_shape(r))]),
    "log": lambda r: (lambda x: x.log(), [positive(r, *any_shape(r))]),
    "tanh": lambda r: (lambda x: x.tanh(), [r.standard_normal(any_shape(r))]),
    "relu": lambda r: (lambda x: x.relu(), [apart(r, *any_shape(r))]),
    "matmul": lambda r: (lambda a, b: a @ b, product(r)),
    "sum": reduction("sum"),
    "mean": reduction("mean"),
    "max": reduction("max"),
    "reshape": reshaping,
    "transpose": swapping,
    "getitem": slicing,
    "embed": rows,
    "linear": lines,
    "layernorm": normed,
    "gelu": lambda r: (engine.gelu, [2 * r.standard_normal(any_shape(r))]),
    "attention": heads,
    "cross_entropy": guesses,
    "composed": lambda r: (lambda a, b: (a - b) / (1 + a * a) - 2 / (3 + b * b) + np.ones(()) * a, pair(r)),
}


def differences(f: Any, arrays: Arrays, weights: np.ndarray, h: float = 1e-5) -> Arrays:
    """Central differences of the weighted sum of f's results: (f(x + h) - f(x - h)) / 2h for every number x."""
    def total() -> float:
        return float((f(*[engine.Tensor(a) for a in arrays]).data * weights).sum())

    grads = [np.zeros_like(a) for a in arrays]
    for a, grad in zip(arrays, grads):
        for i in np.ndindex(a.shape):
            kept = a[i]
            a[i] = kept + h
            up = total()
            a[i] = kept - h
            grad[i] = (up - total()) / (2 * h)
            a[i] = kept
    return grads


@pytest.mark.parametrize("name", CASES)
def test_an_operations_gradients_are_central_differences_for_random_shapes(name: str) -> None:
    rng = np.random.default_rng(sum(map(ord, name)))
    for _ in range(25):
        f, arrays = CASES[name](rng)
        arrays = [np.array(a, order="F" if rng.random() < 0.3 else "C") for a in arrays]  # as after a transpose, too
        tensors = [engine.Tensor(a, requires_grad=True) for a in arrays]
        y = f(*tensors)
        weights = rng.standard_normal(y.shape)  # a sum alone would hide what cancels in it, as in LayerNorm
        (y * weights).sum().backward()
        for x, expected in zip(tensors, differences(f, arrays, weights)):
            assert x.grad.shape == x.shape and x.grad.dtype == np.float64
            error = np.abs(x.grad - expected).max() / max(1e-2, np.abs(expected).max())
            assert error < 1e-6, (name, [a.shape for a in arrays], error)


def test_every_operation_is_among_those_that_are_compared_with_differences() -> None:
    tree = ast.parse((ROOT / "engine.py").read_text())
    tables = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "op"]
    decorated = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                 and [ast.unparse(d) for d in node.decorator_list] == ["op"]]
    names = {ast.literal_eval(node.args[1]) for node in tables} | {node.name for node in decorated}
    assert len(names) > 15 and names == set(CASES) - {"mean", "composed"}


# ---- the graph ----


def test_micrograds_example_has_its_published_numbers() -> None:
    a, b = engine.Tensor(-4.0, requires_grad=True), engine.Tensor(2.0, requires_grad=True)
    c, d = a + b, a * b + b**3
    c = c + c + 1
    c = c + 1 + c + (-a)
    d = d + d * 2 + (b + a).relu()
    d = d + 3 * d + (b - a).relu()
    e = c - d
    f = e**2
    g = f / 2.0 + 10.0 / f
    g.backward()
    assert [round(float(n), 4) for n in (g.item(), a.grad, b.grad)] == [24.7041, 138.8338, 645.5773]


def test_gradients_add_up_over_uses_and_over_backward_calls() -> None:
    x = engine.Tensor([1.0, 2.0], requires_grad=True)
    (x * x + x).sum().backward()
    assert x.grad.tolist() == [3, 5]
    (3 * x).sum().backward()
    assert x.grad.tolist() == [6, 8]
    y = (x * x).sum()
    y.backward(keep=True)
    y.backward()
    assert x.grad.tolist() == [10, 16]  # 2 x twice: what was in between began from zero again


def test_a_chain_of_a_hundred_thousand_operations_needs_no_recursion() -> None:
    x = engine.Tensor(0.0, requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y + 1
    y.backward()
    assert y.item() == 100_000 and x.grad == 1


def test_without_recording_nothing_is_remembered() -> None:
    x = engine.Tensor([2.0], requires_grad=True)
    with pytest.raises(ZeroDivisionError), engine.no_grad():
        assert not (x * x).requires_grad and (x * x).inputs == ()
        _ = 1 / 0
    assert (x * x).requires_grad  # as before, also after an error


def test_backward_frees_the_graph_behind_it() -> None:
    x = engine.Tensor([2.0], requires_grad=True)
    y = x * x
    y.sum().backward()
    assert y.inputs is None and y.input_grads is None


def test_a_tensor_is_refused_as_exponent_because_it_would_get_no_gradient() -> None:
    x = engine.Tensor(2.0, requires_grad=True)
    with pytest.raises(TypeError):
        _ = x**x


MISTAKES: dict[str, tuple[Any, str]] = {
    "shapes that don't broadcast": (lambda x: x + engine.Tensor(np.ones((4, 2))), r"add .*\(2, 3\) and \(4, 2\)"),
    "shapes that don't multiply": (lambda x: x @ x, r"matmul .*\(2, 3\) and \(2, 3\)"),
    "a vector in a product of matrices": (lambda x: engine.Tensor([1, 2]) @ x, r"matmul .*\(2,\) and \(2, 3\)"),
    "a shape with other numbers": (lambda x: x.reshape(5), r"reshape .*\(2, 3\)"),
    "a row that isn't there": (lambda x: engine.embed(x, np.array([2])), r"embed .*\(2, 3\) and \(1,\)"),
    "heads that don't divide": (lambda x: engine.attention(x.reshape(1, 1, 6), 4), r"attention .*\(1, 1, 6\)"),
    "targets of another number": (lambda x: engine.cross_entropy(x, np.zeros(3, int)), r"cross_entropy .*\(2, 3\) and"),
    "gradients of integers": (lambda x: engine.Tensor(np.ones((2, 3), int), requires_grad=True), r"\(2, 3\) is int64"),
    "a result of many numbers": (lambda x: (x * 2).backward(), r"\(2, 3\).*isn't a single number"),
    "nothing to go back to": (lambda x: engine.Tensor(np.ones(())).backward(), r"shape \(\).*depends on nothing"),
    "a context that is too long": (lambda x: engine.GPT(engine.GPTConfig(4, 5, 1, 1, 8))(np.zeros((2, 5), int)),
                                   r"\(2, 5, 8\) and \(4, 8\)"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_one_sentence_with_the_shapes(what: str) -> None:
    wrong, message = MISTAKES[what]
    with pytest.raises(EngineError, match=message):
        wrong(engine.Tensor(np.ones((2, 3)), requires_grad=True))


def test_a_second_backward_and_one_through_a_freed_graph_say_so() -> None:
    x = engine.Tensor(np.ones((2, 3)), requires_grad=True)
    y = x * x
    loss, other = y.sum(), (y * y).sum()
    loss.backward()
    with pytest.raises(EngineError, match=r"freed the graph behind sum of shape \(\)"):
        loss.backward()
    kept = x.grad.copy()
    with pytest.raises(EngineError, match=r"freed the graph behind mul of shape \(2, 3\)"):
        other.backward()
    assert (x.grad == kept).all()  # nothing half done


# ---- the GPT beside that of gpt.py ----

NUMBERS: dict[str, Any] = {  # of the fixture `small`
    "block_size": 6, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8,
}


def twin(model: gpt.GPT, dtype: type = np.float32) -> engine.GPT:
    """The same model in engine.py."""
    numbers = {name: getattr(model.config, name) for name in NUMBERS}
    other = engine.GPT(engine.GPTConfig(**numbers))
    for x in other.parameters().values():
        x.data = x.data.astype(dtype)
    engine.copy_into(other, {name: p.numpy() for name, p in get_state_dict(model).items()})
    return other


def tokens(model: gpt.GPT, B: int = 3) -> np.ndarray:
    c = model.config
    return np.random.default_rng(1).integers(0, c.vocab_size, (2, B, c.block_size), dtype=np.int32)


@pytest.mark.parametrize("wide", [{}, {"block_size": 64, "n_head": 4, "n_embd": 128}], ids=["small", "wide"])
def test_loss_and_every_gradient_are_those_of_gpt_py(wide: dict[str, Any]) -> None:
    model = perturbed(gpt.GPT(gpt.GPTConfig(**{**NUMBERS, **wide})))
    ours, (x, y) = twin(model), tokens(model)
    params = get_state_dict(model)
    loss = model.loss(Tensor(x), Tensor(y))
    grads = dict(zip(params, model.loss(Tensor(x), Tensor(y)).gradient(*params.values())))
    own = ours.loss(x, y)
    own.backward()
    assert list(ours.parameters()) == list(params) and own.data.dtype == np.float32
    assert abs(own.item() - loss.item()) < 1e-4
    for name, p in ours.parameters().items():
        assert np.abs(p.grad - grads[name].numpy()).max() < 1e-4, name


def test_loss_and_every_gradient_are_those_of_differences_in_double_precision() -> None:
    model = perturbed(gpt.GPT(gpt.GPTConfig(block_size=4, vocab_size=5, n_layer=2, n_head=2, n_embd=4)))
    ours, (x, y) = twin(model, np.float64), tokens(model)
    weights = {name: p.data for name, p in ours.parameters().items()}
    loss = ours.loss(x, y)
    loss.backward()
    assert abs(loss.item() - reference.losses(weights, x, y, 2, 2).mean()) < 1e-12
    for name, expected in reference.gradients(weights, x, y, 2, 2).items():
        error = np.abs(ours.parameters()[name].grad - expected).max() / np.abs(expected).max()
        assert error < 1e-6, (name, error)


def test_ten_steps_from_one_checkpoint_have_the_losses_of_the_trainer() -> None:
    model = perturbed(gpt.GPT(gpt.GPTConfig(**NUMBERS)))
    ours, o = twin(model), Options(lr=1e-2, warmup=3, steps=10, grad_clip=0.5, weight_decay=0.2)
    recipe = SimpleNamespace(**vars(o))
    batch = lambda i: tuple(np.random.default_rng(i).integers(0, 11, (2, 4, 6), dtype=np.int32))
    trainer = Trainer(Task(model, gpt.GPT.loss, batch, dict), o, Run("unused"))
    optimizer = engine.AdamW(ours.parameters(), (o.beta1, o.beta2), o.weight_decay)
    for i in range(10):
        expected = [t.item() for t in trainer.take_step()]
        lr = engine.learning_rate(i, recipe)
        assert engine.train_step(ours, optimizer, batch(i), lr, o.grad_clip) == pytest.approx(expected, abs=1e-4)


def test_sgd_moves_against_the_gradient_and_clips_its_length() -> None:
    x = engine.Tensor([3.0, 4.0], requires_grad=True)
    sgd = engine.SGD({"x": x})
    (x * x).sum().backward()
    assert sgd.step(0.5, clip=1.0) == pytest.approx(10) and x.data == pytest.approx([2.7, 3.6]) and x.grad is None


def test_the_recipe_is_the_cpu_preset() -> None:
    preset, options = PRESETS["shakespeare-char-cpu"], vars(Options(**PRESETS["shakespeare-char-cpu"]))
    own = {**vars(engine.RECIPE), **vars(engine.GPTConfig())}
    assert set(preset) - {"dropout"} <= set(own)
    assert {name: options[name] for name in own if name != "vocab_size"} == {
        name: value for name, value in own.items() if name != "vocab_size"}


# ---- files, in both directions ----


@pytest.fixture
def trained(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of `python engine.py train`, smaller and shorter."""
    monkeypatch.chdir(tmp_path)
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16}
    recipe = {"steps": 12, "batch_size": 4, "eval_interval": 6, "eval_batches": 2, "log_interval": 1}
    monkeypatch.setattr(engine, "GPTConfig", lambda **numbers: CONFIG(**{**small, **numbers}))
    monkeypatch.setattr(engine, "RECIPE", SimpleNamespace(**{**vars(engine.RECIPE), **recipe}))
    engine.main(["train", "--data", str(corpus), "--out", "run", "--steps", "12"])
    return tmp_path / "run"


CONFIG = engine.GPTConfig
SMALL = ["--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--batch-size", 4, "--eval-batches", 2,
         "--eval-interval", 6, "--log-interval", 1]


def losses(run: Path) -> list[float]:
    names = ("train_loss", "val_loss", "train_eval_loss", "grad_norm")
    return [line[name] for line in Run(run).metrics() for name in names if name in line]


def test_the_same_seed_gives_the_same_run_as_gpt_py(trained: Path, corpus: Path, gpt_py: Any) -> None:
    gpt_py("--data", corpus, "--out", "theirs", "--steps", 12, *SMALL)
    assert losses(trained) == pytest.approx(losses(trained.with_name("theirs")), abs=1e-4)
    ours, theirs = Run(trained).config(), Run(trained.with_name("theirs")).config()
    assert ours["tokenizer"] == theirs["tokenizer"] and ours["corpus"]["sha256"] == theirs["corpus"]["sha256"]
    for name in ("best", "last", "state"):
        (own, own_about), (other, about) = (Run(p).load(name) for p in (trained, trained.with_name("theirs")))
        assert set(own) == set(other) and own_about["step"] == about["step"]
        assert all(np.abs(own[k].numpy() - other[k].numpy()).max() < 1e-4 for k in own)


def test_gpt_py_samples_evaluates_and_goes_on_with_a_run_of_the_engine(
    trained: Path, gpt_py: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = gpt_py("sample", trained, "--prompt", "the ", "--max-new-tokens", 40, "--top-k", 0, "--temperature", 0)
    capsys.readouterr()
    engine.main(["sample", str(trained), "--prompt", "the ", "--max-new-tokens", "40", "--temperature", "0"])
    assert capsys.readouterr().out == text
    assert "loss " in gpt_py("eval", trained)
    assert "from step 12" in gpt_py("--resume", trained, "--steps", 14)
    assert [line["step"] for line in Run(trained).metrics()] == list(range(1, 15))


def test_the_engine_writes_the_text_of_a_run_of_gpt_py(corpus: Path, gpt_py: Any, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    gpt_py("--data", corpus, "--out", "theirs", "--steps", 6, "--no-bias", *SMALL)
    model, tokenizer = gpt.load("theirs")
    expected = gpt.generate(model, tokenizer, "the ", 30)
    capsys.readouterr()
    engine.main(["sample", "theirs", "--prompt", "the ", "--max-new-tokens", "30"])
    assert capsys.readouterr().out == expected + "\n"


def test_the_plot_of_losses_opens_a_run_of_the_engine(trained: Path, tmp_path: Path) -> None:
    loss_curves.draw([Run.open(trained, "gpt")], "tokens", tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_what_the_engine_cannot_read_it_refuses_in_one_sentence(trained: Path, script: Any, tmp_path: Path) -> None:
    config = json.loads((trained / "config.json").read_text())

    def refused(*args: object) -> str:
        done = script("engine.py", *args)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "isn't a run folder" in refused("sample", tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sample.txt").write_text("mine")
    for there in (trained, tmp_path / "mine"):
        assert "holds files already" in refused("train", "--data", trained / "config.json", "--out", there)
    assert [(p.name, p.read_text()) for p in (tmp_path / "mine").iterdir()] == [("sample.txt", "mine")]
    assert "at least 650 are needed" in refused("train", "--data", trained / "sample.txt", "--out", "new")
    assert "no Shakespeare" in refused("train")
    assert "--stepz" in refused("train", "--stepz", 3)
    assert "characters that the model knows" in refused("sample", trained, "--prompt", "7")
    best = (trained / "best.safetensors").read_bytes()
    (trained / "best.safetensors").write_bytes(best[:-4])
    assert "safetensors" in refused("sample", trained)
    (trained / "best.safetensors").write_bytes(best)
    header, numbers = best[: 8 + int.from_bytes(best[:8], "little")], best[8 + int.from_bytes(best[:8], "little") :]
    for damaged in (header + np.full(len(numbers) // 4, np.nan, "<f4").tobytes(), b"\x02" + bytes(7) + b"[]",
                    header.replace(b"data_offsets", b"data_offsetx") + numbers):
        (trained / "best.safetensors").write_bytes(damaged)
        assert "safetensors" in refused("sample", trained) or "isn't finite" in refused("sample", trained)
    (trained / "best.safetensors").write_bytes(best)
    model, tokenizer = config["model"], config["tokenizer"]
    for change in ({"tokenizer": {"type": "gpt2"}}, {"options": {"lora_rank": 8}}, {"kind": "bigram"},
                   {"model": {**model, "mlp": "relu2"}}, {"tokenizer": {**tokenizer, "chars": None}}):
        (trained / "config.json").write_text(json.dumps({**config, **change}))
        assert "engine.py reads nothing else" in refused("sample", trained)
    for change in ({"model": {**model, "vocab_size": 66}}, {"model": {**model, "n_layer": 2**31}},
                   {"model": {**model, "n_head": 3}}, {"model": {**model, "n_head": 0.5}},
                   {"tokenizer": {**tokenizer, "chars": "ab"}}):
        (trained / "config.json").write_text(json.dumps({**config, **change}))
        assert "in config.json, and its weights and characters" in refused("sample", trained)
    (trained / "config.json").write_text(json.dumps({**config, "model": []}))
    assert "readable config.json" in refused("sample", trained)


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda format: "now")
    assert [str(engine.new_folder(None)) for _ in range(3)] == ["runs/now", "runs/now-2", "runs/now-3"]


@pytest.mark.parametrize("stop_at", [1, 8])  # before the first evaluation, and after it
def test_ctrl_c_says_the_command_that_goes_on(
    stop_at: int, trained: Path, corpus: Path, gpt_py: Any, monkeypatch: Any
) -> None:
    steps, train_step = itertools.count(1), engine.train_step

    def interrupted(*args: Any) -> list[float]:
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        return train_step(*args)

    monkeypatch.setattr(engine, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt, match="^stopped; go on .* with: python gpt.py --resume again$"):
        engine.main(["train", "--data", str(corpus), "--out", "again", "--steps", "12"])
    gpt_py("--resume", "again")
    assert losses(Path("again")) == pytest.approx(losses(trained), rel=1e-3)


# ---- the tour ----


def test_a_picture_is_a_png_that_matplotlib_reads(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    engine.write_png(tmp_path / "x.png", pixels)
    assert (np.round(imread(tmp_path / "x.png") * 255) == pixels).all()


def test_the_tour_runs_from_any_folder_without_shakespeare(script: Any, tmp_path: Path) -> None:
    done = script("engine.py")
    assert done.returncode == 0, done.stderr
    for shown in ("its own file, engine.py", "=  24.7041", "gradient 138.8338", "gradient 645.5773", "that is 138.8\n",
                  "100% right", "the       0.50  0.00  0.00  0.50"):
        assert shown in done.stdout
    assert imread(tmp_path / "spiral.png").shape == (360, 360, 3)
    lines = done.stdout.split("a GPT learns to write")[1].splitlines()
    read = [float(line.split()[3].strip(",")) for line in lines if line.startswith("step ")]
    assert read[0] > 4 and read[-1] < 2.6  # the GPT has learned something


# ---- the picture of the graph ----


def test_the_graph_of_the_expression_has_a_node_for_every_number_with_its_value_and_gradient() -> None:
    result, names = engine.expression()
    nodes = graph.nodes_of(result, names)
    by_title = {node.lines[0]: node for node in nodes}
    assert len(nodes) == 30 and [node.lines for node in nodes if node.begins] == [
        ["a", "-4.0000", "gradient 138.8338"], ["b", "2.0000", "gradient 645.5773"]]
    assert by_title["g add"].lines[1:] == ["24.7041", "gradient 1.0000"]
    assert by_title["f pow 2"].inputs[0].inputs == [by_title["c add"], by_title["mul -1"]]
    assert by_title["pow 3"].inputs == [by_title["b"]]


def test_the_graph_of_a_block_has_its_parameters_and_shapes() -> None:
    result, names = graph.block_graph()
    lines = [node.lines for node in graph.nodes_of(result, names)]
    shapes = {line[0]: line[1] for line in lines}
    for name, p in gpt.GPT(gpt.GPTConfig(64, 65, 1, 4, 128)).h[0].__dict__.items():
        for path, tensor in get_state_dict(p).items():
            assert shapes[f"{name}.{path}"] == " x ".join(str(n) for n in tensor.shape)
    assert shapes["attention 4"] == "12 x 64 x 128" and shapes["gelu"] == "12 x 64 x 512"
    assert all(line[2].split("gradient")[1].strip("| ") != "0" for line in lines)


@pytest.mark.parametrize("what", ["expression", "block"])
def test_boxes_stand_below_their_inputs_do_not_overlap_and_lines_pass_between_them(what: str, tmp_path: Path) -> None:
    result, names = engine.expression() if what == "expression" else graph.block_graph()
    nodes = graph.nodes_of(result, names)
    edges = sum(len(node.inputs) for node in nodes)
    rows = graph.arrange(nodes)
    placed = [node for row in rows for node in row]
    assert all(above.row == node.row - 1 for node in placed for above in node.inputs)
    assert all(b.x - a.x > 0.999 for row in rows for a, b in itertools.pairwise(row))
    assert {id(node) for node in placed if node.lines} == {id(node) for node in nodes}
    bends = [node for node in placed if not node.lines]
    assert sum(len(node.inputs) for node in placed) == edges + len(bends)
    figure = graph.draw(rows, what)
    figure.draw_without_rendering()
    boxes = [patch.get_window_extent() for text in figure.axes[0].texts if (patch := text.get_bbox_patch())]
    assert len(boxes) == len(nodes) and not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_the_script_writes_the_graph_of_a_block(script: Any, tmp_path: Path) -> None:
    assert script("plots/graph.py", "block", "--out", "x.png").returncode == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
