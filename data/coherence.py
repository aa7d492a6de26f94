"""How coherent a text is, in numbers that a program can count: words, repetition, and for stories sentences, quotes and
names. Each is a share from 0 to 1 that means little alone: compare it with the same number of real text.

None of them sees meaning. A text can have the numbers of real text and make no sense; one that hasn't isn't coherent.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters, with apostrophes inside: don't
MENTION = re.compile(r"(?<=[a-z,] )[A-Z][a-z]+")  # a capital within a sentence: a name
SENTENCE = re.compile(r"[^.!?\n]*[.!?]+[\"'”’)]*|[^.!?\n]+")  # up to its end, or to the end of the line
LONGEST = 40  # words of a sentence; longer ones count as without an end
N = 4  # words of an n-gram whose repetition is counted


@dataclass(frozen=True)
class Known:
    """What the text that a model was trained on has: its words, in lower case, and the names among them."""

    words: frozenset[str]
    names: frozenset[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Known":
        """The words of a text in pieces. A name is written with a capital in the middle of sentences, three times at
        least and five times as often as without one."""
        words: Counter[str] = Counter()
        mentions: Counter[str] = Counter()
        for text in texts:
            words.update(WORD.findall(text))
            mentions.update(MENTION.findall(text))
        names = frozenset(name for name, n in mentions.items() if n >= 3 and n > 5 * words[name.lower()])
        return cls(frozenset(word.lower() for word in words), names)


def known_words(text: str, known: Known) -> tuple[int, int]:
    """How many words of a text the training text has too, and how many words there are."""
    words = WORD.findall(text)
    return sum(word.lower() in known.words for word in words), len(words)


def repeated(text: str, known: Known) -> tuple[int, int]:
    """How many of the runs of four words came earlier in the same text, and how many there are (Welleck et al.,
    arXiv:1908.04319)."""
    words = [word.lower() for word in WORD.findall(text)]
    grams = [tuple(words[i : i + N]) for i in range(len(words) - N + 1)]
    return len(grams) - len(set(grams)), len(grams)


def ended_sentences(text: str, known: Known) -> tuple[int, int]:
    """How many sentences come to . ! or ? within 40 words and before the line ends, and how many there are. The last
    one, if the limit of tokens cut it off, is left out."""
    pieces = [piece for piece in SENTENCE.findall(text) if WORD.search(piece)]
    lengths = [len(WORD.findall(piece)) for piece in pieces]
    ended = [bool(re.search(r"[.!?]", piece)) and n <= LONGEST for piece, n in zip(pieces, lengths)]
    if pieces and not ended[-1] and lengths[-1] <= LONGEST:
        ended.pop()
    return sum(ended), len(ended)


def closed_quotes(text: str, known: Known) -> tuple[int, int]:
    """How many quotes that open are closed in the same line, and how many open. A last line that the limit of tokens
    cut off is left out."""
    lines = text.split("\n")
    if not re.search(r"[.!?][\"”]?\s*$", lines[-1]):
        lines.pop()
    closed = opened = 0
    for line in lines:
        straight, curly = line.count('"'), line.count("“")
        opened += (straight + 1) // 2 + curly
        closed += straight // 2 + min(curly, line.count("”"))
    return closed, opened


def persisting_names(text: str, known: Known) -> tuple[int, int]:
    """How many mentions of names in the second half of a text are of names in its first, and how many there are."""
    words = WORD.findall(text)
    half = len(words) // 2
    before = set(words[:half]) & known.names
    later = [word for word in words[half:] if word in known.names]
    return sum(word in before for word in later), len(later)


Measure = Callable[[str, Known], tuple[int, int]]
MEASURES: dict[str, Measure] = {"words that exist": known_words, "repeated 4-grams": repeated}
OF_STORIES: dict[str, Measure] = {
    "sentences that end": ended_sentences, "quotes that close": closed_quotes, "names that persist": persisting_names,
}


def measure(texts: Sequence[str], known: Known, stories: bool) -> dict[str, float | None]:
    """Each measure over all texts together; None where there is nothing to count, such as no quote at all."""
    found: dict[str, float | None] = {}
    for name, count in (MEASURES | (OF_STORIES if stories else {})).items():
        pairs = [count(text, known) for text in texts]
        whole = sum(total for _, total in pairs)
        found[name] = sum(part for part, _ in pairs) / whole if whole else None
    found["words in a text"] = mean(len(WORD.findall(text)) for text in texts)
    return found
