"""Files that other programs write and read: each against a description of its own, byte by byte, and the wrong ones."""

import hashlib
import http.server
import json
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY
from tinygrad import Tensor
from tinygrad.nn.state import get_state_dict

from commands.export import debug_state
from exchange.checkpoint import Checkpoint, find_checkpoint
from exchange.huggingface import read_huggingface, write_huggingface
from exchange.layout import shapes
from exchange.llmc import (
    read_llmc,
    read_llmc_state,
    read_llmc_tokenizer,
    write_llmc,
    write_llmc_state,
    write_llmc_tokenizer,
)
from gpt import GPT, GPTConfig, build
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors, save_safetensors, to_bytes
from tokenizer import CharTokenizer, GPT2Tokenizer, RegexTokenizer, Tokenizer, from_config

CONFIG = GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8)
NUMBERS = {"block_size": 6, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8}


def checkpoint(model: GPT, tokenizer: Tokenizer | None = None) -> Checkpoint:
    c = model.config
    numbers = {name: getattr(c, name) for name in NUMBERS} | {"bias": c.bias}
    return Checkpoint(Path("made here"), numbers, get_state_dict(model), tokenizer)


def equal(a: GPT, b: GPT) -> bool:
    x, y = get_state_dict(a), get_state_dict(b)
    return set(x) == set(y) and all(np.array_equal(x[k].numpy(), y[k].numpy()) for k in x)


def llmc_bytes(model: GPT) -> bytes:
    """A model file of llm.c for CONFIG, spelled out: no loop over a table that the program could share."""
    p = {name: t.numpy() for name, t in get_state_dict(model).items()}
    V, C, padded = 11, 8, 128
    out = struct.pack("<256i", 20240326, 3, 6, V, 2, 2, C, padded, *[0] * 248)
    arrays = [
        np.concatenate([p["wte.weight"], np.zeros((padded - V, C), np.float32)]),
        p["wpe.weight"],
        np.stack([p["h.0.ln_1.weight"], p["h.1.ln_1.weight"]]),
        np.stack([p["h.0.ln_1.bias"], p["h.1.ln_1.bias"]]),
        np.stack([p["h.0.attn.c_attn.weight"].T, p["h.1.attn.c_attn.weight"].T]),
        np.stack([p["h.0.attn.c_attn.bias"], p["h.1.attn.c_attn.bias"]]),
        np.stack([p["h.0.attn.c_proj.weight"].T, p["h.1.attn.c_proj.weight"].T]),
        np.stack([p["h.0.attn.c_proj.bias"], p["h.1.attn.c_proj.bias"]]),
        np.stack([p["h.0.ln_2.weight"], p["h.1.ln_2.weight"]]),
        np.stack([p["h.0.ln_2.bias"], p["h.1.ln_2.bias"]]),
        np.stack([p["h.0.mlp.c_fc.weight"].T, p["h.1.mlp.c_fc.weight"].T]),
        np.stack([p["h.0.mlp.c_fc.bias"], p["h.1.mlp.c_fc.bias"]]),
        np.stack([p["h.0.mlp.c_proj.weight"].T, p["h.1.mlp.c_proj.weight"].T]),
        np.stack([p["h.0.mlp.c_proj.bias"], p["h.1.mlp.c_proj.bias"]]),
        p["ln_f.weight"],
        p["ln_f.bias"],
    ]
    return out + b"".join(struct.pack(f"<{a.size}f", *a.ravel().tolist()) for a in arrays)


@pytest.mark.parametrize("bias", [True, False])
def test_the_table_of_shapes_is_the_state_dict_of_the_model(bias: bool) -> None:
    config = GPTConfig(**NUMBERS, bias=bias)
    state = {name: tuple(t.shape) for name, t in get_state_dict(GPT(config)).items()}
    assert list(shapes(config).items()) == list(state.items()) == list(shapes(vars(config)).items())


# ---- llm.c ----


