"""Tokens per second of a model that writes: with its cache, without, and transformers with its own, taking turns.

    pip install -e '.[parity]'
    python -m benchmarks.generate [--preset gpt2] [--rounds 5] [--tokens 64]

The weights are random (the speed doesn't depend on them), float32, the same for all, and the token is always the
likeliest, so all must write the same text, and this is checked. Each program runs in a process of its own and
they take turns, because a shared machine's speed drifts by more than the differences that are measured. A turn reads
the prompt and writes the tokens; the result is the ratio of the medians.
"""

from runtime.script import run_main

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tinygrad.nn.state import get_state_dict

from benchmarks.train_step import Side, peak_mb
from commands.options import PRESETS
from commands.options import Options as GPTOptions
from commands.sampler import make_sampler
from exchange.huggingface import HF_NUMBERS, read_huggingface, write_huggingface
from exchange.layout import Checkpoint
from generate import Sampler
from gpt import GPT, build
from runtime.cli import option, parse
from runtime.device import open_device
from runtime.errors import UserError
from runtime.files import read_json

# PyTorch's threads wait for each other actively: where other programs use the cores, one of them is faster than two.
SIDES = {"cache": "with the cache", "no-cache": "without", "transformers": "transformers with its cache",
         "transformers-1": "the same on one thread"}


@dataclass
class Options:
    preset: str = option("gpt2", "the preset of gpt.py to measure", list(PRESETS))
    rounds: int = option(5, "turns that each program takes")
    prompt: int = option(16, "tokens of the prompt")
    tokens: int = option(64, "tokens to write in a turn; fewer where the model's context ends")
    slow_tokens: int = option(16, "tokens to write in a turn without the cache")
    worker: str | None = option(None, "which side to run (used by the program itself)", list(SIDES))
    folder: str | None = option(None, "where the weights are (used by the program itself)")


def ours(o: Options, prompt: list[int], cached: bool) -> Callable[[int], list[int]]:
    """One call writes that many tokens."""
    open_device()
    model = build(read_huggingface(Path(str(o.folder))))
    sampler = make_sampler(model, "float32") if cached else Sampler(model)

    def write(count: int) -> list[int]:
        ids = list(prompt)
        logits = sampler.prefill([ids])
        while True:
            ids.append(int(logits[0].argmax()))
            if len(ids) == len(prompt) + count:
                return ids[len(prompt) :]
            logits = sampler.step(ids[-1:]) if cached else sampler.prefill([ids])

    return write


def theirs(o: Options, prompt: list[int]) -> Callable[[int], list[int]]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError("PyTorch or transformers isn't installed: `pip install -e '.[parity]'` brings them") from error
    transformers.logging.set_verbosity_error()
    if o.worker == "transformers-1":
        torch.set_num_threads(1)
    model = transformers.GPT2LMHeadModel.from_pretrained(o.folder, dtype=torch.float32).eval()
    idx = torch.tensor([prompt])
    settings = {"do_sample": False, "use_cache": True, "eos_token_id": None, "pad_token_id": 0}

    def write(count: int) -> list[int]:
        with torch.inference_mode():
            return model.generate(idx, max_new_tokens=count, attention_mask=torch.ones_like(idx), **settings)[
                0, len(prompt) :
            ].tolist()

    return write


def work(o: Options) -> None:
    """Run one side: for each line on stdin write that many tokens and answer with them, the seconds, the memory."""
    V = read_json(Path(str(o.folder), "config.json"))["vocab_size"]
    prompt = np.random.default_rng(0).integers(0, V, o.prompt).tolist()
    write = theirs(o, prompt) if str(o.worker).startswith("transformers") else ours(o, prompt, o.worker == "cache")
    for line in sys.stdin:
        began = time.perf_counter()
        tokens = write(int(line))
        answer = {"tokens": tokens, "seconds": time.perf_counter() - began, "peak_mb": peak_mb()}
        print(json.dumps(answer), flush=True)


class Writer(Side):
    """A worker process, and its speeds."""

    def __init__(self, name: str, o: Options, folder: str):
        super().__init__("benchmarks.generate", "--worker", name, "--folder", folder, "--prompt", str(o.prompt))
        self.speeds: list[float] = []  # tokens per second
        self.count = o.slow_tokens if name == "no-cache" else o.tokens

    def write(self) -> list[int]:
        """Let it write; the tokens."""
        answer = self.turn(self.count)
        self.speeds.append(self.count / answer["seconds"])
        return answer["tokens"]


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "python -m benchmarks.generate", str(__doc__))
    if o.worker:
        work(o)
    else:
        compare(o)


def compare(o: Options) -> dict[str, float]:
    """Print the speeds; the medians in tokens per second."""
    open_device()
    chosen = GPTOptions(**PRESETS[o.preset])
    config = chosen.config(50257 if chosen.tokenizer == "gpt2" else 65)
    if o.prompt >= config.block_size:
        raise UserError(f"--prompt {o.prompt} must leave room in the {config.block_size} tokens of {o.preset}")
    o.tokens = min(o.tokens, config.block_size - o.prompt)
    o.slow_tokens = min(o.slow_tokens, o.tokens)
    with tempfile.TemporaryDirectory() as folder:
        numbers = {name: getattr(config, name) for name in HF_NUMBERS}
        write_huggingface(Path(folder), Checkpoint(Path(folder), numbers, get_state_dict(GPT(config)), None))
        sides = {name: Writer(name, o, folder) for name in SIDES}
        texts = {name: side.write() for name, side in sides.items()}  # compiles, and warms up
        for name, text in texts.items():
            if text != texts["cache"][: len(text)]:  # else different things would be timed
                raise SystemExit(f"the programs disagree: {SIDES[name]} {text}, with the cache {texts['cache']}")
        for side in sides.values():
            side.speeds.clear()
        for i in range(o.rounds):
            for side in list(sides.values())[:: 1 if i % 2 else -1]:
                side.write()
    for side in sides.values():
        side.close()
    medians = {name: statistics.median(side.speeds) for name, side in sides.items()}
    for name, side in sides.items():
        each = "  ".join(f"{speed:,.1f}" for speed in side.speeds)
        print(f"{SIDES[name]:28} median {medians[name]:8,.1f} tokens/s   peak memory {side.peak:6,.0f} MB   of {each}")
    best = max(medians["transformers"], medians["transformers-1"])
    print(f"with the cache {medians['cache'] / best:.2f} times as fast as transformers at its faster, "
          f"{medians['cache'] / medians['no-cache']:.1f} times as fast as without   ({o.preset}, a prompt of "
          f"{o.prompt}, {o.tokens} tokens, {o.slow_tokens} without the cache, {o.rounds} turns each)")
    return medians


if __name__ == "__main__":
    run_main(main)
