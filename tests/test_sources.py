"""The texts that --data can name, the road of a large one to its ids, and where its documents end."""

import gzip
import hashlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY

from data import corpora, resumable
from data.corpora import SOURCES, find_corpus
from data.encoding import encode_corpus
from data.sources import absolute, named_files
from runtime.download import Source
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.run import Run

END = "<|endoftext|>"
A, B = "One day a cat sat.\n", "Then a dog ran, and a bird sang: é!\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(A)
    (folder / "deep" / "b.txt").write_text("\ufeff" + B, encoding="utf-8")
    (folder / ".hidden").write_text("not this")
    return folder


# ---- what --data can name ----


@pytest.mark.parametrize("name", ["{}", "{}/**/*.txt", "{0}/a.txt,{0}/deep/b.txt"], ids=["folder", "pattern", "commas"])
def test_several_files_are_one_text_with_the_end_of_a_document_between_them(
    name: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoded = encode_corpus(find_corpus(name.format("texts")), "char", tmp_path)
    ids = encoded.ids.tolist()
    assert encoded.tokenizer.decode(ids) == A + END + B
    assert ids.count(encoded.tokenizer.special_tokens[END]) == 1 and len(ids) == len(A) + 1 + len(B)
    assert "<" not in encoded.tokenizer.config()["chars"]  # the mark is a token and no characters
    elsewhere = absolute(name.format("texts"))
    monkeypatch.chdir(tmp_path.parent)
    assert named_files(elsewhere) == [texts / "a.txt", texts / "deep" / "b.txt"]


def test_a_mark_that_is_there_already_is_not_doubled(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(A + END + "\n")
    (tmp_path / "b").write_text(B)
    encoded = encode_corpus(find_corpus(f"{tmp_path}/a,{tmp_path}/b"), "gpt2", tmp_path / "d")
    assert encoded.tokenizer.decode(encoded.ids.tolist()) == A + END + "\n" + B


def test_a_file_whose_name_has_a_comma_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a,b.txt").write_text(A)
    assert named_files(str(tmp_path / "a,b.txt")) == [tmp_path / "a,b.txt"]
    with pytest.raises(UserError, match="neither a file"):
        find_corpus(f"{tmp_path}/a,b.txt,missing")


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == "gz":
        return gzip.compress(data)
    try:
        from compression import zstd
    except ImportError:
        zstd = pytest.importorskip("backports.zstd")
    return zstd.compress(data)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_compressed_text_is_the_same_text_as_the_plain_one(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text(A * 5000)
    plain = encode_corpus(find_corpus(str(tmp_path / "plain.txt")), "char", tmp_path)
    packed = tmp_path / f"packed.txt.{suffix}"
    packed.write_bytes(compress((A * 5000).encode(), suffix))
    encoded = encode_corpus(find_corpus(str(packed)), "char", tmp_path)
    assert encoded.sha256 == plain.sha256 and encoded.bytes == plain.bytes and np.array_equal(encoded.ids, plain.ids)
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(UserError, match=f"packed.txt.{suffix} can't be read"):
        encode_corpus(find_corpus(str(packed)), "char", tmp_path)


def test_standard_input_is_kept_so_that_a_run_can_go_on_with_it(
    gpt_py: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "lock", lambda run: None)  # which lasts as long as this process
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((A * 60).encode())))
    gpt_py("--data", "-", "--out", "run", "--steps", 2, *TINY)
    kept = Path(Run("run").config()["options"]["data"])
    assert kept.read_text() == A * 60 and kept.parent == tmp_path / "data"
    gpt_py("--resume", "run", "--steps", 4)
    assert Run("run").metrics()[-1]["step"] == 4


def test_another_text_to_validate_on_is_all_that_is_validated_on(
    gpt_py: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "lock", lambda run: None)
    words = corpus.read_text()
    (tmp_path / "val.txt").write_text(words[:2000])
    first = gpt_py("--data", corpus, "--val-data", "val.txt", "--out", "run", "--steps", 2, *TINY)
    assert f"{len(words):,} tokens of" in first and "2,000 of val for validation" in first
    encoded = encode_corpus(find_corpus(str(corpus), None, "val.txt"))
    assert len(encoded.train) == len(words) and len(encoded.val) == 2000
    assert "val split of words: 1,999 tokens" in gpt_py("eval", "run")
    gpt_py("--resume", "run", "--steps", 3)
    (tmp_path / "val.txt").write_text(words[:1000])
    with pytest.raises(UserError, match="to validate on isn't the one"):
        gpt_py("--resume", "run", "--steps", 4)
    with pytest.raises(UserError, match="--val-data missing is neither a file"):
        gpt_py("--data", corpus, "--val-data", "missing", *TINY)
    (tmp_path / "val.txt").write_text("É" * 100)
    with pytest.raises(UserError, match="'É' .* is not in the vocabulary"):
        gpt_py("--data", corpus, "--val-data", "val.txt", *TINY)


# ---- encoding that stops and goes on ----


@pytest.mark.parametrize("tokenizer", ["char", "bpe-270", "gpt2"])
def test_encoding_that_was_killed_goes_on_and_gives_the_same_ids(
    tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable, "EVERY", 0.0)  # a note after every block
    for module in ("runtime.text", "data.sources"):
        monkeypatch.setattr(f"{module}.BLOCK", 4096)
    text = "".join(f"Story {i}: {A}{B}{END}\n" for i in range(400))
    (tmp_path / "text.txt").write_text("\ufeff" + text, encoding="utf-8")
    corpus = find_corpus(str(tmp_path / "text.txt"))
    whole = encode_corpus(corpus, tokenizer, tmp_path / "whole")
    assert whole.tokenizer.decode(whole.ids.tolist()) == text
    noted = []

    class KilledError(Exception):
        pass

    def write_note(path: Path) -> Any:
        if path.name.endswith(".part.json"):
            noted.append(path)
            if len(noted) == 4:
                with path.with_name(path.name.removesuffix(".json")).open("ab") as part:
                    part.write(b"half a block that no note speaks of")
                raise KilledError
        return atomic_write(path)

    monkeypatch.setattr(resumable, "atomic_write", write_note)
    with pytest.raises(KilledError):
        encode_corpus(corpus, tokenizer, tmp_path / "killed")
    done = json.loads(noted[-1].read_text())
    assert 0 < done["ids"] < len(whole.ids) and 0 < done["bytes"] < len(text.encode())
    read: list[int] = []
    after = resumable._after

    def skip(pieces: Iterator[str], start: int) -> Iterator[str]:
        read.append(start)
        return after(pieces, start)

    monkeypatch.setattr(resumable, "_after", skip)
    again = encode_corpus(corpus, tokenizer, tmp_path / "killed")
    assert read == [done["bytes"]] and np.array_equal(again.ids, whole.ids)
    assert {p.suffix for p in (tmp_path / "killed" / "encoded").iterdir()} == {".bin", ".json"}


def test_a_kill_while_a_text_is_encoded_loses_little_and_the_next_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"{i} {A}{B}" for i in range(400_000)), encoding="utf-8")
    command = [sys.executable, str(ROOT / "gpt.py"), "--data", "text.txt", "--tokenizer", "gpt2", "--data-dir", "d"]
    process = subprocess.Popen([*command, "--out", "a"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not (notes := list(tmp_path.glob("d/encoded/*.part.json"))) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert notes and process.returncode == 143 and "% of text.txt is encoded and kept" in errors
    assert json.loads(notes[0].read_text())["bytes"] > 1_000_000


# ---- TinyStories, from its two files to text ----


class Handler(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}

    def do_GET(self) -> None:  # noqa: N802
        body, start = self.files[self.path], 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A file server with stories under the names of TinyStories' two files, which are expected there."""
    rng = np.random.default_rng(0)
    told = [f"Once upon a time {a} met {b}. They sat and ran.\n{END}\n" for a, b in
            (rng.choice(["Lily", "Tom", "Ben", "Mia"], 2) for _ in range(900))]
    files = {"tinystories-full": "".join(told[:700]).encode(), "tinystories": "".join(told[700:]).encode()}
    Handler.files = {f"/{name}": body for name, body in files.items()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, body in files.items():
        source = Source(SOURCES[name].file, f"http://127.0.0.1:{server.server_port}/{name}", len(body),
                        hashlib.sha256(body).hexdigest())
        monkeypatch.setitem(corpora.SOURCES, name, source)
    yield files
    server.shutdown()


SMALL = ["--n-embd", 16, "--n-layer", 1, "--n-head", 1, "--block-size", 32, "--batch-size", 4, "--eval-batches", 2]


def test_tinystories_goes_from_its_file_to_samples_that_end_with_a_story(
    published: dict[str, bytes], gpt_py: Any, tmp_path: Path
) -> None:
    preset = ["--preset", "tinystories", *SMALL]
    assert "of 50,257 kinds" in gpt_py(*preset, "--steps", 1)  # as it is: in GPT-2's tokens
    said = gpt_py(*preset, "--tokenizer", "bpe-300", "--steps", 120, "--lr", 1e-2, "--out", "r")
    assert "the original, SHA-256 verified" in said and "--prompt 'Once upon a time'" in said
    argv = ["sample", "r", "--prompt", "Once upon a time", "--max-new-tokens", 120, "--temperature", 0.1]
    stops, goes_on = gpt_py(*argv), gpt_py(*argv, "--to-end")
    assert stops.startswith("Once upon a time") and END not in stops
    assert END in goes_on and goes_on.startswith(stops.rstrip("\n"))


def test_all_of_tinystories_is_validated_on_the_file_that_was_published_for_it(
    published: dict[str, bytes], gpt_py: Any, tmp_path: Path
) -> None:
    path = tmp_path / "data" / SOURCES["tinystories-full"].file
    path.parent.mkdir()
    path.with_name(f"{path.name}.part").write_bytes(published["tinystories-full"][:1000])  # a fetch that was stopped
    gpt_py("--data", "tinystories-full", *SMALL, "--tokenizer", "bpe-300", "--steps", 2, "--out", "r")
    assert path.read_bytes() == published["tinystories-full"]
    run = Run("r")
    assert run.saved("corpus", "val_sha256", str) == hashlib.sha256(published["tinystories"]).hexdigest()
    encoded = encode_corpus(find_corpus("tinystories-full"), "bpe-300")
    for ids, name in ((encoded.train, "tinystories-full"), (encoded.val, "tinystories")):
        assert encoded.tokenizer.decode_bytes(ids.tolist()) == published[name]
    os.remove(path)  # noqa: PTH107
    Handler.files = {}
    with pytest.raises(UserError, match="save it yourself"):
        find_corpus("tinystories-full")
