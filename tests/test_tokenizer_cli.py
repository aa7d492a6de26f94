"""Tests of `python tokenizer.py VERB`. The witness is the library that the verbs call."""

from runtime.script import run_main

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT

from commands.tokenizer import VERBS, main
from tokenizer import GPT2Tokenizer, load, render, unpack_ids

END_OF_TEXT = "<|endoftext|>"
TEXT = "She sells sea shells by the sea shore;\n  the shells she sells, I'm sure, are 12345 seashells! 안녕 😉\n\n" * 3


def call(argv: list[str]) -> int:
    """The exit code of `python tokenizer.py ARGV`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", ["tokenizer.py", *argv])
        run_main(main)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def one_line(error: str) -> bool:
    return error.count("\n") == 1 and error.endswith("\n") and "Traceback" not in error


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_bytes((TEXT + END_OF_TEXT).encode())
    return tmp_path / "corpus.txt"


def test_train_encode_decode_on_the_command_line(corpus: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    prefix, ids = str(corpus.with_name("tok")), str(corpus.with_name("ids"))
    model = ["--tokenizer", prefix + ".model"]
    assert call(["train", str(corpus), "--vocab-size", "300", "--special", END_OF_TEXT, "--out", prefix]) == 0
    ours = load(prefix + ".model")
    assert ours.vocab_size == 300
    assert ours.special_tokens == {END_OF_TEXT: 299}
    assert call(["encode", str(corpus), "--out", ids, *model]) == 0
    expected = ours.encode(corpus.read_text("utf-8"), "all")
    assert unpack_ids(Path(ids).read_bytes(), 300).tolist() == expected
    capfdbinary.readouterr()
    assert call(["encode", str(corpus), *model]) == 0
    assert list(map(int, capfdbinary.readouterr().out.split())) == expected
    assert call(["decode", ids, *model]) == 0
    assert capfdbinary.readouterr().out == corpus.read_bytes()


def test_a_folder_for_the_files_is_made(corpus: Path) -> None:
    assert call(["train", str(corpus), "--vocab-size", "260", "--out", str(corpus.with_name("new") / "tok")]) == 0
    assert load(corpus.with_name("new") / "tok.model").vocab_size == 260


def test_help_lists_the_verbs_and_the_options_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb}" in out
        assert call([verb, "--help"]) == 0
        assert ("--vocab-size" if verb == "train" else "--tokenizer") in capsys.readouterr().out


def test_ids_as_arguments_are_decoded(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["decode", "15496", "995"]) == 0
    assert capsys.readouterr().out == "Hello world\n"


@pytest.mark.parametrize("kind", ["char", "basic"])
def test_the_other_kinds_train_on_the_command_line(kind: str, corpus: Path) -> None:
    assert call(["train", str(corpus), "--type", kind, "--vocab-size", "280", "--out", str(corpus)]) == 0
    ours = load(f"{corpus}.model")
    assert ours.kind == kind
    assert ours.decode(ours.encode(TEXT)) == TEXT


def test_show_separates_or_colours_the_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["show", f"Hello world\n한{END_OF_TEXT}"]) == 0
    assert capsys.readouterr().out == (
        f"Hello| world|\\n|\\xed\\x95|\\x9c|{END_OF_TEXT}\n15496 995 198 47991 250 50256\n"
    )
    assert call(["show", "Hello world", "--color", "always"]) == 0
    text, ids = capsys.readouterr().out.splitlines()
    assert text.count("\x1b[30;") == ids.count("\x1b[30;") == 2
    assert text.split("m")[0] != text.split("m")[1].split("\x1b")[1]


def test_stats_counts_bytes_tokens_and_vocabulary(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2, text = GPT2Tokenizer(), corpus.read_text("utf-8")
    ids = gpt2.encode(text, "all")
    assert call(["stats", str(corpus), "--top", "3"]) == 0
    out = capsys.readouterr().out
    n_bytes = len(text.encode())
    assert f"{n_bytes:,} bytes are {len(ids):,} tokens: {n_bytes / len(ids):.3f} bytes per token" in out
    assert f"{len(set(ids))} of 50,257 tokens are used" in out
    assert "13          1  [<|endoftext|>]" in out  # the longest
    (first, count), *_ = Counter(ids).most_common()
    assert f"      1 {count:10} {count / len(ids):24.1%}  [{render(gpt2.vocab[first])}]" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["stats", "{tmp}/missing"], "missing: No such file"),
        (["stats", "{tmp}/empty"], "empty is empty"),
        (["encode", "{tmp}/binary"], "binary is not UTF-8 at byte 1"),
        (["train", "{tmp}/empty", "--out", "{tmp}/x"], "nothing to train on"),
        (["train", "{tmp}/empty", "--vocab-size", "9", "--out", "{tmp}/x"], "at least 256 for 256 bytes, not 9"),
        (["train", "{tmp}/text", "--pattern", "(", "--out", "{tmp}/x"], "not a regular expression"),
        (["train", "{tmp}/text", "--special", "", "--out", "{tmp}/x"], "special token ''"),
        (["train", "{tmp}/text", "--vocab-size", "257", "--out", "{tmp}/text/x"], "text can't be made"),
        (["encode", "{tmp}/text", "--out", "/dev/null"], "/dev/null can't be written (it isn't a regular file)"),
        (["encode"], "required: FILE (see tokenizer.py encode --help)"),
        ([], "a verb comes first: train, encode, decode, show, stats"),
        (["fly"], "there is no verb 'fly'"),
        (["show", "x", "--color", "red"], "invalid choice: 'red'"),
        (["decode", "50257"], "no token with the id 50257"),
        (["decode", "1", "x"], "decode takes one file"),
        (["decode", "{tmp}/binary"], "no whole number of ids"),
        (["show", "x", "--tokenizer", "{tmp}/text"], "line 1"),
        (["show", "x", "--tokenizer", "{tmp}"], "is neither gpt2 nor a file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data in {"empty": b"", "binary": b"a\xffc", "text": b"ab ab"}.items():
        (tmp_path / name).write_bytes(data)
    assert call([part.replace("{tmp}", str(tmp_path)) for part in argv]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert one_line(error)


def test_training_that_runs_out_of_pairs_is_a_note_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("ab")
    assert call(["train", str(tmp_path / "text"), "--special", "<s>", "--out", str(tmp_path / "x")]) == 0
    error = capsys.readouterr().err
    assert one_line(error)
    assert "has 257 tokens" in error
    assert load(tmp_path / "x.model").special_tokens == {"<s>": 257}


def test_a_reader_that_stops_early_is_no_error(corpus: Path) -> None:
    corpus.write_bytes(corpus.read_bytes() * 200)
    command = f"{sys.executable} tokenizer.py encode {corpus} | head -c 10"
    result = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True)
    assert len(result.stdout) == 10
    assert result.stderr == b""
