"""Which formula each kernel computes, so that one that a reader has changed runs as it is written now.

A kernel has the name of a function in a lesson. Change that function, or one beside it that it calls, and the kernel
would still compute the old formula: so it is left out then, and a line on stderr says so.
"""

import ast
import functools
import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

# The digests of the formulas that the kernels were written for. After a change of a formula and its kernel, a test
# says what belongs here.
DIGESTS = {
    "embed": "615340b3", "linear": "bf04bd12", "layernorm": "e7f1002f", "gelu": "5d2237c7", "attention": "16ffb2f7",
    "head_loss": "d42fbf36", "total_norm": "fc197f75", "adamw": "cb4e196e", "muon": "df316185",
    "remember": "cd5dec10", "attend": "250c855f", "document_attention": "75ef6d2b",
    "rmsnorm": "2f9fe803", "normalise_heads": "38712834", "rotate": "114402fe", "grouped_attention": "9681cc4f",
    "flash_attention": "79395028", "relu2": "edd78002", "swiglu": "ec6891ce",
    # of these grok.py has a shorter form
    "GPT.__call__": "992df1bb", "GPT.hidden": "09e9f579", "Block.__call__": "f79f35a7",
    "CausalSelfAttention.__call__": "175a6489",
}
_said: set[str] = set()


def digest(function: Callable[..., Any]) -> str:
    """Eight letters that change with the code of a function, or of one in its module that it calls, and not with
    comments or a docstring; nothing where the code can't be read."""
    codes: dict[str, str] = {}
    _collect(inspect.unwrap(function), codes)
    return hashlib.sha256("\n".join(codes[name] for name in sorted(codes)).encode()).hexdigest()[:8] if codes else ""


def _collect(function: Callable[..., Any], codes: dict[str, str]) -> None:
    """Put the code of a function, and of those in its module that it calls, under their names into `codes`."""
    tree = _functions(function.__code__.co_filename).get(function.__code__.co_firstlineno)
    if tree is None:
        return
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    codes[function.__qualname__] = "\n".join(map(ast.unparse, [tree.args, *body]))
    for name in function.__code__.co_names:
        other = inspect.unwrap(function.__globals__.get(name, digest))
        if isinstance(other, FunctionType) and other.__module__ == function.__module__ and name not in codes:
            _collect(other, codes)


@functools.cache
def _functions(file: str) -> dict[int, ast.FunctionDef]:
    """The functions in a file by their first lines, which are those of their decorators."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return {}
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {min([node.lineno, *(d.lineno for d in node.decorator_list)]): node for node in found}


def unchanged(function: Callable[..., Any], consequence: str) -> bool:
    """Whether a function is the one of DIGESTS. If not, the `consequence` is said on stderr, once."""
    name, found = function.__qualname__, digest(function)
    if found in ("", DIGESTS.get(name)):
        return True
    if name not in _said:
        _said.add(name)
        print(f"note: {name} isn't as it was: {consequence}", file=sys.stderr)
    return False