def test_a_model_file_of_llmc_is_written_and_read_byte_for_byte(small: GPT, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_llmc(path, checkpoint(small))
    assert path.read_bytes() == llmc_bytes(small)
    found = read_llmc(path)
    assert found.model == NUMBERS and equal(build(found), small)


def test_bfloat16_is_rounded_to_the_nearest_and_read_back(small: GPT, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_llmc(path, checkpoint(small), "BF16")
    data = path.read_bytes()
    assert struct.unpack_from("<i", data, 4)[0] == 5 and len(data) - 1024 == (len(llmc_bytes(small)) - 1024) // 2
    got = get_state_dict(build(read_llmc(path)))
    for name, p in get_state_dict(small).items():
        exact = p.numpy().astype(np.float64)
        unit = 2.0 ** (np.floor(np.log2(np.abs(exact) + 1e-300)) - 7)  # eight bits of significand
        assert (np.abs(got[name].numpy() - exact) <= unit / 2).all(), name
    ties = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0], np.float32)  # halfway between two bfloat16 numbers
    bits = np.frombuffer(to_bytes(ties, "BF16"), "<u2")
    assert [hex(b) for b in bits] == ["0x3f80", "0x3f82", "0xbf80", "0x0"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d[:1000], "ends at byte 1000, before the end of its header at byte 1024"),
        (lambda d: d[:-1], r"should end at byte (\d+) and the file ends at byte \d+"),
        (lambda d: d + b"\0\0\0\0", r"should end at byte \d+ and the file ends at byte \d+"),
        (lambda d: struct.pack("<i", 7) + d[4:], "the number at byte 0 is 7, not 20240326"),
        (lambda d: np.frombuffer(d, "<i4").astype(">i4").tobytes(), "big-endian from byte 0"),
        (lambda d: d[:4] + struct.pack("<i", 1) + d[8:], "version 1 at byte 4"),
        (lambda d: d[:16] + struct.pack("<i", 0) + d[20:], "n_layer at byte 16 is 0"),
        (lambda d: d[:28] + struct.pack("<i", 11) + d[32:], "padded vocabulary at byte 28 is 11"),
        (lambda d: d[:16] + struct.pack("<i", 3) + d[20:], "should end at byte"),
    ],
)
def test_a_damaged_model_file_of_llmc_is_refused_with_the_byte(change, says: str, small: GPT, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(change(llmc_bytes(small)))
    with pytest.raises(UserError, match=says):
        find_checkpoint(str(path))


def test_a_debug_state_is_written_and_read_as_llmc_describes_it(small: GPT, tmp_path: Path) -> None:
    state, path = debug_state(small, B=2, T=5), tmp_path / "state.bin"
    write_llmc_state(path, NUMBERS, state)
    data = path.read_bytes()
    assert struct.unpack_from("<4i", data) == (20240327, 2, 2, 5)
    assert np.frombuffer(data, "<i4", 20, 1024).tolist() == [*state.x.ravel(), *state.y.ravel()]
    logits = np.frombuffer(data, "<f4", 2 * 5 * 11, 1024 + 80).reshape(2, 5, 11)
    assert np.abs(logits - small(Tensor(state.x)).numpy()).max() < 1e-6
    at = 1024 + 80 + 4 * 110
    assert struct.unpack_from("<f", data, at)[0] == pytest.approx(small.loss(Tensor(state.x), Tensor(state.y)).item())
    params = get_state_dict(small)
    for name, g in zip(params, small.loss(Tensor(state.x), Tensor(state.y)).gradient(*params.values())):
        assert np.abs(state.gradients[name].numpy() - g.numpy()).max() < 1e-6, name
    wte = np.frombuffer(data, "<f4", 128 * 8, at + 4).reshape(128, 8)
    assert np.array_equal(wte[:11], state.gradients["wte.weight"].numpy()) and not wte[11:].any()
    back = read_llmc_state(path, NUMBERS)
    assert back.loss == pytest.approx(state.loss)
    assert np.array_equal(back.x, state.x) and np.array_equal(back.y, state.y)
    for name, g in state.gradients.items():
        assert np.array_equal(back.gradients[name].numpy(), g.numpy()), name
    path.write_bytes(data[:-4])
    with pytest.raises(UserError, match="should end at byte"):
        read_llmc_state(path, NUMBERS)


def tokenizers() -> list[Tokenizer]:
    learned = RegexTokenizer("gpt2")
    learned.train("the cat sat on the mat, the rat sat on the cat\n" * 3, 270)
    learned.register_special_tokens({"<|endoftext|>": learned.vocab_size})
    return [CharTokenizer("\nabcäЖ€😀"), learned, GPT2Tokenizer()]


@pytest.mark.parametrize("which", range(3), ids=["characters", "bpe", "gpt2"])
def test_a_tokenizer_file_of_llmc_holds_every_token_and_gives_the_tokenizer_back(which: int, tmp_path: Path) -> None:
    tokenizer, path = tokenizers()[which], tmp_path / "tokenizer.bin"
    write_llmc_tokenizer(path, tokenizer)
    data = path.read_bytes()
    magic, version, count, first = struct.unpack_from("<4i", data)
    assert (magic, version, count) == (20240328, 2, tokenizer.vocab_size)
    assert tokenizer.decode([first]) == ("\n" if which == 0 else "<|endoftext|>")
    at = 1024
    for i in range(count):  # as llm.c reads it: a byte of length, then that many bytes
        assert data[at + 1 : at + 1 + data[at]] == tokenizer.decode_bytes([i])
        at += 1 + data[at]
    assert at == len(data)
    back = read_llmc_tokenizer(path)
    text = "\nabc€😀Ж" if which == 0 else "the cat sat\n on <|endoftext|>the mät"
    assert back.encode(text, allowed_special="all") == tokenizer.encode(text, allowed_special="all")
    for damaged in (data[:-1], data + b"\1a"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged: .* byte \d+"):
            read_llmc_tokenizer(path)


# ---- Hugging Face ----


def test_a_folder_of_huggingface_is_written_as_its_program_names_things(small: GPT, tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abcdefghijk")
    write_huggingface(tmp_path / "hf", checkpoint(small, tokenizer))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["model_type"], config["n_positions"], config["n_ctx"]) == ("gpt2", 6, 6)
    assert (config["activation_function"], config["tie_word_embeddings"]) == ("gelu_new", True)
    names = set(load_safetensors(tmp_path / "hf" / "model.safetensors")[0])
    assert names == {f"transformer.{name}" for name in get_state_dict(small)}
    for source in ("hf", "hf/model.safetensors"):
        found = find_checkpoint(str(tmp_path / source))
        assert found.model == NUMBERS and equal(build(found), small)
        assert found.tokenizer and found.tokenizer.config() == tokenizer.config()


def hf_folder(folder: Path, model: GPT, extra: dict[str, np.ndarray] | None = None, **config: object) -> Path:
    """A folder as the hub has them: no prefix, and more tensors than the weights."""
    numbers = {"n_positions": 6, "vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 8}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **numbers, **config}))
    tensors = get_state_dict(model) | {name: Tensor(a) for name, a in (extra or {}).items()}
    save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    return folder


def test_mask_buffers_and_the_tied_head_are_left_aside(small: GPT, tmp_path: Path) -> None:
    mask = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 6, 6), np.float32)) for i in range(2)}
    extra = mask | {"h.0.attn.masked_bias": np.array([-1e4], np.float32), "lm_head.weight": small.wte.weight.numpy()}
    assert equal(build(read_huggingface(hf_folder(tmp_path / "a", small, extra))), small)
    extra["lm_head.weight"] = extra["lm_head.weight"] + 1
    with pytest.raises(UserError, match=r"lm_head\.weight differs"):
        read_huggingface(hf_folder(tmp_path / "b", small, extra))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"activation_function": "relu"}, "activation_function = 'relu'"),
        ({"model_type": "opt"}, "model_type = 'opt'"),
        ({"n_inner": 7}, "n_inner = 7"),
        ({"n_layer": "two"}, "no number n_layer"),
    ],
)
def test_another_architecture_than_gpt2s_is_refused(
    config: dict[str, object], says: str, small: GPT, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        read_huggingface(hf_folder(tmp_path / "a", small, {}, **config))


def test_tensors_that_do_not_fit_are_named_with_both_shapes(small: GPT, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "a", small, {"h.1.mlp.c_fc.weight": np.zeros((8, 31), np.float32)})
    with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight is \(8, 31\) and should be \(8, 32\)"):
        build(read_huggingface(folder))


def test_a_tensor_that_overlaps_another_is_refused_with_its_bytes(small: GPT, tmp_path: Path) -> None:
    path = hf_folder(tmp_path / "a", small) / "model.safetensors"
    data = path.read_bytes()
    n = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + n])
    first, second = list(header)[1:3]
    header[second]["data_offsets"] = header[first]["data_offsets"]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n :])
    with pytest.raises(UserError, match=r"damaged: .* should stand from byte \d+ to byte \d+, not \d+ to \d+"):
        read_huggingface(path.parent)


