"""The model in C against NumPy in double precision and against generate.py, on this machine and on emulated ones."""

import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from conftest import ROOT
from tinygrad import Tensor

from data.conversations import END_OF_TURN, ROLES
from data.sources import END
from exchange.cfile import DTYPES, SOURCE, TARGETS, build_model, pack_matrix, write_model
from exchange.huggingface import write_huggingface
from exchange.layout import Checkpoint, shapes
from exchange.quantize import quantize_model
from generate import Choice, Sampler, stream
from gpt import build
from runtime.errors import UserError
from tokenizer import CharTokenizer, GPT2Tokenizer, RegexTokenizer, Tokenizer

LETTERS = CharTokenizer("\n abcdefghijk\u00e9\u20ac")
GCC = shutil.which("gcc")


def checkpoint(
    tokenizer: Tokenizer, block_size: int, n_layer: int, n_head: int, n_embd: int, **more: object
) -> Checkpoint:
    """A model with random weights everywhere, also where a new one has zeros and ones."""
    model = {"block_size": block_size, "vocab_size": tokenizer.vocab_size, "n_layer": n_layer, "n_head": n_head,
             "n_embd": n_embd, **more}
    rng = np.random.default_rng(3)
    scale = {"wte": 0.5, "wpe": 0.2}
    tensors = {name: Tensor((rng.standard_normal(shape) * scale.get(name[:3], 0.15)
                             + (".weight" in name and "ln_" in name)).astype(np.float32))
               for name, shape in shapes(model).items()}
    return Checkpoint(Path("model"), model, tensors, tokenizer)


def trained_bpe() -> Tokenizer:
    tokenizer = RegexTokenizer("gpt4")
    tokenizer.train("the king and the queen of the night, 12 times: \u00e9\u00e9 \U0001f600\U0001f600! " * 20, 290)
    tokenizer.register_special_tokens({"<|end|>": 290})
    return tokenizer


MODELS = {
    "characters": lambda: (checkpoint(LETTERS, 6, 2, 2, 8), "bad \u00e9"),
    "no biases": lambda: (checkpoint(LETTERS, 20, 1, 3, 96, bias=False), "a cab"),
    "bpe": lambda: (checkpoint(trained_bpe(), 16, 2, 2, 72), "the queen's \U0001f600<|end|>  night\n"),
    "gpt2": lambda: (checkpoint(GPT2Tokenizer(), 24, 1, 4, 64), "Hello world, it's\n\n 2026!"),
}


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.c compiled for this machine, with every warning an error."""
    folder = tmp_path_factory.mktemp("native")
    if not GCC:
        shutil.copy(SOURCE, folder)
        return build_model(folder, "native")
    warnings = ["-std=gnu99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([GCC, "-O3", "-march=native", *warnings, "-o", folder / "model", SOURCE, "-lm", "-lpthread"],
                   check=True)
    return folder / "model"


def run(command: Sequence[object], *options: object) -> str:
    done = subprocess.run([*map(str, command), *map(str, options)], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def hold_to_numpy(command: Sequence[object], model: Checkpoint, prompt: str, count: int) -> None:
    """Greedy text and logits of a program, far beyond the model's context, are those of the plain loop in float64."""
    weights = {name: t.numpy().astype(np.float64) for name, t in model.tensors.items()}
    c, tokenizer = model.model, model.known_tokenizer()
    ids = tokenizer.encode(prompt, allowed_special="all")
    begin = len(ids)
    options = ["--prompt", prompt, "--max-new-tokens", count, "--temperature", 0]
    for row in run(command, *options, "--logits").splitlines()[:count]:
        window = np.array([ids[-c["block_size"] :]])
        expected = reference.logits(weights, window, c["n_layer"], c["n_head"])[0, -1, : tokenizer.vocab_size]
        logits = np.array(row.split(), np.float64)
        assert np.abs(logits - expected).max() < 1e-4
        ids.append(int(expected.argmax()))
    assert len(ids) == begin + count
    assert run(command, *options) == prompt + tokenizer.decode(ids[begin:]) + "\n"


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_text_and_logits_are_numpys_beyond_the_context(native: Path, tmp_path: Path, kind: str) -> None:
    model, prompt = MODELS[kind]()
    write_model(tmp_path, model)
    for threads in (2,) if kind == "gpt2" else (1, 3):
        hold_to_numpy([native, "--model", tmp_path / "model.bin", "--threads", threads], model, prompt, 26)


