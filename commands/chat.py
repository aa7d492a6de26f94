"""`python gpt.py chat`: talk with a model in the terminal."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from commands.options import WriteOptions
from commands.sampler import make_sampler
from commands.weights import load_weights
from data.conversations import END_OF_TURN, ROLES, has_turns, opening
from data.sources import END
from generate import Choice, Sampler, Text
from gpt import build
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.progress import Progress, Waiting
from runtime.signals import when_stopped
from tokenizer import Tokenizer

HELP = '''/temperature 0.7    how bold the choices are from here on; 0 always takes the likeliest token
/new                begin again: the model forgets all that was said
/save FILE          write what was said
/help               this list
"""                 begins and ends a text of several lines
Ctrl-C stops an answer, Ctrl-D ends the program, the arrow keys bring back what you typed'''
AT_ONCE = 64  # more new tokens than this are read together with all before them, and not one by one


@dataclass
class ChatOptions(WriteOptions):
    max_new_tokens: int = option(400, "tokens of an answer at most")
    seed: int = option(1337, "of the choices")

    def check(self) -> None:
        """Raise UserError for an invalid value."""
        if self.seed < 0 or self.max_new_tokens < 1:
            raise UserError("--seed must be at least 0 and --max-new-tokens at least 1")


class Talk:
    """What was said, in tokens and in words, and the model's cache of it.

    A model that was trained on conversations answers in turns; any other goes on with the text.
    """

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer, choice: Choice, seed: int, most: int):
        self.tokenizer, self.choice, self.most = tokenizer, choice, most
        self.T, self.turns = sampler.model.config.block_size, has_turns(tokenizer)
        self.sampler, self.rng = sampler, np.random.default_rng(seed)
        special = tokenizer.special_tokens
        self.ends = {special[name] for name in (*ROLES.values(), END_OF_TURN, END) if name in special}
        self.stop = False  # set from outside: end the answer after this token
        self.logits = np.zeros(0, np.float32)
        self.begin()

    def begin(self) -> None:
        """Forget all that was said."""
        self.ids: list[int] = []  # the tokens that the model sees
        self.starts: list[int] = []  # where in them the user's turns begin
        self.messages: list[dict[str, str]] = []
        self.forgot = False  # whether the last answer didn't see the beginning any more

    def warm_up(self) -> None:
        """Compile both steps, so that the first answer doesn't wait for it."""
        self.sampler.prefill([[0]])
        if self.T > 1:
            self.sampler.step([0])

    def answer(self, text: str) -> Iterator[str]:
        """Read what the user says and give the answer in pieces of whole characters.

        Raises ValueError for a character that the vocabulary lacks; nothing was said then.
        """
        if self.turns:
            new = opening(self.tokenizer, [("user", text)])
        else:
            new = self.tokenizer.encode(text, disallowed_special=()) or ([] if self.ids else [0])
        self.messages.append({"role": "user", "content": text})
        self.starts.append(len(self.ids))
        self.stop = self.forgot = False
        if new:
            self.read(new)
        shown, said = Text(self.tokenizer), ""
        for _ in range(self.most):
            token = self.choice.draw(self.logits[: self.tokenizer.vocab_size], self.ids, self.rng)
            if self.stop:  # half a character that was begun is not shown
                break
            if piece := shown.add(None if token in self.ends else token):
                said += piece
                yield piece
            if token in self.ends:
                break
            self.read([token])
        if self.turns:  # however the turn ended, to the model it is over
            self.read([self.tokenizer.special_tokens[END_OF_TURN]])
        self.messages.append({"role": "assistant", "content": said})

    def read(self, new: list[int]) -> None:
        """Read these tokens after all before them; `logits` `(V,)` are then those of the one that follows.

        Where there are more than the model sees, the oldest turns go, until half of the context is free.
        """
        fresh, ids = not self.ids, self.ids + new
        if len(ids) > self.T:
            room = max(1, self.T // 2)
            kept = [start for start in self.starts if start > 0 and len(ids) - start <= room]
            cut = kept[0] if kept else len(ids) - room
            ids, self.starts, self.forgot, fresh = ids[cut:], [start - cut for start in kept], True, True
        self.ids = ids
        if fresh or len(new) > AT_ONCE:
            self.logits = self.sampler.prefill([ids])[0]
        else:
            for token in new:
                self.logits = self.sampler.step([token])[0]

    def save(self, path: Path) -> None:
        """Write what was said: a conversation as a line that `--data FILE.jsonl` reads, any other text as it is.

        Raises UserError when there is such a file, or it can't be written.
        """
        if path.exists():
            raise UserError(f"{path} is there already: name a new file")
        text = "".join(message["content"] for message in self.messages)
        line = json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n"
        with atomic_write(path) as new:
            new.write_text(line if self.turns else text, encoding="utf-8")


# ---- the terminal ----


def chat(argv: Sequence[str]) -> None:
    """Talk with a model in the terminal: it answers, or goes on with your text if it wasn't trained on conversations.
    /help lists the commands."""
    o, _ = parse(ChatOptions, argv, "gpt.py chat", str(chat.__doc__), positional=("run", "RUN"))
    o.check()
    choice = o.choice()
    open_device(o.device)
    checkpoint, _ = load_weights(o, o.run)
    tokenizer, model = checkpoint.known_tokenizer(), build(checkpoint)
    when_stopped("stopped")
    talk = Talk(make_sampler(model, o.dtype), tokenizer, choice, o.seed, o.max_new_tokens)
    with Waiting(Progress(sys.stderr), "compiling the model for one token"):
        talk.warm_up()
    live = sys.stdin.isatty()
    if live:
        with contextlib.suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  (gives `input` a history and editing)
        kind = "answers in turns" if talk.turns else "goes on with your text, and with its own after an empty line"
        print(f"{checkpoint.path} {kind}; it sees {talk.T} tokens at a time. /help lists the commands.")
    while (text := read_message("> " if live else "")) is not None:
        if text.startswith("/"):
            obey(talk, text)
        elif text or not talk.turns:
            say(talk, text)


def read_message(prompt: str) -> str | None:
    """What the user types: a line, or several between two lines of quotes. None at the end of the input; Ctrl-C drops
    what was typed so far."""
    lines: list[str] = []
    while True:
        try:
            with interrupted_by(signal.default_int_handler):
                line = input(prompt if not lines else prompt and ". ")
        except KeyboardInterrupt:
            print()
            lines = []
            continue
        except EOFError:
            if prompt:
                print()
            return "\n".join(lines)[3:] if lines else None
        except UnicodeDecodeError:
            print("that isn't UTF-8, and was not read", file=sys.stderr)
            continue
        if not lines and not line.startswith('"""'):
            return line
        if lines and line.endswith('"""'):
            return "\n".join([*lines, line[:-3]])[3:].strip("\n")
        if len(line) > 3 and not lines and line.endswith('"""'):
            return line[3:-3]
        lines.append(line)


def say(talk: Talk, text: str) -> None:
    """Show the answer as it comes. Ctrl-C stops it."""

    def stop(number: int, frame: FrameType | None) -> None:
        talk.stop = True

    try:
        with interrupted_by(stop):
            for piece in talk.answer(text):
                print(piece, end="", flush=True)
    except ValueError as error:  # of the tokenizer: nothing was said
        print(f"{error}; nothing was said", file=sys.stderr)
        return
    print(flush=True)
    if talk.forgot:
        print(f"(more was said than the {talk.T} tokens that the model sees: it has forgotten the oldest of them)")


def obey(talk: Talk, text: str) -> None:
    """Do what a line that begins with a slash asks for."""
    name, _, value = text.partition(" ")
    try:
        if name == "/temperature" and value:
            talk.choice = replace(talk.choice, temperature=float(value))
            print(f"temperature {talk.choice.temperature:g}")
        elif name == "/save" and value.strip():
            talk.save(Path(value.strip()).expanduser())
            print(f"wrote {value.strip()}")
        elif name == "/new":
            talk.begin()
            print("a new conversation")
        else:
            print(HELP if name == "/help" else f"{text} isn't a command; these are\n{HELP}")
    except (UserError, ValueError) as error:
        print(error)


@contextlib.contextmanager
def interrupted_by(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Meanwhile this function handles Ctrl-C, and nothing else that stops a program."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