@pytest.fixture
def hub(small: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub that serves what a test puts there; it has a small model called gpt2 at first."""
    folder = hf_folder(tmp_path / "published", small)
    weights = (folder / "model.safetensors").read_bytes()
    oid = hashlib.sha256(weights).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(weights)}\n"
    files = {
        "/openai-community/gpt2/resolve/main/config.json": (folder / "config.json").read_bytes(),
        "/openai-community/gpt2/resolve/main/model.safetensors": weights,
        "/openai-community/gpt2/raw/main/model.safetensors": pointer.encode(),
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            body = files.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield files
    server.shutdown()


def test_a_model_of_the_hub_is_fetched_once_and_checked(hub: dict[str, bytes], small: GPT, tmp_path: Path) -> None:
    weights = "/openai-community/gpt2/resolve/main/model.safetensors"
    good = hub[weights]
    hub[weights] = good[:-1] + b"?"
    with pytest.raises(UserError, match="aren't the published file"):
        find_checkpoint("gpt2", tmp_path)
    hub[weights] = good[:500]
    with pytest.raises(UserError, match="sent 500 of"):
        find_checkpoint("gpt2", tmp_path)
    hub[weights] = good
    assert equal(build(find_checkpoint("gpt2", tmp_path)), small)
    hub.clear()
    assert equal(build(find_checkpoint("gpt2", tmp_path)), small)  # from the folder
    with pytest.raises(UserError, match=r"can't be downloaded .* put config\.json and model\.safetensors"):
        find_checkpoint("gpt2-xl", tmp_path)


def test_any_repository_of_the_hub_is_fetched_with_its_tokenizer(
    hub: dict[str, bytes], small: GPT, tmp_path: Path
) -> None:
    learned = RegexTokenizer("gpt2")
    learned.train("the cat sat on the mat", 259)
    learned.to_huggingface(tmp_path)
    published = {path.rsplit("gpt2/", 1)[1]: data for path, data in hub.items()}
    for owner, name in (("distilbert", "distilgpt2"), ("someone", "gpt2-tiny")):
        hub |= {f"/{owner}/{name}/{file}": data for file, data in published.items()}
        for file in ("vocab.json", "merges.txt"):
            hub[f"/{owner}/{name}/resolve/main/{file}"] = (tmp_path / file).read_bytes()
    for source in ("distilgpt2", "someone/gpt2-tiny", "openai-community/gpt2"):
        assert equal(build(find_checkpoint(source, tmp_path)), small), source
    hub.clear()
    for source in ("distilbert/distilgpt2", "someone/gpt2-tiny", "gpt2"):  # from the folder, by either name
        found = find_checkpoint(source, tmp_path)
        if source != "gpt2":
            assert found.tokenizer and found.tokenizer.encode("the cat") == learned.encode("the cat")


PEAK = """
import re
import gpt
from exchange.checkpoint import find_checkpoint
from runtime.device import open_device
open_device("cpu")
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])  # in kB
before = peak()
gpt.build(find_checkpoint({folder!r}))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/status is Linux's")
def test_loading_takes_little_more_memory_than_the_model(tmp_path: Path) -> None:
    config = GPTConfig(block_size=64, vocab_size=65, n_layer=8, n_head=8, n_embd=512)
    write_huggingface(tmp_path / "hf", checkpoint(GPT(config)))
    size = (tmp_path / "hf" / "model.safetensors").stat().st_size / 1024
    command = [sys.executable, "-c", PEAK.format(folder=str(tmp_path / "hf"))]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert size < int(done.stdout) < 1.5 * size


