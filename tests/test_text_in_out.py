"""Text in any encoding, names with any characters, and the ways in which a command line is typed."""

import decimal
import os
import shlex
from pathlib import Path

import pytest
from conftest import TINY

from commands.options import Options
from commands.questions import format_perplexity
from commands.sample import SampleOptions
from data.corpora import Corpus
from data.encoding import encode_corpus
from exchange.page import write_page
from generate import encode_prompt
from runtime import cli
from runtime.errors import UserError
from runtime.run import Run
from runtime.text import read_text
from tokenizer import CharTokenizer, RegexTokenizer

BOM = "\ufeff"


def corpus_of(path: Path, data: bytes) -> Corpus:
    path.write_bytes(data)
    return Corpus(path.stem, path, "")


# ---- text in ----


def test_a_byte_order_mark_is_no_part_of_a_text_or_a_prompt(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "text", (BOM + "a king\r\nand a queen").encode())
    encoded = encode_corpus(corpus, "char", tmp_path)
    assert encoded.tokenizer.decode(encoded.ids.tolist()) == "a king\r\nand a queen"
    assert "".join(read_text(corpus.path)) == "a king\r\nand a queen"
    assert encode_prompt(encoded.tokenizer, BOM + "king") == encode_prompt(encoded.tokenizer, "king")
    learned = RegexTokenizer("gpt2")
    learned.train_files([corpus.path], 258)
    assert BOM.encode()[:2] not in learned.vocab.values()
    with pytest.raises(UserError, match="is empty"):
        encode_corpus(corpus_of(tmp_path / "mark", BOM.encode()), "char", tmp_path)


