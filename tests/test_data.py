"""Texts on their way to a batch: encoded, split and cut as they should be, and refused when they can't be."""

import struct
from pathlib import Path

import numpy as np
import pytest

from data.batches import even_starts, random_batch
from data.corpora import find_corpus
from data.encoding import Encoded, encode_corpus, require_block
from data.tokens import write_tokens
from runtime.errors import UserError
from tokenizer import CharTokenizer, GPT2Tokenizer

# ---- batches ----

IDS = np.arange(1000, dtype=np.uint16)


def test_targets_are_the_inputs_shifted_by_one() -> None:
    x, y = random_batch(IDS, 8, 16, np.random.default_rng(0))
    assert x.shape == y.shape == (8, 16) and x.dtype == y.dtype == np.int32
    assert np.array_equal(y, x + 1)


def test_batches_reach_the_first_and_the_last_token_and_never_cross_the_split() -> None:
    encoded = Encoded(IDS, CharTokenizer("a"), 1000)
    assert np.array_equal(np.concatenate([encoded.train, encoded.val]), IDS) and len(encoded.train) == 900
    rng = np.random.default_rng(0)
    for ids, low, high in ((encoded.train, 0, 899), (encoded.val, 900, 999)):
        x, y = random_batch(ids, 3000, 8, rng)
        assert x.min() == low and y.max() == high


def test_batches_repeat_with_the_generator_and_differ_between_steps() -> None:
    draw = lambda i: random_batch(IDS, 4, 8, np.random.default_rng((1, 0, i)))[0]
    assert np.array_equal(draw(3), draw(3)) and not np.array_equal(draw(3), draw(4))


@pytest.mark.parametrize(("length", "T", "count"), [(1000, 10, 7), (1000, 10, 10_000), (11, 10, 5), (25, 8, 3)])
def test_evaluation_windows_do_not_overlap_and_stay_inside(length: int, T: int, count: int) -> None:
    starts = even_starts(IDS[:length], T, count)
    assert len(starts) == min(count, (length - 1) // T) and starts[0] == 0 and starts[-1] + T < length
    assert (np.diff(starts) >= T).all()


def test_a_text_must_hold_one_window_in_its_validation_tenth() -> None:
    require_block(Encoded(IDS[:170], CharTokenizer("a"), 170), 16)  # 17 tokens: one window and the next
    with pytest.raises(UserError, match="160 tokens, too few for --block-size 16"):
        require_block(Encoded(IDS[:160], CharTokenizer("a"), 160), 16)


# ---- encoding ----


def test_ids_are_written_once_and_read_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("héllo\r\nwörld\n" * 50, encoding="utf-8", newline="")
    corpus = find_corpus(str(file))
    first = encode_corpus(corpus, "char", tmp_path)
    assert first.tokenizer.decode(first.ids.tolist()) == file.read_bytes().decode()  # \r\n is kept
    monkeypatch.setattr(CharTokenizer, "encode_blocks", lambda *a, **k: pytest.fail("encoded twice"))
    second = encode_corpus(corpus, "char", tmp_path)
    assert isinstance(second.ids, np.memmap) and second.ids.dtype == np.uint16
    assert np.array_equal(first.ids, second.ids) and first.tokenizer.config() == second.tokenizer.config()


def test_a_changed_file_is_encoded_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab" * 50)
    encode_corpus(find_corpus(str(file)), "char", tmp_path)
    file.write_text("abc" * 50)
    assert len(encode_corpus(find_corpus(str(file)), "char", tmp_path).ids) == 150


def test_ids_cut_short_by_a_kill_are_encoded_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab" * 50)
    corpus = find_corpus(str(file))
    encode_corpus(corpus, "char", tmp_path)
    ids = next((tmp_path / "encoded").glob("*.bin"))
    ids.write_bytes(ids.read_bytes()[:70])
    assert len(encode_corpus(corpus, "char", tmp_path).ids) == 100
    for damaged in ("{}", '{"tokens": 100}', "not json"):
        next((tmp_path / "encoded").glob("*.json")).write_text(damaged)
        assert len(encode_corpus(corpus, "char", tmp_path).ids) == 100


def test_gpt2_tokens_go_in_with_the_end_of_text_as_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Hello world<|endoftext|>Hello world")
    ids = encode_corpus(find_corpus(str(file)), "gpt2", tmp_path).ids
    assert ids.tolist() == [15496, 995, 50256, 15496, 995]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "is empty"), (b"ab\0cd", "zero bytes"), (b"abc\xff\xfe", "isn't UTF-8"), (b"\xe4bc", "0xe4")],
)
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        encode_corpus(find_corpus(str(file)), "char", tmp_path)


def test_a_vocabulary_beyond_16_bits_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(map(chr, [*range(32, 0xD800), *range(0xE000, 0x13000)])), encoding="utf-8")
    with pytest.raises(UserError, match="65,536 fit"):
        encode_corpus(find_corpus(str(file)), "char", tmp_path)


# ---- llm.c's token files ----


def token_file(path: Path, ids: list[int], header: tuple[int, ...] = (), extra: bytes = b"") -> Path:
    """Written number by number, as llm.c's description has it."""
    numbers = [*(header or (20240520, 1, len(ids)))]
    first = struct.pack("<256i", *numbers, *[0] * (256 - len(numbers)))
    path.write_bytes(first + struct.pack(f"<{len(ids)}H", *ids) + extra)
    return path


def test_a_token_file_of_llmc_is_a_corpus(tmp_path: Path) -> None:
    ids = GPT2Tokenizer().encode("Hello world, and all who live in it.\n" * 20)
    path = token_file(tmp_path / "a.bin", ids)
    encoded = encode_corpus(find_corpus(str(path)), "gpt2", tmp_path)
    assert encoded.ids.tolist() == ids and encoded.bytes == 37 * 20
    assert encoded.train.tolist() + encoded.val.tolist() == ids
    with pytest.raises(UserError, match="--tokenizer gpt2"):
        encode_corpus(find_corpus(str(path)), "char", tmp_path)
    written = tmp_path / "b.bin"
    write_tokens(written, encoded.ids)
    assert written.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("header", "extra", "says"),
    [
        ((1,), b"", "byte 0 is 1, not 20240520"),
        ((struct.unpack(">i", struct.pack("<i", 20240520))[0],), b"", "big-endian from byte 0"),
        ((20240520, 7, 3), b"", "version 7 at byte 4"),
        ((20240520, 1, 4), b"", "should end at byte 1032 and it ends at byte 1030"),
        ((20240520, 1, 3), b"\0\0", "should end at byte 1030 and it ends at byte 1032"),
        ((20240520, 1, 3), b"", "the id 60000 at byte 1028"),
    ],
)
def test_a_damaged_token_file_is_refused_with_the_byte(
    header: tuple[int, ...], extra: bytes, says: str, tmp_path: Path
) -> None:
    path = token_file(tmp_path / "a.bin", [1, 2, 60000], header, extra)
    with pytest.raises(UserError, match=says):
        encode_corpus(find_corpus(str(path)), "gpt2", tmp_path)


def test_a_token_file_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(UserError, match="ends at byte 1000"):
        encode_corpus(find_corpus(str(tmp_path / "a.bin")), "gpt2", tmp_path)


def test_a_tokenizer_of_ones_own_encodes_a_corpus(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Hello world")
    assert encode_corpus(find_corpus(str(file)), GPT2Tokenizer(), tmp_path).ids.tolist() == [15496, 995]