# ---- the command line ----


@pytest.fixture
def run(gpt_py, corpus: Path, tmp_path: Path) -> Run:
    """A run folder of a model trained for two steps."""
    gpt_py("--data", corpus, "--out", "run", "--steps", 2, "--no-bias", *TINY)
    return Run(tmp_path / "run")


def loss_of(printed: str) -> str:
    found = re.search(r"loss .*", printed)
    assert found, printed
    return found[0]


def test_a_run_goes_out_in_every_format_and_comes_back_with_the_same_loss(run: Run, gpt_py, corpus: Path) -> None:
    expected = loss_of(gpt_py("eval", run.path, "--data", corpus))
    text = gpt_py("sample", run.path, "--max-new-tokens", 20)
    for to in ("hf", "llmc"):
        assert "bytes" in gpt_py("export", "--to", to, run.path, to)
        assert loss_of(gpt_py("eval", "--init-from", to, "--data", corpus)) == expected, to
        assert gpt_py("sample", "--init-from", to, "--max-new-tokens", 20) == text, to


def test_the_text_of_a_run_goes_out_as_tokens_and_is_read_as_a_corpus(run: Run, gpt_py, corpus: Path) -> None:
    gpt_py("export", "--to", "tokens", run.path, "tokens")
    train, val = (run.path.parent / "tokens" / f"words_{split}.bin" for split in ("train", "val"))
    written = np.concatenate([np.fromfile(path, "<u2", offset=1024) for path in (train, val)])
    tokenizer = from_config(run.config()["tokenizer"])
    assert tokenizer.decode(written.tolist()) == corpus.read_text(encoding="utf-8")
    assert loss_of(gpt_py("eval", run.path, "--data", val)) == loss_of(gpt_py("eval", run.path))


