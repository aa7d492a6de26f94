"""What the README and the notes name is there: files, pictures, commands and their flags, functions, packages."""

import ast
import io
import itertools
import re
import runpy
import shlex
import sys
import tomllib
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from plots import gpt2_drawing

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "notes").glob("*.md"))]
VERBS = {"engine.py", "gpt.py", "tokenizer.py", "grok.py"}  # scripts whose first word may be a verb
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
FOREIGN = ("runs/", "data/cache/")  # what the programs make


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def inline(page: Path) -> list[str]:
    """What stands in backticks within the text."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


# ---- files ----


@every_page
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    local = [t for t in targets if not t.startswith("https://")]
    assert [t for t in local if not (page.parent / t).exists()] == []
    for picture in (page.parent / t for t in local if t.endswith(".png")):
        assert picture.read_bytes().startswith(b"\x89PNG")


@every_page
def test_files_and_folders_that_are_named_exist(page: Path) -> None:
    tree = [line.split("#")[0] for line in "".join(blocks(page, "text")).splitlines() if line[:1] in ("├", "└")]
    words = [*inline(page), *" ".join(tree).split()]
    names = [w for w in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|toml|c|cu|cuh|h|png))", w)]
    names = [n for n in names if not n.startswith(FOREIGN)]
    assert [n for n in names if not (ROOT / n).exists()] == []


def test_every_picture_and_every_note_is_shown_somewhere() -> None:
    linked = {(page.parent / t).resolve() for page in PAGES for t in re.findall(r"\]\(([^)\s]+)\)", prose(page))}
    pictures = set((ROOT / "plots" / "pictures").glob("*.png"))
    assert {p.name for p in pictures - linked} == set()
    index = ROOT / "notes" / "README.md"
    assert {p.name for p in PAGES[1:] if p != index and f"]({p.name})" not in index.read_text()} == set()


# ---- commands ----


@cache
def help_of(*command: str) -> str:
    """What `python COMMAND --help` prints, without a new process."""
    printed, argv = io.StringIO(), sys.argv
    script, *verb = command
    if script == "-m":
        folder, _, module = verb.pop(0).partition(".")
        script = f"{folder}/{module or '__main__'}.py"
    sys.argv = [script, *verb, "--help"]
    try:
        with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = argv
    assert not ended.value.code, f"{shlex.join(command)} --help ends with {ended.value.code}"
    return printed.getvalue()


def split_command(line: str) -> tuple[tuple[str, ...], list[str]] | None:
    """The script or module with its verb, and the arguments, of a line that runs Python; None for other lines."""
    words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
    words = list(itertools.dropwhile(lambda w: re.fullmatch(r"[A-Z_]+=\S+", w), words))
    if len(words) < 2 or words[0] not in ("python", ".venv/bin/python") or words[1:3] == ["-m", "pytest"]:
        return None
    n = 3 if words[1] == "-m" else 2
    if words[1] in VERBS and len(words) > n and not words[n].startswith("-"):
        n += 1
    return tuple(words[1:n]), words[n:]


def commands(page: Path) -> list[str]:
    """Every line of a page that runs Python, in blocks and within the text."""
    lines = [part for body in blocks(page, "bash") for line in body.splitlines() for part in line.split("&&")]
    return [line for line in [*lines, *inline(page)] if re.match(r"\s*([A-Z]+=\S+ )?(\.venv/bin/)?python ", line)]


def flags_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)


@every_page
def test_commands_have_the_flags_that_they_are_shown_with(page: Path) -> None:
    for line in commands(page):
        if (parts := split_command(line)) is None:
            continue
        command, arguments = parts
        shown = help_of(*command)
        for flag, value in itertools.pairwise([*arguments, ""]):
            if flag.startswith("--"):
                assert flag in [*flags_in(shown), "--help"], f"{line}: no {flag}"
                choices = re.search(re.escape(flag) + r" \{([^}]*)\}", shown)
                named = value in (choices[1].split(",") if choices else ()) or value.isupper()
                assert not choices or named, f"{line}: {flag} can't be {value}"


def test_flags_that_the_text_names_exist() -> None:
    used = {parts[0] for page in PAGES for line in commands(page) if (parts := split_command(line))}
    known = {flag for command in used for flag in flags_in(help_of(*command))} | {"--help"}
    named = {flag for page in PAGES for code in inline(page) for flag in flags_in(code)}
    assert named - known == set()


def test_the_commands_to_set_up_and_to_test_are_the_agreed_ones() -> None:
    setup = "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python gpt.py "
    lines = [line for body in blocks(README, "bash") for line in body.splitlines()]
    assert any(line.startswith(setup) for line in lines)
    assert any(line.startswith(".venv/bin/python -m pytest ") for line in lines)


# ---- the text ----


def test_the_readme_stays_an_invitation() -> None:
    words = [w for w in README.read_text(encoding="utf-8").split() if re.search(r"\w", w)]
    assert len(words) <= 2000


@every_page
def test_lines_fit_and_no_machine_is_named(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 120] == []
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home)/", text)


def test_speeds_in_the_readme_are_those_of_the_notes() -> None:
    speeds = re.findall(r"(\d[\d.,]*) (?:ms|tokens/s|MB/s)\b", prose(README))
    measured = re.findall(r"\d[\d.,]*", (ROOT / "notes" / "measured.md").read_text(encoding="utf-8"))
    assert speeds and set(speeds) - set(measured) == set()


def test_every_pinned_package_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    assert {name for p in pinned if (name := p.split("==")[0]) not in inline(README)} == set()


def names_in(file: Path) -> set[str]:
    """Functions, classes, methods and attributes that a file defines."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return names


def test_the_lines_from_python_use_names_of_gpt() -> None:
    (body,) = blocks(README, "python")
    used = {node.attr for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name) and node.value.id == "gpt"}
    assert used and used <= names_in(ROOT / "gpt.py")


# ---- the drawing ----


@pytest.fixture(scope="module")
def drawn() -> Figure:
    figure = gpt2_drawing.draw()
    figure.draw_without_rendering()
    return figure


def test_the_drawing_names_classes_and_functions_that_exist(drawn: Figure) -> None:
    blue = [t.get_text() for t in drawn.axes[0].texts if to_hex(t.get_color()) == gpt2_drawing.CODE]
    assert len(blue) > 15
    missing = []
    for text in blue:
        *owner, name = text.split(" (")[0].split(".")
        file = f"{owner[0]}.py" if owner and owner[0] in ("tokenizer", "trainer") else "gpt.py"
        if owner != ["Tensor"] and name not in names_in(ROOT / file):
            missing.append(text)
    assert missing == []


def test_the_words_of_the_drawing_fit_and_do_not_overlap(drawn: Figure) -> None:
    areas = {f"{i}: {t.get_text()}": t.get_window_extent() for i, t in enumerate(drawn.axes[0].texts) if t.get_text()}
    sheet = drawn.bbox
    outside = [name for name, box in areas.items() if not (sheet.contains(*box.min) and sheet.contains(*box.max))]
    overlapping = [(a, b) for a, b in itertools.combinations(areas, 2) if areas[a].overlaps(areas[b])]
    assert outside == [] and overlapping == []
