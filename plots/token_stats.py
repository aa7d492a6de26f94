"""Statistics of a text in tokens: how often they occur, how long they are, how well they compress, which are used.

    python plots/token_stats.py                                  Shakespeare in characters, BPE and GPT-2's tokens
    python plots/token_stats.py gpt2 my.model --data FILE        other tokenizers, another text

BPE is learned here from the first nine tenths of the text, with GPT-4's split.
"""

from runtime.script import run_main

import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from commands.tokenizer import count_tokens
from data.corpora import find_corpus
from plots import style
from runtime.cli import option, parse
from runtime.errors import UserError
from tokenizer import CharTokenizer, GPT2Tokenizer, RegexTokenizer, Tokenizer, load

SIZES = [256 << n for n in range(7)]  # 256 to 16,384
LONGEST = 14  # bytes; longer tokens are counted with these
FIT = (5, 0.5)  # Zipf's law is fitted from this rank to this share of the ranks: the ends never are straight


@dataclass
class Options:
    tokenizers: list[str] = option(
        ("char", "1024", "8192", "gpt2"), "char, gpt2, a size of BPE to learn from the text, or a saved .model file"
    )
    data: str = option("shakespeare", "the text: a UTF-8 file, or the name of a corpus")
    out: str = option("token_stats.png", "the picture to write: png, svg, pdf or jpg")


def make_tokenizer(name: str, path: Path, learned: RegexTokenizer) -> tuple[str, Tokenizer]:
    """A label and the tokenizer called `char`, `gpt2`, a size of vocabulary, or the path of a saved one."""
    if name == "char":
        return "characters", CharTokenizer.train(path.read_bytes().decode())
    if name == "gpt2":
        return "GPT-2", GPT2Tokenizer()
    if name.isdecimal():
        small = first_merges(learned, int(name))
        return f"BPE {small.vocab_size:,}", small
    return Path(name).stem, load(name)


def first_merges(learned: RegexTokenizer, vocab_size: int) -> RegexTokenizer:
    """A smaller tokenizer from a larger one: its first merges are those that training a smaller one would learn."""
    merges = {pair: i for pair, i in learned.merges.items() if i < vocab_size}
    return RegexTokenizer(learned.pattern, merges)