def test_a_text_ends_where_that_of_sample_ends(native: Path, tmp_path: Path) -> None:
    """At the token that stands between documents, or behind a turn; --to-end goes on."""
    ended = 0
    for special in ({END: 256}, dict(zip((END, *ROLES.values(), END_OF_TURN), range(256, 261)))):
        tokenizer = RegexTokenizer("gpt4")
        tokenizer.train("abc", 256)
        tokenizer.register_special_tokens(special)
        saved = checkpoint(tokenizer, 16, 1, 2, 8)
        write_model(tmp_path, saved)
        model, end = build(saved), special.get(END_OF_TURN, special[END])
        for seed in range(4):
            pieces = stream(model, tokenizer, [[97]], 300, Choice(2.0, 0), [seed], end=end)
            text = "a" + "".join(piece for _, piece in pieces) + "\n"
            options = ["--prompt", "a", "--max-new-tokens", 300, "--temperature", 2, "--top-k", 0, "--seed", seed]
            assert run([native, "--model", tmp_path / "model.bin"], *options) == text
            ended += text != run([native, "--model", tmp_path / "model.bin"], *options, "--to-end")
    assert ended > 3


def test_threads_stay_together_through_the_passes_of_a_long_prompt(native: Path, tmp_path: Path) -> None:
    """After a pass a thread may be slower than the one that prepares the next: it must not look at what is new."""
    write_model(tmp_path, checkpoint(LETTERS, 1100, 1, 2, 8))
    command = [native, "--model", tmp_path / "model.bin", "--threads", 3, "--max-new-tokens", 2, "--logits", "--prompt"]
    runs = {run(command, "a cab bad face " * 70) for _ in range(40)}  # 1,050 tokens: nine passes
    assert len(runs) == 1