def test_a_zero_byte_is_refused_wherever_it_is(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "text", b"a" * (3 << 20) + b"\0")
    with pytest.raises(UserError, match="zero bytes"):
        encode_corpus(corpus, "char", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named_with_the_command_that_converts_it(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "my text"
    corpus = corpus_of(path, "To be, or not to be".encode(encoding))
    for read in (lambda: encode_corpus(corpus, "gpt2", tmp_path), lambda: list(read_text(path))):
        with pytest.raises(ValueError, match="is UTF-") as error:
            read()
        words = shlex.split(str(error.value).split("`")[1])
        assert words[0] == "iconv" and words[5] == str(path) and path.read_bytes().decode(words[2])[-5:] == "to be"


def test_a_file_whose_name_is_not_utf_8_is_encoded_and_noted_in_a_run(tmp_path: Path) -> None:
    corpus = corpus_of(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")), b"some text")
    encoded = encode_corpus(corpus, "char", tmp_path / "data")
    assert encoded.tokenizer.decode(encoded.ids.tolist()) == "some text"
    run = Run.new(tmp_path / "run", "gpt")
    run.write_config({"kind": "gpt", "options": {}, "model": {}, **encoded.describe(corpus)})
    assert run.config()["corpus"]["path"] == str(corpus.path)
    run.write_config({"kind": "é"})
    assert "é" in (run.path / "config.json").read_text(encoding="utf-8")  # other letters stay readable


# ---- text out ----


def test_a_run_in_another_encoding_and_a_folder_with_a_space_writes_samples_and_hints(script, tmp_path: Path) -> None:
    (tmp_path / "greek.txt").write_text("αβγδε και ζηθ\n" * 400, encoding="utf-8")
    argv = ["gpt.py", "--data", "greek.txt", "--out", "my run", "--steps", 2, "--eval_interval", 2, "--bias=False"]
    done = script(*argv, *TINY, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "\\u03b1" in done.stdout, done.stderr
    hints = [shlex.split(line) for line in done.stdout.split("now try\n")[1].splitlines()]
    assert [hint[2:] for hint in hints] == [["sample", "my run"], ["eval", "my run"], ["my run"], ["report", "my run"]]
    assert Run(tmp_path / "my run").options(Options).bias is False
    (tmp_path / "prompts.txt").write_bytes((BOM + "αβγ\r\n\nαxβ\r\n").encode())
    done = script("gpt.py", "sample", "my run", "--prompts", "prompts.txt")
    assert done.returncode == 2 and "prompts.txt, line 3: " in done.stderr and "'x'" in done.stderr, done.stderr
    done = script("gpt.py", "sample", "my run", "--prompt", os.fsdecode(b"\xff"), PYTHONIOENCODING="utf-8:strict")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


def test_the_engine_takes_what_gpt_py_takes_and_writes_in_any_encoding(script, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    path.write_text(BOM + "αβγδε και ζηθ\n" * 100, encoding="utf-8")
    argv = ["engine.py", "train", "--data", path, "--out", "my run", "--steps", 1]
    done = script(*argv, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "engine.py sample 'my run'" in done.stdout and "\\u03b1" in done.stdout, done.stderr
    saved = Run(tmp_path / "my run").config()
    assert saved["corpus"]["path"] == str(path) and BOM not in saved["tokenizer"]["chars"]
    path.write_bytes(b"a\0" * 1000)
    done = script("engine.py", "train", "--data", path)
    assert done.returncode == 2 and "zero bytes" in done.stderr, done.stderr


def test_a_page_is_written_of_a_run_whose_name_is_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_page(tmp_path / "page.html", "grok", name, {"name": name}, {})
    assert "caf\ufffd" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("loss", [0.5, 29.0, 700.0, 6_852_601.0])
def test_the_perplexity_of_any_loss_can_be_printed(loss: float) -> None:
    exact = decimal.Context(prec=30, Emax=decimal.MAX_EMAX).exp(decimal.Decimal(loss))
    shown = format_perplexity(loss)
    if loss < 30:
        assert float(shown) == pytest.approx(float(exact), rel=1e-3)
    else:
        assert abs(int(shown.removeprefix("10^")) - float(exact.log10())) <= 0.5
    assert format_perplexity(float("inf")) == "inf"


# ---- config.json ----


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "10"), ("steps", True), ("steps", 2.5), ("lr", "1e-3"), ("bias", 1), ("data", 3)]
)
def test_an_option_of_a_wrong_type_in_a_config_is_named(name: str, value: object, tmp_path: Path) -> None:
    run = Run.new(tmp_path / "run", "gpt")
    config = {"kind": "gpt", "options": {"lr": 1}, "model": {}, "tokenizer": {}, "corpus": {}}
    run.write_config(config)
    assert run.options(Options).lr == 1
    run.write_config({**config, "options": {name: value}})
    with pytest.raises(UserError, match=rf"config.json is damaged \(options.{name} is {value!r}\)"):
        run.options(Options)


# ---- the command line ----


def parse(*argv: str) -> Options:
    return cli.parse(Options, argv, "gpt.py", "")[0]


def test_nanogpts_spellings_are_taken_and_its_names_translated() -> None:
    o = parse("--batch_size", "8", "--bias=False", "--steps", "1e4", "--data_dir=my_data", "--grad-accum=4_0")
    assert (o.batch_size, o.bias, o.steps, o.data_dir, o.grad_accum) == (8, False, 10_000, "my_data", 40)
    assert [parse(*a).bias for a in (["--bias=True"], ["--bias", "False"], ["--no_bias"])] == [True, False, False]
    for theirs, ours in (("--max_iters=5", "--steps"), ("--learning_rate", "--lr"), ("--out_dir=x", "--out")):
        with pytest.raises(UserError, match=f"{ours} here"):
            parse(theirs)


@pytest.mark.parametrize("text", ["1.5", "nan", "inf", "1e400", "1e19", "ten", "", "9" * 5000])
def test_a_number_that_is_not_whole_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--steps: '.*' isn't a whole number"):
        parse("--steps", text)


def test_a_value_that_begins_with_a_dash_is_taken_or_explained() -> None:
    sample = lambda *argv: cli.parse(SampleOptions, argv, "", "", positional=("run", "RUN"))[0]
    with pytest.raises(UserError, match="--seed: '--' isn't a value for it"):
        sample("--seed=--")
    o = sample("--prompt", "-I say", "my_run", "--stop=--", "--seed", "-1")
    assert (o.prompt, o.run, o.stop, o.seed) == ("-I say", "my_run", "--", -1)
    with pytest.raises(UserError, match="one that begins with a dash is written --prompt='-...'"):
        sample("--prompt", "--what")


def test_a_folder_whose_name_begins_with_a_dash_can_be_named_as_the_hint_says() -> None:
    words = shlex.split(cli.command("gpt.py", "sample", Path("-x")))[3:]
    assert Path(cli.parse(SampleOptions, words, "", "", positional=("run", "RUN"))[0].run or "") == Path("-x")
    with pytest.raises(UserError, match="behind a --"):
        cli.parse(SampleOptions, ["-x"], "", "", positional=("run", "RUN"))


@pytest.mark.parametrize("word", ["--bias=0", "--bias=maybe", "--no-bias=True"])
def test_a_switch_with_another_value_says_how_it_is_turned_on_and_off(word: str) -> None:
    with pytest.raises(UserError, match="--bias turns it on and --no-bias off"):
        parse(word)


@pytest.mark.parametrize("path", ["my run", "it's", "$HOME", "-x", "a;b", "plain"])
def test_a_hint_can_be_typed_as_it_is(path: str) -> None:
    assert shlex.split(cli.command("gpt.py", "--resume", path))[1:] == ["gpt.py", "--resume", path]


def test_a_character_that_the_vocabulary_lacks_is_named_with_its_source() -> None:
    with pytest.raises(UserError, match=r"^my\.txt, line 7: .*'z'"):
        encode_prompt(CharTokenizer("abc"), "abz", "my.txt, line 7")
