"""What a user gets wrong, and files of other programs: the sentence that says what to do, or the right result."""

from runtime.script import check_python, check_variables

import importlib.util
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from test_exchange import equal, hf_folder
from tinygrad.nn.state import get_state_dict

from commands import tokenizer as tokenizer_commands
from exchange import huggingface, peft
from exchange.adapters import apply_adapters
from exchange.checkpoint import find_checkpoint
from exchange.foreign import read_tokenizer_json
from gpt import GPT, GPTConfig, build
from plots import style
from runtime import device
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import save_safetensors
from tokenizer import BasicTokenizer, CharTokenizer, RegexTokenizer

CORPUS = "the king and queen of night sing to a cold bright star\n" * 60


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(CORPUS)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of other programs, and their mistakes: no training."""
    folder = tmp_path_factory.mktemp("files")
    model = GPT(GPTConfig(block_size=6, vocab_size=11, n_layer=2, n_head=2, n_embd=8))
    hf_folder(folder / "hf", model)
    pickled = folder / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((folder / "hf" / "config.json").read_text())
    with zipfile.ZipFile(pickled / "pytorch_model.bin", "w") as archive:  # what torch.save writes since 1.6
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    (folder / "ckpt.pt").write_bytes(pickle.dumps({}, protocol=2))  # and before
    shutil.copytree(pickled, folder / "peft")
    (folder / "peft" / "pytorch_model.bin").rename(folder / "peft" / "adapter_model.bin")
    (folder / "peft" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    (folder / "nanogpt").mkdir()
    shutil.copy(folder / "ckpt.pt", folder / "nanogpt")
    shutil.copy(folder / "ckpt.pt", folder / "fake.safetensors")
    shutil.copy(folder / "hf" / "config.json", folder)
    RegexTokenizer("gpt2", {(97, 98): 256}).save(folder / "mine")
    (folder / "text.txt").write_text(CORPUS)
    return folder


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("sample --init-from {}/ckpt.pt", "is a pickle.*transformers.*save_pretrained"),
        ("sample --init-from {}/pickled/pytorch_model.bin", "is a pickle"),
        ("sample --init-from {}/pickled", r"pytorch_model\.bin is a pickle"),
        ("--resume {}/hf", "not a run folder.*another program.*--init-from"),
        ("sample --lora {0}/nowhere --init-from {0}/hf", "nowhere"),
        ("--data {0}/text.txt --tokenizer {0}/mine", r"did you mean .*mine\.model\?"),
        ("--init-from {0}/hf --data {0}/text.txt --tokenizer gpt2", "--tokenizer gpt2 has 50,257.*rows for 11"),
        ("--data {0}/text.txt --n-layer 99999999999", "parameters takes .* GB to train, and this machine has"),
        ("info --preset gpt2 --device cuda", "name the architecture.*cuda:sm_89"),
        ("info --preset gpt2 --device cuda:sm_999", "sm_999 isn't the architecture"),
        ("sample --lora {0}/ckpt.pt --init-from {0}/hf", "is a pickle"),
        ("sample --lora {0}/peft --init-from {0}/hf", r"adapter_model\.bin is a pickle"),
        ("sample --init-from {}/nanogpt", r"ckpt\.pt is a pickle"),
        ("sample --init-from {}/fake.safetensors", "is a pickle"),
        ("--data {0}/text.txt --out {0}/hf", "hf holds files already"),
        ("sample --init-from some/model", "there is no some/model here, and http.*some/model can't be downloaded"),
    ],
)
def test_the_sentence_names_the_mistake(
    args: str, says: str, folder: Path, gpt_py, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=says):
        gpt_py(*args.format(folder).split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["train", "text.txt", "--out", "x", "--vocab-size", "256", "--special", "<|a|>"],
         "at least 257 for 256 bytes and 1 special tokens, not 256"),
        (["show", "a", "--tokenizer", "mine"], r"did you mean mine\.model\?"),
    ],
)
def test_the_sentence_of_the_tokenizer_names_the_mistake(
    args: list[str], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=says):
        tokenizer_commands.main(args)


def test_info_names_its_model_and_shows_equal_blocks_once_with_the_whole_sum(gpt_py) -> None:
    shown = gpt_py("info", "--preset", "gpt2-xl").splitlines()
    assert shown[0] == "gpt2-xl" and len(shown) < 25
    rows = {words[0]: words[1:] for line in shown if (words := line.split())}
    assert rows["h.*.mlp.c_fc.weight"] == ["1600", "x", "6400", "10,240,000", "x", "48", "blocks"]
    assert "1,557,611,200" in shown[-3] and shown[-3].endswith("1,557,611,200")  # OpenAI's largest has as many


def test_prefixes_of_torch_compile_and_of_ddp_are_left_aside(small: GPT, tmp_path: Path) -> None:
    hf_folder(tmp_path / "hf", small)
    for prefix in ("_orig_mod.", "module.", "module._orig_mod.transformer.", "_orig_mod.transformer.", "model."):
        tensors = {prefix + name: t for name, t in get_state_dict(small).items()}
        save_safetensors(tmp_path / "hf" / "model.safetensors", tensors, {"format": "pt"})
        assert equal(build(find_checkpoint(str(tmp_path / "hf"))), small), prefix
    tensors = {name.replace("h.1.", "h.1._orig_mod."): t for name, t in get_state_dict(small).items()}
    save_safetensors(tmp_path / "hf" / "model.safetensors", tensors, {"format": "pt"})
    assert equal(build(find_checkpoint(str(tmp_path / "hf"))), small)
    twice = {**tensors, "module.wte.weight": tensors["wpe.weight"]}
    save_safetensors(tmp_path / "hf" / "model.safetensors", twice, {"format": "pt"})
    with pytest.raises(UserError, match="two tensors for one"):
        find_checkpoint(str(tmp_path / "hf"))


# ---- runs ----


def test_a_model_that_is_given_other_tokens_than_it_has_learned_gets_a_note(
    gpt_py, script, text: Path, tmp_path: Path
) -> None:
    gpt_py("--data", text, "--out", "base", "--steps", 2, *TINY)
    greek = tmp_path / "greek.txt"
    greek.write_text("αβγ δεζ\n" * 200, encoding="utf-8")
    for data, notes in ((text, 0), (greek, 1)):
        done = script("gpt.py", "--init-from", "base", "--data", data, "--tokenizer", "char", "--steps", 1,
                      "--block-size", 8, "--batch-size", 2)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("has learned other tokens than those of --tokenizer char") == notes


def test_a_run_is_taken_by_its_weights_and_a_lost_text_or_base_by_its_new_place(
    gpt_py, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "lock", lambda run: None)  # this process is several one after the other
    gpt_py("--data", text, "--out", "base", "--steps", 2, *TINY)
    loss = lambda *args: gpt_py("eval", *args).splitlines()[-1]
    known = loss("base")
    assert loss("--init-from", "base/best.safetensors", "--data", text, "--split", "val") == known
    with pytest.raises(UserError, match=r"isn't a model: name the run .*base or its best\.safetensors"):
        gpt_py("sample", "--init-from", "base/state.safetensors")

    text.rename(tmp_path / "moved.txt")
    with pytest.raises(UserError, match=r"text\.txt, the text of base, is gone.*--data FILE --split val"):
        gpt_py("eval", "base")
    assert loss("base", "--data", "moved.txt", "--split", "val") == known
    with pytest.raises(UserError, match=r"is gone: name its new place with --data"):
        gpt_py("--resume", "base", "--steps", 3)

    lora = ["--lora-rank", 2, "--batch-size", 4, "--eval-batches", 1, "--steps", 1, "--lr", "0.05", "--warmup", 0]
    gpt_py("--init-from", "base", "--data", "moved.txt", *lora, "--out", "tuned")
    tuned = loss("tuned", "--data", "moved.txt")
    assert tuned != loss("base", "--data", "moved.txt")
    for adapters in ("tuned", "tuned/best.safetensors"):
        assert loss("base", "--lora", adapters, "--data", "moved.txt") == tuned

    gpt_py("export", "--to", "peft", "tuned", "peft")  # and back
    assert loss("base", "--lora", "peft", "--data", "moved.txt") == tuned
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"base, which the adapters in tuned are for, is gone.*--init-from NEW --lora"):
        gpt_py("sample", "tuned")
    assert loss("--init-from", "elsewhere", "--lora", "tuned", "--data", "moved.txt") == tuned
    with pytest.raises(UserError, match=r"is gone: name its new place with --init-from"):
        gpt_py("--resume", "tuned", "--steps", 2)
    gpt_py("--resume", "tuned", "--steps", 2, "--init-from", "elsewhere")
    assert Run(tmp_path / "tuned").metrics()[-1]["step"] == 2


def test_a_text_ends_before_the_token_that_ends_texts(small: GPT) -> None:
    from generate import Choice, stream

    tokenizer, greedy = CharTokenizer("abcdefghijk"), Choice(temperature=0)
    whole = "".join(piece for _, piece in stream(small, tokenizer, [[1, 2]], 12, greedy))
    last = next(c for c in whole[1:] if c != whole[0])  # the first to come after others
    end = "abcdefghijk".index(last)
    ended = "".join(piece for _, piece in stream(small, tokenizer, [[1, 2]], 12, greedy, end=end))
    assert ended and ended == whole[: whole.index(last)]


# ---- PEFT ----


def peft_folder(folder: Path, **config: object) -> dict[str, np.ndarray]:
    """A folder as `get_peft_model(...).save_pretrained` writes one; the tensors in it."""
    rng = np.random.default_rng(1)
    shapes = {"attn.c_attn": (8, 24), "mlp.c_proj": (32, 8)}
    tensors = {}
    for layer, (n_in, n_out) in shapes.items():
        for which, shape in (("A", (2, n_in)), ("B", (n_out, 2))):
            name = f"base_model.model.transformer.h.1.{layer}.lora_{which}.weight"
            tensors[name] = rng.standard_normal(shape).astype(np.float32)
    save_safetensors(folder / "adapter_model.safetensors", {n: Array(t) for n, t in tensors.items()}, {"format": "pt"})
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["c_attn", "c_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**known, "fan_in_fan_out": True, **config}))
    return tensors


class Array:
    def __init__(self, values: np.ndarray):
        self.values, self.shape = values, values.shape

    def numpy(self) -> np.ndarray:
        return self.values


def test_adapters_of_peft_correct_the_matrices_as_its_formula_says(small: GPT, tmp_path: Path) -> None:
    base = find_checkpoint(str(hf_folder(tmp_path / "hf", small)))
    (tmp_path / "peft").mkdir()
    theirs = peft_folder(tmp_path / "peft")
    configs: list[tuple[dict[str, object], float]] = [({}, 3.0), ({"use_rslora": True}, 6 / np.sqrt(2))]
    for config, scale in configs:
        peft_folder(tmp_path / "peft", **config)
        merged = get_state_dict(build(apply_adapters(base, tmp_path / "peft")))
        for name, t in get_state_dict(small).items():
            expected = t.numpy().astype(np.float64)
            if name in ("h.1.attn.c_attn.weight", "h.1.mlp.c_proj.weight"):
                a, b = (theirs[f"base_model.model.transformer.{name.removesuffix('.weight')}.lora_{w}.weight"]
                        for w in "AB")
                expected = expected + scale * (b.astype(np.float64) @ a).T
            assert np.abs(merged[name].numpy() - expected).max() < 1e-5, name
    wrong = {"init_lora_weights": "pissa", "alora_invocation_tokens": [1], "use_dora": True, "peft_type": "IA3", "r": 0,
             "lora_alpha": "x"}
    for says, value in wrong.items():
        peft_folder(tmp_path / "peft", **{says: value})
        with pytest.raises(UserError, match=says):
            apply_adapters(base, tmp_path / "peft")


def test_adapters_go_out_as_peft_names_and_turns_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((8, 2), np.float32), rng.standard_normal((2, 24), np.float32)
    ours = {"h.0.attn.c_attn.lora_a": Array(a), "h.0.attn.c_attn.lora_b": Array(b)}
    peft.write_peft(tmp_path, peft.Adapters(ours, 2, 16.0), "openai-community/gpt2")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 16, ["c_attn"])
    assert config["fan_in_fan_out"] and config["base_model_name_or_path"] == "openai-community/gpt2"
    back = peft.read_peft(tmp_path)
    assert np.array_equal(back.tensors["h.0.attn.c_attn.lora_a"].numpy(), a) and back.alpha / back.rank == 8
    if importlib.util.find_spec("safetensors"):  # the library that PEFT reads with
        from safetensors.numpy import load_file

        stored = load_file(tmp_path / "adapter_model.safetensors")
        assert np.array_equal(stored["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"], a.T)
        assert np.array_equal(stored["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"], b.T)


# ---- tokenizer.json ----


def tokenizer_json(tokenizer: BasicTokenizer, pre_tokenizer: dict) -> dict:
    """What the tokenizers library would save of this BPE."""
    from runtime.gpt2_files import byte_letters

    letters = byte_letters()
    spell = lambda token: "".join(letters[b] for b in token)
    vocab = {spell(token): i for i, token in tokenizer.ordinary_vocab().items()}
    merges = [f"{spell(tokenizer.vocab[a])} {spell(tokenizer.vocab[b])}" for a, b in tokenizer.merges]
    added = [{"id": i, "content": token, "special": True} for token, i in tokenizer.special_tokens.items()]
    return {"version": "1.0", "added_tokens": added, "normalizer": None, "pre_tokenizer": pre_tokenizer,
            "model": {"type": "BPE", "vocab": vocab, "merges": merges}}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def test_a_folder_with_tokenizer_json_alone_has_its_tokenizer_and_its_split(small: GPT, tmp_path: Path) -> None:
    sample = "the cat sat on the mat, the rat sat on the cat: 12345 it's\n\n  <|endoftext|> mät"
    gpt4 = r"(?i:'s|'t)|\p{N}{1,3}|\s+|[^\s\p{N}]+"
    for pattern, steps in (
        ("gpt2", {**BYTES, "use_regex": True}),
        (gpt4, {"type": "Sequence", "pretokenizers": [{**SPLIT, "pattern": {"Regex": gpt4}}, BYTES]}),
    ):
        made = RegexTokenizer(pattern)
        made.train(sample, 262)
        made.register_special_tokens({"<|endoftext|>": made.vocab_size})
        folder = hf_folder(tmp_path / str(len(pattern)), small, vocab_size=made.vocab_size)
        saved = tokenizer_json(made, steps)
        (folder / "tokenizer.json").write_text(json.dumps(saved))
        found = huggingface.huggingface_tokenizer(folder, json.loads((folder / "config.json").read_text()))
        assert found and found.encode(sample, allowed_special="all") == made.encode(sample, allowed_special="all")
        if importlib.util.find_spec("tokenizers"):
            from tokenizers import Tokenizer

            saved["added_tokens"] = [{**t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
                                     for t in saved["added_tokens"]]
            theirs = Tokenizer.from_str(json.dumps(saved | {"truncation": None, "padding": None, "decoder": None,
                                                            "post_processor": None}))
            assert found.encode(sample, allowed_special="all") == theirs.encode(sample).ids
    saved["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="no byte-level BPE like GPT-2's"):
        read_tokenizer_json(folder / "tokenizer.json")


# ---- the machine ----


def test_a_switch_of_another_device_asks_for_that_device() -> None:
    env = {"METAL": "1", "CPU": "0"}
    device.translate_cuda_switch(env)
    assert env == {"DEV": "METAL"}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc can't be written")
@pytest.mark.parametrize("env", [{"HOME": "/proc/x"}, {"XDG_CACHE_HOME": "/proc/x"}])
def test_without_a_place_for_kernels_it_says_so_and_works(env: dict[str, str], script) -> None:
    done = script("gpt.py", "eval", "nowhere", **env)
    assert done.returncode == 2 and "nowhere" in done.stderr and "ziglang" not in done.stderr, done.stderr
    assert "kernels are compiled anew each time; set XDG_CACHE_HOME" in done.stderr


def test_a_device_that_was_asked_for_by_its_switch_is_named_with_it_and_no_compiler_is_blamed(script) -> None:
    for env, args in (({"AMD": "1"}, []), ({}, ["--device", "cpu:1"])):
        done = script("gpt.py", "sample", "--init-from", "gpt2", *args, **env)
        assert done.returncode == 2 and "ziglang" not in done.stderr, done.stderr
        assert "AMD=1" in done.stderr if env else "'1'" in done.stderr


def test_where_the_users_cache_cannot_be_written_a_c_file_is_still_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from exchange import cfile

    asked: list[dict[str, str]] = []

    def compiler(command: list, env: dict[str, str], **_: object) -> SimpleNamespace:
        asked.append(env)
        command[command.index("-o") + 1].touch()
        return SimpleNamespace(returncode=0)

    (tmp_path / "file").touch()
    monkeypatch.setattr(cfile, "subprocess", SimpleNamespace(run=compiler))
    monkeypatch.setattr(cfile.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("ZIG_GLOBAL_CACHE_DIR", raising=False)
    for cache, moved in ((tmp_path / "cache", False), (tmp_path / "file" / "cache", True)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        cfile.compile_c(tmp_path / "x.c", tmp_path / "x", "")
        assert ("ZIG_GLOBAL_CACHE_DIR" in asked[-1]) is moved  # zig would try for ever


def test_a_python_that_cannot_run_it_is_told_what_to_type() -> None:
    assert check_python((3, 12), []) == ""
    assert "3.10" in check_python((3, 10), ["numpy"]) and "3.11 or newer" in check_python((3, 10), [])
    assert "tinygrad isn't installed" in check_python((3, 11), ["tinygrad"])
    assert ".venv/bin/python" in check_python((3, 11), ["tinygrad"])


def test_a_variable_that_tinygrad_cannot_read_is_named() -> None:
    assert check_variables({"DEBUG": "2", "BEAM": "-1", "HOME": "x"}) == ""
    assert check_variables({"DEBUG": "x"}).startswith("DEBUG=x isn't a number")
    assert check_variables({"JIT": ""}).startswith("JIT= isn't a number")


def test_a_python_without_the_packages_gets_the_sentence(tmp_path: Path, script) -> None:
    import subprocess

    from conftest import ROOT

    shutil.copytree(ROOT / "runtime", tmp_path / "runtime")
    shutil.copy(ROOT / "gpt.py", tmp_path)
    done = subprocess.run([sys.executable, "-S", "-E", str(tmp_path / "gpt.py")], capture_output=True, text=True,
                          cwd=tmp_path, check=False)
    assert done.returncode == 2 and "isn't installed for this Python" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_benchmarks_without_what_they_compare_with_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import __main__ as benchmarks_main

    monkeypatch.setattr(benchmarks_main, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="torch isn't installed"):
        benchmarks_main.main([])


def test_a_character_that_the_font_lacks_is_drawn_as_its_number() -> None:
    assert style.drawable("aé↵中🜁\n\udce9") == "aé↵4E2D1F701\nDCE9"


@pytest.mark.filterwarnings("error")
def test_a_title_with_a_name_that_the_font_lacks_is_drawn_without_a_warning(tmp_path: Path) -> None:
    figure, axes = style.plt.subplots()
    axes.set_title("中文\udce9", loc="left")
    axes.plot([1], label="中")
    axes.legend()
    style.save(figure, tmp_path / "x.svg")
    assert axes.get_title("left") == "4E2D6587DCE9" and (tmp_path / "x.svg").is_file()
