"""The look that all pictures share: readable at the 900 pixels that a README gives them, and in grey print."""

import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only, so that no display is needed

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from runtime.errors import UserError
from runtime.files import atomic_write

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]
WIDTH = 9.0  # inches: 900 pixels at 100 dots per inch
# What a file's suffix says of its format, with what to leave out so that the same figure gives the same bytes
FORMATS: dict[str, dict[str, None]] = {
    ".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".jpg": {}, ".jpeg": {},
}


def use() -> None:
    """Set the style for every figure that follows."""
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 6.5),
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "",  # names in the file that don't change from run to run
            "savefig.dpi": 200,  # twice the pixels, for sharp screens
            "font.size": 10,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.prop_cycle": plt.cycler(color=COLORS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "axes.axisbelow": True,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "legend.fontsize": 9,
        }
    )


def shade(i: int, count: int) -> tuple[float, float, float, float]:
    """The colour of the i-th of `count` things that come in an order, such as layers."""
    return plt.get_cmap("viridis")(0.9 * i / max(count - 1, 1))


def drawable(text: str, font: str | FontProperties = "monospace") -> str:
    """The text with the number of each character that the font lacks, as `4E2D`, where it would draw an empty box."""
    found = get_font(findfont(font if isinstance(font, FontProperties) else FontProperties(family=font)))
    return "".join(c if c == "\n" or found.get_char_index(ord(c)) else f"{ord(c):04X}" for c in text)


def save(fig: Figure, path: str | os.PathLike[str]) -> None:
    """Write the figure, complete or not at all, in the format that the suffix names, and close it.

    Raises UserError for another suffix than those of FORMATS.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(f"--out {path} doesn't name a picture: its name must end in {', '.join(FORMATS)}")
    for text in fig.findobj(Text):  # a title with the name of a run, of a tokenizer, of a file
        assert isinstance(text, Text)
        text.set_text(drawable(text.get_text(), text.get_fontproperties()))
    with atomic_write(Path(path)) as new:
        fig.savefig(new, format=suffix[1:], metadata=FORMATS[suffix] or None)
    plt.close(fig)