def test_training_begins_with_a_checkpoint_and_goes_on_after_a_stop(run: Run, script, corpus: Path) -> None:
    common = ["--init-from", run.path, "--data", corpus, "--batch-size", 4, "--eval-batches", 1, "--block-size", 8]
    done = script("gpt.py", *common, "--steps", 1, "--lr", 0, "--min-lr", 0, "--out", "tuned")  # which changes nothing
    assert done.returncode == 0, done.stderr
    tuned = Run(run.path.parent / "tuned")
    base, same = run.load("best")[0], tuned.load("last")[0]
    assert set(base) == set(same)
    for name, tensor in base.items():  # of the positions the first eight are left
        assert np.array_equal(same[name].numpy(), tensor.numpy()[: same[name].shape[0]]), name
    assert tuned.config()["model"] == {**run.config()["model"], "block_size": 8}
    assert tuned.config()["tokenizer"] == run.config()["tokenizer"]
    assert "from step 1" in script("gpt.py", "--resume", "tuned", "--steps", 2).stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("export", "--to hf, c, llmc, peft or tokens"),
        ("export --to onnx a b", "onnx.*hf"),
        ("export --to hf nowhere b", "nowhere is not a run folder"),
        ("export --to tokens --dtype bfloat16 a b", "--dtype"),
        ("sample --init-from nowhere", "nowhere is neither.*gpt2-xl"),
        ("sample here --init-from gpt2", "leave out here"),
        ("eval --init-from gpt2", "--data"),
        ("--init-from {hf} --data {corpus} --n-layer 3", "--n-layer can't be 3: .* has 2"),
        ("--init-from {hf} --data {corpus} --block-size 7", "--block-size can't be 7: .* positions for 6"),
        ("--init-from {hf} --data {corpus}", "no tokenizer"),
    ],
)
def test_a_users_mistake_is_one_sentence(
    args: str, says: str, small: GPT, corpus: Path, gpt_py, tmp_path: Path
) -> None:
    folder = hf_folder(tmp_path / "hf", small)
    with pytest.raises(UserError, match=says):
        gpt_py(*args.format(hf=folder, corpus=corpus).split())
