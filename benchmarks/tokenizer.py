"""The speed of the tokenizer and of tiktoken, Hugging Face's tokenizers, rustbpe and minbpe, in one run.

    pip install -e '.[bench]'
    python -m benchmarks.tokenizer
    python -m benchmarks.tokenizer --minbpe PATH   # a copy of github.com/karpathy/minbpe; its training takes minutes

Every program gets one thread, and its CPU time is measured. The programs take turns, so that a busy machine slows all
of them alike, and the table has the median of the rounds. A program that is not installed is left out.
"""

import os

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # before their libraries are loaded

import argparse
import gc
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tokenizer_fuzz import gpt2_oracle
from data.corpora import find_corpus
from tokenizer import GPT2Tokenizer, RegexTokenizer

Task = Callable[[], Any]


def take_turns(programs: dict[str, Callable[[], Task]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each program in each round. A program is a function that prepares, unmeasured, what is timed."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, prepare in programs.items():
            task = prepare()
            gc.collect()
            begin = time.process_time()
            task()
            seconds[name].append(time.process_time() - begin)
    return seconds


def table(title: str, seconds: dict[str, list[float]], n_bytes: int) -> None:
    print(f"\n{title}\n{'':24}{'median':>12}{'fastest':>12}{'MB/s':>10}{'ours against it':>18}")
    ours = statistics.median(seconds["ours"])
    for name, each in seconds.items():
        median = statistics.median(each)
        times = "" if name == "ours" else f"{median / ours:.2f} x the speed"
        print(f"{name:24}{median:10.3f} s{min(each):10.3f} s{n_bytes / 1e6 / median:10.2f}{times:>18}")


def installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed and left out: pip install -e '.[bench]'", file=sys.stderr)
        return None


def training(text: str, vocab_size: int) -> dict[str, Callable[[], Task]]:
    """Ours and rustbpe with GPT-4's pattern, Hugging Face with its own, which is GPT-2's."""

    def ours() -> Task:
        tokenizer = RegexTokenizer("gpt4")
        return lambda: tokenizer.train(text, vocab_size)

    def rust() -> Task:
        tokenizer = rustbpe.Tokenizer()
        return lambda: tokenizer.train_from_iterator([text], vocab_size)

    def hugging_face() -> Task:
        tokenizer = tokenizers.ByteLevelBPETokenizer()
        return lambda: tokenizer.train_from_iterator([text], vocab_size, min_frequency=0, show_progress=False)

    programs: dict[str, Callable[[], Task]] = {"ours": ours}
    if rustbpe := installed("rustbpe"):
        programs["rustbpe"] = rust
    if tokenizers := installed("tokenizers"):
        programs["tokenizers"] = hugging_face
    return programs


def coding(text: str) -> dict[str, dict[str, Callable[[], Task]]]:
    """Encoding and decoding with GPT-2's vocabulary, every program with the same ids.

    Ours and Hugging Face's remember the words that they have encoded; tiktoken has no such cache.
    """
    warm, oracle = GPT2Tokenizer(), gpt2_oracle()
    ids = warm.encode_ordinary(text)
    assert ids == oracle.encode_ordinary(text)

    def new() -> Task:
        tokenizer = GPT2Tokenizer()
        return lambda: tokenizer.encode_ordinary(text)

    tiktoken_encodes: Callable[[], Task] = lambda: lambda: oracle.encode_ordinary(text)
    cold: dict[str, Callable[[], Task]] = {"ours": new, "tiktoken": tiktoken_encodes}
    encoding: dict[str, Callable[[], Task]] = {
        "ours": lambda: lambda: warm.encode_ordinary(text),
        "tiktoken": tiktoken_encodes,
    }
    decoding: dict[str, Callable[[], Task]] = {
        "ours": lambda: lambda: warm.decode(ids),
        "tiktoken": lambda: lambda: oracle.decode(ids),
    }
    if tokenizers := installed("tokenizers"):
        with tempfile.TemporaryDirectory() as folder:
            warm.to_huggingface(folder)
            files = [str(Path(folder) / name) for name in ("vocab.json", "merges.txt")]
            theirs = tokenizers.ByteLevelBPETokenizer(*files)
        assert theirs.encode(text).ids == ids
        encoding["tokenizers"] = lambda: lambda: theirs.encode(text).ids
        decoding["tokenizers"] = lambda: lambda: theirs.decode(ids)
    return {"encode, cold": cold, "encode, warm": encoding, "decode": decoding}


def against_minbpe(path: Path, text: str, vocab_size: int, ours: list[float]) -> None:
    """Train minbpe's RegexTokenizer once, and compare its merges and their order with ours."""
    sys.path.insert(0, str(path))
    theirs = importlib.import_module("minbpe").RegexTokenizer()
    begin = time.process_time()
    theirs.train(text, vocab_size)
    seconds = time.process_time() - begin
    tokenizer = RegexTokenizer("gpt4")
    tokenizer.train(text, vocab_size)
    same = list(theirs.merges.items()) == list(tokenizer.merges.items())
    print(f"minbpe {seconds:.1f} s, once: ours is {seconds / statistics.median(ours):,.0f} x as fast; ", end="")
    print(f"its {len(theirs.merges)} merges and ours are {'the same, in the same order' if same else 'DIFFERENT'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minbpe", type=Path, metavar="PATH", help="a copy of minbpe")
    args = parser.parse_args()

    small = find_corpus("shakespeare").path.read_text("utf-8")
    large = find_corpus("shakespeare-complete").path.read_text("utf-8")
    for text, vocab_size in ((small, 1024), (large, 8192)):
        n_bytes = len(text.encode())
        seconds = take_turns(training(text, vocab_size), args.rounds)
        table(f"train: {n_bytes / 1e6:.2f} MB to {vocab_size:,} tokens", seconds, n_bytes)
        if text is small and args.minbpe:
            against_minbpe(args.minbpe, text, vocab_size, seconds["ours"])
    n_bytes = len(small.encode())
    for what, programs in coding(small).items():
        seconds = take_turns(programs, args.rounds)
        table(f"{what}: {n_bytes / 1e6:.2f} MB with GPT-2's vocabulary", seconds, n_bytes)


if __name__ == "__main__":
    main()
