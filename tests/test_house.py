"""The rooms of the repository: what a file may import, and that no two files import each other."""

import ast
import tomllib
from graphlib import TopologicalSorter

from conftest import ROOT

# From the bottom to the top: a file may import its own room and what is below it.
FLOORS = [
    {"engine", "runtime"}, {"tokenizer", "kernels"}, {"data"}, {"exchange"}, {"gpt"},
    {"trainer", "generate", "lora", "variants"}, {"answers", "bigram", "grok"}, {"commands"}, {"plots", "benchmarks"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports(name: str, tree: ast.Module) -> set[str]:
    """All that a module imports, late or not; in a lesson but for the lines under `if __name__ == "__main__":`."""
    body = [n for n in tree.body if "." in name or not ast.unparse(n).startswith("if __name__ == '__main__':")]
    names: set[str] = set()
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{name} has a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names - {name}


def test_imports_point_down_and_never_in_a_circle() -> None:
    paths = [p for folder in (ROOT, *(ROOT / room for room in FLOOR)) for p in folder.glob("*.py")]
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    graph = {name: imports(name, ast.parse(p.read_text())) & set(modules) for name, p in modules.items()}
    room = {name: name.split(".")[0] for name in modules}
    upward = [f"{name} imports {other}" for name, others in graph.items() for other in others
              if room[other] != room[name] and FLOOR[room[other]] >= FLOOR[room[name]]]
    assert not upward
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_what_is_installed_has_every_module_and_every_file_that_is_no_module() -> None:
    """pyproject.toml lists the lessons and the rooms; an editable install, as in the README, hides what it lacks."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setup["py-modules"]) | set(setup["packages"]) == set(FLOOR)
    for room in setup["packages"]:
        kinds = setup["package-data"].get(room, [])
        for path in (ROOT / room).rglob("*"):
            inside = path.relative_to(ROOT / room)
            code = path.suffix in (".c", ".cu", ".cuh", ".h", ".html", ".js", ".css", ".patch")
            assert not code or any(inside.match(kind) for kind in kinds), f"{path} isn't in package-data"
