"""The model, its files and its training beside PyTorch's and those of the transformers library.

    pip install -e '.[parity]'

Both are optional: without them these tests are skipped.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import perturbed
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from exchange.huggingface import read_huggingface, write_huggingface
from exchange.layout import Checkpoint
from generate import Choice, stream
from gpt import GPT, GPTConfig, build
from tokenizer import CharTokenizer
from trainer import AdamW, TrainOptions, jit

torch = pytest.importorskip("torch", reason="PyTorch isn't installed: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="transformers isn't installed: pip install -e '.[parity]'")
transformers.logging.set_verbosity_error()

SHAPES = [  # block_size, vocab_size, n_layer, n_head, n_embd
    pytest.param((8, 11, 1, 1, 4), id="one head"),
    pytest.param((64, 300, 3, 3, 48), id="three heads"),
    pytest.param((48, 1000, 2, 8, 128), id="wide"),
]
TOLERANCE = 1e-4  # the largest difference there may be; what there is, is in the message of a failure and in -rP


def theirs(shape: tuple[int, ...], seed: int = 0) -> Any:
    """A GPT2LMHeadModel, every parameter moved off its initial value and no dropout."""
    torch.manual_seed(seed)
    T, V, L, nh, C = shape
    config = transformers.GPT2Config(
        n_positions=T, vocab_size=V, n_layer=L, n_head=nh, n_embd=C, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
        bos_token_id=0, eos_token_id=None, attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def saved(model: Any, folder: Path) -> GPT:
    """Ours with the weights that theirs saves."""
    model.save_pretrained(folder)
    return build(read_huggingface(folder))


def tokens(shape: tuple[int, ...], B: int = 2) -> tuple[np.ndarray, np.ndarray]:
    T, V = shape[:2]
    xy = np.random.default_rng(0).integers(0, V, (2, B, T), dtype=np.int32)
    return xy[0], xy[1]


def their_loss(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    logits = model(torch.tensor(x).long()).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(y).long().flatten())


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_loss_and_every_gradient_are_those_of_transformers(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = theirs(shape)
    ours, (x, y) = saved(model, tmp_path), tokens(shape)
    logits = model(torch.tensor(x).long()).logits.detach().numpy()
    loss = their_loss(model, x, y)
    loss.backward()
    grads = {name.removeprefix("transformer."): p.grad.numpy() for name, p in model.named_parameters()}
    params = get_state_dict(ours)
    assert set(grads) == set(params)
    apart = {"logits": np.abs(ours(Tensor(x)).numpy() - logits).max()}
    value = ours.loss(Tensor(x), Tensor(y))
    apart["loss"] = abs(value.item() - loss.item())
    for name, g in zip(params, ours.loss(Tensor(x), Tensor(y)).gradient(*params.values())):
        apart[name] = np.abs(g.numpy() - grads[name]).max()
    worst = max(apart, key=lambda name: apart[name])
    print(f"{shape}: logits {apart['logits']:.1e}, loss {apart['loss']:.1e}, largest: {worst} {apart[worst]:.1e}")
    assert apart[worst] < TOLERANCE, (worst, apart[worst])


@pytest.mark.parametrize("shape", SHAPES[1:2])
def test_what_we_export_transformers_loads_with_the_same_logits(shape: tuple[int, ...], tmp_path: Path) -> None:
    T, V, L, nh, C = shape
    model = perturbed(GPT(GPTConfig(T, V, L, nh, C, bias=False)))
    numbers = {"block_size": T, "vocab_size": V, "n_layer": L, "n_head": nh, "n_embd": C, "bias": False}
    write_huggingface(tmp_path, Checkpoint(tmp_path, numbers, get_state_dict(model), None))
    loaded, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    x, _ = tokens(shape)
    expected = loaded.eval()(torch.tensor(x).long()).logits.detach().numpy()
    assert np.abs(model(Tensor(x)).numpy() - expected).max() < TOLERANCE


def test_the_vocabulary_that_we_export_gives_transformers_the_same_ids(tmp_path: Path) -> None:
    from tokenizer import RegexTokenizer

    ours = RegexTokenizer("gpt2")
    ours.train("the cat sat on the mat, the rat sat on the cat\n" * 3, 270)
    ours.register_special_tokens({"<|endoftext|>": 270})
    model = GPT(GPTConfig(8, 271, 1, 1, 4))
    numbers = {"block_size": 8, "vocab_size": 271, "n_layer": 1, "n_head": 1, "n_embd": 4}
    write_huggingface(tmp_path, Checkpoint(tmp_path, numbers, get_state_dict(model), ours))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat sat, thé\n 12 <|endoftext|> mat"
    assert loaded(text)["input_ids"] == ours.encode(text, allowed_special="all")


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_greedy_text_is_that_of_transformers(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = theirs(shape)
    ours, prompt = saved(model, tmp_path), tokens(shape)[0][:1, :5]
    new = shape[0] - 5
    expected = model.generate(torch.tensor(prompt).long(), max_new_tokens=new, do_sample=False, pad_token_id=0)[0, 5:]
    letters = CharTokenizer("".join(chr(0x4E00 + i) for i in range(shape[1])))
    got = "".join(piece for _, piece in stream(ours, letters, prompt.tolist(), new, Choice(temperature=0)))
    assert letters.encode(got) == expected.tolist()


def test_ten_steps_of_adamw_have_pytorchs_losses(tmp_path: Path) -> None:
    """From the same start, with decay on matrices only, clipping, and a learning rate that changes."""
    shape = (32, 65, 2, 4, 32)
    model = theirs(shape)
    ours, (x, y) = saved(model, tmp_path), tokens(shape, B=4)
    o = TrainOptions(lr=3e-3, beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=0.5)
    params = get_state_dict(ours)
    optimizer = AdamW(params, o)

    @jit
    def step(hyper: Tensor) -> Tensor:
        loss = ours.loss(inputs[0], inputs[1])
        grads = [g.contiguous() for g in loss.gradient(*params.values())]
        Tensor.realize(loss, *grads)
        optimizer.update(dict(zip(params, grads)), hyper)
        return loss

    inputs = [Tensor(x).realize(), Tensor(y).realize()]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    apart = []
    for i in range(10):
        lr = 3e-3 * (i + 1) / 10
        for group in adamw.param_groups:
            group["lr"] = lr
        loss = their_loss(model, x, y)
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        adamw.step()
        apart.append(abs(step(Tensor(optimizer.hyper(i, lr)).realize()).item() - loss.item()))
    print(f"largest difference of ten losses {max(apart):.1e}; the last loss is {loss.item():.4f}")
    assert max(apart) < 1e-5