def zipf_fit(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and the frequencies c * rank ** slope nearest to `counts` (n,), which falls from rank 1 to n.

    Least squares in log-log, where each decade of ranks weighs the same. Zipf found a slope of about -1 for words.
    """
    ranks = np.unique(np.geomspace(FIT[0], FIT[1] * len(counts), 50).astype(int))
    slope, height = np.polyfit(np.log(ranks), np.log(counts[ranks - 1]), 1)
    return ranks, np.exp(height) * ranks**slope


def plot_zipf(ax: Axes, all_counts: dict[str, Counter[int]]) -> None:
    for label, counter in all_counts.items():
        counts = np.array(sorted(counter.values(), reverse=True))
        ranks, fit = zipf_fit(counts)
        slope = np.log(fit[-1] / fit[0]) / np.log(ranks[-1] / ranks[0])
        (line,) = ax.loglog(np.arange(1, len(counts) + 1), counts, label=f"{label}: slope −{-slope:.2f}")
        ax.loglog(ranks, fit, "--", color=line.get_color(), linewidth=1)
    ax.set(title="How often each token occurs, and Zipf's law", xlabel="rank of the token", ylabel="times it occurs")
    ax.legend(loc="upper right")


def plot_lengths(ax: Axes, all_counts: dict[str, Counter[int]], tokenizers: dict[str, Tokenizer]) -> None:
    for color, (label, counter) in zip(itertools.cycle(style.COLORS), all_counts.items()):
        if isinstance(tokenizers[label], CharTokenizer):
            continue  # nearly all are one byte long, and the other curves would look flat
        share = np.zeros(LONGEST)
        for i, count in counter.items():
            share[min(len(tokenizers[label].vocab[i]), LONGEST) - 1] += count / counter.total()
        ax.plot(range(1, LONGEST + 1), share, "o-", color=color, markersize=4, label=label)
    ax.set(
        title="Length of the tokens in the text", xlabel=f"bytes ({LONGEST}: and more)", ylabel="share of the tokens"
    )
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set_ylim(bottom=0)
    ax.legend()


def plot_compression(ax: Axes, path: Path, learned: RegexTokenizer, held_out: str) -> None:
    seen = path.read_bytes().decode().removesuffix(held_out)
    smaller = [first_merges(learned, size) for size in SIZES if size <= learned.vocab_size]
    for label, text, mark in (("text it was trained on", seen, "o-"), ("the last tenth, held out", held_out, "s--")):
        bytes_per_token = [len(text.encode()) / len(bpe.encode_ordinary(text)) for bpe in smaller]
        ax.plot([bpe.vocab_size for bpe in smaller], bytes_per_token, mark, markersize=4, label=label)
    held = len(held_out.encode()) / len(GPT2Tokenizer().encode_ordinary(held_out))
    ax.axhline(held, color="#888888", linewidth=1, linestyle=":", label=f"GPT-2's 50,257, held out: {held:.2f}")
    ax.set_xscale("log", base=2)
    ax.set_xticks([bpe.vocab_size for bpe in smaller])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="x", labelsize=8.5)
    ax.set(title="Compression of BPE learned from this text", xlabel="size of the vocabulary", ylabel="bytes per token")
    ax.legend(loc="lower right")


def plot_use(ax: Axes, all_counts: dict[str, Counter[int]], tokenizers: dict[str, Tokenizer]) -> None:
    levels = (1, 10, 100)
    for n, (label, counter) in enumerate(all_counts.items()):
        size = len(tokenizers[label].vocab)
        shares = [sum(count >= level for count in counter.values()) / size for level in levels]
        width = 0.8 / len(all_counts)
        x = np.arange(len(levels)) + (n - (len(all_counts) - 1) / 2) * width
        bars = ax.bar(x, shares, width * 0.92, label=f"{label} ({size:,})")
        ax.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=8, padding=1)
    ax.set_xticks(range(len(levels)), [f"{level}+ times" if level > 1 else "at all" for level in levels])
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.35)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.set(title="Share of the vocabulary that the text uses")
    ax.legend(loc="upper center", ncols=2)


def draw(path: Path, names: Sequence[str], out: Path | str) -> None:
    """Write the picture of the tokenizers called `names` on a text. Raises UserError when one can't read it."""
    try:
        text = path.read_bytes().decode()
        held_out = text[len(text) * 9 // 10 :]
        learned = RegexTokenizer("gpt4")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a short text has fewer merges, and the picture shows how many
            learned.train(text.removesuffix(held_out), SIZES[-1])
        tokenizers = dict(make_tokenizer(name, path, learned) for name in names)
        counts = {label: count_tokens(tokenizer, path) for label, tokenizer in tokenizers.items()}
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    if min(map(len, counts.values())) < 4 * FIT[0]:
        raise UserError(f"{path} has too few different tokens to draw")
    style.use()
    figure, axes = plt.subplots(2, 2)
    plot_zipf(axes[0, 0], counts)
    plot_lengths(axes[0, 1], counts, tokenizers)
    plot_compression(axes[1, 0], path, learned, held_out)
    plot_use(axes[1, 1], counts, tokenizers)
    style.save(figure, out)


def main(argv: Sequence[str]) -> None:
    o, _ = parse(Options, argv, "plots/token_stats.py", str(__doc__), positional=("tokenizers", "TOKENIZER"))
    corpus = find_corpus(o.data)
    if corpus.others or corpus.path.suffix in (".gz", ".zst"):
        raise UserError(f"--data {o.data} is more than one plain file, and the picture is of one")
    draw(corpus.path, o.tokenizers or Options().tokenizers, o.out)
    print(f"wrote {o.out}")


if __name__ == "__main__":
    run_main(main)