def variant_logits(w: dict[str, np.ndarray], c: dict[str, Any], ids: list[int]) -> np.ndarray:
    """Logits after `ids` of a model with what came after GPT-2: RoPE, grouped queries, RMSNorm and other MLPs."""
    T, nh, nk, hs = len(ids), c["n_head"], c["n_kv_head"], c["n_embd"] // c["n_head"]
    rms = lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + c["norm_eps"])
    norm = lambda x, name: rms(x) * w[name + ".weight"] if c["norm"] == "rmsnorm" else reference.layer_norm(x, w, name)
    x = w["wte.weight"][ids] + (w["wpe.weight"][:T] if c["pos"] == "learned" else 0)
    angle = np.arange(T)[:, None, None] * c["rope_theta"] ** (-np.arange(0, hs, 2) / hs)  # (T, 1, hs/2)
    for i in range(c["n_layer"]):
        heads = reference.linear(norm(x, f"h.{i}.ln_1"), w, f"h.{i}.attn.c_attn").reshape(T, nh + 2 * nk, hs)
        qk, v = heads[:, : nh + nk], heads[:, nh + nk :]
        qk = rms(qk) if c["qk_norm"] else qk
        if c["pos"] == "rope":
            a, b = qk[..., : hs // 2], qk[..., hs // 2 :]
            qk = np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)
        y = np.zeros((T, nh, hs))
        for h in range(nh):
            scores = qk[:, h] @ qk[:, nh + h * nk // nh].T / np.sqrt(hs)
            weights = np.tril(np.exp(scores - scores.max(-1, keepdims=True)))
            y[:, h] = weights / weights.sum(-1, keepdims=True) @ v[:, h * nk // nh]
        x = x + reference.linear(y.reshape(T, -1), w, f"h.{i}.attn.c_proj")
        z = reference.linear(norm(x, f"h.{i}.ln_2"), w, f"h.{i}.mlp.c_fc")
        if c["mlp"] == "swiglu":
            gate, up = np.split(z, 2, -1)
            z = gate / (1 + np.exp(-gate)) * up
        else:
            z = reference.gelu(z) if c["mlp"] == "gelu" else np.maximum(z, 0) ** 2
        x = x + reference.linear(z, w, f"h.{i}.mlp.c_proj")
    return norm(x[-1], "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T


@pytest.mark.parametrize("choice", [
    {"pos": "rope", "n_kv_head": 2, "norm": "rmsnorm", "mlp": "swiglu", "tied": False, "norm_eps": 1e-3},
    {"pos": "rope", "qk_norm": True, "mlp": "relu2", "rope_theta": 100.0, "bias": False},
    {"pos": "none", "n_kv_head": 1, "norm": "rmsnorm"},
], ids=lambda choice: choice["pos"] + choice.get("mlp", "gelu"))
def test_what_came_after_gpt2_is_numpys_too(native: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    c = {"block_size": 20, "vocab_size": 15, "n_layer": 2, "n_head": 4, "n_embd": 40, "n_kv_head": 4,
         "norm": "layernorm", "norm_eps": 1e-5, "mlp": "gelu",
         "pos": "learned", "rope_theta": 1e4, "qk_norm": False, "tied": True, **choice}
    C, H, wide = 40, 36, 40 + 2 * 10 * c["n_kv_head"]  # H: the MLP's width
    shape: dict[str, tuple[int, ...]] = {"wte.weight": (15, C), "ln_f.weight": (C,)}
    shape |= {} if c["tied"] else {"lm_head.weight": (15, C)}
    for i in range(2):
        shape |= {f"h.{i}.{name}.weight": size for name, size in {
            "ln_1": (C,), "attn.c_attn": (C, wide), "attn.c_proj": (C, C), "ln_2": (C,),
            "mlp.c_fc": (C, H * (1 + (c["mlp"] == "swiglu"))), "mlp.c_proj": (H, C)}.items()}
    if c.get("bias", True):
        shape |= {name.replace("weight", "bias"): size[-1:] for name, size in shape.items()
                  if name.startswith("h.") and ("ln" not in name or c["norm"] == "layernorm")}
    rng = np.random.default_rng(5)
    tensors = {name: Tensor((0.3 * rng.standard_normal(size) + ("ln_" in name)).astype(np.float32))
               for name, size in shape.items()}
    weights = {name: t.numpy().astype(np.float64) for name, t in tensors.items()}
    write_model(tmp_path, Checkpoint(tmp_path, c, tensors, LETTERS))
    ids = LETTERS.encode("a cab")
    options = ["--prompt", "a cab", "--max-new-tokens", 22, "--temperature", 0, "--logits"]
    for row in run([native, "--model", tmp_path / "model.bin"], *options).splitlines()[:22]:
        expected = variant_logits(weights, c, ids[-20:])
        assert np.abs(np.array(row.split(), float) - expected).max() < 1e-4
        ids.append(int(expected.argmax()))


STRICT = ["-O1", "-Wall", "-Wextra", "-Wpedantic", "-c"]


@pytest.mark.parametrize("machine", ["", "-mavx2 -mfma", *(flags for flags, _ in TARGETS.values())])
def test_no_compiler_has_a_remark_on_it(tmp_path: Path, machine: str) -> None:
    own = machine in ("", "-mavx2 -mfma") and platform.machine() in ("x86_64", "AMD64")
    compilers = [[name] for name in ("gcc", "clang") if own and shutil.which(name)]
    if machine != "-mavx2 -mfma" or own:
        compilers.append([sys.executable, "-m", "ziglang", "cc"])
    for compiler in compilers:
        done = subprocess.run([*compiler, "-std=c99", *STRICT, *machine.split(), SOURCE, "-o", tmp_path / "model.o"],
                              capture_output=True, text=True, check=True)
        assert done.stderr == "", done.stderr


EMULATORS = {"aarch64": "qemu-aarch64", "riscv64": "qemu-riscv64", "wasm": "node"}
WASI = """
const { WASI } = require("wasi"), fs = require("fs"), [path, ...args] = process.argv.slice(2);
const wasi = new WASI({ version: "preview1", args: [path, ...args], preopens: { "/": "/" }, returnOnExit: true });
const program = WebAssembly.instantiate(fs.readFileSync(path), wasi.getImportObject());
program.then((made) => process.exit(wasi.start(made.instance)));
"""


@pytest.mark.parametrize("target", EMULATORS)
def test_other_machines_write_the_same_text(tmp_path: Path, target: str) -> None:
    emulator = shutil.which(EMULATORS[target])
    if not emulator:
        pytest.skip(f"{EMULATORS[target]} isn't installed, and {target} can't be run without it")
    shutil.copy(SOURCE, tmp_path)
    command: list[object] = [emulator, build_model(tmp_path, target), "--model", tmp_path / "model.bin"]
    if target == "wasm":
        (tmp_path / "run.js").write_text(WASI)
        command[:1] = [emulator, "--no-warnings", tmp_path / "run.js"]
    for kind in ("characters", "gpt2", "bpe"):
        model, prompt = MODELS[kind]()
        write_model(tmp_path, model)
        hold_to_numpy(command, model, prompt, 20)
    for dtype in DTYPES[1:]:  # no floats are added up in another order within int8's groups or bfloat16's pairs
        write_model(tmp_path, model, dtype)
        rows = run(command, "--prompt", prompt, "--max-new-tokens", 2, "--logits").splitlines()
        assert np.isfinite(np.array(rows[0].split(), float)).all()


def test_the_same_seed_gives_the_text_of_generate_py(native: Path, tmp_path: Path) -> None:
    saved, prompt = MODELS["bpe"]()
    write_model(tmp_path, saved)
    model, tokenizer = build(saved), saved.known_tokenizer()
    ids = tokenizer.encode(prompt, allowed_special="all")
    for seed, (top_k, top_p) in enumerate([(200, 1.0), (0, 0.9), (7, 1.0), (20, 0.5)]):
        choice = Choice(1.3, top_k, top_p)
        text = "".join(piece for _, piece in stream(model, tokenizer, [ids], 25, choice, [seed << 31], keep=9))
        options = ["--temperature", 1.3, "--top-k", top_k, "--top-p", top_p, "--seed", seed << 31, "--keep", 9]
        assert run([native, "--model", tmp_path / "model.bin", "--prompt", prompt, "--max-new-tokens", 25],
                   *options) == prompt + text + "\n"
        stop = text[3:5]
        assert run([native, "--model", tmp_path / "model.bin", "--prompt", prompt, "--max-new-tokens", 25],
                   *options, "--stop", stop) == prompt + text.split(stop)[0] + "\n"


def test_any_text_has_the_ids_that_the_tokenizer_gives_it(tmp_path: Path) -> None:
    """A thousand strings of the characters at which a split could go wrong, as GPT-2 and as GPT-4 split them."""
    if not GCC:
        pytest.skip("gcc isn't installed, and model.c's tokenizer is called through a library that it makes")
    import ctypes

    library = tmp_path / "model.so"
    main = tmp_path / "library.c"
    main.write_text(f'#define NO_MAIN\n#include "{SOURCE}"\n'
                    "int ids_of(const void *file, uint64_t size, const char *s, uint32_t n, int32_t *ids)"
                    "{ static GPT g; uint64_t at; uint32_t bad; return open_model(&g, file, size, &at)"
                    " ? -2 : encode(&g, s, n, ids, &bad); }\n")
    subprocess.run([GCC, "-O1", "-w", "-shared", "-fPIC", "-o", library, main, "-lm"], check=True)
    ids_of, rng = ctypes.CDLL(str(library)).ids_of, random.Random(0)
    parts = [*"aZ\u00e9\u0416\u4e2d1\u0663\u00b2 ' \t\n\r\u00a0\u2003.!\U0001f600\u200d\u017f'", "'s", "'LL", "'ve",
             " the", "<|end|>", "<|endoftext|>", "12345", "  ", "\r\n", "\u088f", "aaaa"]
    for tokenizer in (trained_bpe(), GPT2Tokenizer()):
        write_model(tmp_path, checkpoint(tokenizer, 4, 1, 1, 8))
        data = (tmp_path / "model.bin").read_bytes()
        file = ctypes.create_string_buffer(len(data) + 64)
        start = ctypes.addressof(file) + -ctypes.addressof(file) % 64
        ctypes.memmove(start, data, len(data))
        for _ in range(500):
            text = "".join(rng.choices(parts, k=rng.randint(1, 12)))
            raw = text.encode()
            ids = (ctypes.c_int32 * len(raw))()
            count = ids_of(ctypes.c_void_p(start), ctypes.c_uint64(len(data)), raw, len(raw), ids)
            assert list(ids[:count]) == tokenizer.encode(text, allowed_special="all"), repr(text)


# ---- numbers of 16 and of 8 bits ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_words_hold_the_weights_that_they_were_made_from(dtype: str) -> None:
    """Every weight is found where the format says, to half a step of its numbers."""
    w = np.random.default_rng(0).standard_normal((21, 70)).astype(np.float32)
    words, per = pack_matrix(w, dtype), 1 << DTYPES.index(dtype)
    for row, column in ((0, 0), (20, 69), (17, 33), (5, 16), (15, 63), (16, 64)):
        group, j = divmod(column, 64)
        line = group * (64 // per + (dtype == "int8")) + j // (16 * per) * 16 + j % 16
        value = words[row // 16, line + (dtype == "int8"), row % 16] >> np.uint32(32 // per * (j // 16 % per))
        if dtype == "int8":
            scale = words[row // 16, line - line % 17, row % 16].view(np.float32)
            assert abs(scale * (int(value & 255) - 128) - w[row, column]) <= scale / 2 * 1.0001
        else:
            bits = np.uint32(value) if per == 1 else np.uint32((value & 0xFFFF) << 16)
            assert abs(bits.view(np.float32) - w[row, column]) <= abs(w[row, column]) * (per > 1) / 256


@pytest.mark.parametrize("dtype, most", [("bfloat16", 0.02), ("int8", 0.05)])
def test_fewer_bits_move_the_logits_by_little(native: Path, tmp_path: Path, dtype: str, most: float) -> None:
    model, prompt = MODELS["gpt2"]()
    logits = {}
    for kind in ("float32", dtype):
        write_model(tmp_path, model, kind)
        rows = run([native, "--model", tmp_path / "model.bin"], "--prompt", prompt, "--max-new-tokens", 1, "--logits")
        logits[kind] = np.array(rows.split(), float)
    error = np.abs(logits[dtype] - logits["float32"])
    assert 0 < error.mean() < most * np.abs(logits["float32"]).mean()


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_sample_and_eval_compute_with_the_numbers_of_the_c_file(native: Path, tmp_path: Path, dtype: str) -> None:
    """A prompt and a step of gpt.py with packed matrices are those of model.c but for a last bit that rounds otherwise,
    and the loss is that of these logits."""
    saved, prompt = MODELS["bpe"]()
    write_model(tmp_path, saved, dtype)
    ids = saved.known_tokenizer().encode(prompt, allowed_special="all")
    rows = run([native, "--model", tmp_path / "model.bin"], "--prompt", prompt, "--max-new-tokens", 1,
               "--logits").splitlines()
    model = build(saved)
    quantize_model(model, dtype)
    sampler = Sampler(model)
    logits = sampler.prefill([ids[:-1]]).copy(), sampler.step([ids[-1]]).copy()
    expected = np.array(rows[0].split(), float)
    assert np.abs(logits[1][0] - expected).max() < 0.02 * np.abs(expected).max()
    assert np.abs(logits[0][0] - expected).max() > 0.1 * np.abs(expected).max()  # another position's are others
    x, y = np.array([ids[:-1]], np.int32), np.array([ids[1:]], np.int32)
    z = model(Tensor(x)).numpy().astype(np.float64)
    loss = np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, y[..., None], -1)[..., 0]
    assert np.abs(model.losses(Tensor(x), Tensor(y)).numpy() - loss).max() < 1e-4


# ---- files ----


def test_a_damaged_file_is_refused_in_one_sentence_with_the_byte(native: Path, tmp_path: Path) -> None:
    write_model(tmp_path, MODELS["bpe"]()[0])
    whole = (tmp_path / "model.bin").read_bytes()
    damaged = {"short": (whole[:-1], len(whole) - 1), "long": (whole + b"\0", len(whole)), "empty": (b"", 0),
               "foreign": (b"GGUF" + whole[4:], 0), "version": (whole[:8] + b"\2" + whole[9:], 8),
               "heads": (whole[:28] + b"\3" + whole[29:], 32), "token": (whole[:132] + b"\xff" * 4 + whole[136:], 128)}
    for data, byte in damaged.values():
        (tmp_path / "model.bin").write_bytes(data)
        done = subprocess.run([native, "--model", tmp_path / "model.bin"], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.endswith(f"(byte {byte})\n")


def test_what_a_damaged_file_makes_it_do_stays_within_its_memory(tmp_path: Path) -> None:
    """2,000 files under the sanitizers of addresses and of undefined behaviour; fuzz_model.c says how to run more."""
    if not GCC:
        pytest.skip("gcc isn't installed, and its sanitizers are what this test is")
    fuzz = tmp_path / "fuzz"
    sanitizers = "-fsanitize=address,undefined"
    subprocess.run([GCC, "-O1", "-g", "-w", "-Wno-psabi", sanitizers, "-fno-sanitize-recover=all", "-o", fuzz,
                    ROOT / "tests" / "fuzz_model.c", "-lm"], check=True)
    write_model(tmp_path, checkpoint(trained_bpe(), 8, 1, 2, 8), "int8")
    done = subprocess.run([fuzz, tmp_path / "model.bin", "2000", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    accepted = int(done.stdout.split()[0])
    assert 50 < accepted < 1950  # both kinds of files were tried


def test_wrong_options_are_refused_in_one_sentence(native: Path, tmp_path: Path) -> None:
    write_model(tmp_path, MODELS["characters"]()[0])
    for options in (["--top-p", "0"], ["--seed", "x"], ["--nothing", "1"], ["--keep", "7"], ["--prompt", "Z"],
                    ["--max-new-tokens", "0"], ["--stop", ""], ["--prompt", ""], ["--seed"]):
        done = subprocess.run([native, "--model", tmp_path / "model.bin", *options], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, options
        assert done.stderr.startswith("model: ") and options[0].removesuffix("=") in done.stderr, done.stderr
    for options in (["-h"], ["--help"]):
        assert "--top-p" in subprocess.run([native, *options], capture_output=True, text=True, check=True).stdout


def test_what_model_c_does_not_compute_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for more in ({"window": 4}, {"norm_at": "post"}, {"pos": "alibi"}):
        with pytest.raises(UserError, match="model.c has no --"):
            write_model(tmp_path, checkpoint(LETTERS, 6, 1, 1, 8, **more))
    own = RegexTokenizer(r"\w+|\W+")
    with pytest.raises(UserError, match="pattern of its own"):
        write_model(tmp_path, checkpoint(own, 6, 1, 1, 8))
    assert not list(tmp_path.iterdir())


def test_export_makes_a_program_that_holds_its_weights(tmp_path: Path, gpt_py) -> None:
    saved = checkpoint(GPT2Tokenizer(), 8, 1, 2, 16)
    write_huggingface(tmp_path / "hf", saved)
    options = ["--to", "c", "--init-from", "hf", "out", "--embed", "--dtype", "int8", "--build", "native"]
    printed = gpt_py("export", *options)
    assert {line.split(":")[0] for line in printed.splitlines()} == {"out/model", "out/model.c"}
    write_model(tmp_path, saved, "int8")
    one = run([tmp_path / "out" / "model"], "--prompt", "a b", "--max-new-tokens", 30)
    assert one == run([tmp_path / "out" / "model", "--model", tmp_path / "model.bin"], "--prompt", "a b",
                      "--max-new-tokens", 30)
