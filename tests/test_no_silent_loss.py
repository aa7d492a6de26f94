"""What would be wrong without a word, or lose work: each is refused in one sentence, or comes out right."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from tinygrad.nn.state import get_state_dict

from commands.gpt import main
from commands.grok_sweep import sweep
from commands.tokenizer import train as train_tokenizer
from data.corpora import find_corpus
from data.encoding import encode_corpus
from exchange.checkpoint import find_checkpoint
from exchange.huggingface import write_huggingface
from exchange.layout import Checkpoint
from exchange.llmc import read_llmc_tokenizer, write_llmc_tokenizer
from gpt import GPT, GPTConfig
from plots import grok_curves, grok_mechanism, grok_sweep, style
from runtime.device import open_device
from runtime.errors import UserError
from runtime.run import Run
from runtime.tensors import load_safetensors, save_safetensors
from tokenizer import PATTERNS, BasicTokenizer, GPT2Tokenizer, RegexTokenizer
from trainer import TrainOptions, fit_warmup, learning_rate


@pytest.fixture(scope="module")
def made(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    main(["--data", str(corpus), "--data-dir", str(folder), "--out", str(folder / "run"), "--steps", "2", *TINY])
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """A run of two steps, which has evaluated once."""
    return Run(shutil.copytree(made, tmp_path / "run"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- runs and folders ----


def test_a_run_whose_state_is_gone_is_left_as_it_is(run: Run, gpt_py, tmp_path: Path) -> None:
    (run.path / "state.safetensors").unlink()
    for name in ("best", "last", "none"):  # at last the metrics alone say that it got further
        before = contents(run.path)
        with pytest.raises(UserError, match=r"can't go on without its state\.safetensors"):
            gpt_py("--resume", run.path, "--steps", 4)
        assert contents(run.path) == before
        (run.path / f"{name}.safetensors").unlink(missing_ok=True)
    (run.path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 4.0}\n')  # stopped before it evaluated
    gpt_py("--resume", run.path, "--steps", 3)
    assert run.has("state") and run.metrics()[-1]["step"] == 3


def test_a_folder_that_holds_anything_is_no_new_run_folder(gpt_py, corpus: Path, tmp_path: Path) -> None:
    for name in ("sample.txt", "thesis.md"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match=f"holds files already, such as {name}: .* --out"):
            gpt_py("--data", corpus, "--out", folder, "--steps", 1, *TINY)
        with pytest.raises(UserError, match="holds files already"):
            sweep(["fraction", "--values", "0.5", "--out", str(folder)])
        assert contents(folder) == {folder / name: b"mine"}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="holds files already"):  # and no run to resume
        Run.new(tmp_path / "foreign", "gpt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".config.json.123").write_text("left by a kill")
    assert Run.new(tmp_path / "empty", "gpt").path.is_dir()


@pytest.mark.parametrize(("to", "name"), [("hf", "vocab.json"), ("llmc", "gpt2_124M.bin"), ("tokens", "words_val.bin")])
def test_an_export_never_writes_over_a_file(to: str, name: str, run: Run, gpt_py, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is there already"):
        gpt_py("export", "--to", to, run.path, folder)
    assert contents(folder) == {folder / name: b"mine"}
    with pytest.raises(UserError, match="is a run folder"):
        gpt_py("export", "--to", to, run.path, run.path)


def test_one_changed_bit_in_weights_is_found_wherever_it_is(small: GPT, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(path, get_state_dict(small), {"about": '{"step": 20}'})
    good, rng = path.read_bytes(), np.random.default_rng(0)
    numbers = lambda tensors: {name: t.numpy().tobytes() for name, t in tensors.items()}
    tensors, metadata = load_safetensors(path)
    before = numbers(tensors), metadata
    assert metadata == {"step": 20}
    start = 8 + int.from_bytes(good[:8], "little")
    for at in [*rng.integers(8, start, 60), *rng.integers(start, len(good), 60), len(good) - 1]:
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            tensors, metadata = load_safetensors(path)
            assert b'"crc32"' not in damaged and (numbers(tensors), metadata) == before
        except UserError as error:
            assert "is damaged" in str(error)


def test_a_run_from_before_there_were_checksums_still_loads(run: Run, gpt_py) -> None:
    expected = gpt_py("eval", run.path)
    for name in ("best", "last", "state"):
        path = run.path / f"{name}.safetensors"
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        assert header["__metadata__"].pop("crc32")
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    assert gpt_py("eval", run.path) == expected
    gpt_py("--resume", run.path, "--steps", 3)
    assert run.metrics()[-1]["step"] == 3


# ---- texts and tokens ----


def test_a_text_replaced_by_another_of_the_same_size_and_time_is_encoded_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    seen = []
    for text in ("abab" * 30, "abba" * 30):
        file.write_text(text)
        os.utime(file, ns=(10**18, 10**18))
        encoded = encode_corpus(find_corpus(str(file)), "char", tmp_path)
        assert encoded.tokenizer.decode(encoded.ids.tolist()) == text
        seen.append(encoded.sha256)
    assert seen[0] != seen[1]
    for ids in (tmp_path / "encoded").glob("*.bin"):  # one changed bit in what is kept
        ids.write_bytes(bytes([ids.read_bytes()[0] ^ 1]) + ids.read_bytes()[1:])
    encoded = encode_corpus(find_corpus(str(file)), "char", tmp_path)
    assert encoded.tokenizer.decode(encoded.ids.tolist()) == "abba" * 30


def test_exported_tokens_are_read_with_their_own_tokenizer_alone(run: Run, gpt_py, corpus: Path) -> None:
    gpt_py("export", "--to", "tokens", run.path, "tokens")
    common = ["--data", "tokens/words_train.bin", "--steps", 1, *TINY]
    with pytest.raises(UserError, match="the ids of another tokenizer"):
        gpt_py(*common, "--tokenizer", "gpt2", "--out", "b")
    gpt_py(*common, "--tokenizer", "tokens/words.model", "--out", "c")
    assert Run("c").config()["tokenizer"] == run.config()["tokenizer"]
    assert "nats" in gpt_py("eval", run.path, "--data", "tokens/words_val.bin")


def test_a_special_token_given_twice_and_a_tokenizer_with_holes_are_refused_at_once(
    gpt_py, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--special '<\|a\|>' is given twice"):
        train_tokenizer([str(corpus), "--special", "<|a|>", "--special", "<|a|>", "--out", str(tmp_path / "x")])
    holes = BasicTokenizer()
    holes.register_special_tokens({"<|a|>": 258})
    holes.save(tmp_path / "holes")
    with pytest.raises(UserError, match="no token with the id 256"):
        gpt_py("--data", corpus, "--tokenizer", tmp_path / "holes.model", "--out", "run", "--steps", 1, *TINY)
    assert not (tmp_path / "run").exists()


def test_a_pattern_that_leaves_out_text_is_refused_before_anything_is_learned(
    gpt_py, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"leaves out ' ' \(U\+0020\)"):
        train_tokenizer([str(corpus), "--pattern", r"\w+", "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x.model").exists()
    RegexTokenizer(r"\w+|[ ,\n]").save(tmp_path / "words")
    with pytest.raises(UserError, match="leaves out ';'"):
        gpt_py("--data", corpus, "--tokenizer", tmp_path / "words.model", "--out", "run", "--steps", 1, *TINY)
    covers = RegexTokenizer(r"\w+|\W+")
    covers.train(corpus.read_text(), 280)
    assert covers.decode(covers.encode(corpus.read_text())) == corpus.read_text()


# ---- other programs' files ----


@pytest.fixture(scope="module")
def shakespeare() -> str:
    return find_corpus("shakespeare").path.read_text(encoding="utf-8")[:100_000]


ODD = "I'M you'LL 1234567 12 \n\n  \t x\r\n\r\n don\u2019t \u017f's \u212a's  日本語 🎉é \n"


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", None])
def test_a_learned_tokenizer_gives_transformers_the_same_ids(
    pattern: str | None, shakespeare: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = RegexTokenizer(pattern) if pattern else BasicTokenizer()
    ours.train(shakespeare, 600)
    ours.register_special_tokens({"<|endoftext|>": 600, "<|user|>": 601})
    config = GPTConfig(8, 602, 1, 1, 8)
    numbers = {name: getattr(config, name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    write_huggingface(tmp_path, Checkpoint(tmp_path, numbers, get_state_dict(GPT(config)), ours))
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        theirs = loader.from_pretrained(str(tmp_path))
        for text in (shakespeare, ODD * 2, f"a<|user|>{ODD}<|endoftext|>b", *ODD.split(" ")):
            ids = ours.encode(text, allowed_special="all")
            assert theirs(text)["input_ids"] == ids
            assert theirs.decode(ids) == text
    if pattern != "gpt2":  # these files would be read with GPT-2's split
        assert not (tmp_path / "vocab.json").exists()


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", None])
def test_a_learned_tokenizer_comes_back_from_llmc_as_it_was(
    pattern: str | None, shakespeare: str, tmp_path: Path
) -> None:
    ours = RegexTokenizer(pattern) if pattern else BasicTokenizer()
    ours.train(shakespeare, 400)
    write_llmc_tokenizer(tmp_path / "t.bin", ours)
    assert read_llmc_tokenizer(tmp_path / "t.bin").encode(shakespeare + ODD) == ours.encode(shakespeare + ODD)
    with pytest.raises(UserError, match="no place for the pattern"):
        write_llmc_tokenizer(tmp_path / "own.bin", RegexTokenizer(r"\w+|\W"))


def test_the_files_of_a_folder_decide_its_tokenizer_also_with_50257_tokens(tmp_path: Path) -> None:
    gpt2, config = GPT2Tokenizer(), GPTConfig(4, 50257, 1, 1, 4)
    numbers = {name: getattr(config, name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
    write_huggingface(tmp_path, Checkpoint(tmp_path, numbers, get_state_dict(GPT(config)), gpt2))
    read = lambda: find_checkpoint(str(tmp_path)).known_tokenizer()
    assert type(read()) is GPT2Tokenizer
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]  # another vocabulary of the same size
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    assert type(read()) is GPT2Tokenizer  # transformers takes tokenizer.json where there is one
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    text = "I'M a 1234567"
    saved["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [  # the same vocabulary, split as GPT-4 splits
        {"type": "Split", "pattern": {"Regex": PATTERNS["gpt4"]}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    assert read().encode(text) == RegexTokenizer("gpt4", gpt2.merges, gpt2.byte_ids).encode(text) != gpt2.encode(text)
    (tmp_path / "tokenizer.json").unlink()
    assert read().encode("a b") == gpt2.encode("b a")[:1] + gpt2.encode(" b")
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        read()  # half of one
    for name in ("merges.txt", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    assert type(read()) is GPT2Tokenizer  # as the hub's own folder, of which we fetch the weights alone


# ---- switches and schedules ----


def test_a_switch_is_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELS", "maybe")
    with pytest.raises(UserError, match="KERNELS=maybe isn't understood: set KERNELS=0"):
        open_device()
    for value in ("0", "1", ""):
        monkeypatch.setenv("KERNELS", value)
        open_device()


@pytest.mark.parametrize(("name", "value", "sentence"), [
    ("CUDA", "maybe", "CUDA=maybe isn't understood: set CUDA=1, or leave it out"),
    ("DEV", "NULL", "the device NULL can't be used (it compiles kernels and runs none); leave out"),
])
def test_a_device_that_can_run_nothing_is_refused_in_a_sentence(name: str, value: str, sentence: str, script) -> None:
    done = script("bigram.py", "--steps", 2, **{name: value})
    assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1


def test_a_short_run_warms_up_for_a_tenth_of_its_steps_and_says_so(script, corpus: Path) -> None:
    done = script("gpt.py", "--data", corpus, "--steps", 20, *TINY)
    assert "note: the warm-up is 2 of 20 steps, as the usual 100 would take all of them\n" in done.stderr
    o = TrainOptions(steps=50)
    assert "the warm-up is 5 of 50 steps" in fit_warmup(o, set()) and o.warmup == 5
    assert max(learning_rate(i, o) for i in range(50)) == o.lr and learning_rate(49, o) < 1.1 * o.min_lr
    asked = TrainOptions(steps=50, warmup=100)
    assert "the learning rate only rises" in fit_warmup(asked, {"warmup"}) and asked.warmup == 100
    assert fit_warmup(TrainOptions(), set()) == ""


# ---- pictures ----


def test_the_suffix_decides_the_format_of_a_picture(tmp_path: Path) -> None:
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "jpg": b"\xff\xd8\xff", "JPEG": b"\xff\xd8\xff"}
    for suffix, magic in begins.items():
        written = []
        for _ in range(2):
            style.save(style.plt.figure(), tmp_path / f"x.{suffix}")
            written.append((tmp_path / f"x.{suffix}").read_bytes())
        assert written[0].startswith(magic) and written[0] == written[1]
    for name in ("x.bmp", "x", "x.txt", "png"):
        with pytest.raises(UserError, match=r"must end in \.png, \.svg"):
            style.save(style.plt.figure(), tmp_path / name)
        assert not (tmp_path / name).exists()


def test_titles_say_what_the_runs_show() -> None:
    line = lambda step, train, val: {"step": step, "train_acc": train, "clean_val_acc": val}
    grokked, heart = [line(100, 1, 0), line(900, 1, 1)], [line(100, 1, 0)]
    at_once, nothing = [line(100, 1, 0.1), line(150, 1, 1)], [line(50, 0.3, 0)]
    assert grok_curves.title([grokked]) == "Learned by heart, and long after that understood"
    assert grok_curves.title([heart]) == "Learned by heart, and not understood yet"
    assert grok_curves.title([grokked, heart]) == "Learned by heart, and not understood by all yet"
    assert grok_curves.title([at_once]) == "Learned and understood"
    assert "aren't learned yet" in grok_curves.title([nothing]) and "heart" not in grok_curves.title([nothing, heart])

    rng, p = np.random.default_rng(0), 97
    noise, directions = rng.standard_normal((p, 16)), np.eye(4, 16)  # two planes
    circles = np.concatenate([grok_mechanism.waves(p, k, np.arange(p)) for k in (3, 8)], 1) @ directions
    for wte, words in ((noise, ("strongest of 48", "no circle")), (circles + 0.1 * noise, ("keeps 2", "is a circle"))):
        keys = grok_mechanism.key_frequencies(grok_mechanism.fourier_power(wte))
        said = grok_mechanism.titles(wte, keys, np.inf, np.inf)
        assert words[0] in said[0] and said[1].endswith(words[1]) and "don't answer anything yet" in said[2]
    third = lambda restricted, validation: grok_mechanism.titles(noise, [1], restricted, validation)[2]
    assert "before validation shows it" in third(100, 900)
    assert "not yet" in third(100, np.inf) and "before" not in third(900, 900) + third(100, np.inf)

    sweep_of = lambda *steps: [{"frac": 0.2 + 0.1 * i, "clean_val_99": s} for i, s in enumerate(steps)]
    assert grok_sweep.fraction_title(sweep_of(None, 900, 100)) == "The less of the table, the later"
    for runs in (sweep_of(100, 900, 1000), sweep_of(None, None, None), sweep_of(100)):
        assert "later" not in grok_sweep.fraction_title(runs)
