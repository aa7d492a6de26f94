"""A vocabulary padded inside the loss: invisible outside."""

from types import SimpleNamespace

import numpy as np
import pytest
import reference
from conftest import perturbed
from test_kernels import check, head_loss
from test_model import double, tokens
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

import gpt
from exchange.layout import shapes
from gpt import GPT, GPTConfig
from kernels import cpu, cuda
from runtime import device as runtime_device


@pytest.fixture
def padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does: no C kernels, and a table with rows to a multiple of 128."""
    monkeypatch.setattr(cpu, "takes", lambda *tensors: False)
    monkeypatch.setattr(cuda, "padding", lambda table: -int(table.shape[0]) % 128)


def test_the_loss_of_a_padded_table_and_its_gradients_are_numpys(padded: None) -> None:
    targets = np.array([[0, 12, 5]], np.int32)
    given = Tensor(targets)
    check([lambda x, w: gpt.head_loss(x, w, given)] * 2, lambda x, w: head_loss(x, w, targets), (1, 3, 7), (13, 7))


def test_padding_takes_no_probability_from_tokens_whose_logits_are_very_negative(padded: None) -> None:
    x, table = np.array([[10.0]]), np.array([[-9.0], [-9.1], [-9.5]])  # logits of -90: a row of zeros would win by far
    loss = gpt.head_loss(Tensor(x.astype(np.float32)), Tensor(table.astype(np.float32)), Tensor([1]))
    assert loss.numpy() == pytest.approx(head_loss(x, table, np.array([1])), rel=1e-5)


def test_a_model_with_a_padded_vocabulary_is_the_same_from_outside(padded: None) -> None:
    model = perturbed(GPT(GPTConfig(block_size=6, vocab_size=11, n_layer=1, n_head=2, n_embd=8)))
    params = get_state_dict(model)
    assert {k: tuple(p.shape) for k, p in params.items()} == shapes(model.config)
    x, y = tokens(model, B=2)
    assert model(Tensor(x)).shape == (2, 6, 11)
    losses = model.losses(Tensor(x), Tensor(y))
    assert np.abs(losses.numpy() - reference.losses(double(model), x, y, 1, 2)).max() < 1e-5
    grads = model.loss(Tensor(x), Tensor(y)).gradient(*params.values())
    assert [g.shape for g in grads] == [p.shape for p in params.values()]
    expected = reference.gradients(double(model), x, y, 1, 2)
    assert np.abs(grads[0].numpy() - expected["wte.weight"]).max() < 2e-5


@pytest.mark.parametrize(("arch", "V", "rows"), [("sm_89", 50257, 47), ("sm_89", 50304, 0), ("sm_89", 65, 0),
                                                 ("x86_64,native", 50257, 0)])
def test_a_large_vocabulary_is_padded_on_an_nvidia_gpu_alone(arch: str, V: int, rows: int, monkeypatch) -> None:
    nvidia = SimpleNamespace(renderer=SimpleNamespace(target=SimpleNamespace(arch=arch)))
    monkeypatch.setattr(runtime_device, "Device", {"X": nvidia, "X:1": nvidia})
    assert cuda.padding(SimpleNamespace(shape=(V, 8), device="X")) == rows  # type: ignore[arg-type]
    assert cuda.padding(SimpleNamespace(shape=(V, 8), device=("X", "X:1"))) == rows  # type: ignore[arg-type]
