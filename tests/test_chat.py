"""`python gpt.py chat` in a real terminal: history, a stopped answer, whole characters; and what its cache holds."""

import codecs
import fcntl
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, TINY, perturbed
from tinygrad import Tensor

from commands.chat import Talk
from data.conversations import END_OF_TURN, encode_turns, with_turns
from generate import Choice, Sampler
from gpt import GPT, GPTConfig
from runtime.errors import UserError
from tokenizer import CharTokenizer


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, argv: list[str], folder: Path):
        self.screen, inner = pty.openpty()
        environment = {**ENVIRONMENT, "TERM": "dumb", "COLUMNS": "200", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            argv, stdin=inner, stdout=inner, stderr=inner, cwd=folder, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # its own terminal: the key Ctrl-C is a signal
        )
        os.close(inner)
        self.shown, self.decoder = "", codecs.getincrementaldecoder("utf-8")()  # strict; a read may end anywhere

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """Read until what was shown since the last call has this; all that was."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.shown, re.S):
            assert select.select([self.screen], [], [], max(0.0, end - time.monotonic()))[0], self.shown
            self.shown += self.decoder.decode(os.read(self.screen, 1 << 16))
        found, self.shown = self.shown, ""
        return found

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: object) -> Terminal:
        opened.append(Terminal([sys.executable, str(ROOT / "gpt.py"), "chat", *map(str, args)], tmp_path))
        return opened[-1]

    yield start
    for t in opened:
        t.process.kill()
        t.process.wait()
        os.close(t.screen)


def test_the_terminal_keeps_a_history_stops_answers_and_never_shows_half_a_character(
    gpt_py: Callable[..., str], tmp_path: Path, terminal: Callable[..., Terminal]
) -> None:
    (tmp_path / "text.txt").write_text("éßж語🙂" * 300, encoding="utf-8")  # 2, 2, 2, 3 and 4 bytes, a token each byte
    gpt_py("--data", "text.txt", "--tokenizer", "bpe-257", "--out", "run", "--steps", 150, "--lr", 2e-2, *TINY)
    t = terminal("run", "--temperature", 0, "--max-new-tokens", 100_000)
    assert "goes on with your text" in t.wait_for("> $")
    t.type("éßж\r")
    answer = t.wait_for(r"éßж\r\n.{200}")  # on the way; it would go on for minutes
    t.type("\x03")
    stopped = t.wait_for("> $", 20)
    assert re.search("[語🙂ж]{3}", answer) and "\ufffd" not in answer + stopped  # as a box
    assert "forgotten the oldest" in stopped and "Traceback" not in stopped
    t.type("/nothing\r")
    t.wait_for("/nothing isn't a command; these are\r\n/temperature.*> $")
    t.type("/temperature 0.5\r")
    t.wait_for("temperature 0.5\r\n.*> $")
    t.type("\x1b[A\r")  # the arrow up
    t.wait_for("/temperature 0.5.*temperature 0.5\r\n.*> $")
    t.type('"""\ré\rß"""\r')
    t.wait_for(r"\. .*is not|\. .*\r\n.{40}")  # several lines; the answer begins
    t.type("\x03")
    t.wait_for("> $", 20)
    t.type("half a li")
    t.wait_for("half a li$")
    time.sleep(0.3)  # until it waits for the next key
    t.type("\x03")  # at the prompt: the line is dropped
    t.wait_for("\r\n> $", 20)
    t.type("/save said.txt\r")
    t.wait_for("wrote said.txt.*> $")
    t.type("\x04")
    assert t.process.wait(20) == 0
    said = (tmp_path / "said.txt").read_text(encoding="utf-8")
    assert said.startswith("éßж") and "half a li" not in said and "é\nß" in said


@pytest.mark.parametrize("T", [64, 24])
def test_the_cache_holds_the_conversation_and_at_the_end_of_the_block_its_newest_turns(T: int, tmp_path: Path) -> None:
    tokenizer = with_turns(CharTokenizer("abcdefgh"))
    model = perturbed(GPT(GPTConfig(block_size=T, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=8)))
    talk = Talk(Sampler(model), tokenizer, Choice(1.0), seed=3, most=5)
    with pytest.raises(ValueError, match="'x'"):
        list(talk.answer("ax"))
    assert not talk.messages and not talk.ids
    forgot = []
    for question in ("abc", "de", "hhhhh"):
        assert "".join(talk.answer(question)) == talk.messages[-1]["content"]
        assert talk.messages[-2] == {"role": "user", "content": question}
        forgot.append(talk.forgot)
        window = talk.ids  # what comes next is what the whole model says of these tokens
        exact = model(Tensor([window])).numpy()[0, -1]
        assert np.abs(talk.logits - exact).max() < 1e-4 * np.abs(exact).max()
    every = encode_turns(tokenizer, [(m["role"], m["content"]) for m in talk.messages])[0]
    if T == 64:
        assert talk.ids == every and not any(forgot)  # the tokens of training, turn by turn
    else:
        assert forgot[-1] and len(talk.ids) <= T and talk.ids == every[-len(talk.ids) :]
        assert talk.ids[0] == tokenizer.special_tokens["<|user|>"]  # whole turns
    assert talk.ids[-1] == tokenizer.special_tokens[END_OF_TURN]
    talk.save(tmp_path / "talk.jsonl")
    assert json.loads((tmp_path / "talk.jsonl").read_text())["messages"] == talk.messages
    with pytest.raises(UserError, match="is there already"):
        talk.save(tmp_path / "talk.jsonl")


def test_an_answer_ends_where_the_model_ends_it_or_where_it_is_stopped() -> None:
    tokenizer = with_turns(CharTokenizer("ab"))
    talk = Talk(Sampler(GPT(GPTConfig(32, tokenizer.vocab_size, 1, 1, 8))), tokenizer, Choice(0), seed=0, most=50)
    end, a = tokenizer.special_tokens[END_OF_TURN], tokenizer.encode("a")[0]
    script = iter([a, a, end, a, a, a, a])
    talk.choice = type("Scripted", (), {"draw": lambda *_: next(script)})()
    assert "".join(talk.answer("b")) == "aa"
    pieces = talk.answer("b")
    assert next(pieces) == "a"
    talk.stop = True
    assert list(pieces) == [] and talk.messages[-1]["content"] == "a" and talk.ids[-2:] == [a, end]
