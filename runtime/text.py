"""Long texts in blocks: how they are read, where they are cut, and what Unicode asks for."""

import codecs
import functools
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import regex

from runtime.progress import Progress

BLOCK = 1 << 20  # texts are read and cut in pieces of about so many bytes or characters

# Letters and numbers of Unicode 17. `regex` knows them already and tiktoken 0.14, with Unicode 16, does not.
NEWER_THAN_TIKTOKEN = re.compile(
    r"[\u0558\u058B-\u058C\u088F\u0C5C\u0CDC\u208F\u209D-\u209F\uA7CE-\uA7CF\uA7D2\uA7D4\uA7DD-\uA7F1\uAB6C-\uAB6D"
    r"\U000107BB-\U000107BF\U00010940-\U00010959\U00010EC5-\U00010EEE\U00011B0A\U00011DB0-\U00011DF1"
    r"\U0001246F-\U0001247F\U00012550-\U00012686\U00016EA0-\U00016ED3\U00016FF2-\U00016FF6\U000187F8-\U000187FF"
    r"\U00018CD6-\U00018CDA\U00018D09-\U000191D2\U0001B123-\U0001B128\U0001B168\U0001D6A6\U0001DF1F-\U0001DF24"
    r"\U0001DF2B-\U0001DFFF\U0001E6C0-\U0001E6FF\U0002B73A-\U0002B73F\U0002B81E\U0002CEA2-\U0002CEAD"
    r"\U000323B0-\U0003FC3F]"
)


def read_text(path: str | os.PathLike[str]) -> Iterator[str]:
    """The text of a UTF-8 file block by block, line ends untouched. A terminal sees the progress after a second.

    A byte-order mark isn't part of the text. Raises OSError at once when the file can't be opened, and ValueError later
    with the offset of a byte that is wrong, or with the name of the encoding if that is UTF-16 or UTF-32.
    """
    return _blocks_of(Path(path).open("rb"), str(path))


def _blocks_of(file: BinaryIO, name: str) -> Iterator[str]:
    decoder, progress, begin = codecs.getincrementaldecoder("utf-8")(), Progress(sys.stderr), time.perf_counter()
    size, end, begun = os.fstat(file.fileno()).st_size, 0, False  # begun: whether a character has come
    try:
        while data := file.read(BLOCK):
            if not end:
                require_utf8(data, name)
            text = _decode(decoder, data, end, name)
            yield text if begun else text.removeprefix("\ufeff")
            begun = begun or bool(text)
            end += len(data)
            seconds = time.perf_counter() - begin
            if progress.live and seconds > 1 and time.perf_counter() - progress.shown > 0.2:
                done = min(end / size, 1.0) if size else 0.0
                bar = ("█" * round(30 * done)).ljust(30, "░")
                progress.show(f"{Path(name).name} {bar} {done:4.0%} {end / 1e6 / seconds:.1f} MB/s")
        yield _decode(decoder, b"", end, name)
    finally:
        progress.clear()
        file.close()


def require_utf8(start: bytes, name: str) -> None:
    """Raise ValueError if the file that begins with these bytes is UTF-16 or UTF-32."""
    even, odd, half = start[::2].count(0), start[1::2].count(0), len(start) // 2
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "UTF-32"
    elif start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "UTF-16"
    elif half >= 4 and max(even, odd) > 0.4 * half and not min(even, odd):  # every other byte of Latin letters is 0
        encoding = "UTF-16LE" if odd else "UTF-16BE"
    else:
        return
    raise ValueError(f"{name} is {encoding}: `iconv -f {encoding} -t UTF-8 {shlex.quote(name)} > NEW` makes it UTF-8")


def _decode(decoder: codecs.IncrementalDecoder, data: bytes, offset: int, name: str) -> str:
    """Decode the bytes that stand at `offset` of a file; no bytes are its end."""
    held = len(decoder.getstate()[0])  # the begun character before them
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 at byte {offset - held + error.start:,}") from None


def check_is_text(text: object) -> None:
    """Raise TypeError for anything but a str."""
    if not isinstance(text, str):
        raise TypeError(f"a tokenizer encodes str, not {type(text).__name__}")


def repair_surrogates(text: str) -> str:
    """The text as UTF-8 can have it: a surrogate pair is one character, and half of one is U+FFFD."""
    check_is_text(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def hide_newer_letters(text: str) -> str:
    """The text with U+E000, neither letter nor number, for each letter or number that tiktoken does not know."""
    if text.isascii() or not NEWER_THAN_TIKTOKEN.search(text):
        return text
    return NEWER_THAN_TIKTOKEN.sub("\ue000", text)


def cut_into_blocks(
    texts: str | Iterable[str], special: frozenset[str], last_cut: Callable[[str, int, int], int]
) -> Iterator[str]:
    """A text, whole or in parts, in pieces of about BLOCK characters that encode on their own as they do together.

    No special token spans two pieces. `last_cut(text, low, high)` is the last place from `low` to `high` where text
    without special tokens may be cut, or `low`.
    """
    if isinstance(texts, str):
        whole = texts
        texts = (whole[i : i + BLOCK] for i in range(0, len(whole), BLOCK))
    held: list[str] = []
    size, enough = 0, BLOCK
    for text in texts:
        check_is_text(text)
        held.append(text)
        size += len(text)
        if size >= enough:
            joined = "".join(held)
            cut = find_cut(joined, special, last_cut)
            if cut:
                yield joined[:cut]
            held, size = [joined[cut:]], len(joined) - cut
            enough = max(BLOCK, 2 * size)  # doubling: a text with no place to cut is searched log n times
    if size:
        yield "".join(held)


def find_cut(text: str, special: frozenset[str], last_cut: Callable[[str, int, int], int]) -> int:
    """The last safe cut in a text that may go on: one that no special token spans; 0 if there is none."""
    high = len(text) - max(map(len, special), default=1)  # what begins before it is seen to its end
    low = 0
    for match in any_of(special).finditer(text) if special else ():
        if match.end() > high:
            high = min(high, match.start())
            break
        low = match.end()
    return last_cut(text, low, high) if high > low else low


@functools.lru_cache(maxsize=32)
def any_of(tokens: frozenset[str]) -> regex.Pattern[str]:
    """A pattern that finds any of the special tokens, the longest where several begin at one place."""
    return regex.compile(f"({'|'.join(map(regex.escape, sorted(tokens, key=len, reverse=True)))})")
